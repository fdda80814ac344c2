"""What others wrote computes the same: the layers of torch and of Flax, their embeddings and
losses, and a textbook's sines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch.nn import functional

import pe_flax
import pe_torch
from parity_tests.cases import BACKENDS, BATCH, LENGTH, perturbed_arrays, small_batch, small_config
from pe_core import LearnedTable, ModelConfig, Sinusoidal
from pe_core.model.config import LAYER_NORM_EPSILON
from pe_core.model.random import derive, normal
from pe_parity import BUDGETS, distance
from pe_parity.reference import cross_entropy
from pe_parity.reference.additive import sinusoidal


@pytest.fixture
def slow_path() -> Iterator[None]:
    """Keep torch from its fused inference path, which drops padded steps."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def torch_encoder(
    config: ModelConfig, arrays: dict[str, np.ndarray]
) -> torch.nn.TransformerEncoder:
    """Return torch's own encoder with these weights, in float64."""
    layer = torch.nn.TransformerEncoderLayer(
        config.d_model,
        config.num_heads,
        config.width_inside,
        dropout=0.0,
        activation=config.activation,
        batch_first=True,
        norm_first=config.norm == "pre",
        dtype=torch.float64,
    )
    last = torch.nn.LayerNorm(config.d_model, dtype=torch.float64) if config.norm == "pre" else None
    theirs = torch.nn.TransformerEncoder(
        layer, config.num_layers, norm=last, enable_nested_tensor=False
    )
    names = {
        "self_attn.in_proj_weight": "attention.qkv.weight",
        "self_attn.in_proj_bias": "attention.qkv.bias",
        "self_attn.out_proj.weight": "attention.out.weight",
        "self_attn.out_proj.bias": "attention.out.bias",
        "linear1": "feed_forward.up",
        "linear2": "feed_forward.down",
    }
    state = {}
    for key in theirs.state_dict():
        ours = key
        for outside, inside in names.items():
            ours = ours.replace(outside, inside)
        state[key] = torch.from_numpy(arrays[ours])
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.usefixtures("slow_path")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_torch_encoder(norm: Any, activation: Any, masked: bool) -> None:
    config = small_config(norm=norm, activation=activation, attention_bias=True)
    arrays, batch = perturbed_arrays(config), small_batch(config, masked=masked)
    # The last row has no real step: torch gives NaN for it here, and ours gives numbers.
    rows = slice(0, BATCH - 1)
    x, mask = batch.inputs[rows], None if batch.mask is None else batch.mask[rows]
    ours = BACKENDS["torch"].encoder(config, arrays, "float64")
    theirs = torch_encoder(config, arrays)
    taps: dict[str, np.ndarray] = {}
    found = BACKENDS["torch"].call(ours, x, taps=taps, **({} if mask is None else {"mask": mask}))
    real = np.ones(x.shape[:2], bool) if mask is None else mask
    padding = None if mask is None else torch.from_numpy(~mask)
    for training in (False, True):
        theirs.train(training)
        outside = (
            theirs(torch.from_numpy(taps["encoding"]), src_key_padding_mask=padding)
            .detach()
            .numpy()
        )
        assert outside.shape == found.shape
        assert (
            distance(found[real], outside[real], outside[real]) <= BUDGETS["tap", "float64"].bound
        )


@pytest.mark.usefixtures("slow_path")
def test_torch_encoder_gradients() -> None:
    config = small_config(attention_bias=True, encodings=())
    arrays, batch = perturbed_arrays(config), small_batch(config)
    ours, theirs = (
        BACKENDS["torch"].encoder(config, arrays, "float64"),
        torch_encoder(config, arrays),
    )
    cotangent = normal(derive(0, 90), (BATCH, LENGTH, config.d_model))
    _, gradients = BACKENDS["torch"].pullback(ours, cotangent, batch.inputs)
    start = torch.from_numpy(
        batch.inputs.astype(np.float64) @ arrays["input.weight"].T.astype(np.float64)
        + arrays["input.bias"]
    )
    theirs(start).backward(torch.from_numpy(cotangent))
    for n, layer in enumerate(theirs.layers):
        outside: Any = layer
        for name, weight in (
            ("attention.qkv.weight", outside.self_attn.in_proj_weight),
            ("attention.out.weight", outside.self_attn.out_proj.weight),
            ("feed_forward.up.weight", outside.linear1.weight),
            ("feed_forward.down.bias", outside.linear2.bias),
            ("norm1.weight", outside.norm1.weight),
        ):
            exact = weight.grad.numpy()
            assert (
                distance(gradients[f"layers.{n}.{name}"], exact, exact)
                <= BUDGETS["gradient", "float64"].bound
            ), name


class FlaxBlock(nnx.Module):
    """A block out of Flax's own layers. A dropout rate keeps its attention from the path that loses
    the digits of float64.
    """

    def __init__(self, config: ModelConfig, arrays: dict[str, np.ndarray], n: int) -> None:
        rngs, width, heads, depth = nnx.Rngs(0), config.d_model, config.num_heads, config.d_head
        self.pre, self.activation = config.norm == "pre", config.activation
        self.norm1, self.norm2 = (
            nnx.LayerNorm(width, epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, rngs=rngs)
            for _ in range(2)
        )
        self.attention = nnx.MultiHeadAttention(
            heads, width, dropout_rate=0.5, deterministic=True, decode=False, rngs=rngs
        )
        self.up, self.down = (
            nnx.Linear(width, config.width_inside, rngs=rngs),
            nnx.Linear(config.width_inside, width, rngs=rngs),
        )
        mine = {
            name.removeprefix(f"layers.{n}."): array
            for name, array in arrays.items()
            if name.startswith(f"layers.{n}.")
        }
        for name in ("norm1", "norm2"):
            self._put(getattr(self, name).scale, mine[f"{name}.weight"])
            self._put(getattr(self, name).bias, mine[f"{name}.bias"])
        weights, biases = (
            np.split(mine["attention.qkv.weight"], 3),
            np.split(mine["attention.qkv.bias"], 3),
        )
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            self._put(getattr(self.attention, name).kernel, weight.T.reshape(width, heads, depth))
            self._put(getattr(self.attention, name).bias, bias.reshape(heads, depth))
        self._put(
            self.attention.out.kernel, mine["attention.out.weight"].T.reshape(heads, depth, width)
        )
        self._put(self.attention.out.bias, mine["attention.out.bias"])
        for name in ("up", "down"):
            self._put(getattr(self, name).kernel, mine[f"feed_forward.{name}.weight"].T)
            self._put(getattr(self, name).bias, mine[f"feed_forward.{name}.bias"])

    def _put(self, variable: Any, array: np.ndarray) -> None:
        assert variable.shape == array.shape
        variable[...] = jnp.asarray(array)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm1(x) if self.pre else x, mask=mask)
        x = x if self.pre else self.norm1(x)
        hidden = self.up(self.norm2(x) if self.pre else x)
        hidden = (
            nnx.relu(hidden) if self.activation == "relu" else nnx.gelu(hidden, approximate=False)
        )
        x = x + self.down(hidden)
        return x if self.pre else self.norm2(x)


@pytest.mark.parametrize(("norm", "activation"), [("pre", "gelu"), ("post", "relu")])
def test_flax_layers(norm: Any, activation: Any) -> None:
    config = small_config(norm=norm, activation=activation, attention_bias=True)
    arrays, batch = perturbed_arrays(config), small_batch(config, masked=True)
    # The last row has no real step: Flax averages over all values there, and ours gives zeros.
    x, mask = batch.inputs[:-1], np.asarray(batch.mask)[:-1]
    taps: dict[str, np.ndarray] = {}
    BACKENDS["flax"].call(BACKENDS["flax"].encoder(config, arrays), x, mask=mask, taps=taps)
    state = jnp.asarray(taps["encoding"])
    with jax.numpy_rank_promotion("allow"):
        for n in range(config.num_layers):
            state = nnx.jit(FlaxBlock(config, arrays, n))(
                state, jnp.asarray(mask)[:, None, None, :]
            )
            found, exact = taps[f"layers.{n}.output"][mask], np.asarray(state)[mask]
            assert distance(found, exact, exact) <= BUDGETS["tap", "float32"].bound


def test_tables_are_embeddings() -> None:
    positions = (np.arange(BATCH)[:, None] * 2 + np.arange(LENGTH)) % 9
    x = normal(derive(0, 89), (BATCH, LENGTH, 6)).astype(np.float32)
    ours = pe_torch.LearnedTableEncoding(LearnedTable(9), d_model=6, seed=2)
    outside = functional.embedding(torch.from_numpy(positions), ours.table)
    assert torch.equal(
        ours(torch.from_numpy(x), torch.from_numpy(positions)), torch.from_numpy(x) + outside
    )
    theirs = pe_flax.LearnedTableEncoding(LearnedTable(9), d_model=6, seed=2)
    assert np.array_equal(np.asarray(theirs.table[...]), ours.table.detach().numpy())
    taken = jnp.take(theirs.table[...], jnp.asarray(positions), axis=0)
    assert jnp.array_equal(theirs(jnp.asarray(x), jnp.asarray(positions)), jnp.asarray(x) + taken)


@pytest.mark.parametrize("width", [8, 12])
def test_waves_are_those_of_a_textbook(width: int) -> None:
    """The loop of Vaswani et al. 2017, section 3.5, and of `get_timing_signal_1d` in tensor2tensor,
    in Python's own floats.
    """
    interleaved, tensor2tensor = np.zeros((50, width)), np.zeros((50, width))
    for pos in range(50):
        for i in range(width // 2):
            interleaved[pos, 2 * i] = math.sin(pos / 10000 ** (2 * i / width))
            interleaved[pos, 2 * i + 1] = math.cos(pos / 10000 ** (2 * i / width))
            angle = pos * math.exp(-i * math.log(10000.0) / (width / 2 - 1))
            tensor2tensor[pos, i], tensor2tensor[pos, width // 2 + i] = (
                math.sin(angle),
                math.cos(angle),
            )
    exact = {"interleaved": interleaved, "tensor2tensor": tensor2tensor}
    exact["half"] = np.concatenate([interleaved[:, 0::2], interleaved[:, 1::2]], axis=1)
    zeros = np.zeros((1, 50, width), np.float32)
    for layout, table in exact.items():
        options = Sinusoidal(layout=layout)  # type: ignore[arg-type]
        assert (
            distance(sinusoidal(options, width, np.arange(50)), table, table)
            <= BUDGETS["tap", "float64"].bound
        )
        for backend in BACKENDS.values():
            found = backend.call(backend.package.SinusoidalEncoding(options, d_model=width), zeros)[
                0
            ]
            assert distance(found, table, table) <= BUDGETS["tap", "float32"].bound


def test_cross_entropy() -> None:
    logits = 4.0 * normal(derive(0, 88), (BATCH, 3))
    labels = np.arange(BATCH) % 3
    weights = np.array([1.0, 1.0, 1.0, 1.0, 0.0])
    ours = np.array(cross_entropy(logits, labels, weights))
    # torch's own mean leaves out the rows with the index to ignore.
    ignored = torch.from_numpy(np.where(weights > 0, labels, -100))
    from_torch = functional.cross_entropy(torch.from_numpy(logits), ignored).numpy()
    bound = BUDGETS["loss", "float64"].bound
    assert distance(ours, from_torch, from_torch) <= bound
    with jax.enable_x64(True):
        losses = optax.softmax_cross_entropy_with_integer_labels(
            jnp.asarray(logits), jnp.asarray(labels)
        )
        from_optax = np.asarray(losses[:4].mean())
    assert distance(ours, from_optax, from_optax) <= bound
