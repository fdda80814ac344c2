"""The training loop of every backend: epochs, order, metrics and checkpoints.

It runs a backend's engine. A batch is a function of (seed, epoch, step), so a run resumes from its
state and two integers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from pe_core.data import Batch, Dataset, batch_at, epoch_order, steps_per_epoch
from pe_core.errors import UserValueError
from pe_core.model.config import ComputeConfig, ModelConfig
from pe_core.model.initial import initial_arrays
from pe_core.storage.model_directory import SavedModel, save_model
from pe_core.training.clock import Clock
from pe_core.training.config import TrainConfig
from pe_core.training.data_checks import check_data
from pe_core.training.details import model_details
from pe_core.training.engine import Engine, EngineType
from pe_core.training.evaluation import (
    Evaluation,
    evaluate_checked,
    evaluate_in_full,
    means,
    step_not_finite,
)
from pe_core.training.interrupts import StopRequest, stop_requests
from pe_core.training.predictor import BATCH_SIZE, Predictor
from pe_core.training.reporter import Reporter, Silent
from pe_core.training.run_directory import (
    MODEL_FOLDER,
    EpochRecord,
    Progress,
    RunDirectory,
    data_digest,
)
from pe_core.training.schedule import make_schedule, new_epochs

# Metrics stay on the device until this many steps are waiting: reading one would wait for its step.
STEPS_PER_READ: Final = 64


@dataclass(frozen=True)
class TrainResult:
    """A run that is finished, or that stopped where it was asked to.

    Args:
        records: one per epoch that is done.
        saved: the model as it is now, with the names of its classes and the standardisation.
        steps: how many were taken, since the beginning of the run.
        seconds_per_step: without the first step, which compiles.
        engine_type: the engine that trained it.
        compute: how it was computed.
        test: of the test part, where there is one.
        finished: whether all epochs are done.
    """

    records: tuple[EpochRecord, ...]
    saved: SavedModel
    steps: int
    seconds_per_step: float
    engine_type: EngineType
    compute: ComputeConfig
    test: Evaluation | None = None
    finished: bool = True

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The weights now, under their canonical names."""
        return self.saved.arrays

    @property
    def test_loss(self) -> float | None:
        """Of the test part, where there is one."""
        return None if self.test is None else self.test.loss

    @property
    def test_accuracy(self) -> float | None:
        """Of the test part, where there is one."""
        return None if self.test is None else self.test.accuracy

    def predictor(self, *, batch_size: int = BATCH_SIZE) -> Predictor:
        """Return what classifies raw data with the weights as they are now."""
        return Predictor(self.engine_type, self.saved, compute=self.compute, batch_size=batch_size)


def train(
    engine_type: EngineType,
    config: ModelConfig,
    data: Dataset,
    *,
    train_config: TrainConfig | None = None,
    compute: ComputeConfig | None = None,
    reporter: Reporter | None = None,
    out: str | os.PathLike[str] | None = None,
    description: dict[str, Any] | None = None,
    checkpoint_every: int | None = None,
    stop_at: int | None = None,
    resume: bool = False,
    initial: Mapping[str, np.ndarray] | None = None,
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
            run ended before its first. The epochs may be others than before.
        initial: the weights that the run begins with, such as those of `start_from`; drawn from the
            seed when None.

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
    directory = None if out is None else RunDirectory(Path(out))
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
        before = progress.epochs or options.epochs
        for line in new_epochs(options, before, progress.step, total // options.epochs):
            reporter.note(line)
        directory.update(record | (description or {}))
    weights = initial_arrays(config, options.seed) if initial is None else initial
    engine = engine_type(config, weights, options, compute, total)
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
            if initial is not None and not resume:
                loop.save()  # a run that ends before its first step has its weights too
            finished = loop.run()
        finally:
            # Also where a number is not finite or the user interrupts: the steps taken so far are
            # kept.
            if directory is not None:
                directory.flush()
    tested = None
    if data.test is not None and finished:
        tested = evaluate_in_full(engine, data.test, batch_size)
    details = model_details(data) | {"seed": options.seed, "epochs": options.epochs}
    result = TrainResult(
        tuple(progress.records),
        SavedModel(config, engine.weights(), details),
        progress.step,
        loop.clock.seconds_per_step,
        engine_type,
        compute,
        tested,
        finished,
    )
    if directory is not None and finished:
        if tested is not None:
            directory.write_test(tested.to_json())
        save_model(directory.path / MODEL_FOLDER, result.saved)
    return result


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
        self.clock = Clock()

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
                    self.save()
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
            if self.request or self.clock.overdue:
                break
        rows = self.engine.read(waiting)
        hinted = self.clock.hint is not None
        self.clock.stop(len(rows))
        if self.clock.hint is not None and not hinted:
            self.reporter.note(self.clock.hint)
        for number, row in zip(numbers, rows, strict=False):
            if not np.isfinite(row).all():
                raise step_not_finite(
                    self.engine, self._batch(order, number), first_step + number, epoch, row
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
        loss, accuracy = None, None
        if self.data.validation is not None:
            when = f"after step {done - 1} (epoch {epoch})"
            loss, accuracy = evaluate_checked(
                self.engine, self.data.validation, self.batch_size, when
            )
        record = EpochRecord(
            epoch=epoch,
            step=done,
            **means(rows, "train"),
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
            self.directory.add("epoch", record.to_json())
            self.directory.flush()

    def _due(self) -> bool:
        done = self.progress.step == self.total
        return done or self.progress.step % (self.checkpoint_every or self.per_epoch) == 0

    def save(self) -> None:
        """Write a checkpoint."""
        if self.directory is not None:
            self.directory.save(self.engine.state(), self.progress, self.identity)
