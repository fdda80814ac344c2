"""What a model is and what a run is, shared by both frameworks; needs neither."""

from pe_core.config import ComputeConfig, Features, ModelConfig, Tokens, TrainConfig
from pe_core.encodings import LearnedTable, Sinusoidal

__all__ = ["ComputeConfig", "Features", "LearnedTable", "ModelConfig", "Sinusoidal", "Tokens", "TrainConfig"]
