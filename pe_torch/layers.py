"""The small layers: dense, table, norm."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pe_core.model.config import LAYER_NORM_EPSILON, ComputeConfig
from pe_core.model.initial import draw
from pe_core.model.laws import Parameter
from pe_core.model.values import require_tokens_fit
from pe_torch.positions import can_read


def under_autocast(x: Tensor) -> bool:
    """Return whether autocast is on for the device of x."""
    if not torch._C._is_any_autocast_enabled():
        return False
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Return the context in which products with x keep the dtype that they are given."""
    return torch.autocast(x.device.type, enabled=False) if under_autocast(x) else nullcontext()


def widened(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of logits and softmax: float64 for float64, else float32."""
    return dtype if dtype == torch.float64 else torch.float32


class Linear(nn.Module):
    """A dense layer, x W^T + b, in the dtype of its weight, or with the product in bfloat16."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, compute: ComputeConfig
    ) -> None:
        super().__init__()
        dtype = getattr(torch, compute.array_dtype)
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype)) if bias else None
        # None follows the weight, which a cast of the module may change.
        self.product_dtype = torch.bfloat16 if compute.precision == "bfloat16" else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the product, (..., out_features), in the dtype of products."""
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        dtype = weight.dtype if self.product_dtype is None else self.product_dtype
        if weight.dtype != dtype:
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        # Autocast casts by itself, all but float64.
        if x.dtype != dtype and (x.dtype == torch.float64 or not under_autocast(x)):
            x = x.to(dtype)
        return functional.linear(x, weight, bias)


class Table(nn.Module):
    """A trained vector per token."""

    def __init__(self, rows: int, width: int, *, compute: ComputeConfig) -> None:
        super().__init__()
        self.table = nn.Parameter(
            torch.empty(rows, width, dtype=getattr(torch, compute.array_dtype))
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the rows of the tokens, (batch, length, width). Where the tokens cannot be read,
        as in a compiled or transformed call, one outside the table cannot raise and gives NaN.
        """
        if not can_read(tokens):
            return rows_or_nan(tokens, self.table)
        require_tokens_fit(len(self.table), int(tokens.min()), int(tokens.max()))
        return functional.embedding(tokens, self.table)


class LayerNorm(nn.Module):
    """Layer normalisation with the epsilon of the config."""

    def __init__(self, width: int, *, compute: ComputeConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dtype=getattr(torch, compute.array_dtype)))
        self.bias = nn.Parameter(torch.empty_like(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised over its last axis, in the dtype of the weight."""
        weight = self.weight
        if x.dtype != weight.dtype:
            x = x.to(weight.dtype)
        return functional.layer_norm(x, weight.shape, weight, self.bias, LAYER_NORM_EPSILON)


def rows_or_nan(index: Tensor, table: Tensor) -> Tensor:
    """Return the rows of a table at whole numbers, NaN outside the table; no value is looked at."""
    inside = (index >= 0) & (index < table.shape[0])
    rows = functional.embedding(torch.where(inside, index, 0), table)
    return torch.where(inside[..., None], rows, torch.nan)


def random_seed() -> int:
    """Return a seed drawn from torch's own generator."""
    return int(torch.randint(1 << 62, (), device="cpu"))


def initial_parameter(item: Parameter, seed: Any, compute: ComputeConfig | None) -> nn.Parameter:
    """Return a parameter drawn from its initial law.

    Args:
        item: name, shape and law.
        seed: the same values in both backends; None draws the seed from torch's own generator.
        compute: its precision is that of the parameter; float32 when None.
    """
    array = draw((item,), random_seed() if seed is None else seed)[item.name]
    value = torch.from_numpy(array.astype((compute or ComputeConfig()).array_dtype))
    return nn.Parameter(value.to(torch.get_default_device()))
