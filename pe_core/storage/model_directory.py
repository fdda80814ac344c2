"""A model directory: `config.json` and `model.safetensors`, the same for every framework."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy

from pe_core.errors import UserFileNotFoundError, UserValueError
from pe_core.model.config import ModelConfig
from pe_core.model.laws import Parameter
from pe_core.model.parameters import parameters
from pe_core.storage.files import (
    SIGNATURE,
    DamagedError,
    read_json,
    require_signature,
    signed_json,
    write_files,
)
from pe_core.storage.tensors import array_bytes, open_tensors

FORMAT: Final = 1
CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
# A detail has a plain name of its own: what other libraries take for the name of a class, such as
# __class__ or _target_, is refused.
RESERVED: Final = ("format", "model", "weights_sha256", SIGNATURE)
DETAIL: Final = re.compile(r"[A-Za-z]\w*", re.ASCII)


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
    """Write a model directory; each file is written beside, synced and renamed, so none is ever
    half there.

    Raises:
        ValueError: the arrays do not fit the config, or a detail has no plain name.
    """
    check_arrays(parameters(saved.config), saved.arrays, "the model")
    folder = Path(directory)
    _require_details(saved.details, "the model")
    folder.mkdir(parents=True, exist_ok=True)
    # safetensors writes the memory of an array as it lies and ignores strides; only contiguous
    # arrays come back as they were.
    arrays = {
        item.name: np.ascontiguousarray(saved.arrays[item.name])
        for item in parameters(saved.config)
    }
    # One entry only: safetensors writes several in any order, and the same model is to give the
    # same bytes.
    sha256 = digest(arrays)
    weights = safetensors.numpy.save(arrays, metadata={"sha256": sha256})
    returned = safetensors.numpy.load(weights)
    if any(returned[name].tobytes() != array.tobytes() for name, array in arrays.items()):
        raise RuntimeError(
            f"the weights did not survive writing to {folder}; this is a fault of the "
            "safetensors package, nothing was written"
        )
    record = {
        "format": FORMAT,
        "model": saved.config.to_json(),
        "weights_sha256": sha256,
        **saved.details,
    }
    write_files({folder / WEIGHTS_FILE: weights, folder / CONFIG_FILE: signed_json(record)})


def is_saved(directory: Path) -> bool:
    """Whether a model was saved here, and wholly: its config is written last."""
    return (directory / CONFIG_FILE).is_file()


def load_model(directory: str | os.PathLike[str]) -> SavedModel:
    """Read a model directory.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, of another format, or does not fit the config; all names are
        reported together.
    """
    folder = Path(directory)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise UserFileNotFoundError(
                f"{folder} is not a model directory, {file} is missing; pass a directory that "
                "save() or `pe train` wrote"
            )
    path = folder / CONFIG_FILE
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT or "model" not in record:
        found = record.get("format") if isinstance(record, dict) else record
        if found == FORMAT:
            raise DamagedError(f"{path} has no field model; restore it from a copy")
        raise DamagedError(
            f"{path} has format {repr(found)[:40]}, this version reads format {FORMAT}; save the "
            "model again"
        )
    try:
        config = ModelConfig.from_json(record["model"])
    except (TypeError, ValueError) as error:
        raise DamagedError(f"{path}: {error}") from None
    details = {name: value for name, value in record.items() if name not in RESERVED}
    _require_details(details, str(path))
    tensors = len(open_tensors(folder / WEIGHTS_FILE).shapes)
    if config.num_layers > tensors:
        # Before the names of so many layers are made.
        raise DamagedError(
            f"{path}: num_layers is {config.num_layers}, but {WEIGHTS_FILE} has {tensors} "
            "tensors; restore it from a copy"
        )
    arrays = read_arrays(folder / WEIGHTS_FILE, parameters(config))
    require_signature(path, record)
    if record.get("weights_sha256") != digest(arrays):
        raise DamagedError(
            f"{folder / WEIGHTS_FILE} is not the one that {CONFIG_FILE} was saved with; restore "
            "both from a copy"
        )
    return SavedModel(config, arrays, details)


def read_arrays(path: Path, items: tuple[Parameter, ...]) -> dict[str, np.ndarray]:
    """Return the arrays of a weights file in the canonical order, checked against names, shapes and
    the digest in the file.
    """
    file = open_tensors(path)
    check_arrays(items, file.shapes, str(path))
    found = file.read()
    arrays = {item.name: found[item.name].copy() for item in items}
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64):
            raise DamagedError(
                f"{path}: {name} holds {array.dtype}, weights are float32 or float64; save the "
                "model again"
            )
        if not np.isfinite(array).all():
            raise DamagedError(
                f"{path}: {name} holds NaN or infinity; restore it from a copy or train again"
            )
    if file.metadata != {"sha256": digest(arrays)}:
        raise DamagedError(
            f"{path} is damaged (the SHA-256 of its weights is not the one it was saved with); "
            "restore it from a copy"
        )
    return arrays


def _require_details(details: Mapping[str, Any], source: str) -> None:
    for name in details:
        if not DETAIL.fullmatch(name) or name in RESERVED:
            raise DamagedError(
                f"{source} has a detail {name[:40]!r}; a name is of letters, digits and _ and "
                "begins with a letter"
            )


def check_arrays(items: Iterable[Parameter], arrays: Mapping[str, Any], source: str) -> None:
    """Raise one ValueError that reports every missing, unexpected and misshapen name together.

    Args:
        items: the weights that are expected.
        arrays: arrays, or their shapes.
        source: where the arrays come from, for the message.
    """
    expected = {item.name: item.shape for item in items}
    shapes = {name: tuple(getattr(array, "shape", array)) for name, array in arrays.items()}
    misshapen = [
        f"{name} is {shapes[name]}, not {shape}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    problems = {
        "missing": [name for name in expected if name not in shapes],
        "unexpected": sorted(name for name in shapes if name not in expected),
        "misshapen": misshapen,
    }
    found = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
    if found:
        raise UserValueError(
            f"{source} does not fit the config; {found}; load it with the config it was saved with"
        )


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the names, dtypes and bytes of arrays, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        sha.update(array_bytes(arrays[name]))
    return sha.hexdigest()
