"""Counter-based random numbers in NumPy: Threefry-2x32 in the layout of `jax.random`, and the
dropout hash.

Every draw is a pure function of a key, and every key of (seed, purpose, counters), so a run can be
resumed, shared between processes and repeated in another framework from a handful of integers.
Threefry draws what is drawn once (initial weights, the order of the data, the keys of everything
else); dropout masks, drawn per element at every step, come from a cheaper keyed hash.

Sources: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Threefry); `jax.random`
(its partitionable layout); Wellons 2018, "Prospecting for hash functions" (the mixer `lowbias32`).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64, UInt32

from pe_core.errors import UserTypeError, UserValueError

# What a key is for. The numbers are part of the format of a run: never reuse or renumber one.
INITIAL_WEIGHTS: Final = 0
DATA: Final = 1
SPLIT: Final = 2
ORDER: Final = 3
DROPOUT: Final = 4

THREEFRY_PARITY: Final = 0x1BD11BDA
THREEFRY_ROTATIONS: Final = ((13, 15, 26, 6), (17, 29, 16, 24))

# The mixer of the dropout hash: shift, multiply, shift, multiply, shift. Both multipliers are odd,
# so each round is a bijection.
MIXER_SHIFTS: Final = (16, 15, 16)
MIXER_MULTIPLIERS: Final = (0x7FEB352D, 0x846CA68B)

# A dropout decision takes 16 bits, so rates are multiples of 1/65536.
DROPOUT_LEVELS: Final = 1 << 16

Key = UInt32[np.ndarray, "2"]


def key(seed: int | np.integer) -> Key:
    """Return the key of a seed, the same as `jax.random.key_data(jax.random.key(seed))`.

    Raises:
        TypeError: the seed is not an integer.
        ValueError: the seed is outside 0 .. 2**63 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise UserTypeError(f"seed must be an integer, got {seed!r}; pass one in 0 .. 2**63 - 1")
    if not 0 <= seed < 1 << 63:
        raise UserValueError(f"seed must lie in 0 .. 2**63 - 1, got {seed}")
    return np.array([int(seed) >> 32, int(seed) & 0xFFFFFFFF], np.uint32)


def threefry2x32(
    key: UInt32[np.ndarray, "... 2"],
    high: UInt32[np.ndarray, "..."],
    low: UInt32[np.ndarray, "..."],
) -> tuple[UInt32[np.ndarray, "..."], UInt32[np.ndarray, "..."]]:
    """Return the two words of Threefry-2x32 with 20 rounds for each counter (high, low); keys and
    counters broadcast.
    """
    schedule = (key[..., 0], key[..., 1], key[..., 0] ^ key[..., 1] ^ np.uint32(THREEFRY_PARITY))
    with np.errstate(over="ignore"):
        first, second = high + schedule[0], low + schedule[1]
        for group in range(5):
            for rotation in THREEFRY_ROTATIONS[group % 2]:
                first = first + second
                second = (second << np.uint32(rotation)) | (second >> np.uint32(32 - rotation))
                second = second ^ first
            first = first + schedule[(group + 1) % 3]
            second = second + schedule[(group + 2) % 3] + np.uint32(group + 1)
    # Scalars come out of NumPy as numbers, not arrays.
    return np.asarray(first), np.asarray(second)


def fold_in(
    key: UInt32[np.ndarray, "... 2"], data: int | UInt32[np.ndarray, "..."]
) -> UInt32[np.ndarray, "... 2"]:
    """Return the key derived from `key` for a 32-bit number, the same as `jax.random.fold_in`; an
    array gives an array of keys.
    """
    low = np.asarray(data, np.uint32)
    return np.stack(threefry2x32(key, np.zeros_like(low), low), axis=-1)


def derive(seed: int | np.integer, *data: int) -> Key:
    """Return the key of a seed for a purpose and its counters, folded in one after the other."""
    derived = key(seed)
    for number in data:
        derived = fold_in(derived, number)
    return derived


def _words(
    key: Key, count: int
) -> tuple[UInt32[np.ndarray, " count"], UInt32[np.ndarray, " count"]]:
    counter = np.arange(count, dtype=np.uint64)
    return threefry2x32(
        key, (counter >> np.uint64(32)).astype(np.uint32), counter.astype(np.uint32)
    )


def bits(key: Key, count: int) -> UInt32[np.ndarray, " count"]:
    """Return 32-bit words, the same as `jax.random.bits` (partitionable layout)."""
    first, second = _words(key, count)
    return first ^ second


def uniform(key: Key, shape: tuple[int, ...] = ()) -> Float64[np.ndarray, "..."]:
    """Return float64 numbers in [0, 1), the same as `jax.random.uniform(..., dtype=float64)` under
    x64.
    """
    first, second = _words(key, math.prod(shape))
    words = (first.astype(np.uint64) << np.uint64(32)) | second.astype(np.uint64)
    return ((words >> np.uint64(12)).astype(np.float64) * 2.0**-52).reshape(shape)


def normal(key: Key, shape: tuple[int, ...] = ()) -> Float64[np.ndarray, "..."]:
    """Return standard normal float64 numbers (Box-Muller: two uniforms for two normals, no
    rejection).
    """
    count = math.prod(shape)
    pairs = uniform(key, ((count + 1) // 2, 2))
    # 1 - u lies in (0, 1], so the logarithm is finite.
    radius = np.sqrt(-2.0 * np.log(1.0 - pairs[:, 0]))
    angle = 2.0 * np.pi * pairs[:, 1]
    return (
        np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
        .reshape(-1)[:count]
        .reshape(shape)
    )


def permutation(key: Key, count: int) -> Int64[np.ndarray, " count"]:
    """Return a random order of 0 .. count - 1: the stable order of 64-bit random numbers, exact on
    every machine.
    """
    first, second = _words(key, count)
    words = (first.astype(np.uint64) << np.uint64(32)) | second.astype(np.uint64)
    return np.argsort(words, kind="stable")


def mix(word: UInt32[np.ndarray, "..."]) -> UInt32[np.ndarray, "..."]:
    """Return the full-avalanche mix of each 32-bit word, a bijection."""
    first, second, third = MIXER_SHIFTS
    word = (word ^ (word >> np.uint32(first))) * np.uint32(MIXER_MULTIPLIERS[0])
    word = (word ^ (word >> np.uint32(second))) * np.uint32(MIXER_MULTIPLIERS[1])
    return word ^ (word >> np.uint32(third))


def dropout_threshold(rate: float) -> int:
    """Return how many of the 65,536 levels drop an element; the rate in force is this over 65,536.

    Raises:
        ValueError: the rate is outside [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise UserValueError(f"dropout must lie in [0, 1), got {rate}")
    return min(round(rate * DROPOUT_LEVELS), DROPOUT_LEVELS - 1)


def dropout_scale(rate: float) -> float:
    """Return the factor of the kept elements, 1 / (1 - rate in force), so that the expectation is
    unchanged.
    """
    return DROPOUT_LEVELS / (DROPOUT_LEVELS - dropout_threshold(rate))


def dropout_keep(
    key: Key,
    shape: tuple[int, ...],
    rate: float,
    samples: Int[np.ndarray, " batch"] | None = None,
) -> Bool[np.ndarray, "..."]:
    """Return which elements are kept, in row-major order.

    Args:
        key: of the mask.
        shape: of the array to drop from.
        rate: share of the elements to drop.
        samples: where in a larger batch each entry of the first axis stands: it has the bits that
            it has there. 0, 1, ... when None.

    One 32-bit word decides two neighbours of the last axis, its low half first; each row of the
    last axis starts a new word, so any block of rows can be drawn on its own. A half, read as a
    signed number, keeps its element when it reaches the threshold. The key's words enter the two
    rounds by exclusive or: added to the counter they would give shifted windows of one sequence.
    """
    *rows, columns = shape
    per_row = (columns + 1) // 2
    counter = np.arange(math.prod(rows) * per_row, dtype=np.uint32)
    if samples is not None:
        of_one = np.arange(len(counter) // len(samples), dtype=np.uint32)
        counter = samples.astype(np.uint32)[:, None] * np.uint32(len(of_one)) + of_one
        counter = counter.reshape(-1)
    words = mix(mix(counter ^ key[0]) ^ key[1])
    halves = words.astype("<u4").view("<i2").reshape(*rows, 2 * per_row)[..., :columns]
    return halves >= dropout_threshold(rate) - DROPOUT_LEVELS // 2
