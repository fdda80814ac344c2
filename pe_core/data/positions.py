"""Positions that a file gives its steps: what they are used for, and their unit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

import numpy as np
from jaxtyping import Bool, Num

from pe_core.errors import UserTypeError, UserValueError, require_one_of

# "encode": they are the positions that encodings see; "feature": a feature more, standardised like
# the others; "both"; "ignore": steps are counted.
UseOfPositions = Literal["encode", "feature", "both", "ignore"]
USES: Final[tuple[UseOfPositions, ...]] = get_args(UseOfPositions)
# Seconds in each; steps are no time.
UNITS: Final = {
    "steps": None,
    "seconds": 1.0,
    "milliseconds": 1e-3,
    "minutes": 60.0,
    "hours": 3600.0,
    "days": 86400.0,
}


def checked_positions(
    positions: Any, mask: Bool[np.ndarray, "count length"] | None, steps: tuple[int, int]
) -> Num[np.ndarray, "count length"]:
    """Return positions as int64 or float64, 0 in padding; they must be finite at every real step.

    Args:
        positions: (count, length) integers or floats.
        mask: bool (count, length), True = real step; None = every step is real.
        steps: (count, length).

    Raises:
        TypeError, ValueError: another kind of array or another shape, or a real step that stands
            nowhere.
    """
    if not isinstance(positions, np.ndarray) or positions.dtype.kind not in "iuf":
        got = getattr(positions, "dtype", type(positions).__name__)
        raise UserTypeError(f"positions must be an array of integers or floats, got {got}")
    if positions.shape != steps:
        raise UserValueError(
            f"positions {positions.shape} do not fit the steps; their shape must be {steps}"
        )
    if np.ma.is_masked(positions):
        raise UserValueError("positions are a masked array; give the mask of the inputs instead")
    held: np.ndarray = np.asarray(positions)
    if mask is not None:
        held = np.where(mask, held, held.dtype.type(0))
    # No float below 2^63 is lost in int64, and no encoding can read what lies beyond.
    bad = ~(np.abs(held.astype(np.float64)) < 2.0**63)
    if bad.any():
        row, step = (int(index) for index in np.argwhere(bad)[0])
        raise UserValueError(
            f"positions hold {held[row, step]} in example {row}, step {step}; a real step must "
            "stand somewhere below 2**63: correct it, or mark it as padding in the mask"
        )
    return held.astype(np.float64 if held.dtype.kind == "f" else np.int64)


def default_unit(positions: np.ndarray | None) -> str:
    """Return the unit of positions where nobody said it: integers are steps, floats seconds."""
    if positions is None:
        return ""
    return "steps" if positions.dtype.kind in "iu" else "seconds"


def converted(
    positions: Num[np.ndarray, "count length"], unit: str, wanted: str, what: str
) -> Num[np.ndarray, "count length"]:
    """Return positions in another unit.

    Raises:
        ValueError: an unknown unit, or one of steps and one of time.
    """
    for name in (unit, wanted):
        require_one_of("unit of positions", name, tuple(UNITS))
    if unit == wanted:
        return positions
    here, there = UNITS[unit], UNITS[wanted]
    if here is None or there is None:
        raise UserValueError(
            f"{what}: positions are in {unit}, in training they were in {wanted}; give the same"
        )
    return positions * (here / there)


def seconds(date: str) -> float:
    """Return the seconds since 1970 of an ISO date, in UTC where it names no zone.

    Raises:
        ValueError: no such date.
    """
    found = datetime.fromisoformat(date)
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def is_date(word: str) -> bool:
    """Return whether a text is an ISO date; 20240501 is a number."""
    try:
        seconds(word)
    except ValueError:
        return False
    return not word.isdigit()
