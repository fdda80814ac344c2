"""Scaled dot-product attention for a block of queries against all keys, in plain operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pe_core.model.config import MASKED_LOGIT, ComputeConfig, ModelConfig
from pe_torch.dropout import Drop
from pe_torch.layers import Linear

Taps = dict[str, Any]

# Float32 numbers in the widest vector of a CPU.
SHORT_ROW: Final = 16


def attend(
    query: Float[Tensor, "batch heads queries d_head"],
    key: Float[Tensor, "batch heads keys d_head"],
    value: Float[Tensor, "batch heads keys d_head"],
    allowed: Bool[Tensor, "#batch 1 #queries keys"] | None,
    dropout: Callable[[Tensor], Tensor],
    tap: Callable[[str, Tensor], None] | None = None,
) -> Float[Tensor, "batch heads queries d_head"]:
    """Return the mixed values; logits and softmax are float32 (float64 for float64 inputs), and a
    query without a key gets zeros.

    Args:
        query: a block of queries.
        key: all keys.
        value: all values.
        allowed: True where a query may see a key; None allows all.
        dropout: applied to the weights.
        tap: receives "logits", "weights" and "mixed".
    """
    exact = query.dtype if query.dtype == torch.float64 else torch.float32
    logits = (query.to(exact) * query.shape[-1] ** -0.5) @ key.to(exact).transpose(-1, -2)
    if tap is not None:
        tap("logits", logits)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, MASKED_LOGIT)
    weights = _softmax(logits)
    if allowed is not None:
        weights = weights * allowed.any(dim=-1, keepdim=True)
    if tap is not None:
        tap("weights", weights)
    mixed = dropout(weights).to(value.dtype) @ value
    if tap is not None:
        tap("mixed", mixed)
    return mixed


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the last axis; torch's kernel on a CPU takes a row shorter than its vectors
    number by number, three times as slow.
    """
    if logits.shape[-1] >= SHORT_ROW:
        return logits.softmax(dim=-1)
    powers = (logits - logits.detach().amax(dim=-1, keepdim=True)).exp()
    return powers / powers.sum(dim=-1, keepdim=True)


class SelfAttention(nn.Module):
    """Multi-head self-attention: one product for query, key and value, heads side by side."""

    def __init__(self, config: ModelConfig, *, compute: ComputeConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = Linear(
            config.d_model, 3 * config.d_model, bias=config.attention_bias, compute=compute
        )
        self.out = Linear(config.d_model, config.d_model, compute=compute)

    def forward(
        self,
        x: Float[Tensor, "batch length d_model"],
        allowed: Bool[Tensor, "#batch 1 #length length"] | None,
        drop: Drop,
        layer: int,
        taps: Taps | None,
    ) -> Float[Tensor, "batch length d_model"]:
        """Return the attended steps."""
        batch, length, width = x.shape
        query, key, value = (
            self.qkv(x).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        )

        def tap(name: str, array: Tensor) -> None:
            if taps is not None:
                taps[f"layers.{layer}.attention.{name}"] = array

        if taps is not None:
            tap("query", query)
            tap("key", key)
            tap("value", value)
        mixed = attend(
            query,
            key,
            value,
            allowed,
            lambda weights: drop(weights, "attention_weights", layer),
            None if taps is None else tap,
        )
        output = cast(Tensor, self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        tap("output", output)
        return output
