"""What is told about data that can be used and look wrong: warnings of one line each, with what was
found and the remedy.
"""

from __future__ import annotations

import warnings
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Int64, Num

# Distinct values are counted in so many steps at most.
STEPS_COUNTED: Final = 10_000


class DataWarning(UserWarning):
    """Data that can be used and look wrong."""


def warn(text: str) -> None:
    """Issue a `DataWarning`."""
    warnings.warn(text, DataWarning, stacklevel=3)


def warn_of_losses(
    given: Num[np.ndarray, "count length features"],
    cast: Float32[np.ndarray, "count length features"],
    mask: Bool[np.ndarray, "count length"] | None,
    what: str,
    *,
    remedy: str = "remove its outliers, or subtract an offset from it",
) -> None:
    """Warn where more than half of the distinct values of a feature are lost in float32.

    Args:
        given: as they were given.
        cast: what a model sees of them.
        mask: bool (count, length), True = real step; None = every step is real.
        what: the name of the data.
        remedy: what the user can do about a feature.
    """
    before, after = (
        _distinct(array.reshape(-1, array.shape[-1]) if mask is None else array[mask])
        for array in (given, cast)
    )
    lost = np.flatnonzero(2 * after < before)
    if lost.size:
        first = lost[0]
        more = f" (and {lost.size - 1:,} more)" if lost.size > 1 else ""
        warn(
            f"{what}: feature {first}{more} has {before[first]:,} distinct values, of which "
            f"float32 keeps {after[first]:,}; {remedy}"
        )


def _distinct(steps: Num[np.ndarray, "steps features"]) -> Int64[np.ndarray, " features"]:
    """Count the distinct values of each feature, in some of the steps where there are many."""
    taken = np.sort(steps[:: max(1, len(steps) // STEPS_COUNTED)], axis=0)
    distinct: Int64[np.ndarray, " features"] = 1 + (taken[1:] != taken[:-1]).sum(axis=0)
    return distinct
