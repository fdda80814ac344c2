"""Files and folders that appear under their names whole or not at all.

All of them are written beside, synced and then renamed. A process that is stopped on the way leaves
names that begin with a dot, which nobody reads.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pe_core.errors import UserValueError


class DamagedError(UserValueError):
    """A file that is damaged, of another format, or not what it should be."""


def require_plain(path: Path) -> None:
    """Raise a DamagedError unless there is a plain file: a pipe or a device would never end."""
    if not path.is_file():
        raise DamagedError(f"{path} is missing or no plain file; restore it from a copy")


def write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a new file from its parts, in their order.

    Raises:
        FileExistsError: the name is taken, be it by a link.
    """
    with path.open("xb") as file:
        for part in parts:
            file.write(part)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with naming(path), new_files(path) as (beside,):
        write_parts(beside, [content])


@contextmanager
def new_files(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Give a name beside each path to write to, and move what was written there to the paths.

    All files are written before the first is moved, so a full disk leaves those that were there.

    Args:
        paths: in the order in which they are moved.
    """
    # Two processes that write one file do not write to one name.
    beside = tuple(path.with_name(f".{path.name}.{os.getpid()}") for path in paths)
    try:
        for temporary in beside:
            _remove(temporary)
        yield beside
        for temporary in beside:
            _sync(temporary)
        for path, temporary in zip(paths, beside, strict=True):
            temporary.replace(path)
        for folder in {path.parent for path in paths}:
            _sync(folder)
    except BaseException:
        for temporary in beside:
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder beside the path to write files in, and move it to the path, where it replaces
    one that is there.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        _remove(beside)
        beside.mkdir()
        yield beside
        for file in beside.iterdir():
            _sync(file)
        _sync(beside)
        if path.exists():
            remove_folder(path)
        beside.rename(path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder at once: no half of it is ever seen under its name."""
    hidden = path.with_name(f".{path.name}.old")
    _remove(hidden)
    path.rename(hidden)
    _remove(hidden)


def remove_leftovers(folder: Path, prefix: str) -> None:
    """Remove what stopped processes left of folders whose names begin with the prefix."""
    for path in folder.glob(f".{prefix}*"):
        _remove(path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError the path that was to be written: a full disk names none, and a temporary name
    helps nobody.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there; a link is not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
