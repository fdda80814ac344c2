"""A model is the same with and without its head, taps or a compiler; dropout is for training only,
and copies are whole.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pe_flax
import pe_torch
from parity_tests.cases import (
    BACKENDS,
    BATCH,
    CONFIGS,
    ENGINES,
    LENGTH,
    short_batch,
    small_batch,
    small_config,
)
from parity_tests.small_models import in_each_backend, model, near, steps_and_logits, weights
from pe_core import ComputeConfig, LearnedTable, TrainConfig
from pe_core.encodings import Rotary, Shaw, T5Bias
from pe_core.model.parameters import parameters
from pe_core.model.random import derive, normal
from pe_parity import BUDGETS, distance


@in_each_backend
@pytest.mark.parametrize("name", ["default", "none", "both"])
def test_an_encoder_is_a_classifier_without_its_head(label: str, name: str) -> None:
    batch = small_batch(CONFIGS[name], masked=True)
    encoder = BACKENDS[label].encoder(CONFIGS[name], weights(name))
    assert np.array_equal(
        BACKENDS[label].call(encoder, batch.inputs, mask=batch.mask),
        steps_and_logits(label, name, batch.inputs, mask=batch.mask)[0],
    )


@in_each_backend
@pytest.mark.parametrize("name", ["post", "both"])
def test_taps_change_nothing(label: str, name: str) -> None:
    batch = short_batch(CONFIGS[name], masked=True)
    with_taps = steps_and_logits(label, name, batch.inputs, mask=batch.mask)[1]
    assert np.array_equal(
        BACKENDS[label].call(model(label, name), batch.inputs, mask=batch.mask), with_taps
    )


@in_each_backend
def test_dropout_is_for_training_only(label: str) -> None:
    backend, config, x = BACKENDS[label], CONFIGS["dropout"], small_batch(CONFIGS["dropout"]).inputs
    live = backend.classifier(config, weights("dropout"))
    without = backend.call(backend.classifier(replace(config, dropout=0.0), weights("dropout")), x)
    assert np.array_equal(backend.call(live, x), without)
    assert np.array_equal(backend.call(live, x, dropout_step=7), without)
    live.train()
    first, second = backend.call(live, x), backend.call(live, x)
    assert not near(first, without, label)
    assert not near(first, second, label)
    live.eval()
    assert np.array_equal(backend.call(live, x), without)


@pytest.mark.parametrize("name", ["sinusoidal", "both"])
@pytest.mark.parametrize("masked", [False, True])
def test_evaluation_leaves_nothing_behind_in_torch(name: str, masked: bool) -> None:
    config, arrays = CONFIGS[name], weights(name)
    batch = small_batch(config, masked=masked)
    fresh, used = (
        ENGINES["torch"](config, arrays, TrainConfig(), ComputeConfig(), 1) for _ in range(2)
    )
    used.evaluate(batch)
    used.predict(batch)
    loss, gradients = used.gradients(batch)
    exact_loss, exact = fresh.gradients(batch)
    assert loss == exact_loss
    assert all(np.array_equal(gradients[key], exact[key]) for key in exact)


def test_torch_models_are_copied_whole() -> None:
    x = small_batch(CONFIGS["both"]).inputs
    live = model("torch", "both")
    longer = np.concatenate([x, x[:, :2]], axis=1)
    before = BACKENDS["torch"].call(live, x)
    BACKENDS["torch"].call(live, longer)
    assert np.array_equal(BACKENDS["torch"].call(live, x), before)
    assert np.array_equal(BACKENDS["torch"].call(copy.deepcopy(live), x), before)


@pytest.mark.parametrize("name", CONFIGS)
def test_names_in_torch_are_the_canonical_ones(name: str) -> None:
    live = pe_torch.SequenceClassifier(CONFIGS[name])
    # The encoder of a classifier has no name of its own in files.
    names = {key.removeprefix("encoder."): value for key, value in live.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in names.items()} == {
        item.name: item.shape for item in parameters(CONFIGS[name])
    }


@pytest.mark.parametrize("training", [False, True])
def test_flax_models_are_tabulated(training: bool) -> None:
    encodings = (LearnedTable(9, layers="all"), Rotary(), T5Bias(per_layer=True), Shaw(2))
    live = pe_flax.SequenceClassifier(
        small_config(encodings=encodings, pooling="cls", dropout=0.1 if training else 0.0)
    )
    live.train() if training else live.eval()
    shown = nnx.tabulate(live, jnp.zeros((2, 5, 3)), mask=jnp.ones((2, 5), bool))
    assert "SequenceClassifier" in shown
    alone = pe_flax.SelfAttention(12, 3, encodings=encodings, seed=0)
    assert "SelfAttention" in nnx.tabulate(alone, jnp.zeros((2, 5, 12)))


def test_flax_models_run_compiled() -> None:
    batch = small_batch(CONFIGS["both"], masked=True)
    live = model("flax", "both")
    eager = BACKENDS["flax"].call(live, batch.inputs, mask=batch.mask)
    graph, state = nnx.split(live)
    merged: Any = jax.jit(lambda state, x, mask: nnx.merge(graph, state)(x, mask=mask))
    assert near(np.asarray(merged(state, batch.inputs, batch.mask)), eager, "flax")
    compiled = nnx.jit(lambda model, x, mask: model(x, mask=mask))
    assert near(
        np.asarray(compiled(live, jnp.asarray(batch.inputs), jnp.asarray(batch.mask))),
        eager,
        "flax",
    )
    # The shapes are the same, so other numbers in the mask do not compile anew.
    mask = np.roll(np.asarray(batch.mask), 1, axis=0)
    again = BACKENDS["flax"].call(live, batch.inputs, mask=mask)
    assert near(np.asarray(merged(state, batch.inputs, mask)), again, "flax")
    assert merged._cache_size() == 1


def test_compiled_flax_answers_nan_where_it_cannot_raise() -> None:
    table = model("flax", "default").encoder.encodings[0]
    add = jax.jit(lambda x, positions: table(x, positions))
    zeros = jnp.zeros((BATCH, LENGTH, 12))
    for bad in (9, -1):
        found = np.asarray(add(zeros, jnp.arange(LENGTH).at[2].set(bad)))
        assert np.isnan(found[:, 2]).all()
        assert np.isfinite(np.delete(found, 2, axis=1)).all()
    found = np.asarray(add(zeros, jnp.arange(LENGTH, dtype=jnp.float32).at[2].set(8.5)))
    assert np.isnan(found[:, 2]).all()
    # Made outside of the compiled function: `model` keeps it for the other tests.
    embed = model("flax", "tokens").encoder.input
    found = np.asarray(jax.jit(lambda tokens: embed(tokens))(jnp.array([[0, 11, -1, 10]])))
    assert np.isnan(found[0, 1:3]).all()
    assert np.isfinite(found[0, [0, 3]]).all()


@in_each_backend
def test_the_key_bias_has_no_gradient(label: str) -> None:
    name = "post"
    config, batch = CONFIGS[name], short_batch(CONFIGS[name], masked=True)
    cotangent = normal(derive(0, 91), (BATCH, config.num_classes))
    gradients = BACKENDS[label].pullback(
        model(label, name), cotangent, batch.inputs, mask=batch.mask
    )[1]
    for n in range(config.num_layers):
        query, key, value = gradients[f"layers.{n}.attention.qkv.bias"].reshape(3, config.d_model)
        assert distance(key, np.zeros_like(key), value) <= BUDGETS["gradient", "float32"].bound
        assert distance(query, np.zeros_like(key), value) > BUDGETS["gradient", "float32"].bound
