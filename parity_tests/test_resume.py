"""A run that stops and goes on, in the same framework or in the other, is the run that never
stopped.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.cases import ENGINES
from parity_tests.refusals import refused
from parity_tests.saved_folders import digests
from pe_core import ComputeConfig, Features, LearnedTable, ModelConfig, TrainConfig
from pe_core.data import Dataset, dummy
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
from pe_core.training.schedule import make_schedule, new_epochs

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
    assert whole.validation is not None
    return dataclasses.replace(
        whole,
        train=whole.train.take(np.arange(50)),
        validation=whole.validation.take(np.arange(20)),
    )


@cache
def compiled(
    framework: str, precision: Precision, options: TrainConfig
) -> tuple[Engine, dict[str, np.ndarray]]:
    """Return an engine and its first state: this file would compile for minutes otherwise."""
    arrays, compute = initial_arrays(CONFIG, TRAIN.seed), ComputeConfig(precision=precision)
    engine = ENGINES[framework](CONFIG, arrays, options, compute, STEPS)
    return engine, engine.state()


def fresh(framework: str, precision: Precision = "float32", options: TrainConfig = TRAIN) -> Engine:
    """Return an engine that has taken no step."""
    engine, first = compiled(framework, precision, options)
    engine.restore(first)
    return engine


def go(
    framework: str, out: Path | None = None, precision: Precision = "float32", **options: Any
) -> TrainResult:
    compute = ComputeConfig(precision=precision)
    options |= {"compute": compute, "out": out} | ({"train_config": TRAIN} | options)
    # The number of epochs makes no other engine: a constant rate does not know the end.
    known = dataclasses.replace(options["train_config"], epochs=TRAIN.epochs)
    kind = partial(fresh, framework, precision, known)
    return train(lambda *_, **__: kind(), CONFIG, data(), **options)


@cache
def whole(framework: str, precision: Precision = "float32") -> TrainResult:
    """The run that never stops."""
    return go(framework, precision=precision)


def ending(result: TrainResult) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Return the weights and what the run reports of its epochs, but for the time they took."""
    records = [dataclasses.asdict(record) | {"seconds": 0.0} for record in result.records]
    return digests(result.arrays), records


def float32(result: TrainResult) -> dict[str, str]:
    """Return the weights, rounded."""
    return digests({name: array.astype(np.float32) for name, array in result.arrays.items()})


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
    assert ending(last) == ending(whole(framework))
    assert len((tmp_path / "run" / METRICS_FILE).read_text().splitlines()) == STEPS + TRAIN.epochs


@pytest.mark.parametrize("stops", [(1,), (2,), (4,), (6,), tuple(range(1, 12))], ids=str)
@pytest.mark.parametrize("first", list(ENGINES))
def test_a_run_resumed_in_the_other_framework_ends_on_the_same_bits(
    first: str, stops: tuple[int, ...], tmp_path: Path
) -> None:
    sides = [first, *(name for name in ENGINES if name != first)]
    for number, stop in enumerate(stops):
        go(sides[number % 2], tmp_path / "run", "float64", stop_at=stop, resume=number > 0)
    last = go(sides[len(stops) % 2], tmp_path / "run", "float64", resume=True)
    for framework in ENGINES:
        assert float32(last) == float32(whole(framework, "float64"))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_boundary_is_exact(precision: Precision, tmp_path: Path) -> None:
    """From torch to a file, to Flax, to a file, to torch: every bit of the state stays."""
    go("torch", tmp_path / "run", precision, stop_at=6)
    found = state(tmp_path / "run")
    for number, framework in enumerate(("flax", "torch")):
        engine = fresh(framework, precision)
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


CONTROLS: dict[str, Callable[[Checkpoint], object]] = {
    "a weight": lambda found: found.arrays["param/head.weight"].__imul__(2),
    "a first moment": lambda found: found.arrays["adam/m/head.weight"].fill(0),
    "a second moment": lambda found: found.arrays["adam/v/head.weight"].fill(0),
    "the count": lambda found: found.arrays["adam/count"].fill(0),
    "metrics of the epoch": lambda found: found.arrays[METRICS_ARRAY].fill(0),
    "records of the epochs": lambda found: found.arrays[RECORDS_ARRAY].fill(0),
}


@pytest.mark.parametrize("framework", list(ENGINES))
@pytest.mark.parametrize("control", CONTROLS)
def test_no_item_of_the_state_can_be_missing(control: str, framework: str, tmp_path: Path) -> None:
    """The test of exactness fails if one item of the state is lost."""
    go(framework, tmp_path / "run", stop_at=6)
    found = state(tmp_path / "run")
    CONTROLS[control](found)
    save_checkpoint(tmp_path / "run" / CHECKPOINTS_FOLDER, found)
    last = go(framework, tmp_path / "run", resume=True)
    assert ending(last) != ending(whole(framework))


def test_a_step_counted_wrong_is_another_run(tmp_path: Path) -> None:
    """Order of the data, dropout and schedule depend on the step."""
    go("torch", tmp_path / "run", stop_at=6)
    found = dataclasses.replace(state(tmp_path / "run"), step=7)
    save_checkpoint(tmp_path / "run" / CHECKPOINTS_FOLDER, found)
    last = go("torch", tmp_path / "run", resume=True)
    assert digests(last.arrays) != digests(whole("torch").arrays)


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
    words = r"has no checkpoint to go on from \(.*step-000000004.*\); train again"
    with pytest.raises(DamagedError, match=words):
        go("torch", tmp_path / "run", resume=True)


CONSTANT = dataclasses.replace(TRAIN, schedule="constant", warmup_steps=0)


@pytest.mark.parametrize("framework", list(ENGINES))
@pytest.mark.parametrize("stop", [2, 4, None])
def test_a_run_with_more_epochs_is_the_run_that_had_them(
    framework: str, stop: int | None, tmp_path: Path
) -> None:
    """Stopped within its only epoch, at its end, or finished; its next resume has them too."""
    one = dataclasses.replace(CONSTANT, epochs=1)
    go(framework, tmp_path / "run", train_config=one, stop_at=stop)
    more = partial(go, framework, tmp_path / "run", train_config=CONSTANT, resume=True)
    more(stop_at=6)
    assert RunDirectory(tmp_path / "run").config()["train"]["epochs"] == CONSTANT.epochs
    last = more()
    assert ending(last) == ending(go(framework, train_config=CONSTANT))


def test_other_epochs_under_a_schedule_are_told(tmp_path: Path) -> None:
    longer = dataclasses.replace(TRAIN, epochs=4)
    (note,) = new_epochs(longer, TRAIN.epochs, STEPS, PER_EPOCH)
    assert note.startswith("a new schedule: warmup_cosine now ends at step 16, not 12; the ")
    rate = f"{make_schedule(longer, 16)(STEPS):.3g}"
    assert f"goes on from {rate}, not 0, so the run is not the one" in note
    assert new_epochs(dataclasses.replace(CONSTANT, epochs=4), 3, STEPS, PER_EPOCH) == []
    words = "epochs=2 ends at step 8, and the run has taken 9; give at least 3"
    with refused(ValueError, words):
        new_epochs(dataclasses.replace(CONSTANT, epochs=2), 3, 9, PER_EPOCH)
