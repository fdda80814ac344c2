"""A run that stops and goes on, in the same framework or in the other, is the run that never
stopped.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from parity_tests.cases import ENGINES
from parity_tests.saved_folders import digests
from pe_core import ComputeConfig, Features, LearnedTable, ModelConfig, TrainConfig
from pe_core.data import Batch, Dataset, dummy
from pe_core.model.config import Precision
from pe_core.model.initial import initial_arrays
from pe_core.storage.checkpoint import (
    Checkpoint,
    checkpoint_folders,
    load_checkpoint,
    save_checkpoint,
)
from pe_core.storage.files import DamagedError
from pe_core.training.engine import Engine
from pe_core.training.loop import TrainResult, train
from pe_core.training.run_directory import (
    CHECKPOINTS_FOLDER,
    METRICS_ARRAY,
    METRICS_FILE,
    RECORDS_ARRAY,
    RunDirectory,
    checkpoint_shapes,
)

CONFIG = ModelConfig(
    inputs=Features(16),
    num_classes=2,
    d_model=12,
    num_heads=3,
    num_layers=1,
    d_ff=20,
    encodings=(LearnedTable(10),),
    dropout=0.1,
)
# Twelve steps: three epochs of four, the last of each short; the rise of the schedule ends at step
# 3.
TRAIN = TrainConfig(
    epochs=3,
    batch_size=15,
    schedule="warmup_cosine",
    warmup_steps=3,
    weight_decay=0.01,
    learning_rate=3e-3,
    max_gradient_norm=0.5,
)
PER_EPOCH, STEPS = 4, 12


@cache
def data() -> Dataset:
    whole = dummy(0)
    return dataclasses.replace(
        whole,
        train=whole.train.take(np.arange(50)),
        validation=whole.validation.take(np.arange(20)),
    )


class Recycled:
    """Engines that were compiled once, given back to their first state: a test file would compile
    for minutes otherwise.
    """

    kept: ClassVar[dict[tuple[str, Precision], tuple[Engine, dict[str, np.ndarray]]]] = {}

    def __init__(self, framework: str) -> None:
        self.framework = framework

    def __call__(
        self,
        config: ModelConfig,
        arrays: Mapping[str, np.ndarray],
        train: TrainConfig,
        compute: ComputeConfig,
        total_steps: int,
        device: str | None = None,
    ) -> Engine:
        assert (config, train, total_steps) == (CONFIG, TRAIN, STEPS)
        key = (self.framework, compute.precision)
        if key not in self.kept:
            engine = ENGINES[self.framework](config, arrays, train, compute, total_steps, device)
            self.kept[key] = engine, engine.state()
        engine, first = self.kept[key]
        engine.restore(first)
        return engine


def go(
    framework: str, out: Path | None = None, precision: Precision = "float32", **options: Any
) -> TrainResult:
    compute = ComputeConfig(precision=precision)
    return train(
        Recycled(framework), CONFIG, data(), train=TRAIN, compute=compute, out=out, **options
    )


@cache
def whole(framework: str, precision: Precision = "float32") -> TrainResult:
    """The run that never stops."""
    return go(framework, precision=precision)


def told(result: TrainResult) -> list[dict[str, Any]]:
    """What a run says of its epochs, but for the time that they took."""
    return [dataclasses.asdict(record) | {"seconds": 0.0} for record in result.records]


@pytest.mark.parametrize("framework", list(ENGINES))
@pytest.mark.parametrize(
    "stops", [(1,), (2,), (4,), (6,), (8, 9), (11,), tuple(range(1, 12))], ids=str
)
def test_resumed_run_is_the_same_run(
    framework: str, stops: tuple[int, ...], tmp_path: Path
) -> None:
    for number, stop in enumerate(stops):
        part = go(framework, tmp_path / "run", stop_at=stop, resume=number > 0)
        assert (part.finished, part.steps) == (False, stop)
    last = go(framework, tmp_path / "run", resume=True)
    assert last.finished
    assert digests(last.arrays) == digests(whole(framework).arrays)
    assert told(last) == told(whole(framework))
    assert len((tmp_path / "run" / METRICS_FILE).read_text().splitlines()) == STEPS + TRAIN.epochs


@pytest.mark.parametrize("stops", [(1,), (2,), (4,), (6,), tuple(range(1, 12))], ids=str)
@pytest.mark.parametrize("first", list(ENGINES))
def test_a_run_that_changes_sides_ends_on_the_same_bits(
    first: str, stops: tuple[int, ...], tmp_path: Path
) -> None:
    sides = [first, *(name for name in ENGINES if name != first)]
    for number, stop in enumerate(stops):
        go(sides[number % 2], tmp_path / "run", "float64", stop_at=stop, resume=number > 0)
    last = go(sides[len(stops) % 2], tmp_path / "run", "float64", resume=True)
    for framework in ENGINES:
        expected = whole(framework, "float64").arrays
        assert digests(
            {name: array.astype(np.float32) for name, array in last.arrays.items()}
        ) == digests({name: array.astype(np.float32) for name, array in expected.items()})


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_boundary_is_exact(precision: Precision, tmp_path: Path) -> None:
    """From torch to a file, to Flax, to a file, to torch: every bit of the state stays."""
    go("torch", tmp_path / "run", precision, stop_at=6)
    found = state(tmp_path / "run")
    for number, framework in enumerate(("flax", "torch")):
        engine = Recycled(framework)(
            CONFIG, initial_arrays(CONFIG), TRAIN, ComputeConfig(precision=precision), STEPS
        )
        engine.restore(found.arrays)
        arrays = engine.state() | {
            name: found.arrays[name] for name in (METRICS_ARRAY, RECORDS_ARRAY)
        }
        folder = save_checkpoint(
            tmp_path / str(number), Checkpoint(found.step, arrays, found.record)
        )
        again = load_checkpoint(folder, lambda record: shapes(record))
        assert set(again.arrays) == set(found.arrays)
        for name, array in again.arrays.items():
            assert (array.dtype, array.tobytes()) == (
                found.arrays[name].dtype,
                found.arrays[name].tobytes(),
            ), name


def shapes(record: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return checkpoint_shapes(CONFIG, record)


def state(run: Path) -> Checkpoint:
    return load_checkpoint(checkpoint_folders(run / CHECKPOINTS_FOLDER)[0], shapes)


CONTROLS = {
    "a weight": lambda arrays, record: arrays["param/head.weight"].__imul__(2),
    "a first moment": lambda arrays, record: arrays["adam/m/head.weight"].fill(0),
    "a second moment": lambda arrays, record: arrays["adam/v/head.weight"].fill(0),
    "the count": lambda arrays, record: arrays.update({"adam/count": np.array(0, np.int64)}),
    "metrics of the epoch": lambda arrays, record: arrays[METRICS_ARRAY].fill(0),
    "records of the epochs": lambda arrays, record: arrays[RECORDS_ARRAY].fill(0),
}


@pytest.mark.parametrize("framework", list(ENGINES))
@pytest.mark.parametrize("control", CONTROLS)
def test_no_item_of_the_state_can_be_missing(control: str, framework: str, tmp_path: Path) -> None:
    """The test of exactness fails where one item of the state is lost."""
    go(framework, tmp_path / "run", stop_at=6)
    found = state(tmp_path / "run")
    CONTROLS[control](found.arrays, found.record)
    save_checkpoint(tmp_path / "run" / CHECKPOINTS_FOLDER, found)
    last = go(framework, tmp_path / "run", resume=True)
    assert (digests(last.arrays), told(last)) != (
        digests(whole(framework).arrays),
        told(whole(framework)),
    )


def test_a_step_counted_wrong_is_another_run(tmp_path: Path) -> None:
    """Order of the data, dropout and schedule hang on the step."""
    go("torch", tmp_path / "run", stop_at=6)
    found = state(tmp_path / "run")
    save_checkpoint(tmp_path / "run" / CHECKPOINTS_FOLDER, dataclasses.replace(found, step=7))
    assert digests(go("torch", tmp_path / "run", resume=True).arrays) != digests(
        whole("torch").arrays
    )


def test_checkpoints_are_never_older_than_the_interval(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    class Dying:
        def __init__(self, engine: Engine) -> None:
            self.engine = engine

        def __getattr__(self, name: str) -> Any:
            return getattr(self.engine, name)

        def train_step(self, batch: Batch, step: int) -> Any:
            if step == 7:
                raise KilledError
            return self.engine.train_step(batch, step)

    with pytest.raises(KilledError):
        train(
            lambda *arguments: Dying(Recycled("torch")(*arguments)),
            CONFIG,
            data(),
            train=TRAIN,
            out=tmp_path / "run",
            checkpoint_every=3,
        )
    assert state(tmp_path / "run").step == 6
    last = go("torch", tmp_path / "run", resume=True)
    assert digests(last.arrays) == digests(whole("torch").arrays)
    assert len((tmp_path / "run" / METRICS_FILE).read_text().splitlines()) == STEPS + TRAIN.epochs


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path) -> None:
    go("torch", tmp_path / "run", stop_at=9, checkpoint_every=3)
    newest = checkpoint_folders(tmp_path / "run" / CHECKPOINTS_FOLDER)[0]
    (newest / "state.safetensors").write_bytes(b"")
    notes: list[str] = []

    class Noting:
        def steps(self, done: int, total: int, loss: float) -> None: ...
        def epoch(self, record: object) -> None: ...
        def note(self, text: str) -> None:
            notes.append(text)

    last = go("torch", tmp_path / "run", resume=True, reporter=Noting())
    assert digests(last.arrays) == digests(whole("torch").arrays)
    assert len(notes) == 1
    assert "passed over a checkpoint" in notes[0]
    assert "step-000000009" in notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": dataclasses.replace(TRAIN, learning_rate=1e-4)}, "train is"),
        ({"compute": ComputeConfig(precision="float64")}, "compute is"),
        ({"data": "other"}, "data_sha256 is"),
    ],
    ids=["train", "compute", "data"],
)
def test_a_checkpoint_of_another_run_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    go("torch", tmp_path / "run", stop_at=4)
    options: dict[str, Any] = {"train": TRAIN, "compute": ComputeConfig(), "data": data()} | changes
    if options["data"] == "other":
        options["data"] = dataclasses.replace(data(), train=data().train.take(np.arange(50)[::-1]))
    with pytest.raises(DamagedError, match=message):
        train(
            ENGINES["torch"],
            CONFIG,
            options["data"],
            train=options["train"],
            compute=options["compute"],
            out=tmp_path / "run",
            resume=True,
        )


def test_resume_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not the folder of a run"):
        RunDirectory(tmp_path).config()
    with pytest.raises(FileNotFoundError, match="is not the folder of a run"):
        go("torch", tmp_path, resume=True)


def test_a_run_that_ended_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    go("torch", tmp_path / "run", stop_at=1)
    shutil.rmtree(tmp_path / "run" / CHECKPOINTS_FOLDER)
    last = go("torch", tmp_path / "run", resume=True)
    assert digests(last.arrays) == digests(whole("torch").arrays)
    assert len((tmp_path / "run" / METRICS_FILE).read_text().splitlines()) == STEPS + TRAIN.epochs


def test_a_run_without_a_checkpoint_that_holds_is_refused(tmp_path: Path) -> None:
    go("torch", tmp_path / "run", stop_at=4)
    for path in checkpoint_folders(tmp_path / "run" / CHECKPOINTS_FOLDER):
        (path / "state.safetensors").write_bytes(b"")
    with pytest.raises(
        match=r"has no checkpoint to go on from \(.*step-000000004.*\); train again",
    ):
        go("torch", tmp_path / "run", resume=True)
