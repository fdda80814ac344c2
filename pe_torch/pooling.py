"""From steps to one vector per sequence."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pe_core.model.config import MASKED_LOGIT, ComputeConfig, ModelConfig
from pe_core.model.values import require_num_segments
from pe_torch.layers import widened, without_autocast
from pe_torch.positions import can_look, can_read


class Pool(nn.Module):
    """Steps to one vector per sequence, or per segment of packed sequences; zeros where there is no
    step.

    Args:
        config: its pooling; "attention" has a trained query.
        compute: how it is computed.
    """

    def __init__(self, config: ModelConfig, *, compute: ComputeConfig) -> None:
        super().__init__()
        self.kind = config.pooling
        dtype = getattr(torch, compute.array_dtype)
        self.query = (
            nn.Parameter(torch.empty(config.d_model, dtype=dtype))
            if config.pooling == "attention"
            else None
        )

    def forward(
        self, x: Tensor, real: Tensor | None, segment_ids: Tensor | None, num_segments: int | None
    ) -> Tensor:
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
                return x.mean(dim=1)
            if self.kind == "last":
                return x[:, -1]
            real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        member = real[:, None]
        if segment_ids is None:
            return self._pool(x, member)[:, 0]
        look = can_read(segment_ids) if num_segments is None else can_look(segment_ids)
        highest = int(segment_ids.max()) if look else None
        num_segments = require_num_segments(num_segments, highest)
        numbers = torch.arange(1, num_segments + 1, device=x.device)
        return self._pool(x, member & (segment_ids[:, None] == numbers[:, None]))

    def _pool(
        self,
        x: Float[Tensor, "batch length d_model"],
        member: Bool[Tensor, "batch segments length"],
    ) -> Float[Tensor, "batch segments d_model"]:
        if self.kind == "max":
            first = x[:, None].masked_fill(~member[..., None], -torch.inf).argmax(dim=2)
            return x.gather(1, first) * member.any(dim=2)[..., None]
        # Softmax, shares and sums are float32 at least, under autocast too.
        with without_autocast(x):
            wide = x.to(widened(x.dtype))
            if self.kind == "mean":
                shares = member.to(wide.dtype) / member.sum(dim=2, keepdim=True).clamp(min=1)
            elif self.kind == "last":
                shares = member & (member.flip(2).cumsum(dim=2).flip(2) == 1)
            else:
                shares = self._attention_weights(wide, member)
            return (shares.to(wide.dtype) @ wide).to(x.dtype)

    def _attention_weights(self, x: Tensor, member: Tensor) -> Tensor:
        assert self.query is not None
        query = self.query.to(x.dtype)
        scores = (x @ query * x.shape[-1] ** -0.5)[:, None].expand(member.shape)
        weights = scores.masked_fill(~member, MASKED_LOGIT).softmax(dim=-1)
        return weights * member.any(dim=-1, keepdim=True)
