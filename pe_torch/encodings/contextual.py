"""Encodings whose terms read the content; formulas and sources in
`pe_parity/reference/contextual.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pe_core.encodings import Shaw
from pe_torch.call import Call
from pe_torch.encodings.kinds import Contextual, Steps, Terms
from pe_torch.layers import widened
from pe_torch.positions import Rows, offsets, zero_unplaced


class ShawEncoding(Contextual):
    """Trained vectors per clipped offset, added to the keys and values that a query sees.

    Example:
        >>> import torch
        >>> from pe_torch import SelfAttention, Shaw
        >>> attention = SelfAttention(32, 4, encodings=(Shaw(max_distance=8),))
        >>> attention(torch.zeros(2, 10, 32)).shape
        torch.Size([2, 10, 32])
    """

    options_type = Shaw
    keys: nn.Parameter
    values: nn.Parameter

    def _prepare(self, steps: Steps, call: Call) -> Terms:
        """Return q_i a^K_ij for the logits and the sum over w_ij a^V_ij for the values."""
        furthest, there = self.options.max_distance, call.positions

        def index(rows: Rows) -> Tensor:
            clipped = offsets(there.rows(rows), there).clamp(-furthest, furthest) + furthest
            return clipped if clipped.ndim == 2 else clipped[:, None]

        def logits(rows: Rows, scores: Tensor, bias: Tensor) -> Tensor:
            query = rows.of(steps.query, 2).to(scores.dtype)
            every = query * steps.scale @ self.keys.to(scores.dtype).mT
            found = every.gather(-1, index(rows).expand(scores.shape))
            return zero_unplaced(found, there.rows(rows), there)

        def mix(rows: Rows, weights: Tensor, visible: Tensor | None) -> Tensor:
            weights = zero_unplaced(weights, there.rows(rows), there)
            # In bfloat16 a sum stops growing once each weight is below its last bit.
            weights = weights.to(widened(weights.dtype))
            shape = (*weights.shape[:-1], 2 * furthest + 1)
            sums = torch.zeros(shape, dtype=weights.dtype, device=weights.device)
            sums = sums.scatter_add(-1, index(rows).expand(weights.shape), weights)
            return sums.to(steps.value.dtype) @ self.values.to(steps.value.dtype)

        return Terms(logits, mix if self.options.values else None)
