"""Scaled dot-product attention for a block of queries against all keys, in plain operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from pe_core.model.config import MASKED_LOGIT, ComputeConfig, ModelConfig
from pe_flax.dropout import Drop
from pe_flax.layers import Linear

Taps = dict[str, Any]


def attend(
    query: Float[Array, "batch queries heads d_head"],
    key: Float[Array, "batch keys heads d_head"],
    value: Float[Array, "batch keys heads d_head"],
    allowed: Bool[Array, "#batch 1 #queries keys"] | None,
    dropout: Callable[[Array], Array],
    tap: Callable[[str, Array], None] | None = None,
) -> Float[Array, "batch queries heads d_head"]:
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
    exact = query.dtype if query.dtype == jnp.float64 else jnp.float32
    logits = jnp.einsum(
        "bqhd,bkhd->bhqk", query.astype(exact) * query.shape[-1] ** -0.5, key.astype(exact)
    )
    if tap is not None:
        tap("logits", logits)
    if allowed is not None:
        logits = jnp.where(allowed, logits, MASKED_LOGIT)
    weights = jax.nn.softmax(logits, axis=-1)
    if allowed is not None:
        weights = weights * allowed.any(axis=-1, keepdims=True).astype(exact)
    if tap is not None:
        tap("weights", weights)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", dropout(weights).astype(value.dtype), value)
    if tap is not None:
        tap("mixed", mixed.swapaxes(1, 2))
    return mixed


class SelfAttention(nnx.Module):
    """Multi-head self-attention: one product for query, key and value, heads side by side."""

    def __init__(self, config: ModelConfig, *, compute: ComputeConfig) -> None:
        self.num_heads = config.num_heads
        self.qkv = Linear(
            config.d_model, 3 * config.d_model, bias=config.attention_bias, compute=compute
        )
        self.out = Linear(config.d_model, config.d_model, compute=compute)

    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        allowed: Bool[Array, "#batch 1 #length length"] | None,
        drop: Drop,
        layer: int,
        taps: Taps | None,
    ) -> Float[Array, "batch length d_model"]:
        """Return the attended steps."""
        batch, length, width = x.shape
        parts = self.qkv(x).reshape(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = parts[:, :, 0], parts[:, :, 1], parts[:, :, 2]

        def tap(name: str, array: Array) -> None:
            if taps is not None:
                taps[f"layers.{layer}.attention.{name}"] = array

        if taps is not None:
            tap("query", query.swapaxes(1, 2))
            tap("key", key.swapaxes(1, 2))
            tap("value", value.swapaxes(1, 2))
        mixed = attend(
            query,
            key,
            value,
            allowed,
            lambda weights: drop(weights, "attention_weights", layer),
            None if taps is None else tap,
        )
        output = self.out(mixed.reshape(batch, length, width))
        tap("output", output)
        return output
