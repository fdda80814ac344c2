"""What is told about data that can be used and look wrong: warnings of one line each, with what was
found and the remedy.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, Integer, Num

from pe_core.data.sequences import Sequences
from pe_core.data.standardisation import Standardisation

# Distinct values are counted in so many steps at most.
STEPS_COUNTED: Final = 10_000
# A vocabulary is suspicious above this size where each token occurs less often than this.
LARGE_VOCABULARY: Final = 1_000
STEPS_PER_TOKEN: Final = 10
FEW: Final = 1_000
# What numpy.ma.filled() writes into floats.
FILL_VALUE: Final = 1e20
# In deviations of the training part: the sets of the UCR and UEA archives stay far within.
FAR_MEAN: Final = 4.0
FAR_SCALE: Final = 10.0
SEVERAL: Final = 10
LISTED: Final = 20
LONG_INTEGER: Final = re.compile(r"(?<![\w.])\d{16,300}")


class DataWarning(UserWarning):
    """Data that can be used and look wrong."""


def warn(text: str) -> None:
    """Issue a `DataWarning`."""
    warnings.warn(text, DataWarning, stacklevel=3)


def warn_of_inputs(
    inputs: Num[np.ndarray, "..."], mask: Bool[np.ndarray, "count length"] | None, what: str
) -> None:
    """Warn of inputs that look as if they were something else: features in the place of steps,
    measurements taken for tokens, fill values of masked arrays.

    Args:
        inputs: (count, length, features), or integers (count, length) for tokens.
        mask: bool (count, length), True = real step; None = every step is real.
        what: the name of the data.
    """
    if inputs.ndim == 2:
        tokens = inputs if mask is None else inputs[mask]
        vocabulary = int(tokens.max()) + 1
        if vocabulary > LARGE_VOCABULARY and tokens.size < STEPS_PER_TOKEN * vocabulary:
            warn(
                f"{what}: integers (count, length) are tokens, here {tokens.size:,} steps of a "
                f"vocabulary of {vocabulary:,}; if they are measurements, save inputs.astype(float)"
            )
        return
    count, length, features = inputs.shape
    if features > 4 * length and _rough_in_steps(inputs, count < FEW):
        warn(
            f"{what}: {count:,} sequences of length {length} with {features:,} features; if they "
            "are (count, channels, length), pass --layout channels-first (layout in Python)"
        )
    if inputs.dtype.kind == "f":
        filled = inputs == inputs.dtype.type(FILL_VALUE)
        if mask is not None:
            filled &= mask[..., None]
        if filled.any():
            warn(
                f"{what}: {filled.sum():,} inputs are 1e20, which numpy.ma puts where a value is "
                "masked; mark these steps as padding, or impute them"
            )


def _rough_in_steps(inputs: Num[np.ndarray, "count length features"], few: bool) -> bool:
    """Return whether features change less from one to the next than steps do: no more than half as
    much, or about as much where there are few examples.
    """
    sample = inputs[:: max(1, len(inputs) // FEW)].astype(np.float64)
    if sample.shape[1] == 1:
        return True
    steps, features = (float(np.abs(np.diff(sample, axis=axis)).mean()) for axis in (1, 2))
    return steps >= (0.8 if few else 2.0) * features


def warn_of_lengths(
    trained: Int32[np.ndarray, " trained"], tested: Int32[np.ndarray, " tested"], what: str
) -> None:
    """Warn of sequences that are mostly far longer or shorter than those in training.

    Args:
        trained: lengths in training.
        tested: lengths in the other data.
        what: the name of the other data.
    """
    middle, least, most = float(np.median(tested)), trained.min(), trained.max()
    if not 0.75 * least - 3 <= middle <= most / 0.75 + 3:
        warn(
            f"{what}: half of the sequences have a length of {middle:.0f} or "
            f"{'more' if middle > most else 'less'}, in training they have {span(trained)}; "
            "is it the file that belongs to the training file?"
        )


def warn_of_scales(sequences: Sequences, standardisation: Standardisation, what: str) -> None:
    """Warn of features whose mean or deviation is far from that in training.

    Args:
        sequences: standardised.
        standardisation: that of the training part.
        what: the name of the data.
    """
    inputs, mask = sequences.inputs, sequences.mask
    steps = (inputs.reshape(-1, inputs.shape[-1]) if mask is None else inputs[mask]).astype(float)
    mean, deviation = steps.mean(axis=0), steps.std(axis=0)
    far = (np.abs(mean) > FAR_MEAN) | (deviation > FAR_SCALE)
    if sequences.count >= SEVERAL:
        far |= deviation < 1 / FAR_SCALE
    # The scale of a feature that was constant in training is 1, in no unit.
    found = np.flatnonzero(far & (np.array(standardisation.scale) != 1.0))
    if found.size:
        first = found[0]
        more = f" (and {found.size - 1:,} more)" if found.size > 1 else ""
        unit, middle = standardisation.scale[first], standardisation.mean[first]
        warn(
            f"{what}: feature {first}{more} has mean {middle + unit * mean[first]:.4g} and "
            f"deviation {unit * deviation[first]:.4g}, in training {middle:.4g} and {unit:.4g}; "
            "are the units and the order of the features the same?"
        )


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


def span(numbers: Integer[np.ndarray, " numbers"]) -> str:
    """Say between which numbers these lie."""
    least, most = int(numbers.min()), int(numbers.max())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def _distinct(steps: Num[np.ndarray, "steps features"]) -> Int64[np.ndarray, " features"]:
    """Count the distinct values of each feature, in some of the steps where there are many."""
    taken = np.sort(steps[:: max(1, len(steps) // STEPS_COUNTED)], axis=0)
    distinct: Int64[np.ndarray, " features"] = 1 + (taken[1:] != taken[:-1]).sum(axis=0)
    return distinct
