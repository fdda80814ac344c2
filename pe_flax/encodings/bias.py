"""Encodings that add a bias to the logits; formulas and sources in
`pe_parity/reference/bias.py`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pe_core.encodings import T5Bias
from pe_flax.encodings.kinds import LogitBias


class T5BiasEncoding(LogitBias):
    """A trained bias per head and bucket of offsets.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from pe_flax import T5Bias, T5BiasEncoding
        >>> encoding = T5BiasEncoding(T5Bias(), num_heads=4, seed=0)
        >>> bias = encoding.bias(jnp.arange(10), jnp.arange(12))
        >>> bias.shape
        (4, 10, 12)
        >>> query, key = jnp.ones((2, 10, 4, 8)), jnp.ones((2, 12, 4, 8))
        >>> jax.nn.dot_product_attention(query, key, key, bias=bias[None]).shape
        (2, 10, 4, 8)
    """

    options_type = T5Bias
    table: nnx.Param

    def of(self, offset: Array | np.ndarray) -> Array:
        """Return the bias of each offset, key minus query, (heads, *offset.shape)."""
        # Offsets beyond what JAX holds are NumPy's; their buckets are small.
        of: Any = np if isinstance(offset, np.ndarray) else jnp
        boundaries = of.asarray(np.array(self.options.boundaries()), offset.dtype)
        bucket = of.searchsorted(boundaries, of.abs(offset), side="right").astype(np.int32)
        after = (offset > 0).astype(np.int32) * (self.options.num_buckets // 2)
        found = self.table[...][:, jnp.asarray(bucket + after)]
        if not jnp.issubdtype(offset.dtype, jnp.floating):
            return found
        # A step that stands nowhere, seen where nobody could look, must not get any bucket.
        return jnp.where(of.isfinite(offset)[None], found, jnp.nan)
