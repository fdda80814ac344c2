"""The encoder and the classifier on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int, Num

from pe_core.errors import UserValueError
from pe_core.model.config import ComputeConfig, Features, ModelConfig
from pe_core.model.inputs import (
    check_call,
    check_dropout,
    check_front,
    check_num_segments,
    has_table,
)
from pe_core.model.parameters import encoder_parameters, parameters
from pe_core.model.values import require_dropout_rows_fit, require_tokens_fit
from pe_flax.attention import Attention
from pe_flax.call import Call, Taps
from pe_flax.dropout import Dropout
from pe_flax.encodings import Additive, Encoding, make_encoding
from pe_flax.layers import LayerNorm, Linear, Table, fill_parameters, zeros
from pe_flax.layout import as_arrays, describe, described
from pe_flax.pooling import Pool
from pe_flax.positions import Positions, as_segments, can_look, can_read, locate, real_steps


class FeedForward(nnx.Module):
    """The position-wise part: up, activation, down."""

    def __init__(self, config: ModelConfig, *, compute: ComputeConfig) -> None:
        self.activation = config.activation
        self.up = Linear(config.d_model, config.width_inside, compute=compute)
        self.down = Linear(config.width_inside, config.d_model, compute=compute)

    # Private here and in Block: `nnx.tabulate` shows the public calls of modules, and cannot show a
    # Call.
    def _transform(
        self, x: Float[Array, "batch length d_model"], call: Call
    ) -> Float[Array, "batch length d_model"]:
        """Return the transformed steps."""
        hidden = self.up(x)
        if self.activation == "relu":
            hidden = jax.nn.relu(hidden)
        else:
            hidden = jax.nn.gelu(hidden, approximate=False)
        output = self.down(call.drop(hidden, "feed_forward_hidden"))
        call.tap_layer("feed_forward.hidden", hidden)
        call.tap_layer("feed_forward.output", output)
        return output


class Block(nnx.Module):
    """One layer: attention and feed-forward, each with its norm and its residual."""

    def __init__(self, config: ModelConfig, *, compute: ComputeConfig) -> None:
        self.pre_norm = config.norm == "pre"
        self.norm1 = LayerNorm(config.d_model, compute=compute)
        self.attention = Attention(config.sizes, bias=config.attention_bias, compute=compute)
        self.norm2 = LayerNorm(config.d_model, compute=compute)
        self.feed_forward = FeedForward(config, compute=compute)

    def _advance(
        self,
        x: Float[Array, "batch length d_model"],
        call: Call,
        encodings: Sequence[Encoding],
    ) -> Float[Array, "batch length d_model"]:
        """Return the steps after this layer; `encodings` are those that act in its attention."""
        dtype = x.dtype
        inner = self._norm("norm1", x, call) if self.pre_norm else x
        x = x + call.drop(
            self.attention._attend(inner, call, encodings).astype(dtype), "attention_output"
        )
        if not self.pre_norm:
            x = self._norm("norm1", x, call)
        inner = self._norm("norm2", x, call) if self.pre_norm else x
        x = x + call.drop(
            self.feed_forward._transform(inner, call).astype(dtype), "feed_forward_output"
        )
        if not self.pre_norm:
            x = self._norm("norm2", x, call)
        call.tap_layer("output", x)
        return x

    def _norm(self, name: str, x: Array, call: Call) -> Array:
        x = getattr(self, name)(x)
        call.tap_layer(name, x)
        return x


class Encoder(nnx.Module):
    """Steps to steps: input, positional encodings, blocks.

    Args:
        config: what the model is; pooling and head are left out.
        seed: of the initial parameters, and of the dropout.
        rngs: its streams `params` and `dropout` take the place of the seed, so that `nnx.vmap` over
            the constructor makes models that differ.
        compute: how it is computed; float64 needs `jax_enable_x64`.

    Example:
        >>> import jax.numpy as jnp
        >>> from pe_flax import Encoder, Features, ModelConfig, Rotary
        >>> config = ModelConfig(inputs=Features(3), num_classes=2, encodings=(Rotary(),))
        >>> encoder = Encoder(config, seed=0)
        >>> encoder(jnp.zeros((4, 10, 3))).shape
        (4, 10, 64)
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        seed: int = 0,
        rngs: nnx.Rngs | None = None,
        compute: ComputeConfig | None = None,
    ) -> None:
        compute = compute or ComputeConfig()
        if compute.precision == "float64" and not jax.config.read("jax_enable_x64"):
            raise UserValueError(
                "precision 'float64' is off in JAX; switch it on with "
                "jax.config.update('jax_enable_x64', True)"
            )
        chosen = seed if rngs is None else None
        self.config = config
        self.compute = compute
        if isinstance(config.inputs, Features):
            self.input: Linear | Table = Linear(
                config.inputs.num_features, config.d_model, compute=compute
            )
        else:
            self.input = Table(config.inputs.vocab_size, config.d_model, compute=compute)
        self.encodings = nnx.List(
            make_encoding(
                options,
                config.sizes,
                num_layers=config.num_layers,
                seed=chosen,
                rngs=rngs,
                compute=compute,
            )
            for options in config.encodings
        )
        self.layers = nnx.List(Block(config, compute=compute) for _ in range(config.num_layers))
        self.norm = LayerNorm(config.d_model, compute=compute) if config.norm == "pre" else None
        self.dropout = Dropout(
            config.dropout,
            num_layers=config.num_layers,
            seed=chosen,
            rngs=rngs,
            native=compute.dropout_rng == "native",
        )
        fill_parameters(self, encoder_parameters(config), chosen, rngs)

    def __call__(
        self,
        x: Num[Array, "batch length *num_features"],
        mask: Bool[Array, "batch length"] | None = None,
        positions: Num[Array, "*batch length"] | None = None,
        segment_ids: Int[Array, "batch length"] | None = None,
        front: Float[Array, " d_model"] | None = None,
        taps: Taps | None = None,
        dropout_step: int | Array | None = None,
        dropout_rows: Int[Array, " batch"] | None = None,
    ) -> Float[Array, "batch length d_model"]:
        """Return the encoded steps; those of padded steps are finite and mean nothing.

        Args:
            x: (batch, length, num_features) features or (batch, length) tokens.
            mask: True for real steps; None when all are.
            positions: (length,) or (batch, length), integer or floating point; counted per sequence
                when None.
            segment_ids: for packed sequences, runs of equal numbers, 0 for padding.
            front: a step without a position that is put in front of every sequence.
            taps: receives the named intermediates.
            dropout_step: the training step whose dropout applies, the same in every framework;
                drawn from the stream `dropout` when None. Without effect in evaluation.
            dropout_rows: where in a larger batch each sequence stands: several processes draw the
                masks that one would draw for all. 0, 1, ... when None.

        Raises:
            UserValueError, UserTypeError: one line with the rule, the value and the remedy.
        """
        x, mask, positions, segment_ids, front, dropout_rows = as_arrays(
            x=x,
            mask=mask,
            positions=positions,
            segment_ids=segment_ids,
            front=front,
            dropout_rows=dropout_rows,
        )
        check_call(
            self.config, described(x), describe(mask), describe(positions), describe(segment_ids)
        )
        step: Any = dropout_step
        if isinstance(step, Array | np.ndarray):
            step = described(step)
        check_dropout(step, describe(dropout_rows), x.shape[0])
        if dropout_rows is not None and can_look(dropout_rows):
            require_dropout_rows_fit(int(dropout_rows.min()), int(dropout_rows.max()))
        if front is not None:
            check_front(self.config.d_model, described(front))
        segment_ids = as_segments(segment_ids)
        real = real_steps(mask, segment_ids)
        state = self._embed(x, real)
        by_table = has_table(self.config.encodings)
        steps = locate(state, positions, real, segment_ids, by_table=by_table)
        if not len(self.encodings):
            steps = Positions(state, segments=segment_ids)
        call = Call(steps, real, self.dropout.begin(dropout_step, dropout_rows), taps)
        call.tap("input", state)
        state = self._add_encodings(state, steps, 0)
        if front is not None:
            # A step in front is real and has no position.
            first = jnp.broadcast_to(front, (state.shape[0], 1, front.shape[0]))
            state = jnp.concatenate([first, state], axis=1)
            real = None if real is None else jnp.pad(real, ((0, 0), (1, 0)), constant_values=True)
            call = replace(
                call, positions=steps.behind(1) if len(self.encodings) else steps, real=real
            )
        call.tap("encoding", state)
        state = call.drop(state, "input")
        for n, layer in enumerate(self.layers):
            call = replace(call, layer=n)
            if n > 0 and self._adds_before(n):
                ahead = 0 if front is None else 1
                behind = self._add_encodings(state[:, ahead:], steps, n)
                state = jnp.concatenate([state[:, :ahead], behind], axis=1) if ahead else behind
                call.tap_layer("encoding", state)
            state = layer._advance(state, call, self._in_attention(n))
        if self.norm is not None:
            state = self.norm(state)
            call.tap("norm", state)
        return state

    def _embed(self, x: Array, real: Array | None) -> Array:
        """Return the steps (batch, length, d_model); what padding holds does not enter."""
        dtype = jnp.dtype(self.compute.array_dtype)
        if isinstance(self.input, Linear):
            x = jnp.asarray(x, dtype)
            x = x if real is None else jnp.where(real[..., None], x, 0.0)
        else:
            x = _held_tokens(x, real, self.input.table.shape[0])
            x = x if real is None else jnp.where(real, x, 0)
        return self.input(x).astype(dtype)

    def _adds_before(self, layer: int) -> bool:
        return any(
            isinstance(item, Additive) and item.options.acts_before(layer)
            for item in self._encodings(layer)
        )

    def _add_encodings(self, steps: Array, positions: Positions, layer: int) -> Array:
        """Add the encodings that act on the steps before a layer; none is in front."""
        for item in self._encodings(layer):
            if isinstance(item, Additive) and item.options.acts_before(layer):
                steps = item.add(steps, positions)
        return steps

    def _in_attention(self, layer: int) -> list[Encoding]:
        return [item for item in self._encodings(layer) if not isinstance(item, Additive)]

    def _encodings(self, layer: int) -> list[Encoding]:
        return [item._for_layer(layer) for item in self.encodings]


class SequenceClassifier(nnx.Module):
    """A sequence to the logits of its classes: encoder, pooling, head.

    Args:
        config: what the model is.
        seed: of the initial parameters, and of the dropout.
        rngs: its streams `params` and `dropout` take the place of the seed, so that `nnx.vmap` over
            the constructor makes models that differ.
        compute: how it is computed; float64 needs `jax_enable_x64`.

    Example:
        >>> import jax.numpy as jnp
        >>> from pe_flax import Features, LearnedTable, ModelConfig, SequenceClassifier
        >>> table = LearnedTable(max_length=10)
        >>> config = ModelConfig(inputs=Features(3), num_classes=2, encodings=(table,))
        >>> model = SequenceClassifier(config, seed=0)
        >>> model(jnp.zeros((4, 10, 3))).shape
        (4, 2)
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        seed: int = 0,
        rngs: nnx.Rngs | None = None,
        compute: ComputeConfig | None = None,
    ) -> None:
        compute = compute or ComputeConfig()
        self.encoder = Encoder(config, seed=seed, rngs=rngs, compute=compute)
        cls = config.pooling == "cls"
        self.cls = nnx.Param(zeros((config.d_model,), compute)) if cls else None
        self.pooling = Pool(config, compute=compute)
        self.head = Linear(config.d_model, config.num_classes, compute=compute)
        inner = {item.name for item in encoder_parameters(config)}
        own = tuple(item for item in parameters(config) if item.name not in inner)
        fill_parameters(self, own, seed if rngs is None else None, rngs)

    @property
    def config(self) -> ModelConfig:
        """What the model is."""
        return self.encoder.config

    @property
    def compute(self) -> ComputeConfig:
        """How it is computed."""
        return self.encoder.compute

    def __call__(
        self,
        x: Num[Array, "batch length *num_features"],
        mask: Bool[Array, "batch length"] | None = None,
        positions: Num[Array, "*batch length"] | None = None,
        segment_ids: Int[Array, "batch length"] | None = None,
        num_segments: int | None = None,
        taps: Taps | None = None,
        dropout_step: int | Array | None = None,
        dropout_rows: Int[Array, " batch"] | None = None,
    ) -> Float[Array, "batch *num_segments num_classes"]:
        """Return the logits, (batch, num_classes), or (batch, num_segments, num_classes) where
        segment_ids are given.

        Args:
            x: (batch, length, num_features) features or (batch, length) tokens.
            mask: True for real steps; None when all are.
            positions: (length,) or (batch, length), integer or floating point; counted per sequence
                when None.
            segment_ids: for packed sequences, runs of equal numbers 1, 2, ..., 0 for padding.
            num_segments: the most segments in a row; read from segment_ids when None, which
                `jax.jit` does not allow.
            taps: receives the named intermediates.
            dropout_step: the training step whose dropout applies, the same in every framework;
                drawn from the stream `dropout` when None. Without effect in evaluation.
            dropout_rows: where in a larger batch each sequence stands: several processes draw the
                masks that one would draw for all. 0, 1, ... when None.

        Raises:
            UserValueError, UserTypeError: one line with the rule, the value and the remedy.
        """
        check_num_segments(num_segments, packed=segment_ids is not None)
        state = self.encoder(
            x,
            mask=mask,
            positions=positions,
            segment_ids=segment_ids,
            front=None if self.cls is None else self.cls[...],
            taps=taps,
            dropout_step=dropout_step,
            dropout_rows=dropout_rows,
        )
        mask, segment_ids = as_arrays(mask=mask, segment_ids=segment_ids)
        segment_ids = as_segments(segment_ids)
        pooled = self.pooling(state, real_steps(mask, segment_ids), segment_ids, num_segments)
        logits = self.head(pooled).astype(state.dtype)
        if taps is not None:
            taps["pooled"] = pooled
            taps["head"] = logits
        return logits


def _held_tokens(tokens: Any, real: Array | None, rows: int) -> Array:
    """Return the tokens as int32: one of NumPy beyond it must not wrap to another."""
    if not isinstance(tokens, np.ndarray):
        if tokens.dtype.kind == "u" and tokens.dtype.itemsize >= 4:
            # As a token of no table, before the sign of int32 makes another of it.
            tokens = jnp.where(tokens < rows, tokens, rows)
        return tokens if tokens.dtype.itemsize > 4 else tokens.astype(jnp.int32)
    outside = (tokens < 0) | (tokens >= rows)
    if outside.any():
        if can_read(real):
            kept = tokens if real is None else np.where(np.asarray(real), tokens, 0)
            require_tokens_fit(rows, int(kept.min()), int(kept.max()))
        tokens = np.where(outside, -1, tokens.astype(np.int64))
    return jnp.asarray(tokens.astype(np.int32))
