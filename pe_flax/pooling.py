"""From steps to one vector per sequence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from pe_core.model.config import MASKED_LOGIT, ComputeConfig, ModelConfig
from pe_core.model.values import require_num_segments
from pe_flax.layers import zeros
from pe_flax.positions import can_look, can_read


class Pool(nnx.Module):
    """Steps to one vector per sequence, or per segment of packed sequences; zeros where there is no
    step.

    Args:
        config: its pooling; "attention" has a trained query.
        compute: how it is computed.
    """

    def __init__(self, config: ModelConfig, *, compute: ComputeConfig) -> None:
        self.kind = config.pooling
        self.query = (
            nnx.Param(zeros((config.d_model,), compute)) if config.pooling == "attention" else None
        )

    def __call__(
        self, x: Array, real: Array | None, segment_ids: Array | None, num_segments: int | None
    ) -> Array:
        """Return the pooled vectors, (batch, d_model), or (batch, num_segments, d_model) where
        segment_ids are given.

        Args:
            x: (batch, length, d_model) steps, led by the trained one for "cls".
            real: (batch, length) bool, True for real steps; None when all are.
            segment_ids: (batch, length) integers for packed sequences.
            num_segments: the most segments in a row.
        """
        if self.kind == "cls":
            return x[:, 0]
        if real is None:
            if self.kind == "mean":
                return x.mean(axis=1)
            if self.kind == "last":
                return x[:, -1]
            real = jnp.ones(x.shape[:2], bool)
        member = real[:, None]
        if segment_ids is None:
            return self._pool(x, member)[:, 0]
        look = can_read(segment_ids) if num_segments is None else can_look(segment_ids)
        highest = int(segment_ids.max()) if look else None
        num_segments = require_num_segments(num_segments, highest)
        numbers = jnp.arange(1, num_segments + 1, dtype=segment_ids.dtype)
        return self._pool(x, member & (segment_ids[:, None] == numbers[None, :, None]))

    def _pool(
        self, x: Float[Array, "batch length d_model"], member: Bool[Array, "batch segments length"]
    ) -> Float[Array, "batch segments d_model"]:
        if self.kind == "max":
            # Not jnp.max: its gradient looks for steps equal to the maximum, and XLA may compute
            # them again with another rounding.
            first = jnp.where(member[..., None], x[:, None], -jnp.inf).argmax(axis=2)
            chosen = (jnp.arange(x.shape[1])[None, None, :, None] == first[:, :, None]) & member[
                ..., None
            ]
            return jnp.where(chosen, x[:, None], 0.0).sum(axis=2)
        if self.kind == "mean":
            steps = member.astype(x.dtype)
            shares = steps / jnp.maximum(steps.sum(axis=2, keepdims=True), 1.0)
        elif self.kind == "last":
            after = member[..., ::-1].astype(jnp.int32).cumsum(axis=2)[..., ::-1]
            shares = (member & (after == 1)).astype(x.dtype)
        else:
            shares = self._attention_weights(x, member)
        return shares @ x

    def _attention_weights(self, x: Array, member: Array) -> Array:
        assert self.query is not None
        scores = ((x @ self.query[...]) * x.shape[-1] ** -0.5)[:, None]
        weights = jax.nn.softmax(jnp.where(member, scores, MASKED_LOGIT), axis=-1)
        return weights * member.any(axis=-1, keepdims=True).astype(x.dtype)
