"""Angles of positions, at any position."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Final

import numpy as np

PI: Final = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640629")
# From here on the product of position and frequency is no longer exact to float32 in float64.
FAR: Final = 1 << 24
BITS: Final = 192
HALF: Final = 1 << (BITS - 1)


def angles(positions: np.ndarray, base: float | int, exponents: Sequence[Fraction]) -> np.ndarray:
    """p base^-e for each exponent e, (..., exponents); less whole turns where |p| >= 2^24.

    There p base^-e / 2 pi is taken in integers: float64 has 53 bits, of which the whole turns of a
    time in milliseconds leave too few for the rest.
    """
    positions = np.asarray(positions)
    powers = base ** -np.array([float(exponent) for exponent in exponents])
    found = positions.astype(np.float64)[..., None] * powers
    far = np.isfinite(found[..., 0]) & (np.abs(positions.astype(np.float64)) >= FAR)
    if far.any():
        with localcontext() as context:
            context.prec = 75
            turns = [
                int(Decimal(base) ** (-Decimal(e.numerator) / e.denominator) / (2 * PI) * 2**BITS)
                for e in exponents
            ]
        for place in np.argwhere(far):
            top, bottom = positions[tuple(place)].item().as_integer_ratio()
            rest = [(top * turn // bottom + HALF) % (1 << BITS) - HALF for turn in turns]
            found[tuple(place)] = [2 * np.pi * (part / (1 << BITS)) for part in rest]
    return found
