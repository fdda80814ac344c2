"""A model directory: `config.json` and `model.safetensors`, the same for every framework."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.numpy

from pe_core.config import ModelConfig
from pe_core.parameters import Parameter, parameters

FORMAT: Final = 1
CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"


@dataclass(frozen=True)
class SavedModel:
    """What a model directory holds.

    Args:
        config: what the model is.
        arrays: weights under their canonical names, in the order of the file.
        details: what else was saved with it, such as "class_names" and "standardisation".
    """

    config: ModelConfig
    arrays: dict[str, np.ndarray]
    details: dict[str, Any] = field(default_factory=dict)


def save_model(directory: str | os.PathLike[str], saved: SavedModel) -> None:
    """Write a model directory; each file is written beside, synced and renamed, so none is ever half there.

    Raises:
        ValueError: the arrays do not fit the config.
    """
    check_arrays(parameters(saved.config), saved.arrays, "the model")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    # safetensors writes the memory of an array as it lies and ignores strides; only contiguous arrays come back as they were.
    arrays = {item.name: np.ascontiguousarray(saved.arrays[item.name]) for item in parameters(saved.config)}
    # One entry only: safetensors writes several in any order, and the same model is to give the same bytes.
    weights = safetensors.numpy.save(arrays, metadata={"sha256": digest(arrays)})
    returned = safetensors.numpy.load(weights)
    if any(returned[name].tobytes() != array.tobytes() for name, array in arrays.items()):
        raise RuntimeError(
            f"the weights did not survive writing to {folder}; this is a fault of the safetensors package, nothing was written"
        )
    record = {"format": FORMAT, "model": saved.config.to_json(), **saved.details}
    write_file(folder / WEIGHTS_FILE, weights)
    write_file(folder / CONFIG_FILE, (json.dumps(record, indent=2) + "\n").encode())


def load_model(directory: str | os.PathLike[str]) -> SavedModel:
    """Read a model directory.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, of another format, or does not fit the config; all names are reported together.
    """
    folder = Path(directory)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"{folder} is not a model directory, {file} is missing; pass a directory that save() or `pe train` wrote"
            )
    record = read_json(folder / CONFIG_FILE)
    if not isinstance(record, dict) or record.get("format") != FORMAT or "model" not in record:
        found = record.get("format") if isinstance(record, dict) else record
        raise ValueError(f"{folder / CONFIG_FILE} has format {found!r}, this version reads format {FORMAT}; save the model again")
    try:
        config = ModelConfig.from_json(record.pop("model"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {error}") from None
    record.pop("format")
    return SavedModel(config, read_arrays(folder / WEIGHTS_FILE, parameters(config)), record)


def read_arrays(path: Path, items: tuple[Parameter, ...]) -> dict[str, np.ndarray]:
    """Return the arrays of a weights file in the canonical order, checked against names, shapes and the digest in the file."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = set(file.keys())
            found = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            check_arrays(items, found, str(path))
            arrays = {item.name: file.get_tensor(item.name) for item in items}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it from a copy or train again") from None
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64):
            raise ValueError(f"{path}: {name} holds {array.dtype}, weights are float32 or float64; save the model again")
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} holds NaN or infinity; restore it from a copy or train again")
    if "sha256" in metadata and metadata["sha256"] != digest(arrays):
        raise ValueError(f"{path} is damaged (the SHA-256 of its weights is not the one it was saved with); restore it from a copy")
    return arrays


def check_arrays(items: Iterable[Parameter], arrays: Mapping[str, Any], source: str) -> None:
    """Raise one ValueError that reports every missing, unexpected and misshapen name together.

    Args:
        items: the weights that are expected.
        arrays: arrays, or their shapes.
        source: where the arrays come from, for the message.
    """
    expected = {item.name: item.shape for item in items}
    shapes = {name: tuple(getattr(array, "shape", array)) for name, array in arrays.items()}
    misshapen = [f"{name} is {shapes[name]}, not {shape}" for name, shape in expected.items() if shapes.get(name, shape) != shape]
    problems = {
        "missing": [name for name in expected if name not in shapes],
        "unexpected": sorted(name for name in shapes if name not in expected),
        "misshapen": misshapen,
    }
    found = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
    if found:
        raise ValueError(f"{source} does not fit the config; {found}; load it with the config it was saved with")


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the names, dtypes and bytes of arrays, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        sha.update(np.ascontiguousarray(arrays[name]).tobytes())
    return sha.hexdigest()


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; raise one clear line when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; check the path") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); restore it from a copy") from None


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: beside, synced, renamed, the folder synced."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        os.close(handle)
        write_synced(Path(temporary), content)
        # mkstemp makes files that only their owner can read; a model is meant to be shared like any other file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
