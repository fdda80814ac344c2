"""Positional encodings and a sequence classifier in PyTorch."""

from pe_core import (
    ComputeConfig,
    Features,
    LearnedTable,
    ModelConfig,
    Sinusoidal,
    Tokens,
    TrainConfig,
)
from pe_torch.encoder import Encoder, SequenceClassifier
from pe_torch.encodings import LearnedTableEncoding, SinusoidalEncoding
from pe_torch.optimizer import Adam
from pe_torch.stock_optimizer import export_adam, import_adam
from pe_torch.weights import from_arrays, load, save, to_arrays

__all__ = [
    "Adam",
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
    "export_adam",
    "from_arrays",
    "import_adam",
    "load",
    "save",
    "to_arrays",
]
