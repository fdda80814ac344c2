"""A run's state on disk: whole or not at all, digested, and the same for every framework.

A checkpoint is a folder `step-N` with `state.safetensors` and `manifest.json`. It is written under another name, the manifest last, synced,
and renamed; so a folder of the right name is complete unless its bytes were damaged later, which its digests tell.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy

from pe_core.weights import sync_folder, write_synced

FORMAT: Final = 1
STATE_FILE: Final = "state.safetensors"
MANIFEST_FILE: Final = "manifest.json"
KEPT: Final = 3
# A header or a manifest of more bytes than this is refused unread.
MAX_TEXT_BYTES: Final = 1 << 24
DTYPES: Final[dict[str, np.dtype[Any]]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "I64": np.dtype("<i8")}
NAME: Final = re.compile(r"step-(\d{1,18})")


class CheckpointError(ValueError):
    """A checkpoint that is damaged, of another format, or not this run's."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a number of steps.

    Args:
        step: how many steps were taken.
        arrays: what a step changes, by canonical name.
        record: what else goes on with the run; for JSON.
    """

    step: int
    arrays: dict[str, np.ndarray]
    record: dict[str, Any]


def fault_point(name: str) -> None:
    """Do nothing; a test replaces this to stop the process between two moments of a save."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint into the folder of a run's checkpoints, keep the newest few, and return where it is.

    Raises:
        OSError: the disk is full or may not be written to; what was there before is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{checkpoint.step:09d}"
    beside = folder / f".{target.name}-{os.getpid()}"
    # safetensors writes the memory of an array as it lies and ignores strides; ascontiguousarray would give a number an axis.
    arrays = {name: np.asarray(array, order="C") for name, array in checkpoint.arrays.items()}
    state = safetensors.numpy.save(arrays)
    manifest = {
        "format": FORMAT,
        "step": checkpoint.step,
        "record": checkpoint.record,
        "tensors": {name: array_digest(array) for name, array in arrays.items()},
        "files": {STATE_FILE: hashlib.sha256(state).hexdigest()},
    }
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        fault_point("before the state")
        write_synced(beside / STATE_FILE, state)
        fault_point("before the manifest")
        write_synced(beside / MANIFEST_FILE, (json.dumps(manifest, allow_nan=False) + "\n").encode())
        sync_folder(beside)
        fault_point("before the rename")
        if target.exists():
            # Only after a run went back to an older checkpoint; the older ones are still there should this be the last moment.
            shutil.rmtree(target)
        beside.rename(target)
        fault_point("after the rename")
        sync_folder(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    for old in checkpoint_folders(folder)[KEPT:]:
        fault_point("before an old one goes")
        shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the folders that are named as checkpoints, the newest first; links are not followed."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def newest_checkpoint(
    folder: Path, expected: Callable[[dict[str, Any]], Mapping[str, tuple[int, ...]]]
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that holds, and why each newer one was passed over.

    Args:
        folder: of a run's checkpoints.
        expected: from the record of a checkpoint, the shape of every array that it must have.
    """
    passed_over: list[str] = []
    for path in checkpoint_folders(folder):
        try:
            return load_checkpoint(path, expected), passed_over
        except (CheckpointError, OSError) as error:
            passed_over.append(str(error))
    return None, passed_over


def load_checkpoint(path: Path, expected: Callable[[dict[str, Any]], Mapping[str, tuple[int, ...]]]) -> Checkpoint:
    """Read one checkpoint; names, shapes and sizes are checked before anything is read, digests before anything is returned.

    Raises:
        CheckpointError: which file, tensor or field is wrong.
    """
    manifest = _object(_bounded(path / MANIFEST_FILE), path / MANIFEST_FILE)
    fields = {"format", "step", "record", "tensors", "files"}
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path / MANIFEST_FILE}: format is {str(manifest.get('format'))[:40]}, this version reads {FORMAT}")
    if set(manifest) != fields:
        raise CheckpointError(f"{path / MANIFEST_FILE}: fields are {sorted(manifest)}, not {sorted(fields)}")
    step, record, tensors, files = (manifest[name] for name in ("step", "record", "tensors", "files"))
    if isinstance(step, bool) or not isinstance(step, int) or path.name != f"step-{step:09d}":
        raise CheckpointError(f"{path / MANIFEST_FILE}: step is {str(step)[:40]}, but the folder is {path.name}")
    for name, value in (("record", record), ("tensors", tensors), ("files", files)):
        if not isinstance(value, dict):
            raise CheckpointError(f"{path / MANIFEST_FILE}: {name} is not an object")
    try:
        shapes = expected(record)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path / MANIFEST_FILE}: record does not fit this version or run ({error})") from None
    state = path / STATE_FILE
    header, start = _header(state)
    if set(header) != set(shapes):
        missing, unexpected = sorted(set(shapes) - set(header)), sorted(set(header) - set(shapes))
        raise CheckpointError(f"{state}: missing tensors {missing}, unexpected tensors {unexpected}")
    if set(tensors) != set(shapes):
        raise CheckpointError(f"{path / MANIFEST_FILE}: tensors are not those of {STATE_FILE}")
    layout = {name: _layout(state, name, header[name], shapes[name]) for name in shapes}
    end = 0
    for name, (_, first, last) in sorted(layout.items(), key=lambda item: item[1][1:]):
        if first != end:
            raise CheckpointError(f"{state}: {name} begins at byte {first}, not at {end}")
        end = last
    if state.stat().st_size != start + end:
        raise CheckpointError(f"{state}: is {state.stat().st_size} bytes, not {start + end}")
    content = state.read_bytes()
    if hashlib.sha256(content).hexdigest() != files.get(STATE_FILE):
        # The file's digest is the quick check; the tensors' digests name what is wrong.
        broken = [
            name
            for name, (dtype, first, last) in layout.items()
            if _cut(content, start, dtype, first, last, shapes[name])[1] != tensors[name]
        ]
        raise CheckpointError(f"{state}: SHA-256 does not hold for {', '.join(broken) or 'its header'}")
    arrays = {}
    for name, (dtype, first, last) in layout.items():
        array, found = _cut(content, start, dtype, first, last, shapes[name])
        if found != tensors[name]:
            raise CheckpointError(f"{path / MANIFEST_FILE}: the SHA-256 of {name} is not that of {STATE_FILE}")
        if not np.isfinite(array).all():
            raise CheckpointError(f"{state}: {name} holds NaN or infinity")
        arrays[name] = array
    return Checkpoint(step, arrays, record)


def array_digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's dtype, shape and bytes."""
    sha = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    sha.update(array.tobytes())
    return sha.hexdigest()


def _cut(content: bytes, start: int, dtype: np.dtype, first: int, last: int, shape: tuple[int, ...]) -> tuple[np.ndarray, str]:
    array = np.frombuffer(content[start + first : start + last], dtype).reshape(shape).copy()
    return array, array_digest(array)


def _bounded(path: Path) -> bytes:
    if not path.is_file() or path.is_symlink():
        raise CheckpointError(f"{path}: is missing or no plain file")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise CheckpointError(f"{path}: is {path.stat().st_size} bytes, at most {MAX_TEXT_BYTES} are read")
    return path.read_bytes()


def _object(content: bytes, path: Path) -> dict[str, Any]:
    """Return the object of a JSON text; repeated keys, NaN and anything but an object are refused."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated = next(key for number, (key, _) in enumerate(pairs) if key in [other for other, _ in pairs[:number]])
            raise CheckpointError(f"{path}: key {repeated[:80]!r} stands twice")
        return found

    def refused(constant: str) -> None:
        raise CheckpointError(f"{path}: holds {constant}")

    try:
        found = json.loads(content.decode(), object_pairs_hook=unique, parse_constant=refused)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON ({str(error)[:80]})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: is not an object")
    return found


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file and where its tensors begin."""
    if not path.is_file() or path.is_symlink():
        raise CheckpointError(f"{path}: is missing or no plain file")
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise CheckpointError(f"{path}: is {len(prefix)} bytes, not a safetensors file")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(MAX_TEXT_BYTES, path.stat().st_size):
            raise CheckpointError(f"{path}: claims a header of {length} bytes")
        header = _object(file.read(length), path)
    header.pop("__metadata__", None)
    return header, 8 + length


def _layout(path: Path, name: str, entry: Any, shape: tuple[int, ...]) -> tuple[np.dtype, int, int]:
    """Return dtype, first and last byte of a tensor, which must have the expected shape."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path}: {name} is not described by dtype, shape and data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(f"{path}: {name} has dtype {str(entry['dtype'])[:40]}, known are {', '.join(DTYPES)}")
    if entry["shape"] != list(shape):
        raise CheckpointError(f"{path}: {name} has shape {str(entry['shape'])[:80]}, not {list(shape)}")
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(value) is int and value >= 0 for value in offsets):
        raise CheckpointError(f"{path}: {name} has data_offsets {str(offsets)[:80]}")
    first, last = offsets
    if last - first != dtype.itemsize * int(np.prod(shape)):
        raise CheckpointError(f"{path}: {name} takes {last - first} bytes, not {dtype.itemsize * int(np.prod(shape))}")
    return dtype, first, last
