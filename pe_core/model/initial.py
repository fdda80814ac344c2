"""The weights drawn from a seed: a function of (config, seed) alone, the same bits wherever they
are loaded.
"""

from __future__ import annotations

import math
import zlib

import numpy as np

from pe_core.model.config import ModelConfig
from pe_core.model.parameters import Parameter, parameters
from pe_core.model.random import INITIAL_WEIGHTS, derive, normal, uniform

NORMAL_STANDARD_DEVIATION = 0.02


def initial_arrays(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the initial float32 weights of a SequenceClassifier under their canonical names."""
    return draw(parameters(config), seed)


def draw(items: tuple[Parameter, ...], seed: int) -> dict[str, np.ndarray]:
    """Return float32 arrays, each drawn in float64 from the key of its own name and cast once.

    The key depends on the name alone, so a weight does not change when another is added before it.
    """
    return {item.name: _draw(item, seed).astype(np.float32) for item in items}


def _draw(item: Parameter, seed: int) -> np.ndarray:
    key = derive(seed, INITIAL_WEIGHTS, zlib.crc32(item.name.encode()))
    match item.law:
        case "xavier_uniform":
            bound = math.sqrt(6.0 / sum(item.shape))
            return (2.0 * uniform(key, item.shape) - 1.0) * bound
        case "normal":
            return normal(key, item.shape) * NORMAL_STANDARD_DEVIATION
        case "ones":
            return np.ones(item.shape)
        case "zeros":
            return np.zeros(item.shape)
