"""Find what is wrong with a trace, one mistake after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from pe_parity.budgets import CLEARER, budget, distance
from pe_parity.compare import compare
from pe_parity.hypotheses import hypotheses
from pe_parity.padding import part, without_padding
from pe_parity.perturbed_reference import Change, Edit, PerturbedReference
from pe_parity.resemblance import resemblances
from pe_parity.trace import Trace
from pe_parity.trace_file import Given

# Enough sequences to distinguish mistakes; the formulas in NumPy are slow.
ROWS: Final = 8
MOST_FAULTS: Final = 6


@dataclass(frozen=True)
class Finding:
    """What is wrong at one name.

    Args:
        name: where it shows first.
        text: what it looks like, as a sentence without its stop.
        explained: whether it accounts for the difference there, to within the bound.
    """

    name: str
    text: str
    explained: bool = True


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a trace.

    Args:
        findings: in the order in which they show.
        checked: number of names that are right or that the findings together explain; None where
            the search did not follow the whole model.
        total: number of names that the model has.
    """

    findings: tuple[Finding, ...]
    checked: int | None = None
    total: int = 0


def diagnose(baseline: Trace, actual: Trace, given: Given | None, precision: str) -> Diagnosis:
    """Explain the differences of a trace from a baseline.

    Mistakes in the model are tried by computing the whole model with each of them, in float64; the
    one that explains the first name out of bounds, and the most names after it, is kept, and the
    search goes on from there. Without the inputs of the model, or where no mistake of this kind
    fits, the two arrays at that name are compared by themselves.

    Args:
        baseline: the trace that the other should equal.
        actual: the one that does not.
        given: what went into both; None where nobody knows.
        precision: of the comparison; chooses the bounds.
    """
    if given is not None:
        baseline = without_padding(baseline, given.mask)
        actual = without_padding(actual, given.mask)
    names = [name for name in baseline if name in actual]
    failing = _first_failure(baseline, actual, names, precision)
    if failing is None:
        return Diagnosis(())
    variant = None if given is None else PerturbedReference.of(given, ROWS)
    # The first rows of the baseline can be computed only where the reference has the name, and
    # agrees.
    shown = actual
    if variant is not None:
        shown, expected = _first_rows(actual, variant), _first_rows(baseline, variant)
        exact = variant.trace()
        followed = [name for name in names if name in exact]
        until = followed[: followed.index(failing) + 1] if failing in followed else []
        if not until:
            variant = None
        elif _first_failure(expected, exact, until, precision) is not None:
            if _first_failure(exact, shown, until, precision) is None:
                return Diagnosis(
                    (
                        Finding(
                            failing,
                            (
                                "the reference agrees with the second trace, not with the first: "
                                "that one is off"
                            ),
                        ),
                    )
                )
            variant = None
    if variant is None:
        return Diagnosis((_alone(failing, baseline[failing], actual[failing], given, precision),))
    return _followed(variant, shown, followed, precision)


def _followed(
    variant: PerturbedReference, actual: Trace, names: list[str], precision: str
) -> Diagnosis:
    """Find one mistake after the other, each on top of those before."""
    findings: list[Finding] = []
    reference = variant.trace()
    failing = _first_failure(reference, actual, names, precision)
    while failing is not None and len(findings) < MOST_FAULTS:
        found = _best(variant, failing, actual, names, precision)
        if found is None:
            findings.append(
                _alone(failing, reference[failing], actual[failing], variant, precision)
            )
            return Diagnosis(tuple(findings))
        text, variant, goes_on = found
        findings.append(Finding(failing, text))
        if not goes_on:
            return Diagnosis(tuple(findings))
        reference = variant.trace()
        failing = _first_failure(reference, actual, names, precision)
    return Diagnosis(
        tuple(findings), len(names) if failing is None else names.index(failing), len(names)
    )


def _best(
    variant: PerturbedReference, failing: str, actual: Trace, names: list[str], precision: str
) -> tuple[str, PerturbedReference, bool] | None:
    """Return the mistake that explains the failing name and the most names after it, the model with
    it, and whether to go on from it.
    """
    before = names[: names.index(failing) + 1]
    bound = budget(failing, precision).bound
    expected = variant.trace(failing)[failing]
    best: tuple[str, PerturbedReference, bool] | None = None
    furthest, nearest = -1, np.inf
    general = (
        (one.text, replace(variant, edits=(*variant.edits, *edits)), True)
        for one in resemblances(failing, expected, actual[failing], bound, variant.config)
        if one.change is not None
        for edits in _edits(failing, one.change)
    )
    known = ((one.text, one.variant, one.followed) for one in hypotheses(variant, failing))
    for candidates in (known, general):
        for text, candidate, goes_on in candidates:
            found = candidate.trace(failing)
            if failing not in found or _first_failure(found, actual, before, precision) is not None:
                continue
            next_failure = (
                _first_failure(candidate.trace(), actual, names, precision) if goes_on else failing
            )
            reach = len(names) if next_failure is None else names.index(next_failure)
            residual = distance(actual[failing], found[failing], found[failing])
            if reach > furthest or (reach == furthest and CLEARER * residual < nearest):
                best, furthest, nearest = (text, candidate, goes_on), reach, residual
        if best is not None:
            return best
    return None


def _edits(failing: str, change: Change) -> Iterator[tuple[Edit, ...]]:
    """Yield where a change may act: in every layer, in one alone, or, for logits, on query, key and
    value together.
    """
    for where in dict.fromkeys((part(failing), failing)):
        yield (Edit(where, change),)
    if part(failing) == "attention.logits":
        yield tuple(
            Edit(f"attention.{kind}", change, seen=False) for kind in ("query", "key", "value")
        )


def _alone(
    name: str,
    expected: np.ndarray,
    actual: np.ndarray,
    given: Given | PerturbedReference | None,
    precision: str,
) -> Finding:
    """Compare two arrays without the model behind them."""
    config = None if given is None else given.config
    found = next(resemblances(name, expected, actual, budget(name, precision).bound, config), None)
    if found is not None:
        return Finding(name, found.text)
    place = np.unravel_index(
        int(np.nanargmax(np.abs(np.asarray(actual, np.float64) - expected))), expected.shape
    )
    where = f"[{', '.join(map(str, place))}]" if place else ""
    figures = (
        f"the largest difference is at {name}{where}: {float(expected[place]):.6g} "
        f"expected, {float(actual[place]):.6g} found"
    )
    return Finding(name, f"nothing known accounts for it; {figures}", explained=False)


def _first_failure(expected: Trace, actual: Trace, names: list[str], precision: str) -> str | None:
    there = {name: expected[name] for name in names if name in expected}
    row = compare(there, {"": {name: actual[name] for name in there}}, precision).first_failure
    return None if row is None else row.name


def _first_rows(trace: Trace, variant: PerturbedReference) -> Trace:
    """Return the part of a trace that a variant computes: its first rows."""
    rows = len(variant.inputs)
    return without_padding(
        {name: array[:rows] if array.ndim > 1 else array for name, array in trace.items()},
        variant.mask,
    )
