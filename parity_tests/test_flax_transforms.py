"""jax.export with symbolic lengths, and what nnx does with modules: stacks, shapes, pages."""

from __future__ import annotations

from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pe_flax
from parity_tests.cases import small_config
from parity_tests.small_models import assert_near
from pe_core import ComputeConfig, Features, LearnedTable, Sinusoidal, Tokens
from pe_core.encodings import Rotary, Shaw, T5Bias

EVERY = (Sinusoidal(), LearnedTable(40, layers="all"), Rotary(), T5Bias(), Shaw(3))
BATCH, LENGTH = jax.export.symbolic_shape("batch, length")
SIZES = ((2, 7), (5, 33))


def arguments(batch: int, length: int) -> dict[str, Any]:
    random = np.random.default_rng(length)
    return {
        "x": random.normal(size=(batch, length, 3)).astype(np.float32),
        "mask": np.arange(length) < random.integers(1, length + 1, (batch, 1)),
        "positions": random.integers(0, 40, (batch, length), np.int32),
        "fractions": random.uniform(0, 39, length).astype(np.float32),
        "segments": np.tile(np.minimum(np.arange(length, dtype=np.int32) // 3 + 1, 3), (batch, 1)),
        "tokens": random.integers(0, 5, (batch, length), np.int32),
        "steps": random.normal(size=(batch, length, 12)).astype(np.float32),
        "heads": random.normal(size=(batch, length, 2, 6)).astype(np.float32),
    }


def assert_exported(call: Any, names: str) -> None:
    """Export a call of these arguments once, and hold it against the call at every size."""
    given = [arguments(2, 7)[name] for name in names.split()]
    symbols = {2: BATCH, 7: LENGTH}
    shapes = [(*(symbols[size] for size in x.shape[:2]), *x.shape[2:]) for x in given]
    specs = [jax.ShapeDtypeStruct(s, x.dtype) for s, x in zip(shapes, given, strict=True)]
    program = jax.export.export(jax.jit(call))(*specs)
    for size in SIZES:
        given = [jnp.asarray(arguments(*size)[name]) for name in names.split()]
        assert_near(program.call(*given), jax.jit(call)(*given))


@pytest.mark.parametrize(
    ("pooling", "keyword", "encodings"),
    [
        ("mean", "segments", EVERY),
        ("cls", "mask", EVERY),
        ("attention", "fractions", (LearnedTable(40), Sinusoidal(), Rotary())),
    ],
)
def test_one_export_serves_any_batch_and_length(pooling: Any, keyword: str, encodings: Any) -> None:
    config = small_config(num_layers=1, pooling=pooling, encodings=encodings)
    model = pe_flax.SequenceClassifier(config, seed=1)
    model.eval()
    more: dict[str, Any] = {"num_segments": 3} if keyword == "segments" else {}
    names = [{"segments": "segment_ids", "fractions": "positions"}.get(keyword, keyword)]

    def call(x: Any, *given: Any) -> Any:
        return model(x, **dict(zip(names, given, strict=False)), **more)

    assert_exported(call, f"x {keyword}")


def test_tokens_and_blocks_are_exported() -> None:
    config = small_config(num_layers=1, inputs=Tokens(5), encodings=(LearnedTable(40), Shaw(3)))
    compute = ComputeConfig(rows_per_block=4)
    model = pe_flax.SequenceClassifier(config, seed=1, compute=compute)
    model.eval()
    assert_exported(lambda tokens: model(tokens), "tokens")


def test_layers_alone_are_exported() -> None:
    table = pe_flax.LearnedTableEncoding(LearnedTable(40), d_model=12, seed=0)
    waves = pe_flax.SinusoidalEncoding(Sinusoidal(), d_model=12)
    rotary = pe_flax.RotaryEncoding(Rotary(), d_head=6, num_heads=2)
    bias = pe_flax.T5BiasEncoding(T5Bias(), num_heads=2, seed=0)
    attention = pe_flax.SelfAttention(12, 2, encodings=(Rotary(), T5Bias(), Shaw(3)), seed=0)
    encoder = pe_flax.Encoder(small_config(num_layers=1), seed=0)
    encoder.eval()
    assert_exported(lambda x: waves(table(x)), "steps")
    assert_exported(lambda x: rotary.query(x), "heads")
    assert_exported(lambda q: bias.bias(q, q), "positions")
    assert_exported(lambda x, mask: attention(x, mask=mask), "steps mask")


def test_a_position_outside_the_table_of_an_export_is_nan() -> None:
    layer = pe_flax.LearnedTableEncoding(LearnedTable(9), d_model=12, seed=0)
    spec = jax.ShapeDtypeStruct((BATCH, LENGTH, 12), np.dtype(np.float32))
    found = jax.export.export(jax.jit(lambda x: layer(x)))(spec).call(jnp.zeros((2, 11, 12)))
    assert np.isnan(found).all(axis=(0, 2)).tolist() == [False] * 9 + [True] * 2


MAKE: dict[str, Any] = {
    "table": lambda rngs: pe_flax.LearnedTableEncoding(LearnedTable(9), d_model=12, rngs=rngs),
    "attention": lambda rngs: pe_flax.SelfAttention(
        12, 3, encodings=(LearnedTable(9), Shaw(2)), dropout=0.5, rngs=rngs
    ),
    "encoder": lambda rngs: pe_flax.Encoder(
        small_config(inputs=Features(12), num_layers=1, dropout=0.5), rngs=rngs
    ),
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_layers_are_stacked_and_scanned(make: Any) -> None:
    layers = nnx.split_rngs(splits=3)(nnx.vmap(make))(nnx.Rngs(0))
    weights = jax.tree.leaves(nnx.state(layers, nnx.Param))
    assert weights
    for weight in weights:
        assert weight.shape[0] == 3
        # All but biases and scales, which are equal.
        drawn = len(np.unique(np.asarray(weight[0]))) > 1
        assert len(np.unique(np.asarray(weight), axis=0)) == (3 if drawn else 1)
    x = jnp.ones((2, 5, 12))
    layers.eval()
    run = nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    graph, state = nnx.split(layers)
    found = x
    for n in range(3):
        found = nnx.merge(graph, jax.tree.map(lambda leaf, n=n: leaf[n], state))(found)
    assert_near(run(layers, x), found)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_layers_are_shown(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    layer, x = make(nnx.Rngs(0)), jnp.ones((2, 5, 12))
    assert type(layer).__name__ in nnx.tabulate(layer, x)
    nnx.display(layer)
    assert type(layer).__name__ in capsys.readouterr().out
    shapes = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    assert jax.tree.map(lambda leaf: leaf.shape, nnx.state(shapes, nnx.Param)) == jax.tree.map(
        lambda leaf: leaf.shape, nnx.state(layer, nnx.Param)
    )
    assert layer(x).shape == x.shape
