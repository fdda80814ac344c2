"""A model goes through a file from one framework to the other and back with every bit, and a file
that is not right is refused.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from parity_tests.cases import CONFIGS, WINGS, perturbed_arrays, small_config
from pe_core.model.parameters import parameters
from pe_core.model.random import derive, normal
from pe_core.storage.files import SIGNATURE, signed_json
from pe_core.storage.model_directory import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    SavedModel,
    digest,
    load_model,
    save_model,
)
from pe_parity import BUDGETS, distance

in_each_wing = pytest.mark.parametrize("label", WINGS)
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
    first, second = WINGS[here].package, WINGS[there].package
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
    for label, wing in WINGS.items():
        wing.package.save(wing.package.SequenceClassifier(CONFIG, seed=4), tmp_path / label)
    assert content(tmp_path / "torch") == content(tmp_path / "flax")


@in_each_wing
def test_float64_survives_too(tmp_path: Path, label: str) -> None:
    wing = WINGS[label]
    arrays = {
        name: array.astype(np.float64) + 2.0**-40
        for name, array in perturbed_arrays(CONFIG).items()
    }
    with wing.mode("float64"):
        wing.package.save(wing.classifier(CONFIG, arrays, "float64"), tmp_path)
    assert bits(load_model(tmp_path).arrays) == bits(arrays)
    assert {
        array.dtype for array in wing.package.to_arrays(wing.package.load(tmp_path)).values()
    } == {np.dtype(np.float32)}


@in_each_wing
@pytest.mark.parametrize("name", CONFIGS)
def test_arrays_are_the_parameters(label: str, name: str) -> None:
    config, arrays, package = CONFIGS[name], perturbed_arrays(CONFIGS[name]), WINGS[label].package
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


@in_each_wing
def test_square_weights_are_not_transposed(label: str) -> None:
    arrays = perturbed_arrays(CONFIG)
    square = "layers.0.attention.out.weight"
    assert arrays[square].shape == (CONFIG.d_model, CONFIG.d_model)
    assert not np.array_equal(arrays[square], arrays[square].T)
    wing, x = WINGS[label], normal(derive(0, 87), (2, 3, CONFIG.d_model)).astype(np.float32)
    model = wing.classifier(CONFIG, arrays)
    assert np.array_equal(wing.package.to_arrays(model)[square], arrays[square])
    found, bias = (
        wing.call(model.encoder.layers[0].attention.out, x),
        arrays["layers.0.attention.out.bias"],
    )
    right, wrong = x @ arrays[square].T + bias, x @ arrays[square] + bias
    assert distance(found, right, right) <= BUDGETS["tap", "float32"].bound
    assert distance(found, wrong, right) > BUDGETS["tap", "float32"].fault


def test_arrays_that_are_not_contiguous_survive(tmp_path: Path) -> None:
    arrays = perturbed_arrays(CONFIG)
    views = {
        name: np.asfortranarray(array) if array.ndim == 2 else np.repeat(array, 2)[::2]
        for name, array in arrays.items()
    }
    assert not any(array.flags.c_contiguous for array in views.values())
    save_model(tmp_path, SavedModel(CONFIG, views))
    assert bits(load_model(tmp_path).arrays) == bits(arrays)
    for wing in WINGS.values():
        assert bits(wing.package.to_arrays(wing.package.from_arrays(CONFIG, views))) == bits(arrays)


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


@in_each_wing
def test_a_failed_save_leaves_the_old_model(
    tmp_path: Path, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = WINGS[label].package
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


def rewrite(
    folder: Path, change: Callable[[dict[str, np.ndarray]], None], *, signed: bool = True
) -> None:
    """Change the arrays of a weights file and write it anew, with a digest that fits or as it
    was.
    """
    path = folder / WEIGHTS_FILE
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    arrays = safetensors.numpy.load_file(path)
    change(arrays)
    if signed:
        metadata["sha256"] = digest(arrays)
    path.write_bytes(safetensors.numpy.save(arrays, metadata=metadata))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads((folder / CONFIG_FILE).read_text())
    change(record)
    del record[SIGNATURE]
    (folder / CONFIG_FILE).write_bytes(signed_json(record))


def write(folder: Path, text: str) -> None:
    (folder / CONFIG_FILE).write_text(text)


def flip_last_bit(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(content)


def cut(file: str, keep: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: int(len(content) * keep)])

    return damage


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
DAMAGE: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "no weights": (
        lambda folder: (folder / WEIGHTS_FILE).unlink(),
        FileNotFoundError,
        r"is not a model directory, model\.safetensors is missing",
    ),
    "no config": (
        lambda folder: (folder / CONFIG_FILE).unlink(),
        FileNotFoundError,
        r"is not a model directory, config\.json is missing",
    ),
    "cut weights": (cut(WEIGHTS_FILE, 0.9), ValueError, r"model\.safetensors is damaged"),
    "cut header": (cut(WEIGHTS_FILE, 0.01), ValueError, r"model\.safetensors is damaged"),
    "empty weights": (cut(WEIGHTS_FILE, 0.0), ValueError, r"model\.safetensors is damaged"),
    "cut config": (cut(CONFIG_FILE, 0.5), ValueError, r"config\.json is not valid JSON"),
    "flipped bit": (flip_last_bit, ValueError, r"model\.safetensors is damaged \(the SHA-256"),
    "another digest": (
        lambda folder: rewrite(folder, lambda a: a["norm.bias"].fill(1), signed=False),
        ValueError,
        "SHA-256",
    ),
    "another format": (
        lambda folder: edit(folder, lambda r: r.update(format=2)),
        ValueError,
        "has format 2, this version reads format 1",
    ),
    "no format": (
        lambda folder: edit(folder, lambda r: r.pop("format")),
        ValueError,
        "has format None",
    ),
    "a list": (lambda folder: write(folder, "[1]"), ValueError, r"has format \[1\]"),
    "unknown field": (
        lambda folder: edit(folder, lambda r: r["model"].update(num_head=3)),
        ValueError,
        r"config\.json: ModelConfig: unknown field 'num_head' \(did you mean 'num_heads'\?\)",
    ),
    "unknown encoding": (
        lambda folder: edit(folder, lambda r: r["model"]["encodings"][0].update(name="sinusoid")),
        ValueError,
        r"config\.json: unknown encoding 'sinusoid'; did you mean 'sinusoidal'\?",
    ),
    "names and shapes": (lambda folder: rewrite(folder, misfit), ValueError, ALL_AT_ONCE),
    "NaN": (
        lambda folder: rewrite(folder, lambda a: a["norm.bias"].fill(np.nan)),
        ValueError,
        r"norm\.bias holds NaN or infinity",
    ),
    "infinity": (
        lambda folder: rewrite(folder, lambda a: a["norm.bias"].fill(-np.inf)),
        ValueError,
        r"norm\.bias holds NaN or infinity",
    ),
    "integers": (
        lambda folder: rewrite(folder, lambda a: a.update({"norm.bias": np.zeros(12, np.int32)})),
        ValueError,
        r"norm\.bias has dtype I32, known are F32, F64, I64",
    ),
}


@in_each_wing
@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_model_is_refused_in_one_line(tmp_path: Path, label: str, what: str) -> None:
    damage, kind, text = DAMAGE[what]
    save_model(tmp_path, SavedModel(CONFIG, perturbed_arrays(CONFIG)))
    damage(tmp_path)
    with pytest.raises(kind, match=text) as caught:
        WINGS[label].package.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@in_each_wing
def test_arrays_that_do_not_fit_are_reported_together(tmp_path: Path, label: str) -> None:
    arrays = perturbed_arrays(CONFIG)
    misfit(arrays)
    with pytest.raises(ValueError, match=f"the dictionary of arrays {ALL_AT_ONCE}") as caught:
        WINGS[label].package.from_arrays(CONFIG, arrays)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"the model {ALL_AT_ONCE}"):
        save_model(tmp_path, SavedModel(CONFIG, arrays))
    assert not list(tmp_path.iterdir())


@in_each_wing
def test_a_loaded_model_is_in_evaluation_mode_and_can_be_trained(
    tmp_path: Path, label: str
) -> None:
    config = small_config(dropout=0.5)
    save_model(tmp_path, SavedModel(config, perturbed_arrays(config)))
    model = WINGS[label].package.load(tmp_path)
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
