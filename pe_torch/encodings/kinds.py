"""The four kinds of encodings, by where they act, and what they have in common.

A kind has a public method for users of a layer alone, which takes plain tensors and checks them,
and methods to override, which take `Positions` and do the mathematics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final, NamedTuple, NoReturn

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from pe_core.encodings import EncodingOptions, Sizes
from pe_core.errors import UserTypeError
from pe_core.model.config import ComputeConfig
from pe_core.model.inputs import check_heads, check_options, check_pairs, check_steps, has_table
from pe_torch.call import Call
from pe_torch.layers import initial_parameter
from pe_torch.layout import as_arrays, as_batch_first, describe, described, unwrap
from pe_torch.positions import (
    Positions,
    Rows,
    as_positions,
    first_positions,
    locate,
    offsets,
    zero_unplaced,
)

Heads = Float[Tensor, "batch heads length d_head"]
HEAD_AXES: Final = ("batch", "heads", "length", "d_head")


class Encoding(nn.Module):
    """What every encoding has: options, sizes and parameters.

    Attributes:
        options_type: the options class that this layer computes.
        takes: which sizes its constructor is given, by keyword.
    """

    options_type: ClassVar[type[EncodingOptions]]
    takes: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        options: EncodingOptions,
        sizes: Sizes,
        seed: int | None,
        compute: ComputeConfig | None,
    ) -> None:
        super().__init__()
        check_options(type(self).__name__, self.options_type, options, sizes)
        self.options: Any = options
        self.sizes = sizes
        for item in options.parameters(sizes):
            self.register_parameter(item.name, initial_parameter(item, seed, compute))
        self._prepare_constants()

    def _prepare_constants(self) -> None:
        """Make what calls need and `torch.compile` could not trace."""

    def _for_layer(self, layer: int) -> Encoding:
        """Return what acts in a layer: itself, unless every layer has its own."""
        return self


class PerLayer(nn.Module):
    """One encoding with parameters of its own in every layer."""

    def __init__(self, layers: list[Encoding]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def _for_layer(self, layer: int) -> Encoding:
        """Return the encoding of a layer."""
        return self.layers[layer]  # type: ignore[return-value]


def bare(item: nn.Module) -> Any:
    """Return the encoding inside of what wraps it, such as torch.compile, which would not be seen
    for what it is.
    """
    return item if isinstance(item, Encoding | PerLayer) else unwrap(item)


class Additive(Encoding):
    """An encoding that changes the steps themselves.

    Args:
        options: which encoding, with its options.
        d_model: width of a step.
        seed: of the initial parameters, the same in both backends; torch's own generator draws
            them when None.
        compute: its precision is that of the parameters; float32 when None.
        batch_first: False takes and gives (length, batch, d_model), as `torch.nn.Transformer` does
            by default; positions and mask stay (batch, length).
    """

    takes = ("d_model",)

    def __init__(
        self,
        options: EncodingOptions,
        *,
        d_model: int,
        seed: int | None = None,
        compute: ComputeConfig | None = None,
        batch_first: bool = True,
    ) -> None:
        super().__init__(options, Sizes(d_model), seed, compute)
        self.batch_first = batch_first

    def forward(
        self,
        x: Float[Tensor, "batch length d_model"],
        positions: Num[Tensor, "..."] | None = None,
        *,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "batch length d_model"]:
        """Return the steps with the encoding, in the dtype of x; padded steps stay as they are.

        Args:
            x: steps.
            positions: (length,) or (batch, length); the count of real steps before when None.
            mask: (batch, length) bool, True for real steps; None when all are.

        Raises:
            UserValueError, UserTypeError: a shape, dtype or position that does not fit.
        """
        as_arrays(x=x, positions=positions, mask=mask)
        x = as_batch_first(x, self.batch_first)
        check_steps(
            [self.options],
            self.sizes.d_model,
            described(x),
            describe(positions),
            describe(mask),
        )
        standing = locate(x, positions, mask, None, by_table=has_table([self.options]))
        new = self.add(x, standing)
        new = new if mask is None else torch.where(mask[..., None], new, x)
        return as_batch_first(new, self.batch_first)

    def add(self, x: Tensor, positions: Positions) -> Tensor:
        """Return the steps with the encoding; padding may hold anything."""
        raise NotImplementedError


class QueryKey(Encoding):
    """An encoding that maps queries and keys before their product.

    Args:
        options: which encoding, with its options.
        d_head: width of a head.
        num_heads: attention heads; matters where heads have parameters of their own.
        seed: of the initial parameters, the same in both backends; torch's own generator draws
            them when None.
        compute: its precision is that of the parameters; float32 when None.
    """

    takes = ("d_head", "num_heads")

    def __init__(
        self,
        options: EncodingOptions,
        *,
        d_head: int,
        num_heads: int = 1,
        seed: int | None = None,
        compute: ComputeConfig | None = None,
    ) -> None:
        super().__init__(options, Sizes(d_head * num_heads, num_heads), seed, compute)

    def forward(
        self, query: Heads, key: Heads, positions: Num[Tensor, "..."] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mapped queries and keys of the same steps; see `query` and `key`."""
        return self.query(query, positions), self.key(key, positions)

    def query(
        self, x: Heads, positions: Num[Tensor, "..."] | Positions | None = None
    ) -> Float[Tensor, "batch heads length width"]:
        """Return the mapped queries, in the dtype of x.

        Args:
            x: queries.
            positions: (length,) or (batch, length) of the queries; 0, 1, 2, ... when None.
        """
        return self.map_query(x, self._standing(x, positions))

    def key(
        self, x: Heads, positions: Num[Tensor, "..."] | Positions | None = None
    ) -> Float[Tensor, "batch heads length width"]:
        """Return the mapped keys, in the dtype of x; as `query`, of the keys."""
        return self.map_key(x, self._standing(x, positions))

    def _standing(self, x: Tensor, positions: Tensor | Positions | None) -> Positions:
        if isinstance(positions, Positions):
            return positions
        as_arrays(x=x, positions=positions)
        check_heads([self.options], self.sizes.d_head, HEAD_AXES, described(x), describe(positions))
        if positions is not None:
            return as_positions(positions)
        return first_positions(x.shape[2], x.device)

    def map_query(self, x: Tensor, positions: Positions) -> Tensor:
        """Return the mapped queries."""
        raise NotImplementedError

    def map_key(self, x: Tensor, positions: Positions) -> Tensor:
        """Return the mapped keys; mapped as queries unless overridden."""
        return self.map_query(x, positions)


class LogitBias(Encoding):
    """An encoding that adds a bias to the logits, a function of two positions alone.

    Args:
        options: which encoding, with its options.
        num_heads: attention heads.
        seed: of the initial parameters, the same in both backends; torch's own generator draws
            them when None.
        compute: its precision is that of the parameters; float32 when None.
    """

    takes = ("num_heads",)

    def __init__(
        self,
        options: EncodingOptions,
        *,
        num_heads: int,
        seed: int | None = None,
        compute: ComputeConfig | None = None,
    ) -> None:
        super().__init__(options, Sizes(num_heads, num_heads), seed, compute)

    def forward(
        self, queries: Num[Tensor, "..."] | Positions, keys: Num[Tensor, "..."] | Positions
    ) -> Float[Tensor, "*batch heads queries keys"]:
        """Return the bias; the same as `bias`."""
        return self.bias(queries, keys)

    def bias(
        self, queries: Num[Tensor, "..."] | Positions, keys: Num[Tensor, "..."] | Positions
    ) -> Float[Tensor, "*batch heads queries keys"]:
        """Return the bias between positions of queries and of keys, (length,) or (batch, length)
        each: (heads, queries, keys) or (batch, heads, queries, keys), which
        `scaled_dot_product_attention` takes as `attn_mask`. It is 0 where a step has no position.
        """
        if not isinstance(queries, Positions) or not isinstance(keys, Positions):
            given = {
                name: item.values if isinstance(item, Positions) else item
                for name, item in (("queries", queries), ("keys", keys))
            }
            as_arrays(**given)
            check_pairs([self.options], *(described(item) for item in given.values()))
        here, there = as_positions(queries), as_positions(keys)
        return zero_unplaced(self.between(here, there), here, there)

    def between(self, queries: Positions, keys: Positions) -> Tensor:
        """Return the bias, (heads, queries, keys) or (batch, heads, queries, keys)."""
        return self.of(offsets(queries, keys)).movedim(0, -3)

    def of(self, offset: Tensor) -> Tensor:
        """Return the bias of each offset, key minus query, (heads, *offset.shape)."""
        raise NotImplementedError


class Steps(NamedTuple):
    """What attention has at hand in one layer.

    Args:
        x: (batch, length, d_model), what attention reads.
        query: (batch, heads, length, d_head), not mapped and not scaled.
        key: (batch, heads, length, d_head), not mapped.
        value: (batch, heads, length, d_head).
        scale: 1/sqrt(d_head) times all factors.
        project: from (n, d_model) to query, key and value, (heads, n, d_head) each, by the
            parameters of this layer.
    """

    x: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    project: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


class Terms(NamedTuple):
    """What an encoding that reads the content adds in one layer; None adds nothing.

    Args:
        logits: from (rows, scores, bias) to what is added to the logits of these query rows. It
            sees the scores and the sum of all biases, never another encoding's term.
        mix: from (rows, weights, visible) to what is added to the mixed values; the weights are
            those that the values are mixed with, after dropout.
    """

    logits: Callable[[Rows, Tensor, Tensor], Tensor] | None = None
    mix: Callable[[Rows, Tensor, Tensor | None], Tensor] | None = None


class Contextual(Encoding):
    """An encoding that adds terms which read the content; it acts inside `SelfAttention`.

    Args:
        options: which encoding, with its options.
        d_model: width of a step.
        num_heads: attention heads.
        seed: of the initial parameters, the same in both backends; torch's own generator draws
            them when None.
        compute: its precision is that of the parameters; float32 when None.
    """

    takes = ("d_model", "num_heads")

    def __init__(
        self,
        options: EncodingOptions,
        *,
        d_model: int,
        num_heads: int,
        seed: int | None = None,
        compute: ComputeConfig | None = None,
    ) -> None:
        super().__init__(options, Sizes(d_model, num_heads), seed, compute)

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        """Raise a UserTypeError: this encoding has no call of its own."""
        raise UserTypeError(
            f"{type(self).__name__} acts inside attention; pass its options to "
            "SelfAttention(encodings=...)"
        )

    def _prepare(self, steps: Steps, call: Call) -> Terms:
        """Return the terms of one layer, to be overridden. Private because `nnx.tabulate` calls the
        public methods of modules by themselves, and functions cannot leave a compiled one.
        """
        raise NotImplementedError
