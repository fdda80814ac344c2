"""The whole model in float64: input, encodings, blocks, pooling, head, loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Integer

from pe_core.encodings import LearnedTable
from pe_core.model.config import LAYER_NORM_EPSILON, Features, ModelConfig
from pe_core.model.dropout_places import DropoutPlace, dropout_place
from pe_core.model.inputs import Described, check_call, check_dropout, check_num_segments
from pe_core.model.positions import real_steps, resolve_positions
from pe_core.model.random import DROPOUT, derive, dropout_keep, dropout_scale, fold_in
from pe_core.model.values import (
    require_dropout_rows_fit,
    require_finite_position,
    require_num_segments,
    require_positions_fit,
    require_segment_fits,
    require_tokens_fit,
)
from pe_parity.reference import attention
from pe_parity.reference.kinds import (
    Additive,
    Contextual,
    LogitBias,
    Positions,
    QueryKey,
    Steps,
    formula_of,
)

Array = Float64[np.ndarray, "..."]
erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass
class Run:
    """One pass: the weights in float64, where intermediates go, and the dropout of this step.

    A subclass that computes one thing differently is a model with one planted fault;
    `pe_parity.perturbed_reference` has it.
    """

    config: ModelConfig
    arrays: dict[str, Array]
    taps: dict[str, Array]
    seed: int
    step: int | None
    samples: np.ndarray | None = None

    def tap(self, name: str, value: Array) -> Array:
        self.taps[name] = value
        return value

    def linear(self, name: str, x: Array) -> Array:
        bias = self.arrays.get(f"{name}.bias")
        product = x @ self.arrays[f"{name}.weight"].T
        return product if bias is None else product + bias

    def layer_norm(self, name: str, x: Array) -> Array:
        """Ba et al. 2016, equation 4, with the biased variance and epsilon under the root."""
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(variance + LAYER_NORM_EPSILON)
        return self.tap(name, scaled * self.arrays[f"{name}.weight"] + self.arrays[f"{name}.bias"])

    def activation(self, x: Array) -> Array:
        """GELU in its exact form x (1 + erf(x / sqrt 2)) / 2 (Hendrycks and Gimpel 2016), or
        ReLU.
        """
        return (
            np.maximum(x, 0.0)
            if self.config.activation == "relu"
            else 0.5 * x * (1.0 + erf(x / np.sqrt(2.0)))
        )

    def residual(self, name: str, state: Array, branch: Array) -> Array:
        """What a part of a block was given, plus what it computed (He et al. 2016)."""
        return state + branch

    def weights(self, logits: Array, allowed: np.ndarray | None) -> Array:
        """The softmax over the keys that a query may see."""
        return attention.weights(logits, allowed)

    def pool(self, state: Array, member: np.ndarray) -> Array:
        """From steps to one vector a segment."""
        return _pool(self.config, self.arrays, state, member)

    def dropout(self, place: DropoutPlace, layer: int, x: Array) -> Array:
        """Srivastava et al. 2014, with the kept elements scaled up so that evaluation needs
        nothing.
        """
        if self.step is None or self.config.dropout == 0.0:
            return x
        key = fold_in(derive(self.seed, DROPOUT, self.step), dropout_place(place, layer))
        keep = dropout_keep(key, x.shape, self.config.dropout, self.samples)
        return x * keep * dropout_scale(self.config.dropout)


def encode(
    config: ModelConfig,
    arrays: Mapping[str, Float[np.ndarray, "..."]],
    x: np.ndarray,
    *,
    mask: Bool[np.ndarray, "batch length"] | None = None,
    positions: np.ndarray | None = None,
    segment_ids: Integer[np.ndarray, "batch length"] | None = None,
    taps: dict[str, Any] | None = None,
    seed: int = 0,
    dropout_step: int | None = None,
    dropout_rows: Int[np.ndarray, " batch"] | None = None,
) -> Float64[np.ndarray, "batch steps d_model"]:
    """Return the encoded steps; `cls` in the arrays puts a trained step in front.

    Args:
        config: what the model is.
        arrays: weights under their canonical names.
        x: (batch, length, num_features) features or (batch, length) tokens.
        mask: True for real steps.
        positions: (length,) or (batch, length).
        segment_ids: packed sequences as runs of equal numbers, 0 for padding.
        taps: receives the named intermediates.
        seed: of the dropout.
        dropout_step: the training step whose dropout applies; None is evaluation.
        dropout_rows: where in a larger batch each sequence stands.
    """
    run = _begun(Run, config, arrays, taps, seed, dropout_step, dropout_rows)
    return _encode(run, x, mask, positions, segment_ids)


def _begun(
    run_type: Callable[..., Run],
    config: ModelConfig,
    arrays: Mapping[str, np.ndarray],
    taps: dict[str, Any] | None,
    seed: int,
    step: int | None,
    rows: np.ndarray | None,
) -> Run:
    check_dropout(step, None, 0)
    if rows is not None:
        require_dropout_rows_fit(int(rows.min()), int(rows.max()))
    exact = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    return run_type(config, exact, {} if taps is None else taps, seed, step, rows)


def _encode(
    run: Run,
    x: np.ndarray,
    mask: np.ndarray | None,
    positions: np.ndarray | None,
    segment_ids: np.ndarray | None,
) -> Array:
    config = run.config
    check_call(config, *(_described(item) for item in (x, mask, positions, segment_ids)))
    batch, length = x.shape[:2]
    if segment_ids is not None:
        require_segment_fits(int(segment_ids.max()))
        segment_ids = segment_ids.astype(np.int64)
    real = real_steps(mask, segment_ids)
    where = resolve_positions(length, positions, mask, segment_ids)
    if positions is not None:
        where = _checked_positions(config, where, real)

    if isinstance(config.inputs, Features):
        state = run.linear(
            "input",
            np.asarray(x if real is None else np.where(real[..., None], x, 0.0), np.float64),
        )
    else:
        tokens = x if real is None else np.where(real, x, 0)
        require_tokens_fit(config.inputs.vocab_size, tokens.min().item(), tokens.max().item())
        state = run.arrays["input.table"][tokens]
    state = run.tap("input", state)
    placed = real
    values = where if placed is None else np.where(placed, where, 0)
    steps = Positions(values, placed, segment_ids)
    state = _add_encodings(run, state, steps, layer=0)
    standing = steps
    if "cls" in run.arrays:
        # A trained step in front is real and has no position.
        front = np.broadcast_to(run.arrays["cls"], (batch, 1, config.d_model))
        state = np.concatenate([front, state], axis=1)
        every = np.ones((1, length), bool) if real is None else real
        values = np.pad(steps.values, [(0, 0)] * (steps.values.ndim - 1) + [(1, 0)])
        standing = Positions(values, np.pad(every, ((0, 0), (1, 0))))
        real = None if real is None else np.pad(real, ((0, 0), (1, 0)), constant_values=True)
    state = run.dropout("input", 0, run.tap("encoding", state))

    allowed = None if real is None else real[:, None, None, :]
    if segment_ids is not None:
        assert allowed is not None
        allowed = allowed & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    for n in range(config.num_layers):
        if n > 0 and any(encoding.acts_before(n) for encoding, _ in _of_kind(run, n, Additive)):
            ahead = state.shape[1] - length
            behind = _add_encodings(run, state[:, ahead:], steps, layer=n)
            state = np.concatenate([state[:, :ahead], behind], axis=1)
            state = run.tap(f"layers.{n}.encoding", state)
        state = _block(run, n, state, allowed, standing)
    return run.layer_norm("norm", state) if config.norm == "pre" else state


def forward(
    config: ModelConfig,
    arrays: Mapping[str, Float[np.ndarray, "..."]],
    x: np.ndarray,
    *,
    mask: Bool[np.ndarray, "batch length"] | None = None,
    positions: np.ndarray | None = None,
    segment_ids: Integer[np.ndarray, "batch length"] | None = None,
    num_segments: int | None = None,
    taps: dict[str, Any] | None = None,
    seed: int = 0,
    dropout_step: int | None = None,
    dropout_rows: Int[np.ndarray, " batch"] | None = None,
    run_type: Callable[..., Run] = Run,
) -> Array:
    """Return the class logits, (batch, num_classes), or (batch, num_segments, num_classes) of
    packed sequences.

    `run_type` computes the parts: `Run`, or a subclass with a fault.
    """
    check_num_segments(num_segments, packed=segment_ids is not None)
    run = _begun(run_type, config, arrays, taps, seed, dropout_step, dropout_rows)
    state = _encode(run, x, mask, positions, segment_ids)
    if config.pooling == "cls":
        pooled = state[:, 0]
    else:
        real = real_steps(mask, segment_ids)
        member = np.ones(state.shape[:2], bool)[:, None] if real is None else real[:, None]
        if segment_ids is not None:
            count = require_num_segments(num_segments, int(segment_ids.max()))
            member = member & (segment_ids[:, None] == np.arange(1, count + 1)[:, None])
        pooled = run.pool(state, member)
        pooled = pooled if segment_ids is not None else pooled[:, 0]
    return run.tap("head", run.linear("head", run.tap("pooled", pooled)))


def cross_entropy(
    logits: Float64[np.ndarray, "batch num_classes"],
    labels: Int[np.ndarray, " batch"],
    weights: Float[np.ndarray, " batch"],
) -> float:
    """Minus the logarithm of the softmax at the label, summed with the weights and divided by their
    sum.
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=-1)) - shifted[np.arange(len(labels)), labels]
    return float((losses * weights).sum() / np.asarray(weights, np.float64).sum())


def _described(array: np.ndarray | None) -> Any:
    return None if array is None else Described(array.shape, array.dtype.kind, str(array.dtype))


def _checked_positions(
    config: ModelConfig, positions: np.ndarray, real: np.ndarray | None
) -> np.ndarray:
    """Return the positions, integers as int64, in which every real step stands somewhere."""
    there = positions if real is None else np.where(real, positions, 0)
    bad = (
        ~(np.abs(there.astype(np.float64)) < 2.0**63)
        if there.dtype.kind == "f"
        else (there > np.iinfo(np.int64).max)
    )
    if bad.any():
        for encoding in config.encodings:
            if isinstance(encoding, LearnedTable) and there.dtype.kind == "f":
                require_positions_fit(encoding.max_length, there.min().item(), there.max().item())
        require_finite_position(there[bad][0].item())
    return there if there.dtype.kind == "f" else there.astype(np.int64)


def _of_kind(run: Run, n: int, kind: type) -> list[tuple[Any, Any]]:
    """Return the options and the arrays in layer n of every encoding of a kind; the arrays by name
    within the encoding.
    """
    found = []
    for index, options in enumerate(run.config.encodings):
        if isinstance(formula_of(options), kind):
            prefix = f"encodings.{index}." + (f"layers.{n}." if options.per_layer else "")
            arrays = {
                name.removeprefix(prefix): array
                for name, array in run.arrays.items()
                if name.startswith(prefix)
            }
            found.append((options, arrays))
    return found


def _add_encodings(run: Run, state: Array, positions: Positions, layer: int) -> Array:
    for options, arrays in _of_kind(run, layer, Additive):
        if options.acts_before(layer):
            formula = formula_of(options)
            state = formula.add(options, arrays, state, positions)
    return state


def _block(
    run: Run, n: int, state: Array, allowed: np.ndarray | None, positions: Positions
) -> Array:
    """One block: x + A(N(x)) then x + F(N(x)) pre-norm (Xiong et al. 2020).

    Post-norm, N(x + A(x)) then N(x + F(x)) (Vaswani et al. 2017).
    """
    name, pre = f"layers.{n}", run.config.norm == "pre"
    inner = run.layer_norm(f"{name}.norm1", state) if pre else state
    attended = _attention(run, n, inner, allowed, positions)
    attended = run.dropout("attention_output", n, attended)
    state = run.residual(f"{name}.attention", state, attended)
    if not pre:
        state = run.layer_norm(f"{name}.norm1", state)
    inner = run.layer_norm(f"{name}.norm2", state) if pre else state
    hidden = run.tap(
        f"{name}.feed_forward.hidden", run.activation(run.linear(f"{name}.feed_forward.up", inner))
    )
    output = run.linear(f"{name}.feed_forward.down", run.dropout("feed_forward_hidden", n, hidden))
    output = run.tap(f"{name}.feed_forward.output", output)
    output = run.dropout("feed_forward_output", n, output)
    state = run.residual(f"{name}.feed_forward", state, output)
    if not pre:
        state = run.layer_norm(f"{name}.norm2", state)
    return run.tap(f"{name}.output", state)


def _attention(
    run: Run, n: int, x: Array, allowed: np.ndarray | None, positions: Positions
) -> Array:
    config, name, (batch, length, width) = run.config, f"layers.{n}.attention", x.shape
    parts = (
        run.linear(f"{name}.qkv", x)
        .reshape(batch, length, 3, config.num_heads, config.d_head)
        .transpose(2, 0, 3, 1, 4)
    )
    query, key, value = (
        run.tap(f"{name}.{part}", array)
        for part, array in zip(("query", "key", "value"), parts, strict=True)
    )
    factor = math.prod(encoding.factor(config.sizes) for encoding in config.encodings)
    steps = Steps(x, query, key, value, factor / math.sqrt(config.d_head))
    for options, arrays in _of_kind(run, n, QueryKey):
        maps = formula_of(options)
        query = maps.query(options, arrays, query, positions)
        key = maps.key(options, arrays, key, positions)
    logits = attention.logits(query, key, steps.scale)
    for options, arrays in _of_kind(run, n, LogitBias):
        bias = formula_of(options).bias(options, arrays, positions)
        logits = logits + positions.where_placed(bias)
    contextual = _of_kind(run, n, Contextual)
    for options, arrays in contextual:
        term = formula_of(options).logits(options, arrays, steps, positions)
        logits = logits + positions.where_placed(term)
    weights = run.tap(f"{name}.weights", run.weights(run.tap(f"{name}.logits", logits), allowed))
    dropped = run.dropout("attention_weights", n, weights)
    mixed = attention.mixed(dropped, value)
    for options, arrays in contextual:
        formula = formula_of(options)
        mixed = mixed + formula.mix(options, arrays, steps, positions, dropped)
    mixed = run.tap(f"{name}.mixed", mixed).transpose(0, 2, 1, 3).reshape(batch, length, width)
    return run.tap(f"{name}.output", run.linear(f"{name}.out", mixed))


def _pool(
    config: ModelConfig,
    arrays: Mapping[str, np.ndarray],
    state: Array,
    member: Bool[np.ndarray, "batch segments length"],
) -> Array:
    """Return one vector per segment, zeros for a segment without a step."""
    if config.pooling == "max":
        highest = np.where(member[..., None], state[:, None], -np.inf).max(axis=2)
        return np.where(member.any(axis=2, keepdims=True), highest, 0.0)
    if config.pooling == "mean":
        shares = member / np.maximum(member.sum(axis=2, keepdims=True), 1)
    elif config.pooling == "last":
        after = np.cumsum(member[..., ::-1], axis=2)[..., ::-1]
        shares = (member & (after == 1)).astype(np.float64)
    else:
        scores = state @ np.asarray(arrays["pooling.query"], np.float64) / np.sqrt(config.d_model)
        shares = attention.weights(
            np.repeat(scores[:, None, None], member.shape[1], axis=2), np.expand_dims(member, 1)
        )[:, 0]
    return shares @ state
