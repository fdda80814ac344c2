"""Checks that end in one clear line: what was wrong, the value, the remedy."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields
from typing import Any, Final

import numpy as np

# How many of their letters two words share, in order, that are one word misspelt.
ALIKE: Final = 0.7


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


def nearest(
    name: str, known: Iterable[str], *, otherwise: str | None = None, values: bool = False
) -> str:
    """Return a hint that names the nearest known name, or `otherwise` when none is near; all known
    names when that is None.

    A name is near when it is misspelt or shortened, not when it merely has letters in common: who
    wants --class-weights is not helped by --weight-decay. Of the few values of one option, any that
    is half alike is near.
    """
    known = sorted(known)
    given = _words(name)
    near = [other for other in known if _is_near(given, _words(other))]
    if values and not near:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        best = max(near, key=lambda other: (_alike(given, _words(other)), other))
        return f"did you mean {best!r}?"
    return f"known: {', '.join(known)}" if otherwise is None else otherwise


def _words(name: str) -> list[str]:
    words = [word for word in re.split(r"[-_\s]+", name.lower()) if word]
    # How many there are is said in many ways: num_layers, n_layers, layers.
    return words[1:] if len(words) > 1 and words[0] in ("n", "num", "number") else words


def _alike(given: Sequence[str], known: Sequence[str]) -> float:
    return difflib.SequenceMatcher(None, "".join(given), "".join(known)).ratio()


def _is_near(given: list[str], known: list[str]) -> bool:
    one, other = "".join(given), "".join(known)
    if not one:
        return False
    if len(given) == len(known):
        return all(
            _alike(a, b) >= ALIKE or (len(a) >= 3 and b.startswith(a))
            for a, b in zip(given, known, strict=True)
        )
    return (
        # lr for learning_rate; batch for batch_size; cosine for warmup_cosine; batchsize.
        one == "".join(word[0] for word in known)
        or (len(given) < len(known) and known[: len(given)] == given and 2 * len(one) >= len(other))
        or (len(given) < len(known) and known[-len(given) :] == given and len(one) >= 6)
        or _alike(one, other) >= 0.95
    )


def require_one_of(what: str, value: object, known: Sequence[str]) -> None:
    """Raise a ValueError unless the value is one of the known names."""
    if value not in known:
        hint = nearest(str(value), known, values=True)
        raise UserValueError(f"unknown {what} {value!r}; {hint}")


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
