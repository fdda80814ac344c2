"""What is told about data that can be used and look wrong: warnings of one line each, with what was
found and the remedy.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Int64, Integer, Num

# Distinct values are counted in so many steps at most.
STEPS_COUNTED: Final = 10_000
LISTED: Final = 20
LONG_INTEGER: Final = re.compile(r"(?<![\w.])\d{16,300}")


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


def warn_of_cut_digits(texts: Iterable[tuple[str, str]]) -> None:
    """Warn of the first integer in a text that float64 does not hold.

    Args:
        texts: the place of each text, and its numbers.
    """
    for where, text in texts:
        for digits in LONG_INTEGER.findall(text):
            if int(digits) != int(float(digits)):
                warn(
                    f"{where}: {digits} is read as {float(digits):.0f}, float64 cannot hold its "
                    "digits; subtract an offset in the file"
                )
                return


def warn_of_missing_classes(
    names: tuple[str, ...],
    labels: Integer[np.ndarray, " examples"],
    held_out: Integer[np.ndarray, " held_out"],
    what: str,
) -> None:
    """Warn of classes without any example, and of those without one in the validation part.

    Args:
        names: of the classes.
        labels: the class of each example.
        held_out: the classes of the examples in the validation part.
        what: the name of the data.
    """
    sizes = np.bincount(labels, minlength=len(names))
    there = np.bincount(held_out, minlength=len(names))
    if not sizes.all():
        absent = _listed(repr(names[number]) for number in np.flatnonzero(sizes == 0))
        warn(f"{what}: no example of class {absent}; add some, or remove it from the header")
    if unseen := [
        f"{names[number]!r} ({sizes[number]} in all)"
        for number in np.flatnonzero((sizes > 0) & (there == 0))
    ]:
        warn(
            f"{what}: the validation part has no example of class {_listed(unseen)}, all are in "
            "the training part; add examples, or hold out more"
        )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def _distinct(steps: Num[np.ndarray, "steps features"]) -> Int64[np.ndarray, " features"]:
    """Count the distinct values of each feature, in some of the steps where there are many."""
    taken = np.sort(steps[:: max(1, len(steps) // STEPS_COUNTED)], axis=0)
    distinct: Int64[np.ndarray, " features"] = 1 + (taken[1:] != taken[:-1]).sum(axis=0)
    return distinct
