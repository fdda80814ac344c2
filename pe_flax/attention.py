"""Scaled dot-product attention in plain operations, for a block of query rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from pe_core.encodings import Sizes
from pe_core.model.config import MASKED_LOGIT, ComputeConfig
from pe_flax.call import Call
from pe_flax.encodings.kinds import (
    Additive,
    Contextual,
    Encoding,
    LogitBias,
    QueryKey,
    Steps,
    Terms,
)
from pe_flax.layers import Linear
from pe_flax.positions import Rows


def attend(
    query: Float[Array, "batch length heads width"],
    key: Float[Array, "batch length heads width"],
    value: Float[Array, "batch length heads d_head"],
    scale: float,
    call: Call,
    biases: Sequence[LogitBias] = (),
    terms: Sequence[Terms] = (),
    rows_per_block: int | None = None,
) -> Float[Array, "batch length heads d_head"]:
    """Return the mixed values. Logits and softmax are float32 (float64 for float64 inputs), and a
    query that sees no key gets zeros.

    Args:
        query: mapped, not scaled; of any width.
        key: mapped.
        value: of each step.
        scale: of the product of query and key.
        call: positions, masks and taps; "logits", "weights" and "mixed" are tapped where all rows
            are one block.
        biases: added to the logits.
        terms: added to the logits and the mixed values.
        rows_per_block: query rows at a time; each block is computed again in the backward pass.
    """
    length = query.shape[1]
    exact = query.dtype if query.dtype == jnp.float64 else jnp.float32
    query, key = query.astype(exact) * scale, key.astype(exact)
    # An exported program has one graph for all lengths, and their number of blocks differs.
    symbolic = not isinstance(length, int)
    whole = rows_per_block is None or symbolic or rows_per_block >= length

    def tap(name: str, array: Array) -> None:
        if whole:
            call.tap_layer(f"attention.{name}", array)

    def block(rows: Rows) -> Array:
        scores = logits = jnp.einsum("bqhd,bkhd->bhqk", rows.of(query, 1), key)
        bias = jnp.zeros((), exact)
        if biases:
            here = call.positions.rows(rows)
            for item in biases:
                found = item.bias(here, call.positions).astype(exact)
                bias = bias + (found if found.ndim == 4 else found[None])
            logits = logits + bias
        for term in terms:
            if term.logits is not None:
                logits = logits + term.logits(rows, scores, bias)
        tap("logits", logits)
        visible = call.visible(rows)
        weights = _softmax(logits, visible)
        tap("weights", weights)
        dropped = call.drop(weights, "attention_weights", rows).astype(value.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", dropped, value)
        for term in terms:
            if term.mix is not None:
                mixed = mixed + term.mix(rows, dropped, visible)
        if call.taps is not None:
            tap("mixed", mixed.swapaxes(1, 2))
        return mixed

    if not whole and isinstance(call.positions.values, np.ndarray):
        # Positions of NumPy cannot be cut at a traced row, so these blocks run one by one.
        assert rows_per_block is not None
        starts = range(0, length, rows_per_block)
        cut = [Rows(start, min(rows_per_block, length - start)) for start in starts]
        return jnp.concatenate([jax.checkpoint(partial(block, rows))() for rows in cut], axis=1)
    return by_blocks(block, length, None if whole else rows_per_block)


def by_blocks(
    block: Callable[[Rows], Array], length: Any, rows_per_block: int | None
) -> Float[Array, "batch length heads d_head"]:
    """Return the rows of all blocks, one after the other; the last block may be shorter."""
    if rows_per_block is None:
        return block(Rows(0, length))
    # The rest is a block of its own: a slice that reached beyond the end would be moved silently.
    count, rest = divmod(length, rows_per_block)
    again = jax.checkpoint(lambda start: block(Rows(start, rows_per_block)))
    stacked = jax.lax.map(again, jnp.arange(count, dtype=jnp.int32) * rows_per_block)
    found = jnp.moveaxis(stacked, 0, 1)
    found = found.reshape(found.shape[0], count * rows_per_block, *found.shape[3:])
    if not rest:
        return found
    last = jax.checkpoint(lambda: block(Rows(count * rows_per_block, rest)))
    return jnp.concatenate([found, last()], axis=1)


def _softmax(
    logits: Float[Array, "batch heads rows keys"],
    visible: Bool[Array, "#batch 1 #rows keys"] | None,
) -> Float[Array, "batch heads rows keys"]:
    """Return the softmax over the visible keys, zeros where there is none."""
    if visible is None:
        return jax.nn.softmax(logits, axis=-1)
    weights = jax.nn.softmax(jnp.where(visible, logits, MASKED_LOGIT), axis=-1)
    return weights * visible.any(axis=-1, keepdims=True).astype(weights.dtype)


class Attention(nnx.Module):
    """Multi-head self-attention: one product for query, key and value, heads side by side.

    Args:
        sizes: width of a step and number of heads.
        bias: biases on query, key and value.
        compute: how it is computed.
    """

    def __init__(self, sizes: Sizes, *, bias: bool, compute: ComputeConfig) -> None:
        self.sizes = sizes
        self.rows_per_block = compute.rows_per_block
        self.qkv = Linear(sizes.d_model, 3 * sizes.d_model, bias=bias, compute=compute)
        self.out = Linear(sizes.d_model, sizes.d_model, compute=compute)

    def project(self, x: Float[Array, "*batch length d_model"]) -> tuple[Array, Array, Array]:
        """Return query, key and value, (*batch, length, heads, d_head) each."""
        parts = self.qkv(x).reshape(*x.shape[:-1], 3, self.sizes.num_heads, self.sizes.d_head)
        return parts[..., 0, :, :], parts[..., 1, :, :], parts[..., 2, :, :]

    # Private: `nnx.tabulate` shows the public calls of modules, and cannot show a Call.
    def _attend(
        self,
        x: Float[Array, "batch length d_model"],
        call: Call,
        encodings: Sequence[Encoding],
    ) -> Float[Array, "batch length d_model"]:
        """Return the attended steps.

        Args:
            x: steps.
            call: what the layers share.
            encodings: that act in this layer; an additive one acts on what attention reads.
        """
        for item in encodings:
            if isinstance(item, Additive):
                x = call.positions.restore(item.add(x, call.positions), x)
        query, key, value = self.project(x)
        if call.taps is not None:
            for name, array in (("query", query), ("key", key), ("value", value)):
                call.tap_layer(f"attention.{name}", array.swapaxes(1, 2))
        scale = self.sizes.d_head**-0.5
        for item in encodings:
            scale *= item.options.factor(self.sizes)
        steps = Steps(x, query, key, value, scale, self.project)
        for item in encodings:
            if isinstance(item, QueryKey):
                query = item.map_query(query, call.positions)
                key = item.map_key(key, call.positions)
        biases = [item for item in encodings if isinstance(item, LogitBias)]
        terms = [item._prepare(steps, call) for item in encodings if isinstance(item, Contextual)]
        mixed = attend(query, key, value, scale, call, biases, terms, self.rows_per_block)
        output = self.out(mixed.reshape(x.shape))
        call.tap_layer("attention.output", output)
        return output
