"""The four kinds of encodings, by where they act, and what they have in common.

A kind has a public method for users of a layer alone, which takes plain tensors and checks them,
and methods to override, which take `Positions` and do the mathematics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final, NamedTuple, NoReturn

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Num

from pe_core.encodings import EncodingOptions, Sizes
from pe_core.errors import UserTypeError
from pe_core.model.config import ComputeConfig
from pe_core.model.inputs import check_heads, check_options, check_pairs, check_steps, has_table
from pe_flax.call import Call
from pe_flax.layers import initial_parameter
from pe_flax.layout import as_arrays, describe, described
from pe_flax.positions import (
    Positions,
    Rows,
    as_positions,
    first_positions,
    locate,
    offsets,
    real_steps,
    zero_unplaced,
)

Heads = Float[Array, "batch length heads d_head"]
HEAD_AXES: Final = ("batch", "length", "heads", "d_head")


class Encoding(nnx.Module):
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
        rngs: nnx.Rngs | None,
        compute: ComputeConfig | None,
    ) -> None:
        check_options(type(self).__name__, self.options_type, options, sizes)
        self.options: Any = options
        self.sizes = sizes
        for item in options.parameters(sizes):
            setattr(self, item.name, initial_parameter(item, seed, rngs, compute))

    def _for_layer(self, layer: int) -> Encoding:
        """Return what acts in a layer: itself, unless every layer has its own."""
        return self


class PerLayer(nnx.Module):
    """One encoding with parameters of its own in every layer."""

    def __init__(self, layers: list[Encoding]) -> None:
        self.layers = nnx.List(layers)

    def _for_layer(self, layer: int) -> Encoding:
        """Return the encoding of a layer."""
        return self.layers[layer]


class Additive(Encoding):
    """An encoding that changes the steps themselves.

    Args:
        options: which encoding, with its options.
        d_model: width of a step.
        seed: of the initial parameters, the same in both backends.
        rngs: its stream `params` draws the initial parameters where there is no seed.
        compute: its precision is that of the parameters; float32 when None.
    """

    takes = ("d_model",)

    def __init__(
        self,
        options: EncodingOptions,
        *,
        d_model: int,
        seed: int | None = None,
        rngs: nnx.Rngs | None = None,
        compute: ComputeConfig | None = None,
    ) -> None:
        super().__init__(options, Sizes(d_model), seed, rngs, compute)

    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        positions: Num[Array, "..."] | None = None,
        mask: Array | None = None,
    ) -> Float[Array, "batch length d_model"]:
        """Return the steps with the encoding, in the dtype of x; padded steps stay as they are.

        Args:
            x: steps.
            positions: (length,) or (batch, length); the count of real steps before when None.
            mask: (batch, length) bool, True for real steps; None when all are.

        Raises:
            UserValueError, UserTypeError: a shape, dtype or position that does not fit.
        """
        x, positions, mask = as_arrays(x=x, positions=positions, mask=mask)
        check_steps(
            [self.options],
            self.sizes.d_model,
            described(x),
            describe(positions),
            describe(mask),
        )
        x, mask = jnp.asarray(x), real_steps(mask, None)
        standing = locate(x, positions, mask, None, by_table=has_table([self.options]))
        new = self.add(x, standing)
        return new if mask is None else jnp.where(mask[..., None], new, x)

    def add(self, x: Array, positions: Positions) -> Array:
        """Return the steps with the encoding; padding may hold anything."""
        raise NotImplementedError


class QueryKey(Encoding):
    """An encoding that maps queries and keys before their product.

    Args:
        options: which encoding, with its options.
        d_head: width of a head.
        num_heads: attention heads; matters where heads have parameters of their own.
        seed: of the initial parameters, the same in both backends.
        rngs: its stream `params` draws the initial parameters where there is no seed.
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
        rngs: nnx.Rngs | None = None,
        compute: ComputeConfig | None = None,
    ) -> None:
        super().__init__(options, Sizes(d_head * num_heads, num_heads), seed, rngs, compute)

    def __call__(
        self, query: Heads, key: Heads, positions: Num[Array, "..."] | None = None
    ) -> tuple[Array, Array]:
        """Return the mapped queries and keys of the same steps; see `query` and `key`."""
        return self.query(query, positions), self.key(key, positions)

    def query(
        self, x: Heads, positions: Num[Array, "..."] | Positions | None = None
    ) -> Float[Array, "batch length heads width"]:
        """Return the mapped queries, in the dtype of x.

        Args:
            x: queries.
            positions: (length,) or (batch, length) of the queries; 0, 1, 2, ... when None.
        """
        x, standing = self._standing(x, positions)
        return self.map_query(x, standing)

    def key(
        self, x: Heads, positions: Num[Array, "..."] | Positions | None = None
    ) -> Float[Array, "batch length heads width"]:
        """Return the mapped keys, in the dtype of x; as `query`, of the keys."""
        x, standing = self._standing(x, positions)
        return self.map_key(x, standing)

    def _standing(self, x: Array, positions: Array | Positions | None) -> tuple[Array, Positions]:
        if isinstance(positions, Positions):
            return x, positions
        x, given = as_arrays(x=x, positions=positions)
        check_heads([self.options], self.sizes.d_head, HEAD_AXES, described(x), describe(given))
        if given is not None:
            return jnp.asarray(x), as_positions(given)
        return jnp.asarray(x), first_positions(x.shape[1])

    def map_query(self, x: Array, positions: Positions) -> Array:
        """Return the mapped queries."""
        raise NotImplementedError

    def map_key(self, x: Array, positions: Positions) -> Array:
        """Return the mapped keys; mapped as queries unless overridden."""
        return self.map_query(x, positions)


class LogitBias(Encoding):
    """An encoding that adds a bias to the logits, a function of two positions alone.

    Args:
        options: which encoding, with its options.
        num_heads: attention heads.
        seed: of the initial parameters, the same in both backends.
        rngs: its stream `params` draws the initial parameters where there is no seed.
        compute: its precision is that of the parameters; float32 when None.
    """

    takes = ("num_heads",)

    def __init__(
        self,
        options: EncodingOptions,
        *,
        num_heads: int,
        seed: int | None = None,
        rngs: nnx.Rngs | None = None,
        compute: ComputeConfig | None = None,
    ) -> None:
        super().__init__(options, Sizes(num_heads, num_heads), seed, rngs, compute)

    def __call__(
        self, queries: Num[Array, "..."] | Positions, keys: Num[Array, "..."] | Positions
    ) -> Float[Array, "*batch heads queries keys"]:
        """Return the bias; the same as `bias`."""
        return self.bias(queries, keys)

    def bias(
        self, queries: Num[Array, "..."] | Positions, keys: Num[Array, "..."] | Positions
    ) -> Float[Array, "*batch heads queries keys"]:
        """Return the bias between positions of queries and of keys, (length,) or (batch, length)
        each: (heads, queries, keys) or (batch, heads, queries, keys), which
        `jax.nn.dot_product_attention` takes as `bias` with four axes. It is 0 where a step has no
        position.
        """
        if not isinstance(queries, Positions) or not isinstance(keys, Positions):
            given = {
                name: item.values if isinstance(item, Positions) else item
                for name, item in (("queries", queries), ("keys", keys))
            }
            arrays = as_arrays(**given)
            check_pairs([self.options], *(described(item) for item in arrays))
            queries, keys = (
                item if isinstance(item, Positions) else as_positions(array)
                for item, array in zip((queries, keys), arrays, strict=True)
            )
        here, there = queries, keys
        return zero_unplaced(self.between(here, there), here, there)

    def between(self, queries: Positions, keys: Positions) -> Array:
        """Return the bias, (heads, queries, keys) or (batch, heads, queries, keys)."""
        return jnp.moveaxis(self.of(offsets(queries, keys)), 0, -3)

    def of(self, offset: Array) -> Array:
        """Return the bias of each offset, key minus query, (heads, *offset.shape)."""
        raise NotImplementedError


class Steps(NamedTuple):
    """What attention has at hand in one layer.

    Args:
        x: (batch, length, d_model), what attention reads.
        query: (batch, length, heads, d_head), not mapped and not scaled.
        key: (batch, length, heads, d_head), not mapped.
        value: (batch, length, heads, d_head).
        scale: 1/sqrt(d_head) times all factors.
        project: from (n, d_model) to query, key and value, (n, heads, d_head) each, by the
            parameters of this layer.
    """

    x: Array
    query: Array
    key: Array
    value: Array
    scale: float
    project: Callable[[Array], tuple[Array, Array, Array]]


class Terms(NamedTuple):
    """What an encoding that reads the content adds in one layer; None adds nothing.

    Args:
        logits: from (rows, scores, bias) to what is added to the logits of these query rows. It
            sees the scores and the sum of all biases, never another encoding's term.
        mix: from (rows, weights, visible) to what is added to the mixed values; the weights are
            those that the values are mixed with, after dropout.
    """

    logits: Callable[[Rows, Array, Array], Array] | None = None
    mix: Callable[[Rows, Array, Array | None], Array] | None = None


class Contextual(Encoding):
    """An encoding that adds terms which read the content; it acts inside `SelfAttention`.

    Args:
        options: which encoding, with its options.
        d_model: width of a step.
        num_heads: attention heads.
        seed: of the initial parameters, the same in both backends.
        rngs: its stream `params` draws the initial parameters where there is no seed.
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
        rngs: nnx.Rngs | None = None,
        compute: ComputeConfig | None = None,
    ) -> None:
        super().__init__(options, Sizes(d_model, num_heads), seed, rngs, compute)

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
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
