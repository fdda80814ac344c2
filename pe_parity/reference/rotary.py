"""Encodings that map queries and keys."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from pe_core.encodings import Rotary, Sizes
from pe_parity.reference.angles import angles
from pe_parity.reference.kinds import Arrays, Positions, QueryKey


def rotate(options: Rotary, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rotate pairs of channels (a, b) by the angle p w_k: a cos - b sin, b cos + a sin.

    w_k = base^(-2k / r) for k < r / 2, with r the number of rotated channels. "interleaved" pairs
    channels 2k and 2k + 1, "half" pairs k and k + r / 2. Channels from r on pass as they are.

    Source: Su et al. 2021, "RoFormer", equation 34; the "half" pairing is that of GPT-NeoX and of
    Hugging Face's Llama, `rotate_half`.

    Args:
        options: base, pairing and fraction.
        x: (..., length, d_head) queries or keys.
        positions: (..., length), broadcast against x.
    """
    count = options.rotated(Sizes(x.shape[-1])) // 2
    found = angles(positions, options.base, [Fraction(k, count) for k in range(count)])
    cosine, sine = np.cos(found), np.sin(found)
    if options.pairing == "interleaved":
        first, second = np.arange(0, 2 * count, 2), np.arange(1, 2 * count, 2)
    else:
        first, second = np.arange(count), np.arange(count, 2 * count)
    turned = x.copy()
    turned[..., first] = x[..., first] * cosine - x[..., second] * sine
    turned[..., second] = x[..., second] * cosine + x[..., first] * sine
    return turned


class RotaryFormula(QueryKey):
    """Rotated queries and keys."""

    def query(
        self, options: Any, arrays: Arrays, x: np.ndarray, positions: Positions
    ) -> np.ndarray:
        """Return the rotated queries or keys, (batch, heads, length, d_head)."""
        values = positions.values
        return rotate(options, x, values if values.ndim == 1 else values[:, None])
