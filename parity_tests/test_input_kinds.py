"""Arrays and numbers of every kind: each is taken for what it says, or refused in one line that is
the same in both backends.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import pe_flax
import pe_torch
from parity_tests.cases import BACKENDS, CONFIGS, ENGINES, perturbed_arrays, small_batch
from parity_tests.refusals import refused
from parity_tests.small_models import in_each_backend, in_each_column, model, weights
from pe_core import (
    ComputeConfig,
    LearnedTable,
    Sinusoidal,
    TrainConfig,
)
from pe_core.encodings import Rotary, Shaw, T5Bias
from pe_parity.reference import forward

TOKENS = np.array([[1, 2, 3, 4], [5, 6, 7, 0]])
MASK = np.array([[True] * 4, [True, True, False, False]])
IDS = np.array([[1, 1, 2, 2], [1, 2, 2, 0]])
INTEGERS = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", ">i2", ">u4", ">i8"]


def logits(column: str, name: str, x: Any, **arguments: Any) -> np.ndarray:
    """Return the logits; in torch, of tensors of the same dtype."""
    if column == "reference":
        return forward(CONFIGS[name], weights(name), x, **arguments)
    if column == "torch":
        x, *rest = (
            torch.from_numpy(item.astype(item.dtype.newbyteorder("=")))
            for item in (x, *arguments.values())
        )
        return np.asarray(
            model(column, name)(x, **dict(zip(arguments, rest, strict=True))).detach()
        )
    return np.asarray(model(column, name)(x, **arguments))


@in_each_column
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_of_every_kind(column: str, dtype: str) -> None:
    tokens = logits(column, "tokens", TOKENS.astype(np.int64))
    assert np.array_equal(logits(column, "tokens", TOKENS.astype(dtype)), tokens)
    x = small_batch(CONFIGS["both"]).inputs[:2, :4]
    expected = logits(column, "both", x, segment_ids=IDS, positions=TOKENS)
    kinds = {"segment_ids": IDS.astype(dtype), "positions": TOKENS.astype(dtype)}
    assert np.array_equal(logits(column, "both", x, **kinds), expected)


@in_each_column
@pytest.mark.parametrize("dtype", INTEGERS)
def test_positions_of_every_kind_have_the_same_offsets(column: str, dtype: str) -> None:
    config = replace(CONFIGS["default"], encodings=(T5Bias(8, 16), Shaw(2), Rotary()))
    arrays, x = perturbed_arrays(config), small_batch(CONFIGS["both"]).inputs[:2, :4]
    found = []
    values = np.array([[-100, 100, 0, 127]] * 2 if "i" in dtype else [[200, 0, 255, 3]] * 2)
    for positions in (values, values.astype(dtype)):
        if column == "reference":
            found.append(forward(config, arrays, x, positions=positions))
        elif column == "torch":
            native = positions.astype(positions.dtype.newbyteorder("="))
            live = pe_torch.from_arrays(config, arrays)
            tensors = torch.from_numpy(x), torch.from_numpy(native)
            found.append(live(tensors[0], positions=tensors[1]).detach().numpy())
        else:
            other: Any = pe_flax.from_arrays(config, arrays)
            found.append(np.asarray(other(x, positions=positions)))
    assert np.array_equal(found[0], found[1])


@in_each_column
@pytest.mark.parametrize("token", [(1 << 32) + 1, (1 << 62) + 1, -(1 << 32) + 1, -1])
def test_tokens_do_not_wrap(column: str, token: int) -> None:
    tokens = TOKENS.astype(np.int64)
    tokens[1, 3] = token
    with refused(ValueError, f"token {token} lies outside 0 .. 10"):
        logits(column, "tokens", tokens)
    expected = logits(column, "tokens", TOKENS, mask=MASK)
    assert np.array_equal(logits(column, "tokens", tokens, mask=MASK), expected)
    if column == "flax":
        with refused(ValueError, f"token {token} lies outside 0 .. 10"):
            model("flax", "tokens")(tokens.tolist())


@in_each_column
def test_segments_do_not_wrap(column: str) -> None:
    x, ids = small_batch(CONFIGS["both"]).inputs[:2, :4], IDS.astype(np.int64)
    ids[0, 2:] = (1 << 32) + 2
    with refused(ValueError, "segment_ids must lie below 2**31, got 4294967298; number"):
        logits(column, "both", x, segment_ids=ids)


@in_each_backend
def test_batches_of_an_engine_do_not_wrap(label: str) -> None:
    config = CONFIGS["tokens"]
    engine: Any = ENGINES[label](config, weights("tokens"), TrainConfig(), ComputeConfig(), 1)
    batch = small_batch(config)
    expected = engine.read([engine.evaluate(batch)])
    for dtype in ("i8", "u1", ">i4"):
        same = replace(batch, labels=batch.labels.astype(dtype), inputs=batch.inputs.astype(dtype))
        assert np.array_equal(engine.read([engine.evaluate(same)]), expected)
    for field in ("labels", "inputs"):
        array = getattr(batch, field).astype(np.int64) + (1 << 32)
        with refused(ValueError, "4294967"):
            engine.evaluate(replace(batch, **{field: array}))


BIG = ">f4"


@in_each_column
def test_big_endian_arrays(column: str) -> None:
    x = small_batch(CONFIGS["both"]).inputs
    arrays = {name: array.astype(BIG) for name, array in weights("both").items()}
    if column == "reference":
        exact = forward(CONFIGS["both"], weights("both"), x)
        assert np.array_equal(forward(CONFIGS["both"], arrays, x.astype(BIG)), exact)
        return
    live = BACKENDS[column].package.from_arrays(CONFIGS["both"], arrays)
    expected = BACKENDS[column].call(model(column, "both"), x)
    assert np.array_equal(BACKENDS[column].call(live, x), expected)
    if column == "flax":
        assert np.array_equal(np.asarray(live(x.astype(BIG))), expected)


NUMPY = (
    "{} must be a torch.Tensor, got numpy.ndarray; pass torch.from_numpy({})",
    "{} must be a torch.Tensor, got list; pass torch.tensor({})",
)


def torch_calls() -> dict[str, Any]:
    x, steps = torch.zeros(2, 7, 3), torch.zeros(2, 7, 12)
    at = torch.arange(7)
    rotary = pe_torch.RotaryEncoding(Rotary(), d_head=4)
    bias = pe_torch.T5BiasEncoding(T5Bias(), num_heads=2)
    table = pe_torch.LearnedTableEncoding(LearnedTable(9), d_model=12)
    attention = pe_torch.SelfAttention(12, 3)
    live, encoder = model("torch", "default"), model("torch", "default").encoder
    heads = torch.zeros(2, 3, 7, 4)
    return {
        "x": [live, encoder, table, attention, rotary.query, rotary.key],
        "mask": [
            lambda mask, f=f, x=x: f(x, mask=mask)
            for f, x in ((live, x), (encoder, x), (table, steps), (attention, steps))
        ],
        "positions": [
            lambda positions, f=f, x=x: f(x, positions=positions)
            for f, x in (
                (live, x),
                (encoder, x),
                (table, steps),
                (attention, steps),
                (rotary.query, heads),
                (rotary.key, heads),
            )
        ],
        "segment_ids": [
            lambda ids, f=f, x=x: f(x, segment_ids=ids)
            for f, x in ((live, x), (encoder, x), (attention, steps))
        ],
        "queries": [lambda queries: bias(queries, at), lambda queries: bias.bias(queries, at)],
        "keys": [lambda keys: bias.bias(at, keys)],
    }


@pytest.mark.parametrize("name", ["x", "mask", "positions", "segment_ids", "queries", "keys"])
def test_torch_takes_tensors(name: str) -> None:
    array = np.zeros((2, 7), bool if name == "mask" else int)
    for call in torch_calls()[name]:
        with refused(TypeError, NUMPY[0].format(name, name), whole=True):
            call(array)
        with refused(TypeError, NUMPY[1].format(name, name), whole=True):
            call(array.tolist())


@in_each_backend
def test_steps_cannot_be_left_out(label: str) -> None:
    for layer in (model(label, "default"), *layers_of_steps(label)):
        with refused(TypeError, "x must be a ... got None"):
            layer(None)


def test_flax_takes_lists() -> None:
    live = model("flax", "default")
    x = small_batch(CONFIGS["default"]).inputs[:2, :4]
    arguments = {"mask": MASK, "positions": TOKENS, "segment_ids": IDS, "num_segments": 2}
    lists = {
        key: getattr(item, "tolist", lambda item=item: item)() for key, item in arguments.items()
    }
    assert np.array_equal(live(x.tolist(), **lists), live(x, **arguments))
    waves: Any = pe_flax.SinusoidalEncoding(Sinusoidal(), d_model=8)
    zeros, at = np.zeros((2, 3, 8)), jnp.arange(3)
    assert np.array_equal(waves(zeros.tolist(), [0, 1, 2]), waves(jnp.asarray(zeros), at))
    bias: Any = pe_flax.T5BiasEncoding(T5Bias(), num_heads=2, seed=0)
    assert np.array_equal(bias.bias([0, 1, 2], [0, 1, 2]), bias.bias(at, at))
    rotary: Any = pe_flax.RotaryEncoding(Rotary(), d_head=4)
    x = np.ones((2, 3, 1, 4), np.float32)
    assert np.array_equal(rotary.query(x.tolist(), [0, 1, 2]), rotary.query(x, at))
    hidden = np.ma.array([0, 1, 2, 3], mask=[False, False, True, False])
    for wrong in ([[1.0], [1.0, 2.0]], "text", hidden, object(), {"a": 1}, torch.zeros(2, 4, 3)):
        with refused(TypeError, "x must"):
            live(wrong)
        with refused(TypeError, "positions must"):
            live(small_batch(CONFIGS["default"]).inputs, positions=wrong)


STEPS_SHAPE = "x must have shape (batch, length, d_model) with d_model=16, got {}"
POSITIONS_SHAPE = "positions must have shape (batch, length) = (2, 5) or (5,), got {}"
SHAPES: dict[str, tuple[type[Exception], list[Any]]] = {
    STEPS_SHAPE.format("(2, 5, 1)"): (ValueError, [((2, 5, 1), {})]),
    STEPS_SHAPE.format("(5, 16)"): (ValueError, [((5, 16), {})]),
    STEPS_SHAPE.format("()"): (ValueError, [((), {})]),
    "x is empty, got shape (0, 5, 16); pass at least one sequence of one step": (
        ValueError,
        [((0, 5, 16), {})],
    ),
    POSITIONS_SHAPE.format("(1, 5, 1)"): (
        ValueError,
        [((2, 5, 16), {"positions": np.zeros((1, 5, 1), int)})],
    ),
    POSITIONS_SHAPE.format("(1, 5)"): (
        ValueError,
        [((2, 5, 16), {"positions": np.zeros((1, 5), int)})],
    ),
    POSITIONS_SHAPE.format("()"): (ValueError, [((2, 5, 16), {"positions": np.zeros((), int)})]),
    POSITIONS_SHAPE.format("(1,)"): (ValueError, [((2, 5, 16), {"positions": np.zeros(1, int)})]),
    "positions must be integers or floating point, got ...bool": (
        TypeError,
        [((2, 5, 16), {"positions": np.ones(5, bool)})],
    ),
    "positions must be integers or floating point, got ...complex64": (
        TypeError,
        [((2, 5, 16), {"positions": np.ones(5, "c8")})],
    ),
    "mask must have shape (batch, length) = (2, 5), got (5,)": (
        ValueError,
        [((2, 5, 16), {"mask": np.ones(5, bool)})],
    ),
    "mask must be boolean with True for real steps, got ...": (
        TypeError,
        [((2, 5, 16), {"mask": np.ones((2, 5), int)})],
    ),
}


def layers_of_steps(label: str) -> list[Any]:
    package = BACKENDS[label].package
    return [
        package.LearnedTableEncoding(LearnedTable(9), d_model=16, seed=0),
        package.SinusoidalEncoding(Sinusoidal(), d_model=16),
        *(
            package.SelfAttention(16, 2, encodings=(options,), seed=0)
            for options in (LearnedTable(9), Sinusoidal(), Rotary(), T5Bias(), Shaw(2))
        ),
    ]


@in_each_backend
@pytest.mark.parametrize("words", SHAPES)
def test_layers_of_steps_check_what_they_are_given(label: str, words: str) -> None:
    kind, calls = SHAPES[words]
    for layer in layers_of_steps(label):
        for shape, arguments in calls:
            with refused(kind, words, whole=True):
                BACKENDS[label].call(layer, np.zeros(shape, np.float32), **arguments)
    for layer in layers_of_steps(label):
        for dtype in ("i4", "u1", bool, "c8"):
            with refused(TypeError, "x must be floating point, got ...; convert it to float32"):
                BACKENDS[label].call(layer, np.zeros((2, 5, 16), dtype))


@in_each_backend
def test_rotary_checks_what_it_is_given(label: str) -> None:
    backend = BACKENDS[label]
    axes = (
        "(batch, heads, length, d_head)" if label == "torch" else "(batch, length, heads, d_head)"
    )
    layer = backend.package.RotaryEncoding(Rotary(), d_head=4)

    def heads(*shape: int) -> np.ndarray:
        batch, length, number, width = shape
        return np.zeros((batch, number, length, width) if label == "torch" else shape, np.float32)

    right = heads(2, 5, 3, 4)
    for method in (layer.query, layer.key):
        for wrong in (heads(2, 5, 3, 1), heads(2, 5, 3, 8), np.zeros((2, 5, 4), np.float32)):
            words = f"x must have shape {axes} with d_head=4, got {wrong.shape}"
            with refused(ValueError, words, whole=True):
                backend.call(method, wrong)
        with refused(TypeError, "x must be floating point, got ...; convert it to float32"):
            backend.call(method, right.astype(np.int32))
        with refused(ValueError, "x is empty, got shape"):
            backend.call(method, right[:0])
        for shape in ((1, 5, 1), (), (1,), (4,), (1, 5)):
            words = f"positions must have shape (batch, length) = (2, 5) or (5,), got {shape}"
            with refused(ValueError, words, whole=True):
                backend.call(method, right, positions=np.zeros(shape, int))
        with refused(TypeError, "positions must be integers or floating point, got"):
            backend.call(method, right, positions=np.zeros(5, bool))
    whole = backend.array(heads(2, 5, 3, 4))
    with refused(ValueError, f"x must have shape {axes} with d_head=4"):
        layer(whole, whole[..., :1])


@in_each_backend
def test_a_bias_checks_what_it_is_given(label: str) -> None:
    array = BACKENDS[label].array
    bias = BACKENDS[label].package.T5BiasEncoding(T5Bias(), num_heads=2, seed=0).bias
    right = np.zeros((2, 5), int)
    for shape in ((1, 5, 1), (), (2, 0)):
        for one, other in ((right, np.zeros(shape, int)), (np.zeros(shape, int), right)):
            with refused(ValueError, "positions must have shape (length,) or (batch, length), got"):
                bias(array(one), array(other))
    with refused(ValueError, "queries and keys must have the same batch, got 2 and 3; "):
        bias(array(right), array(np.zeros((3, 5), int)))
    with refused(TypeError, "positions must be integers or floating point, got"):
        bias(array(right), array(right > 0))


@in_each_backend
def test_an_encoder_checks_its_front(label: str) -> None:
    live, x = model(label, "default").encoder, small_batch(CONFIGS["default"]).inputs
    for shape in ((1,), (1, 12), ()):
        with refused(ValueError, f"front must have shape (d_model,) = (12,), got {shape}"):
            BACKENDS[label].call(live, x, front=np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    "make",
    [
        lambda **layout: pe_torch.LearnedTableEncoding(
            LearnedTable(9), d_model=8, seed=0, **layout
        ),
        lambda **layout: pe_torch.SinusoidalEncoding(Sinusoidal(), d_model=8, **layout),
        lambda **layout: pe_torch.SelfAttention(
            8, 2, encodings=(Rotary(), T5Bias(), Shaw(2)), seed=0, **layout
        ),
    ],
)
def test_layers_take_steps_before_the_batch(make: Any) -> None:
    x, mask = torch.randn(2, 7, 8), torch.arange(7) < torch.tensor([[7], [3]])
    for given in ({}, {"mask": mask}, {"positions": torch.tensor([[0, 1, 2, 4, 5, 6, 8]] * 2)}):
        found = make(batch_first=False)(x.transpose(0, 1), **given)
        assert torch.equal(found.transpose(0, 1), make()(x, **given))
    with refused(ValueError, "x must have shape (batch, length, d_model) with d_model=8"):
        make(batch_first=False)(x[0])
