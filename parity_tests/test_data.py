"""Sequences, standardisation and datasets are valid from birth and say what is wrong in one line;
`load` finds and divides.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pe_core.data import DATA_NAMES, Dataset, Sequences, Standardisation, load, read
from pe_core.model.random import SPLIT, derive, permutation

NAMES = ("no", "yes")


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


def sequences(count: int = 4, length: int = 3, features: int = 2, **fields: Any) -> Sequences:
    numbers = np.arange(count * length * features, dtype=np.float32).reshape(
        count, length, features
    )
    made: dict[str, Any] = {"inputs": numbers, "labels": np.arange(count) % 2, "class_names": NAMES}
    return Sequences(**made | fields)


def planted(value: float, dtype: Any = np.float64) -> np.ndarray:
    inputs = ones(3, 4, 2, dtype=dtype)
    inputs[1, 2, 1] = value
    return inputs


def assert_one_line(error: BaseException) -> None:
    assert str(error)
    assert "\n" not in str(error)


def test_sequences_know_their_sizes() -> None:
    mask = np.array([[True, True, False], [True, False, False]])
    ragged = Sequences(ones(2, 3, 5), np.array([1, 0]), mask, NAMES)
    assert (len(ragged), ragged.count, ragged.length, ragged.num_features, ragged.num_classes) == (
        2,
        2,
        3,
        5,
        2,
    )
    assert ragged.lengths.tolist() == [2, 1]
    assert Sequences(ones(2, 3, 5)).lengths.tolist() == [3, 3]
    tokens = Sequences(ones(2, 3, dtype=np.uint8))
    assert (
        tokens.inputs.dtype.name,
        tokens.num_features,
        tokens.num_classes,
        tokens.labels,
        tokens.mask,
    ) == ("int32", None, 0, None, None)


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, np.int8, np.int64, np.uint16]
)
def test_numbers_are_converted(dtype: Any) -> None:
    converted = sequences(
        inputs=ones(4, 3, 2, dtype=dtype), labels=np.array([0, 1, 0, 1], np.uint8)
    )
    assert converted.inputs.dtype == np.float32
    assert converted.labels is not None
    assert converted.labels.dtype == np.int32


def test_padding_becomes_zero_and_the_caller_keeps_his_array() -> None:
    inputs = planted(np.nan)
    inputs[0, 3] = np.inf
    inputs[2, 0] = 1e300
    mask = np.ones((3, 4), np.bool_)
    mask[1, 2] = mask[0, 3] = mask[2, 0] = False
    cleaned = Sequences(inputs, mask=mask)
    assert (cleaned.inputs[~mask] == 0.0).all()
    assert (cleaned.inputs[mask] == 1.0).all()
    assert np.isnan(inputs[1, 2, 1])
    tokens = Sequences(np.array([[7, -1]]), mask=np.array([[True, False]]))
    assert tokens.inputs.tolist() == [[7, 0]]


def test_arrays_are_read_only() -> None:
    inputs = ones(2, 3, 1)
    frozen = Sequences(inputs, np.array([0, 1]), np.ones((2, 3), np.bool_), NAMES)
    for array in (frozen.inputs, frozen.labels, frozen.mask):
        assert array is not None
        assert not array.flags.writeable
    assert inputs.flags.writeable


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"inputs": [[1.0]]}, TypeError, "inputs must be a NumPy array, got list; convert"),
        (
            {"inputs": ones(4, 3, 2, dtype=np.complex64)},
            TypeError,
            "inputs must be real numbers, got dtype complex64; convert",
        ),
        ({"inputs": ones(4, 3, 2, dtype=object)}, TypeError, "got dtype object; convert"),
        ({"inputs": ones(4, 3, 2, dtype=np.str_)}, TypeError, "got dtype <U1; convert"),
        ({"inputs": ones(4, 3, 2, dtype=np.bool_)}, TypeError, "got dtype bool; convert"),
        (
            {"inputs": ones(4, 3)},
            ValueError,
            r"inputs \(4, 3\) of dtype float32 have no feature axis; pass inputs",
        ),
        ({"inputs": ones(4)}, ValueError, r"inputs must have shape .* got \(4,\); reshape"),
        ({"inputs": ones(4, 3, 2, 1)}, ValueError, r"got \(4, 3, 2, 1\); reshape"),
        (
            {"inputs": ones(0, 3, 2)},
            ValueError,
            r"inputs are empty, shape \(0, 3, 2\); pass at least one",
        ),
        ({"inputs": ones(4, 0, 2)}, ValueError, r"inputs are empty, shape \(4, 0, 2\)"),
        ({"inputs": ones(4, 3, 0)}, ValueError, r"inputs are empty, shape \(4, 3, 0\)"),
        ({"labels": [0, 1, 0, 1]}, TypeError, "labels must be an integer array, got list; pass"),
        ({"labels": np.array([0.0, 1, 0, 1])}, TypeError, "got dtype float64; pass"),
        ({"labels": np.array([True, False, True, True])}, TypeError, "got dtype bool; pass"),
        ({"labels": np.array(["no", "yes", "no", "no"])}, TypeError, "got dtype <U3; pass"),
        (
            {"labels": np.array([0, 1, 1])},
            ValueError,
            r"labels \(3,\) do not fit 4 examples; pass one label per example",
        ),
        ({"labels": np.zeros((4, 1), int)}, ValueError, r"labels \(4, 1\) do not fit"),
        (
            {"labels": np.array([0, 1, 2, 0])},
            ValueError,
            r"label 2 of example 2 is outside 0 .. 1; correct it",
        ),
        (
            {"labels": np.array([0, -1, 2, 0])},
            ValueError,
            r"label -1 of example 1 is outside 0 .. 1",
        ),
        ({"class_names": ()}, ValueError, "labels are given but class_names are not; pass a name"),
        ({"class_names": ("a", "a")}, ValueError, "class_names repeat a; give each class its own"),
        (
            {"class_names": "ab"},
            TypeError,
            "class_names must be a tuple of non-empty strings, got 'ab'; pass",
        ),
        ({"class_names": ("a", "")}, TypeError, "non-empty strings, got"),
        ({"class_names": (0, 1)}, TypeError, r"non-empty strings, got \(0, 1\)"),
        (
            {"mask": [[True]]},
            TypeError,
            "mask must be a bool array, True = real step, got list; convert",
        ),
        (
            {"mask": ones(4, 3)},
            TypeError,
            "mask must be a bool array, True = real step, got dtype float32; convert",
        ),
        (
            {"mask": ones(4, 2, dtype=np.bool_)},
            ValueError,
            r"mask \(4, 2\) does not fit inputs \(4, 3, 2\); its shape must be \(4, 3\)",
        ),
        (
            {"mask": np.arange(12).reshape(4, 3) < 9},
            ValueError,
            "example 3 has no real step, its mask is False throughout; remove",
        ),
        (
            {"inputs": np.array([[1, -2], [0, 3]]), "labels": None},
            ValueError,
            r"token -2 in example 0, step 1 .* number the tokens from 0",
        ),
        (
            {"inputs": np.array([[1, 2], [0, 1 << 31]]), "labels": None},
            ValueError,
            r"token 2147483648 in example 1, step 1",
        ),
    ],
)
def test_sequences_refuse(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        sequences(**fields)
    assert_one_line(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_a_real_step_must_be_finite(value: float) -> None:
    with pytest.raises(
        ValueError,
        match=r"in example 1, step 2, feature 1; a real step must be finite .* padding in the "
        r"mask, or impute",
    ) as caught:
        Sequences(planted(value))
    assert str(value) in str(caught.value)
    assert_one_line(caught.value)


def test_take() -> None:
    whole = sequences(mask=np.arange(12).reshape(4, 3) % 3 < 2)
    part = whole.take(np.array([3, 0, 3]))
    assert np.array_equal(part.inputs, whole.inputs[[3, 0, 3]])
    assert part.labels is not None
    assert part.labels.tolist() == [1, 0, 1]
    assert part.mask is not None
    assert part.class_names == NAMES
    assert Sequences(ones(2, 3, 1)).take(np.array([1])).count == 1


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (np.array([4]), ValueError, r"index 4 is outside 0 .. 3; pass indices"),
        (np.array([0, -1]), ValueError, "index -1 is outside"),
        (np.array([], int), ValueError, "indices are empty; take at least one"),
        (
            np.array([0.5]),
            TypeError,
            r"indices must be integers of shape \(count,\), got float64 \(1,\); pass",
        ),
        (np.array([[0]]), TypeError, r"got int64 \(1, 1\)"),
        (np.array([True, False, True, True]), TypeError, "got bool"),
    ],
)
def test_take_refuses(indices: np.ndarray, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sequences().take(indices)


def test_standardisation_counts_real_steps_only() -> None:
    inputs = np.array(
        [[[1.0, 5.0], [3.0, 5.0], [99.0, 99.0]], [[5.0, 5.0], [7.0, 5.0], [7.0, 5.0]]]
    )
    mask = np.array([[True, True, False], [True, True, False]])
    fitted = Standardisation.fit(Sequences(inputs, mask=mask))
    assert fitted.mean == (4.0, 5.0)
    assert fitted.scale == (float(np.sqrt(5.0)), 1.0)
    applied = fitted.apply(Sequences(inputs, mask=mask))
    assert np.array_equal(
        applied.inputs,
        np.where(mask[..., None], (inputs - fitted.mean) / fitted.scale, 0).astype(np.float32),
    )


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


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            [1.0],
            TypeError,
            "must be a dictionary with the keys mean and scale, got list; use to_json",
        ),
        ({"mean": [0.0]}, ValueError, r"must have the keys mean and scale, got \['mean'\]; write"),
        ({"mean": [0.0], "scale": [1.0], "more": 1}, ValueError, "got .*more"),
        (
            {"mean": [0.0], "scale": [1.0, 1.0]},
            ValueError,
            "mean has 1 entries and scale has 2; give both",
        ),
        ({"mean": [], "scale": []}, TypeError, r"mean must be a list of numbers, got \[\]"),
        ({"mean": 0.0, "scale": 1.0}, TypeError, "mean must be a list of numbers, got 0.0"),
        (
            {"mean": ["0"], "scale": [1.0]},
            TypeError,
            "mean of feature 0 is '0'; it must be a number",
        ),
        ({"mean": [True], "scale": [1.0]}, TypeError, "mean of feature 0 is True"),
        (
            {"mean": [float("nan")], "scale": [1.0]},
            ValueError,
            "mean of feature 0 is nan; it must be finite",
        ),
        (
            {"mean": [0.0, 0.0], "scale": [1.0, float("inf")]},
            ValueError,
            "scale of feature 1 is inf; it must be finite",
        ),
        (
            {"mean": [0.0], "scale": [0.0]},
            ValueError,
            "scale of feature 0 is 0.0; it must be positive",
        ),
        (
            {"mean": [0.0], "scale": [-1]},
            ValueError,
            "scale of feature 0 is -1.0; it must be positive",
        ),
    ],
)
def test_standardisation_refuses(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        Standardisation.from_json(data)
    assert_one_line(caught.value)


def test_standardisation_needs_matching_features() -> None:
    tokens, two = Sequences(ones(2, 3, dtype=np.int32)), Sequences(ones(2, 3, 2))
    with pytest.raises(ValueError, match="tokens cannot be standardised"):
        Standardisation.fit(tokens)
    with pytest.raises(ValueError, match="tokens cannot be standardised"):
        Standardisation((0.0,), (1.0,)).apply(tokens)
    with pytest.raises(
        ValueError, match="sequences have 2 features, the standardisation 1; use data with as many"
    ):
        Standardisation((0.0,), (1.0,)).apply(two)


def test_dataset_sums_up_its_parts() -> None:
    short, long = sequences(), sequences(length=7)
    dataset = Dataset("task", short, short, long)
    assert (dataset.length, dataset.num_features, dataset.class_names, dataset.vocab_size) == (
        7,
        2,
        NAMES,
        None,
    )
    assert list(dataset.parts) == ["train", "validation", "test"]
    assert list(Dataset("task", short, short).parts) == ["train", "validation"]
    few, many = (
        Sequences(np.full((2, 3), token), np.array([0, 1]), class_names=NAMES) for token in (4, 9)
    )
    assert Dataset("task", few, many).vocab_size == 10


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"labels": None}, "the test part of task has no labels; add labels"),
        (
            {"features": 3},
            "the test part of task has 3 features, the train part 2 features; give both the same",
        ),
        (
            {"inputs": ones(4, 3, dtype=np.int32)},
            "the test part of task has tokens, the train part 2 features",
        ),
        (
            {"class_names": ("yes", "no")},
            (
                "the test part of task has classes yes, no, the train part no, yes; give both the "
                "same, in the same"
            ),
        ),
    ],
)
def test_dataset_refuses_unequal_parts(part: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dataset("task", sequences(), sequences(), sequences(**part))


def test_dataset_needs_two_classes_to_train_on() -> None:
    with pytest.raises(
        ValueError,
        match="the train part of task holds one class only, 'yes'; give it examples of two or more",
    ):
        Dataset("task", sequences(labels=np.ones(4, int)), sequences())


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (
            "digts",
            {},
            ValueError,
            (
                "unknown data 'digts', the names are dummy, order, digits, digits64 or a path .*; "
                "did you mean digits?"
            ),
        ),
        ("Dummy", {}, ValueError, "did you mean dummy?"),
        (
            "weather",
            {},
            ValueError,
            "unknown data 'weather', the names are dummy.*; choose one of them, or give a file",
        ),
        ("", {}, ValueError, "unknown data ''|no ending"),
        (
            "table.csv",
            {},
            ValueError,
            r"table.csv: a data file must end in .npz or .ts, got '.csv'; convert it",
        ),
        (
            "some/folder",
            {},
            ValueError,
            "some/folder: a data file must end in .npz or .ts, got 'no ending'",
        ),
        ("absent.npz", {}, FileNotFoundError, "absent.npz: no such file; check the path"),
        ("absent.ts", {}, FileNotFoundError, "absent.ts: no such file; check the path"),
        (
            "dummy",
            {"test": "x.ts"},
            ValueError,
            "a test file does not go with dummy, got x.ts; leave it out",
        ),
        ("digits", {"test": "x.ts"}, ValueError, "a test file does not go with digits"),
        (
            "order",
            {"validation_fraction": 0.5},
            ValueError,
            "order has parts of fixed size, got validation_fraction 0.5; leave it out",
        ),
        (
            "digits",
            {"validation_fraction": 0.0},
            ValueError,
            "validation_fraction must lie between 0 and 1, got 0.0; for example 0.2",
        ),
        ("digits", {"validation_fraction": 1.0}, ValueError, "got 1.0"),
        ("x.npz", {"validation_fraction": float("nan")}, ValueError, "got nan"),
        ("dummy", {"seed": -1}, ValueError, r"seed must lie in 0 .. 2\*\*63 - 1, got -1"),
    ],
)
def test_load_refuses(
    data: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        load(data, **options)
    assert_one_line(caught.value)


@pytest.mark.parametrize("name", DATA_NAMES)
def test_every_name_loads(name: str) -> None:
    assert load(name, seed=1).name == name


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write an `.npz` file of the given arrays; returns its path."""
    numbers = itertools.count()

    def write(**arrays: np.ndarray) -> Path:
        path = tmp_path / f"data{next(numbers)}.npz"
        np.savez(path, **arrays)  # type: ignore[arg-type]
        return path

    return write


def test_a_file_is_divided_by_the_seed(write: Callable[..., Path]) -> None:
    inputs = np.arange(40.0).reshape(20, 2, 1)
    path = write(inputs=inputs, labels=np.arange(20) % 2)
    dataset = load(path, seed=3, validation_fraction=0.3)
    order = permutation(derive(3, SPLIT), 20)
    fitted = Standardisation.fit(Sequences(inputs[order[6:]]))
    assert dataset.standardisation == fitted
    for part, rows in (("validation", order[:6]), ("train", order[6:])):
        assert np.array_equal(
            dataset.parts[part].inputs, fitted.apply(Sequences(inputs[rows])).inputs
        )
        assert np.array_equal(np.asarray(dataset.parts[part].labels), rows % 2)
    assert dataset.test is None
    assert not np.array_equal(load(path, seed=4).train.inputs, load(path, seed=3).train.inputs)
    assert np.array_equal(load(str(path), seed=4).train.inputs, load(path, seed=4).train.inputs)


def test_a_test_file_is_mapped_by_name_and_may_be_longer(write: Callable[..., Path]) -> None:
    train = write(inputs=ones(6, 2, 1), labels=np.array(["a", "b", "c"] * 2))
    test = write(inputs=ones(2, 5, 1), labels=np.array(["c", "a"]))
    dataset = load(train, test=test)
    assert dataset.test is not None
    assert dataset.test.labels is not None
    assert (dataset.test.labels.tolist(), dataset.test.class_names, dataset.length) == (
        [2, 0],
        ("a", "b", "c"),
        5,
    )
    assert (dataset.test.inputs == 0.0).all()


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ({"labels": None}, {}, r"data0.npz: has no labels to train on; add labels"),
        ({}, {"labels": None}, r"data1.npz: has no labels to test against; add labels"),
        (
            {},
            {"labels": np.array([0, 5])},
            r"data1.npz, example 1: label '5' is not among the classes 0, 1; correct it",
        ),
        (
            {},
            {"inputs": ones(2, 3, 7)},
            "data1.npz: has 7 features, the training file has 2 features; give both the same",
        ),
        (
            {},
            {"inputs": ones(2, 3, dtype=int)},
            "data1.npz: has tokens, the training file has 2 features",
        ),
        (
            {"labels": np.zeros(6, int)},
            {"labels": np.zeros(2, int)},
            "the train part of data0 holds one class only, '0'",
        ),
        (
            {"inputs": ones(1, 3, 2), "labels": np.array([0])},
            {},
            "data0.npz has 1 example; a training and a validation part need at least 2",
        ),
    ],
)
def test_files_that_do_not_go_together(
    write: Callable[..., Path], train: dict[str, Any], test: dict[str, Any], message: str
) -> None:
    files = [
        {"inputs": ones(6, 3, 2), "labels": np.arange(6) % 2} | train,
        {"inputs": ones(2, 3, 2), "labels": np.array([0, 1])} | test,
    ]
    paths = [
        write(**{name: array for name, array in file.items() if array is not None})
        for file in files
    ]
    with pytest.raises(ValueError, match=message) as caught:
        load(paths[0], test=paths[1])
    assert_one_line(caught.value)


def test_tokens_are_not_standardised(write: Callable[..., Path]) -> None:
    dataset = load(write(inputs=np.arange(30).reshape(10, 3), labels=np.arange(10) % 2))
    assert (dataset.standardisation, dataset.num_features, dataset.vocab_size) == (None, None, 30)


def test_reading_for_prediction(write: Callable[..., Path]) -> None:
    unlabelled = read(write(inputs=ones(2, 3, 1)), ("x", "y"))
    assert (unlabelled.labels, unlabelled.class_names) == (None, ("x", "y"))
    labelled = read(write(inputs=ones(2, 3, 1), labels=np.array(["y", "Y"])), ["x", "y"])
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [1, 1]
    with pytest.raises(
        ValueError,
        match="example 0: label 'y' is not among the classes x; correct it, or leave the example "
        "out",
    ):
        read(write(inputs=ones(1, 3, 1), labels=np.array(["y"])), ("x",))


def test_the_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(
        ModuleNotFoundError,
        match=r"^the digits data need scikit-learn; install positional-encoding\[data\]$",
    ):
        load("digits")


def test_data_alone_imports_no_framework_and_no_scikit_learn() -> None:
    code = (
        "import sys, pe_core.data; print(sorted({'torch', 'jax', 'flax', 'sklearn', "
        "'pe_torch', 'pe_flax'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parent.parent
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
