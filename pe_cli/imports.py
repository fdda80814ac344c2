"""Import modules that the user names on the command line."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Final

from pe_core.errors import UserError, UserValueError, nearest

# The folder of the packages, whose own lines are no place that the user could correct.
OURS: Final = str(Path(__file__).parents[1] / "pe_")


@contextmanager
def imported(names: Iterable[str]) -> Iterator[None]:
    """Import the modules of `--import`, each a name or several separated by commas, for what runs
    inside.

    Raises:
        UserValueError: no such module, or its code fails, then or later; the line says where.
    """
    modules = [name for text in names for name in text.split(",")]
    for name in modules:
        import_module(name, f"--import {name}")
    try:
        yield
    except (UserError, MemoryError, OSError):
        raise
    except Exception as error:
        if not modules or _place(error) is None:
            raise
        option = f"--import {','.join(modules)}"
        raise UserValueError(f"{option}: {cause(error)}; correct it") from error


def split_imports(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the modules that `--import` names, and the other arguments.

    Raises:
        UserValueError: the option without a value.
    """
    modules: list[str] = []
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        if word.partition("=")[0] != "--import":
            others.append(word)
            continue
        value = word.partition("=")[2] if "=" in word else next(words, None)
        if value is None:
            raise UserValueError("--import needs a value; pass the name of a module")
        modules.append(value)
    return modules, others


def import_module(
    name: str, option: str, *, known: Iterable[str] = (), form: str = "MODULE or PACKAGE.MODULE"
) -> ModuleType:
    """Return a module, found where Python finds modules and in the current folder.

    Args:
        name: of the module.
        option: as it was given, for the error's line.
        known: other values that the option takes.
        form: what the option takes, in words.

    Raises:
        UserValueError: no such module, or it fails; the line says where.
    """
    if name.endswith(".py") or "/" in name:
        example = name.removesuffix(".py").removeprefix("./").strip("/").replace("/", ".")
        raise UserValueError(
            f"{option}: give the name of the module, not its file; for example {example}"
        )
    if not all(word.isidentifier() for word in name.split(".")):
        flag = option.split(" ")[0]
        raise UserValueError(f"{flag} {name!r} is no name of a module; write {form}")
    # The command pe has its own folder in front, python -m the current one.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise UserValueError(f"{option}: {cause(error)}; install what it needs") from error
        hint = nearest(name, known, otherwise="check the name")
        raise UserValueError(
            f"{option}: no module of that name here or among the installed; {hint}"
        ) from None
    except UserError as error:
        raise UserValueError(f"{option}: {cause(error)}") from error
    except Exception as error:
        raise UserValueError(f"{option}: cannot be imported, {cause(error)}; correct it") from error


def cause(error: BaseException) -> str:
    """Return an error of the user's code on one line, with the place."""
    text, place = " ".join(str(error).split()) or "no message", _place(error)
    # The line of a UserError stands by itself.
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{kind}{text}" if place is None else f"{kind}{text} ({place})"


def _place(error: BaseException) -> str | None:
    """Return file and line of the user's code in which an error arose."""
    frames = traceback.extract_tb(error.__traceback__)
    # The last line outside libraries is the one that its author can change.
    own = [
        frame
        for frame in frames
        if "site-packages" not in frame.filename
        and not frame.filename.startswith(("<", sys.base_prefix, OURS))
    ]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else None
