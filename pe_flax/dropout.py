"""The shared random numbers in JAX: Threefry for keys, the keyed hash for dropout masks; see
`pe_core/model/random.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pe_core.errors import UserTypeError
from pe_core.model.dropout_places import DropoutPlace, count_places, dropout_place
from pe_core.model.inputs import check_native_rows
from pe_core.model.random import (
    DROPOUT,
    DROPOUT_LEVELS,
    MIXER_MULTIPLIERS,
    MIXER_SHIFTS,
    THREEFRY_PARITY,
    THREEFRY_ROTATIONS,
    derive,
    dropout_scale,
    dropout_threshold,
)
from pe_flax.positions import Rows


def threefry2x32(key: Array, high: Array, low: Array) -> tuple[Array, Array]:
    """Return the two words of Threefry-2x32 with 20 rounds for each counter (high, low), in uint32.

    Args:
        key: (..., 2) uint32.
        high: uint32 counters, broadcast against the key.
        low: uint32 counters, broadcast against the key.
    """
    schedule = (key[..., 0], key[..., 1], key[..., 0] ^ key[..., 1] ^ jnp.uint32(THREEFRY_PARITY))
    first, second = high + schedule[0], low + schedule[1]
    for group in range(5):
        for rotation in THREEFRY_ROTATIONS[group % 2]:
            first = first + second
            second = (second << jnp.uint32(rotation)) | (second >> jnp.uint32(32 - rotation))
            second = second ^ first
        first = first + schedule[(group + 1) % 3]
        second = second + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return first, second


def fold_in(key: Array, data: Array) -> Array:
    """Return the keys derived from `key` (..., 2) for the numbers in `data` (...), all uint32."""
    return jnp.stack(threefry2x32(key, jnp.zeros_like(data), data), axis=-1)


def _mix(word: Array) -> Array:
    first, second, third = (jnp.uint32(shift) for shift in MIXER_SHIFTS)
    word = (word ^ (word >> first)) * jnp.uint32(MIXER_MULTIPLIERS[0])
    word = (word ^ (word >> second)) * jnp.uint32(MIXER_MULTIPLIERS[1])
    return word ^ (word >> third)


def dropout_keep(
    key: Array,
    shape: tuple[int, ...],
    rate: float,
    *,
    rows: tuple[int | Array, int] | None = None,
    samples: Array | None = None,
) -> Array:
    """Return which elements are kept, a boolean array of the shape.

    Args:
        key: (2,) uint32.
        shape: of the array to drop from.
        rate: share of the elements to drop.
        rows: (start, total) where the last axis but one holds a block of the rows of a whole: the
            block has the bits that the whole has there.
        samples: (batch,) integers, where in a larger batch each entry of the first axis stands: it
            has the bits that it has there.
    """
    *lead, columns = shape
    per_row = (columns + 1) // 2
    words = jax.lax.iota(jnp.uint32, math.prod(lead) * per_row)
    # A batch of single vectors has one row a sample.
    size = lead[-1] if len(lead) > 1 else 1
    start, total = (0, size) if rows is None else rows
    if rows is not None:
        block = words // jnp.uint32(size * per_row)
        ahead = block * jnp.uint32(total - size) + jnp.asarray(start).astype(jnp.uint32)
        words = words + ahead * jnp.uint32(per_row)
    if samples is not None:
        of_one = math.prod(lead[1:]) // size * total * per_row
        ahead = samples.astype(jnp.uint32) - jnp.arange(lead[0], dtype=jnp.uint32)
        words = (words.reshape(lead[0], -1) + ahead[:, None] * jnp.uint32(of_one)).reshape(-1)
    words = _mix(_mix(words ^ key[0]) ^ key[1])
    halves = jax.lax.bitcast_convert_type(words, jnp.int16)
    return halves.reshape(*lead, 2 * per_row)[..., :columns] >= jnp.int16(
        dropout_threshold(rate) - DROPOUT_LEVELS // 2
    )


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["keys", "samples"],
    meta_fields=["rate", "native"],
)
@dataclass(frozen=True)
class Masks:
    """The dropout of one call.

    Args:
        rate: share of the elements to drop.
        keys: (places, 2) uint32, two words for each place of the model.
        native: draw from `jax.random.bernoulli` instead of the shared hash.
        samples: (batch,) integers, where in a larger batch each sequence stands.
    """

    rate: float
    keys: Any
    native: bool = False
    samples: Any = None

    def drop(self, x: Array, place: DropoutPlace, layer: int, rows: Rows | None = None) -> Array:
        """Return x with elements dropped and the rest scaled up; see `Call.drop`."""
        key = self.keys[dropout_place(place, layer)]
        part = None
        if rows is not None and rows.size < x.shape[-1]:
            part = (rows.start, x.shape[-1])
        if self.native:
            drawn = jax.random.wrap_key_data(key, impl="threefry2x32")
            if part is not None:
                drawn = jax.random.fold_in(drawn, part[0])
            keep = jax.random.bernoulli(drawn, 1.0 - self.rate, x.shape)
            scale = jnp.asarray(1.0 / (1.0 - self.rate), x.dtype)
            return jnp.where(keep, x * scale, jnp.zeros((), x.dtype))
        keep = dropout_keep(key, x.shape, self.rate, rows=part, samples=self.samples)
        return x * (keep.astype(x.dtype) * jnp.asarray(dropout_scale(self.rate), x.dtype))


class Dropout(nnx.Module):
    """Dropout at every place of a model, its masks a function of (seed, step, place), or drawn from
    a stream of random numbers.

    Args:
        rate: share of the elements to drop.
        num_layers: blocks of the model.
        seed: of the masks of steps, and of the stream `dropout`.
        rngs: its stream `dropout` draws a key in place of a seed.
        native: draw from `jax.random.bernoulli` instead.
    """

    def __init__(
        self,
        rate: float,
        *,
        num_layers: int,
        seed: int | None = 0,
        rngs: nnx.Rngs | None = None,
        native: bool = False,
    ) -> None:
        self.rate = rate
        self.num_layers = num_layers
        self.native = native
        self.deterministic = False
        self.stream = _stream(seed, rngs) if rate > 0.0 else None

    def begin(self, step: int | Array | None, samples: Array | None = None) -> Masks | None:
        """Return the masks of a training step; None, which keeps everything, in evaluation.

        Args:
            step: number of the training step; None draws the keys from the stream, as `nnx.Dropout`
                does.
            samples: (batch,) integers, where in a larger batch each sequence stands.
        """
        if self.deterministic or self.stream is None:
            return None
        if self.native:
            check_native_rows(samples)
        places = count_places(self.num_layers)
        if step is None:
            keys = jax.random.bits(self.stream(), (places, 2), jnp.uint32)
        else:
            base = jax.random.key_data(self.stream.key[...])
            key = fold_in(base, jnp.asarray(step, jnp.uint32))
            keys = fold_in(key[None], jnp.arange(places, dtype=jnp.uint32))
        return Masks(self.rate, keys, self.native, samples)


def _stream(seed: int | None, rngs: nnx.Rngs | None) -> nnx.RngStream:
    """Return the stream `dropout` of a model; its key is also that of the masks of steps."""
    if seed is not None:
        words = jnp.asarray(derive(seed, DROPOUT))
    elif rngs is not None:
        words = jax.random.bits(rngs.dropout(), (2,), jnp.uint32)
    else:
        raise UserTypeError("dropout needs random numbers; pass rngs=nnx.Rngs(0) or seed=0")
    return nnx.Rngs(dropout=jax.random.wrap_key_data(words, impl="threefry2x32")).dropout
