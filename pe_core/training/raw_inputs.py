"""Raw inputs as people hold them, arrays or lists of sequences, cut into parts of one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from pe_core.errors import UserTypeError, UserValueError
from pe_core.model.config import Features, Inputs

Part: TypeAlias = tuple[np.ndarray, np.ndarray | None]


def cut_batches(x: Any, mask: Any, inputs: Inputs, size: int) -> Iterator[Part]:
    """Return inputs and masks of so many sequences at a time, in the dtype that was given.

    Args:
        x: numbers (count, length, features), or (count, length) for one feature; integers (count,
            length) for tokens; or a list of sequences, padded here to the longest of all.
        mask: bool (count, length), True = real step; None for a list.
        inputs: what the model takes.
        size: sequences in a part.

    Raises:
        TypeError: no real numbers.
        ValueError: a shape that the model does not take.
    """
    rows = _sequences(x)
    if rows is None:
        array = _shaped(_numbers(x, "x"), 3, inputs, "x")
        return _cut_array(array, _mask(mask, array), size)
    if mask is not None:
        raise UserValueError(
            "mask goes with an array, and x is a list, whose sequences have their own lengths; "
            "leave mask out"
        )
    arrays = []
    for number, row in enumerate(rows):
        what = f"sequence {number}"
        if np.ma.isMaskedArray(row):
            raise UserTypeError(
                f"{what} is a masked array; give one masked array (count, length, features), or "
                "fill in what is missing"
            )
        arrays.append(_shaped(_numbers(row, what), 2, inputs, what))
    return _cut_list(arrays, size)


def _shaped(array: np.ndarray, axes: int, inputs: Inputs, what: str) -> np.ndarray:
    """Return features with their axis, or tokens; refuse what has another number of axes."""
    leading = "(count, length" if axes == 3 else "(length"
    if not isinstance(inputs, Features):
        if array.ndim != axes - 1 or array.dtype.kind not in "iu":
            raise UserValueError(
                f"{what} is {array.dtype} {array.shape}, but the model takes tokens; give "
                f"integers {leading})"
            )
        return array
    if array.ndim == axes - 1 and inputs.num_features == 1:
        array = array[..., None]
    if array.ndim != axes:
        one = axes == 3 and array.ndim == 2
        hint = "give one sequence as x[None]" if one else "reshape"
        raise UserValueError(
            f"{what} has shape {array.shape}, not {leading}, {inputs.num_features}); {hint}"
        )
    if array.shape[-1] != inputs.num_features:
        turned = (
            ", or (count, channels, length): turn it with x.transpose(0, 2, 1)"
            if axes == 3 and array.shape[1] == inputs.num_features
            else ""
        )
        raise UserValueError(
            f"{what} has {array.shape[-1]} features, but the model takes "
            f"num_features={inputs.num_features}; give data with as many{turned}"
        )
    return array


def _sequences(x: Any) -> list[Any] | None:
    """Return the sequences of a list or of an array of objects; None for any other array."""
    if isinstance(x, np.ndarray) and x.dtype.kind == "O" and x.ndim == 1:
        return list(x)
    return list(x) if isinstance(x, list | tuple) else None


def _numbers(x: Any, what: str) -> np.ndarray:
    try:
        # A masked array keeps its mask, which `Sequences` reads.
        array = np.asanyarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())[:120]
        raise UserTypeError(f"{what} is no array of numbers ({text}); convert it") from None
    # bfloat16 is no kind of NumPy's own, but converts.
    if array.dtype.kind == "V" and array.dtype.names is None and array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiu":
        raise UserTypeError(
            f"{what} must be real numbers, got {type(x).__name__} of dtype {array.dtype}; convert "
            "it, for example with numpy.asarray(x, float)"
        )
    return array


def _mask(mask: Any, array: np.ndarray) -> np.ndarray | None:
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.shape != array.shape[:2]:
        raise UserValueError(
            f"mask must be bool {array.shape[:2]}, True = real step, got {mask.dtype} {mask.shape}"
        )
    return mask


def _cut_array(array: np.ndarray, mask: np.ndarray | None, size: int) -> Iterator[Part]:
    # One part at least, so that empty data get their own line.
    for first in range(0, max(len(array), 1), size):
        rows = slice(first, first + size)
        yield array[rows], None if mask is None else mask[rows]


def _cut_list(arrays: Sequence[np.ndarray], size: int) -> Iterator[Part]:
    """Pad sequences on the right to the longest of all: one shape for each batch."""
    lengths = np.array([len(array) for array in arrays], np.int64)
    if not lengths.size or not lengths.all():
        found = "no sequence" if not lengths.size else f"no step in sequence {lengths.argmin()}"
        raise UserValueError(f"x has {found}; give at least one of each")
    longest, equal = int(lengths.max()), bool((lengths == lengths[0]).all())
    for first in range(0, len(arrays), size):
        part = arrays[first : first + size]
        inputs = np.zeros((len(part), longest, *part[0].shape[1:]), np.result_type(*part))
        for row, array in enumerate(part):
            inputs[row, : len(array)] = array
        yield inputs, None if equal else np.arange(longest) < lengths[first : first + size, None]
