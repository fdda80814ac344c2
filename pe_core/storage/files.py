"""Files that are whole or not at all, and JSON that is read strictly: no key twice, no NaN, nothing
larger than it should be.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pe_core.errors import UserFileNotFoundError, UserValueError

# A JSON text of more bytes than this is refused unread.
MAX_JSON_BYTES: Final = 1 << 24
SIGNATURE: Final = "sha256"


class DamagedError(UserValueError):
    """A file that is damaged, of another format, or not what it should be."""


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        FileNotFoundError: it is missing.
        DamagedError: it is no plain file, too large, or not strict JSON.
    """
    if not path.exists():
        raise UserFileNotFoundError(f"{path} does not exist; check the path")
    require_plain(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise DamagedError(
            f"{path} is {path.stat().st_size} bytes, at most {MAX_JSON_BYTES} are read; restore "
            "it from a copy"
        )
    return parse_json(path.read_bytes(), path)


def require_plain(path: Path) -> None:
    """Raise a DamagedError unless there is a plain file: a pipe or a device would never end."""
    if not path.is_file():
        raise DamagedError(f"{path} is missing or no plain file; restore it from a copy")


def parse_json(content: bytes, path: Path) -> Any:
    """Return what a JSON text holds; repeated keys, NaN, infinity and deep nesting are refused.

    Args:
        content: the text.
        path: where it stands, for the message.
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


def signed_json(record: Mapping[str, Any]) -> bytes:
    """Return an object as JSON, with the SHA-256 of each of its fields: a reader can say which one
    was changed.
    """
    return (
        json.dumps(
            {**record, SIGNATURE: {name: _digest(value) for name, value in record.items()}},
            indent=2,
        )
        + "\n"
    ).encode()


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds; errors are those of `read_json`."""
    record = read_json(path)
    if not isinstance(record, dict):
        raise DamagedError(
            f"{path} must hold an object, got {str(record)[:40]}; restore it from a copy"
        )
    return record


def require_signature(path: Path, record: Mapping[str, Any]) -> None:
    """Raise a DamagedError that names the first field that is not as it was written.

    It is for the end of reading: a rule that a field breaks says more.

    Args:
        path: the file.
        record: what it holds.
    """
    claimed = record.get(SIGNATURE)
    if not isinstance(claimed, dict):
        raise DamagedError(f"{path} has no field {SIGNATURE}; restore it from a copy")
    fields = {name: value for name, value in record.items() if name != SIGNATURE}
    for name in [*fields, *claimed]:
        if name not in fields or claimed.get(name) != _digest(fields[name]):
            raise DamagedError(
                f"{path} is damaged (the SHA-256 of {name[:80]!r} does not hold); restore it "
                "from a copy"
            )
    # The same values can be written otherwise, as 1E-3 for 1e-3; then somebody else wrote them.
    if signed_json(fields) != path.read_bytes():
        raise DamagedError(
            f"{path} is damaged (its text is not as it was written); restore it from a copy"
        )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, allow_nan=False).encode()).hexdigest()


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: beside, synced, renamed, the folder synced."""
    write_files({path: content})


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files of one folder: all beside, synced, then renamed, so that a full disk leaves them
    all as they were.
    """
    beside: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            with naming(path):
                handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
                os.close(handle)
                beside[path] = Path(temporary)
                write_synced(beside[path], content)
                # mkstemp makes files that only their owner can read; a model is meant to be shared
                # like any other file.
                mask = os.umask(0)
                os.umask(mask)
                os.chmod(temporary, 0o666 & ~mask)
        for path, temporary_path in beside.items():
            with naming(path):
                os.replace(temporary_path, path)
    except BaseException:
        for temporary_path in beside.values():
            temporary_path.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in contents}:
        sync_folder(folder)


def write_synced(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file and wait until it is on the disk; one that is there is written over in place,
    which costs no new room.
    """
    if path.is_symlink() or (path.exists() and path.stat().st_nlink > 1):
        # What else is known under another name is not ours to write over.
        path.unlink()
    # In place only the bytes have to arrive; a new file needs its entry on the disk too, which
    # takes longer. Not every system can tell.
    sync = getattr(os, "fdatasync", os.fsync) if path.exists() and path.stat().st_size else os.fsync
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with open(handle, "wb") as file:
        file.writelines(parts)
        file.truncate()
        file.flush()
        sync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError the path that was to be written: a full disk names none, and a name for the
    time being helps nobody.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
