"""The state of a run on disk, the same for every framework.

A checkpoint is a folder `step-N` with `state.safetensors` and `manifest.json`. It is written under
another name, synced and renamed, so a folder of the right name is complete unless its bytes were
damaged later, which its digests show.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from pe_core.storage.files import (
    DamagedError,
    naming,
    new_folder,
    remove_folder,
    remove_leftovers,
    write_parts,
)
from pe_core.storage.strict_json import read_object, to_json
from pe_core.storage.tensors import open_tensors, require_digests, require_finite, write_tensors

FORMAT: Final = 2
STATE_FILE: Final = "state.safetensors"
MANIFEST_FILE: Final = "manifest.json"
KEPT: Final = 3
PREFIX: Final = "step-"
NAME: Final = re.compile(PREFIX + r"\d{1,18}", re.ASCII)
SEAL: Final = "sha256"
# Format 1 kept the digests of the tensors in the manifest, and its seal was of another kind. That
# one is not checked: every other field is compared with the folder, the run or the state.
FIELDS: Final = {
    1: {"format", "step", "record", "header", "tensors", SEAL},
    2: {"format", "step", "record", "header", SEAL},
}
Expected = Callable[[dict[str, Any]], Mapping[str, tuple[int, ...]]]


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


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint into the folder of a run's checkpoints, remove all but the newest few, and
    return where it is.

    Raises:
        OSError: the disk is full or may not be written to; the path is named, and the checkpoints
        that were there are untouched.
    """
    target = folder / f"{PREFIX}{checkpoint.step:09d}"
    with naming(target):
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder, PREFIX)
        with new_folder(target) as beside:
            header = write_tensors(beside / STATE_FILE, checkpoint.arrays)
            manifest = {
                "format": FORMAT,
                "step": checkpoint.step,
                "record": checkpoint.record,
                "header": header,
            }
            write_parts(beside / MANIFEST_FILE, [_sealed(manifest)])
        # Those of later steps were passed over when the run went back to an older one.
        found = checkpoint_folders(folder)
        kept = found[found.index(target) :][:KEPT]
        for path in found:
            if path not in kept:
                remove_folder(path)
    return target


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the folders that are named as checkpoints, the newest first; links are not
    followed.
    """
    if not folder.is_dir():
        return []
    found = [
        path
        for path in folder.iterdir()
        if NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)), reverse=True)


def newest_checkpoint(folder: Path, expected: Expected) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that can be loaded, and why each newer one was passed over.

    Args:
        folder: of a run's checkpoints.
        expected: from the record of a checkpoint, the shape of every array that it must have.
    """
    passed_over: list[str] = []
    for path in checkpoint_folders(folder):
        try:
            return load_checkpoint(path, expected), passed_over
        except (DamagedError, OSError) as error:
            passed_over.append(str(error))
    return None, passed_over


def load_checkpoint(path: Path, expected: Expected) -> Checkpoint:
    """Read one checkpoint; check names, shapes and sizes before any array is made, and digests
    before any is returned.

    Raises:
        DamagedError: which file, tensor or field is wrong.
    """
    manifest_file, state_file = path / MANIFEST_FILE, path / STATE_FILE
    for file in (manifest_file, state_file):
        if not file.is_file() or file.is_symlink():
            raise DamagedError(f"{file} is missing or no plain file")
    manifest = _read_manifest(manifest_file)
    step, record = manifest["step"], manifest["record"]
    try:
        shapes = dict(expected(record))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(
            f"{manifest_file}: record does not fit this version or run ({error})"
        ) from None
    state = open_tensors(state_file)
    if set(state.shapes) != set(shapes):
        missing, unexpected = set(shapes) - set(state.shapes), set(state.shapes) - set(shapes)
        raise DamagedError(
            f"{state_file}: missing tensors {sorted(missing)}, unexpected tensors "
            f"{str(sorted(unexpected))[:160]}"
        )
    for name, shape in shapes.items():
        if state.shapes[name] != shape:
            raise DamagedError(
                f"{state_file}: {name} has shape {list(state.shapes[name])}, not {list(shape)}"
            )
    if state.header_digest != manifest["header"]:
        raise DamagedError(f"{state_file}: the SHA-256 of its header is not that of the manifest")
    arrays = state.read()
    require_digests(state_file, arrays, manifest.get("tensors", state.metadata))
    require_finite(state_file, arrays)
    return Checkpoint(step, {name: arrays[name] for name in shapes}, record)


def _read_manifest(file: Path) -> dict[str, Any]:
    manifest = read_object(file)
    found = manifest.get("format")
    if type(found) is not int or found not in FIELDS:
        raise DamagedError(f"{file}: format is {str(found)[:40]}, this version reads 1 and 2")
    if set(manifest) != FIELDS[found]:
        raise DamagedError(
            f"{file}: fields are {str(sorted(manifest))[:160]}, not {sorted(FIELDS[found])}"
        )
    step = manifest["step"]
    if type(step) is not int or file.parent.name != f"{PREFIX}{step:09d}":
        raise DamagedError(
            f"{file}: step is {str(step)[:40]}, but the folder is {file.parent.name}"
        )
    for name in {"record", "tensors"} & set(manifest):
        if not isinstance(manifest[name], dict):
            raise DamagedError(f"{file}: {name} is not an object")
    if found == FORMAT:
        fields = {name: value for name, value in manifest.items() if name != SEAL}
        if _sealed(fields) != file.read_bytes():
            raise DamagedError(f"{file} is damaged (its SHA-256 is not the one in it)")
    return manifest


def _sealed(fields: Mapping[str, Any]) -> bytes:
    """Return a manifest as JSON with a SHA-256 of its fields."""
    seal = hashlib.sha256(json.dumps(fields).encode()).hexdigest()
    return to_json({**fields, SEAL: seal})
