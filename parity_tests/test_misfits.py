"""Arrays and fields that do not fit, under digests that do, are refused by name; a config may be
edited within its rules.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pe_torch.engine
from parity_tests.saved_folders import (
    CONFIG,
    CUTS,
    OTHERS,
    READERS,
    contents,
    digests,
    find,
    make_all,
    refusal,
    state_folder,
)
from pe_cli.main import main
from pe_core import ModelConfig
from pe_core.model.initial import initial_arrays
from pe_core.storage.checkpoint import (
    MANIFEST_FILE,
    STATE_FILE,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from pe_core.storage.model_directory import CONFIG_FILE, WEIGHTS_FILE, load_model
from pe_core.storage.tensors import open_tensors, write_tensors
from pe_core.training.run_directory import (
    CHECKPOINTS_FOLDER,
    METRICS_FILE,
    RunDirectory,
    checkpoint_shapes,
)

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good")
    make_all(path)
    return path


def in_arrays(change: Callable[[dict[str, np.ndarray], str], object]) -> Damage:
    """Change the arrays of a model or of the state of a run, and save them anew."""

    def damage(folder: Path) -> None:
        if (folder / WEIGHTS_FILE).exists():
            path = folder / WEIGHTS_FILE
            arrays = open_tensors(path).read()
            change(arrays, "head.bias")
            path.unlink()
            write_tensors(path, arrays)
        else:
            found = read_checkpoint(folder)
            change(found.arrays, "param/head.bias")
            save_checkpoint(folder / CHECKPOINTS_FOLDER, found)

    return damage


def read_checkpoint(folder: Path) -> Checkpoint:
    config = ModelConfig.from_json(RunDirectory(folder).config()["model"])
    return load_checkpoint(state_folder(folder), lambda record: checkpoint_shapes(config, record))


def in_record(**changes: Any) -> Damage:
    """Change the record of a checkpoint, and save it anew."""

    def damage(folder: Path) -> None:
        found = read_checkpoint(folder)
        found.record.update(changes)
        save_checkpoint(folder / CHECKPOINTS_FOLDER, found)

    return damage


def in_json(file: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        path = find(folder, file)
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return damage


def fields(file: str, part: str | None = None, /, **changes: Any) -> Damage:
    """Change fields of a record, or of a part of it."""
    return in_json(file, lambda record: (record[part] if part else record).update(changes))


manifest, config = partial(fields, MANIFEST_FILE), partial(fields, CONFIG_FILE)
model_config = partial(fields, CONFIG_FILE, "model")


def sort_names(arrays: dict[str, np.ndarray], name: str) -> None:
    """Take one away, add one, change the shape of one."""
    arrays["extra"] = arrays.pop(name)
    other = name.replace("bias", "weight")
    arrays[other] = arrays[other].T


ARRAYS: dict[str, tuple[Damage, str]] = {
    "names and shapes": (in_arrays(sort_names), r"missing.*head\.bias.*unexpected.*extra"),
    "a shape": (
        in_arrays(lambda a, name: a.update({name: a[name][:1]})),
        r"head\.bias (is|has shape)",
    ),
    "NaN": (in_arrays(lambda a, name: a[name].fill(np.nan)), r"head\.bias holds NaN or infinity"),
    "infinity": (in_arrays(lambda a, name: a[name].fill(-np.inf)), "holds NaN or infinity"),
}
# The ways of libraries that make objects from JSON.
CLASS_NAMES = ("__class__", "_target_", "py/object", "$type", "@class", "!!python/object/apply")
MODELS: dict[str, tuple[Damage, str]] = {
    "integers": (
        in_arrays(lambda a, name: a.update({name: np.zeros(4, np.int64)})),
        r"head\.bias holds int64, weights are float32 or float64",
    ),
    "other weights": (
        in_arrays(lambda a, name: a[name].fill(1.0)),
        r"is not the one that config\.json was saved with",
    ),
    "later format": (config(format=3), "has format 3, this version reads formats 1 and 2"),
    "older format": (config(format=0), "has format 0"),
    "format of a text": (config(format="1"), "has format '1'"),
    "another format": (config(format=1), "SHA-256 of its weights"),
    "no model": (in_json(CONFIG_FILE, lambda record: record.pop("model")), "has no field model"),
    "another digest": (config(weights_sha256="0"), "is not the one that"),
    "4096 layers": (model_config(num_layers=4096), "num_layers is 4096, but"),
    "a width of 2^30": (model_config(d_model=3 << 29), "misshapen: "),
    "a table of 2^31": (
        model_config(encodings=[{"name": "learned", "max_length": 1 << 31}]),
        "misshapen: encodings.0.table",
    ),
    "width of a text": (model_config(d_model="12"), "d_model must be an integer"),
    "unknown field": (model_config(num_head=3), r"'num_head' \(did you mean 'num_heads'\?\)"),
    "unknown encoding": (
        model_config(encodings=[{"name": "sinusoid"}]),
        "unknown encoding 'sinusoid'; did you mean 'sinusoidal'",
    ),
    "an encoding of a class": (model_config(encodings=[{"name": "os.mkdir"}]), "unknown encoding"),
    "inputs of a class": (model_config(inputs={"kind": "os.mkdir", "size": 3}), "inputs"),
} | {
    where: (change(**{name: {"py/function": "os.mkdir"}}), words)
    for name in CLASS_NAMES
    for where, change, words in (
        (name, config, "a detail is named"),
        (f"model.{name}", model_config, "unknown field"),
    )
}
RUNS: dict[str, tuple[Damage, str]] = {
    "no state": (lambda it: find(it, STATE_FILE).unlink(), "state.safetensors is missing"),
    "no manifest": (lambda it: find(it, MANIFEST_FILE).unlink(), "manifest.json is missing"),
    "older format": (manifest(format=0), "format is 0, this version reads 1 and 2"),
    "unknown field": (manifest(extra=1), "fields are"),
    "a class": (manifest(__class__="os.mkdir"), "fields are"),
    "another step": (manifest(step=8), "step is 8, but the folder is step-000000007"),
    "step is a text": (manifest(step="../../x"), r"step is \.\./\.\./x"),
    "record is a list": (manifest(record=[]), "record is not an object"),
    "header digest of another": (manifest(header="0"), "its SHA-256 is not the one in it"),
    "rows of 2^62": (in_record(rows=1 << 62), "rows must lie in"),
    "rows of a truth value": (in_record(rows=True), "rows must be an integer"),
    "records below zero": (in_record(records=-1), "records must lie in"),
    "metrics of another kind": (
        in_record(**{METRICS_FILE: {"bytes": 1, "sha256": "", "x": 1}}),
        "not bytes and sha256",
    ),
    "metrics of 2^40 bytes": (
        in_record(**{METRICS_FILE: {"bytes": 1 << 40, "sha256": ""}}),
        "metrics.jsonl is damaged",
    ),
    "another data set": (in_record(data_sha256="0"), "data_sha256 is 0, the run has"),
}
DAMAGES = (
    [(kind, name, *damage) for kind in READERS for name, damage in ARRAYS.items()]
    + [("model", name, *damage) for name, damage in MODELS.items()]
    + [("run", name, *damage) for name, damage in RUNS.items()]
)


@pytest.mark.parametrize(
    ("kind", "damage", "words"),
    [(kind, damage, words) for kind, _, damage, words in DAMAGES],
    ids=[f"{kind}: {name}" for kind, name, *_ in DAMAGES],
)
def test_what_does_not_fit_is_refused_by_name(
    kind: str, damage: Damage, words: str, place: Path, tmp_path: Path
) -> None:
    shutil.copytree(place / kind, tmp_path / "it")
    damage(tmp_path / "it")
    with pytest.raises(ValueError, match=words):
        READERS[kind](tmp_path / "it")
    assert isinstance(refusal(READERS[kind], tmp_path / "it"), str)


# Configs that somebody edited.


def test_a_config_of_a_model_may_be_edited(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "model", tmp_path / "it")
    model_config(dropout=0.5)(tmp_path / "it")
    config(class_names=["d", "c", "b", "a"], note="mine")(tmp_path / "it")
    in_json(CONFIG_FILE, lambda record: record.pop("weights_sha256"))(tmp_path / "it")
    found = load_model(tmp_path / "it")
    assert (found.config.dropout, found.details["note"]) == (0.5, "mine")
    assert found.details["class_names"] == ["d", "c", "b", "a"]
    assert digests(found.arrays) == digests(initial_arrays(CONFIG, 0))


class GoneOnError(BaseException):
    """A run would take its next step."""


@pytest.fixture
def resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[], str | None]:
    """Return why a run is refused, or None if it goes on."""

    def step(*arguments: Any) -> None:
        raise GoneOnError

    def resume() -> str | None:
        try:
            code = main(["resume", str(tmp_path / "it")])
        except GoneOnError:
            return None
        said = capsys.readouterr().err.splitlines()
        assert code == 2
        assert "Traceback" not in " ".join(said)
        return said[-1]

    monkeypatch.setattr(pe_torch.engine.Engine, "train_step", step)
    return resume


CONFIGS_OF_RUNS: dict[str, tuple[Damage, str | None]] = {
    "as it is": (lambda folder: None, None),
    "versions": (config(versions={}), None),
    "a digest of version 0.1.0": (config(sha256={}), None),
    "another model": (model_config(d_ff=24), "model is"),
    "a wide model": (model_config(d_model=1 << 29), "model is"),
    "another rate": (config("train", learning_rate=0.5), "train is"),
    "another precision": (config("compute", precision="float64"), "compute is"),
    "compute of a class": (config("compute", __class__="os.mkdir"), "is not that of a run"),
    "2^40 epochs": (config("train", epochs=1 << 40), "epochs must lie in"),
    "framework of a class": (config(framework="os"), "unknown framework 'os'"),
    "no source": (config(source=None), "source is None"),
    "source of a class": (config(source={"data": {"py/object": "os.mkdir"}}), "source is"),
    "a source with ..": (config(source={"data": "../etc/passwd", "test": None}), "../etc/passwd"),
} | {name: (config(**{name: {}}), "unknown field") for name in CLASS_NAMES}


@pytest.mark.parametrize("what", CONFIGS_OF_RUNS)
def test_an_edited_config_of_a_run_is_held_to_the_run(
    what: str, place: Path, tmp_path: Path, resumed: Callable[[], str | None]
) -> None:
    damage, words = CONFIGS_OF_RUNS[what]
    shutil.copytree(place / "run", tmp_path / "it")
    damage(tmp_path / "it")
    found = resumed()
    assert (found is None) == (words is None), found
    assert words is None or words in str(found)


def test_no_damaged_config_of_a_run_shows_itself_as_a_bug(
    place: Path, tmp_path: Path, resumed: Callable[[], str | None]
) -> None:
    shutil.copytree(place / "run", tmp_path / "it")
    path = tmp_path / "it" / CONFIG_FILE
    refused = 0
    for content in contents(path.read_bytes(), tmp_path / "mark"):
        path.write_bytes(content)
        refused += resumed() is not None
    assert refused >= CUTS + OTHERS
    assert not (tmp_path / "mark").exists()
