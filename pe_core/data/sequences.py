"""`Sequences`: examples of one length with a mask, labels and class names, checked at creation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, Integer, Num

from pe_core.data.positions import checked_positions
from pe_core.errors import UserTypeError, UserValueError

TOKEN_LIMIT: Final = 1 << 31
# Float32 holds every integer up to here.
FLOAT32_INTEGERS: Final = 1 << 24


@dataclass(frozen=True, eq=False)
class Sequences:
    """Labelled sequences of features or tokens; the arrays are converted, checked and read-only.

    Attributes:
        inputs: float32 (count, length, num_features), or int32 (count, length) for tokens. Wider
            floats and integers are converted; padded steps are set to 0. Steps that a masked array
            (`numpy.ma`) masks wholly are padding too.
        labels: int32 (count,), indices into `class_names`; None where they are not known.
        mask: bool (count, length), True = real step, at least one in each row; None = every step is
            real.
        class_names: the name of each class, in the order of the labels.
        positions: int64 or float64 (count, length), where each step stands; None = steps are
            counted. Wider or narrower numbers are converted; 0 in padding.
        exact: the features as they were given, where float32 holds other numbers: what a
            standardisation is fitted on and applied to; None where it holds the same.

    Raises:
        TypeError: an array has the wrong dtype or is no array.
        ValueError: shapes that do not fit together, an empty array, a label out of range, a real
            step that is not finite, or a row without a real step.
    """

    # Not annotated with dtypes and shapes: wider arrays are accepted, and the checks below explain
    # more than a shape mismatch would.
    inputs: np.ndarray
    labels: np.ndarray | None = None
    mask: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    positions: np.ndarray | None = None
    exact: np.ndarray | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        inputs, mask = checked_steps(self.inputs, self.mask)
        names = _checked_names(self.class_names)
        labels = None if self.labels is None else _checked_labels(self.labels, len(inputs), names)
        exact = None
        if inputs.ndim == 2:
            inputs = _converted_tokens(inputs, mask)
        else:
            exact, inputs = inputs, _converted_features(inputs, mask)
            exact = None if _holds(inputs, exact, mask) else exact
        positions = self.positions
        if positions is not None:
            positions = checked_positions(positions, mask, (inputs.shape[0], inputs.shape[1]))
        arrays = {
            "inputs": inputs,
            "labels": labels,
            "mask": mask,
            "positions": positions,
            "exact": exact,
        }
        for name, array in arrays.items():
            object.__setattr__(self, name, None if array is None else _read_only(array))
        object.__setattr__(self, "class_names", names)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def count(self) -> int:
        """The number of examples."""
        return len(self.inputs)

    @property
    def length(self) -> int:
        """The number of steps of each example, padding included."""
        return self.inputs.shape[1]

    @property
    def num_features(self) -> int | None:
        """The number of features of a step; None for tokens."""
        return self.inputs.shape[2] if self.inputs.ndim == 3 else None

    @property
    def num_classes(self) -> int:
        """The number of class names."""
        return len(self.class_names)

    @property
    def lengths(self) -> Int32[np.ndarray, " count"]:
        """The number of real steps of each example, int32 (count,)."""
        if self.mask is None:
            return np.full(self.count, self.length, np.int32)
        return self.mask.sum(axis=1, dtype=np.int32)

    def take(self, indices: Integer[np.ndarray, " taken"]) -> Sequences:
        """Select the examples at these indices, in their order.

        Raises:
            TypeError: the indices are not a list of integers.
            ValueError: there are no indices, or one is outside 0 .. count - 1.
        """
        indices = checked_indices(indices, self.count)
        if not len(indices):
            raise UserValueError("indices are empty; take at least one example")
        labels = None if self.labels is None else self.labels[indices]
        mask = None if self.mask is None else self.mask[indices]
        inputs = self.inputs if self.exact is None else self.exact
        positions = None if self.positions is None else self.positions[indices]
        return Sequences(inputs[indices], labels, mask, self.class_names, positions)


def checked_steps(
    inputs: Any, mask: Any
) -> tuple[Num[np.ndarray, "..."], Bool[np.ndarray, "count length"] | None]:
    """Return inputs in the dtype in which they are and the mask, checked, but for their values; the
    steps that a masked array masks are padding.

    Raises:
        TypeError: an array has the wrong dtype or is no array.
        ValueError: shapes that do not fit together, an empty array, a row without a real step, or
            a masked array that masks some features of a step and not the others.
    """
    inputs = _checked_inputs(inputs)
    mask = None if mask is None else _checked_mask(mask, inputs)
    if isinstance(inputs, np.ma.MaskedArray):
        hidden = np.asarray(np.ma.getmaskarray(inputs)).reshape(*inputs.shape[:2], -1)
        steps = np.asarray(hidden.all(axis=2))
        inputs = np.asarray(inputs)
        real = ~steps if mask is None else mask & ~steps
        partly = hidden & real[..., None]
        if partly.any():
            row, step, feature = (int(index) for index in np.argwhere(partly)[0])
            raise UserValueError(
                f"inputs mask feature {feature} of example {row}, step {step}, but not the whole "
                "step; impute it, for example with inputs.filled(value), or mask the step"
            )
        if steps.any():
            mask = _checked_mask(real, inputs)
    return inputs, mask


def require_finite(
    inputs: Num[np.ndarray, "count length features"],
    mask: Bool[np.ndarray, "count length"] | None,
    shown: np.ndarray | None = None,
) -> None:
    """Raise a UserValueError that names the first real step that is not finite.

    Args:
        inputs: that must be finite.
        mask: bool (count, length), True = real step; None = every step is real.
        shown: where the value in the message is taken from, when it was converted.
    """
    if inputs.dtype.kind != "f":
        return
    bad = ~np.isfinite(inputs)
    if mask is not None:
        bad &= mask[..., None]
    if bad.any():
        row, step, feature = (int(index) for index in np.argwhere(bad)[0])
        value = (inputs if shown is None else shown)[row, step, feature]
        raise UserValueError(
            f"inputs hold {value} in example {row}, step {step}, feature {feature}; a real step "
            "must be finite in float32: mark it as padding in the mask, or impute it"
        )


def checked_indices(indices: np.ndarray, count: int) -> Int64[np.ndarray, " taken"]:
    """Return the indices as int64 (taken,); they must be a list of integers in 0 .. count - 1."""
    indices = np.asarray(indices)
    if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
        raise UserTypeError(
            f"indices must be integers of shape (count,), got {indices.dtype} {indices.shape}; "
            "pass an integer array"
        )
    if indices.size and not (0 <= indices.min() and indices.max() < count):
        outside = indices[(indices < 0) | (indices >= count)][0]
        raise UserValueError(
            f"index {outside} is outside 0 .. {count - 1}; pass indices of existing examples"
        )
    return indices.astype(np.int64)


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def _unmasked(what: str, array: np.ndarray) -> np.ndarray:
    if np.ma.is_masked(array):
        place = int(np.argwhere(np.ma.getmaskarray(array))[0, 0])
        raise UserValueError(
            f"{what} of example {place} is masked (numpy.ma); give its value, or leave it out"
        )
    return np.asarray(array)


def _checked_inputs(inputs: Any) -> Num[np.ndarray, "..."]:
    if not isinstance(inputs, np.ndarray):
        raise UserTypeError(
            f"inputs must be a NumPy array, got {type(inputs).__name__}; convert them with "
            "numpy.asarray"
        )
    if inputs.dtype.kind not in "fiu":
        raise UserTypeError(
            f"inputs must be real numbers, got dtype {inputs.dtype}; convert them to float32, or "
            "to int32 for tokens"
        )
    if inputs.ndim == 2 and inputs.dtype.kind == "f":
        raise UserValueError(
            f"inputs {inputs.shape} of dtype {inputs.dtype} have no feature axis; pass "
            "inputs[..., None], or int32 for tokens"
        )
    if inputs.ndim not in (2, 3):
        raise UserValueError(
            "inputs must have shape (count, length, num_features), or (count, length) for "
            f"tokens, got {inputs.shape}; reshape"
        )
    if 0 in inputs.shape:
        raise UserValueError(
            f"inputs are empty, shape {inputs.shape}; pass at least one example, one step and "
            "one feature"
        )
    return inputs


def _checked_mask(mask: Any, inputs: np.ndarray) -> Bool[np.ndarray, "count length"]:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        got = f"dtype {mask.dtype}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise UserTypeError(
            f"mask must be a bool array, True = real step, got {got}; convert it, for example "
            "mask.astype(bool)"
        )
    mask = _unmasked("mask", mask)
    if mask.shape != inputs.shape[:2]:
        raise UserValueError(
            f"mask {mask.shape} does not fit inputs {inputs.shape}; its shape must be "
            f"{inputs.shape[:2]}"
        )
    if not mask.any(axis=1).all():
        row = int(np.argmin(mask.any(axis=1)))
        raise UserValueError(
            f"example {row} has no real step, its mask is False throughout; remove the example"
        )
    return mask


def _checked_names(names: Any) -> tuple[str, ...]:
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise UserTypeError(
            f"class_names must be a tuple of non-empty strings, got {names!r}; pass one name per "
            "class"
        )
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise UserValueError(
            f"class_names repeat {', '.join(repeated)}; give each class its own name"
        )
    return tuple(names)


def _checked_labels(labels: Any, count: int, names: tuple[str, ...]) -> Int32[np.ndarray, " count"]:
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        got = f"dtype {labels.dtype}" if isinstance(labels, np.ndarray) else type(labels).__name__
        raise UserTypeError(
            f"labels must be an integer array, got {got}; pass the index of each example's class"
        )
    labels = _unmasked("labels", labels)
    if labels.shape != (count,):
        raise UserValueError(
            f"labels {labels.shape} do not fit {count} examples; pass one label per example, "
            f"shape ({count},)"
        )
    if not names:
        raise UserValueError("labels are given but class_names are not; pass a name for each class")
    outside = (labels < 0) | (labels >= len(names))
    if outside.any():
        row = int(np.argmax(outside))
        raise UserValueError(
            f"label {labels[row]} of example {row} is outside 0 .. {len(names) - 1}; correct it, "
            "or name its class in class_names"
        )
    return labels.astype(np.int32)


def _converted_features(
    inputs: Num[np.ndarray, "count length features"], mask: Bool[np.ndarray, "count length"] | None
) -> Float32[np.ndarray, "count length features"]:
    # A number beyond float32 becomes infinite here and is refused below.
    with np.errstate(over="ignore"):
        converted = inputs.astype(np.float32)
    if mask is not None:
        converted[~mask] = 0.0
    require_finite(converted, mask, inputs)
    return converted


def _holds(
    converted: np.ndarray, inputs: np.ndarray, mask: Bool[np.ndarray, "count length"] | None
) -> bool:
    """Return whether the converted features are the given ones wherever a step is real."""
    if inputs.dtype in (np.float32, np.float16):
        return True
    if inputs.dtype.kind in "iu":
        return -FLOAT32_INTEGERS <= inputs.min() and inputs.max() <= FLOAT32_INTEGERS
    same = converted == inputs
    return bool((same if mask is None else same[mask]).all())


def _converted_tokens(
    inputs: Integer[np.ndarray, "count length"], mask: Bool[np.ndarray, "count length"] | None
) -> Int32[np.ndarray, "count length"]:
    kept = inputs if mask is None else np.where(mask, inputs, 0)
    outside = (kept < 0) | (kept >= TOKEN_LIMIT)
    if outside.any():
        row, step = (int(index) for index in np.argwhere(outside)[0])
        raise UserValueError(
            f"token {inputs[row, step]} in example {row}, step {step} is outside 0 .. 2**31 - 1; "
            "number the tokens from 0, or mark the step as padding in the mask; measurements are "
            "floats: convert them with inputs.astype(float)"
        )
    return kept.astype(np.int32)
