"""A run that begins from another: its options, its data where they have moved, its weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parity_tests.cases import ENGINES, LENGTH, perturbed_arrays, small_config
from parity_tests.cli import COUNT, TINY, Pe, files, pe, runs, strict, table
from parity_tests.small_runs import bits, data
from pe_core import LearnedTable, Sinusoidal
from pe_core.data import Dataset, Sequences, load
from pe_core.model.initial import initial_arrays
from pe_core.storage.model_directory import SavedModel, load_model
from pe_core.training.loop import train
from pe_core.training.predictor import Predictor
from pe_core.training.start import Lengthen, start_from
from pe_parity.budgets import budget, distance

__all__ = ["files", "pe", "runs"]


def same(one: Path, other: Path) -> bool:
    return bits(load_model(one).arrays) == bits(load_model(other).arrays)


@pytest.mark.parametrize("config", ["torch/config.json", "torch"])
def test_the_config_of_a_run_is_a_file_of_options(pe: Pe, runs: Path, config: str) -> None:
    pe("train", "--config", runs / config, "--out=again")
    assert same(Path("again"), runs / "torch")
    pe("train", "--config", runs / config, "--encoding=none", "--epochs=1", "--out=other")
    found = load_model("other").config
    assert (found.encodings, found.d_model) == ((), 8)


def test_data_that_moved_and_more_epochs(pe: Pe, files: Path) -> None:
    shutil.copy(files / "good.npz", "mine.npz")
    line = ("train", "--framework=torch", *TINY, "--batch-size=16", "--data")
    pe(*line, "mine.npz", "--out=run")
    assert pe("resume", "run", code=2) == (
        "run is finished after 1 epoch, its model is in run/model; go on with pe resume run "
        "--epochs 2, or predict with pe predict run --data FILE"
    )
    Path("mine.npz").rename("moved.npz")
    assert "where the data have moved, give --data" in pe("resume", "run", "--epochs=3", code=2)
    other = ("--epochs=4", "--data", files / "tokens.npz")
    assert "tokens.npz: not the data of the run (data_sha" in pe("resume", "run", *other, code=2)
    pe("resume", "run", "--epochs=4", "--data=moved.npz", "--stop-at=7")
    pe("resume", "run")
    pe(*line, "moved.npz", "--out=whole", "--epochs=4")
    assert same(Path("run"), Path("whole"))


def test_sequences_beyond_the_table_follow_a_policy(pe: Pe, files: Path) -> None:
    given = np.load(files / "good.npz")
    longer = np.concatenate([given["inputs"]] * 2, axis=1)
    np.savez("long.npz", inputs=longer, labels=given["labels"])
    line = ("train", "--framework=torch", *TINY, "--data", files / "lengths.npz")
    text = pe(*line, "--test=long.npz", "--encoding=learned:layers=all")
    assert "never trained; --encoding learned:layers=all,over_length=interpolate, clip" in text
    text = pe(*line, "--test=long.npz", "--encoding=learned:over_length=wrap", "--out=wraps")
    assert "never trained" not in text
    (encoding,) = load_model("wraps").config.encodings
    assert encoding == LearnedTable(load(files / "lengths.npz").trained_length, over_length="wrap")
    pe(*line, "--out=run")
    assert "or take over_length clip, wrap" in pe("predict", "run", "--data=long.npz", code=2)
    found = [
        Predictor.load(engine, "run", over_length="clip").predict_proba(longer)
        for engine in ENGINES.values()
    ]
    one, other = found
    assert distance(one, other, one) <= budget("head", "float32").bound
    pe("predict", "run", "--data=long.npz", "--over-length=clip", "--json=all.json")
    assert np.array_equal(strict(Path("all.json").read_text())["probabilities"], one.tolist())
    pe(*line, "--encoding=none", "--out=bare")
    assert "the model's encoding is none, which takes any length; leave it out" in pe(
        "predict", "bare", "--data=long.npz", "--over-length=clip", code=2
    )


def test_a_run_from_python_goes_on_with_what_it_does_not_say(pe: Pe, files: Path) -> None:
    loaded = load(files / "good.npz")
    config = small_config(num_classes=3, num_layers=1)
    train(ENGINES["torch"], config, replace(loaded, name="mine"), out="run", stop_at=1)
    words = "run does not say where to go on, as a run from Python; give "
    assert pe("resume", "run", code=2) == f"{words}--framework and --data"
    pe("resume", "run", "--framework=torch", "--data", files / "good.npz")
    pe("resume", "run", "--framework=torch", "--epochs=6")


def test_nothing_held_out(pe: Pe, files: Path) -> None:
    line = ("train", "--framework=torch", "--data", files / "good.npz", *TINY, "--out=all")
    text = pe(*line, "--validation-fraction=0", "--json=all.json", "--stop-at=1", "--batch-size=20")
    text += pe("resume", "all", "--json=all.json")
    assert f"{COUNT} to train; length" in text
    lines = [strict(line) for line in Path("all/metrics.jsonl").read_text().splitlines()]
    for found in (*lines, strict(Path("all.json").read_text())):
        assert not any("validation" in name for name in found)
    assert "validation" not in text
    result = train(ENGINES["torch"], small_config(), replace(data(), validation=None))
    assert result.records[0].validation_loss is None


# --- From a saved model ---

CONFIG = small_config(num_layers=1, encodings=(LearnedTable(4, layers="all"), Sinusoidal()))
NAMES = ("a", "b", "c", "d")
SAVED = SavedModel(CONFIG, perturbed_arrays(CONFIG), {"class_names": list(NAMES)})
TABLE = "encodings.0.table"


def examples(names: tuple[str, ...]) -> Dataset:
    inputs = np.ones((8, LENGTH, 3), np.float32)
    part = Sequences(inputs, np.arange(8) % len(names), class_names=names)
    return Dataset("x", part, None)


@pytest.mark.parametrize("lengthen", ["interpolate", "new"])
def test_a_longer_table(lengthen: Lengthen) -> None:
    found = start_from(SAVED, examples(NAMES), seed=3, lengthen=lengthen)
    old, fresh = SAVED.arrays[TABLE], initial_arrays(found.config, 3)[TABLE]
    places = np.linspace(0, len(old) - 1, LENGTH)
    expected = np.stack([np.interp(places, np.arange(len(old)), one) for one in old.T], axis=1)
    if lengthen == "new":
        expected = np.concatenate([old, fresh[len(old) :]])
    assert np.array_equal(found.arrays.pop(TABLE), expected.astype(np.float32))
    assert bits(found.arrays) == bits(
        {name: array for name, array in SAVED.arrays.items() if name != TABLE}
    )
    assert found.config == replace(CONFIG, encodings=(LearnedTable(7, "all"), Sinusoidal()))


def test_a_head_goes_with_the_names_of_the_classes() -> None:
    order = ("b", "d", "a", "c")
    found = start_from(SAVED, examples(order), lengthen="new")
    for name in ("head.weight", "head.bias"):
        assert np.array_equal(found.arrays[name], SAVED.arrays[name][[1, 3, 0, 2]])
    found = start_from(SAVED, examples(("a", "b", "z")), seed=3, lengthen="new")
    assert found.notes[1] == "the head is new: the classes are a, b, z; the model had a, b, c, d"
    fresh = initial_arrays(found.config, 3)
    assert np.array_equal(found.arrays["head.weight"], fresh["head.weight"])


def test_a_run_begins_where_the_model_ended(pe: Pe, files: Path, runs: Path) -> None:
    """At a learning rate of zero it stays there, in the units of that model's data too; and a run
    that is resumed has not lost the weights that it began with.
    """
    with np.load(files / "good.npz") as arrays:
        shifted = dict(arrays) | {"inputs": 3 * arrays["inputs"] + 7}
    np.savez("shifted.npz", **shifted)
    line = ("train", "--framework=torch", "--from", runs / "torch")
    text = pe(
        *line,
        "--data=shifted.npz",
        "--batch-size=16",
        "--learning-rate=0",
        "--epochs=1",
        "--out=run",
        "--stop-at=1",
    )
    assert f"beginning with the weights of {runs / 'torch'} and its standardisation" in text
    shutil.rmtree(sorted(Path("run/checkpoints").iterdir())[-1])
    pe("resume", "run")
    assert same(Path("run"), runs / "torch")
    one, other = (Predictor.load(ENGINES["torch"], path) for path in ("run", runs / "torch"))
    assert one.standardisation == other.standardisation
    config = json.loads(Path("run/config.json").read_text())
    assert config["from"] == {"from": str(runs / "torch"), "lengthen": None}


BAD = table("""
--from none => none is not a model directory, config.json is missing; pass a directory that save()
    or `pe train` wrote
--lengthen new => --lengthen new goes with --from, got none; leave it out
--from RUN --d-model 16 => --d-model 16 does not go with --from RUN, whose d_model is 8; leave it
    out
--from RUN --encoding sinusoidal => --encoding sinusoidal does not go with --from RUN, whose
    encoding is learned:max_length=6,layers=first; leave it out
--from RUN --encoding learned:max_length=9 => the data need 9 rows, the encoding learned of the
    model has 6 rows; give --lengthen interpolate or --lengthen new
--from RUN --data order => the train part of order has 16 features, but the model takes
    num_features=3; give data with as many
""")


@pytest.mark.parametrize("line", BAD)
def test_options_that_say_otherwise(pe: Pe, files: Path, runs: Path, line: str) -> None:
    run = str(runs / "torch")
    words = line.replace("RUN", run).split()
    found = pe("train", "--framework=torch", "--data", files / "good.npz", *words, code=2)
    assert found.splitlines()[-1] == BAD[line].replace("RUN", run)
