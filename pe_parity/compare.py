"""Comparing traces: for each name the distance to the referee and between the frameworks, and
whether it keeps its budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from pe_parity.adam_noise import above_noise
from pe_parity.budgets import budget
from pe_parity.trace import Trace

# The kinds of names that are measured by an average over all of them too.
AVERAGED: Final = ("gradient/", "moment/m/", "moment/v/")


@dataclass(frozen=True)
class Row:
    """One name of a comparison.

    Args:
        name: in the trace.
        errors: the distance of each framework to the referee.
        mutual: the largest distance between two frameworks.
        bound: of the budget.
        size: how many elements the name has.
        left_out: of these, those that are not compared (see `pe_parity.adam_noise`).
    """

    name: str
    errors: dict[str, float]
    mutual: float
    bound: float
    size: int = 0
    left_out: int = 0

    @property
    def worst(self) -> float:
        """The largest of all distances; infinite when one is not a number."""
        values = [*self.errors.values(), self.mutual]
        return float("inf") if np.isnan(values).any() else max(values)

    @property
    def passed(self) -> bool:
        """Whether every distance keeps the budget."""
        return self.worst <= self.bound


@dataclass(frozen=True)
class Comparison:
    """All names of a comparison, in the order of the trace."""

    precision: str
    rows: tuple[Row, ...]

    @property
    def first_failure(self) -> Row | None:
        """The first name that leaves its budget."""
        return next((row for row in self.rows if not row.passed), None)


def distance(a: np.ndarray, b: np.ndarray, scale: np.ndarray, least: float = 0.0) -> float:
    """Return the norm of a - b over the norm of the scale; infinite where shapes or the places of
    NaN differ.

    NaN is equal to NaN in the same place; a scale of zero allows no difference.

    Args:
        a: an array.
        b: another.
        scale: what the difference is a share of.
        least: the norm is taken to be no less.
    """
    if a.shape != b.shape:
        return float("inf")
    a, b, scale = (np.asarray(array, np.float64) for array in (a, b, scale))
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    difference = float(np.linalg.norm(np.nan_to_num(a - b, nan=0.0).ravel()))
    norm = max(float(np.linalg.norm(np.nan_to_num(scale).ravel())), least)
    return 0.0 if difference == 0.0 else difference / norm if norm > 0.0 else float("inf")


def compare(
    referee: Trace,
    traces: Mapping[str, Trace],
    precision: str,
    *,
    moved: Mapping[str, np.ndarray] | None = None,
) -> Comparison:
    """Return the comparison of traces with the referee's, name by name in the order of the first
    trace.

    A name that one trace lacks is at an infinite distance. A gradient that is small because its
    terms cancel carries the rounding of those terms; so gradients and moments are a share of their
    own norm or of that of an average weight of their size, whichever is larger. Steps and trained
    weights are compared where the referee's gradient stands above its rounding, if the referee says
    where.

    Args:
        referee: the trace to be near to.
        traces: one for each framework.
        precision: of the traces; chooses the budgets.
        moved: how far training moved each weight, the scale of its name.
    """
    sizes = {kind: _typical_size(referee, kind) for kind in AVERAGED}
    names = [
        name
        for one in (referee, *traces.values())
        for name in one
        if not name.startswith("signal/")
    ]
    rows = []
    for name in dict.fromkeys(names):
        found = {label: one[name] for label, one in traces.items() if name in one}
        bound = budget(name, precision).bound
        if name not in referee or len(found) < len(traces):
            rows.append(
                Row(
                    name,
                    {label: 0.0 if label in found else float("inf") for label in traces},
                    float("inf"),
                    bound,
                )
            )
            continue
        # What is only a gauge is measured by the weights beside it: of itself, it has no size.
        beside = name.removeprefix("gauge/")
        scale = referee[beside] if moved is None else moved.get(beside, referee[beside])
        exact, signal = referee[name], referee.get(f"signal/{name}")
        kept = np.ones(exact.shape, bool)
        if signal is not None and all(
            array.shape == exact.shape for array in (signal, *found.values())
        ):
            kept = above_noise(signal, precision)
            exact, scale, found = (
                exact[kept],
                scale[kept],
                {label: array[kept] for label, array in found.items()},
            )
        least = next(
            (size for kind, size in sizes.items() if name.startswith(kind)), 0.0
        ) * math.sqrt(scale.size)
        errors = {label: distance(array, exact, scale, least) for label, array in found.items()}
        arrays = list(found.values())
        mutual = max(
            (distance(a, b, scale, least) for i, a in enumerate(arrays) for b in arrays[:i]),
            default=0.0,
        )
        rows.append(Row(name, errors, mutual, bound, kept.size, int(np.count_nonzero(~kept))))
    return Comparison(precision, tuple(rows))


def _typical_size(referee: Trace, kind: str) -> float:
    """The root of the mean square over all elements of a kind."""
    arrays = [
        np.asarray(array, np.float64) for name, array in referee.items() if name.startswith(kind)
    ]
    count = sum(array.size for array in arrays)
    return math.sqrt(sum(float((array**2).sum()) for array in arrays) / count) if count else 0.0
