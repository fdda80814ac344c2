"""JSON that is read strictly: no key twice, no NaN, nothing larger than it should be."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pe_core.errors import UserFileNotFoundError
from pe_core.storage.files import DamagedError, require_plain

# A JSON text of more bytes than this is refused unread.
MAX_JSON_BYTES: Final = 1 << 24


def to_json(record: Mapping[str, Any]) -> bytes:
    """Return a record as the text of a JSON file."""
    return (json.dumps(record, indent=2, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        FileNotFoundError: it is missing.
        DamagedError: it is no plain file, too large, or not strict JSON.
    """
    if not path.exists():
        raise UserFileNotFoundError(f"{path} does not exist; check the path")
    require_plain(path)
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise DamagedError(
            f"{path} is {size} bytes, at most {MAX_JSON_BYTES} are read; restore it from a copy"
        )
    return parse_json(path.read_bytes(), path)


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds; errors are those of `read_json`."""
    record = read_json(path)
    if not isinstance(record, dict):
        raise DamagedError(
            f"{path} must hold an object, got {str(record)[:40]}; restore it from a copy"
        )
    return record


def parse_json(content: bytes, path: Path) -> Any:
    """Return what a JSON text holds; refuse repeated keys, NaN, infinity and deep nesting.

    Args:
        content: the text.
        path: where it was read, for the message.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            raise DamagedError(
                f"{path}: key {repeated[:80]!r} stands twice; restore it from a copy"
            )
        return found

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise DamagedError(
                f"{path} holds {text[:40]}, not a finite number; restore it from a copy"
            )
        return number

    try:
        return json.loads(
            content.decode(), object_pairs_hook=unique, parse_float=finite, parse_constant=finite
        )
    except DamagedError:
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedError(
            f"{path} is not valid JSON ({str(error)[:80]}); restore it from a copy"
        ) from None
