"""Ports of the model to other code, each with the ordinary mistakes of such a port.

Whoever wrote these had not read how the diagnosis works.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pe_core.model.config import ModelConfig


@dataclass(frozen=True)
class Port:
    """One port: the model that it computes, what it can do wrong, and the function."""

    config: ModelConfig
    mistakes: tuple[str, ...]
    taps: Callable[..., dict[str, Any]]


# The tap that a mistake reaches first, in a trace that has all; and what an answer must say.
EXPECTED: dict[str, tuple[str, str]] = {
    "input_scale": ("encoding", "the input is multiplied by sqrt(d_model)"),
    "no_encoding": ("encoding", "no positional encoding"),
    "qkv_order": ("layers.0.attention.query", "two of query, key and value are swapped"),
    "mask_ignored": ("layers.0.attention.weights", "attention ignores the mask"),
    "mask_inverted": ("layers.0.attention.weights", "attention's mask is inverted"),
    "weight_transposed": ("layers.0.attention.output", "the output's weight is transposed"),
    "bias_missing": ("layers.0.attention.query", "which bias is missing"),
    "positions_off_by_one": ("encoding", "positions start at 1"),
    "norm_epsilon": ("layers.0.norm1", "epsilon is 1e-6, not 1e-5"),
    "post_for_pre": ("layers.0.norm1", "post-norm, not pre-norm"),
    "residual_missing": ("layers.0.output", "no residual around the feed-forward part"),
    "gelu_tanh": ("layers.0.feed_forward.hidden", "tanh approximation of GELU"),
    "missing_final_norm": ("norm", "no final norm"),
    "padding_pooled": ("pooled", "pooling ignores the mask"),
    "scale_missing": ("layers.0.attention.logits", "logits are not scaled"),
    "scale_by_d_model": ("layers.0.attention.logits", "scaled by d_model, not the head's width"),
    "split_without_transpose": ("layers.0.attention.query", "heads split without a transpose"),
    "merged_without_transpose": ("layers.0.attention.output", "merged without a transpose"),
    "attention_residual_missing": ("layers.0.norm2", "no residual around attention"),
    "scale_twice": ("layers.0.attention.logits", "scaled twice, by 1/(head's width)"),
    "batch_first": ("layers.0.attention.logits", "attention runs over the batch"),
    "layers_shared": ("layers.0.output", "every layer has the weights of the last"),
    "relu": ("layers.0.feed_forward.hidden", "ReLU, not GELU"),
    "norm_epsilon_bert": ("layers.0.norm1", "epsilon is 1e-12, not 1e-5"),
    "no_biases": ("layers.0.norm1", "norms and linear layers have no bias"),
    "cls_has_position": ("encoding", "the cls step has position 0, the others start at 1"),
    "mean_for_cls": ("pooled", "mean pooling, not the cls step"),
    "sinusoid_layout": ("encoding", "the other layout of the sinusoids"),
    "pre_for_post": ("layers.0.attention.query", "pre-norm, not post-norm"),
    "heads_interleaved": ("layers.0.attention.query", "heads interleaved"),
    "heads_merged_interleaved": ("layers.0.attention.output", "heads interleaved when merged"),
}
# A port has the mistakes that its source names.
PORTS: dict[str, Port] = {}
TORCH = ("torch_functional", "torch_modules", "torch_encoder_layer")
for name in (*TORCH, "flax_modules", "jax_functions", "numpy_alone"):
    module = import_module(f"{__name__}.{name}")
    source = inspect.getsource(module)
    mistakes = tuple(mistake for mistake in EXPECTED if f'"{mistake}"' in source)
    PORTS[name] = Port(module.CONFIG, mistakes, module.taps)
