"""Encodings that are added to the steps; formulas and sources in
`pe_parity/reference/additive.py`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pe_core.encodings import LearnedTable, Sinusoidal
from pe_core.model.values import require_positions_fit, require_positions_of_any_table
from pe_flax.encodings.angles import Frequencies, sine_cosine
from pe_flax.encodings.kinds import Additive
from pe_flax.layers import rows_or_nan
from pe_flax.positions import Positions, can_read


class LearnedTableEncoding(Additive):
    """A trained vector per position, added to the steps.

    Example:
        >>> import jax.numpy as jnp
        >>> from pe_flax import LearnedTable, LearnedTableEncoding
        >>> encoding = LearnedTableEncoding(LearnedTable(max_length=512), d_model=32, seed=0)
        >>> encoding(jnp.zeros((4, 100, 32))).shape
        (4, 100, 32)
    """

    options_type = LearnedTable
    table: nnx.Param

    def add(self, x: Array, positions: Positions) -> Array:
        """Return x (batch, length, d_model) plus the rows of the positions, between two rows for
        floating point; beyond the table as `over_length` says. Under `jax.jit` a given
        position outside the table cannot raise; its row is NaN.

        Raises:
            UserValueError: a position outside the table.
        """
        values, limit, table = positions.values, self.options.max_length, self.table[...]
        fits = positions.bound is not None and positions.bound <= limit
        if self.options.over_length != "error" and not fits:
            return x + _like(self._brought_inside(positions), x)
        if positions.counted:
            require_positions_fit(limit, 0, x.shape[1] - 1)
            return x + _like(table[: x.shape[1]], x)
        if positions.bound is None or positions.bound > limit:
            # Padding may reach beyond the table, real steps may not.
            if can_read(values) and can_read(positions.placed):
                require_positions_fit(limit, values.min().item(), values.max().item())
            if isinstance(values, np.ndarray):
                return x + _like(self._between(positions), x)
            values = jnp.where((values >= 0) & (values <= limit - 1), values, limit)
        if not jnp.issubdtype(values.dtype, jnp.floating):
            return x + _like(rows_or_nan(values, table), x)
        floor = jnp.floor(values).astype(jnp.int32)
        above = jnp.where(floor == limit - 1, floor, floor + 1)
        share = (values - floor.astype(values.dtype)).astype(table.dtype)[..., None]
        low, high = rows_or_nan(floor, table), rows_or_nan(above, table)
        return x + _like(low + share * (high - low), x)

    def _brought_inside(self, positions: Positions) -> Array:
        """Return the rows of positions that may lie beyond the table, by the policy of the options;
        NaN where a position is negative or not finite and cannot raise.
        """
        values, table = positions.values, self.table[...]
        limit, last = self.options.max_length, self.options.max_length - 1
        if can_read(values) and can_read(positions.placed):
            require_positions_of_any_table(values.min().item(), values.max().item())
        known = values >= 0
        if values.dtype != jnp.int32:
            known = known & (values < values.dtype.type(1 << 31))
        of: Any = np if isinstance(values, np.ndarray) else jnp
        values, share = of.where(known, values, values.dtype.type(0)), None
        if isinstance(values, np.ndarray) and values.dtype.kind == "i":
            values, of = jnp.asarray(values.astype(np.int32)), jnp
        if self.options.over_length == "clip":
            values = of.minimum(values, values.dtype.type(last))
        elif self.options.over_length == "wrap":
            values = values % values.dtype.type(limit)
        else:
            values = values if values.ndim == 2 else values[None]
            ends = _ends(values, positions.segments, of)
            ends = of.maximum(ends, ends.dtype.type(max(last, 1)))
            values, share = _stretched(values, ends, last, table.dtype)
        floor = of.floor(values).astype(np.int32)
        if jnp.issubdtype(values.dtype, jnp.floating):
            share = (values - floor.astype(values.dtype)).astype(table.dtype)
        rows = table[floor]
        if share is not None:
            wraps = self.options.over_length == "wrap"
            above = (floor + 1) % limit if wraps else of.minimum(floor + 1, last)
            rows = rows + jnp.asarray(share, table.dtype)[..., None] * (table[above] - rows)
        known = known if known.ndim == rows.ndim - 1 else known[None]
        return jnp.where(known[..., None], rows, jnp.nan)

    def _between(self, positions: Positions) -> Array:
        """Return the rows of positions of NumPy, which JAX could not hold: the row below and the
        share of the one above are taken before they are cut.
        """
        values, limit, table = positions.values, self.options.max_length, self.table[...]
        inside = (values >= 0) & (values <= limit - 1)
        kept = np.where(inside, values, 0)
        floor = np.floor(kept).astype(np.int32)
        share = jnp.asarray((kept - floor).astype(table.dtype))[..., None]
        low, high = table[floor], table[np.minimum(floor + 1, limit - 1)]
        placed = jnp.asarray(inside) if positions.placed is None else inside | ~positions.placed
        return jnp.where(placed[..., None], low + share * (high - low), jnp.nan)


def _stretched(values: Any, ends: Any, last: int, dtype: Any) -> tuple[Any, Any]:
    """Return values * last / ends: floating point, or whole numbers and the share above them."""
    if values.dtype.kind == "f":
        return (np if isinstance(values, np.ndarray) else jnp).minimum(
            values * (last / ends), values.dtype.type(last)
        ), None
    # In whole numbers as far as they go: a quotient in float32 is too coarse.
    exact = ends <= np.iinfo(values.dtype).max // max(last, 1)
    product = values * values.dtype.type(last)
    below = product // ends
    share = (product - below * ends).astype(dtype) / ends.astype(dtype)
    coarse = jnp.minimum(values.astype(dtype) * (last / ends.astype(dtype)), last)
    floor = jnp.floor(coarse)
    return jnp.where(exact, below, floor.astype(values.dtype)), jnp.where(
        exact, share, coarse - floor
    )


def _ends(values: Any, segments: Array | None, of: Any) -> Any:
    """Return the last position of the sequence of each step, or of its segment."""
    if segments is None:
        return values.max(axis=-1, keepdims=True)
    starts = jnp.diff(segments, axis=1, prepend=segments[:, :1]) != 0
    runs = starts.astype(jnp.int32).cumsum(axis=1)
    rows = jnp.arange(len(runs))[:, None]
    values = jnp.broadcast_to(jnp.asarray(values), runs.shape)
    found = jnp.zeros_like(values).at[rows, runs].max(values)[rows, runs]
    return np.asarray(found) if of is np else found


class SinusoidalEncoding(Additive):
    """Sines and cosines of the position, added to the steps; angles keep their digits at any
    position.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from pe_flax import Sinusoidal, SinusoidalEncoding
        >>> encoding = SinusoidalEncoding(Sinusoidal(), d_model=32)
        >>> seconds = jax.random.uniform(jax.random.key(0), (4, 100)) * 60
        >>> encoding(jnp.zeros((4, 100, 32)), seconds).shape
        (4, 100, 32)
    """

    options_type = Sinusoidal

    def add(self, x: Array, positions: Positions) -> Array:
        """Return x (batch, length, d_model) plus the waves at the positions."""
        width, options = self.sizes.d_model, self.options
        if options.layout == "tensor2tensor":
            count = width // 2
            divisor: float = max(count - 1, 1)
            exponents: np.ndarray = np.arange(count) / divisor
        else:
            count, divisor = (width + 1) // 2, width / 2
            exponents = np.arange(count) * (2.0 / width)
        radians = np.power(options.base, -exponents)
        frequencies = Frequencies(radians, options.base, divisor)
        sine, cosine = sine_cosine(positions, frequencies, x.dtype)
        if options.layout == "interleaved":
            pairs = jnp.stack([sine, cosine], axis=-1)
            return x + _like(pairs.reshape(*sine.shape[:-1], -1)[..., :width], x)
        waves = jnp.concatenate([sine, cosine], axis=-1)[..., :width]
        missing = width - waves.shape[-1]
        return x + _like(jnp.pad(waves, [(0, 0)] * (waves.ndim - 1) + [(0, missing)]), x)


def _like(rows: Array, x: Array) -> Array:
    """Give rows of (length, width) the batch axis and the dtype of x; no rank is promoted."""
    return rows.astype(x.dtype) if rows.ndim == x.ndim else rows.astype(x.dtype)[None]
