"""Search for the mistakes, one or two, that turn the reference into a trace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from pe_parity.budgets import CLEARER
from pe_parity.hypotheses import Hypothesis, hypotheses
from pe_parity.padding import part
from pe_parity.pairs import best_pair
from pe_parity.perturbed_reference import Change, Edit, PerturbedReference
from pe_parity.resemblance import resemblances
from pe_parity.shown import MOST_EXCESS, Shown

# Every hypothesis is tried on the few sequences that differ most; what comes near is tried on all.
SCREENED: Final = 3
# How much wider the bounds are there: a few sequences have more rounding than all together.
SLACK: Final = 3.0
# An explanation of all names that is so many times better than it must be ends the search.
SURE: Final = 2.0


@dataclass(frozen=True, eq=False)
class Found:
    """Mistakes that explain the first name out of bounds.

    Args:
        texts: what is wrong.
        variant: the model with the mistakes.
        followed: whether the search may go on from it.
        reach: number of names before the next one out of bounds.
        residual: distance at the name explained.
    """

    texts: tuple[str, ...]
    variant: PerturbedReference
    followed: bool
    reach: int
    residual: float


class Search:
    """The search at one name: what is right before it stays right, and it must come out as traced.

    Args:
        variant: the model so far.
        shown: the trace in question.
        failing: its first name out of bounds.
    """

    def __init__(self, variant: PerturbedReference, shown: Shown, failing: str) -> None:
        self.variant = replace(variant, memory={})
        self.shown, self.failing = shown, failing
        self.before = frozenset(shown.names[: shown.names.index(failing)])
        self.expected = self.variant.trace(failing)[failing]
        self.start = shown.residual(failing, self.expected)
        rows = _different(self.expected, shown.trace[failing])
        self.few = replace(variant, memory={}, rows=variant.rows[rows])
        self.few_shown = shown.of_rows(rows)
        self.few_expected = self.few.trace(failing)[failing]
        self.few_start = self.few_shown.residual(failing, self.few_expected)
        # What each hypothesis that does not explain the name alone does there.
        self.effects: list[tuple[Hypothesis, np.ndarray]] = []

    def best(self) -> Found | None:
        """Return what explains the name and the most names after it: one known mistake, else a
        change of the array itself, else two known mistakes.
        """
        return self._nearest(self._known()) or self._nearest([self._general()]) or best_pair(self)

    def _nearest(self, groups: Iterator[Iterator[Found]] | list[Iterator[Found]]) -> Found | None:
        best: Found | None = None
        for group in groups:
            for found in group:
                nearer = best is None or CLEARER * found.residual < best.residual
                if best is None or (found.reach, nearer) > (best.reach, False):
                    best = found
            if best is not None and self._is_certain(best):
                break
        return best

    def _is_certain(self, found: Found) -> bool:
        """Return whether all is explained so well that nothing less likely is asked for."""
        whole = found.reach == len(self.shown.names)
        return whole and SURE * found.residual <= self.shown.bound(self.failing)

    def _known(self) -> Iterator[Iterator[Found]]:
        for group in hypotheses(self.variant, *self._layers()):
            yield self._explanations(group)

    def _layers(self) -> tuple[int, int]:
        """Return the first and the last layer in which a mistake can act that shows at the failing
        name and not before.
        """
        first = max((_layer(name) for name in self.before), default=0)
        if self.failing != part(self.failing):
            return first, _layer(self.failing)
        early = self.failing in ("input", "encoding")
        return first, -1 if early else self.variant.config.num_layers - 1

    def _explanations(self, group: Iterator[Hypothesis]) -> Iterator[Found]:
        for one in group:
            array = self.few_array(one)
            if array is None:
                continue
            found = self.explained(one) if self.comes_near(array) else None
            if found is not None:
                yield found
            elif one.followed:
                self.effects.append((one, array))

    def array(
        self, candidate: PerturbedReference, shown: Shown, slack: float = 1.0
    ) -> np.ndarray | None:
        """Return what a model has at the failing name; None where it does not come so far, or is
        wrong before.
        """

        def check(name: str, array: np.ndarray) -> bool:
            if name not in self.before:
                return True
            residual = shown.residual(name, candidate.shown(name, array))
            return residual <= slack * shown.bound(name)

        return candidate.at(self.failing, check)

    def few_array(self, *mistakes: Hypothesis) -> np.ndarray | None:
        """Return the same of mistakes, on the few sequences."""
        candidate = self.few
        for one in mistakes:
            candidate = one.on(candidate)
        return self.array(candidate, self.few_shown, SLACK)

    def comes_near(self, array: np.ndarray | None) -> bool:
        """Return whether an array of the few sequences is worth a trial on all."""
        if array is None:
            return False
        residual = self.few_shown.residual(self.failing, array)
        near = CLEARER * residual <= SLACK * self.few_start
        return near and residual <= MOST_EXCESS * self.shown.bound(self.failing)

    def explained(self, *mistakes: Hypothesis) -> Found | None:
        """Return mistakes, if together they explain the failing name."""
        candidate, goes_on = self.variant, True
        for one in mistakes:
            candidate, goes_on = one.on(candidate), goes_on and one.followed
        return self._checked(tuple(one.text for one in mistakes), candidate, goes_on)

    def _checked(
        self, texts: tuple[str, ...], candidate: PerturbedReference, goes_on: bool = True
    ) -> Found | None:
        array = self.array(candidate, self.shown)
        if array is None:
            return None
        residual, bound = self.shown.residual(self.failing, array), self.shown.bound(self.failing)
        # An explanation comes clearly nearer than none.
        if not CLEARER * residual <= self.start or residual > MOST_EXCESS * bound:
            return None
        if residual > bound and not self.shown.is_rounding(self.failing, residual, candidate):
            return None
        names = self.shown.names
        failure = self.shown.first_failure(candidate) if goes_on else self.failing
        reach = len(names) if failure is None else names.index(failure)
        return Found(texts, candidate, goes_on, reach, residual)

    def _general(self) -> Iterator[Found]:
        bound, actual = self.shown.bound(self.failing), self.shown.trace[self.failing]
        for one in resemblances(self.failing, self.expected, actual, bound, self.variant.config):
            for edits in _edits(self.failing, one.change) if one.change is not None else ():
                found = self._checked((one.text,), self.variant.edited(*edits))
                if found is not None:
                    yield found


def _different(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Return the numbers of the sequences that differ most."""
    if expected.shape != actual.shape or expected.ndim < 2:
        return np.arange(len(expected))[:SCREENED]
    apart = np.square(np.nan_to_num(actual - expected)).reshape(len(expected), -1).sum(axis=1)
    return np.sort(np.argsort(-apart, kind="stable")[:SCREENED])


def _layer(name: str) -> int:
    return int(name.split(".")[1]) if name != part(name) else 0


def _edits(failing: str, change: Change) -> Iterator[tuple[Edit, ...]]:
    """Yield where a change may act: in every layer, in one alone, or, for logits, on query, key and
    value together.
    """
    for where in dict.fromkeys((part(failing), failing)):
        yield (Edit.of(where, change),)
    if part(failing) == "attention.logits":
        yield tuple(
            Edit.of(f"attention.{kind}", change, seen=False) for kind in ("query", "key", "value")
        )
