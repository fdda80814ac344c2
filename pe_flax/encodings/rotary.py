"""Encodings that map queries and keys; formulas and sources in `pe_parity/reference/rotary.py`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from pe_core.encodings import Rotary
from pe_flax.encodings.angles import Frequencies, sine_cosine
from pe_flax.encodings.kinds import QueryKey
from pe_flax.positions import Positions


class RotaryEncoding(QueryKey):
    """Rotates pairs of channels by angles proportional to the position; angles keep
    their digits at any position.

    Example:
        >>> import jax.numpy as jnp
        >>> from pe_flax import Rotary, RotaryEncoding
        >>> rotary = RotaryEncoding(Rotary(), d_head=8)
        >>> query, key = jnp.ones((2, 10, 4, 8)), jnp.ones((2, 12, 4, 8))
        >>> query, key = rotary.query(query), rotary.key(key)
        >>> jnp.einsum("bqhd,bkhd->bhqk", query, key).shape
        (2, 4, 10, 12)
    """

    options_type = Rotary

    def map_query(self, x: Array, positions: Positions) -> Array:
        """Return x (batch, length, heads, d_head) rotated at its positions."""
        rotated = self.options.rotated(self.sizes)
        count = rotated // 2
        radians = np.power(self.options.base, -np.arange(count) / count)
        frequencies = Frequencies(radians, self.options.base, count)
        # An axis for the heads, and one for the batch where all rows stand alike.
        sine, cosine = (
            part[:, :, None] if part.ndim == 3 else part[None, :, None]
            for part in sine_cosine(positions, frequencies, x.dtype)
        )
        wide = x.astype(sine.dtype)
        turned, rest = wide[..., :rotated], wide[..., rotated:]
        if self.options.pairing == "interleaved":
            first, second = turned[..., 0::2], turned[..., 1::2]
        else:
            first, second = turned[..., :count], turned[..., count:]
        pair = (first * cosine - second * sine, second * cosine + first * sine)
        if self.options.pairing == "interleaved":
            turned = jnp.stack(pair, axis=-1).reshape(turned.shape)
        else:
            turned = jnp.concatenate(pair, axis=-1)
        return jnp.concatenate([turned, rest], axis=-1).astype(x.dtype)
