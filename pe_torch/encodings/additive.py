"""Encodings that are added to the steps; formulas and sources in
`pe_parity/reference/additive.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pe_core.encodings import LearnedTable, Sinusoidal
from pe_core.model.inputs import require_positions_fit
from pe_torch.encodings.angles import Frequencies, sine_cosine
from pe_torch.encodings.kinds import Additive
from pe_torch.positions import Positions, can_read


class LearnedTableEncoding(Additive):
    """A trained vector per position, added to the steps.

    Example:
        >>> import torch
        >>> from pe_torch import LearnedTable, LearnedTableEncoding
        >>> encoding = LearnedTableEncoding(LearnedTable(max_length=512), d_model=32)
        >>> encoding(torch.zeros(4, 100, 32)).shape
        torch.Size([4, 100, 32])
    """

    options_type = LearnedTable
    table: nn.Parameter

    def add(self, x: Tensor, positions: Positions) -> Tensor:
        """Return x (batch, length, d_model) plus the rows of the positions, between two rows for
        floating point. Where a transform such as `torch.compile` does not allow a look, a given
        position outside the table cannot raise; its row is NaN.

        Raises:
            UserValueError: a position outside the table.
        """
        values, limit = positions.values, self.options.max_length
        if positions.counted:
            require_positions_fit(limit, 0, x.shape[1] - 1)
            return x + self.table[: x.shape[1]].to(x.dtype)
        if positions.bound is None or positions.bound > limit:
            # Padding may reach beyond the table, real steps may not.
            if can_read(values):
                require_positions_fit(limit, values.min().item(), values.max().item())
            else:
                inside = (values >= 0) & (values <= limit - 1)
                values = torch.where(inside, values, torch.zeros_like(values))
                x = torch.where(inside[..., None], x, torch.nan)
        if not values.dtype.is_floating_point:
            return x + functional.embedding(values, self.table).to(x.dtype)
        floor = values.floor().long()
        above = (floor + 1).clamp(max=limit - 1)
        share = (values - floor).to(self.table.dtype)[..., None]
        low = functional.embedding(floor, self.table)
        high = functional.embedding(above, self.table)
        return x + (low + share * (high - low)).to(x.dtype)


class SinusoidalEncoding(Additive):
    """Sines and cosines of the position, added to the steps; angles are taken in float64.

    Example:
        >>> import torch
        >>> from pe_torch import Sinusoidal, SinusoidalEncoding
        >>> encoding = SinusoidalEncoding(Sinusoidal(), d_model=32)
        >>> seconds = torch.rand(4, 100) * 60
        >>> encoding(torch.zeros(4, 100, 32), seconds).shape
        torch.Size([4, 100, 32])
    """

    options_type = Sinusoidal
    _rows: Tensor | None = None

    def _prepare_constants(self) -> None:
        width, options = self.sizes.d_model, self.options
        if options.layout == "tensor2tensor":
            count = width // 2
            divisor: float = max(count - 1, 1)
            exponents: np.ndarray = np.arange(count) / divisor
        else:
            count, divisor = (width + 1) // 2, width / 2
            exponents = np.arange(count) * (2.0 / width)
        radians = np.power(options.base, -exponents)
        self._frequencies = Frequencies(radians, options.base, divisor)

    def add(self, x: Tensor, positions: Positions) -> Tensor:
        """Return x (batch, length, d_model) plus the waves at the positions."""
        if positions.bound is None:
            return x + self._waves(positions).to(x.dtype)
        rows = self._first_rows(x, positions.bound)
        if positions.counted:
            return x + rows
        return x + functional.embedding(positions.values, rows)

    def _first_rows(self, x: Tensor, count: int) -> Tensor:
        """Return the rows of 0 .. count - 1, kept for the next call of this length or a shorter
        one.
        """
        rows = self._rows
        if (
            rows is None
            or rows.shape[0] < count
            or rows.dtype != x.dtype
            or rows.device != x.device
        ):
            rows = self._waves(Positions(torch.arange(count), bound=count)).to(x)
            self._rows = rows
        return rows[:count]

    def _waves(self, positions: Positions) -> Tensor:
        width, options = self.sizes.d_model, self.options
        sine, cosine = sine_cosine(positions, self._frequencies)
        if options.layout == "interleaved":
            return torch.stack([sine, cosine], dim=-1).flatten(-2)[..., :width]
        waves = torch.cat([sine, cosine], dim=-1)[..., :width]
        return functional.pad(waves, (0, width - waves.shape[-1]))
