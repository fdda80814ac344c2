"""Reading `.npz` files: `inputs`, and optionally `labels` and `mask` or `lengths`. Nothing is unpickled."""

from __future__ import annotations

import difflib
import io
import zipfile
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool

from pe_core.data.reading import Reading, right_padded_mask, sorted_names

ARRAYS: Final = ("inputs", "labels", "mask", "lengths")


def read_npz(path: Path) -> Reading:
    """Return the contents of an `.npz` file.

    `inputs` are floats (count, length, num_features), floats (count, length) for one feature, or integers (count, length) for tokens.
    `labels`, integers or strings (count,), name the classes; the classes are the distinct labels in order. `mask` is bool
    (count, length), True = real step; `lengths`, integers (count,), say the same of right-padded sequences.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError, TypeError: the file is damaged, or holds unknown, missing, pickled or unsuitable arrays; names the file.
    """
    arrays = _arrays(path)
    inputs = arrays["inputs"]
    if inputs.ndim == 2 and inputs.dtype.kind == "f":
        inputs = inputs[..., None]
    if inputs.ndim not in (2, 3) or 0 in inputs.shape:
        raise ValueError(
            f"{path}: inputs must have shape (count, length, num_features) or (count, length), none of them 0, got {inputs.shape}; reshape"
        )
    if "mask" in arrays and "lengths" in arrays:
        raise ValueError(f"{path}: holds both mask and lengths; keep one of them")
    mask = _mask_of_lengths(path, arrays["lengths"], inputs) if "lengths" in arrays else arrays.get("mask")
    labels = _labels(path, arrays["labels"], len(inputs)) if "labels" in arrays else None
    return Reading(path, inputs, mask, labels, sorted_names(labels or ()))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:
        raise ValueError(f"{path}: not an .npz archive, or cut short, {_one_line(error)}; write it with numpy.savez") from None
    with archive:
        members = {member.removesuffix(".npy"): member for member in archive.namelist()}
        _check_names(path, list(members))
        return {name: _array(path, archive, name, member) for name, member in members.items()}


def _check_names(path: Path, names: list[str]) -> None:
    unknown = [name for name in names if name not in ARRAYS]
    if unknown:
        nearest = difflib.get_close_matches(unknown[0], ARRAYS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "remove it"
        raise ValueError(f"{path}: unknown array {', '.join(unknown)}, the known ones are {', '.join(ARRAYS)}; {hint}")
    if "inputs" not in names:
        raise ValueError(f"{path}: has no array inputs, only {', '.join(names) or 'nothing'}; save the sequences under that name")


def _array(path: Path, archive: zipfile.ZipFile, name: str, member: str) -> np.ndarray:
    # The whole member is read first, so that its checksum is compared. Damaged bytes make the parsers raise nearly anything.
    try:
        array: np.ndarray = np.lib.format.read_array(io.BytesIO(archive.read(member)), allow_pickle=False)
    except Exception as error:
        if "allow_pickle" in str(error):
            raise ValueError(f"{path}: array {name} holds Python objects and is not unpickled; save it as numbers or strings") from None
        raise ValueError(f"{path}: array {name} is damaged, {_one_line(error)}; write the file again with numpy.savez") from None
    return array


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _mask_of_lengths(path: Path, lengths: np.ndarray, inputs: np.ndarray) -> Bool[np.ndarray, "count length"] | None:
    count, length = inputs.shape[:2]
    if lengths.dtype.kind not in "iu" or lengths.shape != (count,):
        raise ValueError(f"{path}: lengths must be integers of shape ({count},), got {lengths.dtype} {lengths.shape}; give one per example")
    outside = (lengths < 1) | (lengths > length)
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(f"{path}: length {lengths[row]} of example {row} is outside 1 .. {length}; correct it, or remove the example")
    return right_padded_mask(lengths, length)


def _labels(path: Path, labels: np.ndarray, count: int) -> tuple[str, ...]:
    if labels.dtype.kind not in "iuU":
        raise TypeError(
            f"{path}: labels must be integers or strings, got dtype {labels.dtype}; convert them, for example labels.astype(int)"
        )
    if labels.shape != (count,):
        raise ValueError(f"{path}: labels {labels.shape} do not fit {count} examples; give one label per example, shape ({count},)")
    return tuple(str(label) for label in labels.tolist())
