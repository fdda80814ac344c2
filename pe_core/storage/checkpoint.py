"""A run's state on disk: whole or not at all, digested, and the same for every framework.

A checkpoint is a folder `step-N` with `state.safetensors` and `manifest.json`. It is written under
another name, the manifest last, synced, and renamed; so a folder of the right name is complete
unless its bytes were damaged later, which its digests tell.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from pe_core.storage.files import (
    SIGNATURE,
    DamagedError,
    naming,
    read_json,
    require_signature,
    signed_json,
    sync_folder,
    write_synced,
)
from pe_core.storage.tensors import array_digest, open_tensors, write_tensors

FORMAT: Final = 1
STATE_FILE: Final = "state.safetensors"
MANIFEST_FILE: Final = "manifest.json"
KEPT: Final = 3
NAME: Final = re.compile(r"step-(\d{1,18})", re.ASCII)
FIELDS: Final = {"format", "step", "record", "header", "tensors", SIGNATURE}


class CheckpointError(DamagedError):
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
    """Write a checkpoint into the folder of a run's checkpoints, keep the newest few, and return
    where it is.

    Raises:
        OSError: the disk is full or may not be written to; the path is named, and the newest
        checkpoint is untouched.
    """
    target = folder / f"step-{checkpoint.step:09d}"
    beside = folder / f".{target.name}"
    arrays = {name: np.asarray(array, order="C") for name, array in checkpoint.arrays.items()}
    digests = {name: array_digest(array) for name, array in arrays.items()}
    try:
        with naming(target):
            folder.mkdir(parents=True, exist_ok=True)
            _clear(folder, target, beside)
            fault_point("before the state")
            header = write_tensors(beside / STATE_FILE, arrays)
            fault_point("before the manifest")
            manifest = {
                "format": FORMAT,
                "step": checkpoint.step,
                "record": checkpoint.record,
                "header": header,
                "tensors": digests,
            }
            write_synced(beside / MANIFEST_FILE, signed_json(manifest))
            sync_folder(beside)
            fault_point("before the rename")
            if target.exists():
                # Only after a run went back to an older checkpoint; the older ones are still there
                # should this be the last moment.
                shutil.rmtree(target)
                fault_point("after one of the same step went")
            beside.rename(target)
            fault_point("after the rename")
            sync_folder(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return target


def _clear(folder: Path, target: Path, beside: Path) -> None:
    """Make room for a checkpoint that is to be written in a folder `beside`.

    The oldest one becomes that folder and is written over: new room on a disk costs more time than
    all else, and may not be there. What a process left that was stopped in a save serves as well.
    Checkpoints of later steps go, for they were passed over.
    """
    found = [path for path in checkpoint_folders(folder) if path != target]
    later = [path for path in found if path.name > target.name]
    left = sorted(
        (path for path in folder.glob(".step-*") if path.is_dir() and not path.is_symlink()),
        key=lambda path: path != beside,
    )
    spare = [*left, *found[len(later) :][KEPT - 1 :], *later]
    if spare:
        fault_point("before an old one goes")
        spare[0].rename(beside)
        fault_point("after an old one went")
        # A stopped process may have left anything.
        for path in beside.iterdir():
            if path.name not in (STATE_FILE, MANIFEST_FILE) or not path.is_file():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    else:
        beside.mkdir()
    for path in spare[1:]:
        shutil.rmtree(path)


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
        except (DamagedError, OSError) as error:
            passed_over.append(str(error))
    return None, passed_over


def load_checkpoint(
    path: Path, expected: Callable[[dict[str, Any]], Mapping[str, tuple[int, ...]]]
) -> Checkpoint:
    """Read one checkpoint; names, shapes and sizes are checked before anything is read, digests
    before anything is returned.

    Raises:
        DamagedError: which file, tensor or field is wrong.
    """
    manifest_file, state_file = path / MANIFEST_FILE, path / STATE_FILE
    for file in (manifest_file, state_file):
        if not file.is_file() or file.is_symlink():
            raise CheckpointError(f"{file} is missing or no plain file")
    manifest = read_json(manifest_file)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise CheckpointError(
            f"{manifest_file}: format is {str(found)[:40]}, this version reads {FORMAT}"
        )
    if set(manifest) != FIELDS:
        raise CheckpointError(
            f"{manifest_file}: fields are {str(sorted(manifest))[:160]}, not {sorted(FIELDS)}"
        )
    step, record, tensors = (manifest[name] for name in ("step", "record", "tensors"))
    if isinstance(step, bool) or not isinstance(step, int) or path.name != f"step-{step:09d}":
        raise CheckpointError(
            f"{manifest_file}: step is {str(step)[:40]}, but the folder is {path.name}"
        )
    for name, value in (("record", record), ("tensors", tensors)):
        if not isinstance(value, dict):
            raise CheckpointError(f"{manifest_file}: {name} is not an object")
    try:
        shapes = dict(expected(record))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{manifest_file}: record does not fit this version or run ({error})"
        ) from None
    require_signature(manifest_file, manifest)
    state = open_tensors(state_file)
    if set(state.shapes) != set(shapes):
        missing, unexpected = (
            sorted(set(shapes) - set(state.shapes)),
            sorted(set(state.shapes) - set(shapes)),
        )
        raise CheckpointError(
            f"{state_file}: missing tensors {missing}, unexpected tensors {str(unexpected)[:160]}"
        )
    if set(tensors) != set(shapes):
        raise CheckpointError(f"{manifest_file}: tensors are not those of {STATE_FILE}")
    for name, shape in shapes.items():
        if state.shapes[name] != shape:
            raise CheckpointError(
                f"{state_file}: {name} has shape {list(state.shapes[name])}, not {list(shape)}"
            )
    if state.header_digest != manifest["header"]:
        raise CheckpointError(f"{state_file}: SHA-256 does not hold for its header")
    arrays = state.read()
    for name, array in arrays.items():
        if array_digest(array) != tensors[name]:
            raise CheckpointError(f"{state_file}: SHA-256 does not hold for {name}")
        if not np.isfinite(array).all():
            raise CheckpointError(f"{state_file}: {name} holds NaN or infinity")
    return Checkpoint(step, {name: arrays[name].copy() for name in shapes}, record)
