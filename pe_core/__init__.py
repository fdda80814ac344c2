"""What a model is and what a run is, shared by every backend; needs none of them."""

from pe_core.encodings import LearnedTable, Sinusoidal
from pe_core.model.config import ComputeConfig, Features, ModelConfig, Tokens
from pe_core.training.config import TrainConfig

__all__ = [
    "ComputeConfig",
    "Features",
    "LearnedTable",
    "ModelConfig",
    "Sinusoidal",
    "Tokens",
    "TrainConfig",
]
