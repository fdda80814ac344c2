"""Comparing traces: for each name the distance to the referee and between the frameworks, and whether it keeps its budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pe_core.parity.budget import budget
from pe_core.parity.trace import Trace


@dataclass(frozen=True)
class Row:
    """One name of a comparison.

    Args:
        name: in the trace.
        errors: the distance of each framework to the referee.
        mutual: the largest distance between two frameworks.
        bound: of the budget.
    """

    name: str
    errors: dict[str, float]
    mutual: float
    bound: float

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


def distance(a: np.ndarray, b: np.ndarray, scale: np.ndarray) -> float:
    """Return the norm of a - b over the norm of the scale; infinite where shapes or the places of NaN differ.

    NaN is equal to NaN in the same place; a scale of zero allows no difference.
    """
    if a.shape != b.shape:
        return float("inf")
    a, b, scale = (np.asarray(array, np.float64) for array in (a, b, scale))
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    difference = float(np.linalg.norm(np.nan_to_num(a - b, nan=0.0).ravel()))
    norm = float(np.linalg.norm(np.nan_to_num(scale).ravel()))
    return 0.0 if difference == 0.0 else difference / norm if norm > 0.0 else float("inf")


def compare(referee: Trace, traces: Mapping[str, Trace], precision: str, *, moved: Mapping[str, np.ndarray] | None = None) -> Comparison:
    """Return the comparison of traces with the referee's, name by name in the order of the first trace.

    A name that one trace lacks is at an infinite distance.

    Args:
        referee: the trace to be near to.
        traces: one for each framework.
        precision: of the traces; chooses the budgets.
        moved: how far training moved each weight, the scale of `weights/<name>`.
    """
    names = list(referee) + [name for found in traces.values() for name in found if name not in referee]
    rows = []
    for name in dict.fromkeys(names):
        found = {label: one[name] for label, one in traces.items() if name in one}
        if name not in referee or len(found) < len(traces):
            errors, mutual = {label: 0.0 if label in found else float("inf") for label in traces}, float("inf")
        else:
            scale = moved[name.removeprefix("weights/")] if moved is not None and name.startswith("weights/") else referee[name]
            errors = {label: distance(array, referee[name], scale) for label, array in found.items()}
            arrays = list(found.values())
            mutual = max((distance(a, b, scale) for i, a in enumerate(arrays) for b in arrays[:i]), default=0.0)
        rows.append(Row(name, errors, mutual, budget(name, precision).bound))
    return Comparison(precision, tuple(rows))
