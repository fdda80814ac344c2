"""Scaled dot-product attention in plain operations, for a block of query rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pe_core.encodings import Sizes
from pe_core.model.config import MASKED_LOGIT, ComputeConfig
from pe_torch.call import Call
from pe_torch.encodings.kinds import (
    Additive,
    Contextual,
    Encoding,
    LogitBias,
    QueryKey,
    Steps,
    Terms,
)
from pe_torch.layers import Linear, widened, without_autocast
from pe_torch.positions import Rows

# Float32 numbers in the widest vector of a CPU.
SHORT_ROW: Final = 16


def attend(
    query: Float[Tensor, "batch heads length width"],
    key: Float[Tensor, "batch heads length width"],
    value: Float[Tensor, "batch heads length d_head"],
    scale: float,
    call: Call,
    biases: Sequence[LogitBias] = (),
    terms: Sequence[Terms] = (),
    rows_per_block: int | None = None,
) -> Float[Tensor, "batch heads length d_head"]:
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
    length = query.shape[2]
    exact = widened(query.dtype)
    query, key = query.to(exact) * scale, key.to(exact).transpose(-1, -2)
    # An exported program has one graph for all lengths, and their number of blocks differs.
    whole = rows_per_block is None or torch.compiler.is_exporting() or rows_per_block >= length

    def tap(name: str, array: Tensor) -> None:
        if whole:
            call.tap_layer(f"attention.{name}", array)

    def block(rows: Rows) -> Tensor:
        scores = logits = rows.of(query, 2) @ key
        bias = scores.new_zeros(())
        if biases:
            here = call.positions.rows(rows)
            for item in biases:
                bias = bias + item.bias(here, call.positions).to(exact)
            logits = logits + bias
        for term in terms:
            if term.logits is not None:
                logits = logits + term.logits(rows, scores, bias)
        tap("logits", logits)
        visible = call.visible(rows)
        weights = _softmax(logits, visible)
        tap("weights", weights)
        dropped = call.drop(weights, "attention_weights", rows).to(value.dtype)
        mixed = dropped @ value
        for term in terms:
            if term.mix is not None:
                mixed = mixed + term.mix(rows, dropped, visible)
        tap("mixed", mixed)
        return mixed

    # Autocast would take the logits in half precision, where MASKED_LOGIT has no value.
    with without_autocast(query):
        return by_blocks(block, length, None if whole else rows_per_block)


def by_blocks(
    block: Callable[[Rows], Tensor], length: int, rows_per_block: int | None
) -> Float[Tensor, "batch heads length d_head"]:
    """Return the rows of all blocks, one after the other; the last block may be shorter."""
    if rows_per_block is None:
        return block(Rows(0, length))
    every = [
        Rows(start, min(rows_per_block, length - start))
        for start in range(0, length, rows_per_block)
    ]
    if torch._C._functorch.peek_interpreter_stack() is not None:
        # torch.func knows no checkpoints.
        return torch.cat([block(rows) for rows in every], dim=2)
    return torch.cat([checkpoint(block, rows, use_reentrant=False) for rows in every], dim=2)


def _softmax(
    logits: Float[Tensor, "batch heads rows keys"],
    visible: Bool[Tensor, "#batch 1 #rows keys"] | None,
) -> Float[Tensor, "batch heads rows keys"]:
    """Return the softmax over the visible keys, zeros where there is none."""
    if visible is not None:
        logits = logits.masked_fill(~visible, MASKED_LOGIT)
    length = logits.shape[-1]
    # What is traced with a length that is not known serves rows of any length.
    if torch.compiler.is_compiling() or type(length) is not int or length >= SHORT_ROW:
        weights = logits.softmax(dim=-1)
    else:
        # torch's kernel on a CPU takes a row shorter than its vectors number by number, three times
        # as slow.
        powers = (logits - logits.detach().amax(dim=-1, keepdim=True)).exp()
        weights = powers / powers.sum(dim=-1, keepdim=True)
    return weights if visible is None else weights * visible.any(dim=-1, keepdim=True)


class Attention(nn.Module):
    """Multi-head self-attention: one product for query, key and value, heads side by side.

    Args:
        sizes: width of a step and number of heads.
        bias: biases on query, key and value.
        compute: how it is computed.
    """

    def __init__(self, sizes: Sizes, *, bias: bool, compute: ComputeConfig) -> None:
        super().__init__()
        self.sizes = sizes
        self.rows_per_block = compute.rows_per_block
        self.qkv = Linear(sizes.d_model, 3 * sizes.d_model, bias=bias, compute=compute)
        self.out = Linear(sizes.d_model, sizes.d_model, compute=compute)

    def project(self, x: Float[Tensor, "*batch length d_model"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, (*batch, heads, length, d_head) each."""
        parts = self.qkv(x).unflatten(-1, (3, self.sizes.num_heads, self.sizes.d_head))
        query, key, value = parts.movedim(-3, 0).transpose(-2, -3)
        return query, key, value

    def forward(
        self,
        x: Float[Tensor, "batch length d_model"],
        call: Call,
        encodings: Sequence[Encoding],
    ) -> Float[Tensor, "batch length d_model"]:
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
        call.tap_layer("attention.query", query)
        call.tap_layer("attention.key", key)
        call.tap_layer("attention.value", value)
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
        output: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        call.tap_layer("attention.output", output)
        return output
