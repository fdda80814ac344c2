"""Compare traces name by name, by the rules of `pe_parity.budgets`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from pe_parity.budgets import (
    RULES,
    above_noise,
    average_sizes,
    budget,
    distance,
    least_norm,
    quantity,
    scale_of,
)
from pe_parity.trace import Trace


@dataclass(frozen=True)
class Row:
    """One name of a comparison.

    Args:
        name: in the trace.
        errors: the distance of each backend from the baseline.
        mutual: the largest distance between two backends.
        bound: of the budget.
        size: number of elements.
        left_out: number of these that are not compared (see `Rule.above_noise`).
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
        return math.inf if np.isnan(values).any() else max(values)

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


def compare(
    baseline: Trace,
    traces: Mapping[str, Trace],
    precision: str,
    *,
    moved: Mapping[str, np.ndarray] | None = None,
) -> Comparison:
    """Compare traces with a baseline, in the order of its names and then of theirs.

    A name that one trace lacks is at an infinite distance.

    Args:
        baseline: the trace that the others should equal.
        traces: one for each backend.
        precision: of the traces; chooses the budgets.
        moved: how far training moved each parameter (`pe_parity.trace.moved_arrays`).
    """
    averages = average_sizes(baseline)
    names = dict.fromkeys(name for one in (baseline, *traces.values()) for name in one)
    rows = []
    for name in names:
        if name.startswith("signal/"):
            continue
        found = {label: one[name] for label, one in traces.items() if name in one}
        bound = budget(name, precision).bound
        if name not in baseline or len(found) < len(traces):
            lacking = {label: 0.0 if label in found else math.inf for label in traces}
            rows.append(Row(name, lacking, math.inf, bound))
            continue
        exact, scale = baseline[name], scale_of(name, baseline, moved)
        kept = _compared(name, baseline, found, precision)
        if not kept.all():
            exact, scale = exact[kept], scale[kept]
            found = {label: array[kept] for label, array in found.items()}
        least = least_norm(name, scale.size, averages)
        errors = {label: distance(array, exact, scale, least) for label, array in found.items()}
        pairs = combinations(found.values(), 2)
        mutual = max((distance(a, b, scale, least) for a, b in pairs), default=0.0)
        rows.append(Row(name, errors, mutual, bound, kept.size, int(np.count_nonzero(~kept))))
    return Comparison(precision, tuple(rows))


def _compared(
    name: str, baseline: Trace, found: Mapping[str, np.ndarray], precision: str
) -> np.ndarray:
    """Return which elements of a name are compared; all where the shapes differ."""
    every = np.ones(baseline[name].shape, bool)
    signal = baseline.get(f"signal/{name}") if RULES[quantity(name)].above_noise else None
    if signal is None or any(one.shape != every.shape for one in (signal, *found.values())):
        return every
    return above_noise(signal, precision)
