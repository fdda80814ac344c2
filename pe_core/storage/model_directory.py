"""A model directory: `config.json` and `model.safetensors`, the same for every framework."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from pe_core.errors import UserFileNotFoundError, UserValueError
from pe_core.model.config import ModelConfig
from pe_core.model.laws import Parameter
from pe_core.model.parameters import parameters
from pe_core.storage.files import DamagedError, naming, new_files, write_parts
from pe_core.storage.strict_json import read_json, to_json
from pe_core.storage.tensors import (
    TensorFile,
    open_tensors,
    require_digests,
    require_finite,
    tensor_bytes,
    write_tensors,
)

FORMAT: Final = 2
CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
# Where a run keeps its model, in its own folder, and one of the files that tell such a folder.
MODEL_FOLDER: Final = "model"
METRICS_FILE: Final = "metrics.jsonl"
# "sha256" is what format 1 had: digests of the fields.
RESERVED: Final = ("format", "model", "weights_sha256", "sha256")
# A detail has a plain name of its own: what other libraries take for the name of a class, such as
# __class__ or _target_, is refused.
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
    """Write a model directory, of which no file is ever half there.

    Raises:
        ValueError: the arrays do not fit the config, or a detail has no plain name.
        OSError: the disk is full or may not be written to; the directory is named.
    """
    items = parameters(saved.config)
    check_arrays(items, saved.arrays, "the model")
    _require_details(saved.details)
    arrays = {item.name: saved.arrays[item.name] for item in items}
    folder = Path(directory)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with new_files(folder / WEIGHTS_FILE, folder / CONFIG_FILE) as (weights, config):
            record = {
                "format": FORMAT,
                "model": saved.config.to_json(),
                "weights_sha256": write_tensors(weights, arrays),
                **saved.details,
            }
            write_parts(config, [to_json(record)])


def is_saved(directory: Path) -> bool:
    """Return whether a model was saved here, and wholly: its config is written last."""
    return (directory / CONFIG_FILE).is_file()


def find_model(directory: Path) -> Path:
    """Return the model directory of a run's folder, and any other folder as it is.

    Raises:
        FileNotFoundError: it is the folder of a run that has no model yet.
    """
    if is_saved(directory / MODEL_FOLDER):
        return directory / MODEL_FOLDER
    if (directory / METRICS_FILE).is_file() and not (directory / WEIGHTS_FILE).is_file():
        raise UserFileNotFoundError(
            f"{directory} is a run that has no model yet; finish it with: pe resume {directory}"
        )
    return directory


def warn_of_details(saved: SavedModel, directory: str | os.PathLike[str]) -> None:
    """Warn the caller of `load` where the folder holds a standardisation, which a bare model does
    not apply: raw data would lose most of their accuracy without a word.
    """
    if saved.details.get("standardisation") is not None:
        warnings.warn(
            f"{directory} holds a standardisation of the inputs and the names of the classes, and "
            "load() applies neither: the model takes standardised inputs and gives logits; for raw "
            "data use load_predictor()",
            stacklevel=3,
        )


def load_model(directory: str | os.PathLike[str]) -> SavedModel:
    """Read a model directory of this version or of the one before, or that of a finished run.

    The config may have been edited: it is held to its rules and to the weights.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, of another format, or does not fit the config; all names are
        reported together.
    """
    folder = find_model(Path(directory))
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise UserFileNotFoundError(
                f"{folder} is not a model directory, {file} is missing; pass a directory that "
                "save() or `pe train` wrote"
            )
    path = folder / CONFIG_FILE
    record = read_json(path)
    found = record.get("format") if isinstance(record, dict) else record
    if type(found) is not int or not 1 <= found <= FORMAT:
        raise DamagedError(
            f"{path} has format {repr(found)[:40]}, this version reads formats 1 and 2; save the "
            "model again"
        )
    if "model" not in record:
        raise DamagedError(f"{path} has no field model; restore it from a copy")
    details = {name: value for name, value in record.items() if name not in RESERVED}
    try:
        config = ModelConfig.from_json(record["model"])
        _require_details(details)
    except (TypeError, ValueError) as error:
        raise DamagedError(f"{path}: {error}") from None
    weights = open_tensors(folder / WEIGHTS_FILE)
    if config.num_layers > len(weights.shapes):
        # Before the names of so many layers are made.
        raise DamagedError(
            f"{path}: num_layers is {config.num_layers}, but {WEIGHTS_FILE} has "
            f"{len(weights.shapes)} tensors; correct num_layers"
        )
    arrays = _read_weights(weights, parameters(config), found)
    # In format 1 all weights had one digest, and the weights file had it too.
    digest = weights.metadata["sha256"] if found == 1 else weights.header_digest
    if record.get("weights_sha256", digest) != digest:
        raise DamagedError(
            f"{weights.path} is not the one that {CONFIG_FILE} was saved with; restore both from "
            "a copy"
        )
    return SavedModel(config, arrays, details)


def _read_weights(
    weights: TensorFile, items: tuple[Parameter, ...], format: int
) -> dict[str, np.ndarray]:
    """Return the arrays of a weights file in the canonical order, checked against names, shapes and
    digests.
    """
    check_arrays(items, weights.shapes, str(weights.path))
    found = weights.read()
    arrays = {item.name: found[item.name] for item in items}
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64):
            raise DamagedError(
                f"{weights.path}: {name} holds {array.dtype}, weights are float32 or float64; "
                "save the model again"
            )
    require_finite(weights.path, arrays)
    if format > 1:
        require_digests(weights.path, arrays, weights.metadata)
    elif weights.metadata != {"sha256": _digest_of_format_1(arrays)}:
        raise DamagedError(
            f"{weights.path} is damaged (the SHA-256 of its weights is not the one it was saved "
            "with); restore it from a copy"
        )
    return arrays


def _digest_of_format_1(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the names, dtypes and bytes of arrays, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        sha.update(tensor_bytes(arrays[name]))
    return sha.hexdigest()


def _require_details(details: Mapping[str, Any]) -> None:
    for name, value in details.items():
        if not DETAIL.fullmatch(name) or name in RESERVED:
            raise UserValueError(
                f"a detail is named {name[:40]!r}; choose another name, of letters, digits and _, "
                "with a letter first"
            )
        try:
            to_json({name: value})
        except (TypeError, ValueError) as error:
            raise UserValueError(f"detail {name} cannot be saved as JSON ({error})") from None


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
