"""The error function of whole arrays: `math.erf` takes one number, a diagnosis millions."""

from __future__ import annotations

import math
from functools import cache
from typing import Final

import numpy as np

# Points of the table per unit, and where erf is 1 in float64.
DENSITY: Final = 1024
END: Final = 6


def erf(x: np.ndarray) -> np.ndarray:
    """Compute the error function to a few units in the last place.

    Around the nearest point of a table the series of Taylor is followed to the fourth power, whose
    rest is below 1e-17: with g = erf'(a), the derivatives at a are g, -2 a g, (4 a^2 - 2) g and
    (12 a - 8 a^3) g.
    """
    values, slopes = _table()
    inside = np.clip(np.nan_to_num(x), -END, END)
    index = np.rint(inside * DENSITY).astype(np.int64)
    a = index / DENSITY
    d, square = inside - a, a * a
    series = 1.0 + d * (-a + d * ((2.0 * square - 1.0) / 3.0 + d * a * (3.0 - 2.0 * square) / 6.0))
    index += END * DENSITY
    return np.where(np.isnan(x), x, values[index] + slopes[index] * d * series)


@cache
def _table() -> tuple[np.ndarray, np.ndarray]:
    """Return erf and its derivative at the points of the table."""
    points = np.arange(-END * DENSITY, END * DENSITY + 1) / DENSITY
    values = np.array([math.erf(point) for point in points])
    return values, 2.0 / math.sqrt(math.pi) * np.exp(-(points**2))
