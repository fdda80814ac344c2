"""The encoder and the classifier on top of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from pe_core.errors import UserValueError
from pe_core.model.config import ComputeConfig, Features, ModelConfig
from pe_core.model.initial import draw
from pe_core.model.inputs import Described, check_call
from pe_core.model.parameters import encoder_parameters, parameters
from pe_flax.attention import SelfAttention, Taps
from pe_flax.dropout import Drop, Dropout
from pe_flax.encodings import make_encoding
from pe_flax.layers import LayerNorm, Linear, Table, zeros
from pe_flax.layout import put_arrays
from pe_flax.pooling import Pool
from pe_flax.positions import count_positions, real_steps


class FeedForward(nnx.Module):
    """The position-wise part: up, activation, down."""

    def __init__(self, config: ModelConfig, *, compute: ComputeConfig) -> None:
        self.activation = config.activation
        self.up = Linear(config.d_model, config.width_inside, compute=compute)
        self.down = Linear(config.width_inside, config.d_model, compute=compute)

    def __call__(self, x: Array, drop: Drop, layer: int, taps: Taps | None) -> Array:
        """Return the transformed steps, (batch, length, d_model)."""
        hidden = self.up(x)
        hidden = (
            jax.nn.relu(hidden)
            if self.activation == "relu"
            else jax.nn.gelu(hidden, approximate=False)
        )
        output = self.down(drop(hidden, "feed_forward_hidden", layer))
        if taps is not None:
            taps[f"layers.{layer}.feed_forward.hidden"] = hidden
            taps[f"layers.{layer}.feed_forward.output"] = output
        return output


class Block(nnx.Module):
    """One layer: attention and feed-forward, each with its norm and its residual."""

    def __init__(self, config: ModelConfig, layer: int, *, compute: ComputeConfig) -> None:
        self.layer = layer
        self.pre_norm = config.norm == "pre"
        self.norm1 = LayerNorm(config.d_model, compute=compute)
        self.attention = SelfAttention(config, compute=compute)
        self.norm2 = LayerNorm(config.d_model, compute=compute)
        self.feed_forward = FeedForward(config, compute=compute)

    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        allowed: Bool[Array, "#batch 1 #length length"] | None,
        drop: Drop,
        taps: Taps | None,
    ) -> Float[Array, "batch length d_model"]:
        """Return the steps after this layer."""
        layer, dtype = self.layer, x.dtype
        inner = self._norm("norm1", x, taps) if self.pre_norm else x
        x = x + drop(
            self.attention(inner, allowed, drop, layer, taps).astype(dtype),
            "attention_output",
            layer,
        )
        if not self.pre_norm:
            x = self._norm("norm1", x, taps)
        inner = self._norm("norm2", x, taps) if self.pre_norm else x
        x = x + drop(
            self.feed_forward(inner, drop, layer, taps).astype(dtype), "feed_forward_output", layer
        )
        if not self.pre_norm:
            x = self._norm("norm2", x, taps)
        if taps is not None:
            taps[f"layers.{layer}.output"] = x
        return x

    def _norm(self, name: str, x: Array, taps: Taps | None) -> Array:
        x = getattr(self, name)(x)
        if taps is not None:
            taps[f"layers.{self.layer}.{name}"] = x
        return x


class Encoder(nnx.Module):
    """Steps to steps: input, positional encodings, blocks.

    Args:
        config: what the model is; pooling and head are left out.
        seed: of the initial weights and the dropout.
        compute: how it is computed; float64 needs `jax_enable_x64`.
    """

    def __init__(
        self, config: ModelConfig, *, seed: int = 0, compute: ComputeConfig | None = None
    ) -> None:
        self._build(config, seed, compute or ComputeConfig())
        put_arrays(self, draw(encoder_parameters(config), seed))

    def _build(self, config: ModelConfig, seed: int, compute: ComputeConfig) -> None:
        if compute.precision == "float64" and not jax.config.read("jax_enable_x64"):
            raise UserValueError(
                "precision 'float64' is off in JAX; switch it on with "
                "jax.config.update('jax_enable_x64', True)"
            )
        self.config = config
        self.compute = compute
        if isinstance(config.inputs, Features):
            self.input: Linear | Table = Linear(
                config.inputs.num_features, config.d_model, compute=compute
            )
        else:
            self.input = Table(config.inputs.vocab_size, config.d_model, compute=compute)
        self.encodings = nnx.List(
            [
                make_encoding(options, config.d_model, compute=compute)
                for options in config.encodings
            ]
        )
        self.layers = nnx.List(
            [Block(config, n, compute=compute) for n in range(config.num_layers)]
        )
        self.norm = LayerNorm(config.d_model, compute=compute) if config.norm == "pre" else None
        self.dropout = Dropout(
            config.dropout,
            num_layers=config.num_layers,
            seed=seed,
            native=compute.dropout_rng == "native",
        )

    def __call__(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        positions: Array | None = None,
        segment_ids: Array | None = None,
        taps: Taps | None = None,
        dropout_step: int | Array | None = None,
    ) -> Array:
        """Return the encoded steps, (batch, length, d_model); those of padded steps are finite and
        mean nothing.

        Args:
            x: (batch, length, num_features) features or (batch, length) tokens.
            mask: (batch, length) bool, True for real steps; None when all are.
            positions: (length,) or (batch, length), integer or floating point; counted per sequence
                when None.
            segment_ids: (batch, length) integers for packed sequences, runs of equal numbers, 0 for
                padding.
            taps: receives the named intermediates.
            dropout_step: the training step whose dropout applies; counted when None. Without effect
                in evaluation.

        Raises:
            ValueError, TypeError: one line with the rule, the value and the remedy.
        """
        self._check(x, mask, positions, segment_ids)
        x, mask, positions, segment_ids = _arrays(x, mask, positions, segment_ids)
        return self._encode(x, mask, positions, segment_ids, taps, dropout_step, None)

    def _check(
        self, x: Array, mask: Array | None, positions: Array | None, segment_ids: Array | None
    ) -> None:
        check_call(
            self.config,
            _describe(x),
            *(None if item is None else _describe(item) for item in (mask, positions, segment_ids)),
        )

    def _encode(
        self,
        x: Array,
        mask: Array | None,
        positions: Array | None,
        segment_ids: Array | None,
        taps: Taps | None,
        dropout_step: int | Array | None,
        cls: Array | None,
    ) -> Array:
        dtype = jnp.dtype(self.compute.array_dtype)
        drop = self.dropout.begin(dropout_step)
        real = real_steps(mask, segment_ids)
        implicit = positions is None
        if positions is None and real is not None and len(self.encodings):
            positions = count_positions(real, segment_ids)
        if isinstance(self.input, Linear):
            x = x.astype(dtype)
            state = self.input(x if real is None else jnp.where(real[..., None], x, 0.0)).astype(
                dtype
            )
        else:
            state = self.input(x if real is None else jnp.where(real, x, 0))
        if taps is not None:
            taps["input"] = state
        for encoding in self.encodings:
            state = encoding.add(state, positions, implicit=implicit)
        if cls is not None:
            state = jnp.concatenate(
                [jnp.broadcast_to(cls, (len(state), 1, len(cls))), state], axis=1
            )
            real = None if real is None else jnp.pad(real, ((0, 0), (1, 0)), constant_values=True)
        if taps is not None:
            taps["encoding"] = state
        state = drop(state, "input")

        allowed = None if real is None else real[:, None, None, :]
        if segment_ids is not None and allowed is not None:
            allowed = allowed & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
        for n, layer in enumerate(self.layers):
            if n > 0:
                state = self._add_again(
                    state, positions, implicit, n, taps, front=0 if cls is None else 1
                )
            state = layer(state, allowed, drop, taps)
        if self.norm is not None:
            state = self.norm(state)
            if taps is not None:
                taps["norm"] = state
        return state

    def _add_again(
        self,
        state: Array,
        positions: Array | None,
        implicit: bool,
        n: int,
        taps: Taps | None,
        front: int,
    ) -> Array:
        """Add the encodings that every layer gets; the trained step in front has no position."""
        again = [encoding for encoding in self.encodings if encoding.options.layers == "all"]
        if not again:
            return state
        steps = state[:, front:]
        for encoding in again:
            steps = encoding.add(steps, positions, implicit=implicit)
        state = jnp.concatenate([state[:, :front], steps], axis=1) if front else steps
        if taps is not None:
            taps[f"layers.{n}.encoding"] = state
        return state


class SequenceClassifier(Encoder):
    """A sequence to the logits of its classes: encoder, pooling, head.

    Args:
        config: what the model is.
        seed: of the initial weights and the dropout.
        compute: how it is computed; float64 needs `jax_enable_x64`.
    """

    def __init__(
        self, config: ModelConfig, *, seed: int = 0, compute: ComputeConfig | None = None
    ) -> None:
        compute = compute or ComputeConfig()
        self._build(config, seed, compute)
        self.cls = nnx.Param(zeros((config.d_model,), compute)) if config.pooling == "cls" else None
        self.pooling = Pool(config, compute=compute)
        self.head = Linear(config.d_model, config.num_classes, compute=compute)
        put_arrays(self, draw(parameters(config), seed))

    def __call__(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        positions: Array | None = None,
        segment_ids: Array | None = None,
        num_segments: int | None = None,
        taps: Taps | None = None,
        dropout_step: int | Array | None = None,
    ) -> Array:
        """Return the logits, (batch, num_classes), or (batch, num_segments, num_classes) where
        segment_ids are given.

        Args:
            x: (batch, length, num_features) features or (batch, length) tokens.
            mask: (batch, length) bool, True for real steps; None when all are.
            positions: (length,) or (batch, length), integer or floating point; counted per sequence
                when None.
            segment_ids: (batch, length) integers for packed sequences, runs of equal numbers 1, 2,
                ..., 0 for padding.
            num_segments: the most segments in a row; read from segment_ids when None, which
                `jax.jit` does not allow.
            taps: receives the named intermediates.
            dropout_step: the training step whose dropout applies; counted when None. Without effect
                in evaluation.

        Raises:
            ValueError, TypeError: one line with the rule, the value and the remedy.
        """
        self._check(x, mask, positions, segment_ids)
        x, mask, positions, segment_ids = _arrays(x, mask, positions, segment_ids)
        state = self._encode(
            x,
            mask,
            positions,
            segment_ids,
            taps,
            dropout_step,
            None if self.cls is None else self.cls[...],
        )
        pooled = self.pooling(state, real_steps(mask, segment_ids), segment_ids, num_segments)
        logits = self.head(pooled).astype(state.dtype)
        if taps is not None:
            taps["pooled"] = pooled
            taps["head"] = logits
        return logits


def _arrays(*items: Any) -> tuple[Any, ...]:
    """NumPy arrays become JAX arrays; JAX arrays, traced or not, stay what they are."""
    return tuple(None if item is None else jnp.asarray(item) for item in items)


def _describe(x: Array) -> Described:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return Described(x.shape, "f", str(x.dtype))
    return Described(x.shape, x.dtype.kind, str(x.dtype))
