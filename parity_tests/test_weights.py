"""A model goes through a file from one framework to the other and back with every bit, and a file
that is not right is refused.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import pe_flax
import pe_flax.layout
from parity_tests.cases import BACKENDS, CONFIGS, perturbed_arrays, small_config
from pe_core.errors import UserError
from pe_core.model.parameters import parameters
from pe_core.model.random import derive, normal
from pe_core.storage.model_directory import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    SavedModel,
    load_model,
    save_model,
)
from pe_parity import BUDGETS, distance

in_each_backend = pytest.mark.parametrize("label", BACKENDS)
CONFIG = CONFIGS["both"]


def bits(arrays: dict[str, np.ndarray]) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    return [
        (name, str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()
    ]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(("here", "there"), [("torch", "flax"), ("flax", "torch")])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_bit_survives_the_way_there_and_back(
    tmp_path: Path, name: str, here: str, there: str
) -> None:
    config, arrays = CONFIGS[name], perturbed_arrays(CONFIGS[name])
    first, second = BACKENDS[here].package, BACKENDS[there].package
    first.save(
        first.from_arrays(config, arrays), tmp_path / "one", class_names=["a", "b", "c", "d"]
    )
    moved = second.load(tmp_path / "one")
    assert bits(second.to_arrays(moved)) == bits(arrays)
    second.save(moved, tmp_path / "two", class_names=["a", "b", "c", "d"])
    assert content(tmp_path / "two") == content(tmp_path / "one")
    back = first.load(tmp_path / "two")
    assert bits(first.to_arrays(back)) == bits(arrays)
    assert back.config == config
    assert load_model(tmp_path / "two").details == {"class_names": ["a", "b", "c", "d"]}


def test_both_frameworks_write_the_same_bytes(tmp_path: Path) -> None:
    for label, backend in BACKENDS.items():
        backend.package.save(backend.package.SequenceClassifier(CONFIG, seed=4), tmp_path / label)
    assert content(tmp_path / "torch") == content(tmp_path / "flax")


@in_each_backend
def test_float64_survives_too(tmp_path: Path, label: str) -> None:
    backend = BACKENDS[label]
    arrays = {
        name: array.astype(np.float64) + 2.0**-40
        for name, array in perturbed_arrays(CONFIG).items()
    }
    with backend.mode("float64"):
        backend.package.save(backend.classifier(CONFIG, arrays, "float64"), tmp_path)
    assert bits(load_model(tmp_path).arrays) == bits(arrays)
    assert {
        array.dtype for array in backend.package.to_arrays(backend.package.load(tmp_path)).values()
    } == {np.dtype(np.float32)}


@in_each_backend
@pytest.mark.parametrize("name", CONFIGS)
def test_arrays_are_the_parameters(label: str, name: str) -> None:
    config, arrays, package = (
        CONFIGS[name],
        perturbed_arrays(CONFIGS[name]),
        BACKENDS[label].package,
    )
    model = package.from_arrays(config, arrays)
    found = package.to_arrays(model)
    assert [(key, array.shape) for key, array in found.items()] == [
        (item.name, item.shape) for item in parameters(config)
    ]
    assert bits(found) == bits(arrays)
    assert all(
        array.flags.c_contiguous and array.flags.writeable and array.flags.owndata
        for array in found.values()
    )
    # They are copies: what is written into them does not reach the model, nor does what is written
    # into the arrays that it came from.
    for array in (*found.values(), *arrays.values()):
        array.fill(7.0)
    assert bits(package.to_arrays(model)) == bits(perturbed_arrays(config))


@in_each_backend
def test_square_weights_are_not_transposed(label: str) -> None:
    arrays = perturbed_arrays(CONFIG)
    square = "layers.0.attention.out.weight"
    assert arrays[square].shape == (CONFIG.d_model, CONFIG.d_model)
    assert not np.array_equal(arrays[square], arrays[square].T)
    backend, x = BACKENDS[label], normal(derive(0, 87), (2, 3, CONFIG.d_model)).astype(np.float32)
    model = backend.classifier(CONFIG, arrays)
    assert np.array_equal(backend.package.to_arrays(model)[square], arrays[square])
    found, bias = (
        backend.call(model.encoder.layers[0].attention.out, x),
        arrays["layers.0.attention.out.bias"],
    )
    right, wrong = x @ arrays[square].T + bias, x @ arrays[square] + bias
    assert distance(found, right, right) <= BUDGETS["tap", "float32"].bound
    assert distance(found, wrong, right) > BUDGETS["tap", "float32"].fault


def test_parameters_of_an_encoding_keep_their_names_in_flax() -> None:
    live: Any = pe_flax.SequenceClassifier(small_config(), seed=0)
    wide = normal(derive(0, 90), (2, 3)).astype(np.float32)
    live.encoder.encodings[0].kernel = nnx.Param(jnp.asarray(wide))
    live.encoder.encodings[0].scale = nnx.Param(jnp.ones(3))
    found = pe_flax.layout.get_arrays(live)
    assert np.array_equal(found["encodings.0.kernel"], wide)
    assert found["encodings.0.scale"].shape == (3,)


def test_arrays_that_are_not_contiguous_survive(tmp_path: Path) -> None:
    """Also as another reader of the format finds them."""
    arrays = perturbed_arrays(CONFIG)
    views = {
        name: np.asfortranarray(array) if array.ndim == 2 else np.repeat(array, 2)[::2]
        for name, array in arrays.items()
    }
    assert not any(array.flags.c_contiguous for array in views.values())
    save_model(tmp_path, SavedModel(CONFIG, views))
    assert bits(load_model(tmp_path).arrays) == bits(arrays)
    others = safetensors.numpy.load_file(tmp_path / WEIGHTS_FILE)
    assert bits({name: others[name] for name in arrays}) == bits(arrays)
    for backend in BACKENDS.values():
        assert bits(backend.package.to_arrays(backend.package.from_arrays(CONFIG, views))) == bits(
            arrays
        )


def test_files_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_model(tmp_path, SavedModel(CONFIG, perturbed_arrays(CONFIG)))
    finally:
        os.umask(before)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {
        CONFIG_FILE: 0o640,
        WEIGHTS_FILE: 0o640,
    }


@in_each_backend
def test_a_failed_save_leaves_the_old_model(
    tmp_path: Path, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = BACKENDS[label].package
    package.save(package.SequenceClassifier(CONFIG, seed=0), tmp_path)
    before = content(tmp_path)

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    for broken in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, full)
            with pytest.raises(OSError, match="no space left"):
                package.save(package.SequenceClassifier(CONFIG, seed=1), tmp_path)
        assert content(tmp_path) == before


def misfit(arrays: dict[str, np.ndarray]) -> None:
    del arrays["input.bias"], arrays["head.weight"]
    arrays |= {"extra": np.zeros(2, np.float32), "layers.7.norm1.bias": np.zeros(12, np.float32)}
    arrays["norm.weight"] = np.zeros(13, np.float32)
    arrays["encodings.1.table"] = arrays["encodings.1.table"].T.copy()


ALL_AT_ONCE = (
    r"does not fit the config; missing: input\.bias, head\.weight; unexpected: extra, "
    r"layers\.7\.norm1\.bias; "
    r"misshapen: encodings\.1\.table is \(12, 9\), not \(9, 12\), norm\.weight is \(13,\), not "
    r"\(12,\); load it with the config"
)


@in_each_backend
def test_arrays_that_do_not_fit_are_reported_together(tmp_path: Path, label: str) -> None:
    arrays = perturbed_arrays(CONFIG)
    misfit(arrays)
    with pytest.raises(ValueError, match=f"the dictionary of arrays {ALL_AT_ONCE}") as caught:
        BACKENDS[label].package.from_arrays(CONFIG, arrays)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"the model {ALL_AT_ONCE}"):
        save_model(tmp_path, SavedModel(CONFIG, arrays))
    assert not list(tmp_path.iterdir())


@in_each_backend
@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_folder_without_a_file_is_no_model(tmp_path: Path, label: str, file: str) -> None:
    """What else can be wrong with a file is in `test_hostile` and `test_misfits`."""
    save_model(tmp_path, SavedModel(CONFIG, perturbed_arrays(CONFIG)))
    (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"is not a model directory, {file} is missing"):
        BACKENDS[label].package.load(tmp_path)


DETAILS: dict[str, tuple[dict[str, Any], str]] = {
    "a reserved name": ({"model": 1}, "a detail is named 'model'; choose another"),
    "no plain name": ({"a b": 1}, "a detail is named 'a b'; choose another"),
    "NaN": ({"note": float("nan")}, "detail note cannot be saved as JSON"),
    "an array": ({"note": np.zeros(1)}, "detail note cannot be saved as JSON"),
}


@pytest.mark.parametrize("what", DETAILS)
def test_a_detail_that_cannot_be_saved_is_refused(tmp_path: Path, what: str) -> None:
    details, words = DETAILS[what]
    with pytest.raises(UserError, match=words):
        save_model(tmp_path, SavedModel(CONFIG, perturbed_arrays(CONFIG), details))
    assert not list(tmp_path.iterdir())


@in_each_backend
def test_a_loaded_model_is_in_evaluation_mode_and_can_be_trained(
    tmp_path: Path, label: str
) -> None:
    config = small_config(dropout=0.5)
    save_model(tmp_path, SavedModel(config, perturbed_arrays(config)))
    model = BACKENDS[label].package.load(tmp_path)
    for training in (False, True):
        if training:
            model.train()
        assert (
            model.encoder.dropout.training
            if label == "torch"
            else not model.encoder.dropout.deterministic
        ) == training
    if label == "torch":
        assert all(weight.requires_grad for weight in model.parameters())
