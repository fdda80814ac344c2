"""Small models and batches that the tests share: all dimensions differ, so that a transposed or mixed-up axis cannot pass."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import pe_flax.engine
import pe_torch.engine
from pe_core import Features, LearnedTable, ModelConfig, Sinusoidal, Tokens
from pe_core.data import Batch
from pe_core.engine import EngineType
from pe_core.initial import initial_arrays
from pe_core.random import derive, normal, uniform

ENGINES: dict[str, EngineType] = {"torch": pe_torch.engine.Engine, "flax": pe_flax.engine.Engine}

BATCH, LENGTH, FEATURES = 5, 7, 3


def small_config(**changes: Any) -> ModelConfig:
    """A model with two layers and three heads of width four."""
    options: dict[str, Any] = {
        "inputs": Features(FEATURES),
        "num_classes": 4,
        "d_model": 12,
        "num_heads": 3,
        "num_layers": 2,
        "d_ff": 20,
        "encodings": (LearnedTable(9),),
    }
    return ModelConfig(**(options | changes))


CONFIGS = {
    "default": small_config(),
    "none": small_config(encodings=(), pooling="last"),
    "sinusoidal": small_config(encodings=(Sinusoidal(),), pooling="max"),
    "post": small_config(norm="post", activation="relu", attention_bias=True, pooling="cls", encodings=(LearnedTable(9, layers="all"),)),
    "both": small_config(encodings=(Sinusoidal(layout="half", layers="all"), LearnedTable(9)), pooling="attention", attention_bias=True),
    "tokens": small_config(inputs=Tokens(11), encodings=(Sinusoidal(layout="tensor2tensor"),), pooling="cls"),
    "dropout": small_config(dropout=0.2),
}


def perturbed_arrays(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Initial weights moved off their special values (zeros, ones, tables near zero), so that no weight is without effect."""
    arrays = initial_arrays(config, seed)
    return {
        name: (array + 0.2 * normal(derive(seed, 99, number), array.shape)).astype(np.float32)
        for number, (name, array) in enumerate(arrays.items())
    }


def small_batch(config: ModelConfig, *, masked: bool = False, seed: int = 0) -> Batch:
    """A batch for the config; masked has left, right, inner and no padding, and its last row is filler."""
    key = derive(seed, 98)
    if isinstance(config.inputs, Features):
        inputs = normal(key, (BATCH, LENGTH, config.inputs.num_features)).astype(np.float32)
    else:
        inputs = (uniform(key, (BATCH, LENGTH)) * config.inputs.vocab_size).astype(np.int32)
    labels = (np.arange(BATCH) % config.num_classes).astype(np.int32)
    batch = Batch(inputs, labels, np.ones(BATCH, np.float32), None)
    if not masked:
        return batch
    mask = np.ones((BATCH, LENGTH), bool)
    mask[1, 4:] = False
    mask[2, :3] = False
    mask[3, 2:4] = False
    mask[4] = False
    weights = np.array([1, 1, 1, 1, 0], np.float32)
    return dataclasses.replace(batch, mask=mask, weights=weights)
