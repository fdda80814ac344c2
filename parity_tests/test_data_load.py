"""`load` finds a task or a file and divides it; `read` gives one file as it is."""

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.refusals import each_refusal, refused
from pe_core.data import (
    DATA_NAMES,
    DataWarning,
    Sequences,
    Standardisation,
    load,
    read,
)
from pe_core.data.splitting import part_count, split_by_class, split_order
from pe_core.model.config import Features, ModelConfig
from pe_core.model.random import SPLIT, derive, permutation
from pe_core.training.data_checks import check_sequences

Write = Callable[..., Path]
LABELS = np.arange(6) % 2


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an `.npz` file of the given arrays; returns its path."""
    numbers = itertools.count()

    def write(**arrays: Any) -> Path:
        path = tmp_path / f"data{next(numbers)}.npz"
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
        return path

    return write


NOT_FOUND = "unknown data '{}', the names are dummy, order, digits, digits64 or a path ...; {}"
CHOOSE = "choose one of them, or give a file"
ENDING = "a data file must end in .npz, .ts, .csv or .tsv, got '{}'; convert it"


@each_refusal(
    {
        ValueError: {
            NOT_FOUND.format("digts", "did you mean 'digits'?"): ("digts", {}),
            NOT_FOUND.format("Dummy", "did you mean 'dummy'?"): ("Dummy", {}),
            NOT_FOUND.format("x", CHOOSE): ("x", {}),
            NOT_FOUND.format("", CHOOSE): ("", {}),
            "table.txt: " + ENDING.format(".txt"): ("table.txt", {}),
            "some/folder: " + ENDING.format("no ending"): ("some/folder", {}),
            "a test file does not go with dummy, got x.ts; leave it": ("dummy", {"test": "x.ts"}),
            "a test file does not go with digits": ("digits", {"test": "x.ts"}),
            "order has parts of fixed size, got validation_fraction 0.5; leave it out": (
                "order",
                {"validation_fraction": 0.5},
            ),
            "validation_fraction must lie between 0 and 1, got -0.1; for example 0.2": (
                "digits",
                {"validation_fraction": -0.1},
            ),
            "got 1.0": ("digits", {"validation_fraction": 1.0}),
            "got nan": ("x.npz", {"validation_fraction": float("nan")}),
            "seed must lie in 0 .. 2**63 - 1, got -1": ("dummy", {"seed": -1}),
        },
        FileNotFoundError: {
            "absent.npz: no such file; check the path": ("absent.npz", {}),
            "absent.ts: no such file; check the path": ("absent.ts", {}),
        },
    }
)
def test_load_refuses(kind: type[Exception], words: str, what: Any) -> None:
    data, options = what
    with refused(kind, words):
        load(data, **options)


@pytest.mark.parametrize("name", DATA_NAMES)
def test_every_name_loads(name: str) -> None:
    assert load(name, seed=1).name == name


def test_a_file_is_divided_by_the_seed(write: Write) -> None:
    inputs = np.arange(40.0).reshape(20, 2, 1)
    path = write(inputs=inputs, labels=np.arange(20) % 2)
    dataset = load(path, seed=3, validation_fraction=0.3)
    order = permutation(derive(3, SPLIT), 20)
    first = {*order[order % 2 == 0][:3], *order[order % 2 == 1][:3]}
    validation, train = (
        np.array([row for row in order if (row in first) is held]) for held in (True, False)
    )
    fitted = Standardisation.fit(Sequences(inputs[train]))
    assert (dataset.standardisation, dataset.test) == (fitted, None)
    for part, rows in (("validation", validation), ("train", train)):
        found = dataset.parts[part]
        assert np.array_equal(found.inputs, fitted.apply(Sequences(inputs[rows])).inputs)
        assert np.array_equal(np.asarray(found.labels), rows % 2)
    other = load(path, seed=4).train.inputs
    assert not np.array_equal(other, load(path, seed=3).train.inputs)
    assert np.array_equal(other, load(str(path), seed=4).train.inputs)


SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(lambda sizes: max(sizes) > 1)


@given(SIZES, st.integers(0, 2**63 - 1), st.floats(0.01, 0.99))
def test_every_class_has_its_share_of_both_parts(
    sizes: list[int], seed: int, fraction: float
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    order = split_order(seed, len(labels))
    parts = split_by_class(order, labels, fraction, "x")
    assert sorted(np.concatenate(parts)) == sorted(order)
    for part in parts:
        assert [row for row in order if row in part] == part.tolist()
    held_out, kept = (np.bincount(labels[part], minlength=len(sizes)) for part in parts)
    places, there = held_out.sum(), np.array(sizes)
    assert places == min(part_count(fraction, len(labels), "x"), np.maximum(there - 1, 0).sum())
    assert (kept[there > 0] > 0).all()
    if places >= (there > 1).sum():
        assert (held_out[there > 1] > 0).all()
    # Whatever is not bounded by the rules above is the exact share, rounded up or down.
    exact = places * there / there.sum()
    free = (held_out > 1) & (kept > 1) & (1 < exact) & (exact < there - 1)
    if free.all():
        assert (np.abs(held_out - exact) < 1).all()


def test_a_class_that_cannot_be_validated_is_told(write: Write) -> None:
    labels = np.r_[np.arange(19) % 2, 2]
    words = "data0.npz: the validation part has no example of class '2' \\(1 in all\\), all are in"
    path = write(inputs=np.arange(40.0).reshape(20, 2, 1), labels=labels)
    for seed in range(9):
        with pytest.warns(DataWarning, match=words):
            dataset = load(path, seed=seed)
        assert np.bincount(np.asarray(dataset.train.labels)).tolist() == [8, 7, 1]


SLOPES = (np.arange(10) * np.where(np.arange(40) % 2, 3, 1)[:, None])[..., None]


@pytest.mark.parametrize("name", ["digits", ""])
def test_nothing_held_out_asks_nothing_of_the_classes(write: Write, name: str) -> None:
    labels = np.arange(5)
    data = name or write(inputs=np.arange(10.0).reshape(5, 2, 1), labels=labels)
    dataset = load(data, validation_fraction=0.0)
    assert dataset.validation is None
    assert list(dataset.parts) == (["train", "test"] if name else ["train"])
    assert name or np.array_equal(np.sort(np.asarray(dataset.train.labels)), labels)


LARGE = {
    "float64": 1.7e9 + SLOPES,
    "nanoseconds": 1_700_000_000_000_000_000 + SLOPES,
    "unsigned": np.uint64((1 << 64) - 28) + SLOPES.astype(np.uint64),
    "beyond float32": (1.7e9 + SLOPES) * 2.0**200,
    "below float32": SLOPES * 2.0**-900,
}


@pytest.mark.parametrize("name", LARGE)
def test_files_are_standardised_before_they_are_cast(write: Write, name: str) -> None:
    inputs, labels = LARGE[name], np.arange(40) % 2
    path = write(inputs=inputs, labels=labels)
    dataset = load(path, test=path)
    fitted = dataset.standardisation
    assert fitted is not None
    assert dataset.test is not None
    # Nothing is lost: equal numbers stay equal, and others become others.
    assert np.array_equal(*(np.unique(x, return_inverse=True)[1] for x in (SLOPES, inputs)))
    assert len(np.unique(np.stack([SLOPES, dataset.test.inputs]).reshape(2, -1), axis=1).T) == 16
    saved = Standardisation.from_json(json.loads(json.dumps(fitted.to_json())))
    assert np.array_equal(read(path, standardisation=saved).inputs, dataset.test.inputs)
    assert np.array_equal(fitted.apply(inputs), dataset.test.inputs)
    if name != "beyond float32":
        made = Sequences(inputs, labels, class_names=("0", "1"))
        assert np.array_equal(fitted.apply(made).inputs, dataset.test.inputs)
        assert Standardisation.fit(made.take(np.arange(9))) == Standardisation.fit(inputs[:9])


def test_what_float32_loses_is_told(write: Write) -> None:
    inputs = np.where(np.arange(40)[:, None, None] == 7, 3e19, LARGE["float64"])
    labels = np.arange(40) % 2
    words = "data0.npz: feature 0 has 17 distinct ... float32 keeps 2; remove its outliers"
    with pytest.warns(DataWarning, match=words.replace("...", ".*")):
        load(write(inputs=inputs, labels=labels))
    part = Sequences(LARGE["float64"], labels, class_names=("0", "1"))
    config = ModelConfig(inputs=Features(1), num_classes=2, d_model=8, num_heads=2)
    with pytest.warns(DataWarning, match="^mine: feature 0 .* keeps 1; standardise it"):
        check_sequences(config, part, "mine")


def test_a_test_file_is_mapped_by_name_and_may_be_longer(write: Write) -> None:
    train = write(inputs=ones(6, 2, 1), labels=np.array(["a", "b", "c"] * 2))
    test = write(inputs=ones(2, 5, 1), labels=np.array(["c", "a"]))
    dataset = load(train, test=test, validation_fraction=0.5)
    assert dataset.test is not None
    assert np.asarray(dataset.test.labels).tolist() == [2, 0]
    assert (dataset.test.class_names, dataset.length) == (("a", "b", "c"), 5)
    assert (dataset.test.inputs == 0.0).all()


@each_refusal(
    {
        ValueError: {
            "data0.npz: has no labels to train on; add labels": ({"labels": None}, {}),
            "data1.npz: has no labels to test against; add labels": ({}, {"labels": None}),
            "data1.npz, example 1: label '5' is not among the classes 0, 1; correct it": (
                {},
                {"labels": np.array([0, 5])},
            ),
            "data1.npz: has 7 features, the training file has 2 features; give both the same": (
                {},
                {"inputs": ones(2, 3, 7)},
            ),
            "data1.npz: has tokens, the training file has 2 features": (
                {},
                {"inputs": ones(2, 3, dtype=int)},
            ),
            "the train part of data0 holds one class only, '0'": (
                {"labels": np.zeros(6, int)},
                {"labels": np.zeros(2, int)},
            ),
            "data0.npz: no class has two examples, one to train and one to validate; add": (
                {"labels": np.arange(6)},
                {},
            ),
            "data0.npz has 1 example; a training and a validation part need at least 2": (
                {"inputs": ones(1, 3, 2), "labels": LABELS[:1]},
                {},
            ),
        }
    }
)
def test_files_that_do_not_go_together(
    write: Write, kind: type[Exception], words: str, what: Any
) -> None:
    train = write(**{"inputs": ones(6, 3, 2), "labels": LABELS} | what[0])
    test = write(**{"inputs": ones(2, 3, 2), "labels": LABELS[:2]} | what[1])
    with refused(kind, words):
        load(train, test=test, validation_fraction=0.5)


def test_tokens_are_not_standardised(write: Write) -> None:
    dataset = load(write(inputs=np.arange(30).reshape(10, 3), labels=np.arange(10) % 2))
    assert (dataset.standardisation, dataset.num_features, dataset.vocab_size) == (None, None, 30)


def test_reading_for_prediction(write: Write) -> None:
    unlabelled = read(write(inputs=ones(2, 3, 1)), ("x", "y"))
    assert (unlabelled.labels, unlabelled.class_names) == (None, ("x", "y"))
    path = write(inputs=ones(2, 3, 1), labels=np.array(["y", "Y"]))
    assert np.asarray(read(path, ["x", "y"]).labels).tolist() == [1, 1]
    words = "example 0: label 'y' is not among the classes x; correct it, or leave the example out"
    with refused(ValueError, words):
        read(path, ("x",))


def test_the_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    words = "the digits data need scikit-learn; install positional-encoding[data]"
    with refused(ModuleNotFoundError, words, whole=True):
        load("digits")
