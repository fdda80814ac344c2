"""Encodings that reach attention are the same in the reference and both backends: with masks,
packed sequences, a step in front, given positions and dropout, all rows at once or block by block.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import pe_flax
import pe_torch
from parity_tests.cases import BACKENDS, BATCH, LENGTH, perturbed_arrays, small_batch, small_config
from parity_tests.refusals import refused
from parity_tests.small_models import in_each_backend
from pe_core import ComputeConfig, LearnedTable, ModelConfig
from pe_core.encodings import EncodingOptions, Rotary, Shaw, T5Bias
from pe_core.model.random import derive, normal
from pe_parity.budgets import budget, distance
from pe_parity.reference import forward

ENCODINGS: dict[str, tuple[EncodingOptions, ...]] = {
    "rotary": (Rotary(),),
    "rotary, halves of a part": (Rotary(pairing="half", fraction=0.5),),
    "t5": (T5Bias(8, 16),),
    "t5, per layer": (T5Bias(8, 16, per_layer=True),),
    "shaw": (Shaw(2),),
    "shaw, keys alone and shared": (Shaw(2, values=False, per_layer=False),),
    "all": (LearnedTable(9), Rotary(), T5Bias(8, 16), Shaw(2)),
}
RIGHT = np.arange(LENGTH) < np.array([7, 4, 1, 7, 0])[:, None]
INNER = np.ones((BATCH, LENGTH), bool)
INNER[1, 2:4], INNER[2, 0], INNER[4, 6] = False, False, False
PACKED = np.array([[1, 1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 2, 0, 0], *[[1, 1, 1, 1, 2, 2, 0]] * 3])
WHOLE = np.array([[3, 1, 4, 0, 5, 2, 6]] * BATCH) + np.arange(BATCH)[:, None] % 3
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("mean", {}),
    "padded on the right, in front": ("cls", {"mask": RIGHT}),
    "padded within": ("attention", {"mask": INNER}),
    "packed": ("mean", {"segment_ids": PACKED}),
    "packed and masked": ("max", {"segment_ids": PACKED, "mask": INNER}),
    "given positions": ("mean", {"positions": WHOLE, "mask": RIGHT}),
    "float positions": ("cls", {"positions": WHOLE / 2.0}),
}
CASES = [
    (name, call)
    for name in ENCODINGS
    for call in CALLS
    if not (call == "float positions" and any(isinstance(e, Shaw) for e in ENCODINGS[name]))
]
STEP = 3


def config(name: str, call: str) -> ModelConfig:
    pooling = CALLS[call][0]
    return small_config(encodings=ENCODINGS[name], pooling=pooling, dropout=0.2)


@functools.cache
def expected(name: str, call: str) -> tuple[np.ndarray, dict[str, Any]]:
    model, taps = config(name, call), dict[str, Any]()
    x = small_batch(model).inputs.astype(np.float64)
    arrays = perturbed_arrays(model)
    logits = forward(model, arrays, x, taps=taps, dropout_step=STEP, **CALLS[call][1])
    return logits, taps


def near(found: Any, exact: np.ndarray) -> bool:
    return distance(np.asarray(found), exact, exact) <= budget("head", "float64").bound


@pytest.mark.parametrize(("name", "call"), CASES)
def test_torch_is_the_reference_and_blocks_are_the_whole(name: str, call: str) -> None:
    model, (exact, exact_taps) = config(name, call), expected(name, call)
    x = torch.from_numpy(small_batch(model).inputs.astype(np.float64))
    given = {key: torch.from_numpy(value) for key, value in CALLS[call][1].items()}
    gradients: list[list[np.ndarray]] = []
    for rows in (None, 1, 3):
        compute = ComputeConfig(precision="float64", rows_per_block=rows)
        live = pe_torch.from_arrays(model, perturbed_arrays(model), compute=compute).train()
        taps: dict[str, Any] = {}
        logits = live(x, taps=taps, dropout_step=STEP, **given)
        assert near(logits.detach(), exact)
        if rows is None:
            assert list(taps) == list(exact_taps)
            for tap, value in taps.items():
                assert near(value.detach(), exact_taps[tap]), tap
        (logits**2).sum().backward()
        every = [(one, one.grad) for one in live.parameters()]
        gradients.append([np.zeros(a.shape) if b is None else b.numpy().copy() for a, b in every])
    total = np.sqrt(sum((one**2).sum() for one in gradients[0]))
    for other in gradients[1:]:
        for one, found in zip(gradients[0], other, strict=True):
            assert np.linalg.norm(found - one) <= budget("gradient/", "float64").bound * total


# Flax compiles operation by operation: all calls with all encodings together, the two that need the
# most with each.
HARDEST = ("padded on the right, in front", "packed and masked")


@pytest.mark.parametrize(
    ("name", "call"), [(name, call) for name, call in CASES if name == "all" or call in HARDEST]
)
def test_flax_is_the_reference(name: str, call: str) -> None:
    model, (exact, exact_taps) = config(name, call), expected(name, call)
    x = small_batch(model).inputs.astype(np.float64)
    segments = {"num_segments": int(PACKED.max())} if "segment_ids" in CALLS[call][1] else {}
    with jax.enable_x64(True):
        live: Any = pe_flax.from_arrays(
            model, perturbed_arrays(model), compute=ComputeConfig(precision="float64")
        )
        live.train()
        taps: dict[str, Any] = {}
        logits = live(x, taps=taps, dropout_step=STEP, **segments, **CALLS[call][1])
        assert near(logits, exact)
    assert list(taps) == list(exact_taps)


def test_blocks_of_flax_are_the_whole() -> None:
    name, call = "all", "padded on the right, in front"
    model, x = config(name, call), small_batch(config(name, call)).inputs.astype(np.float64)
    found = []
    with jax.enable_x64(True):
        for size in (None, 1, 3):
            compute = ComputeConfig(precision="float64", rows_per_block=size)
            live = pe_flax.from_arrays(model, perturbed_arrays(model), compute=compute)
            live.train()
            parts: Any = nnx.split(live, nnx.Param, ...)
            graph, state, rest = parts

            def loss(
                state: Any, graph: Any = graph, rest: Any = rest
            ) -> tuple[jax.Array, jax.Array]:
                logits = nnx.merge(graph, state, rest)(x, mask=RIGHT, dropout_step=STEP)
                return (logits**2).sum(), logits

            gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(state)
            assert near(logits, expected(name, call)[0])
            found.append([np.asarray(leaf) for leaf in jax.tree.leaves(gradients)])
    total = np.sqrt(sum((one**2).sum() for one in found[0]))
    for one, *others in zip(*found, strict=True):
        for other in others:
            assert np.linalg.norm(other - one) <= budget("gradient/", "float64").bound * total


def test_layers_alone_are_the_same_in_both_backends() -> None:
    x = normal(derive(0, 99), (2, 6, 12)).astype(np.float32)
    options = (Rotary(), T5Bias(8, 16), Shaw(2))
    ours = pe_torch.SelfAttention(12, 3, encodings=options, seed=1).eval()
    theirs: Any = pe_flax.SelfAttention(12, 3, encodings=options, seed=1)
    mask = np.arange(6) < np.array([[6], [4]])
    one = ours(torch.from_numpy(x), mask=torch.from_numpy(mask)).detach().numpy()[mask]
    other = np.asarray(theirs(x, mask=mask))[mask]
    assert distance(other, one, one) <= budget("head", "float32").bound

    query = normal(derive(0, 98), (2, 3, 5, 4)).astype(np.float32)
    positions = np.arange(5) + 0.5
    turned = pe_torch.RotaryEncoding(Rotary(), d_head=4).query(
        torch.from_numpy(query), torch.from_numpy(positions.astype(np.float32))
    )
    rotary: Any = pe_flax.RotaryEncoding(Rotary(), d_head=4)
    flax_turned = rotary.query(query.swapaxes(1, 2), positions.astype(np.float32))
    exact = np.asarray(flax_turned).swapaxes(1, 2)
    assert distance(turned.numpy(), exact, exact) <= budget("head", "float32").bound

    bias = pe_torch.T5BiasEncoding(T5Bias(8, 16), num_heads=3, seed=2)
    found = bias.bias(torch.arange(4), torch.arange(9)).detach().numpy()
    same = pe_flax.T5BiasEncoding(T5Bias(8, 16), num_heads=3, seed=2)
    assert found.shape == (3, 4, 9)
    assert np.array_equal(found, np.asarray(same.bias(jnp.arange(4), jnp.arange(9))))


@in_each_backend
def test_tables_of_one_layer_start_apart(label: str) -> None:
    encodings = (LearnedTable(9), LearnedTable(9), T5Bias(8, 16))
    layer: Any = BACKENDS[label].package.SelfAttention(12, 3, encodings=encodings, seed=0)
    first, second, bias = (np.ravel(BACKENDS[label].numpy(x.table)) for x in layer.encodings)
    assert not np.array_equal(first, second)
    assert first[0] != bias[0]


@in_each_backend
def test_what_has_no_call_of_its_own_says_where_it_acts(label: str) -> None:
    package = BACKENDS[label].package
    with refused(TypeError, "ShawEncoding acts inside attention; pass its options to"):
        package.ShawEncoding(Shaw(2), d_model=12, num_heads=3, seed=0)(None)
    with refused(TypeError, "encodings must be a tuple of options, got Shaw("):
        package.SelfAttention(12, 3, encodings=Shaw(2), seed=0)


def test_initial_values_come_from_the_framework_unless_a_seed_is_given() -> None:
    torch.manual_seed(0)
    one = pe_torch.T5BiasEncoding(T5Bias(), num_heads=2).table
    torch.manual_seed(0)
    assert torch.equal(one, pe_torch.T5BiasEncoding(T5Bias(), num_heads=2).table)
    assert not torch.equal(one, pe_torch.T5BiasEncoding(T5Bias(), num_heads=2).table)
    drawn = pe_flax.T5BiasEncoding(T5Bias(), num_heads=2, rngs=nnx.Rngs(0)).table[...]
    assert not np.array_equal(drawn, one.detach().numpy())
    with refused(TypeError, "needs random numbers; pass rngs=nnx.Rngs(0) or seed=0"):
        pe_flax.T5BiasEncoding(T5Bias(), num_heads=2)


def test_what_does_not_go_together_is_refused() -> None:
    with refused(ValueError, "at most one encoding may map queries and keys"):
        small_config(encodings=(Rotary(), Rotary(pairing="half")))
    with refused(ValueError, "a rotary encoding rotates an even number of channels, got 3"):
        small_config(d_model=9, encodings=(Rotary(),))
    with refused(TypeError, "encoding 'shaw' takes whole positions, got torch.float32"):
        live = pe_torch.SequenceClassifier(small_config(encodings=(Shaw(2),)))
        live(torch.zeros(1, 4, 3), positions=torch.arange(4.0))
    with refused(TypeError, "T5BiasEncoding takes T5Bias options first and sizes by keyword"):
        pe_torch.T5BiasEncoding(Rotary(), num_heads=2)
