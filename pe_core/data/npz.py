"""Read `.npz` files: `inputs`, optionally `labels`, `mask` or `lengths`. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Bool

from pe_core.data.positions import UNITS, default_unit
from pe_core.data.reading import Reading, right_padded_mask, sorted_names
from pe_core.errors import UserTypeError, UserValueError, nearest
from pe_core.storage.archive import read_archive

ARRAYS: Final = ("inputs", "labels", "mask", "lengths", "positions", "positions_unit")
# As scikit-learn and aeon name them.
OTHER_NAMES: Final = {"X": "inputs", "x": "inputs", "y": "labels"}
Layout = Literal["steps-first", "channels-first"]
LAYOUTS: Final[tuple[Layout, ...]] = get_args(Layout)
_RAGGED: Final = (
    "if its sequences differ in length, pad them to one and save their lengths as an array lengths"
)
_STRINGS: Final = "save labels.astype(str)"
_OBJECT_REMEDIES: Final = {
    "inputs": _RAGGED,
    "X": _RAGGED,
    "x": _RAGGED,
    "labels": _STRINGS,
    "y": _STRINGS,
}


def read_npz(path: Path, layout: Layout = "steps-first") -> Reading:
    """Read an `.npz` file.

    `inputs` (or `X`, `x`) are floats (count, length, num_features), floats (count, length) for one
    feature, or integers (count, length) for tokens. `labels` (or `y`), integers or strings
    (count,), name the classes; the classes are the distinct labels in order. `mask` is bool (count,
    length), True = real step; `lengths`, integers (count,), are a shorthand for right-padded
    sequences. `positions`, integers or floats (count, length), say where the steps stand, in the
    unit `positions_unit`, a string.

    Args:
        path: the file.
        layout: "steps-first", or "channels-first" for inputs (count, num_features, length).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError, TypeError: the file is damaged, or an array is unknown, missing, pickled or
            unsuitable; names the file.
    """
    found = read_archive(
        path, lambda names: _check_names(path, names), object_remedies=_OBJECT_REMEDIES
    )
    arrays = {OTHER_NAMES.get(name, name): array for name, array in found.items()}
    inputs = _inputs(path, arrays["inputs"], layout)
    if "mask" in arrays and "lengths" in arrays:
        raise UserValueError(f"{path}: holds both mask and lengths; keep one of them")
    mask = (
        _mask_of_lengths(path, arrays["lengths"], inputs)
        if "lengths" in arrays
        else arrays.get("mask")
    )
    labels = _labels(path, arrays["labels"], len(inputs)) if "labels" in arrays else None
    taken = [f"{name} as {OTHER_NAMES[name]}" for name in OTHER_NAMES if name in found]
    if layout != LAYOUTS[0]:
        taken.append(layout)
    positions, unit = arrays.get("positions"), arrays.get("positions_unit")
    return Reading(
        path,
        inputs,
        mask,
        labels,
        sorted_names(labels or ()),
        taken=tuple(taken),
        positions=positions,
        positions_unit=_unit(path, positions, unit),
    )


def _unit(path: Path, positions: np.ndarray | None, unit: np.ndarray | None) -> str:
    """Return the unit of positions; where none is given, integers are steps, floats seconds."""
    if unit is None:
        return default_unit(positions) or "steps"
    if positions is None or unit.ndim or str(unit) not in UNITS:
        raise UserValueError(
            f"{path}: positions_unit must be one of {', '.join(UNITS)} beside positions, got "
            f"{str(unit)[:40]!r}; correct it"
        )
    return str(unit)


def _check_names(path: Path, names: Sequence[str]) -> None:
    known = (*ARRAYS, *OTHER_NAMES)
    unknown = [name for name in names if name not in known]
    if unknown:
        hint = nearest(
            unknown[0], ARRAYS, otherwise="rename it if it is one of these, or leave it out"
        )
        raise UserValueError(
            f"{path}: unknown array {', '.join(unknown)}, the known ones are {', '.join(ARRAYS)} "
            f"(or X and y for the first two); {hint}"
        )
    for name in ARRAYS:
        same = [found for found in names if OTHER_NAMES.get(found, found) == name]
        if len(same) > 1:
            raise UserValueError(
                f"{path}: holds both {' and '.join(same)}, each would be {name}; keep one of them"
            )
        if name == "inputs" and not same:
            raise UserValueError(
                f"{path}: has no array inputs (or X), only {', '.join(names) or 'nothing'}; save "
                "the sequences under that name"
            )


def _inputs(path: Path, inputs: np.ndarray, layout: Layout) -> np.ndarray:
    if inputs.dtype.kind == "V" and inputs.dtype.names is None:
        raise UserTypeError(
            f"{path}: inputs have dtype {inputs.dtype.str}, as files show bfloat16 and other "
            "numbers that NumPy does not know; save inputs.astype(numpy.float32)"
        )
    if inputs.ndim == 2 and inputs.dtype.kind == "f" and layout == LAYOUTS[0]:
        inputs = inputs[..., None]
    if inputs.ndim not in (2, 3) or 0 in inputs.shape:
        raise UserValueError(
            f"{path}: inputs must have shape (count, length, num_features) or (count, length), "
            f"none of them 0, got {inputs.shape}; reshape"
        )
    if layout == LAYOUTS[0]:
        return inputs
    if inputs.ndim == 2:
        raise UserValueError(
            f"{path}: the layout {layout} needs inputs (count, num_features, length), got "
            f"{inputs.shape}; leave the layout out"
        )
    return np.ascontiguousarray(inputs.swapaxes(1, 2))


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
    if labels.dtype.kind not in "iuUS":
        raise UserTypeError(
            f"{path}: labels must be integers or strings, got dtype {labels.dtype}; convert "
            "them, for example labels.astype(int)"
        )
    if labels.shape != (count,):
        remedy = {
            (2, 1): "labels.ravel()",
            (2, 2): "labels.argmax(axis=1) where they are one-hot",
        }.get((labels.ndim, min((*labels.shape[-1:], 2))))
        raise UserValueError(
            f"{path}: labels {labels.shape} do not fit {count} examples; give one label per "
            f"example, shape ({count},){f', for example {remedy}' if remedy else ''}"
        )
    if labels.dtype.kind == "S":
        try:
            labels = np.char.decode(labels, "utf-8")
        except UnicodeDecodeError as error:
            raise UserValueError(
                f"{path}: labels are bytes that are not UTF-8 ({error.object[:20]!r}); save them "
                "as strings"
            ) from None
    return tuple(str(label) for label in labels.tolist())
