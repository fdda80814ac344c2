"""Sequences, standardisations and datasets are checked at creation, and hold what they say."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.refusals import each_refusal, refused
from pe_core.data import Dataset, Sequences, Standardisation

NAMES = ("no", "yes")


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


def sequences(count: int = 4, length: int = 3, features: int = 2, **fields: Any) -> Sequences:
    inputs = np.arange(count * length * features).reshape(count, length, features)
    made: dict[str, Any] = {"inputs": inputs, "labels": np.arange(count) % 2, "class_names": NAMES}
    return Sequences(**made | fields)


def planted(value: float) -> np.ndarray:
    inputs = ones(3, 4, 2, dtype=np.float64)
    inputs[1, 2, 1] = value
    return inputs


# --- Sequences ---


def test_sequences_know_their_sizes() -> None:
    mask = np.array([[True, True, False], [True, False, False]])
    ragged = Sequences(ones(2, 3, 5), np.array([1, 0]), mask, NAMES)
    assert (len(ragged), ragged.count, ragged.length) == (2, 2, 3)
    assert (ragged.num_features, ragged.num_classes, ragged.lengths.tolist()) == (5, 2, [2, 1])
    assert Sequences(ones(2, 3, 5)).lengths.tolist() == [3, 3]
    tokens = Sequences(ones(2, 3, dtype=np.uint8))
    assert (tokens.num_features, tokens.num_classes, tokens.inputs.dtype.name) == (None, 0, "int32")
    assert (tokens.labels, tokens.mask) == (None, None)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i8", "u2"])
def test_numbers_are_converted(dtype: str) -> None:
    converted = sequences(inputs=ones(4, 3, 2, dtype=dtype), labels=np.arange(4, dtype="u1") % 2)
    assert converted.inputs.dtype == np.float32
    assert np.asarray(converted.labels).dtype == np.int32


def test_padding_becomes_zero_and_the_callers_array_stays() -> None:
    inputs = planted(np.nan)
    inputs[0, 3] = np.inf
    inputs[2, 0] = 1e300
    mask = np.ones((3, 4), np.bool_)
    mask[1, 2] = mask[0, 3] = mask[2, 0] = False
    cleaned = Sequences(inputs, mask=mask)
    assert np.array_equal(cleaned.inputs, np.where(mask[..., None], 1.0, 0.0) * ones(2))
    assert np.isnan(inputs[1, 2, 1])
    tokens = Sequences(np.array([[7, -1]]), mask=np.array([[True, False]]))
    assert tokens.inputs.tolist() == [[7, 0]]


def test_arrays_are_read_only() -> None:
    inputs = ones(4, 3, 2)
    frozen = sequences(inputs=inputs, mask=ones(4, 3, dtype=np.bool_))
    arrays = [np.asarray(array) for array in (frozen.inputs, frozen.labels, frozen.mask)]
    assert not any(array.flags.writeable for array in arrays)
    assert inputs.flags.writeable


@each_refusal(
    {
        TypeError: {
            "inputs must be a NumPy array, got list; convert": {"inputs": [[1.0]]},
            "inputs must be real numbers, got dtype complex64; conv": {
                "inputs": ones(1, dtype="F")
            },
            "inputs must be real numbers, got dtype object; convert": {
                "inputs": ones(1, dtype="O")
            },
            "inputs must be real numbers, got dtype <U1; convert": {"inputs": ones(1, dtype="U")},
            "inputs must be real numbers, got dtype bool; convert": {"inputs": ones(1, dtype="?")},
            "labels must be an integer array, got list; pass": {"labels": [0, 1, 0, 1]},
            "labels must be an integer array, got dtype float32; pass": {"labels": ones(4)},
            "labels must be an integer array, got dtype bool": {"labels": ones(4, dtype="?")},
            "labels must be an integer array, got dtype <U1": {"labels": ones(4, dtype="U")},
            "class_names must be a tuple of non-empty strings, got 'ab'": {"class_names": "ab"},
            "non-empty strings, got ('a', ''); pass one name per class": {"class_names": ("a", "")},
            "non-empty strings, got (0, 1)": {"class_names": (0, 1)},
            "mask must be a bool array, True = real step, got list; convert": {"mask": [[True]]},
            "mask must be a bool array, ... got dtype float32; convert": {"mask": ones(4, 3)},
        },
        ValueError: {
            "inputs (4, 3) of dtype float32 have no feature axis; pass": {"inputs": ones(4, 3)},
            "inputs must have shape ... got (4,); reshape": {"inputs": ones(4)},
            "got (4, 3, 2, 1); reshape": {"inputs": ones(4, 3, 2, 1)},
            "inputs are empty, shape (0, 3, 2); pass at least one": {"inputs": ones(0, 3, 2)},
            "inputs are empty, shape (4, 0, 2)": {"inputs": ones(4, 0, 2)},
            "inputs are empty, shape (4, 3, 0)": {"inputs": ones(4, 3, 0)},
            "labels (3,) do not fit 4 examples; pass one": {"labels": np.array([0, 1, 1])},
            "labels (4, 1) do not fit": {"labels": np.zeros((4, 1), int)},
            "label 2 of example 2 is outside 0 .. 1; correct it": {
                "labels": np.array([0, 1, 2, 0])
            },
            "label -1 of example 1 is outside 0 .. 1": {"labels": np.array([0, -1, 2, 0])},
            "labels are given but class_names are not; pass a name": {"class_names": ()},
            "class_names repeat a; give each class its own": {"class_names": ("a", "a")},
            "mask (4, 2) does not fit inputs (4, 3, 2); its shape must be (4, 3)": {
                "mask": ones(4, 2, dtype=np.bool_)
            },
            "example 3 has no real step, its mask is False throughout; remove": {
                "mask": np.arange(12).reshape(4, 3) < 9
            },
            "token -2 in example 0, step 1 is outside ... number the tokens from 0": {
                "inputs": np.array([[1, -2], [0, 3]]),
                "labels": None,
            },
            "token 2147483648 in example 1, step 1 is outside 0 .. 2**31 - 1": {
                "inputs": np.array([[1, 2], [0, 1 << 31]]),
                "labels": None,
            },
        },
    }
)
def test_sequences_refuse(kind: type[Exception], words: str, what: dict[str, Any]) -> None:
    with refused(kind, words):
        sequences(**what)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_a_real_step_must_be_finite(value: float) -> None:
    words = f"inputs hold {value} in example 1, step 2, feature 1; a real step must be finite"
    with refused(ValueError, words + " in float32: mark it as padding in the mask, or impute it"):
        Sequences(planted(value))


def test_take() -> None:
    whole, rows = sequences(mask=np.arange(12).reshape(4, 3) % 3 < 2), np.array([3, 0, 3])
    part = whole.take(rows)
    assert np.array_equal(part.inputs, whole.inputs[rows])
    assert np.asarray(part.labels).tolist() == [1, 0, 1]
    assert part.lengths.tolist() == [2, 2, 2]
    assert part.class_names == NAMES
    assert Sequences(ones(2, 3, 1)).take(np.array([1])).count == 1


@each_refusal(
    {
        ValueError: {
            "index 4 is outside 0 .. 3; pass indices": np.array([4]),
            "index -1 is outside": np.array([0, -1]),
            "indices are empty; take at least one": np.array([], int),
        },
        TypeError: {
            "indices must be integers of shape (count,), got float64 (1,); pass": np.array([0.5]),
            "got int64 (1, 1)": np.array([[0]]),
            "got bool": np.array([True, False, True, True]),
        },
    }
)
def test_take_refuses(kind: type[Exception], words: str, what: np.ndarray) -> None:
    with refused(kind, words):
        sequences().take(what)


def test_masked_arrays_keep_their_mask() -> None:
    hidden = np.zeros((2, 3, 2), np.bool_)
    hidden[0, 2] = hidden[1, 0] = True
    inputs = np.ma.masked_array(np.where(hidden, 1e20, 5.0), hidden)
    labels, mask = np.array([0, 1]), np.array([[True] * 3, [True, True, False]])
    made = Sequences(inputs, labels, mask, ("a", "b"))
    assert np.asarray(made.mask).tolist() == [[True, True, False], [False, True, False]]
    assert made.inputs[..., 0].tolist() == [[5, 5, 0], [0, 5, 0]]
    fitted = Standardisation.fit(inputs)
    assert (fitted.mean, fitted.apply(inputs)[0, 2].tolist()) == ((5.0, 5.0), [0.0, 0.0])
    tokens = Sequences(np.ma.masked_equal([[3, 9], [4, 5]], 9))
    assert (tokens.inputs.tolist(), tokens.lengths.tolist()) == ([[3, 0], [4, 5]], [1, 2])
    assert Sequences(np.ma.masked_array(np.ones((2, 3, 1)))).mask is None
    inputs[1, 1, 0] = np.ma.masked
    with refused(ValueError, "inputs mask feature 0 of example 1, step 1, but not the whole step"):
        Sequences(inputs)
    with refused(ValueError, "labels of example 1 is masked (numpy.ma); give its value"):
        Sequences(np.ones((2, 3, 1)), np.ma.masked_equal(labels, 1), None, ("a", "b"))
    with refused(ValueError, "example 0 has no real step"):
        Sequences(np.ma.masked_less(np.ones((2, 3, 1)), 2))


# --- Standardisation ---


def test_standardisation_counts_real_steps_only() -> None:
    inputs = np.array([[[1.0, 5.0], [3, 5], [99, 99]], [[5, 5], [7, 5], [7, 5]]])
    mask = np.array([[True, True, False], [True, True, False]])
    fitted = Standardisation.fit(Sequences(inputs, mask=mask))
    assert fitted == Standardisation((4.0, 5.0), (float(np.sqrt(5.0)), 1.0))
    expected = np.where(mask[..., None], (inputs - fitted.mean) / fitted.scale, 0)
    applied = fitted.apply(Sequences(inputs, mask=mask))
    assert np.array_equal(applied.inputs, expected.astype(np.float32))


@pytest.mark.parametrize("constant", [0.1, 3.0e38, -1.0e-45, 0.0])
def test_a_constant_feature_keeps_its_unit(constant: float) -> None:
    data = Sequences(np.full((7, 11, 1), constant, np.float32))
    fitted = Standardisation.fit(data)
    assert fitted == Standardisation((float(np.float32(constant)),), (1.0,))
    assert (fitted.apply(data).inputs == 0.0).all()


@given(
    st.lists(st.tuples(st.floats(-1e300, 1e300), st.floats(1e-300, 1e300)), min_size=1, max_size=5)
)
def test_standardisation_survives_json(pairs: list[tuple[float, float]]) -> None:
    made = Standardisation(tuple(mean for mean, _ in pairs), tuple(scale for _, scale in pairs))
    assert Standardisation.from_json(json.loads(json.dumps(made.to_json()))) == made


@each_refusal(
    {
        TypeError: {
            "must be a dictionary with the keys mean and scale, got list; use to_json": [1.0],
            "mean must be a list of numbers, got []": {"mean": [], "scale": []},
            "mean must be a list of numbers, got 0.0": {"mean": 0.0, "scale": 1.0},
            "mean of feature 0 is '0'; it must be a number": {"mean": ["0"], "scale": [1.0]},
            "mean of feature 0 is True": {"mean": [True], "scale": [1.0]},
        },
        ValueError: {
            "must have the keys mean and scale, got ['mean']; write": {"mean": [0.0]},
            "got ['mean', 'more', 'scale']": {"mean": [0.0], "scale": [1.0], "more": 1},
            "mean has 1 entries and scale has 2; give both": {"mean": [0.0], "scale": [1.0, 1.0]},
            "mean of feature 0 is nan; it must be finite": {"mean": [np.nan], "scale": [1.0]},
            "scale of feature 1 is inf; it must be finite": {"mean": [0, 0], "scale": [1, np.inf]},
            "scale of feature 0 is 0.0; it must be positive": {"mean": [0.0], "scale": [0.0]},
            "scale of feature 0 is -1.0; it must be positive": {"mean": [0.0], "scale": [-1]},
        },
    }
)
def test_standardisation_refuses(kind: type[Exception], words: str, what: Any) -> None:
    with refused(kind, words):
        Standardisation.from_json(what)


def test_standardisation_needs_matching_features() -> None:
    tokens, one = Sequences(ones(2, 3, dtype=np.int32)), Standardisation((0.0,), (1.0,))
    for use in (Standardisation.fit, one.apply):
        with refused(ValueError, "tokens cannot be standardised"):
            use(tokens)
    with refused(ValueError, "sequences have 2 features, the standardisation 1; use data with as"):
        one.apply(Sequences(ones(2, 3, 2)))


# --- Dataset ---


def test_dataset_sums_up_its_parts() -> None:
    short, long = sequences(), sequences(length=7)
    dataset = Dataset("task", short, short, long)
    assert (dataset.length, dataset.num_features, dataset.vocab_size) == (7, 2, None)
    assert dataset.class_names == NAMES
    assert list(dataset.parts) == ["train", "validation", "test"]
    assert list(Dataset("task", short, short).parts) == ["train", "validation"]
    few, many = (sequences(inputs=np.full((4, 3), token)) for token in (4, 9))
    assert Dataset("task", few, many).vocab_size == 10


@each_refusal(
    {
        ValueError: {
            "the test part of task has no labels; add labels": {"labels": None},
            "has 3 features, the train part 2 features; give both the same": {"features": 3},
            "has tokens, the train part 2 features": {"inputs": ones(4, 3, dtype=np.int32)},
            "has classes yes, no, the train part no, yes; give both the same, in the same": {
                "class_names": ("yes", "no")
            },
        }
    }
)
def test_dataset_refuses_unequal_parts(kind: type[Exception], words: str, what: Any) -> None:
    with refused(kind, words):
        Dataset("task", sequences(), sequences(), sequences(**what))


def test_dataset_needs_two_classes_to_train_on() -> None:
    words = "the train part of task holds one class only, 'yes'; give it examples of two or more"
    with refused(ValueError, words):
        Dataset("task", sequences(labels=np.ones(4, int)), sequences())


def test_data_alone_imports_no_framework_and_no_scikit_learn() -> None:
    names = {"torch", "jax", "flax", "sklearn", "pe_torch", "pe_flax"}
    code = f"import sys, pe_core.data; print(*{names} & set(sys.modules))"
    root = Path(__file__).resolve().parent.parent
    assert subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True) == "\n"
