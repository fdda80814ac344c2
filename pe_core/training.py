"""The loop, once for every framework: epochs, order, metrics, and the stop at a number that is not finite. It drives a wing's engine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from pe_core.config import ComputeConfig, Features, ModelConfig, TrainConfig
from pe_core.data import Batch, Dataset, Sequences, batch_at, batches, epoch_order, steps_per_epoch
from pe_core.engine import Engine, EngineType
from pe_core.initial import initial_arrays
from pe_core.inputs import require_tokens_fit
from pe_core.schedule import Schedule, make_schedule
from pe_core.weights import SavedModel, save_model, write_file

# Metrics stay on the device until this many steps are waiting: reading one would wait for its step.
STEPS_PER_READ: Final = 64
METRICS_FILE: Final = "metrics.jsonl"
CONFIG_FILE: Final = "config.json"
MODEL_FOLDER: Final = "model"


class NotFiniteError(ArithmeticError):
    """A loss or gradient norm is NaN or infinite; the weights are those before that step."""


@dataclass(frozen=True)
class EpochRecord:
    """What is known after an epoch; accuracies are shares of one, seconds are of its training steps."""

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    gradient_norm: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Args:
        records: one per epoch.
        arrays: the weights at the end, under their canonical names.
        steps: how many were taken.
        seconds_per_step: without the first step, which compiles.
        test_loss: of the test part, where there is one.
        test_accuracy: of the test part, where there is one.
    """

    records: tuple[EpochRecord, ...]
    arrays: dict[str, np.ndarray]
    steps: int
    seconds_per_step: float
    test_loss: float | None = None
    test_accuracy: float | None = None


class Reporter(Protocol):
    """What a run tells while it goes."""

    def steps(self, done: int, total: int, loss: float) -> None:
        """So many steps are done."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is done."""


class Silent:
    """Tells nothing."""

    def steps(self, done: int, total: int, loss: float) -> None:
        """Do nothing."""

    def epoch(self, record: EpochRecord) -> None:
        """Do nothing."""


@dataclass
class RunDirectory:
    """The files of a run: `config.json`, `metrics.jsonl` and `model/`.

    Args:
        path: a folder that does not exist yet or is empty.
    """

    path: Path
    _lines: list[str] = field(default_factory=list)

    def create(self, record: dict[str, Any]) -> None:
        """Make the folder and write what the run is.

        Raises:
            FileExistsError: the folder already holds something.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise FileExistsError(f"{self.path} already exists and is not empty; choose another --out or remove it")
        self.path.mkdir(parents=True, exist_ok=True)
        write_file(self.path / CONFIG_FILE, (json.dumps(record, indent=2) + "\n").encode())

    def add(self, kind: str, record: dict[str, Any]) -> None:
        """Keep a line for `metrics.jsonl`."""
        self._lines.append(json.dumps({"kind": kind} | record) + "\n")

    def flush(self) -> None:
        """Append the kept lines to `metrics.jsonl`."""
        with (self.path / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.writelines(self._lines)
        self._lines.clear()


def train(
    engine_type: EngineType,
    config: ModelConfig,
    data: Dataset,
    *,
    train: TrainConfig | None = None,
    compute: ComputeConfig | None = None,
    reporter: Reporter | None = None,
    out: Path | None = None,
    description: dict[str, Any] | None = None,
) -> TrainResult:
    """Train a classifier from its initial weights and return the finished run.

    Args:
        engine_type: the engine of a wing.
        config: what the model is.
        data: training, validation and perhaps test part.
        train: what the run is.
        compute: how it is computed.
        reporter: is told of steps and epochs.
        out: where the run's files go; None writes none.
        description: what else `config.json` of the run says, such as framework and versions.

    Raises:
        ValueError: data that do not fit the model.
        NotFiniteError: the loss or the gradient norm is NaN or infinite.
    """
    options, compute, reporter = train or TrainConfig(), compute or ComputeConfig(), reporter or Silent()
    check_data(config, data)
    per_epoch = steps_per_epoch(data.train.count, options.batch_size)
    total = per_epoch * options.epochs
    schedule = make_schedule(options, total)
    directory = None if out is None else RunDirectory(out)
    if directory is not None:
        record = {"model": config.to_json(), "train": options.to_json(), "compute": asdict(compute), "data": data.name}
        directory.create(record | (description or {}))
    engine = engine_type(config, initial_arrays(config, options.seed), options, compute, total)
    clock = _Clock()
    records = []
    for epoch in range(options.epochs):
        order = epoch_order(options.seed, epoch, data.train.count)
        rows = _train_epoch(engine, data.train, order, epoch, options, reporter, clock, total, directory, schedule)
        validation_loss, validation_accuracy = evaluate(engine, data.validation, options.batch_size)
        done = (epoch + 1) * per_epoch
        record_now = EpochRecord(
            epoch=epoch,
            step=done,
            **_means(rows, "train"),
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            gradient_norm=float(rows[:, 3].mean()),
            learning_rate=schedule(done - 1),
            seconds=clock.lap(),
        )
        records.append(record_now)
        reporter.epoch(record_now)
        if directory is not None:
            directory.add("epoch", asdict(record_now))
            directory.flush()
    test_loss, test_accuracy = (None, None) if data.test is None else evaluate(engine, data.test, options.batch_size)
    result = TrainResult(tuple(records), engine.weights(), total, clock.seconds_per_step, test_loss, test_accuracy)
    if directory is not None:
        save_model(directory.path / MODEL_FOLDER, SavedModel(config, result.arrays, model_details(data)))
    return result


def evaluate(engine: Engine, sequences: Sequences, batch_size: int) -> tuple[float, float]:
    """Return the mean loss and the accuracy over sequences with labels."""
    rows = engine.read([engine.evaluate(batch) for batch in batches(sequences, batch_size)])
    means = _means(rows, "evaluated")
    return means["evaluated_loss"], means["evaluated_accuracy"]


def predict(engine: Engine, sequences: Sequences, batch_size: int) -> np.ndarray:
    """Return the logits of all sequences, (count, num_classes)."""
    return np.concatenate([engine.predict(batch)[batch.weights > 0] for batch in batches(sequences, batch_size)])


def model_details(data: Dataset) -> dict[str, Any]:
    """Return what a model directory keeps of the data: the names of the classes and the standardisation."""
    standardisation = None if data.standardisation is None else data.standardisation.to_json()
    return {"class_names": list(data.class_names), "standardisation": standardisation}


def check_data(config: ModelConfig, data: Dataset) -> None:
    """Raise a ValueError unless the data fit the model: kind and number of features, tokens, classes, lengths of tables."""
    for part, sequences in data.parts.items():
        check_sequences(config, sequences, f"the {part} part of {data.name}")
    if len(data.class_names) != config.num_classes:
        raise ValueError(f"{data.name} has {len(data.class_names)} classes, but the model has num_classes={config.num_classes}")


def check_sequences(config: ModelConfig, sequences: Sequences, what: str) -> None:
    """Raise a ValueError unless the sequences fit the inputs of the model."""
    if isinstance(config.inputs, Features):
        if sequences.num_features != config.inputs.num_features:
            found = "tokens" if sequences.num_features is None else f"{sequences.num_features} features"
            raise ValueError(f"{what} has {found}, but the model takes num_features={config.inputs.num_features}")
        return
    if sequences.num_features is not None:
        raise ValueError(f"{what} has {sequences.num_features} features, but the model takes tokens")
    require_tokens_fit(config.inputs.vocab_size, int(sequences.inputs.min()), int(sequences.inputs.max()))


class _Clock:
    """Seconds of training steps, the first one apart."""

    def __init__(self) -> None:
        self._started = 0.0
        self._lap = 0.0
        self._total = 0.0
        self._steps = 0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self, steps: int, *, counted: bool) -> None:
        seconds = time.perf_counter() - self._started
        self._lap += seconds
        if counted:
            self._total, self._steps = self._total + seconds, self._steps + steps

    def lap(self) -> float:
        lap, self._lap = self._lap, 0.0
        return lap

    @property
    def seconds_per_step(self) -> float:
        return self._total / self._steps if self._steps else float("nan")


def _train_epoch(
    engine: Engine,
    sequences: Sequences,
    order: np.ndarray,
    epoch: int,
    options: TrainConfig,
    reporter: Reporter,
    clock: _Clock,
    total: int,
    directory: RunDirectory | None,
    schedule: Schedule,
) -> np.ndarray:
    """Take the steps of an epoch and return their metrics, a row each."""
    per_epoch = steps_per_epoch(len(order), options.batch_size)
    first_step = epoch * per_epoch

    def batch(number: int) -> Batch:
        return batch_at(sequences, order, number, options.batch_size)

    rows: list[np.ndarray] = []
    for numbers in _groups(per_epoch, alone=1 if epoch == 0 else 0):
        clock.start()
        read = engine.read([engine.train_step(batch(number), first_step + number) for number in numbers])
        clock.stop(len(numbers), counted=first_step + numbers.start > 0)
        for number, row in zip(numbers, read, strict=True):
            if not np.isfinite(row).all():
                raise NotFiniteError(_not_finite(engine, batch(number), first_step + number, epoch, row))
            if directory is not None:
                step = first_step + number
                metrics = {"step": step, "loss": row[0], "accuracy": row[1] / row[2], "gradient_norm": row[3]}
                directory.add("step", metrics | {"learning_rate": schedule(step)})
        rows.append(read)
        reporter.steps(first_step + numbers.stop, total, float(read[-1, 0]))
    return np.concatenate(rows)


def _groups(count: int, alone: int) -> Iterator[range]:
    """Split 0 .. count - 1 into groups that are read together; the first `alone` steps come one by one."""
    yield from (range(number, number + 1) for number in range(alone))
    for start in range(alone, count, STEPS_PER_READ):
        yield range(start, min(start + STEPS_PER_READ, count))


def _means(rows: np.ndarray, prefix: str) -> dict[str, Any]:
    loss, correct, weight = rows[:, 0], rows[:, 1], rows[:, 2]
    return {f"{prefix}_loss": float((loss * weight).sum() / weight.sum()), f"{prefix}_accuracy": float(correct.sum() / weight.sum())}


def _not_finite(engine: Engine, batch: Batch, step: int, epoch: int, row: np.ndarray) -> str:
    """Say which step and which tensor; the engine still has the weights from before the step."""
    bad = _first_bad(engine, batch, step)
    return (
        f"step {step} (epoch {epoch}): loss {row[0]:g}, gradient norm {row[3]:g}; the first tensor that is not finite is {bad}; "
        "the weights are those before this step: lower the learning rate, clip the gradients, or look at the inputs of this batch"
    )


def _first_bad(engine: Engine, batch: Batch, step: int) -> str:
    for name, array in engine.taps(batch, step).items():
        if not np.isfinite(array).all():
            return name
    for name, array in engine.gradients(batch, step)[1].items():
        if not np.isfinite(array).all():
            return f"the gradient of {name}"
    return "the norm of all gradients together"
