"""Positional encodings and a sequence classifier in PyTorch."""

from pe_core.encodings import LearnedTable, Rotary, Shaw, Sinusoidal, T5Bias
from pe_core.model.config import ComputeConfig, Features, ModelConfig, Tokens
from pe_core.training.config import TrainConfig
from pe_torch.encoder import Encoder, SequenceClassifier
from pe_torch.encodings import (
    LearnedTableEncoding,
    RotaryEncoding,
    ShawEncoding,
    SinusoidalEncoding,
    T5BiasEncoding,
    register,
)
from pe_torch.engine import load_predictor
from pe_torch.mkl import choose_kernels
from pe_torch.optimizer import Adam
from pe_torch.self_attention import SelfAttention
from pe_torch.stock_optimizer import export_adam, import_adam
from pe_torch.weights import from_arrays, load, save, to_arrays

choose_kernels()

__all__ = [
    "Adam",
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
    "export_adam",
    "from_arrays",
    "import_adam",
    "load",
    "load_predictor",
    "register",
    "save",
    "to_arrays",
]
