"""The loop, once for every framework: epochs, order, metrics, and the stop at a number that is not finite. It drives a wing's engine."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from pe_core.config import ComputeConfig, Features, ModelConfig, TrainConfig
from pe_core.data import Batch, Dataset, Sequences, batch_at, batches, epoch_order, steps_per_epoch
from pe_core.encodings import LearnedTable
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
    """A loss or gradient norm is NaN or infinite; in training, the weights are those before that step."""


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

    def require_free(self) -> None:
        """Raise a FileExistsError where the folder already holds something."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise FileExistsError(f"{self.path} already exists and is not empty; choose another --out or remove it")

    def create(self, record: dict[str, Any]) -> None:
        """Make the folder and write what the run is.

        Raises:
            FileExistsError: the folder already holds something.
        """
        self.require_free()
        self.path.mkdir(parents=True, exist_ok=True)
        write_file(self.path / CONFIG_FILE, (json.dumps(record, indent=2) + "\n").encode())

    def add(self, kind: str, record: dict[str, Any]) -> None:
        """Keep a line for `metrics.jsonl`."""
        self._lines.append(json.dumps({"kind": kind} | record, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Append the kept lines to `metrics.jsonl`, in one write: an interrupt leaves no half line."""
        lines, self._lines = self._lines, []
        if lines:
            with (self.path / METRICS_FILE).open("ab", buffering=0) as file:
                file.write("".join(lines).encode())


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
        KeyboardInterrupt: the user interrupted; the step is finished first, unless there is a second interrupt.
    """
    options, compute, reporter = train or TrainConfig(), compute or ComputeConfig(), reporter or Silent()
    check_data(config, data)
    # A batch larger than the training part would hold filler rows alone beyond it.
    batch_size = min(options.batch_size, data.train.count)
    per_epoch = steps_per_epoch(data.train.count, batch_size)
    total = per_epoch * options.epochs
    schedule = make_schedule(options, total)
    directory = None if out is None else RunDirectory(out)
    if directory is not None:
        record = {"model": config.to_json(), "train": options.to_json(), "compute": asdict(compute), "data": data.name}
        directory.create(record | (description or {}))
    engine = engine_type(config, initial_arrays(config, options.seed), options, compute, total)
    clock = _Clock()
    records = []
    try:
        with _interrupts() as interrupted:
            for epoch in range(options.epochs):
                order = epoch_order(options.seed, epoch, data.train.count)
                rows = _train_epoch(engine, data.train, order, batch_size, epoch, reporter, clock, total, directory, schedule, interrupted)
                done = (epoch + 1) * per_epoch
                validation_loss, validation_accuracy = _checked(
                    engine, data.validation, batch_size, f"after step {done - 1} (epoch {epoch})"
                )
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
    finally:
        # Also where a number is not finite or the user interrupts: the steps taken so far are kept.
        if directory is not None:
            directory.flush()
    test_loss, test_accuracy = None, None
    if data.test is not None:
        test_loss, test_accuracy = _checked(engine, data.test, batch_size, "the test part")
    result = TrainResult(tuple(records), engine.weights(), total, clock.seconds_per_step, test_loss, test_accuracy)
    if directory is not None:
        save_model(directory.path / MODEL_FOLDER, SavedModel(config, result.arrays, model_details(data) | {"seed": options.seed}))
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
    """Raise a ValueError unless the sequences fit the inputs and the tables of positions of the model."""
    if isinstance(config.inputs, Features):
        if sequences.num_features != config.inputs.num_features:
            found = "tokens" if sequences.num_features is None else f"{sequences.num_features} features"
            raise ValueError(f"{what} has {found}, but the model takes num_features={config.inputs.num_features}; give data with as many")
    elif sequences.num_features is not None:
        raise ValueError(f"{what} has {sequences.num_features} features, but the model takes tokens; give integers (count, length)")
    else:
        try:
            require_tokens_fit(config.inputs.vocab_size, int(sequences.inputs.min()), int(sequences.inputs.max()))
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
    longest = int(sequences.lengths.max())
    for encoding in config.encodings:
        if isinstance(encoding, LearnedTable) and longest > encoding.max_length:
            raise ValueError(
                f"{what} has a sequence of {longest} steps, but the learned table has max_length={encoding.max_length}; "
                f"train with the encoding learned:max_length={longest} or sinusoidal, or cut the sequences"
            )


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Turn the first interrupt into an event, so that no step is cut in two; a second one raises at once."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupted
        return

    def note(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupted.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupted.is_set():
        raise KeyboardInterrupt


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
    batch_size: int,
    epoch: int,
    reporter: Reporter,
    clock: _Clock,
    total: int,
    directory: RunDirectory | None,
    schedule: Schedule,
    interrupted: threading.Event,
) -> np.ndarray:
    """Take the steps of an epoch and return their metrics, a row each."""
    per_epoch = steps_per_epoch(len(order), batch_size)
    first_step = epoch * per_epoch

    def batch(number: int) -> Batch:
        return batch_at(sequences, order, number, batch_size)

    rows: list[np.ndarray] = []
    for numbers in _groups(per_epoch, alone=1 if epoch == 0 else 0):
        clock.start()
        waiting = []
        for number in numbers:
            waiting.append(engine.train_step(batch(number), first_step + number))
            if interrupted.is_set():
                break
        read = engine.read(waiting)
        clock.stop(len(read), counted=first_step + numbers.start > 0)
        for number, row in zip(numbers, read, strict=False):
            if not np.isfinite(row).all():
                raise NotFiniteError(_not_finite(engine, batch(number), first_step + number, epoch, row))
            if directory is not None:
                step = first_step + number
                metrics = {"step": step, "loss": row[0], "accuracy": row[1] / row[2], "gradient_norm": row[3]}
                directory.add("step", metrics | {"learning_rate": schedule(step)})
        if interrupted.is_set():
            raise KeyboardInterrupt
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


def _checked(engine: Engine, sequences: Sequences, batch_size: int, when: str) -> tuple[float, float]:
    """Return the loss and the accuracy; raise a NotFiniteError that names the first bad tensor where the loss is not finite."""
    loss, accuracy = evaluate(engine, sequences, batch_size)
    if not np.isfinite(loss):
        found = (_first_bad(engine, batch, None) for batch in batches(sequences, batch_size))
        bad = next((name for name in found if name is not None), "the loss")
        raise NotFiniteError(f"{when}: loss {loss:g} in evaluation; the first tensor that is not finite is {bad}; lower the learning rate")
    return loss, accuracy


def _not_finite(engine: Engine, batch: Batch, step: int, epoch: int, row: np.ndarray) -> str:
    """Say which step and which tensor; the engine still has the weights from before the step."""
    bad = _first_bad(engine, batch, step) or _first_bad_gradient(engine, batch, step)
    return (
        f"step {step} (epoch {epoch}): loss {row[0]:g}, gradient norm {row[3]:g}; the first tensor that is not finite is {bad}; "
        "the weights are those before this step: lower the learning rate, clip the gradients, or look at the inputs of this batch"
    )


def _first_bad(engine: Engine, batch: Batch, step: int | None) -> str | None:
    return next((name for name, array in engine.taps(batch, step).items() if not np.isfinite(array).all()), None)


def _first_bad_gradient(engine: Engine, batch: Batch, step: int) -> str:
    loss, gradients = engine.gradients(batch, step)
    if not np.isfinite(loss):
        return "the loss"
    bad = next((name for name, array in gradients.items() if not np.isfinite(array).all()), None)
    return "the norm of all gradients together" if bad is None else f"the gradient of {bad}"
