"""The training loop of every backend: epochs, order, metrics, checkpoints, and the stop at a number
that is not finite.

It runs a backend's engine. A batch is a function of (seed, epoch, step), so a run resumes from its
state and two integers.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from pe_core.data import Batch, Dataset, Sequences, batch_at, batches, epoch_order, steps_per_epoch
from pe_core.errors import UserValueError
from pe_core.model.config import ComputeConfig, ModelConfig
from pe_core.model.initial import initial_arrays
from pe_core.storage.model_directory import SavedModel, save_model
from pe_core.training.config import TrainConfig
from pe_core.training.data_checks import check_data
from pe_core.training.details import model_details
from pe_core.training.engine import Engine, EngineType, ForwardEngine
from pe_core.training.interrupts import StopRequest, stop_requests
from pe_core.training.reporter import Reporter, Silent
from pe_core.training.run_directory import (
    MODEL_FOLDER,
    EpochRecord,
    Progress,
    RunDirectory,
    data_digest,
)
from pe_core.training.schedule import make_schedule

# Metrics stay on the device until this many steps are waiting: reading one would wait for its step.
STEPS_PER_READ: Final = 64


class NotFiniteError(ArithmeticError):
    """A loss or gradient norm is NaN or infinite; in training, the weights are those before that
    step.
    """


@dataclass(frozen=True)
class TrainResult:
    """A run that is finished, or that stopped where it was asked to.

    Args:
        records: one per epoch that is done.
        arrays: the weights now, under their canonical names.
        steps: how many were taken, since the beginning of the run.
        seconds_per_step: without the first step, which compiles.
        test_loss: of the test part, where there is one.
        test_accuracy: of the test part, where there is one.
        finished: whether all epochs are done.
    """

    records: tuple[EpochRecord, ...]
    arrays: dict[str, np.ndarray]
    steps: int
    seconds_per_step: float
    test_loss: float | None = None
    test_accuracy: float | None = None
    finished: bool = True


def train(
    engine_type: EngineType,
    config: ModelConfig,
    data: Dataset,
    *,
    train_config: TrainConfig | None = None,
    compute: ComputeConfig | None = None,
    reporter: Reporter | None = None,
    out: Path | None = None,
    description: dict[str, Any] | None = None,
    checkpoint_every: int | None = None,
    stop_at: int | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train a classifier, from its initial weights or from where a run stopped, and return the run.

    Args:
        engine_type: the engine of a backend.
        config: what the model is.
        data: training, validation and perhaps test part.
        train_config: what the run is.
        compute: how it is computed.
        reporter: prints steps and epochs.
        out: where the run's files go; None writes none.
        description: what else `config.json` of the run says, such as framework and versions.
        checkpoint_every: steps between checkpoints; at the end of every epoch when None.
        stop_at: stop with a checkpoint when so many steps are taken since the beginning of the run.
        resume: go on from the newest checkpoint in `out` that holds; from the beginning where the
            run ended before its first.

    Raises:
        ValueError: data that do not fit the model, or a checkpoint of another run.
        NotFiniteError: the loss or the gradient norm is NaN or infinite.
        KeyboardInterrupt: SIGINT or SIGTERM; the step is finished and a checkpoint written first,
        unless there is a second signal.
    """
    options, compute, reporter = (
        train_config or TrainConfig(),
        compute or ComputeConfig(),
        reporter or Silent(),
    )
    check_data(config, data)
    # A batch larger than the training part would hold filler rows alone beyond it.
    batch_size = min(options.batch_size, data.train.count)
    total = steps_per_epoch(data.train.count, batch_size) * options.epochs
    make_schedule(options, total)
    record = {
        "model": config.to_json(),
        "train": options.to_json(),
        "compute": compute.to_json(),
        "data": data.name,
    }
    record["data_sha256"] = data_digest(data)
    directory = None if out is None else RunDirectory(out)
    if directory is not None and not resume:
        directory.create(record | (description or {}))
    progress, state = Progress(), None
    if resume:
        # Before the engine: a config that was edited is compared with the checkpoint before memory
        # of its sizes is taken.
        if directory is None:
            raise UserValueError("resume needs the folder of the run; pass out")
        state, progress, passed_over = directory.restore(config, record)
        for reason in passed_over:
            reporter.note(f"passed over a checkpoint: {reason}")
        if state is None:
            reporter.note("the run ended before its first checkpoint: it begins again")
    engine = engine_type(config, initial_arrays(config, options.seed), options, compute, total)
    if state is not None:
        engine.restore(state)
    with stop_requests() as request:
        loop = _Loop(
            engine,
            data,
            options,
            batch_size,
            reporter,
            directory,
            progress,
            record,
            checkpoint_every,
            stop_at,
            request,
        )
        try:
            finished = loop.run()
        finally:
            # Also where a number is not finite or the user interrupts: the steps taken so far are
            # kept.
            if directory is not None:
                directory.flush()
    test_loss, test_accuracy = None, None
    if data.test is not None and finished:
        test_loss, test_accuracy = _checked(engine, data.test, batch_size, "the test part")
    seconds = loop.clock.seconds_per_step
    result = TrainResult(
        tuple(progress.records),
        engine.weights(),
        progress.step,
        seconds,
        test_loss,
        test_accuracy,
        finished,
    )
    if directory is not None and finished:
        save_model(
            directory.path / MODEL_FOLDER,
            SavedModel(config, result.arrays, model_details(data) | {"seed": options.seed}),
        )
    return result


def evaluate(engine: Engine, sequences: Sequences, batch_size: int) -> tuple[float, float]:
    """Return the mean loss and the accuracy over sequences with labels."""
    rows = engine.read([engine.evaluate(batch) for batch in batches(sequences, batch_size)])
    means = _means(rows, "evaluated")
    return means["evaluated_loss"], means["evaluated_accuracy"]


def predict(engine: ForwardEngine, sequences: Sequences, batch_size: int) -> np.ndarray:
    """Return the logits of all sequences, (count, num_classes)."""
    return np.concatenate(
        [engine.predict(batch)[batch.weights > 0] for batch in batches(sequences, batch_size)]
    )


class _Clock:
    """Seconds of training steps, the first one of the process apart."""

    def __init__(self) -> None:
        self._started = 0.0
        self._lap = 0.0
        self._total = 0.0
        self._steps = 0
        self.warm = False

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self, steps: int) -> None:
        seconds = time.perf_counter() - self._started
        self._lap += seconds
        if self.warm:
            self._total, self._steps = self._total + seconds, self._steps + steps
        self.warm = True

    def lap(self) -> float:
        lap, self._lap = self._lap, 0.0
        return lap

    @property
    def seconds_per_step(self) -> float:
        return self._total / self._steps if self._steps else float("nan")


@dataclass
class _Loop:
    """The steps of a run, from where its progress is."""

    engine: Engine
    data: Dataset
    options: TrainConfig
    batch_size: int
    reporter: Reporter
    directory: RunDirectory | None
    progress: Progress
    identity: dict[str, Any]
    checkpoint_every: int | None
    stop_at: int | None
    request: StopRequest

    def __post_init__(self) -> None:
        self.per_epoch = steps_per_epoch(self.data.train.count, self.batch_size)
        self.total = self.per_epoch * self.options.epochs
        self.schedule = make_schedule(self.options, self.total)
        self.clock = _Clock()

    def run(self) -> bool:
        """Take steps until all are taken, or until the run shall stop; return whether all are."""
        while self.progress.step < self.total:
            epoch, taken = divmod(self.progress.step, self.per_epoch)
            order = epoch_order(self.options.seed, epoch, self.data.train.count)
            while taken < self.per_epoch:
                self._take(order, epoch, taken)
                taken = self.progress.step - epoch * self.per_epoch
                if taken == self.per_epoch:
                    self._end_epoch(epoch)
                stop = self.progress.step == self.stop_at
                if self.request or stop or self._due():
                    self._save()
                self.request.leave()
                if stop:
                    return self.progress.step == self.total
        return True

    def _take(self, order: np.ndarray, epoch: int, taken: int) -> None:
        """Take the steps that are read together."""
        first_step, step = epoch * self.per_epoch, self.progress.step
        numbers = range(taken, self._until(step, first_step + self.per_epoch) - first_step)
        self.clock.start()
        waiting = []
        for number in numbers:
            waiting.append(self.engine.train_step(self._batch(order, number), first_step + number))
            if self.request:
                break
        rows = self.engine.read(waiting)
        self.clock.stop(len(rows))
        for number, row in zip(numbers, rows, strict=False):
            if not np.isfinite(row).all():
                raise NotFiniteError(
                    _not_finite(
                        self.engine, self._batch(order, number), first_step + number, epoch, row
                    )
                )
            if self.directory is not None:
                metrics = {
                    "step": first_step + number,
                    "loss": row[0],
                    "accuracy": row[1] / row[2],
                    "gradient_norm": row[3],
                }
                self.directory.add(
                    "step", metrics | {"learning_rate": self.schedule(first_step + number)}
                )
        self.progress.step += len(rows)
        self.progress.rows = np.concatenate([self.progress.rows, rows])
        self.reporter.steps(self.progress.step, self.total, float(rows[-1, 0]))

    def _until(self, step: int, epoch_end: int) -> int:
        """The step before which metrics are read next; the first step of a process stands alone,
        for it compiles.
        """
        stops = [epoch_end, step + (STEPS_PER_READ if self.clock.warm else 1)]
        if self.checkpoint_every is not None:
            stops.append(step - step % self.checkpoint_every + self.checkpoint_every)
        if self.stop_at is not None and self.stop_at > step:
            stops.append(self.stop_at)
        return min(stops)

    def _batch(self, order: np.ndarray, number: int) -> Batch:
        return batch_at(self.data.train, order, number, self.batch_size)

    def _end_epoch(self, epoch: int) -> None:
        done, rows = self.progress.step, self.progress.rows
        loss, accuracy = _checked(
            self.engine,
            self.data.validation,
            self.batch_size,
            f"after step {done - 1} (epoch {epoch})",
        )
        record = EpochRecord(
            epoch=epoch,
            step=done,
            **_means(rows, "train"),
            validation_loss=loss,
            validation_accuracy=accuracy,
            gradient_norm=float(rows[:, 3].mean()),
            learning_rate=self.schedule(done - 1),
            seconds=self.clock.lap(),
        )
        self.progress.records.append(record)
        self.progress.rows = rows[:0]
        self.reporter.epoch(record)
        if self.directory is not None:
            self.directory.add("epoch", asdict(record))
            self.directory.flush()

    def _due(self) -> bool:
        return self.progress.step % (self.checkpoint_every or self.per_epoch) == 0

    def _save(self) -> None:
        if self.directory is not None:
            self.directory.save(self.engine.state(), self.progress, self.identity)


def _means(rows: np.ndarray, prefix: str) -> dict[str, Any]:
    loss, correct, weight = rows[:, 0], rows[:, 1], rows[:, 2]
    return {
        f"{prefix}_loss": float((loss * weight).sum() / weight.sum()),
        f"{prefix}_accuracy": float(correct.sum() / weight.sum()),
    }


def _checked(
    engine: Engine, sequences: Sequences, batch_size: int, when: str
) -> tuple[float, float]:
    """Return the loss and the accuracy; raise a NotFiniteError that names the first bad tensor
    where the loss is not finite.
    """
    loss, accuracy = evaluate(engine, sequences, batch_size)
    if not np.isfinite(loss):
        found = (_first_bad(engine, batch, None) for batch in batches(sequences, batch_size))
        bad = next((name for name in found if name is not None), "the loss")
        raise NotFiniteError(
            f"{when}: loss {loss:g} in evaluation; the first tensor that is not finite is {bad}; "
            "lower the learning rate"
        )
    return loss, accuracy


def _not_finite(engine: Engine, batch: Batch, step: int, epoch: int, row: np.ndarray) -> str:
    """Say which step and which tensor; the engine still has the weights from before the step."""
    bad = _first_bad(engine, batch, step) or _first_bad_gradient(engine, batch, step)
    return (
        f"step {step} (epoch {epoch}): loss {row[0]:g}, gradient norm {row[3]:g}; the first "
        f"tensor that is not finite is {bad}; "
        "the weights are those before this step: lower the learning rate, clip the gradients, or "
        "look at the inputs of this batch"
    )


def _first_bad(engine: Engine, batch: Batch, step: int | None) -> str | None:
    return next(
        (name for name, array in engine.taps(batch, step).items() if not np.isfinite(array).all()),
        None,
    )


def _first_bad_gradient(engine: Engine, batch: Batch, step: int) -> str:
    loss, gradients = engine.gradients(batch, step)
    if not np.isfinite(loss):
        return "the loss"
    bad = next((name for name, array in gradients.items() if not np.isfinite(array).all()), None)
    return "the norm of all gradients together" if bad is None else f"the gradient of {bad}"
