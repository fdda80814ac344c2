"""Built-in tasks: `dummy` (pure noise), `order` (not learnable without positions) and digits.

A task depends on its seed alone. Numbers are drawn in float64 and cast once to float32, which hides
last-place differences between the logarithms and cosines of different machines.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float32, Float64, Int64

from pe_core.data.dataset import Dataset
from pe_core.data.sequences import Sequences
from pe_core.data.splitting import check_fraction, split_by_class, split_order
from pe_core.data.standardisation import Standardisation
from pe_core.errors import UserModuleNotFoundError, UserValueError
from pe_core.model.random import DATA, Key, bits, derive, normal, permutation, uniform

LENGTH: Final = 10
NUM_FEATURES: Final = 16
TRAIN_COUNT: Final = 1_000
VALIDATION_COUNT: Final = 250
TEST_FRACTION: Final = 0.2

# Noise of 16 features has a norm of 4.0 +- 0.7, so a marker stands out.
MARKER_NORM: Final = 8.0
ORDER_CLASSES: Final = ("a_first", "b_first")

# Counters under the purpose DATA: task, part, what is drawn. They are part of the format of a task:
# never reuse or renumber one.
_DUMMY, _ORDER = 0, 1
_TRAIN, _VALIDATION, _SHARED = 0, 1, 2
_NOISE, _LABELS, _PLACES, _MARKERS, _ARRANGEMENT = 0, 1, 2, 3, 4


def dummy(seed: int = 0) -> Dataset:
    """Draw normal noise with random labels: 1,000 and 250 examples, (10 steps, 16 features)."""

    def part(number: int, count: int) -> Sequences:
        inputs = normal(
            derive(seed, DATA, _DUMMY, number, _NOISE), (count, LENGTH, NUM_FEATURES)
        ).astype(np.float32)
        labels = (bits(derive(seed, DATA, _DUMMY, number, _LABELS), count) & np.uint32(1)).astype(
            np.int32
        )
        return Sequences(inputs, labels, class_names=("0", "1"))

    return Dataset("dummy", part(_TRAIN, TRAIN_COUNT), part(_VALIDATION, VALIDATION_COUNT))


def order(seed: int = 0) -> Dataset:
    """Draw noise with two marker vectors at random steps; the label is the marker that comes first.

    1,000 and 250 examples, (10 steps, 16 features). Each part holds every example's mirror image
    (`swapped`) too: the same step vectors in another order, with the other label. A model that
    ignores order gives both the same answer, so it is right about exactly half of every part, the
    training part included.
    """
    markers = order_markers(seed)

    def part(number: int, count: int) -> Sequences:
        pairs = count // 2
        inputs = normal(
            derive(seed, DATA, _ORDER, number, _NOISE), (pairs, LENGTH, NUM_FEATURES)
        ).astype(np.float32)
        rows, places = (
            np.arange(pairs),
            _two_places(derive(seed, DATA, _ORDER, number, _PLACES), pairs),
        )
        inputs[rows, places[:, 0]], inputs[rows, places[:, 1]] = markers
        labels = (places[:, 0] > places[:, 1]).astype(np.int32)
        mirrored = swapped(Sequences(inputs, labels, class_names=ORDER_CLASSES), seed)
        both = Sequences(
            np.concatenate([inputs, mirrored.inputs]),
            np.concatenate([labels, 1 - labels]),
            class_names=ORDER_CLASSES,
        )
        return both.take(permutation(derive(seed, DATA, _ORDER, number, _ARRANGEMENT), count))

    return Dataset("order", part(_TRAIN, TRAIN_COUNT), part(_VALIDATION, VALIDATION_COUNT))


def order_markers(seed: int = 0) -> Float32[np.ndarray, "2 features"]:
    """Return the two marker vectors of the `order` task, float32 (2, 16), each of norm 8."""
    drawn = normal(derive(seed, DATA, _ORDER, _SHARED, _MARKERS), (2, NUM_FEATURES))
    scaled: Float64[np.ndarray, "2 features"] = (
        MARKER_NORM * drawn / np.sqrt(np.sum(drawn * drawn, axis=1, keepdims=True))
    )
    return scaled.astype(np.float32)


def swapped(sequences: Sequences, seed: int = 0) -> Sequences:
    """Swap the two markers in each example of the `order` task, and its label.

    Raises:
        ValueError: an example does not hold each of this seed's markers once.
    """
    if sequences.num_features != NUM_FEATURES:
        raise UserValueError(
            f"examples of order have {NUM_FEATURES} features, got inputs "
            f"{sequences.inputs.shape}; pass examples of order({seed})"
        )
    found = (sequences.inputs[:, None] == order_markers(seed)[None, :, None]).all(axis=-1)
    if not (found.sum(axis=-1) == 1).all():
        row = int(np.argmin((found.sum(axis=-1) == 1).all(axis=-1)))
        raise UserValueError(
            f"example {row} does not hold both markers of seed {seed} once; pass examples of "
            f"order({seed})"
        )
    rows, (first, second) = np.arange(sequences.count), found.argmax(axis=-1).T
    inputs = sequences.inputs.copy()
    inputs[rows, first], inputs[rows, second] = (
        sequences.inputs[rows, second],
        sequences.inputs[rows, first],
    )
    labels = None if sequences.labels is None else 1 - sequences.labels
    return Sequences(inputs, labels, sequences.mask, sequences.class_names)


def digits(seed: int = 0, *, steps: int = 8, validation_fraction: float = 0.2) -> Dataset:
    """Load scikit-learn's 1,797 images of digits as (8 rows, 8 features) or (64 pixels, 1 feature).

    A fifth of each class is held out for testing, then `validation_fraction` of the rest for
    validation. Features are standardised with statistics of the training part.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
        ValueError: `steps` is neither 8 nor 64, or the fraction is outside [0, 1).
    """
    if steps not in (8, 64):
        raise UserValueError(f"digits come as 8 or 64 steps, got {steps}; pass steps=8 or steps=64")
    check_fraction(validation_fraction)
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise UserModuleNotFoundError(
            "the digits data need scikit-learn; install positional-encoding[data]"
        ) from None
    bundle = load_digits()
    every = Sequences(
        bundle.data.reshape(-1, steps, 64 // steps), bundle.target, class_names=tuple("0123456789")
    )
    test, rest = split_by_class(
        split_order(seed, every.count), bundle.target, TEST_FRACTION, "digits"
    )
    validation, train = split_by_class(rest, bundle.target, validation_fraction, "digits")
    standardisation = Standardisation.fit(every.take(train))
    standard = standardisation.apply(every)
    name = "digits" if steps == 8 else f"digits{steps}"
    held_out = standard.take(validation) if len(validation) else None
    return Dataset(name, standard.take(train), held_out, standard.take(test), standardisation)


def _two_places(key: Key, count: int) -> Int64[np.ndarray, "count 2"]:
    # Flooring float64 products gives the same places on every machine.
    drawn = uniform(key, (count, 2))
    first = np.floor(drawn[:, 0] * LENGTH).astype(np.int64)
    second = np.floor(drawn[:, 1] * (LENGTH - 1)).astype(np.int64)
    return np.stack([first, second + (second >= first)], axis=1)
