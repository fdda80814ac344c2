"""Encodings that are added to the steps; formulas and sources in
`pe_parity/reference/additive.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pe_core.encodings import LearnedTable, Sinusoidal
from pe_core.model.values import require_positions_fit
from pe_torch.encodings.angles import Frequencies, sine_cosine
from pe_torch.encodings.kinds import Additive
from pe_torch.layers import rows_or_nan, widened
from pe_torch.positions import Positions, can_read, is_captured


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
        floating point. Where the positions cannot be read, as in a compiled or transformed call,
        one outside the table cannot raise; its row is NaN.

        Raises:
            UserValueError: a position outside the table.
        """
        values, limit = positions.values, self.options.max_length
        if torch.compiler.is_exporting():
            # One program for all lengths: even those of counted positions are unknown.
            return x + self._between_or_nan(values).to(x.dtype)
        if positions.counted:
            require_positions_fit(limit, 0, x.shape[1] - 1)
            return x + self.table[: x.shape[1]].to(x.dtype)
        if positions.bound is None or positions.bound > limit:
            # Padding may reach beyond the table, real steps may not.
            if not can_read(values):
                return x + self._between_or_nan(values).to(x.dtype)
            require_positions_fit(limit, values.min().item(), values.max().item())
        if not values.dtype.is_floating_point:
            return x + functional.embedding(values, self.table).to(x.dtype)
        floor = values.floor().long()
        above = (floor + 1).clamp(max=limit - 1)
        share = (values - floor).to(self.table.dtype)[..., None]
        low = functional.embedding(floor, self.table)
        high = functional.embedding(above, self.table)
        return x + (low + share * (high - low)).to(x.dtype)

    def _between_or_nan(self, values: Tensor) -> Tensor:
        """Return the rows of the positions; NaN outside the table, which a silent clamp would
        hide.
        """
        if not values.dtype.is_floating_point:
            return rows_or_nan(values, self.table)
        limit = self.options.max_length
        inside = (values >= 0) & (values <= limit - 1)
        values = torch.where(inside, values, 0.0)
        floor = values.floor()
        share = torch.where(inside, values - floor, torch.nan).to(self.table.dtype)[..., None]
        low = functional.embedding(floor.long(), self.table)
        high = functional.embedding((floor.long() + 1).clamp(max=limit - 1), self.table)
        return low + share * (high - low)


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
        if positions.bound is None or not (can_read(x) or is_captured(x)):
            # Rows of a traced or transformed call must not outlive it; a CUDA graph takes those of
            # a call before, as it cannot make them.
            return x + self._waves(positions, x.dtype)
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
            # Made as a plain tensor, for calls with and without gradients alike.
            with torch.inference_mode(False), torch.no_grad():
                rows = self._waves(Positions(torch.arange(count), bound=count), x.dtype).to(
                    x.device
                )
            if can_read(rows):
                self._rows = rows
        return rows[:count]

    def __getstate__(self) -> dict[str, Any]:
        # Copies and files make their own rows.
        return {name: item for name, item in vars(self).items() if name != "_rows"}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SinusoidalEncoding:
        # The module is cast or moved: the next call makes the rows there.
        self._rows = None
        super()._apply(fn, recurse)
        return self

    def _waves(self, positions: Positions, dtype: torch.dtype) -> Tensor:
        width, options = self.sizes.d_model, self.options
        # Autocast refuses to stack a narrow dtype that is not its own.
        sine, cosine = sine_cosine(positions, self._frequencies, widened(dtype))
        if options.layout == "interleaved":
            return torch.stack([sine, cosine], dim=-1).flatten(-2)[..., :width].to(dtype)
        waves = torch.cat([sine, cosine], dim=-1)[..., :width].to(dtype)
        return functional.pad(waves, (0, width - waves.shape[-1]))
