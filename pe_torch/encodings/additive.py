"""Encodings that are added to the steps; formulas and sources in
`pe_parity/reference/additive.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pe_core.encodings import Encoding, LearnedTable, Sinusoidal
from pe_core.model.config import ComputeConfig
from pe_core.model.initial import draw
from pe_core.model.inputs import implicit_positions_fit, require_positions_fit
from pe_core.model.parameters import encoding_parameters


class LearnedTableEncoding(nn.Module):
    """A trained vector per position, added to the steps.

    Args:
        options: length of the table.
        d_model: width of a step.
        seed: of the initial table.
        compute: its precision is the table's.
    """

    def __init__(
        self,
        options: LearnedTable,
        d_model: int,
        *,
        seed: int = 0,
        compute: ComputeConfig | None = None,
    ) -> None:
        super().__init__()
        self.options = options
        (table,) = draw(encoding_parameters(options, d_model), seed).values()
        self.table = nn.Parameter(
            torch.from_numpy(table.astype((compute or ComputeConfig()).array_dtype))
        )

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return x plus the rows of the positions; the same as `add`."""
        return self.add(x, positions)

    def add(self, x: Tensor, positions: Tensor | None = None, *, implicit: bool = False) -> Tensor:
        """Return x (batch, length, d_model) plus the rows of the positions, (length,) or (batch,
        length); 0, 1, 2, ... when None.

        Args:
            x: steps.
            positions: integers, or floating point to read between two rows.
            implicit: the positions were counted from zero within these steps, so they fit when the
                steps do.

        Raises:
            ValueError: a position outside the table.
        """
        length = x.shape[1]
        if positions is None:
            if not implicit_positions_fit(self.options, length):
                require_positions_fit(self.options, 0, length - 1)
            return x + self.table[:length]
        if not (implicit and implicit_positions_fit(self.options, length)):
            require_positions_fit(self.options, positions.min().item(), positions.max().item())
        if not positions.dtype.is_floating_point:
            return x + functional.embedding(positions, self.table)
        floor = positions.floor().long()
        above = (floor + 1).clamp(max=self.options.max_length - 1)
        share = (positions - floor).to(self.table.dtype)[..., None]
        low, high = functional.embedding(floor, self.table), functional.embedding(above, self.table)
        return x + (low + share * (high - low))


class SinusoidalEncoding(nn.Module):
    """Sines and cosines of the position, added to the steps.

    Args:
        options: base and layout.
        d_model: width of a step.
    """

    def __init__(self, options: Sinusoidal, d_model: int) -> None:
        super().__init__()
        self.options = options
        self.d_model = d_model
        self._rows: Tensor | None = None

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return x plus the waves at the positions; the same as `add`."""
        return self.add(x, positions)

    def add(self, x: Tensor, positions: Tensor | None = None, *, implicit: bool = False) -> Tensor:
        """Return x (batch, length, d_model) plus the waves at the positions, (length,) or (batch,
        length); 0, 1, 2, ... when None.

        Args:
            x: steps.
            positions: integers or floating point, of any size; the angles are taken in float64.
            implicit: the positions were counted from zero within these steps, so a table of rows
            serves.
        """
        if positions is None:
            return x + self._first_rows(x)
        if implicit:
            return x + functional.embedding(positions, self._first_rows(x))
        return x + self._waves(positions.double()).to(x.dtype)

    def _first_rows(self, x: Tensor) -> Tensor:
        """The rows of 0 .. length - 1, built in float64 and cast once, kept for the next call of
        this length or a shorter one.
        """
        rows, length = self._rows, x.shape[1]
        if rows is None or len(rows) < length or rows.dtype != x.dtype or rows.device != x.device:
            rows = self._waves(torch.arange(length, dtype=torch.float64)).to(x)
            self._rows = rows
        return rows[:length]

    def _waves(self, positions: Tensor) -> Tensor:
        width = self.d_model
        if self.options.layout == "tensor2tensor":
            count = width // 2
            exponents: np.ndarray = np.arange(count) / max(count - 1, 1)
        else:
            count = (width + 1) // 2
            exponents = np.arange(count) * (2.0 / width)
        frequencies = torch.from_numpy(np.power(self.options.base, -exponents)).to(positions.device)
        angles = positions[..., None] * frequencies
        if self.options.layout == "interleaved":
            return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :width]
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :width]
        return functional.pad(waves, (0, width - waves.shape[-1]))


def make_encoding(
    options: Encoding, d_model: int, *, seed: int = 0, compute: ComputeConfig | None = None
) -> LearnedTableEncoding | SinusoidalEncoding:
    """Return the layer of an encoding's options."""
    match options:
        case LearnedTable():
            return LearnedTableEncoding(options, d_model, seed=seed, compute=compute)
        case Sinusoidal():
            return SinusoidalEncoding(options, d_model)
