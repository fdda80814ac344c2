"""The encoder and the classifier on top of it."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from pe_core.model.config import ComputeConfig, Features, ModelConfig
from pe_core.model.initial import draw
from pe_core.model.inputs import Described, check_call
from pe_core.model.parameters import encoder_parameters, parameters
from pe_torch.attention import SelfAttention, Taps
from pe_torch.dropout import Drop, Dropout
from pe_torch.encodings import LearnedTableEncoding, SinusoidalEncoding, make_encoding
from pe_torch.layers import LayerNorm, Linear, Table
from pe_torch.layout import put_arrays
from pe_torch.pooling import Pool
from pe_torch.positions import count_positions, real_steps


class FeedForward(nn.Module):
    """The position-wise part: up, activation, down."""

    def __init__(self, config: ModelConfig, *, compute: ComputeConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = Linear(config.d_model, config.width_inside, compute=compute)
        self.down = Linear(config.width_inside, config.d_model, compute=compute)

    def forward(self, x: Tensor, drop: Drop, layer: int, taps: Taps | None) -> Tensor:
        """Return the transformed steps, (batch, length, d_model)."""
        hidden = self.up(x)
        hidden = (
            functional.relu(hidden)
            if self.activation == "relu"
            else functional.gelu(hidden, approximate="none")
        )
        output = cast(Tensor, self.down(drop(hidden, "feed_forward_hidden", layer)))
        if taps is not None:
            taps[f"layers.{layer}.feed_forward.hidden"] = hidden
            taps[f"layers.{layer}.feed_forward.output"] = output
        return output


class Block(nn.Module):
    """One layer: attention and feed-forward, each with its norm and its residual."""

    def __init__(self, config: ModelConfig, layer: int, *, compute: ComputeConfig) -> None:
        super().__init__()
        self.layer = layer
        self.pre_norm = config.norm == "pre"
        self.norm1 = LayerNorm(config.d_model, compute=compute)
        self.attention = SelfAttention(config, compute=compute)
        self.norm2 = LayerNorm(config.d_model, compute=compute)
        self.feed_forward = FeedForward(config, compute=compute)

    def forward(
        self,
        x: Float[Tensor, "batch length d_model"],
        allowed: Bool[Tensor, "#batch 1 #length length"] | None,
        drop: Drop,
        taps: Taps | None,
    ) -> Float[Tensor, "batch length d_model"]:
        """Return the steps after this layer."""
        layer = self.layer
        inner = self._norm("norm1", x, taps) if self.pre_norm else x
        x = x + drop(self.attention(inner, allowed, drop, layer, taps), "attention_output", layer)
        if not self.pre_norm:
            x = self._norm("norm1", x, taps)
        inner = self._norm("norm2", x, taps) if self.pre_norm else x
        x = x + drop(self.feed_forward(inner, drop, layer, taps), "feed_forward_output", layer)
        if not self.pre_norm:
            x = self._norm("norm2", x, taps)
        if taps is not None:
            taps[f"layers.{layer}.output"] = x
        return x

    def _norm(self, name: str, x: Tensor, taps: Taps | None) -> Tensor:
        x = cast(Tensor, getattr(self, name)(x))
        if taps is not None:
            taps[f"layers.{self.layer}.{name}"] = x
        return x


class Encoder(nn.Module):
    """Steps to steps: input, positional encodings, blocks.

    Args:
        config: what the model is; pooling and head are left out.
        seed: of the initial weights and the dropout.
        compute: how it is computed.
    """

    def __init__(
        self, config: ModelConfig, *, seed: int = 0, compute: ComputeConfig | None = None
    ) -> None:
        super().__init__()
        self._build(config, seed, compute or ComputeConfig())
        put_arrays(self, draw(encoder_parameters(config), seed))

    def _build(self, config: ModelConfig, seed: int, compute: ComputeConfig) -> None:
        self.config = config
        self.compute = compute
        if isinstance(config.inputs, Features):
            self.input: Linear | Table = Linear(
                config.inputs.num_features, config.d_model, compute=compute
            )
        else:
            self.input = Table(config.inputs.vocab_size, config.d_model, compute=compute)
        self.encodings = nn.ModuleList(
            make_encoding(options, config.d_model, compute=compute) for options in config.encodings
        )
        self.layers = nn.ModuleList(
            Block(config, n, compute=compute) for n in range(config.num_layers)
        )
        self.norm = LayerNorm(config.d_model, compute=compute) if config.norm == "pre" else None
        self.dropout = Dropout(
            config.dropout,
            num_layers=config.num_layers,
            seed=seed,
            native=compute.dropout_rng == "native",
        )

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        segment_ids: Tensor | None = None,
        taps: Taps | None = None,
        dropout_step: int | None = None,
    ) -> Tensor:
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
        return self._encode(x, mask, positions, segment_ids, taps, dropout_step, None)

    def _check(
        self, x: Tensor, mask: Tensor | None, positions: Tensor | None, segment_ids: Tensor | None
    ) -> None:
        check_call(
            self.config,
            _describe(x),
            *(None if item is None else _describe(item) for item in (mask, positions, segment_ids)),
        )

    def _encode(
        self,
        x: Tensor,
        mask: Tensor | None,
        positions: Tensor | None,
        segment_ids: Tensor | None,
        taps: Taps | None,
        dropout_step: int | None,
        cls: Tensor | None,
    ) -> Tensor:
        dtype = getattr(torch, self.compute.array_dtype)
        drop = self.dropout.begin(dropout_step)
        real = real_steps(mask, segment_ids)
        implicit = positions is None
        if positions is None and real is not None and len(self.encodings):
            positions = count_positions(real, segment_ids)
        if isinstance(self.input, Linear):
            x = x.to(dtype)
            state = self.input(x if real is None else x.masked_fill(~real[..., None], 0.0)).to(
                dtype
            )
        else:
            state = self.input(x if real is None else x.masked_fill(~real, 0))
        if taps is not None:
            taps["input"] = state
        for encoding in self._encodings():
            state = encoding.add(state, positions, implicit=implicit)
        if cls is not None:
            state = torch.cat([cls.expand(len(state), 1, -1), state], dim=1)
            real = None if real is None else functional.pad(real, (1, 0), value=True)
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
        return cast(Tensor, state)

    def _encodings(self) -> list[LearnedTableEncoding | SinusoidalEncoding]:
        return cast(list[LearnedTableEncoding | SinusoidalEncoding], list(self.encodings))

    def _add_again(
        self,
        state: Tensor,
        positions: Tensor | None,
        implicit: bool,
        n: int,
        taps: Taps | None,
        front: int,
    ) -> Tensor:
        """Add the encodings that every layer gets; the trained step in front has no position."""
        again = [encoding for encoding in self._encodings() if encoding.options.layers == "all"]
        if not again:
            return state
        steps = state[:, front:]
        for encoding in again:
            steps = encoding.add(steps, positions, implicit=implicit)
        state = torch.cat([state[:, :front], steps], dim=1) if front else steps
        if taps is not None:
            taps[f"layers.{n}.encoding"] = state
        return state


class SequenceClassifier(Encoder):
    """A sequence to the logits of its classes: encoder, pooling, head.

    Args:
        config: what the model is.
        seed: of the initial weights and the dropout.
        compute: how it is computed.
    """

    def __init__(
        self, config: ModelConfig, *, seed: int = 0, compute: ComputeConfig | None = None
    ) -> None:
        nn.Module.__init__(self)
        compute = compute or ComputeConfig()
        self._build(config, seed, compute)
        self.cls = (
            nn.Parameter(torch.empty(config.d_model, dtype=getattr(torch, compute.array_dtype)))
            if config.pooling == "cls"
            else None
        )
        self.pooling = Pool(config, compute=compute)
        self.head = Linear(config.d_model, config.num_classes, compute=compute)
        put_arrays(self, draw(parameters(config), seed))

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        segment_ids: Tensor | None = None,
        num_segments: int | None = None,
        taps: Taps | None = None,
        dropout_step: int | None = None,
    ) -> Tensor:
        """Return the logits, (batch, num_classes), or (batch, num_segments, num_classes) where
        segment_ids are given.

        Args:
            x: (batch, length, num_features) features or (batch, length) tokens.
            mask: (batch, length) bool, True for real steps; None when all are.
            positions: (length,) or (batch, length), integer or floating point; counted per sequence
                when None.
            segment_ids: (batch, length) integers for packed sequences, runs of equal numbers 1, 2,
                ..., 0 for padding.
            num_segments: the most segments in a row; read from segment_ids when None.
            taps: receives the named intermediates.
            dropout_step: the training step whose dropout applies; counted when None. Without effect
                in evaluation.

        Raises:
            ValueError, TypeError: one line with the rule, the value and the remedy.
        """
        self._check(x, mask, positions, segment_ids)
        state = self._encode(x, mask, positions, segment_ids, taps, dropout_step, self.cls)
        pooled = self.pooling(state, real_steps(mask, segment_ids), segment_ids, num_segments)
        logits = self.head(pooled).to(state.dtype)
        if taps is not None:
            taps["pooled"] = pooled
            taps["head"] = logits
        return cast(Tensor, logits)


def _describe(x: Tensor) -> Described:
    kind = (
        "f"
        if x.dtype.is_floating_point
        else "b"
        if x.dtype == torch.bool
        else "c"
        if x.dtype.is_complex
        else "i"
    )
    return Described(tuple(x.shape), kind, str(x.dtype))
