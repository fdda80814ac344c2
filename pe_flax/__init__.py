"""Positional encodings and a sequence classifier in JAX, with Flax NNX and optax."""

from pe_core import (
    ComputeConfig,
    Features,
    LearnedTable,
    ModelConfig,
    Sinusoidal,
    Tokens,
    TrainConfig,
)
from pe_flax.encoder import Encoder, SequenceClassifier
from pe_flax.encodings import LearnedTableEncoding, SinusoidalEncoding
from pe_flax.optimizer import adam
from pe_flax.stock_optimizer import export_adam, import_adam
from pe_flax.weights import from_arrays, load, save, to_arrays

__all__ = [
    "ComputeConfig",
    "Encoder",
    "Features",
    "LearnedTable",
    "LearnedTableEncoding",
    "ModelConfig",
    "SequenceClassifier",
    "Sinusoidal",
    "SinusoidalEncoding",
    "Tokens",
    "TrainConfig",
    "adam",
    "export_adam",
    "from_arrays",
    "import_adam",
    "load",
    "save",
    "to_arrays",
]
