"""`Standardisation`: each feature's mean and scale, fitted on training data, saved with a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, overload

import numpy as np
from jaxtyping import Bool, Float32, Float64, Num

from pe_core.data.sequences import Sequences, checked_steps, require_finite
from pe_core.errors import UserTypeError, UserValueError

# Float64 holds every integer up to here; a larger mean of integers stays one.
FLOAT64_INTEGERS: Final = 1 << 53


@dataclass(frozen=True)
class Standardisation:
    """Standardise each feature: (x - mean) / scale.

    Attributes:
        mean: one number per feature, in the feature's own unit; a Python integer where float64
            cannot hold it, as for nanoseconds since 1970.
        scale: one positive number per feature: the standard deviation (over count, not count - 1),
            or 1 for a constant feature.

    Raises:
        TypeError: an entry is not a number.
        ValueError: no entry, lengths that differ, an entry that is not finite, or a scale that is
            not positive.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _checked_numbers("mean", self.mean))
        object.__setattr__(self, "scale", _checked_numbers("scale", self.scale))
        if len(self.mean) != len(self.scale):
            raise UserValueError(
                f"mean has {len(self.mean)} entries and scale has {len(self.scale)}; give both "
                "one number per feature"
            )
        for feature, scale in enumerate(self.scale):
            if scale <= 0.0:
                raise UserValueError(
                    f"scale of feature {feature} is {scale}; it must be positive, 1 for a "
                    "constant feature"
                )

    @classmethod
    def fit(cls, data: Sequences | np.ndarray, mask: np.ndarray | None = None) -> Standardisation:
        """Fit the mean and scale of each feature over the real steps, in float64.

        Args:
            data: sequences, or their inputs (count, length, num_features) in any dtype. Numbers are
                taken as they were before sequences were cast to float32.
            mask: of inputs, bool (count, length), True = real step; None = every step is real.

        Raises:
            TypeError, ValueError: tokens, or inputs and a mask that `Sequences` refuses.
        """
        inputs, mask = _steps(data, mask)
        require_finite(inputs, mask)
        steps = inputs.reshape(-1, inputs.shape[-1]) if mask is None else inputs[mask]
        origin = tuple(map(int, steps[0])) if _is_wide(steps) else None
        values = steps.astype(np.float64) if origin is None else _centred(steps, origin)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = values.mean(axis=0), values.std(axis=0)
        # A square may overflow, or be 0, where the deviation is neither.
        extreme = ~(np.isfinite(scale) & (scale > 0.0))
        scale[extreme] = _deviation(values[:, extreme] - mean[extreme])
        # The mean of a constant is rounded, so its deviation need not be 0; equal extremes show
        # that a feature is constant.
        constant = steps.min(axis=0) == steps.max(axis=0)
        mean, scale = (
            np.where(constant, values[0], mean),
            np.where(constant | (scale == 0.0), 1.0, scale),
        )
        means = mean.tolist()
        if origin is not None:
            means = [_sum(first, rest) for first, rest in zip(origin, means, strict=True)]
        return cls(tuple(means), tuple(scale.tolist()))

    @overload
    def apply(self, data: Sequences) -> Sequences: ...

    @overload
    def apply(
        self, data: np.ndarray, mask: np.ndarray | None = None
    ) -> Float32[np.ndarray, "count length features"]: ...

    def apply(
        self, data: Sequences | np.ndarray, mask: np.ndarray | None = None
    ) -> Sequences | np.ndarray:
        """Standardise the features in float64 and cast once to float32; padding stays 0.

        Args:
            data: sequences, or their inputs (count, length, num_features) in any dtype; the same
                comes back.
            mask: of inputs, bool (count, length), True = real step; None = every step is real.

        Raises:
            TypeError, ValueError: tokens, another number of features, or inputs and a mask that
                `Sequences` refuses.
        """
        inputs, real = _steps(data, mask)
        if inputs.shape[-1] != len(self.mean):
            raise UserValueError(
                f"sequences have {inputs.shape[-1]} features, the standardisation "
                f"{len(self.mean)}; use data with as many"
            )
        # A quotient beyond float32 becomes infinite here, and `Sequences` refuses it.
        with np.errstate(over="ignore", invalid="ignore"):
            centred = _centred(inputs, self.mean) / np.array(self.scale)
            standard = centred.astype(np.float32)
        if real is not None:
            standard[~real] = 0.0
        if isinstance(data, Sequences):
            return replace(data, inputs=standard)
        require_finite(standard, real, inputs)
        return standard

    def to_json(self) -> dict[str, list[float]]:
        """Return a dictionary of lists for JSON; `from_json` restores the same numbers."""
        return {"mean": list(self.mean), "scale": list(self.scale)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Standardisation:
        """Restore a standardisation from a dictionary made by `to_json`.

        Raises:
            TypeError: not a dictionary of lists of numbers.
            ValueError: missing or unknown keys, or numbers that the class refuses.
        """
        if not isinstance(data, Mapping):
            raise UserTypeError(
                "a standardisation must be a dictionary with the keys mean and scale, got "
                f"{type(data).__name__}; use to_json"
            )
        if set(data) != {"mean", "scale"}:
            raise UserValueError(
                "a standardisation must have the keys mean and scale, got "
                f"{sorted(map(str, data))}; write it with to_json"
            )
        return cls(_checked_numbers("mean", data["mean"]), _checked_numbers("scale", data["scale"]))


def _steps(
    data: Sequences | np.ndarray, mask: np.ndarray | None
) -> tuple[Num[np.ndarray, "count length features"], Bool[np.ndarray, "count length"] | None]:
    if isinstance(data, Sequences):
        if mask is not None:
            raise UserTypeError(
                "mask is given beside sequences, which have their own; leave it out"
            )
        inputs, mask = data.inputs if data.exact is None else data.exact, data.mask
    else:
        inputs, mask = checked_steps(data, mask)
    if inputs.ndim == 2:
        raise UserValueError(
            f"tokens cannot be standardised, inputs are {inputs.dtype}; standardise float features "
            "only"
        )
    return inputs, mask


def _is_wide(steps: np.ndarray) -> bool:
    """Return whether there are integers beyond those that float64 holds."""
    if steps.dtype.kind not in "iu" or steps.dtype.itemsize < 8:
        return False
    return bool(int(steps.max()) > FLOAT64_INTEGERS or int(steps.min()) < -FLOAT64_INTEGERS)


def _centred(
    inputs: Num[np.ndarray, "*steps features"], mean: tuple[float, ...]
) -> Float64[np.ndarray, "*steps features"]:
    """Subtract the mean of each feature; from integers beyond float64 as integers."""
    if not _is_wide(inputs):
        return inputs - np.array([float(number) for number in mean])
    whole = np.array([int(number) for number in mean], object)
    rest = np.array([float(number - int(number)) for number in mean])
    centred: Float64[np.ndarray, "*steps features"] = (inputs.astype(object) - whole).astype(
        np.float64
    ) - rest
    return centred


def _deviation(
    centred: Float64[np.ndarray, "steps features"],
) -> Float64[np.ndarray, " features"]:
    """Return the standard deviation without squares that overflow or vanish."""
    largest = np.abs(centred).max(axis=0)
    unit = np.where(largest > 0.0, largest, 1.0)
    return unit * np.sqrt(np.square(centred / unit).mean(axis=0))


def _sum(first: int, rest: float) -> float:
    """Add the two: as an integer where float64 cannot hold the sum."""
    return first + rest if abs(first) <= FLOAT64_INTEGERS else first + round(rest)


def _checked_numbers(field: str, numbers: Any) -> tuple[float, ...]:
    if not isinstance(numbers, list | tuple | np.ndarray) or not len(numbers):
        raise UserTypeError(
            f"{field} must be a list of numbers, got {numbers!r}; give one per feature"
        )
    for feature, number in enumerate(numbers):
        if isinstance(number, bool) or not isinstance(number, int | float | np.number):
            raise UserTypeError(f"{field} of feature {feature} is {number!r}; it must be a number")
        if (isinstance(number, int) and abs(number) >= 1 << 64) or not math.isfinite(number):
            raise UserValueError(
                f"{field} of feature {feature} is {str(number)[:40]}; it must be finite"
            )
    return tuple(
        int(number)
        if isinstance(number, int | np.integer) and abs(int(number)) > FLOAT64_INTEGERS
        else float(number)
        for number in numbers
    )
