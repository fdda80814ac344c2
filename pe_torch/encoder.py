"""The encoder and the classifier on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn
from torch.nn import functional

from pe_core.model.config import ComputeConfig, Features, ModelConfig
from pe_core.model.initial import draw
from pe_core.model.inputs import (
    check_call,
    check_dropout,
    check_front,
    check_num_segments,
    has_table,
)
from pe_core.model.parameters import encoder_parameters, parameters
from pe_core.model.values import require_dropout_rows_fit
from pe_torch.attention import Attention
from pe_torch.call import Call, Taps
from pe_torch.dropout import Dropout
from pe_torch.encodings import Additive, Encoding, make_encoding
from pe_torch.encodings.kinds import bare
from pe_torch.layers import LayerNorm, Linear, Table
from pe_torch.layout import as_arrays, as_int64, describe, described, put_arrays, unwrap
from pe_torch.pooling import Pool
from pe_torch.positions import Positions, as_segments, can_look, locate, real_steps


class FeedForward(nn.Module):
    """The position-wise part: up, activation, down."""

    def __init__(self, config: ModelConfig, *, compute: ComputeConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = Linear(config.d_model, config.width_inside, compute=compute)
        self.down = Linear(config.width_inside, config.d_model, compute=compute)

    def forward(
        self, x: Float[Tensor, "batch length d_model"], call: Call
    ) -> Float[Tensor, "batch length d_model"]:
        """Return the transformed steps."""
        hidden = self.up(x)
        if self.activation == "relu":
            hidden = functional.relu(hidden)
        else:
            hidden = functional.gelu(hidden, approximate="none")
        output = cast(Tensor, self.down(call.drop(hidden, "feed_forward_hidden")))
        call.tap_layer("feed_forward.hidden", hidden)
        call.tap_layer("feed_forward.output", output)
        return output


class Block(nn.Module):
    """One layer: attention and feed-forward, each with its norm and its residual."""

    def __init__(self, config: ModelConfig, *, compute: ComputeConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.norm1 = LayerNorm(config.d_model, compute=compute)
        self.attention = Attention(config.sizes, bias=config.attention_bias, compute=compute)
        self.norm2 = LayerNorm(config.d_model, compute=compute)
        self.feed_forward = FeedForward(config, compute=compute)

    def forward(
        self,
        x: Float[Tensor, "batch length d_model"],
        call: Call,
        encodings: Sequence[Encoding],
    ) -> Float[Tensor, "batch length d_model"]:
        """Return the steps after this layer; `encodings` are those that act in its attention."""
        inner = self._norm("norm1", x, call) if self.pre_norm else x
        x = x + call.drop(self.attention(inner, call, encodings), "attention_output")
        if not self.pre_norm:
            x = self._norm("norm1", x, call)
        inner = self._norm("norm2", x, call) if self.pre_norm else x
        x = x + call.drop(self.feed_forward(inner, call), "feed_forward_output")
        if not self.pre_norm:
            x = self._norm("norm2", x, call)
        call.tap_layer("output", x)
        return x

    def _norm(self, name: str, x: Tensor, call: Call) -> Tensor:
        x = cast(Tensor, getattr(self, name)(x))
        call.tap_layer(name, x)
        return x


class Encoder(nn.Module):
    """Steps to steps: input, positional encodings, blocks.

    Args:
        config: what the model is; pooling and head are left out.
        seed: of the initial parameters and of the dropout of given steps.
        compute: how it is computed.

    Example:
        >>> import torch
        >>> from pe_torch import Encoder, Features, ModelConfig, Rotary
        >>> config = ModelConfig(inputs=Features(3), num_classes=2, encodings=(Rotary(),))
        >>> encoder = Encoder(config, seed=0).eval()
        >>> encoder(torch.zeros(4, 10, 3)).shape
        torch.Size([4, 10, 64])
    """

    def __init__(
        self, config: ModelConfig, *, seed: int = 0, compute: ComputeConfig | None = None
    ) -> None:
        super().__init__()
        compute = compute or ComputeConfig()
        self.config = config
        self.compute = compute
        if isinstance(config.inputs, Features):
            self.input: Linear | Table = Linear(
                config.inputs.num_features, config.d_model, compute=compute
            )
        else:
            self.input = Table(config.inputs.vocab_size, config.d_model, compute=compute)
        self.encodings = nn.ModuleList(
            make_encoding(
                options, config.sizes, num_layers=config.num_layers, seed=seed, compute=compute
            )
            for options in config.encodings
        )
        self.layers = nn.ModuleList(
            Block(config, compute=compute) for _ in range(config.num_layers)
        )
        self.norm = LayerNorm(config.d_model, compute=compute) if config.norm == "pre" else None
        self.dropout = Dropout(
            config.dropout,
            num_layers=config.num_layers,
            seed=seed,
            native=compute.dropout_rng == "native",
        )
        put_arrays(self, draw(encoder_parameters(config), seed))

    def forward(
        self,
        x: Num[Tensor, "batch length *num_features"],
        *,
        mask: Bool[Tensor, "batch length"] | None = None,
        positions: Num[Tensor, "*batch length"] | None = None,
        segment_ids: Int[Tensor, "batch length"] | None = None,
        front: Float[Tensor, " d_model"] | None = None,
        taps: Taps | None = None,
        dropout_step: int | Tensor | None = None,
        dropout_rows: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch length d_model"]:
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
                drawn from torch's generator when None. Without effect in evaluation.
            dropout_rows: where in a larger batch each sequence stands: several processes draw the
                masks that one would draw for all. 0, 1, ... when None.

        Raises:
            UserValueError, UserTypeError: one line with the rule, the value and the remedy.
        """
        as_arrays(
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
        step = described(dropout_step) if isinstance(dropout_step, Tensor) else dropout_step
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
        masks = self.dropout.begin(dropout_step, dropout_rows, state.device)
        call = Call(steps, real, masks, taps)
        call.tap("input", state)
        state = self._add_encodings(state, steps, 0)
        if front is not None:
            # A step in front is real and has no position.
            first = front.to(state.dtype).expand(state.shape[0], 1, -1)
            state = torch.cat([first, state], dim=1)
            real = None if real is None else functional.pad(real, (1, 0), value=True)
            call = call._replace(
                positions=steps.behind(1) if len(self.encodings) else steps, real=real
            )
        call.tap("encoding", state)
        state = call.drop(state, "input")
        for n, layer in enumerate(self.layers):
            call = call._replace(layer=n)
            if n > 0 and self._adds_before(n):
                ahead = 0 if front is None else 1
                behind = self._add_encodings(state[:, ahead:], steps, n)
                state = torch.cat([state[:, :ahead], behind], dim=1) if ahead else behind
                call.tap_layer("encoding", state)
            state = layer(state, call, self._in_attention(n))
        if self.norm is not None:
            state = self.norm(state)
            call.tap("norm", state)
        return state

    def _embed(self, x: Tensor, real: Tensor | None) -> Tensor:
        """Return the steps (batch, length, d_model); what padding holds does not enter."""
        if isinstance(self.config.inputs, Features):
            dtype = unwrap(self.input).weight.dtype
            x = x.to(dtype)
            x = x if real is None else x.masked_fill(~real[..., None], 0.0)
        else:
            dtype = unwrap(self.input).table.dtype
            x = as_int64(x) if real is None else as_int64(x).masked_fill(~real, 0)
        return cast(Tensor, self.input(x)).to(dtype)

    def _adds_before(self, layer: int) -> bool:
        return any(
            isinstance(item, Additive) and item.options.acts_before(layer)
            for item in self._encodings(layer)
        )

    def _add_encodings(self, steps: Tensor, positions: Positions, layer: int) -> Tensor:
        """Add the encodings that act on the steps before a layer; none is in front."""
        for item in self._encodings(layer):
            if isinstance(item, Additive) and item.options.acts_before(layer):
                steps = item.add(steps, positions)
        return steps

    def _in_attention(self, layer: int) -> list[Encoding]:
        return [item for item in self._encodings(layer) if not isinstance(item, Additive)]

    def _encodings(self, layer: int) -> list[Encoding]:
        return [bare(bare(item)._for_layer(layer)) for item in self.encodings]


class SequenceClassifier(nn.Module):
    """A sequence to the logits of its classes: encoder, pooling, head.

    Args:
        config: what the model is.
        seed: of the initial parameters and of the dropout of given steps.
        compute: how it is computed.

    Example:
        >>> import torch
        >>> from pe_torch import Features, LearnedTable, ModelConfig, SequenceClassifier
        >>> table = LearnedTable(max_length=10)
        >>> config = ModelConfig(inputs=Features(3), num_classes=2, encodings=(table,))
        >>> model = SequenceClassifier(config, seed=0).eval()
        >>> model(torch.zeros(4, 10, 3)).shape
        torch.Size([4, 2])
    """

    def __init__(
        self, config: ModelConfig, *, seed: int = 0, compute: ComputeConfig | None = None
    ) -> None:
        super().__init__()
        compute = compute or ComputeConfig()
        self.encoder = Encoder(config, seed=seed, compute=compute)
        empty = torch.empty(config.d_model, dtype=getattr(torch, compute.array_dtype))
        self.cls = nn.Parameter(empty) if config.pooling == "cls" else None
        self.pooling = Pool(config, compute=compute)
        self.head = Linear(config.d_model, config.num_classes, compute=compute)
        inner = {item.name for item in encoder_parameters(config)}
        own = tuple(item for item in parameters(config) if item.name not in inner)
        put_arrays(self, draw(own, seed))

    @property
    def config(self) -> ModelConfig:
        """What the model is."""
        return cast(ModelConfig, unwrap(self.encoder).config)

    @property
    def compute(self) -> ComputeConfig:
        """How it is computed."""
        return cast(ComputeConfig, unwrap(self.encoder).compute)

    def forward(
        self,
        x: Num[Tensor, "batch length *num_features"],
        *,
        mask: Bool[Tensor, "batch length"] | None = None,
        positions: Num[Tensor, "*batch length"] | None = None,
        segment_ids: Int[Tensor, "batch length"] | None = None,
        num_segments: int | None = None,
        taps: Taps | None = None,
        dropout_step: int | Tensor | None = None,
        dropout_rows: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch *num_segments num_classes"]:
        """Return the logits, (batch, num_classes), or (batch, num_segments, num_classes) where
        segment_ids are given, in the dtype of the weights.

        Args:
            x: (batch, length, num_features) features or (batch, length) tokens.
            mask: True for real steps; None when all are.
            positions: (length,) or (batch, length), integer or floating point; counted per sequence
                when None.
            segment_ids: for packed sequences, runs of equal numbers 1, 2, ..., 0 for padding.
            num_segments: the most segments in a row; read from segment_ids when None.
            taps: receives the named intermediates.
            dropout_step: the training step whose dropout applies, the same in every framework;
                drawn from torch's generator when None. Without effect in evaluation.
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
            front=self.cls,
            taps=taps,
            dropout_step=dropout_step,
            dropout_rows=dropout_rows,
        )
        segment_ids = None if segment_ids is None else as_int64(segment_ids)
        pooled = self.pooling(state, real_steps(mask, segment_ids), segment_ids, num_segments)
        logits = cast(Tensor, self.head(pooled)).to(state.dtype)
        if taps is not None:
            taps["pooled"] = pooled
            taps["head"] = logits
        return logits
