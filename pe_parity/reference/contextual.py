"""Encodings whose terms read the content."""

from __future__ import annotations

from typing import Any

import numpy as np

from pe_parity.reference.kinds import Arrays, Contextual, Positions, Steps


class ShawFormula(Contextual):
    """Vectors per clipped offset, added to keys and values.

    e_ij = q_i (k_j + a^K_ij) scale and z_i = sum_j w_ij (v_j + a^V_ij), where a_ij is the row of
    clip(j - i, -K, K) of a table shared by all heads.

    Source: Shaw et al. 2018, "Self-attention with relative position representations", equations
    3 to 5; dropout on the weights reaches both sums, as in the code of tensor2tensor,
    `_relative_attention_inner`.
    """

    def _rows(self, options: Any, table: np.ndarray, positions: Positions) -> np.ndarray:
        clipped = np.clip(positions.offsets(), -options.max_distance, options.max_distance)
        rows = table[clipped.astype(np.int64) + options.max_distance]
        return rows if rows.ndim == 4 else rows[None]

    def logits(
        self, options: Any, arrays: Arrays, steps: Steps, positions: Positions
    ) -> np.ndarray:
        """Return q_i a^K_ij scale, (batch, heads, queries, keys)."""
        rows = self._rows(options, arrays["keys"], positions)
        return steps.scale * np.einsum(
            "bhqd,bqkd->bhqk",
            steps.query,
            np.broadcast_to(rows, (len(steps.query), *rows.shape[1:])),
        )

    def mix(
        self, options: Any, arrays: Arrays, steps: Steps, positions: Positions, weights: np.ndarray
    ) -> np.ndarray:
        """Return sum_j w_ij a^V_ij, (batch, heads, queries, d_head)."""
        if "values" not in arrays:
            return np.zeros(())
        rows = self._rows(options, arrays["values"], positions)
        placed = positions.where_placed(weights)
        return np.einsum(
            "bhqk,bqkd->bhqd", placed, np.broadcast_to(rows, (len(weights), *rows.shape[1:]))
        )
