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
from pe_core.model.values import require_positions_fit, require_positions_of_any_table
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
        floating point; beyond the table as `over_length` says. Where the positions cannot be
        read, as in a compiled or transformed call, one outside the table cannot raise; its row is
        NaN.

        Raises:
            UserValueError: a position outside the table.
        """
        values, limit = positions.values, self.options.max_length
        unknown = torch.compiler.is_exporting() or positions.bound is None
        if self.options.over_length != "error" and (unknown or positions.bound > limit):
            return x + self._brought_inside(positions).to(x.dtype)
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

    def _brought_inside(self, positions: Positions) -> Tensor:
        """Return the rows of positions that may lie beyond the table, by the policy of the options;
        NaN where a position is negative or not finite and cannot raise.
        """
        values, limit = positions.values, self.options.max_length
        if can_read(values):
            require_positions_of_any_table(values.min().item(), values.max().item())
        last, share = limit - 1, None
        known = (values >= 0) & (values < 1 << 31)
        values = torch.where(known, values, 0)
        if self.options.over_length == "clip":
            values = values.clamp(max=last)
        elif self.options.over_length == "wrap":
            values = values.remainder(limit)
        else:
            ends = _ends(positions._replace(values=values)).clamp(min=max(last, 1))
            stretched = values * last
            if values.dtype.is_floating_point:
                values = (stretched / ends).clamp(max=last)
            else:
                # In whole numbers as far as it goes: a quotient in float32 is too coarse.
                values = stretched // ends
                share = (stretched - values * ends).to(self.table.dtype) / ends
        floor = values.floor().long() if values.dtype.is_floating_point else values
        if values.dtype.is_floating_point:
            share = (values - floor).to(self.table.dtype)
        rows = functional.embedding(floor, self.table)
        if share is not None:
            wraps = self.options.over_length == "wrap"
            above = (floor + 1).remainder(limit) if wraps else (floor + 1).clamp(max=last)
            rows = rows + share[..., None] * (functional.embedding(above, self.table) - rows)
        return torch.where(known[..., None], rows, torch.nan)

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


def _ends(positions: Positions) -> Tensor:
    """Return the last position of the sequence of each step, or of its segment."""
    values = positions.values
    if positions.segments is None:
        return values.amax(dim=-1, keepdim=True)
    starts = functional.pad(positions.segments.diff(dim=1) != 0, (1, 0))
    runs = starts.long().cumsum(dim=1)
    values = values.expand(runs.shape)
    found = torch.zeros_like(values).scatter_reduce(1, runs, values, "amax")
    return found.gather(1, runs)


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
