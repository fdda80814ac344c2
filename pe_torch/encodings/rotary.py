"""Encodings that map queries and keys; formulas and sources in `pe_parity/reference/rotary.py`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pe_core.encodings import Rotary
from pe_torch.encodings.angles import Frequencies, sine_cosine
from pe_torch.encodings.kinds import QueryKey
from pe_torch.layers import widened
from pe_torch.positions import Positions


class RotaryEncoding(QueryKey):
    """Rotates pairs of channels by angles proportional to the position; angles are in float64.

    Example:
        >>> import torch
        >>> from pe_torch import Rotary, RotaryEncoding
        >>> rotary = RotaryEncoding(Rotary(), d_head=8)
        >>> query, key = torch.ones(2, 4, 10, 8), torch.ones(2, 4, 12, 8)
        >>> logits = rotary.query(query) @ rotary.key(key).mT
        >>> logits.shape
        torch.Size([2, 4, 10, 12])
    """

    options_type = Rotary

    def _prepare_constants(self) -> None:
        count = self.options.rotated(self.sizes) // 2
        radians = np.power(self.options.base, -np.arange(count) / count)
        self._frequencies = Frequencies(radians, self.options.base, count)

    def map_query(self, x: Tensor, positions: Positions) -> Tensor:
        """Return x (batch, heads, length, d_head) rotated at its positions."""
        rotated = self.options.rotated(self.sizes)
        count = rotated // 2
        exact = widened(x.dtype)
        # A head axis for positions of (batch, length).
        sine, cosine = (
            part if part.ndim == 2 else part[:, None]
            for part in sine_cosine(positions, self._frequencies, exact)
        )
        wide = x.to(exact)
        turned, rest = wide[..., :rotated], wide[..., rotated:]
        if self.options.pairing == "interleaved":
            first, second = turned[..., 0::2], turned[..., 1::2]
        else:
            first, second = turned[..., :count], turned[..., count:]
        pair = (first * cosine - second * sine, second * cosine + first * sine)
        if self.options.pairing == "interleaved":
            turned = torch.stack(pair, dim=-1).flatten(-2)
        else:
            turned = torch.cat(pair, dim=-1)
        if rest.shape[-1]:
            turned = torch.cat([turned, rest], dim=-1)
        return turned.to(x.dtype)
