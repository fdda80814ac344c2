"""What a run prints or writes: a bar and lines on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pe_core.data import DataWarning
from pe_core.errors import (
    UserFileNotFoundError,
    UserPermissionError,
    UserValueError,
    require_integer,
)
from pe_core.storage.files import write_file
from pe_core.training.run_directory import EpochRecord


class PipeConsole(Console):
    """A console that raises BrokenPipeError, where rich would exit with the code of a failed
    check.
    """

    def on_broken_pipe(self) -> NoReturn:
        """Let the command decide."""
        raise BrokenPipeError


class PlainConsole(PipeConsole):
    """A console that prints texts as they are: a name may hold brackets, and only the screen
    breaks a line.
    """

    def __init__(self) -> None:
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False)

    def heading(self, title: str, rest: str = "") -> None:
        """Print a title, bold where there is a terminal."""
        self.print(title, style="bold", end="")
        self.print(rest)


console = PlainConsole()


class TrainReporter:
    """A progress bar while steps go by, where there is a terminal, and a line for each epoch.

    Args:
        epochs: of the run.
        total: steps of the run.
        title: in front of the bar.
        lines: print a line for each epoch.
        validation: whether examples are held out; their columns are left out otherwise.
    """

    def __init__(
        self, epochs: int, total: int, title: str, *, lines: bool = True, validation: bool = True
    ) -> None:
        self.epochs = epochs
        self.validation = validation
        self.lines = lines
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=total, loss="")

    def __enter__(self) -> TrainReporter:
        if self.lines:
            console.print(
                "  epoch   train loss  accuracy   "
                + ("validation loss  accuracy   " if self.validation else "")
                + "gradient norm   seconds"
            )
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def steps(self, done: int, total: int, loss: float) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=done, total=total, loss=f"loss {loss:.4f}")

    def note(self, text: str) -> None:
        """Print a line of its own."""
        console.print(text, markup=False)

    def epoch(self, record: EpochRecord) -> None:
        """Print the line of an epoch."""
        if self.lines:
            held_out = (
                ""
                if record.validation_loss is None
                else f"   {record.validation_loss:15.4f}  {record.validation_accuracy:8.3f}"
            )
            console.print(
                f"{f'{record.epoch + 1}/{self.epochs}':>7}   {record.train_loss:10.4f}  "
                f"{record.train_accuracy:8.3f}{held_out}"
                f"   {record.gradient_norm:13.3f}   {record.seconds:7.2f}"
            )


class Bar:
    """A progress bar over a number of like things, where there is a terminal; a line now and then
    elsewhere.

    Args:
        title: in front of the bar.
        total: how many there are.
    """

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, total
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self._progress.add_task(title, total=total)
        self._tenths = 0

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __call__(self, done: int) -> None:
        """So many are done."""
        self._progress.update(self._task, completed=done)
        if not console.is_terminal and 10 * done // self.total > self._tenths:
            self._tenths = 10 * done // self.total
            console.print(f"{self.title}: {done:,} of {self.total:,}")


@contextmanager
def printed_warnings() -> Iterator[None]:
    """Print what is told about data, each once, as lines among the others."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)
        show: Any = warnings.showwarning
        shown: set[str] = set()

        def print_line(
            message: Warning | str, category: type[Warning], filename: str, *rest: Any
        ) -> None:
            if not issubclass(category, DataWarning):
                show(message, category, filename, *rest)
            elif str(message) not in shown:
                shown.add(str(message))
                console.print(f"warning: {message}")

        warnings.showwarning = print_line  # type: ignore[assignment]
        yield


def require_positive(**values: int | None) -> None:
    """Raise one clear line unless each of the named values is None or at least 1."""
    for name, value in values.items():
        if value is not None:
            require_integer(name, value, 1)


def check_json(path: str | None) -> None:
    """Raise one clear line, before the work begins, where the file of --json could not be written;
    None is fine.
    """
    if path is not None:
        check_file("json", path)


def check_file(option: str, path: str) -> None:
    """Raise one clear line, before the work begins, where the file of an option could not be
    written.
    """
    target = Path(path)
    if not path or target.is_dir():
        example = "result.json" if option == "json" else "trace.npz"
        raise UserValueError(
            f"--{option} needs the name of a file, got {path!r}{', a folder' if path else ''}; "
            f"for example {example}"
        )
    if not target.parent.is_dir():
        raise UserFileNotFoundError(
            f"the folder of --{option} {path} does not exist; make it first"
        )
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise UserPermissionError(
            f"the folder of --{option} {path} cannot be written to ({error.strerror}); choose "
            "another"
        ) from None


def write_json(path: str | None, record: dict[str, Any]) -> None:
    """Write a record for machines, with null for numbers that are not finite; None writes
    nothing.
    """
    if path is not None:
        write_file(
            Path(path), (json.dumps(_strict(record), indent=2, allow_nan=False) + "\n").encode()
        )


def run_folder(out: str | None, default: str) -> Path:
    """Return the folder of a run: the one asked for, or runs/default with the first number that is
    free.
    """
    if out is not None:
        if not out:
            raise UserValueError("--out needs the name of a folder, got ''; for example runs/first")
        return Path(out)
    base = Path("runs") / default
    candidate, number = base, 2
    while candidate.exists():
        candidate, number = base.with_name(f"{base.name}-{number}"), number + 1
    return candidate


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
