"""What the layers of a model share in one call: one record of arrays and numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from pe_core.model.dropout_places import DropoutPlace
from pe_torch.dropout import Masks
from pe_torch.positions import Positions, Rows

Taps = dict[str, Any]


class Call(NamedTuple):
    """One call, as one layer sees it.

    Args:
        positions: where the steps stand.
        real: (batch, length) bool, True for real steps; None when all are.
        masks: of dropout; None keeps everything.
        taps: receives the named intermediates; None receives nothing.
        layer: number of the layer, from 0.
    """

    positions: Positions
    real: Tensor | None = None
    masks: Masks | None = None
    taps: Taps | None = None
    layer: int = 0

    def visible(self, rows: Rows) -> Tensor | None:
        """Return which keys the queries of a block may see, bool (batch, 1, rows or 1, keys); None
        for all.
        """
        if self.real is None:
            return None
        keys = self.real[:, None, None, :]
        segments = self.positions.segments
        if segments is None:
            return keys
        return keys & (rows.of(segments, 1)[:, None, :, None] == segments[:, None, None, :])

    def drop(self, x: Tensor, place: DropoutPlace, rows: Rows | None = None) -> Tensor:
        """Return x with elements dropped and the rest scaled up.

        Args:
            x: any array; attention weights (batch, heads, rows, keys) where `rows` is given.
            place: where in the layer.
            rows: the block of query rows that x holds, which gets its part of the whole mask.
        """
        return x if self.masks is None else self.masks.drop(x, place, self.layer, rows)

    def tap(self, name: str, array: Tensor) -> None:
        """Keep a named intermediate of the model, where taps were asked for."""
        if self.taps is not None:
            self.taps[name] = array

    def tap_layer(self, name: str, array: Tensor) -> None:
        """Keep a named intermediate of this layer, where taps were asked for."""
        if self.taps is not None:
            self.taps[f"layers.{self.layer}.{name}"] = array
