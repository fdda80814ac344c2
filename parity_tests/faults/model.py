"""Faults of the forward pass: layers, masks, positions, encodings, pooling, loss, random numbers,
dtype.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch.nn import functional

import pe_flax.attention
import pe_flax.dropout
import pe_flax.encoder
import pe_flax.encodings.additive
import pe_flax.engine
import pe_flax.layers
import pe_flax.pooling
import pe_torch.attention
import pe_torch.dropout
import pe_torch.encoder
import pe_torch.encodings.additive
import pe_torch.engine
import pe_torch.layers
import pe_torch.pooling
from parity_tests.faults.fault import Fault, around, attribute
from pe_core.model.config import LAYER_NORM_EPSILON

ATTENTION, WEIGHTS, HIDDEN = (
    "layers.0.attention.",
    "layers.0.attention.weights",
    "layers.0.feed_forward.hidden",
)
TORCH, TORCH_DROPOUT = pe_torch.encoder.Encoder, pe_torch.dropout.Dropout
TORCH_TABLE, TORCH_WAVES = (
    pe_torch.encodings.additive.LearnedTableEncoding,
    pe_torch.encodings.additive.SinusoidalEncoding,
)


def _transposed_out(load: Any, model: Any, arrays: Any) -> Any:
    return load(
        model,
        dict(arrays) | {"layers.0.attention.out.weight": arrays["layers.0.attention.out.weight"].T},
    )


def _swapped_parts(linear: Any, module: Any, x: Any) -> Any:
    """Key and value change places in the fused product."""
    out = linear(module, x)
    width = out.shape[-1] // 3
    if out.shape[-1] != 3 * x.shape[-1]:
        return out
    parts = [out[..., :width], out[..., 2 * width :], out[..., width : 2 * width]]
    return (
        torch.cat(parts, dim=-1)
        if isinstance(out, torch.Tensor)
        else jnp.concatenate(parts, axis=-1)
    )


def _interleaved_heads(attend: Any, query: Any, key: Any, value: Any, *rest: Any) -> Any:
    """Features of a head are taken every num_heads-th instead of side by side."""

    def mixed(x: torch.Tensor) -> torch.Tensor:
        batch, heads, length, width = x.shape
        return x.transpose(1, 2).reshape(batch, length, width, heads).permute(0, 3, 1, 2)

    return attend(mixed(query), mixed(key), mixed(value), *rest)


def _scaled_by_d_model(attend: Any, query: Any, *rest: Any) -> Any:
    heads = query.shape[1] if isinstance(query, torch.Tensor) else query.shape[2]
    return attend(query * heads**-0.5, *rest)


def _inverted_mask(softmax: Any, logits: Any, visible: Any) -> Any:
    return softmax(logits, None if visible is None else ~visible)


def _no_mask(softmax: Any, logits: Any, visible: Any) -> Any:
    return softmax(logits, None)


def _shifted_table(add: Any, encoding: Any, x: Any, positions: Any) -> Any:
    steps = torch.arange(x.shape[1]) if isinstance(x, torch.Tensor) else jnp.arange(x.shape[1])
    return add(encoding, x, type(positions)(steps + 1))


def _all_real(pool: Any, module: Any, x: Any, real: Any, *rest: Any) -> Any:
    return pool(module, x, None, *rest)


def _post_norm(block: Any, module: Any, *arguments: Any) -> Any:
    module.pre_norm = False
    return block(module, *arguments)


def _left_on(begin: Any, module: Any, step: Any, *rest: Any) -> Any:
    module.train()
    return begin(module, 0, *rest)


def _mean_over_rows(dot: Any, losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return losses.mean() * weights.sum()


def _unbiased_variance(norm: Any, module: Any, x: Any) -> Any:
    """The variance is divided by one less than the width."""
    variance = x.var(axis=-1, keepdims=True, ddof=1)
    lead = (None,) * (x.ndim - 1)
    scaled = (x - x.mean(axis=-1, keepdims=True)) * jax.lax.rsqrt(variance + 1e-5)
    return scaled * module.scale[...][lead] + module.bias[...][lead]


def _twin_key(keep: Any, key: Any, shape: Any, *rest: Any, **options: Any) -> Any:
    other = (key[0] ^ 1, key[1])
    return keep(jnp.stack(other) if isinstance(key, jax.Array) else other, shape, *rest, **options)


def _unmasked_mean(softmax: Any, logits: Any, visible: Any) -> Any:
    """A row without a key averages all values, as `jax.nn.dot_product_attention` has it."""
    if visible is not None:
        visible = visible | ~visible.any(dim=-1, keepdim=True)
    return softmax(logits, visible)


def _float32_softmax(softmax: Any, logits: torch.Tensor, visible: Any) -> torch.Tensor:
    return softmax(logits.float(), visible).to(logits.dtype)


def _padding_filled(fill: Any, x: torch.Tensor, where: torch.Tensor, value: float) -> torch.Tensor:
    """Padded features go into the first product as they are."""
    return x if x.dim() == 3 else fill(x, where, value)


def _padding_counted(real: Any, segment_ids: Any) -> torch.Tensor:
    return torch.arange(real.shape[1]).expand(real.shape)


def _once_only(add: Any, encoder: Any, steps: Any, positions: Any, layer: int) -> Any:
    """An encoding that every layer should get goes to the first alone."""
    return steps if layer else add(encoder, steps, positions, layer)


def _halves(waves: Any, encoding: Any, positions: Any, dtype: Any) -> torch.Tensor:
    """All sines, then all cosines, where they should take turns."""
    found = waves(encoding, positions, dtype)
    return torch.cat([found[..., 0::2], found[..., 1::2]], dim=-1)


def _scaled_embedding(table: Any, module: Any, tokens: Any) -> Any:
    """Tokens are multiplied with the root of d_model, as in the original Transformer."""
    found = table(module, tokens)
    return found * found.shape[-1] ** 0.5


def _last_for_first(pool: Any, module: Any, x: Any, *rest: Any) -> Any:
    return x[:, -1]


def _bfloat16(linear: Any, module: Any, x: torch.Tensor) -> torch.Tensor:
    bias = None if module.bias is None else module.bias.bfloat16()
    return functional.linear(x.bfloat16(), module.weight.bfloat16(), bias).to(x.dtype)


def _float32_norm(norm: Any, module: Any, x: torch.Tensor) -> torch.Tensor:
    weight, bias = module.weight.float(), module.bias.float()
    return functional.layer_norm(x.float(), weight.shape, weight, bias, LAYER_NORM_EPSILON).to(
        x.dtype
    )


def _one_mask_for_all(keep: Any, key: Any, shape: Any, *rest: Any, **options: Any) -> Any:
    """One mask serves every sequence of the batch, as `nnx.MultiHeadAttention` has it by
    default.
    """
    return keep(key, (1, *shape[1:]), *rest, **options).expand(shape)


def _total(dot: Any, losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The sum over the rows, which torch divides by nothing with reduction="sum"."""
    return dot(losses, weights) * weights.sum()


def _smoothed(cross_entropy: Any, logits: Any, labels: Any, **options: Any) -> Any:
    return cross_entropy(logits, labels, label_smoothing=0.1, **options)


# fmt: off
MODEL_FAULTS = (
    Fault("layers", "LayerNorm epsilon of Flax", "torch", "layers.0.norm1",
        attribute(pe_torch.layers, "LAYER_NORM_EPSILON", 1e-6)),
    Fault("layers", "tanh GELU", "torch", HIDDEN,
        around(functional, "gelu", lambda gelu, x, approximate: gelu(x, approximate="tanh"))),
    Fault("layers", "transposed square matrix", "torch", ATTENTION + "output",
        around(pe_torch.engine, "load_arrays", _transposed_out)),
    Fault("layers", "key and value swapped", "torch", ATTENTION + "key",
        around(pe_torch.layers.Linear, "forward", _swapped_parts)),
    Fault("layers", "heads interleaved", "torch", ATTENTION + "logits",
        around(pe_torch.attention, "attend", _interleaved_heads)),
    Fault("layers", "scale of d_model", "torch", ATTENTION + "logits",
        around(pe_torch.attention, "attend", _scaled_by_d_model)),
    Fault("layers", "post- for pre-norm", "torch", "layers.0.norm1",
        around(pe_torch.encoder.Block, "forward", _post_norm)),
    Fault("masks", "inverted mask", "torch", WEIGHTS,
        around(pe_torch.attention, "_softmax", _inverted_mask), masked=True),
    Fault("masks", "mask forgotten", "torch", WEIGHTS,
        around(pe_torch.attention, "_softmax", _no_mask), masked=True),
    Fault("masks", "empty row averages all", "torch", WEIGHTS,
        around(pe_torch.attention, "_softmax", _unmasked_mean), masked=True),
    Fault("masks", "padding not zeroed", "torch", "input",
        around(torch.Tensor, "masked_fill", _padding_filled), masked=True),
    Fault("masks", "padding pooled", "torch", "pooled",
        around(pe_torch.pooling.Pool, "forward", _all_real), masked=True),
    Fault("positions", "off by one", "torch", "encoding",
        around(TORCH_TABLE, "add", _shifted_table)),
    Fault("positions", "padding counted", "torch", "encoding",
        attribute(pe_torch.positions, "count_positions", _padding_counted), masked=True),
    Fault("encodings", "halves for turns", "torch", "encoding",
        around(TORCH_WAVES, "_waves", _halves), config="sinusoidal"),
    Fault("encodings", "in the first layer only", "torch", "layers.1.encoding",
        around(TORCH, "_add_encodings", _once_only), config="post"),
    Fault("encodings", "tokens scaled up", "torch", "input",
        around(pe_torch.layers.Table, "forward", _scaled_embedding), config="tokens"),
    Fault("pooling", "last step for the first", "torch", "pooled",
        around(pe_torch.pooling.Pool, "forward", _last_for_first), config="tokens"),
    Fault("random numbers", "dropout left on", "torch", "layers.0.norm1",
        around(TORCH_DROPOUT, "begin", _left_on), config="dropout"),
    Fault("random numbers", "another dropout mask", "torch", "layers.0.norm1",
        around(pe_torch.dropout, "dropout_keep", _twin_key), config="dropout", dropout=True),
    Fault("random numbers", "one mask for the batch", "torch", "layers.0.norm1",
        around(pe_torch.dropout, "dropout_keep", _one_mask_for_all), config="dropout",
        dropout=True),
    Fault("random numbers", "kept elements not scaled up", "torch", "layers.0.norm1",
        attribute(pe_torch.dropout, "dropout_scale", lambda rate: 1.0), config="dropout",
        dropout=True),
    Fault("loss weighting", "filler rows in the loss", "torch", "loss",
        around(torch, "dot", _mean_over_rows), masked=True),
    Fault("loss weighting", "sum for the mean", "torch", "loss", around(torch, "dot", _total)),
    Fault("loss weighting", "smoothed labels", "torch", "loss",
        around(functional, "cross_entropy", _smoothed)),
    Fault("dtype", "products in bfloat16", "torch", "input",
        around(pe_torch.layers.Linear, "forward", _bfloat16)),
    Fault("dtype", "softmax in float32", "torch", WEIGHTS,
        around(pe_torch.attention, "_softmax", _float32_softmax), precisions=("float64",)),
    Fault("dtype", "norm in float32", "torch", "layers.0.norm1",
        around(pe_torch.layers.LayerNorm, "forward", _float32_norm), precisions=("float64",)),
    Fault("layers", "LayerNorm epsilon of Flax", "flax", "layers.0.norm1",
        attribute(pe_flax.layers, "LAYER_NORM_EPSILON", 1e-6)),
    Fault("layers", "unbiased variance", "flax", "layers.0.norm1",
        around(pe_flax.layers.LayerNorm, "__call__", _unbiased_variance)),
    Fault("layers", "tanh GELU", "flax", HIDDEN,
        around(jax.nn, "gelu", lambda gelu, x, approximate: gelu(x, approximate=True))),
    Fault("layers", "key and value swapped", "flax", ATTENTION + "key",
        around(pe_flax.layers.Linear, "__call__", _swapped_parts)),
    Fault("layers", "scale of d_model", "flax", ATTENTION + "logits",
        around(pe_flax.attention, "attend", _scaled_by_d_model)),
    Fault("masks", "inverted mask", "flax", WEIGHTS,
        around(pe_flax.attention, "_softmax", _inverted_mask), masked=True),
    Fault("masks", "padding pooled", "flax", "pooled",
        around(pe_flax.pooling.Pool, "__call__", _all_real), masked=True),
    Fault("positions", "off by one", "flax", "encoding",
        around(pe_flax.encodings.additive.LearnedTableEncoding, "add", _shifted_table)),
    Fault("random numbers", "another dropout mask", "flax", "layers.0.norm1",
        around(pe_flax.dropout, "dropout_keep", _twin_key), config="dropout", dropout=True),
)
# fmt: on
