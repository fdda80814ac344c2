"""Laws that a model obeys whatever its weights: padding, packing, order and positions, and its
encodings alone in other models.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import pe_flax
import pe_torch
from parity_tests.cases import (
    BACKENDS,
    BATCH,
    CONFIGS,
    LENGTH,
    perturbed_arrays,
    short_batch,
    small_batch,
    small_config,
)
from parity_tests.small_models import (
    WITHOUT_DROPOUT,
    in_each_backend,
    in_each_column,
    model,
    near,
    steps_and_logits,
    weights,
)
from pe_core import LearnedTable, Sinusoidal
from pe_core.model.random import derive, normal
from pe_parity import BUDGETS, distance
from pe_parity.reference import forward
from pe_parity.reference.additive import learned_table, sinusoidal

BARE = 4
# Where the steps of a bare sequence stand within LENGTH steps.
PADDINGS = {"right": [0, 1, 2, 3], "left": [-4, -3, -2, -1], "inner": [0, 2, 4, 5]}


def padded(x: np.ndarray, places: list[int], length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """Return x within more steps, and the mask; padded features are NaN and padded tokens far
    outside the vocabulary.
    """
    longer = np.full(
        (BATCH, length, *x.shape[2:]), np.nan if x.dtype == np.float32 else 10**6, x.dtype
    )
    longer[:, places] = x
    mask = np.zeros((BATCH, length), bool)
    mask[:, places] = True
    return longer, mask


@functools.cache
def bare(
    name: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return short sequences without padding, their steps and logits in the reference, and a
    cotangent with its gradients, all exact.
    """
    x = small_batch(CONFIGS[name]).inputs[:, :BARE]
    steps, logits = steps_and_logits("reference", name, x)
    cotangent = normal(derive(0, 95), logits.shape)
    exact = BACKENDS["torch"].classifier(CONFIGS[name], weights(name), "float64")
    numbers = x.astype(np.float64) if x.dtype == np.float32 else x
    return x, steps, logits, cotangent, *BACKENDS["torch"].pullback(exact, cotangent, numbers)


@in_each_column
@pytest.mark.parametrize("name", WITHOUT_DROPOUT)
def test_padding_changes_nothing_wherever_it_stands_and_whatever_it_holds(
    column: str, name: str
) -> None:
    x, steps, logits, cotangent, exact_of_x, exact_gradients = bare(name)
    length = short_batch(CONFIGS[name]).inputs.shape[1]
    for places in PADDINGS.values():
        longer, mask = padded(x, places, length)
        with_padding, its_logits = steps_and_logits(column, name, longer, mask=mask)
        assert np.isfinite(with_padding).all()
        assert near(with_padding[:, places], steps, column)
        assert near(its_logits, logits, column)
        if column == "reference":
            continue
        of_x, gradients = BACKENDS[column].pullback(
            model(column, name), cotangent, longer, mask=mask
        )
        if x.dtype == np.float32:
            assert near(of_x[:, places], exact_of_x, column, "gradient")
            assert not of_x[~mask].any()
        for key, gradient in gradients.items():
            assert near(gradient, exact_gradients[key], column, "gradient"), key


@in_each_backend
def test_padding_may_reach_beyond_the_table(label: str) -> None:
    config = small_config(encodings=(LearnedTable(BARE),))
    backend, arrays, x = (
        BACKENDS[label],
        perturbed_arrays(config),
        small_batch(config).inputs[:, :BARE],
    )
    longer, mask = padded(x, PADDINGS["inner"])
    exact = forward(config, arrays, x)
    assert near(backend.call(backend.classifier(config, arrays), longer, mask=mask), exact, label)
    mask[:, 1] = True
    with pytest.raises(
        ValueError, match="a sequence of length 5 does not fit the learned table of max_length 4"
    ):
        backend.call(backend.classifier(config, arrays), longer, mask=mask)


@in_each_backend
def test_short_sequences_without_padding(label: str) -> None:
    x, steps, logits, *_ = bare("none")
    for found, exact in zip(steps_and_logits(label, "none", x), (steps, logits), strict=True):
        assert near(found, exact, label)


@in_each_column
@pytest.mark.parametrize(
    "name", [name for name in WITHOUT_DROPOUT if CONFIGS[name].pooling != "cls"]
)
def test_packed_sequences_are_separate_sequences(column: str, name: str) -> None:
    x = small_batch(CONFIGS[name]).inputs
    segment_ids = np.tile(np.array([1, 1, 1, 2, 2, 2, 0], np.int32), (BATCH, 1))
    segment_ids[1] = [0, 1, 1, 1, 1, 0, 2]
    segment_ids[2] = [1, 1, 1, 1, 1, 1, 1]
    steps, logits = steps_and_logits(column, name, x, segment_ids=segment_ids)
    assert logits.shape == (BATCH, 2, CONFIGS[name].num_classes)
    cotangent = normal(derive(0, 94), logits.shape)
    sums: dict[str, np.ndarray] = {}
    for segment in (1, 2):
        mask = segment_ids == segment
        alone, its_logits = steps_and_logits(column, name, x, mask=mask)
        assert near(steps[mask], alone[mask], column)
        assert near(logits[:, segment - 1], its_logits, column)
        if column != "reference":
            gradients = BACKENDS[column].pullback(
                model(column, name), cotangent[:, segment - 1], x, mask=mask
            )[1]
            sums = {key: gradient + sums.get(key, 0.0) for key, gradient in gradients.items()}
    if column != "reference":
        packed = BACKENDS[column].pullback(
            model(column, name), cotangent, x, segment_ids=segment_ids
        )[1]
        for key, gradient in packed.items():
            assert near(gradient, sums[key], column, "gradient"), key


@in_each_column
def test_rows_of_a_batch_do_not_see_each_other(column: str) -> None:
    x = small_batch(CONFIGS["default"]).inputs
    others = small_batch(CONFIGS["default"], seed=1).inputs
    others[0] = x[0]
    for one, other in zip(
        steps_and_logits(column, "default", x),
        steps_and_logits(column, "default", others),
        strict=True,
    ):
        assert near(other[0], one[0], column)
        assert not near(other[1], one[1], column)


@in_each_column
@pytest.mark.parametrize("name", WITHOUT_DROPOUT)
def test_a_row_without_a_real_step_gives_zeros(column: str, name: str) -> None:
    config, batch = CONFIGS[name], short_batch(CONFIGS[name], masked=True)
    taps: dict[str, Any] = {}
    if column == "reference":
        logits = forward(config, weights(name), batch.inputs, mask=batch.mask, taps=taps)
    else:
        logits = BACKENDS[column].call(
            model(column, name), batch.inputs, mask=batch.mask, taps=taps
        )
    assert all(np.isfinite(value).all() for value in taps.values())
    if config.pooling != "cls":
        for n in range(config.num_layers):
            assert not taps[f"layers.{n}.attention.weights"][-1].any()
            assert not taps[f"layers.{n}.attention.mixed"][-1].any()
        assert not taps["pooled"][-1].any()
        assert np.array_equal(logits[-1].astype(np.float32), weights(name)["head.bias"])
    if column != "reference":
        of_x, gradients = BACKENDS[column].pullback(
            model(column, name), np.ones(logits.shape), batch.inputs, mask=batch.mask
        )
        assert all(np.isfinite(gradient).all() for gradient in (of_x, *gradients.values()))
        assert not of_x[-1:].any()


@in_each_backend
def test_a_row_without_a_real_step_sends_no_gradient_to_the_weights(label: str) -> None:
    x = small_batch(CONFIGS["both"]).inputs
    mask = np.zeros((BATCH, LENGTH), bool)
    _, gradients = BACKENDS[label].pullback(
        model(label, "both"), np.ones((BATCH, CONFIGS["both"].num_classes)), x, mask=mask
    )
    assert [name for name, gradient in gradients.items() if gradient.any()] == ["head.bias"]


def encoded(column: str, encodings: tuple[Any, ...], x: np.ndarray) -> np.ndarray:
    config = small_config(encodings=encodings)
    arrays = perturbed_arrays(config)
    taps: dict[str, Any] = {}
    if column == "reference":
        forward(config, arrays, x, taps=taps)
        return np.asarray(taps["norm"])
    return BACKENDS[column].call(BACKENDS[column].encoder(config, arrays), x)


@in_each_column
def test_without_an_encoding_the_order_of_the_steps_is_lost(column: str) -> None:
    x = small_batch(CONFIGS["default"]).inputs
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    assert near(encoded(column, (), x[:, order]), encoded(column, (), x)[:, order], column)


@in_each_column
@pytest.mark.parametrize(
    "encoding", [LearnedTable(9), Sinusoidal(), Sinusoidal(layers="all")], ids=str
)
def test_with_an_encoding_the_order_matters(column: str, encoding: Any) -> None:
    x = small_batch(CONFIGS["default"]).inputs
    forwards, backwards = (
        encoded(column, (encoding,), x),
        encoded(column, (encoding,), x[:, ::-1])[:, ::-1],
    )
    assert distance(backwards, forwards, forwards) > BUDGETS["tap", "float32"].fault


WAVES = [
    (Sinusoidal(layout=layout), width)
    for layout in ("interleaved", "half", "tensor2tensor")
    for width in (8, 7)
]
WAVES += [(Sinusoidal(base=100.0), 6), (Sinusoidal(layout="tensor2tensor"), 2), (Sinusoidal(), 1)]
FAR = {
    "integers": np.array([0, 1, 511, 9_999, 10_000, 1_000_000, 16_777_215], np.int32),
    "times": np.array([1 << 31, 10**9 + 7, 1_700_000_000_123, -(1 << 40), -1, 1 << 53, 1 << 62]),
    "fractions": np.array(
        [0.5, 1.25, -3.75, 9_999.5, 10_000.125, 1_000_000.25, 999_999.9375], np.float32
    ),
}


def alone(
    label: str, layer: Any, width: int, positions: np.ndarray | None, dtype: Any = np.float32
) -> np.ndarray:
    """Return what a layer adds to zeros."""
    extra: dict[str, Any] = {} if positions is None else {"positions": positions}
    return BACKENDS[label].call(layer, np.zeros((BATCH, LENGTH, width), dtype), **extra)


@in_each_backend
@pytest.mark.parametrize(("options", "width"), WAVES, ids=str)
def test_waves_keep_their_digits_at_any_position(
    label: str, options: Sinusoidal, width: int
) -> None:
    layer = BACKENDS[label].package.SinusoidalEncoding(options, d_model=width)
    bound = BUDGETS["tap", "float32"].bound
    rows: list[tuple[np.ndarray, np.ndarray]] = [
        (alone(label, layer, width, None), np.arange(LENGTH))
    ]
    rows += [(alone(label, layer, width, positions), positions) for positions in FAR.values()]
    rows += [(alone(label, layer, width, np.tile(FAR["fractions"], (BATCH, 1))), FAR["fractions"])]
    for found, positions in rows:
        exact = sinusoidal(options, width, positions)
        assert found.shape == (BATCH, LENGTH, width)
        assert (found == found[:1]).all()
        for step in range(LENGTH):
            # One step of width 1 is a single sine, and so near zero that its own size is no
            # measure.
            assert distance(found[0, step], exact[step], np.ones(width)) <= bound, positions[step]


@in_each_backend
def test_waves_in_float64(label: str) -> None:
    with BACKENDS[label].mode("float64"):
        layer = BACKENDS[label].package.SinusoidalEncoding(Sinusoidal(), d_model=8)
        for positions in (None, np.arange(LENGTH), np.linspace(0.0, 9.1, LENGTH)):
            exact = sinusoidal(
                Sinusoidal(), 8, np.arange(LENGTH) if positions is None else positions
            )
            assert (
                distance(alone(label, layer, 8, positions, np.float64)[0], exact, exact)
                <= BUDGETS["tap", "float64"].bound
            )


@in_each_backend
def test_a_table_reads_between_its_rows(label: str) -> None:
    layer = BACKENDS[label].package.LearnedTableEncoding(LearnedTable(9), d_model=6, seed=3)
    table = BACKENDS[label].numpy(layer.table if label == "torch" else layer.table[...])
    between = np.array([0.0, 0.25, 1.5, 7.75, 7.999, 8.0, 3.0], np.float32)
    exact = learned_table(table.astype(np.float64), between)
    for positions in (between, np.tile(between, (BATCH, 1))):
        assert near(alone(label, layer, 6, positions)[0], exact, label)
    whole = np.array([8, 0, 3, 3, 7, 1, 2], np.int32)
    assert np.array_equal(alone(label, layer, 6, whole)[1], table[whole])
    assert np.array_equal(alone(label, layer, 6, whole.astype(np.float32))[1], table[whole])
    assert np.array_equal(alone(label, layer, 6, None)[2], table[:LENGTH])


def test_the_table_gets_its_gradient_from_the_rows_that_were_read() -> None:
    positions = np.array([0.0, 0.25, 1.5, 5.75, 5.999, 8.0, 3.0], np.float32)
    cotangent = normal(derive(0, 93), (BATCH, LENGTH, 6))
    floor = np.floor(positions).astype(int)
    share = (positions - floor).astype(np.float64)
    exact = np.zeros((9, 6))
    np.add.at(exact, floor, (1 - share)[:, None] * cotangent.sum(axis=0))
    np.add.at(exact, np.minimum(floor + 1, 8), share[:, None] * cotangent.sum(axis=0))
    for label, backend in BACKENDS.items():
        layer = backend.package.LearnedTableEncoding(LearnedTable(9), d_model=6, seed=0)
        of_x, gradients = backend.pullback(
            layer, cotangent, np.zeros((BATCH, LENGTH, 6), np.float32), positions=positions
        )
        assert near(gradients["table"], exact, label, "gradient")
        assert np.array_equal(of_x, cotangent.astype(np.float32))


class Stranger(nnx.Module):
    """Somebody's own model, with our encodings between their layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(3, 12, rngs=rngs)
        self.table = pe_flax.LearnedTableEncoding(LearnedTable(9), d_model=12, seed=5)
        self.waves = pe_flax.SinusoidalEncoding(Sinusoidal(layout="half"), d_model=12)
        self.down = nnx.Linear(12, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.waves(self.table(self.up(x))))


def test_encodings_are_layers_of_other_models() -> None:
    x = normal(derive(0, 92), (BATCH, LENGTH, 3)).astype(np.float32)
    theirs = Stranger(nnx.Rngs(0))
    ours: Any = torch.nn.Sequential(
        torch.nn.Linear(3, 12),
        pe_torch.LearnedTableEncoding(LearnedTable(9), d_model=12, seed=5),
        pe_torch.SinusoidalEncoding(Sinusoidal(layout="half"), d_model=12),
        torch.nn.Linear(12, 2),
    )
    assert list(ours.state_dict()) == ["0.weight", "0.bias", "1.table", "3.weight", "3.bias"]
    assert len(nnx.to_flat_state(nnx.state(theirs))) == len(ours.state_dict())
    with torch.no_grad():
        for number, linear in ((0, theirs.up), (3, theirs.down)):
            assert linear.bias is not None
            ours[number].weight.copy_(torch.from_numpy(np.array(linear.kernel[...]).T))
            ours[number].bias.copy_(torch.from_numpy(np.array(linear.bias[...])))
    torch_output = ours(torch.from_numpy(x))
    flax_output, flax_gradient = nnx.jit(
        nnx.value_and_grad(lambda model, x: (model(x) ** 2).sum())
    )(theirs, jnp.asarray(x))
    loss = (torch_output**2).sum()
    loss.backward()
    assert near(np.asarray(flax_output), loss.detach().numpy(), "flax", "loss")
    assert near(
        np.asarray(flax_gradient["table"]["table"][...]),
        ours[1].table.grad.numpy(),
        "flax",
        "gradient",
    )
