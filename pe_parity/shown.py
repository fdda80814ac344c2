"""A trace in question, as far as the reference can follow it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from pe_parity.budgets import budget, distance
from pe_parity.perturbed_reference import PerturbedReference
from pe_parity.trace import Trace

# A mistake may amplify rounding; so many times its bound is as far as it is followed.
MOST_EXCESS: Final = 100.0
MOST_ROUNDING: Final = 2e-4


@dataclass(frozen=True, eq=False)
class Shown:
    """A trace in question, as far as the reference can follow it.

    Args:
        trace: its arrays in float64, of the traced rows and without padding.
        names: those that are compared, in order.
        precision: chooses the bounds.
        sensitivity: of the right model to rounding.
    """

    trace: Trace
    names: list[str]
    precision: str
    sensitivity: dict[str, float]

    def residual(self, name: str, array: np.ndarray) -> float:
        """Return the distance of the trace from an array, relative to the array."""
        found = self.trace[name]
        if found.shape == array.shape:
            apart, size = (float(np.square(one).sum()) ** 0.5 for one in (found - array, array))
            if np.isfinite(apart) and size > 0.0:
                return apart / size
        return distance(found, array, array)

    def bound(self, name: str) -> float:
        """Return the bound of a name."""
        return budget(name, self.precision).bound

    def first_failure(self, variant: PerturbedReference) -> str | None:
        """Return the first name at which the trace is not that of a model; names that it lacks are
        passed over.
        """
        expected = variant.trace()
        for name in self.names:
            if name not in expected:
                continue
            residual = self.residual(name, expected[name])
            if residual <= self.bound(name):
                continue
            if not self.is_rounding(name, residual, variant):
                return name
        return None

    def is_rounding(self, name: str, residual: float, variant: PerturbedReference) -> bool:
        """Return whether what is left is rounding that mistakes amplify, as a missing scale
        does.
        """
        bound, usual = self.bound(name), self.sensitivity.get(name, 0.0)
        if residual > min(MOST_EXCESS * bound, MOST_ROUNDING) or usual == 0.0:
            return False
        return residual <= bound * variant.sensitivity()[name] / usual

    def of_rows(self, rows: np.ndarray) -> Shown:
        """Return some of the traced rows."""
        trace = {name: array[rows] if array.ndim else array for name, array in self.trace.items()}
        return replace(self, trace=trace)
