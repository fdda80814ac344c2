"""What a run tells on a screen or in a file: a bar and lines on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pe_core.training import EpochRecord
from pe_core.weights import write_file

console = Console(highlight=False, soft_wrap=True)


class TrainReporter:
    """A progress bar while steps go by, where there is a terminal, and a line for each epoch.

    Args:
        epochs: of the run.
        title: in front of the bar.
        lines: print a line for each epoch.
    """

    def __init__(self, epochs: int, title: str, *, lines: bool = True) -> None:
        self.epochs = epochs
        self.title = title
        self.lines = lines
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=None, loss=float("nan"))

    def __enter__(self) -> TrainReporter:
        self._progress.start()
        if self.lines:
            console.print("epoch   train loss  accuracy   validation loss  accuracy   gradient norm   seconds")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def steps(self, done: int, total: int, loss: float) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=done, total=total, loss=loss)

    def epoch(self, record: EpochRecord) -> None:
        """Print the line of an epoch."""
        if self.lines:
            console.print(
                f"{record.epoch + 1:3d}/{self.epochs:<3d} {record.train_loss:10.4f}  {record.train_accuracy:8.3f}"
                f"   {record.validation_loss:15.4f}"
                f"  {record.validation_accuracy:8.3f}   {record.gradient_norm:13.3f}   {record.seconds:7.2f}"
            )


def write_json(path: str | None, record: dict[str, Any]) -> None:
    """Write a record for machines; None writes nothing."""
    if path is not None:
        target = Path(path)
        if not target.parent.is_dir():
            raise FileNotFoundError(f"the folder of --json {path} does not exist; make it first")
        write_file(target, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def free_directory(base: Path) -> Path:
    """Return the first of base, base-2, base-3, ... that does not exist."""
    candidate, number = base, 2
    while candidate.exists():
        candidate, number = base.with_name(f"{base.name}-{number}"), number + 1
    return candidate
