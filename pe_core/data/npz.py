"""Read `.npz` files: `inputs`, optionally `labels`, `mask` or `lengths`. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool

from pe_core.data.reading import Reading, right_padded_mask, sorted_names
from pe_core.errors import UserTypeError, UserValueError, nearest
from pe_core.storage.archive import read_archive

ARRAYS: Final = ("inputs", "labels", "mask", "lengths")


def read_npz(path: Path) -> Reading:
    """Read an `.npz` file.

    `inputs` are floats (count, length, num_features), floats (count, length) for one feature, or
    integers (count, length) for tokens. `labels`, integers or strings (count,), name the classes;
    the classes are the distinct labels in order. `mask` is bool (count, length), True = real step;
    `lengths`, integers (count,), are a shorthand for right-padded sequences.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError, TypeError: the file is damaged, or an array is unknown, missing, pickled or
            unsuitable; names the file.
    """
    arrays = read_archive(path, lambda names: _check_names(path, names))
    inputs = arrays["inputs"]
    if inputs.ndim == 2 and inputs.dtype.kind == "f":
        inputs = inputs[..., None]
    if inputs.ndim not in (2, 3) or 0 in inputs.shape:
        raise UserValueError(
            f"{path}: inputs must have shape (count, length, num_features) or (count, length), "
            f"none of them 0, got {inputs.shape}; reshape"
        )
    if "mask" in arrays and "lengths" in arrays:
        raise UserValueError(f"{path}: holds both mask and lengths; keep one of them")
    mask = (
        _mask_of_lengths(path, arrays["lengths"], inputs)
        if "lengths" in arrays
        else arrays.get("mask")
    )
    labels = _labels(path, arrays["labels"], len(inputs)) if "labels" in arrays else None
    return Reading(path, inputs, mask, labels, sorted_names(labels or ()))


def _check_names(path: Path, names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in ARRAYS]
    if unknown:
        hint = nearest(unknown[0], ARRAYS, otherwise="remove it")
        raise UserValueError(
            f"{path}: unknown array {', '.join(unknown)}, the known ones are "
            f"{', '.join(ARRAYS)}; {hint}"
        )
    if "inputs" not in names:
        raise UserValueError(
            f"{path}: has no array inputs, only {', '.join(names) or 'nothing'}; save the "
            "sequences under that name"
        )


def _mask_of_lengths(
    path: Path, lengths: np.ndarray, inputs: np.ndarray
) -> Bool[np.ndarray, "count length"] | None:
    count, length = inputs.shape[:2]
    if lengths.dtype.kind not in "iu" or lengths.shape != (count,):
        raise UserValueError(
            f"{path}: lengths must be integers of shape ({count},), got {lengths.dtype} "
            f"{lengths.shape}; give one per example"
        )
    outside = (lengths < 1) | (lengths > length)
    if outside.any():
        row = int(np.argmax(outside))
        raise UserValueError(
            f"{path}: length {lengths[row]} of example {row} is outside 1 .. {length}; correct "
            "it, or remove the example"
        )
    return right_padded_mask(lengths, length)


def _labels(path: Path, labels: np.ndarray, count: int) -> tuple[str, ...]:
    if labels.dtype.kind not in "iuU":
        raise UserTypeError(
            f"{path}: labels must be integers or strings, got dtype {labels.dtype}; convert "
            "them, for example labels.astype(int)"
        )
    if labels.shape != (count,):
        raise UserValueError(
            f"{path}: labels {labels.shape} do not fit {count} examples; give one label per "
            f"example, shape ({count},)"
        )
    return tuple(str(label) for label in labels.tolist())
