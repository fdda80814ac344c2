"""Positional encodings and a sequence classifier in JAX, with Flax NNX and optax."""

from pe_core.encodings import LearnedTable, Rotary, Shaw, Sinusoidal, T5Bias
from pe_core.model.config import ComputeConfig, Features, ModelConfig, Tokens
from pe_core.training.config import TrainConfig
from pe_flax.encoder import Encoder, SequenceClassifier
from pe_flax.encodings import (
    LearnedTableEncoding,
    RotaryEncoding,
    ShawEncoding,
    SinusoidalEncoding,
    T5BiasEncoding,
    register,
)
from pe_flax.engine import load_predictor
from pe_flax.optimizer import adam
from pe_flax.self_attention import SelfAttention
from pe_flax.stock_optimizer import export_adam, import_adam
from pe_flax.weights import from_arrays, load, save, to_arrays

__all__ = [
    "ComputeConfig",
    "Encoder",
    "Features",
    "LearnedTable",
    "LearnedTableEncoding",
    "ModelConfig",
    "Rotary",
    "RotaryEncoding",
    "SelfAttention",
    "SequenceClassifier",
    "Shaw",
    "ShawEncoding",
    "Sinusoidal",
    "SinusoidalEncoding",
    "T5Bias",
    "T5BiasEncoding",
    "Tokens",
    "TrainConfig",
    "adam",
    "export_adam",
    "from_arrays",
    "import_adam",
    "load",
    "load_predictor",
    "register",
    "save",
    "to_arrays",
]
