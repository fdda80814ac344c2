"""The files of a run: `config.json`, `metrics.jsonl`, `checkpoints/` and `model/`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from pe_core.checkpoint import Checkpoint, CheckpointError, newest_checkpoint, save_checkpoint
from pe_core.config import ModelConfig
from pe_core.data import Dataset
from pe_core.parameters import parameters
from pe_core.weights import read_json, write_file

METRICS_FILE: Final = "metrics.jsonl"
CONFIG_FILE: Final = "config.json"
MODEL_FOLDER: Final = "model"
CHECKPOINTS_FOLDER: Final = "checkpoints"
METRICS_ARRAY: Final = "epoch/metrics"
# Steps of an epoch whose metrics a checkpoint may hold: a bound on what is read.
MAX_STEPS: Final = 1 << 40


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


@dataclass
class Progress:
    """How far a run has come: all that goes on with it beside the engine's state.

    Args:
        step: steps taken.
        records: of the epochs that are done.
        rows: metrics of the steps taken in this epoch, in the columns of `pe_core.engine.METRICS`.
    """

    step: int = 0
    records: list[EpochRecord] = field(default_factory=list)
    rows: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))


@dataclass
class RunDirectory:
    """The files of a run.

    Args:
        path: the folder.
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

    def config(self) -> dict[str, Any]:
        """Return what the run is.

        Raises:
            FileNotFoundError, ValueError: there is no run, or its config is damaged.
        """
        if not (self.path / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"{self.path} is not the folder of a run, {CONFIG_FILE} is missing; pass one that `pe train` wrote")
        record = read_json(self.path / CONFIG_FILE)
        if not isinstance(record, dict):
            raise ValueError(f"{self.path / CONFIG_FILE} must hold an object, got {str(record)[:40]!r}; restore it from a copy")
        return record

    def add(self, kind: str, record: dict[str, Any]) -> None:
        """Keep a line for `metrics.jsonl`."""
        self._lines.append(json.dumps({"kind": kind} | record, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Append the kept lines to `metrics.jsonl`, in one write: an interrupt leaves no half line."""
        lines, self._lines = self._lines, []
        if lines:
            with (self.path / METRICS_FILE).open("ab", buffering=0) as file:
                file.write("".join(lines).encode())

    def save(self, arrays: Mapping[str, np.ndarray], progress: Progress, record: dict[str, Any]) -> None:
        """Write a checkpoint.

        Args:
            arrays: the engine's state.
            progress: how far the run has come.
            record: what the state belongs to, such as the config and the digest of the data.
        """
        self.flush()
        kept = {"records": [asdict(item) for item in progress.records], "rows": len(progress.rows)}
        save_checkpoint(
            self.path / CHECKPOINTS_FOLDER, Checkpoint(progress.step, dict(arrays) | {METRICS_ARRAY: progress.rows}, record | kept)
        )

    def restore(self, config: ModelConfig, record: dict[str, Any]) -> tuple[dict[str, np.ndarray], Progress, list[str]]:
        """Return the engine's state and the progress of the newest checkpoint that holds, and why newer ones were passed over.

        Lines of `metrics.jsonl` from after the checkpoint are dropped: the run will write them again.

        Args:
            config: of the model.
            record: what the state must belong to.

        Raises:
            CheckpointError: no checkpoint holds.
        """

        def expected(found: dict[str, Any]) -> dict[str, tuple[int, ...]]:
            for name, value in record.items():
                if found.get(name) != value:
                    raise ValueError(f"{name} is {str(found.get(name))[:80]}, the run has {str(value)[:80]}")
            rows = found["rows"]
            if isinstance(rows, bool) or not isinstance(rows, int) or not 0 <= rows < MAX_STEPS:
                raise ValueError(f"rows is {str(rows)[:40]}")
            [EpochRecord(**item) for item in found["records"]]
            return state_shapes(config) | {METRICS_ARRAY: (rows, 4)}

        found, passed_over = newest_checkpoint(self.path / CHECKPOINTS_FOLDER, expected)
        if found is None:
            why = f" ({'; '.join(passed_over)})" if passed_over else ""
            raise CheckpointError(f"{self.path} has no checkpoint to go on from{why}; train again")
        arrays = dict(found.arrays)
        rows = arrays.pop(METRICS_ARRAY)
        progress = Progress(found.step, [EpochRecord(**item) for item in found.record["records"]], rows)
        self._drop_lines_after(progress)
        return arrays, progress, passed_over

    def _drop_lines_after(self, progress: Progress) -> None:
        path = self.path / METRICS_FILE
        if not path.is_file():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            last = progress.step if record["kind"] == "epoch" else progress.step - 1
            if record["step"] <= last:
                kept.append(line + "\n")
        write_file(path, "".join(kept).encode())


def state_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array of an engine's state."""
    shapes = {f"{kind}/{item.name}": item.shape for kind in ("param", "adam/m", "adam/v") for item in parameters(config)}
    return shapes | {"adam/count": ()}


def data_digest(data: Dataset) -> str:
    """Return the SHA-256 of all that a run sees of its data."""
    sha = hashlib.sha256()
    for part, sequences in data.parts.items():
        for array in (sequences.inputs, sequences.labels, sequences.mask):
            described = "none" if array is None else f"{array.dtype.str} {array.shape}"
            sha.update(f"{part} {described}\n".encode())
            sha.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
