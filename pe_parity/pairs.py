"""Search for two mistakes that show first at one name, where none explains it alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Final

import numpy as np

from pe_parity.budgets import CLEARER
from pe_parity.hypotheses import ALONE, Hypothesis

if TYPE_CHECKING:
    from pe_parity.search import Found, Search

# Pairs are ranked by the sum of what each mistake does alone; so many of the best are computed, ...
PAIRS_TRIED: Final = 300
# ... and every pair with one of so many mistakes that alone leave less than such a part.
FIRSTS_TRIED: Final = 4
PART_LEFT: Final = 0.3
# Two mistakes are a search among many thousand: bounds wider than this let chance in.
PAIR_BOUND: Final = 1e-3


def best_pair(search: Search) -> Found | None:
    """Return the likelier of the pairs that explain the failing name of a search."""
    return _Pairs(search).best()


class _Pairs:
    def __init__(self, search: Search) -> None:
        self.search = search

    def best(self) -> Found | None:
        """Return the likelier of the pairs that explain the name and the most names after it."""
        actual = self.search.shown.trace[self.search.failing]
        usable = np.isfinite(actual).all() and actual.shape == self.search.expected.shape
        if not usable or self.search.shown.bound(self.search.failing) > PAIR_BOUND:
            return None
        alike = self._alike()
        found: list[tuple[int, Found]] = []
        for stage in self._ranked(alike):
            for n, m in stage:
                pair = _composed(alike[n][0], alike[m][0])
                if pair is not None and self.search.comes_near(self.search.few_array(*pair)):
                    found += self._of_kinds(alike, n, m)
            if found:
                break
        if not found:
            return None
        reach = max(one.reach for _, one in found)
        furthest = [(order, one) for order, one in found if one.reach == reach]
        least = min(one.residual for _, one in furthest)
        near = [(order, one) for order, one in furthest if one.residual <= CLEARER * least]
        return min(near, key=lambda item: item[0])[1]

    def _of_kinds(
        self, alike: list[list[Hypothesis]], n: int, m: int
    ) -> Iterator[tuple[int, Found]]:
        """Yield what explains the name of two kinds of mistakes with one effect each."""
        for one, other in product(alike[n], alike[m]):
            pair = _composed(one, other)
            explained = None if pair is None else self.search.explained(*pair)
            if explained is not None:
                yield n + m, explained

    def _alike(self) -> list[list[Hypothesis]]:
        """Return the mistakes that have an effect here, those with one effect together."""
        least = self.search.shown.bound(self.search.failing) * float(
            np.linalg.norm(self.search.few_expected)
        )
        found: dict[bytes, list[Hypothesis]] = {}
        for one, array in self.search.effects:
            # What is wrong in one layer alone is seldom one of two.
            if ALONE in one.text or array.shape != self.search.few_expected.shape:
                continue
            if not np.isfinite(array).all():
                continue
            if np.linalg.norm(array - self.search.few_expected) > least:
                found.setdefault(array.astype(np.float32).tobytes(), []).append(one)
        return list(found.values())

    def _ranked(self, alike: list[list[Hypothesis]]) -> Iterator[list[tuple[int, int]]]:
        """Yield pairs by their numbers, first those whose effects add up to the difference, then
        those with one mistake that makes most of it.
        """
        expected = self.search.expected.ravel()
        wanted = self.search.shown.trace[self.search.failing].ravel() - expected
        moves = np.full((len(alike), len(expected)), np.inf)
        for row, (one, *_) in zip(moves, alike, strict=True):
            array = self.search.array(one.on(self.search.variant), self.search.shown)
            if array is not None and array.shape == self.search.expected.shape:
                row[:] = array.ravel() - expected
        there = np.flatnonzero(np.isfinite(moves).all(axis=1))
        moves = moves[there]
        left = wanted - moves
        # |wanted - a - b|^2 = |wanted - a|^2 + |b|^2 - 2 (wanted - a) b
        alone = np.square(left).sum(axis=1)
        both = alone[:, None] + np.square(moves).sum(axis=1) - 2.0 * left @ moves.T
        both[np.tril_indices(len(both))] = np.inf
        firsts = np.argsort(alone, kind="stable")[:FIRSTS_TRIED]
        firsts = firsts[np.sqrt(alone[firsts]) < PART_LEFT * np.linalg.norm(wanted)]
        places = np.argsort(both, axis=None, kind="stable")[:PAIRS_TRIED]
        summed = [divmod(int(place), len(both)) for place in places]
        others = [(n, m) for n in firsts.tolist() for m in range(len(both))]
        for stage in (summed, others):
            yield [
                (int(there[min(pair)]), int(there[max(pair)]))
                for pair in stage
                if len(set(pair)) > 1
            ]


def _composed(one: Hypothesis, other: Hypothesis) -> tuple[Hypothesis, Hypothesis] | None:
    """Return two mistakes for one model: what padding holds is the same for both."""
    if not one.reads_padding:
        return one, other
    if other.reads_padding and other.padding != one.padding:
        return None
    return one, replace(other, padding=one.padding, reads_padding=True)
