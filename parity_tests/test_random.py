"""The random numbers are those of Random123 and jax.random, and initial weights follow from the
seed alone.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity_tests.cases import CONFIGS, small_config
from parity_tests.columns import COLUMNS, LARGEST, SEEDS, Column
from pe_core import Tokens
from pe_core.model.initial import initial_arrays
from pe_core.model.random import bits, derive, fold_in, key, normal, permutation, uniform
from pe_parity.budgets import farthest

in_each_column = pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)


# --- Threefry and what is drawn from it ---


@in_each_column
@pytest.mark.parametrize(
    ("key_words", "counter", "answer"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((LARGEST, LARGEST), (LARGEST, LARGEST), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers_of_random123(
    column: Column, key_words: tuple[int, ...], counter: tuple[int, ...], answer: tuple[int, ...]
) -> None:
    high, low = np.array(counter, np.uint32)[:, None]
    found = column.threefry2x32(np.array(key_words, np.uint32), high, low)
    assert tuple(int(word[0]) for word in found) == answer


@in_each_column
def test_threefry_is_the_same_in_all_columns(column: Column) -> None:
    keys, high, low = bits(key(1), 2000).reshape(-1, 2), bits(key(2), 1000), bits(key(3), 1000)
    expected = COLUMNS["numpy"].threefry2x32(keys, high, low)
    assert np.array_equal(column.threefry2x32(keys, high, low), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_keys_bits_and_uniforms_are_those_of_jax(seed: int) -> None:
    # Without x64, JAX would see the low word of a seed only.
    with jax.enable_x64(True):
        theirs = jax.random.key(seed, impl="threefry2x32")
        drawn = jax.random.uniform(theirs, (7, 11), dtype=jnp.float64)
        assert np.array_equal(jax.random.key_data(theirs), key(seed))
        assert np.array_equal(jax.random.bits(theirs, (1001,), jnp.uint32), bits(key(seed), 1001))
        assert np.array_equal(drawn, uniform(key(seed), (7, 11)))
    assert uniform(key(seed)).shape == ()


@in_each_column
def test_fold_in_is_that_of_jax(column: Column) -> None:
    base = key(SEEDS[-2])
    data = np.array([0, 1, 255, 256, (1 << 31) - 1, 1 << 31, LARGEST], np.uint32)
    theirs = jax.random.wrap_key_data(jnp.asarray(base), impl="threefry2x32")
    folded = jax.vmap(jax.random.fold_in, (None, 0))(theirs, jnp.asarray(data))
    assert np.array_equal(column.fold_in(base, data), jax.random.key_data(folded))
    # A row of keys against a row of numbers, as for steps and places.
    keys = column.fold_in(base, data)[:, None]
    places = np.broadcast_to(np.arange(5, dtype=np.uint32), (len(data), 5))
    assert np.array_equal(column.fold_in(keys, places), fold_in(keys, places))


@pytest.mark.parametrize(
    ("seed", "error"),
    [
        (-1, ValueError),
        (1 << 63, ValueError),
        (True, TypeError),
        (1.0, TypeError),
        ("1", TypeError),
    ],
)
def test_a_bad_seed_is_refused(seed: Any, error: type[Exception]) -> None:
    # With shapes and types checked, what is no integer at all stops before our own words.
    with pytest.raises(error, match=r"seed must .*2\*\*63 - 1|parameter 'seed'"):
        key(seed)


def test_normals_are_normal() -> None:
    drawn = normal(key(4), (499, 401))
    count = drawn.size
    # Mean, variance, skewness and kurtosis, each over its standard error; and the two halves of
    # Box-Muller against each other.
    moments = [drawn.mean(), (drawn**2).mean() - 1.0, (drawn**3).mean(), (drawn**4).mean() - 3.0]
    errors = np.sqrt(np.array([1.0, 2.0, 15.0, 96.0]) / count)
    pairs = drawn.reshape(-1)[: count - 1].reshape(-1, 2)
    products = pairs.prod(axis=1).sum() / np.sqrt(len(pairs))
    squares = (pairs**2 - 1.0).prod(axis=1).sum() / np.sqrt(4 * len(pairs))
    assert np.abs([*(moments / errors), products, squares]).max() < farthest(6)
    assert normal(key(4), (3, 3)).shape == (3, 3)


def test_a_permutation_is_one_and_any_can_come() -> None:
    for count in (0, 1, 2, 1000):
        order = permutation(key(5), count)
        assert order.dtype == np.int64
        assert np.array_equal(np.sort(order), np.arange(count))
    orders = np.array([permutation(derive(6, number), 4) for number in range(960)])
    _, found = np.unique(orders, axis=0, return_counts=True)
    assert len(found) == 24
    assert np.abs((found - 40) / np.sqrt(40 * 23 / 24)).max() < farthest(24)


# --- Initial weights ---

INITIAL = {
    ("default", 0): "1bc788f826f581c2",
    ("default", 1): "038b72c96ff6f658",
    ("both", 0): "30fff591998784b7",
    ("tokens", 0): "541497b5752ed809",
}


@pytest.mark.parametrize(("name", "seed"), INITIAL)
def test_initial_weights_are_pinned(name: str, seed: int) -> None:
    # Nothing but config and seed: not the generators of the libraries.
    hashed = hashlib.sha256()
    for array in initial_arrays(CONFIGS[name], seed).values():
        assert array.dtype == np.float32
        hashed.update(array.astype("<f4").tobytes())
    assert hashed.hexdigest()[:16] == INITIAL[name, seed]


def test_a_weight_depends_on_its_name_and_shape_alone() -> None:
    plain = initial_arrays(small_config(), 3)
    tokens = initial_arrays(small_config(inputs=Tokens(11), pooling="cls", num_layers=3), 3)
    shared = plain.keys() & tokens.keys()
    assert len(shared) == len(plain) - 2
    assert all(np.array_equal(plain[name], tokens[name]) for name in shared)
    matrices = [array.ravel()[:36] for array in tokens.values() if array.ndim == 2]
    assert len({array.tobytes() for array in matrices}) == len(matrices)
