"""Parameters and the laws from which their initial values are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pe_core.model.random import Key, normal, uniform


class Law(Protocol):
    """An initial law: a distribution, or fixed values."""

    def draw(self, key: Key, shape: tuple[int, ...]) -> np.ndarray:
        """Return float64 values of the shape, a function of the key alone."""


@dataclass(frozen=True)
class Normal:
    """A normal distribution around 0 with standard deviation `std`."""

    std: float

    def draw(self, key: Key, shape: tuple[int, ...]) -> np.ndarray:
        """Return float64 values of the shape, a function of the key alone."""
        return normal(key, shape) * self.std


@dataclass(frozen=True)
class Uniform:
    """A uniform distribution over [low, high)."""

    low: float
    high: float

    def draw(self, key: Key, shape: tuple[int, ...]) -> np.ndarray:
        """Return float64 values of the shape, a function of the key alone."""
        return self.low + (self.high - self.low) * uniform(key, shape)


@dataclass(frozen=True)
class XavierUniform:
    """Uniform within ±sqrt(6 / (in + out)) for a matrix (out, in).

    Source: Glorot and Bengio 2010, equation 16.
    """

    def draw(self, key: Key, shape: tuple[int, ...]) -> np.ndarray:
        """Return float64 values of the shape, a function of the key alone."""
        return (2.0 * uniform(key, shape) - 1.0) * math.sqrt(6.0 / sum(shape))


@dataclass(frozen=True)
class Constant:
    """The same value everywhere, such as 0 for a bias or 1 for a scale."""

    value: float

    def draw(self, key: Key, shape: tuple[int, ...]) -> np.ndarray:
        """Return float64 values of the shape; the key is not used."""
        return np.full(shape, self.value)


@dataclass(frozen=True)
class Values:
    """Given values, in row-major order."""

    values: tuple[float, ...]

    def draw(self, key: Key, shape: tuple[int, ...]) -> np.ndarray:
        """Return float64 values of the shape; the key is not used."""
        return np.array(self.values, np.float64).reshape(shape)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model.

    Args:
        name: canonical name.
        shape: canonical shape; linear weights are (out, in).
        law: initial law.
        decay: whether weight decay applies.
    """

    name: str
    shape: tuple[int, ...]
    law: Law
    decay: bool = False
