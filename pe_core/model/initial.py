"""The weights drawn from a seed: a function of (config, seed) alone, the same bits wherever they
are loaded.
"""

from __future__ import annotations

import zlib

import numpy as np

from pe_core.model.config import ModelConfig
from pe_core.model.laws import Parameter
from pe_core.model.parameters import parameters
from pe_core.model.random import INITIAL_WEIGHTS, Key, derive


def initial_arrays(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the initial float32 weights of a SequenceClassifier under their canonical names."""
    return draw(parameters(config), seed)


def draw(items: tuple[Parameter, ...], seed: int | np.integer) -> dict[str, np.ndarray]:
    """Return float32 arrays, each drawn in float64 from the key of its own name and cast once.

    The key depends on the name alone, so a weight does not change when another is added before it.
    """
    return {
        item.name: item.law.draw(parameter_key(item.name, seed), item.shape).astype(np.float32)
        for item in items
    }


def parameter_key(name: str, seed: int | np.integer) -> Key:
    """Return the key from which the parameter of a name is drawn."""
    return derive(seed, INITIAL_WEIGHTS, zlib.crc32(name.encode()))
