"""The built-in tasks are functions of their seed; `order` cannot be solved without positions."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from parity_tests.refusals import refused
from pe_core.data import (
    Dataset,
    Sequences,
    Standardisation,
    digits,
    dummy,
    order,
    order_markers,
    swapped,
)
from pe_core.data.splitting import split_by_class, split_order

GOLDEN = {
    "dummy": {0: "b9a278659fbfe9ee", 1: "24b06a13bd4ab289"},
    "order": {0: "8b8787e6e21c197c", 1: "a428f5e1de8be487"},
}


def digest(dataset: Dataset) -> str:
    """Return the start of the SHA-256 of all arrays, little-endian."""
    hashed = hashlib.sha256()
    for part in dataset.parts.values():
        assert part.labels is not None
        hashed.update(part.inputs.astype("<f4").tobytes())
        hashed.update(part.labels.astype("<i4").tobytes())
    return hashed.hexdigest()[:16]


def labels_of(sequences: Sequences) -> np.ndarray:
    assert sequences.labels is not None
    return sequences.labels


def step_vectors(example: np.ndarray) -> Counter[bytes]:
    """Return the multiset of the step vectors of one example."""
    return Counter(step.tobytes() for step in example)


def labelled(inputs: np.ndarray, labels: np.ndarray) -> Counter[tuple[bytes, int]]:
    """Return the multiset of the examples with their labels."""
    return Counter(zip(map(np.ndarray.tobytes, inputs), labels.tolist(), strict=True))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("task", [dummy, order])
def test_bits_are_pinned(task: type, seed: int) -> None:
    assert digest(task(seed)) == GOLDEN[task.__name__][seed]


@pytest.mark.parametrize("task", [dummy, order])
def test_shapes_and_counts(task: type) -> None:
    dataset = task(7)
    shapes = [(name, part.inputs.shape) for name, part in dataset.parts.items()]
    assert shapes == [("train", (1000, 10, 16)), ("validation", (250, 10, 16))]
    assert all(part.mask is None and part.num_classes == 2 for part in dataset.parts.values())
    assert dataset.standardisation is None


def test_dummy_is_noise_with_random_labels() -> None:
    dataset = dummy(0)
    both = np.concatenate([part.inputs for part in dataset.parts.values()])
    assert len(np.unique(both)) > 0.99 * both.size
    # Five standard errors of the mean of 200,000 normals and of 1,000 coin tosses.
    assert abs(both.mean()) < 5 / np.sqrt(both.size)
    assert abs(labels_of(dataset.train).mean() - 0.5) < 2.5 / np.sqrt(1000)


@pytest.mark.parametrize("seed", [0, 5])
def test_order_is_balanced_and_says_which_marker_is_first(seed: int) -> None:
    markers = order_markers(seed)
    assert not np.array_equal(markers[0], markers[1])
    for part in order(seed).parts.values():
        assert labels_of(part).sum() * 2 == part.count
        stands = (part.inputs[:, None] == markers[:, None]).all(axis=-1)
        assert (stands.sum(axis=-1) == 1).all()
        places = stands.argmax(axis=-1)
        assert np.array_equal(labels_of(part), places[:, 0] > places[:, 1])
        seen = {tuple(pair) for pair in places.tolist()}
        # Each of the 90 pairs of places, in the part that is large enough.
        assert len(seen) == 90 or part.count < 1000
        assert set(places.ravel()) == set(range(10))


def test_markers_stand_out_of_the_noise() -> None:
    norms = np.sort(np.linalg.norm(order(0).train.inputs, axis=-1), axis=1)
    assert norms[:, :-2].max() < norms[:, -2:].min()


@pytest.mark.parametrize("seed", [0, 3])
def test_order_gives_nothing_away_without_positions(seed: int) -> None:
    """The mirror image has the same step vectors and the other label, and stands in the same part:
    any function of the multiset is right about exactly one of the two, so about half of the part.
    """
    for part in order(seed).parts.values():
        mirrored = swapped(part, seed)
        assert np.array_equal(labels_of(mirrored), 1 - labels_of(part))
        for one, image in zip(part.inputs, mirrored.inputs, strict=True):
            assert step_vectors(one) == step_vectors(image)
        assert ((part.inputs != mirrored.inputs).any(axis=-1).sum(axis=1) == 2).all()
        original = labelled(part.inputs, labels_of(part))
        assert original == labelled(mirrored.inputs, labels_of(mirrored))
        assert np.array_equal(swapped(mirrored, seed).inputs, part.inputs)


def test_parts_of_order_share_no_example() -> None:
    train, validation = (
        {frozenset(step_vectors(example)) for example in part.inputs}
        for part in order(0).parts.values()
    )
    assert (len(train), len(validation), len(train & validation)) == (500, 125, 0)


def test_swapped_refuses_strangers() -> None:
    words = "example 0 does not hold both markers of seed 1 once; pass examples of order(1)"
    with refused(ValueError, words):
        swapped(order(0).train, 1)
    words = "examples of order have 16 features, got inputs (2, 3); pass examples of order(0)"
    with refused(ValueError, words):
        swapped(Sequences(np.zeros((2, 3), int)))


@pytest.mark.parametrize(("steps", "features"), [(8, 8), (64, 1)])
def test_digits_are_divided_by_the_seed_and_standardised_by_the_training_part(
    steps: int, features: int
) -> None:
    from sklearn.datasets import load_digits

    bundle, names = load_digits(), tuple("0123456789")
    raw = Sequences(bundle.data.reshape(-1, steps, features), bundle.target, class_names=names)
    test, rest = split_by_class(split_order(4, 1797), bundle.target, 0.2, "digits")
    validation, train = split_by_class(rest, bundle.target, 0.2, "digits")
    rows = {"train": train, "validation": validation, "test": test}
    assert [len(part) for part in rows.values()] == [1150, 288, 359]
    fitted = Standardisation.fit(raw.take(rows["train"]))
    dataset = digits(4, steps=steps)
    assert (dataset.standardisation, dataset.class_names) == (fitted, names)
    assert list(dataset.parts) == list(rows)
    for name, part in dataset.parts.items():
        expected = fitted.apply(raw.take(rows[name]))
        assert np.array_equal(part.inputs, expected.inputs)
        assert np.array_equal(labels_of(part), labels_of(expected))


def test_digits_refuse() -> None:
    with refused(ValueError, "digits come as 8 or 64 steps, got 16; pass steps=8 or steps=64"):
        digits(0, steps=16)
    with refused(ValueError, "validation_fraction must lie between 0 and 1, got 2"):
        digits(0, validation_fraction=2.0)


def test_seeds_differ() -> None:
    for task in (dummy, order, digits):
        assert not np.array_equal(task(0).train.inputs, task(1).train.inputs)
        assert digest(task(1)) == digest(task(1))
