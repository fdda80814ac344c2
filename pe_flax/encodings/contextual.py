"""Encodings whose terms read the content; formulas and sources in
`pe_parity/reference/contextual.py`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pe_core.encodings import Shaw
from pe_flax.call import Call
from pe_flax.encodings.kinds import Contextual, Steps, Terms
from pe_flax.positions import Rows, offsets, zero_unplaced


class ShawEncoding(Contextual):
    """Trained vectors per clipped offset, added to the keys and values that a query sees.

    Example:
        >>> import jax.numpy as jnp
        >>> from pe_flax import SelfAttention, Shaw
        >>> attention = SelfAttention(32, 4, encodings=(Shaw(max_distance=8),), seed=0)
        >>> attention(jnp.zeros((2, 10, 32))).shape
        (2, 10, 32)
    """

    options_type = Shaw
    keys: nnx.Param
    values: nnx.Param

    def _prepare(self, steps: Steps, call: Call) -> Terms:
        """Return q_i a^K_ij for the logits and the sum over w_ij a^V_ij for the values."""
        furthest, there = self.options.max_distance, call.positions
        keys = self.keys[...]

        def index(rows: Rows, shape: tuple[Any, ...]) -> Array:
            # Offsets beyond what JAX holds are NumPy's; clipped, they are small.
            found = offsets(there.rows(rows), there)
            if isinstance(found, np.ndarray):
                found = jnp.asarray(np.clip(found, -furthest, furthest).astype(np.int32))
            clipped = jnp.clip(found, -furthest, furthest) + furthest
            clipped = clipped[None, None] if clipped.ndim == 2 else clipped[:, None]
            return jnp.broadcast_to(clipped, shape)

        def logits(rows: Rows, scores: Array, bias: Array) -> Array:
            query = rows.of(steps.query, 1).astype(scores.dtype) * steps.scale
            every = jnp.einsum("bqhd,nd->bhqn", query, keys.astype(scores.dtype))
            found = jnp.take_along_axis(every, index(rows, scores.shape), axis=-1)
            return zero_unplaced(found, there.rows(rows), there)

        def mix(rows: Rows, weights: Array, visible: Array | None) -> Array:
            values = self.values[...].astype(steps.value.dtype)
            weights = zero_unplaced(weights, there.rows(rows), there)
            # In bfloat16 a sum stops growing once each weight is below its last bit.
            wide = weights.dtype if weights.dtype == jnp.float64 else jnp.float32
            weights = weights.astype(wide)
            sums = jnp.zeros((*weights.shape[:-1], 2 * furthest + 1), weights.dtype)
            lead = jnp.ix_(*(jnp.arange(size) for size in weights.shape))[:-1]
            sums = sums.at[(*lead, index(rows, weights.shape))].add(weights)
            return jnp.einsum("bhqn,nd->bqhd", sums.astype(values.dtype), values)

        return Terms(logits, mix if self.options.values else None)
