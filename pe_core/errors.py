"""Checks that end in one clear line: what was wrong, the value, the remedy."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields
from typing import Any

import numpy as np


class UserError(Exception):
    """An error that the caller can mend: its message is one line with what, the value and the
    remedy. Every other exception is a bug of ours.
    """


class UserValueError(UserError, ValueError):
    """A value that breaks a rule."""


class UnknownEncodingError(UserValueError):
    """A name that no encoding of this process has; a file that holds it need not be damaged."""


class UserTypeError(UserError, TypeError):
    """A value of the wrong type."""


class UserMemoryError(UserError, MemoryError):
    """More memory would be needed than there is."""


class UserFileNotFoundError(UserError, FileNotFoundError):
    """A file that is not there."""


class UserFileExistsError(UserError, FileExistsError):
    """A file or folder that is in the way."""


class UserPermissionError(UserError, PermissionError):
    """A file or folder that may not be read or written."""


class UserModuleNotFoundError(UserError, ModuleNotFoundError):
    """A package that is not installed."""


def nearest(name: str, known: Iterable[str], *, otherwise: str | None = None) -> str:
    """Return a hint that names the nearest known name, or `otherwise` when none is near; all known
    names when that is None.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(known)}" if otherwise is None else otherwise


def require_one_of(what: str, value: object, known: Sequence[str]) -> None:
    """Raise a ValueError unless the value is one of the known names."""
    if value not in known:
        raise UserValueError(f"unknown {what} {value!r}; {nearest(str(value), known)}")


def require_integer(what: str, value: object, minimum: int, maximum: int = 1 << 31) -> None:
    """Raise a TypeError unless the value is an integer, a ValueError unless it lies in minimum ..
    maximum.
    """
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserTypeError(f"{what} must be an integer, got {value!r}")
    if not minimum <= value <= maximum:
        raise UserValueError(f"{what} must lie in {minimum} .. {maximum}, got {value}")


def require_number(
    what: str,
    value: object,
    minimum: float,
    maximum: float = math.inf,
    *,
    open_minimum: bool = False,
    open_maximum: bool = False,
) -> None:
    """Raise a TypeError unless the value is a finite number, a ValueError unless it lies in minimum
    .. maximum.
    """
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserTypeError(f"{what} must be a number, got {value!r}")
    outside = (
        not minimum <= value <= maximum
        or (open_maximum and value == maximum)
        or (open_minimum and value == minimum)
    )
    if outside or not math.isfinite(value):
        interval = (
            f"{'(' if open_minimum else '['}{minimum:g}, {maximum:g}{')' if open_maximum else ']'}"
        )
        raise UserValueError(f"{what} must be finite and lie in {interval}, got {value}")


def require_boolean(what: str, value: object) -> None:
    """Raise a TypeError unless the value is a boolean."""
    if not isinstance(_plain(value), bool):
        raise UserTypeError(f"{what} must be True or False, got {value!r}")


def make_plain(record: Any) -> None:
    """Turn NumPy's numbers in the fields of a frozen dataclass into those of Python, which JSON can
    write and which print alike.
    """
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, np.generic):
            object.__setattr__(record, field.name, _plain(value))


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def require_fields(kind: type, record: Any) -> dict[str, Any]:
    """Return the record as keyword arguments of a dataclass, all wrong names reported at once."""
    if not isinstance(record, dict):
        raise UserValueError(
            f"{kind.__name__} must be a JSON object, got {json.dumps(record)[:80]}"
        )
    known = {field.name: field for field in fields(kind)}
    problems = [
        f"unknown field {name!r} ({nearest(name, known)})" for name in record if name not in known
    ]
    required = [
        name
        for name, field in known.items()
        if field.default is MISSING and field.default_factory is MISSING
    ]
    problems += [f"missing field {name!r}" for name in required if name not in record]
    if problems:
        raise UserValueError(f"{kind.__name__}: {'; '.join(problems)}")
    return dict(record)
