"""The random functions in NumPy, torch and JAX, with NumPy arrays in and out."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

import pe_core.model.random
import pe_flax.dropout
import pe_torch.dropout
from pe_core.model.random import Key

LARGEST = (1 << 32) - 1
# Seeds with nothing, something and everything in the high word.
SEEDS = (0, 1, 1 << 31, LARGEST, (5 << 32) + 7, (1 << 63) - 1)

Words = np.ndarray


def to_torch(words: Words) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(words).view(np.int32))


def from_torch(words: torch.Tensor) -> Words:
    return words.contiguous().numpy().view(np.uint32)


def signed(words: Words) -> tuple[int, int]:
    first, second = words.view(np.int32).tolist()
    return first, second


class Column:
    """One implementation of the random functions.

    Args:
        functions: its module.
        put: makes an array of the framework from unsigned words.
        take: makes unsigned words from an array of the framework.
        key: makes the key of a dropout mask from two unsigned words.
        integers: makes an array of the framework from integers.
    """

    def __init__(
        self,
        functions: Any,
        put: Callable[[Words], Any] = np.asarray,
        take: Callable[[Any], Words] = np.asarray,
        key: Callable[[Words], Any] = np.asarray,
        integers: Callable[[np.ndarray], Any] = np.asarray,
    ) -> None:
        self.functions, self.put, self.take, self.key = functions, put, take, key
        self.integers = integers

    def threefry2x32(self, key: Words, high: Words, low: Words) -> list[Words]:
        found = self.functions.threefry2x32(self.put(key), self.put(high), self.put(low))
        return [self.take(word) for word in found]

    def fold_in(self, key: Words, data: Words) -> Words:
        return self.take(self.functions.fold_in(self.put(key), self.put(data)))

    def keep(
        self,
        key: Key,
        shape: tuple[int, ...],
        rate: float,
        samples: np.ndarray | None = None,
        **part: Any,
    ) -> np.ndarray:
        given = part if samples is None else part | {"samples": self.integers(samples)}
        return np.asarray(self.functions.dropout_keep(self.key(key), shape, rate, **given))


COLUMNS = {
    "numpy": Column(pe_core.model.random),
    "torch": Column(pe_torch.dropout, to_torch, from_torch, signed, torch.from_numpy),
    "flax": Column(pe_flax.dropout, jnp.asarray, key=jnp.asarray, integers=jnp.asarray),
}
