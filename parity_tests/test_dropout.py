"""Dropout masks are the same bits in all columns, for each step and place, and the rate in force
keeps the mean.
"""

import hashlib
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import pe_flax
import pe_flax.dropout
import pe_torch
import pe_torch.dropout
from parity_tests.cases import small_batch, small_config
from parity_tests.columns import COLUMNS, LARGEST, SEEDS, Column
from parity_tests.refusals import refused
from pe_core.model.dropout_places import PLACES, count_places, dropout_place
from pe_core.model.random import (
    DROPOUT,
    DROPOUT_LEVELS,
    Key,
    derive,
    dropout_scale,
    dropout_threshold,
)
from pe_parity.budgets import BUDGETS, distance, farthest
from pe_parity.reference.encoder import Run

in_each_column = pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
RATES = (0.0, 1 / DROPOUT_LEVELS, 0.1, 0.5, 0.93, 1 - 1 / DROPOUT_LEVELS)
# Both ends of a block of step keys, steps that are negative as signed numbers, and a block that
# lies across the sign.
STEPS = (0, 1, 255, 256, 257, 255, (1 << 31) - 1, 1 << 31, (1 << 31) + 5, LARGEST)
# Twelve words each, so that JAX compiles once: odd and even last axes.
SHAPES = ((24,), (23,), (2, 3, 4), (2, 3, 3), (12, 1), (1, 2, 6, 2))
KEYS = (derive(0, DROPOUT), derive(SEEDS[-1], DROPOUT, LARGEST), np.array([0, LARGEST], np.uint32))
MASKS = "580a5e7fee6a11b1"


# --- The hash ---


def python_keep(key: Key, shape: tuple[int, ...], rate: float) -> np.ndarray:
    """Compute a mask in Python's integers: two keyed rounds of lowbias32, sixteen bits to an
    element, low half first.
    """

    def lowbias32(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D % (1 << 32)
        x ^= x >> 15
        x = x * 0x846CA68B % (1 << 32)
        return x ^ x >> 16

    kept = []
    for row in range(math.prod(shape[:-1])):
        for column in range(shape[-1]):
            word = row * -(-shape[-1] // 2) + column // 2
            word = lowbias32(lowbias32(word ^ int(key[0])) ^ int(key[1]))
            half = word >> 16 if column % 2 else word & 0xFFFF
            # As an unsigned level: those with the sign bit are the lower half of the signed
            # numbers.
            kept.append((half ^ 0x8000) >= dropout_threshold(rate))
    return np.array(kept).reshape(shape)


@in_each_column
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masks_are_the_same_in_all_columns(column: Column, shape: tuple[int, ...]) -> None:
    for one in KEYS:
        for rate in RATES:
            assert np.array_equal(column.keep(one, shape, rate), python_keep(one, shape, rate))


@in_each_column
def test_masks_are_pinned(column: Column) -> None:
    hashed = hashlib.sha256()
    for step in range(3):
        for rate in RATES:
            mask = column.keep(derive(7, DROPOUT, step), (2, 3, 3), rate)
            hashed.update(np.packbits(mask).tobytes())
    assert hashed.hexdigest()[:16] == MASKS


@in_each_column
def test_rows_can_be_drawn_on_their_own(column: Column) -> None:
    whole = column.keep(KEYS[0], (3, 7), 0.3)
    assert np.array_equal(whole, column.keep(KEYS[0], (3, 8), 0.3)[:, :7])
    assert np.array_equal(whole[:2], column.keep(KEYS[0], (2, 7), 0.3))


@in_each_column
@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 7), (4, 2, 5, 5)], ids=str)
def test_samples_have_the_bits_of_the_larger_batch(column: Column, shape: tuple[int, ...]) -> None:
    whole, samples = column.keep(KEYS[1], shape, 0.3), np.array([2, 0])
    assert np.array_equal(
        column.keep(KEYS[1], (2, *shape[1:]), 0.3, samples=samples), whole[samples]
    )
    if len(shape) == 4 and column is not COLUMNS["numpy"]:
        part = column.keep(KEYS[1], (2, 2, 2, 5), 0.3, samples=samples, rows=(1, 5))
        assert np.array_equal(part, whole[samples][:, :, 1:3])


# --- Steps and places ---


def reference_dropout(
    rate: float, seed: int, step: int | None, place: Any, layer: int, x: np.ndarray
) -> np.ndarray:
    return Run(small_config(dropout=rate), {}, {}, seed, step).dropout(place, layer, x)


@pytest.mark.parametrize("seed", [0, SEEDS[-1]])
def test_the_masks_of_a_step_are_the_same_in_all_columns(seed: int) -> None:
    rate, ones = 0.4, np.ones((3, 5), np.float32)
    left = pe_torch.dropout.Dropout(rate, num_layers=2, seed=seed)
    right = pe_flax.dropout.Dropout(rate, num_layers=2, seed=seed)
    places: list[tuple[Any, int]] = [("input", 0)]
    places += [(place, layer) for layer in range(2) for place in PLACES[1:]]

    def flax_masks(step: Any) -> list[jax.Array]:
        drop = right.begin(step)
        return [drop.drop(jnp.asarray(ones), place, layer) for place, layer in places]  # type: ignore[union-attr]

    compiled, seen = jax.jit(flax_masks), set()
    for step in STEPS:
        drop = left.begin(step)
        for (place, layer), found in zip(places, compiled(np.uint32(step)), strict=True):
            exact = reference_dropout(rate, seed, step, place, layer, ones.astype(np.float64))
            expected = exact.astype(np.float32)
            assert np.array_equal(drop.drop(torch.from_numpy(ones), place, layer).numpy(), expected)  # type: ignore[union-attr]
            assert np.array_equal(found, expected)
            seen.add(expected.tobytes())
    assert len(seen) > 0.9 * len(set(STEPS)) * len(places)
    # A step given as a plain number, outside of a compiled function.
    for found, expected in zip(flax_masks(STEPS[-2]), compiled(np.uint32(STEPS[-2])), strict=True):
        assert np.array_equal(found, expected)


def test_places_are_numbered_without_gaps() -> None:
    numbers = [dropout_place(place, layer) for layer in range(3) for place in PLACES[1:]]
    assert [dropout_place("input", 0), *numbers] == list(range(count_places(3)))


# --- Rates ---


@pytest.mark.parametrize(
    "rate", [0.0, 1e-9, 1 / DROPOUT_LEVELS, 0.1, 0.25, 1 / 3, 0.5, 0.9, 0.9999999]
)
def test_the_rate_in_force_is_a_multiple_of_a_level_and_keeps_the_expectation(rate: float) -> None:
    threshold = dropout_threshold(rate)
    assert abs(threshold - rate * DROPOUT_LEVELS) <= (0.5 if rate < 1 - 1 / DROPOUT_LEVELS else 1.0)
    assert dropout_scale(rate) == float(1 / (1 - Fraction(threshold, DROPOUT_LEVELS)))


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_a_bad_rate_is_refused(rate: float) -> None:
    for refuse in (dropout_threshold, dropout_scale):
        with refused(ValueError, f"dropout must lie in [0, 1), got {rate}", whole=True):
            refuse(rate)


def test_the_mean_is_kept() -> None:
    count, rate = 1 << 18, 0.3
    mean = reference_dropout(rate, 1, 0, "input", 0, np.ones(count)).mean()
    assert abs(mean - 1.0) / np.sqrt(rate / (1 - rate) / count) < farthest(1)


# --- Layers ---


def test_evaluation_and_rate_zero_keep_x_itself() -> None:
    x, y, z = torch.ones(3), jnp.ones(3), np.ones(3)
    left = pe_torch.dropout.Dropout(0.5, num_layers=1).eval()
    right = pe_flax.dropout.Dropout(0.5, num_layers=1)
    right.eval()
    idle: list[tuple[Any, Any]] = [(left, x), (right, y)]
    for native in (False, True):
        idle.append((pe_torch.dropout.Dropout(0.0, num_layers=1, native=native), x))
        idle.append((pe_flax.dropout.Dropout(0.0, num_layers=1, native=native), y))
    for layer, array in idle:
        assert layer.begin(None) is layer.begin(3) is None
        package = pe_torch if isinstance(array, torch.Tensor) else pe_flax
        call = package.call.Call(package.positions.Positions(array), masks=None)
        assert call.drop(array, "feed_forward_output") is array
    for rate, step in ((0.5, None), (0.0, 3)):
        assert reference_dropout(rate, 0, step, "input", 0, z) is z


def test_native_dropout_is_the_frameworks_own() -> None:
    count, rate = 1 << 14, 0.3
    ones = torch.ones(count, dtype=torch.float64)
    torch.manual_seed(0)
    masks = pe_torch.dropout.Dropout(rate, num_layers=1, native=True).begin(0)
    assert masks is not None
    left = masks.drop(ones, "input", 0).numpy()
    torch.manual_seed(0)
    assert np.array_equal(left, torch.nn.functional.dropout(ones, rate).numpy())
    drop = pe_flax.dropout.Dropout(rate, num_layers=1, native=True).begin(0)
    right = np.asarray(drop.drop(jnp.ones(count), "input", 0))  # type: ignore[union-attr]
    assert not np.array_equal(right, np.asarray(drop.drop(jnp.ones(count), "attention_output", 0)))  # type: ignore[union-attr]
    for found in (left, right):
        assert np.unique(found).astype(np.float32).tolist() == [0.0, np.float32(1 / (1 - rate))]
        score = abs((found > 0).mean() - (1 - rate)) / np.sqrt(rate * (1 - rate) / count)
        assert score < farthest(1)


def test_steps_are_the_same_in_both_backends() -> None:
    config = small_config(dropout=0.2, num_layers=1)
    x = small_batch(config).inputs
    left = pe_torch.SequenceClassifier(config, seed=5).train()
    right = pe_flax.SequenceClassifier(config, seed=5)
    right.train()
    flax_logits = nnx.jit(lambda model, step: model(jnp.asarray(x), dropout_step=step))
    seen = []
    for step in (0, 1, 2, 1):
        with torch.no_grad():
            one = left(torch.from_numpy(x), dropout_step=step).numpy()
        other = np.asarray(flax_logits(right, jnp.uint32(step)))
        assert distance(one, other, one) <= BUDGETS["tap", "float32"].bound
        seen.append(one)
    assert np.array_equal(seen[1], seen[3])
    assert not np.array_equal(seen[0], seen[1])
    left.eval()
    right.eval()
    assert not left.encoder.dropout.training
    assert right.encoder.dropout.deterministic
