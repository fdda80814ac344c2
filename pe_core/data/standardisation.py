"""`Standardisation`: each feature's mean and scale, fitted on training data, saved with a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from pe_core.data.sequences import Sequences
from pe_core.errors import UserTypeError, UserValueError


@dataclass(frozen=True)
class Standardisation:
    """Standardise each feature: (x - mean) / scale.

    Attributes:
        mean: one number per feature, in the feature's own unit.
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
    def fit(cls, sequences: Sequences) -> Standardisation:
        """Fit the mean and scale of each feature over the real steps, in float64.

        Raises:
            ValueError: the sequences are tokens.
        """
        _refuse_tokens(sequences)
        steps = real_steps(sequences).astype(np.float64)
        mean, scale = steps.mean(axis=0), steps.std(axis=0)
        # The mean of a constant is rounded, so its deviation need not be 0; equal extremes show
        # that a feature is constant.
        constant = steps.min(axis=0) == steps.max(axis=0)
        mean, scale = (
            np.where(constant, steps[0], mean),
            np.where(constant | (scale == 0.0), 1.0, scale),
        )
        return cls(tuple(mean.tolist()), tuple(scale.tolist()))

    def apply(self, sequences: Sequences) -> Sequences:
        """Standardise the features in float64 and cast once to float32; padding stays 0.

        Raises:
            ValueError: the sequences are tokens or have another number of features.
        """
        _refuse_tokens(sequences)
        if sequences.num_features != len(self.mean):
            raise UserValueError(
                f"sequences have {sequences.num_features} features, the standardisation "
                f"{len(self.mean)}; use data with as many"
            )
        inputs = (sequences.inputs - self._array("mean")) / self._array("scale")
        return Sequences(inputs, sequences.labels, sequences.mask, sequences.class_names)

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

    def _array(self, name: str) -> Float64[np.ndarray, " features"]:
        return np.asarray(getattr(self, name), np.float64)


def real_steps(sequences: Sequences) -> Float32[np.ndarray, "steps features"]:
    """Concatenate the real steps of all examples, float32 (steps, features)."""
    if sequences.mask is None:
        return sequences.inputs.reshape(-1, sequences.inputs.shape[-1])
    return sequences.inputs[sequences.mask]


def _refuse_tokens(sequences: Sequences) -> None:
    if sequences.num_features is None:
        raise UserValueError(
            "tokens cannot be standardised, inputs are int32; standardise float features only"
        )


def _checked_numbers(field: str, numbers: Any) -> tuple[float, ...]:
    if not isinstance(numbers, list | tuple | np.ndarray) or not len(numbers):
        raise UserTypeError(
            f"{field} must be a list of numbers, got {numbers!r}; give one per feature"
        )
    for feature, number in enumerate(numbers):
        if isinstance(number, bool) or not isinstance(number, int | float | np.number):
            raise UserTypeError(f"{field} of feature {feature} is {number!r}; it must be a number")
        if not math.isfinite(number):
            raise UserValueError(f"{field} of feature {feature} is {number}; it must be finite")
    return tuple(float(number) for number in numbers)
