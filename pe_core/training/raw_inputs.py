"""Raw inputs as people hold them, arrays or lists of sequences, cut into parts of one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from pe_core.errors import UserTypeError, UserValueError
from pe_core.model.config import Features, Inputs

# Inputs, mask and positions.
Part: TypeAlias = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]


def cut_batches(x: Any, mask: Any, positions: Any, inputs: Inputs, size: int) -> Iterator[Part]:
    """Return inputs, masks and positions of so many sequences at a time, in the dtypes that were
    given.

    Args:
        x: numbers (count, length, features), or (count, length) for one feature; integers (count,
            length) for tokens; or a list of sequences, padded here to the longest of all.
        mask: bool (count, length), True = real step; None for a list.
        positions: numbers (count, length), or for a list a list of numbers (length,); None where
            steps are counted.
        inputs: what the model takes.
        size: sequences in a part.

    Raises:
        TypeError: no real numbers.
        ValueError: a shape that the model does not take.
    """
    rows = _sequences(x)
    if rows is None:
        array = _shaped(_numbers(x, "x"), 3, inputs, "x")
        return _cut_array(array, _mask(mask, array), _places(positions, array), size)
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
    return _cut_list(arrays, _places_of_each(positions, arrays), size)


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


def _places(positions: Any, array: np.ndarray) -> np.ndarray | None:
    if positions is None:
        return None
    places = _numbers(positions, "positions")
    if places.shape != array.shape[:2]:
        raise UserValueError(
            f"positions have shape {places.shape}, x has {array.shape[:2]} steps; give one number "
            "per step"
        )
    return places


def _places_of_each(positions: Any, arrays: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    if positions is None:
        return None
    rows = list(positions) if isinstance(positions, np.ndarray) and positions.ndim else None
    rows = _sequences(positions) or rows or []
    places = [_numbers(row, f"positions of sequence {n}") for n, row in enumerate(rows)]
    if [row.shape for row in places] != [array.shape[:1] for array in arrays]:
        raise UserValueError(
            f"positions do not fit the {len(arrays)} sequences of the list x; give a list with one "
            "number per step of each"
        )
    return places


def _cut_array(
    array: np.ndarray, mask: np.ndarray | None, places: np.ndarray | None, size: int
) -> Iterator[Part]:
    # One part at least, so that empty data get their own line.
    for first in range(0, max(len(array), 1), size):
        rows = slice(first, first + size)
        yield (
            array[rows],
            None if mask is None else mask[rows],
            None if places is None else places[rows],
        )


def _cut_list(
    arrays: Sequence[np.ndarray], places: Sequence[np.ndarray] | None, size: int
) -> Iterator[Part]:
    """Pad sequences on the right to the longest of all: one shape for each batch."""
    lengths = np.array([len(array) for array in arrays], np.int64)
    if not lengths.size or not lengths.all():
        found = "no sequence" if not lengths.size else f"no step in sequence {lengths.argmin()}"
        raise UserValueError(f"x has {found}; give at least one of each")
    longest, equal = int(lengths.max()), bool((lengths == lengths[0]).all())
    for first in range(0, len(arrays), size):
        rows = slice(first, first + size)
        yield (
            _padded(arrays[rows], longest),
            None if equal else np.arange(longest) < lengths[rows, None],
            None if places is None else _padded(places[rows], longest),
        )


def _padded(arrays: Sequence[np.ndarray], length: int) -> np.ndarray:
    padded = np.zeros((len(arrays), length, *arrays[0].shape[1:]), np.result_type(*arrays))
    for row, array in enumerate(arrays):
        padded[row, : len(array)] = array
    return padded
