"""Dropout masks look like chance, and the checks that say so can fail."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from parity_tests.chance import verdict
from pe_core.model.random import (
    DROPOUT,
    DROPOUT_LEVELS,
    Key,
    bits,
    derive,
    dropout_keep,
    dropout_threshold,
    fold_in,
    key,
    mix,
)


@dataclass(frozen=True)
class Source:
    """What masks come from: keys for (seed, step, place) and a mask for a key."""

    keep: Callable[[Key, tuple[int, ...], float], np.ndarray] = dropout_keep
    keys: Callable[[int, np.ndarray, np.ndarray], np.ndarray] = lambda seed, steps, places: fold_in(
        fold_in(derive(seed, DROPOUT), steps), places
    )

    def scores(self, key: Key, count: int, rate: float = 0.5) -> np.ndarray:
        """Return a mask with mean zero and variance one at the rate in force."""
        dropped = dropout_threshold(rate) / DROPOUT_LEVELS
        centred = self.keep(key, (count,), rate) - (1.0 - dropped)
        return centred / np.sqrt(dropped * (1.0 - dropped))

    def step_keys(self, count: int) -> np.ndarray:
        """Return the keys of the first steps at the first place."""
        return self.keys(0, np.arange(count, dtype=np.uint32), np.zeros(count, np.uint32))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Score two rows of scores: standard normal when they are independent."""
    return float((a * b).sum() / np.sqrt(len(a)))


def balance(source: Source) -> float:
    """Compare the share kept with the rate in force, in the low and the high half of a word."""
    scores, count = [], 1 << 16
    for one in source.step_keys(16):
        for rate in (0.01, 0.1, 0.5, 0.9):
            mask = source.scores(one, count, rate)
            scores += [mask[half::2].sum() / np.sqrt(count / 2) for half in (0, 1)]
    return verdict(scores)


def lags(source: Source) -> float:
    """Correlate elements of one mask at distances 1 to 64 and at powers of two, and elements whose
    indices differ in one bit.
    """
    scores, count = [], 1 << 16
    indices = np.arange(count)
    for rate in (0.1, 0.5):
        for one in source.step_keys(4):
            mask = source.scores(one, count, rate)
            distances = (*range(1, 65), *(1 << power for power in range(7, 15)))
            scores += [correlation(mask[:-lag], mask[lag:]) for lag in distances]
            for power in range(16):
                lower = indices[(indices >> power) % 2 == 0]
                scores.append(correlation(mask[lower], mask[lower ^ (1 << power)]))
    return verdict(scores)


def halves(source: Source) -> float:
    """Correlate the two decisions of one word, at equal and at different rates."""
    scores = []
    for one in source.step_keys(8):
        masks = {rate: source.scores(one, 1 << 16, rate) for rate in (0.1, 0.5, 0.9)}
        for low, high in itertools.product(masks.values(), repeat=2):
            scores.append(correlation(low[::2], high[1::2]))
    return verdict(scores)


def keys(source: Source) -> float:
    """Correlate masks whose keys differ by one step, one place, one layer or one seed."""
    scores, count = [], 1 << 13
    for step in range(32):
        for other in ((0, 1, 0), (0, 0, 1), (0, 0, 4), (1, 0, 0)):
            pair = []
            for seed, later, place in ((0, 0, 0), other):
                steps, places = np.array([[step + later], [1 + place]], np.uint32)
                pair.append(source.scores(source.keys(seed, steps, places)[0], count))
            scores.append(correlation(*pair))
    return verdict(scores)


def key_bits(source: Source) -> float:
    """Correlate masks whose keys differ in one bit."""
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
    """Follow single elements through the steps: their balance, their memory, and their correlation
    with each other.
    """
    masks = np.array([source.scores(one, 64) for one in source.step_keys(2048)])
    together = masks.T @ masks / np.sqrt(len(masks))
    later = masks[1:].T @ masks[:-1] / np.sqrt(len(masks) - 1)
    alone = masks.sum(axis=0) / np.sqrt(len(masks))
    return verdict([alone, together[np.triu_indices(64, 1)], later])


def windows(source: Source) -> float:
    """Look for masks that are shifted or permuted pieces of others, at the keys of a long run that
    are nearest to each other.

    A shift shows between keys that are close as numbers, a permutation between keys that differ in
    low bits. Two keys of a run may have a word in common, so a hash whose key is really one word
    gives the same mask twice.
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
            for flip in range(1, flips):
                scores.append(np.array(correlation(a, blocks[indices ^ flip].ravel())))
    return verdict(scores)


CHECKS = (balance, lags, halves, keys, key_bits, elements, windows)


@pytest.mark.parametrize("check", CHECKS)
def test_masks_look_like_chance(check: Callable[[Source], float]) -> None:
    assert check(Source()) < 1.0


def hashed(words: Callable[[Key, np.ndarray], np.ndarray], shift: int = 0) -> Source:
    """Return a source with another hash of (key, counter), or another threshold."""

    def keep(key: Key, shape: tuple[int, ...], rate: float) -> np.ndarray:
        found = words(key, np.arange((shape[-1] + 1) // 2, dtype=np.uint32))
        levels = found.astype("<u4").view("<i2")[: shape[-1]]
        return levels >= dropout_threshold(rate) - DROPOUT_LEVELS // 2 + shift

    return Source(keep)


def keyed(keys: Callable[[int, np.ndarray, np.ndarray], np.ndarray]) -> Source:
    return Source(keys=keys)


def right(key: Key, counter: np.ndarray) -> np.ndarray:
    return mix(mix(counter ^ key[0]) ^ key[1])


def weak(word: np.ndarray) -> np.ndarray:
    """Half of the mixer."""
    return (word ^ (word >> np.uint32(16))) * np.uint32(0x7FEB352D)


def twice(word: np.ndarray) -> np.ndarray:
    """The low half in both halves."""
    return (word & 0xFFFF) * np.uint32(0x10001)


def counted(seed: int, steps: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Steps and places added to a key."""
    first, second = derive(seed, DROPOUT)
    return np.stack([first + steps * np.uint32(9) + places, np.full_like(steps, second)], axis=-1)


made = Source().keys
HIGH = np.uint32(0xFFFF0000)
STILL = keyed(lambda seed, steps, places: made(seed, np.zeros_like(steps), places))
FAULTS: dict[str, tuple[Callable[[Source], float], Source]] = {
    "key added to the counter": (windows, hashed(lambda k, c: mix(mix(c + k[0] + k[1])))),
    "first word added, second without effect": (windows, hashed(lambda k, c: mix(mix(c + k[0])))),
    "first round without a key": (windows, hashed(lambda k, c: mix(mix(c) ^ k[1]))),
    "second round without a key": (windows, hashed(lambda k, c: mix(mix(c ^ k[0])))),
    "one round": (windows, hashed(lambda k, c: mix(c ^ k[0] ^ k[1]))),
    "one round, second word after it": (windows, hashed(lambda k, c: mix(c ^ k[0]) ^ k[1])),
    "second word without effect": (key_bits, hashed(lambda k, c: mix(mix(c ^ k[0])))),
    "half of the mixer": (lags, hashed(lambda k, c: weak(weak(c ^ k[0]) ^ k[1]))),
    "half of the mixer, elements": (elements, hashed(lambda k, c: weak(c ^ k[0]) ^ k[1])),
    "same decision twice": (halves, hashed(lambda k, c: twice(right(k, c)))),
    "high half inverts low": (halves, hashed(lambda k, c: twice(right(k, c)) ^ HIGH)),
    "threshold of another rate": (balance, hashed(right, shift=DROPOUT_LEVELS // 256)),
    "step without effect": (keys, STILL),
    "step without effect, elements": (elements, STILL),
    "two steps, one key": (keys, keyed(lambda s, steps, places: made(s, steps // 2, places))),
    "place without effect": (keys, keyed(lambda s, steps, p: made(s, steps, np.zeros_like(p)))),
    "layer without effect": (keys, keyed(lambda s, steps, places: made(s, steps, places % 4))),
    "seed without effect": (keys, keyed(lambda s, steps, places: made(0, steps, places))),
    "step and place added to the key": (windows, keyed(counted)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_checks_can_fail(fault: str) -> None:
    check, source = FAULTS[fault]
    assert check(source) > 1.0


def test_the_planted_hashes_differ_from_the_right_one_by_their_fault_alone() -> None:
    for one in Source().step_keys(3):
        assert np.array_equal(hashed(right).keep(one, (99,), 0.3), dropout_keep(one, (99,), 0.3))


def avalanche(mixer: Callable[[np.ndarray], np.ndarray]) -> float:
    """Score how often each bit that goes in flips each bit that comes out: half of the time."""
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
