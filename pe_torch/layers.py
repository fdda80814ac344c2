"""The small layers: dense, table, norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pe_core.model.config import LAYER_NORM_EPSILON, ComputeConfig
from pe_core.model.initial import draw
from pe_core.model.inputs import require_tokens_fit
from pe_core.model.laws import Parameter


class Linear(nn.Module):
    """A dense layer whose product is taken in a dtype of its own: x W^T + b."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, compute: ComputeConfig
    ) -> None:
        super().__init__()
        dtype = getattr(torch, compute.array_dtype)
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype)) if bias else None
        self.product_dtype = torch.bfloat16 if compute.precision == "bfloat16" else dtype
        self._casts = self.product_dtype != dtype

    def forward(self, x: Tensor) -> Tensor:
        """Return the product, (..., out_features), in the dtype of products."""
        if not self._casts:
            return functional.linear(x, self.weight, self.bias)
        dtype = self.product_dtype
        return functional.linear(
            x.to(dtype), self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)
        )


class Table(nn.Module):
    """A trained vector per token."""

    def __init__(self, rows: int, width: int, *, compute: ComputeConfig) -> None:
        super().__init__()
        self.table = nn.Parameter(
            torch.empty(rows, width, dtype=getattr(torch, compute.array_dtype))
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the rows of the tokens, (batch, length, width)."""
        require_tokens_fit(len(self.table), int(tokens.min()), int(tokens.max()))
        return functional.embedding(tokens, self.table)


class LayerNorm(nn.Module):
    """Layer normalisation with the epsilon of the config."""

    def __init__(self, width: int, *, compute: ComputeConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dtype=getattr(torch, compute.array_dtype)))
        self.bias = nn.Parameter(torch.empty_like(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised over its last axis."""
        return functional.layer_norm(
            x, self.weight.shape, self.weight, self.bias, LAYER_NORM_EPSILON
        )


def initial_parameter(
    item: Parameter, seed: int | None, compute: ComputeConfig | None
) -> nn.Parameter:
    """Return a parameter drawn from its initial law.

    Args:
        item: name, shape and law.
        seed: the same values in both backends; None draws the seed from torch's own generator.
        compute: its precision is that of the parameter; float32 when None.
    """
    if seed is None:
        seed = int(torch.randint(1 << 62, (), device="cpu"))
    array = draw((item,), seed)[item.name]
    return nn.Parameter(torch.from_numpy(array.astype((compute or ComputeConfig()).array_dtype)))
