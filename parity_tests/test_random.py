"""The random numbers are those of Random123 and jax.random, the same bits in all columns, and
dropout masks look like chance.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
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
from parity_tests.cases import CONFIGS, small_batch, small_config
from pe_core import Tokens
from pe_core.model.dropout_places import PLACES, count_places, dropout_place
from pe_core.model.initial import initial_arrays
from pe_core.model.random import (
    DROPOUT,
    DROPOUT_LEVELS,
    Key,
    bits,
    derive,
    dropout_keep,
    dropout_scale,
    dropout_threshold,
    fold_in,
    key,
    mix,
    normal,
    permutation,
    threefry2x32,
    uniform,
)
from pe_parity.budgets import BUDGETS
from pe_parity.compare import distance
from pe_parity.reference.encoder import Run

COLUMNS = ("numpy", "torch", "flax")
LARGEST = (1 << 32) - 1
# Seeds with nothing, something and everything in the high word.
SEEDS = (0, 1, 1 << 31, LARGEST, (5 << 32) + 7, (1 << 63) - 1)
RATES = (0.0, 1 / DROPOUT_LEVELS, 0.1, 0.5, 0.93, 1 - 1 / DROPOUT_LEVELS)
# Both ends of a block of step keys, steps that are negative as signed numbers, and a block that
# lies across the sign.
STEPS = (0, 1, 255, 256, 257, 255, (1 << 31) - 1, 1 << 31, (1 << 31) + 5, LARGEST)

Words = np.ndarray


def to_torch(words: Words) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(words).view(np.int32))


def from_torch(words: torch.Tensor) -> Words:
    return words.contiguous().numpy().view(np.uint32)


def signed(word: Any) -> int:
    return int(np.uint32(word).view(np.int32))


def column_threefry(column: str, key: Words, high: Words, low: Words) -> list[Words]:
    """Both words of Threefry as one of the columns computes them."""
    match column:
        case "numpy":
            return list(threefry2x32(key, high, low))
        case "torch":
            return [
                from_torch(word)
                for word in pe_torch.dropout.threefry2x32(*map(to_torch, (key, high, low)))
            ]
        case _:
            return [
                np.asarray(word)
                for word in pe_flax.dropout.threefry2x32(*map(jnp.asarray, (key, high, low)))
            ]


def column_fold_in(column: str, key: Words, data: Words) -> Words:
    match column:
        case "numpy":
            return fold_in(key, data)
        case "torch":
            return from_torch(pe_torch.dropout.fold_in(to_torch(key), to_torch(data)))
        case _:
            return np.asarray(pe_flax.dropout.fold_in(jnp.asarray(key), jnp.asarray(data)))


def column_keep(column: str, key: Key, shape: tuple[int, ...], rate: float) -> np.ndarray:
    match column:
        case "numpy":
            return dropout_keep(key, shape, rate)
        case "torch":
            return pe_torch.dropout.dropout_keep(
                (signed(key[0]), signed(key[1])), shape, rate
            ).numpy()
        case _:
            return np.asarray(pe_flax.dropout.dropout_keep(jnp.asarray(key), shape, rate))


# --- Threefry and what is drawn from it ---


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize(
    ("key_words", "counter", "answer"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((LARGEST, LARGEST), (LARGEST, LARGEST), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers_of_random123(
    column: str, key_words: tuple[int, ...], counter: tuple[int, ...], answer: tuple[int, ...]
) -> None:
    high, low = (np.array([word], np.uint32) for word in counter)
    found = column_threefry(column, np.array(key_words, np.uint32), high, low)
    assert tuple(int(word[0]) for word in found) == answer


@pytest.mark.parametrize("column", COLUMNS[1:])
def test_threefry_is_the_same_in_all_columns(column: str) -> None:
    keys, high, low = bits(key(1), 2000).reshape(-1, 2), bits(key(2), 1000), bits(key(3), 1000)
    for found, expected in zip(
        column_threefry(column, keys, high, low), threefry2x32(keys, high, low), strict=True
    ):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_keys_bits_and_uniforms_are_those_of_jax(seed: int) -> None:
    # Without x64, JAX would see the low word of a seed only.
    with jax.enable_x64(True):
        theirs = jax.random.key(seed, impl="threefry2x32")
        assert np.array_equal(jax.random.key_data(theirs), key(seed))
        assert np.array_equal(jax.random.bits(theirs, (1001,), jnp.uint32), bits(key(seed), 1001))
        assert np.array_equal(
            jax.random.uniform(theirs, (7, 11), dtype=jnp.float64), uniform(key(seed), (7, 11))
        )
    assert uniform(key(seed)).shape == ()


@pytest.mark.parametrize("column", COLUMNS)
def test_fold_in_is_that_of_jax(column: str) -> None:
    base = key(SEEDS[-2])
    data = np.array([0, 1, 255, 256, (1 << 31) - 1, 1 << 31, LARGEST], np.uint32)
    folded = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.wrap_key_data(jnp.asarray(base), impl="threefry2x32"), jnp.asarray(data)
    )
    assert np.array_equal(column_fold_in(column, base, data), jax.random.key_data(folded))
    # A row of keys against a row of numbers, as for steps and places.
    keys = column_fold_in(column, base, data)[:, None]
    places = np.broadcast_to(np.arange(5, dtype=np.uint32), (len(data), 5))
    assert np.array_equal(column_fold_in(column, keys, places), fold_in(keys, places))


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
    assert normal(key(4), (3, 3)).shape == (3, 3)
    # Mean, variance, skewness and kurtosis, each over its standard error; and the two halves of
    # Box-Muller against each other.
    moments = [drawn.mean(), (drawn**2).mean() - 1.0, (drawn**3).mean(), (drawn**4).mean() - 3.0]
    errors = np.sqrt(np.array([1.0, 2.0, 15.0, 96.0]) / count)
    pairs = drawn.reshape(-1)[: count - 1].reshape(-1, 2)
    scores = [
        *(moments / errors),
        pairs.prod(axis=1).sum() / np.sqrt(len(pairs)),
        (pairs**2 - 1.0).prod(axis=1).sum() / np.sqrt(4 * len(pairs)),
    ]
    assert np.abs(scores).max() < farthest(len(scores))


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


def digest(*arrays: np.ndarray) -> str:
    """The start of the SHA-256 of arrays, little-endian."""
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return hashed.hexdigest()[:16]


@pytest.mark.parametrize(("name", "seed"), INITIAL)
def test_initial_weights_are_pinned(name: str, seed: int) -> None:
    # Nothing but config and seed: not the generators of the libraries.
    arrays = initial_arrays(CONFIGS[name], seed)
    assert all(array.dtype == np.float32 for array in arrays.values())
    assert digest(*arrays.values()) == INITIAL[name, seed]


def test_a_weight_depends_on_its_name_and_shape_alone() -> None:
    plain, tokens = (
        initial_arrays(small_config(), 3),
        initial_arrays(small_config(inputs=Tokens(11), pooling="cls", num_layers=3), 3),
    )
    shared = plain.keys() & tokens.keys()
    assert len(shared) == len(plain) - 2
    assert all(np.array_equal(plain[name], tokens[name]) for name in shared)
    matrices = [array.ravel()[:36] for name, array in tokens.items() if array.ndim == 2]
    assert len({array.tobytes() for array in matrices}) == len(matrices)


# --- The dropout hash: the same bits in all columns ---

# Twelve words each, so that JAX compiles once: odd and even last axes.
SHAPES = ((24,), (23,), (2, 3, 4), (2, 3, 3), (12, 1), (1, 2, 6, 2))
KEYS = (derive(0, DROPOUT), derive(SEEDS[-1], DROPOUT, LARGEST), np.array([0, LARGEST], np.uint32))
MASKS = "580a5e7fee6a11b1"


def python_keep(key: Key, shape: tuple[int, ...], rate: float) -> np.ndarray:
    """The dropout hash once more, in whole numbers: two keyed rounds of lowbias32, sixteen bits to
    an element, low half first.
    """

    def lowbias32(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D % (1 << 32)
        x ^= x >> 15
        x = x * 0x846CA68B % (1 << 32)
        return x ^ x >> 16

    rows, columns = math.prod(shape[:-1]), shape[-1]
    kept = []
    for row in range(rows):
        for column in range(columns):
            word = row * -(-columns // 2) + column // 2
            word = lowbias32(lowbias32(word ^ int(key[0])) ^ int(key[1]))
            half = word >> 16 if column % 2 else word & 0xFFFF
            # As an unsigned level: those with the sign bit are the lower half of the signed
            # numbers.
            kept.append((half ^ 0x8000) >= dropout_threshold(rate))
    return np.array(kept).reshape(shape)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masks_are_the_same_in_all_columns(column: str, shape: tuple[int, ...]) -> None:
    for one in KEYS:
        for rate in RATES:
            assert np.array_equal(
                column_keep(column, one, shape, rate), python_keep(one, shape, rate)
            )


@pytest.mark.parametrize("column", COLUMNS)
def test_masks_are_pinned(column: str) -> None:
    masks = [
        column_keep(column, derive(7, DROPOUT, step), (2, 3, 3), rate)
        for step in range(3)
        for rate in RATES
    ]
    assert digest(*map(np.packbits, masks)) == MASKS


@pytest.mark.parametrize("column", COLUMNS)
def test_rows_can_be_drawn_on_their_own(column: str) -> None:
    whole = column_keep(column, KEYS[0], (3, 7), 0.3)
    assert np.array_equal(whole, column_keep(column, KEYS[0], (3, 8), 0.3)[:, :7])
    assert np.array_equal(whole[:2], column_keep(column, KEYS[0], (2, 7), 0.3))


def reference_dropout(
    rate: float, seed: int, step: int | None, place: Any, layer: int, x: np.ndarray
) -> np.ndarray:
    return Run(small_config(dropout=rate), {}, {}, seed, step).dropout(place, layer, x)


@pytest.mark.parametrize("seed", [0, SEEDS[-1]])
def test_the_masks_of_a_step_are_the_same_in_all_columns(seed: int) -> None:
    rate, num_layers, shape = 0.4, 2, (3, 5)
    left = pe_torch.dropout.Dropout(rate, num_layers=num_layers, seed=seed)
    right = pe_flax.dropout.Dropout(rate, num_layers=num_layers, seed=seed)
    places = [
        ("input", 0),
        *((place, layer) for layer in range(num_layers) for place in PLACES[1:]),
    ]
    ones = np.ones(shape, np.float32)

    def flax_masks(step: Any) -> list[jax.Array]:
        drop = right.begin(step)
        return [drop(jnp.asarray(ones), place, layer) for place, layer in places]

    compiled, seen = jax.jit(flax_masks), set()
    for step in STEPS:
        drop = left.begin(step)
        for (place, layer), found in zip(places, compiled(np.uint32(step)), strict=True):
            expected = reference_dropout(
                rate, seed, step, place, layer, ones.astype(np.float64)
            ).astype(np.float32)
            assert np.array_equal(drop(torch.from_numpy(ones), place, layer).numpy(), expected)
            assert np.array_equal(found, expected)
            seen.add(expected.tobytes())
    assert len(seen) > 0.9 * len(set(STEPS)) * len(places)
    # A step given as a plain number, outside of a compiled function.
    for found, expected in zip(flax_masks(STEPS[-2]), compiled(np.uint32(STEPS[-2])), strict=True):
        assert np.array_equal(found, expected)


def test_places_are_numbered_without_gaps() -> None:
    numbers = [
        dropout_place(place, layer) for layer in range(3) for place in PLACES if place != "input"
    ]
    assert [dropout_place("input", 0), *numbers] == list(range(count_places(3)))


# --- The dropout hash: it looks like chance ---

# How often a check of perfect random numbers may fail, had its keys been chosen by chance: one in a
# million.
FALSE_ALARM = 1e-6


def farthest(comparisons: int) -> float:
    """How far from zero, in standard deviations, the farthest of so many scores may lie: by
    Bonferroni's inequality.
    """
    return NormalDist().inv_cdf(1.0 - FALSE_ALARM / (2 * comparisons))


def verdict(scores: list[Any]) -> float:
    """The farthest score over what is allowed; above 1 is not chance."""
    values = np.abs(np.concatenate([np.ravel(score) for score in scores]))
    return float(values.max() / farthest(values.size))


@dataclass(frozen=True)
class Source:
    """What masks come from: keys for (seed, step, place) and a mask for a key."""

    keep: Callable[[Key, tuple[int, ...], float], np.ndarray] = dropout_keep
    keys: Callable[[int, np.ndarray, np.ndarray], np.ndarray] = lambda seed, steps, places: fold_in(
        fold_in(derive(seed, DROPOUT), steps), places
    )

    def scores(self, key: Key, count: int, rate: float = 0.5) -> np.ndarray:
        """A mask with mean zero and variance one at the rate in force."""
        dropped = dropout_threshold(rate) / DROPOUT_LEVELS
        return (self.keep(key, (count,), rate) - (1.0 - dropped)) / np.sqrt(
            dropped * (1.0 - dropped)
        )

    def step_keys(self, count: int) -> np.ndarray:
        """The keys of the first steps at the first place."""
        return self.keys(0, np.arange(count, dtype=np.uint32), np.zeros(count, np.uint32))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """The score of two rows of scores: standard normal when they are independent."""
    return float((a * b).sum() / np.sqrt(len(a)))


def balance(source: Source) -> float:
    """The share kept is that of the rate in force, in the low and in the high half of a word."""
    masks = [
        source.scores(one, 1 << 16, rate)
        for one in source.step_keys(16)
        for rate in (0.01, 0.1, 0.5, 0.9)
    ]
    return verdict(
        [mask[half::2].sum() / np.sqrt(len(mask) / 2) for mask in masks for half in (0, 1)]
    )


def lags(source: Source) -> float:
    """Elements of one mask at distances 1 to 64, at powers of two, and with one bit of the index
    flipped.
    """
    scores, count = [], 1 << 16
    indices = np.arange(count)
    for rate in (0.1, 0.5):
        for one in source.step_keys(4):
            mask = source.scores(one, count, rate)
            scores += [
                correlation(mask[:-lag], mask[lag:])
                for lag in (*range(1, 65), *(1 << power for power in range(7, 15)))
            ]
            for power in range(16):
                lower = indices[(indices >> power) % 2 == 0]
                scores.append(correlation(mask[lower], mask[lower ^ (1 << power)]))
    return verdict(scores)


def halves(source: Source) -> float:
    """The two decisions of one word, at equal and at different rates."""
    scores = []
    for one in source.step_keys(8):
        masks = {rate: source.scores(one, 1 << 16, rate) for rate in (0.1, 0.5, 0.9)}
        scores += [
            correlation(low[::2], high[1::2]) for low in masks.values() for high in masks.values()
        ]
    return verdict(scores)


def keys(source: Source) -> float:
    """Masks whose keys differ by one step, one place, one layer or one seed."""
    scores, count = [], 1 << 13
    for step in range(32):
        for other in ((0, 1, 0), (0, 0, 1), (0, 0, 4), (1, 0, 0)):
            pair = []
            for seed, later, place in ((0, 0, 0), other):
                made = source.keys(
                    seed, np.array([step + later], np.uint32), np.array([1 + place], np.uint32)
                )[0]
                pair.append(source.scores(made, count))
            scores.append(correlation(*pair))
    return verdict(scores)


def key_bits(source: Source) -> float:
    """Masks whose keys differ in one bit."""
    scores = []
    for one in source.step_keys(4):
        mask = source.scores(one, 1 << 13)
        for word in (0, 1):
            for bit in range(32):
                other = one.copy()
                other[word] ^= np.uint32(1 << bit)
                scores.append(correlation(mask, source.scores(other, 1 << 13)))
    return verdict(scores)


def elements(source: Source) -> float:
    """One element through the steps: its balance, its memory, and its company with every other
    element.
    """
    masks = np.array([source.scores(one, 64) for one in source.step_keys(2048)])
    together = masks.T @ masks / np.sqrt(len(masks))
    later = masks[1:].T @ masks[:-1] / np.sqrt(len(masks) - 1)
    return verdict(
        [masks.sum(axis=0) / np.sqrt(len(masks)), together[np.triu_indices(64, 1)], later]
    )


def windows(source: Source) -> float:
    """No mask is a shifted or permuted piece of another's, not even for the keys of a long run that
    are nearest to each other.

    A shift shows between keys that are close as numbers, a permutation between keys that differ in
    low bits. Two keys of a run may have a word in common, so a hash that in truth has a key of one
    word gives the same mask twice.
    """
    count, shifts, flips = 1 << 14, 1000, 64
    made = source.step_keys(1 << 18)
    first, second = made[:, 0], made[:, 1]
    scores = []
    for word in (first, second, first + second, first ^ second):
        order = np.argsort(word, kind="stable")
        gaps = np.diff(word[order].astype(np.int64))
        nearest = np.argsort(gaps, kind="stable")
        apart = nearest[gaps[nearest] > 0]
        for place in (*nearest[:2], *apart[:2]):
            a, b = (source.scores(made[order[place + side]], count) for side in (0, 1))
            product = np.fft.irfft(np.fft.rfft(a, 2 * count) * np.conj(np.fft.rfft(b, 2 * count)))
            distances = np.arange(-shifts, shifts + 1)
            scores.append(product[distances] / np.sqrt(count - np.abs(distances)))
            blocks, indices = b.reshape(-1, 2), np.arange(count // 2)
            scores.append(
                np.array(
                    [correlation(a, blocks[indices ^ flip].ravel()) for flip in range(1, flips)]
                )
            )
    return verdict(scores)


CHECKS = (balance, lags, halves, keys, key_bits, elements, windows)


@pytest.mark.parametrize("check", CHECKS)
def test_masks_look_like_chance(check: Callable[[Source], float]) -> None:
    assert check(Source()) < 1.0


def hashed(words: Callable[[Key, np.ndarray], np.ndarray], shift: int = 0) -> Source:
    """A source with another hash, or another threshold."""

    def keep(key: Key, shape: tuple[int, ...], rate: float) -> np.ndarray:
        found = (
            words(key, np.arange((shape[-1] + 1) // 2, dtype=np.uint32)).astype("<u4").view("<i2")
        )
        return found[: shape[-1]] >= dropout_threshold(rate) - DROPOUT_LEVELS // 2 + shift

    return Source(keep)


def keyed(keys: Callable[[int, np.ndarray, np.ndarray], np.ndarray]) -> Source:
    return Source(keys=keys)


def weak(word: np.ndarray) -> np.ndarray:
    """Half of the mixer."""
    return (word ^ (word >> np.uint32(16))) * np.uint32(0x7FEB352D)


def counted(seed: int, steps: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Steps and places added to a key."""
    base = derive(seed, DROPOUT)
    return np.stack(
        [base[0] + steps * np.uint32(9) + places, np.broadcast_to(base[1], steps.shape)], axis=-1
    )


right = Source()
FAULTS: dict[str, tuple[Callable[[Source], float], Source]] = {
    "key added to the counter": (
        windows,
        hashed(lambda key, counter: mix(mix(counter + key[0] + key[1]))),
    ),
    "first word added, second without effect": (
        windows,
        hashed(lambda key, counter: mix(mix(counter + key[0]))),
    ),
    "first round without a key": (windows, hashed(lambda key, counter: mix(mix(counter) ^ key[1]))),
    "second round without a key": (
        windows,
        hashed(lambda key, counter: mix(mix(counter ^ key[0]))),
    ),
    "one round": (windows, hashed(lambda key, counter: mix(counter ^ key[0] ^ key[1]))),
    "one round, second word after it": (
        windows,
        hashed(lambda key, counter: mix(counter ^ key[0]) ^ key[1]),
    ),
    "second word without effect": (
        key_bits,
        hashed(lambda key, counter: mix(mix(counter ^ key[0]))),
    ),
    "half of the mixer": (lags, hashed(lambda key, counter: weak(weak(counter ^ key[0]) ^ key[1]))),
    "half of the mixer, elements": (
        elements,
        hashed(lambda key, counter: weak(counter ^ key[0]) ^ key[1]),
    ),
    "same decision twice": (
        halves,
        hashed(
            lambda key, counter: (mix(mix(counter ^ key[0]) ^ key[1]) & 0xFFFF) * np.uint32(0x10001)
        ),
    ),
    "high half inverts low": (
        halves,
        hashed(
            lambda key, counter: (
                (mix(mix(counter ^ key[0]) ^ key[1]) & 0xFFFF) * np.uint32(0x10001)
                ^ np.uint32(0xFFFF0000)
            )
        ),
    ),
    "threshold of another rate": (
        balance,
        hashed(
            lambda key, counter: mix(mix(counter ^ key[0]) ^ key[1]), shift=DROPOUT_LEVELS // 256
        ),
    ),
    "step without effect": (
        keys,
        keyed(lambda seed, steps, places: right.keys(seed, np.zeros_like(steps), places)),
    ),
    "step without effect, elements": (
        elements,
        keyed(lambda seed, steps, places: right.keys(seed, np.zeros_like(steps), places)),
    ),
    "two steps, one key": (
        keys,
        keyed(lambda seed, steps, places: right.keys(seed, steps // 2, places)),
    ),
    "place without effect": (
        keys,
        keyed(lambda seed, steps, places: right.keys(seed, steps, np.zeros_like(places))),
    ),
    "layer without effect": (
        keys,
        keyed(lambda seed, steps, places: right.keys(seed, steps, places % 4)),
    ),
    "seed without effect": (keys, keyed(lambda seed, steps, places: right.keys(0, steps, places))),
    "step and place added to the key": (windows, keyed(counted)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_checks_can_fail(fault: str) -> None:
    check, source = FAULTS[fault]
    assert check(source) > 1.0


def test_the_planted_hashes_differ_from_the_right_one_by_their_fault_alone() -> None:
    whole = hashed(lambda key, counter: mix(mix(counter ^ key[0]) ^ key[1]))
    for one in KEYS:
        assert np.array_equal(whole.keep(one, (99,), 0.3), dropout_keep(one, (99,), 0.3))


def avalanche(mixer: Callable[[np.ndarray], np.ndarray]) -> float:
    """Each bit that goes in flips each bit that comes out half of the time."""
    words = bits(key(8), 1 << 14)
    flips = np.stack([mixer(words ^ np.uint32(1 << bit)) ^ mixer(words) for bit in range(32)])
    flipped = (flips[..., None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)).mean(axis=1)
    return verdict([(flipped - 0.5) * 2.0 * np.sqrt(len(words))])


def test_the_mixer_has_full_avalanche() -> None:
    assert avalanche(mix) < 1.0
    assert avalanche(weak) > 1.0
    assert avalanche(lambda word: mix(word) | np.uint32(1)) > 1.0


def test_the_mixer_is_a_bijection() -> None:
    # Its inverse: each shift undone by repeating it, each multiplier by its inverse modulo 2**32.
    def unshift(word: np.ndarray, shift: int) -> np.ndarray:
        found = word
        for _ in range(32 // shift):
            found = word ^ (found >> np.uint32(shift))
        return found

    words = np.concatenate([np.arange(1 << 14, dtype=np.uint32), bits(key(9), 1 << 14)])
    found = unshift(mix(words), 16) * np.uint32(pow(0x846CA68B, -1, 1 << 32))
    found = unshift(found, 15) * np.uint32(pow(0x7FEB352D, -1, 1 << 32))
    assert np.array_equal(unshift(found, 16), words)


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
        with pytest.raises(ValueError, match=rf"^dropout must lie in \[0, 1\), got {rate}$"):
            refuse(rate)


def test_the_mean_is_kept() -> None:
    count, rate = 1 << 18, 0.3
    mean = reference_dropout(rate, 1, 0, "input", 0, np.ones(count)).mean()
    assert abs(mean - 1.0) / np.sqrt(rate / (1 - rate) / count) < farthest(1)


def test_evaluation_and_rate_zero_keep_x_itself() -> None:
    x, y, z = torch.ones(3), jnp.ones(3), np.ones(3)
    left, right = (
        pe_torch.dropout.Dropout(0.5, num_layers=1).eval(),
        pe_flax.dropout.Dropout(0.5, num_layers=1),
    )
    right.eval()
    for native in (False, True):
        nothing = (
            pe_torch.dropout.Dropout(0.0, num_layers=1, native=native),
            pe_flax.dropout.Dropout(0.0, num_layers=1, native=native),
        )
        for one, other in ((left, right), nothing):
            assert one.begin(None)(x, "input") is x
            assert one.begin(3)(x, "feed_forward_output", 0) is x
            assert other.begin(None)(y, "input") is y
            assert other.begin(3)(y, "feed_forward_output", 0) is y
    assert reference_dropout(0.5, 0, None, "input", 0, z) is z
    assert reference_dropout(0.0, 0, 3, "input", 0, z) is z
    # Evaluation does not count.
    left.train()
    right.train()
    assert left.next_step == 0
    assert right.next_step is not None
    assert int(right.next_step[...]) == 0


def test_native_dropout_is_the_frameworks_own() -> None:
    count, rate = 1 << 14, 0.3
    torch.manual_seed(0)
    left = (
        pe_torch.dropout.Dropout(rate, num_layers=1, native=True)
        .begin(0)(torch.ones(count, dtype=torch.float64), "input")
        .numpy()
    )
    torch.manual_seed(0)
    assert np.array_equal(
        left, torch.nn.functional.dropout(torch.ones(count, dtype=torch.float64), rate).numpy()
    )
    drop = pe_flax.dropout.Dropout(rate, num_layers=1, native=True).begin(0)
    right = np.asarray(drop(jnp.ones(count), "input"))
    assert not np.array_equal(right, np.asarray(drop(jnp.ones(count), "attention_output")))
    for found in (left, right):
        assert set(np.unique(found).astype(np.float32)) == {
            np.float32(0.0),
            np.float32(1 / (1 - rate)),
        }
        assert abs((found > 0).mean() - (1 - rate)) / np.sqrt(rate * (1 - rate) / count) < farthest(
            1
        )


# --- Dropout in the classifier ---


def test_steps_are_counted_the_same_in_both_wings() -> None:
    config = small_config(dropout=0.2, num_layers=1)
    x = small_batch(config).inputs
    left, right = (
        pe_torch.SequenceClassifier(config, seed=5),
        pe_flax.SequenceClassifier(config, seed=5),
    )

    @nnx.jit
    def flax_logits(model: pe_flax.SequenceClassifier, step: jax.Array | None) -> jax.Array:
        return model(jnp.asarray(x), dropout_step=step)

    def logits(step: int | None) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            one = left(torch.from_numpy(x), dropout_step=step).numpy()
        return one, np.asarray(flax_logits(right, None if step is None else jnp.uint32(step)))

    def counts() -> tuple[int, int]:
        assert right.dropout.next_step is not None
        return left.dropout.next_step, int(right.dropout.next_step[...])

    left.train()
    right.train()
    given = [logits(step) for step in (0, 1, 2)]
    # The same step gives the same bits; a step that is given is not counted.
    for one, again in zip(given[1], logits(1), strict=True):
        assert np.array_equal(one, again)
    assert counts() == (0, 0)
    # Another step gives others; and the wings have drawn the same masks.
    for wing in (0, 1):
        assert not np.array_equal(given[0][wing], given[1][wing])
    for one, other in given:
        assert distance(one, other, one) <= BUDGETS["tap", "float32"].bound

    counted = []
    for step in range(3):
        assert counts() == (step, step)
        counted.append(logits(None))
    for wing in (0, 1):
        for step in (0, 1, 2):
            assert np.array_equal(counted[step][wing], given[step][wing])
    left.eval()
    right.eval()
    assert not left.dropout.training
    assert right.dropout.deterministic
