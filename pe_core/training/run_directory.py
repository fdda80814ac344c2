"""The files of a run: `config.json`, `metrics.jsonl`, `checkpoints/`, `model/` and `test.json`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from pe_core.data import Dataset
from pe_core.errors import (
    UserFileExistsError,
    UserFileNotFoundError,
    UserValueError,
    require_integer,
)
from pe_core.model.config import ModelConfig
from pe_core.model.parameters import parameters
from pe_core.storage.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from pe_core.storage.files import DamagedError, naming, write_file
from pe_core.storage.model_directory import METRICS_FILE as METRICS_FILE
from pe_core.storage.model_directory import MODEL_FOLDER as MODEL_FOLDER
from pe_core.storage.strict_json import read_object, to_json
from pe_core.training.config import TrainConfig

CONFIG_FILE: Final = "config.json"
CHECKPOINTS_FOLDER: Final = "checkpoints"
TEST_FILE: Final = "test.json"
METRICS_ARRAY: Final = "epoch/metrics"
RECORDS_ARRAY: Final = "epoch/records"
# What stands in a checkpoint for a figure that there is not: its numbers must be finite.
ABSENT: Final = -1.0
OTHER_DATA: Final = (
    ": the data have changed, or it began with a version that did not divide files by class"
)
# Rows that an array of a checkpoint may have: a bound on what is read.
MAX_ROWS: Final = 1 << 40


@dataclass(frozen=True)
class EpochRecord:
    """What is known after an epoch; accuracies are shares of one, seconds are of its training
    steps. Both validation fields are None where nothing is held out.
    """

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    gradient_norm: float
    learning_rate: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the record as a dictionary for JSON, without what there is not."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def row(self) -> list[float]:
        """Return the record as numbers for a checkpoint."""
        return [ABSENT if value is None else value for value in astuple(self)]

    @classmethod
    def from_row(cls, row: list[float]) -> EpochRecord:
        """Return the record of such numbers."""
        epoch, step, *rest = [None if value == ABSENT else value for value in row]
        return cls(int(epoch or 0), int(step or 0), *rest)  # type: ignore[arg-type]


@dataclass
class Progress:
    """How far a run has come: all that goes on with it beside the engine's state.

    Args:
        step: steps taken.
        records: of the epochs that are done.
        rows: metrics of the steps taken in this epoch, in the columns of
        `pe_core.training.engine.METRICS`.
        epochs: of the run, when its state was written; None where there is none.
    """

    step: int = 0
    records: list[EpochRecord] = field(default_factory=list)
    rows: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    epochs: int | None = None


@dataclass
class RunDirectory:
    """The files of a run.

    Args:
        path: the folder.
    """

    path: Path
    _lines: list[str] = field(default_factory=list)
    # Length and SHA-256 of `metrics.jsonl` as far as it is written: a checkpoint keeps both, and a
    # resumed run cuts the file there.
    _bytes: int = 0
    _sha: Any = field(default_factory=hashlib.sha256)

    def require_free(self) -> None:
        """Raise a FileExistsError if the folder already holds something."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserFileExistsError(
                f"{self.path} already exists and is not empty; choose another --out or remove it"
            )

    def create(self, record: dict[str, Any]) -> None:
        """Make the folder and write its `config.json`.

        Args:
            record: what the run is, for JSON.

        Raises:
            FileExistsError: the folder already holds something.
        """
        self.require_free()
        self.path.mkdir(parents=True, exist_ok=True)
        write_file(self.path / CONFIG_FILE, to_json(record))

    def update(self, changes: dict[str, Any]) -> None:
        """Write fields of `config.json` anew, where they are others: a run that goes on with more
        epochs, or with data that have moved, goes on so the next time too.
        """
        before = self.config()
        if before | changes != before:
            write_file(self.path / CONFIG_FILE, to_json(before | changes))

    def config(self) -> dict[str, Any]:
        """Return what `config.json` holds; its values are for the caller to check.

        It may have been edited: a checkpoint says what it needs of the run.

        Raises:
            FileNotFoundError: there is no run.
            DamagedError: the file is not strict JSON.
        """
        if not (self.path / CONFIG_FILE).is_file():
            raise UserFileNotFoundError(
                f"{self.path} is not the folder of a run, {CONFIG_FILE} is missing; pass one "
                "that `pe train` wrote"
            )
        record = read_object(self.path / CONFIG_FILE)
        # Version 0.1.0 wrote digests of the fields.
        record.pop("sha256", None)
        return record

    def add(self, kind: str, record: dict[str, Any]) -> None:
        """Keep a line for `metrics.jsonl`."""
        self._lines.append(json.dumps({"kind": kind} | record, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Append the kept lines to `metrics.jsonl` in one write, so that an interrupt leaves no
        half line.
        """
        content, self._lines = "".join(self._lines).encode(), []
        if content:
            path = self.path / METRICS_FILE
            with naming(path), path.open("ab") as file:
                file.write(content)
            self._bytes += len(content)
            self._sha.update(content)

    def write_test(self, record: dict[str, Any]) -> None:
        """Write the result of the test part as `test.json`."""
        write_file(self.path / TEST_FILE, to_json(record))

    def save(
        self, arrays: Mapping[str, np.ndarray], progress: Progress, record: dict[str, Any]
    ) -> None:
        """Write a checkpoint.

        Args:
            arrays: the engine's state.
            progress: how far the run has come.
            record: what the state belongs to, such as the config and the digest of the data.
        """
        self.flush()
        records = np.array([item.row() for item in progress.records], np.float64).reshape(
            -1, len(fields(EpochRecord))
        )
        kept = {
            "records": len(records),
            "rows": len(progress.rows),
            METRICS_FILE: {"bytes": self._bytes, "sha256": self._sha.hexdigest()},
        }
        state = dict(arrays) | {METRICS_ARRAY: progress.rows, RECORDS_ARRAY: records}
        save_checkpoint(
            self.path / CHECKPOINTS_FOLDER, Checkpoint(progress.step, state, record | kept)
        )

    def restore(
        self, config: ModelConfig, record: dict[str, Any]
    ) -> tuple[dict[str, np.ndarray] | None, Progress, list[str]]:
        """Return the engine's state and the progress of the newest checkpoint that can be loaded,
        and why newer ones were passed over.

        A run that ended before its first checkpoint has no state: it begins again. Lines of
        `metrics.jsonl` from after the checkpoint are dropped: the run will write them again.

        Args:
            config: of the model.
            record: what the state must belong to.

        Raises:
            DamagedError: there are checkpoints and none can be loaded, or the metrics are not those
                of the checkpoint.
        """

        def expected(found: dict[str, Any]) -> dict[str, tuple[int, ...]]:
            _require_same(record, found)
            TrainConfig.from_json(found["train"])
            return checkpoint_shapes(config, found)

        folder = self.path / CHECKPOINTS_FOLDER
        found, passed_over = newest_checkpoint(folder, expected)
        if found is None and passed_over:
            raise DamagedError(
                f"{self.path} has no checkpoint to go on from ({'; '.join(passed_over)}); train "
                f"again, or undo a change of {CONFIG_FILE}"
            )
        if found is None:
            try:
                _require_same(record, self.config())
            except ValueError as error:
                raise DamagedError(
                    f"{self.path / CONFIG_FILE} does not fit this run ({error}); train again"
                ) from None
            self._cut_metrics(0, hashlib.sha256().hexdigest())
            return None, Progress(), []
        self._cut_metrics(**found.record[METRICS_FILE])
        arrays = dict(found.arrays)
        rows, records = arrays.pop(METRICS_ARRAY), arrays.pop(RECORDS_ARRAY)
        kept = [EpochRecord.from_row(row) for row in records.tolist()]
        epochs = TrainConfig.from_json(found.record["train"]).epochs
        return arrays, Progress(found.step, kept, rows, epochs), passed_over

    def _cut_metrics(self, bytes: int, sha256: str) -> None:
        """Cut `metrics.jsonl` where it ended at a checkpoint; if somebody removed the file, a new
        one begins.
        """
        path = self.path / METRICS_FILE
        if not path.exists():
            return
        with path.open("rb") as file:
            sha = hashlib.sha256(file.read(min(bytes, path.stat().st_size)))
        if sha.hexdigest() != sha256:
            raise DamagedError(
                f"{path} is damaged (the SHA-256 of its first {bytes} bytes is not that of the "
                "checkpoint); restore it from a copy, or remove it and go on without its lines"
            )
        with naming(path):
            os.truncate(path, bytes)
        self._bytes, self._sha = bytes, sha


def _require_same(record: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise a ValueError unless a record is that of the run; the epochs may be others."""
    for name, value in record.items():
        other = found.get(name)
        if name == "train" and isinstance(other, dict) and "epochs" in other:
            other = other | {"epochs": value["epochs"]}
        if other != value:
            why = OTHER_DATA if name == "data_sha256" else ""
            raise UserValueError(
                f"{name} is {str(found.get(name))[:80]}, the run has {str(value)[:80]}{why}"
            )


def checkpoint_shapes(config: ModelConfig, record: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array of a checkpoint.

    Raises:
        KeyError, TypeError, ValueError: its record is not that of a run.
    """
    metrics = record[METRICS_FILE]
    if set(metrics) != {"bytes", "sha256"}:
        raise UserValueError(f"{METRICS_FILE} is {str(metrics)[:80]}, not bytes and sha256")
    for name, found in (
        ("rows", record["rows"]),
        ("records", record["records"]),
        (METRICS_FILE, metrics["bytes"]),
    ):
        require_integer(name, found, 0, MAX_ROWS)
    return state_shapes(config) | {
        METRICS_ARRAY: (record["rows"], 4),
        RECORDS_ARRAY: (record["records"], len(fields(EpochRecord))),
    }


def state_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array of an engine's state."""
    shapes = {
        f"{kind}/{item.name}": item.shape
        for kind in ("param", "adam/m", "adam/v")
        for item in parameters(config)
    }
    return shapes | {"adam/count": ()}


def data_digest(data: Dataset) -> str:
    """Return the SHA-256 of all that a run sees of its data."""
    sha = hashlib.sha256()
    for part, sequences in data.parts.items():
        arrays = [sequences.inputs, sequences.labels, sequences.mask]
        # Only where there are some: runs of data without any keep their digest.
        arrays += [] if sequences.positions is None else [sequences.positions]
        for array in arrays:
            described = "none" if array is None else f"{array.dtype.str} {array.shape}"
            sha.update(f"{part} {described}\n".encode())
            sha.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
