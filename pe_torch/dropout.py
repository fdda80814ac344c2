"""The shared random numbers in torch: Threefry for keys, the keyed hash for dropout masks; see
`pe_core/model/random.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pe_core.model.dropout_places import DropoutPlace, count_places, dropout_place
from pe_core.model.random import (
    DROPOUT,
    DROPOUT_LEVELS,
    MIXER_MULTIPLIERS,
    MIXER_SHIFTS,
    THREEFRY_PARITY,
    THREEFRY_ROTATIONS,
    derive,
    dropout_scale,
    dropout_threshold,
)
from pe_torch.positions import Rows

# Keys of this many steps are drawn at once: Threefry costs a hundred small operations however few
# keys it makes.
STEPS_PER_DRAW: Final = 256
# The hash reads and writes its words some twenty times; this many stay in the cache of a core.
WORDS_PER_BLOCK: Final = 1 << 17


def _signed(word: int) -> int:
    """The same 32 bits as a signed number: torch has arithmetic on int32, not on uint32."""
    return word - (1 << 32) if word >= 1 << 31 else word


def threefry2x32(key: Tensor, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two words of Threefry-2x32 with 20 rounds for each counter (high, low), in int32.

    Args:
        key: (..., 2) int32.
        high: int32 counters, broadcast against the key.
        low: int32 counters, broadcast against the key.
    """
    schedule = (key[..., 0], key[..., 1], key[..., 0] ^ key[..., 1] ^ THREEFRY_PARITY)
    first, second = high + schedule[0], low + schedule[1]
    for group in range(5):
        for rotation in THREEFRY_ROTATIONS[group % 2]:
            first = first + second
            second = (second << rotation) | ((second >> (32 - rotation)) & ((1 << rotation) - 1))
            second = second ^ first
        first = first + schedule[(group + 1) % 3]
        second = second + schedule[(group + 2) % 3] + (group + 1)
    return first, second


def fold_in(key: Tensor, data: Tensor) -> Tensor:
    """Return the keys derived from `key` (..., 2) for the numbers in `data` (...), all int32."""
    return torch.stack(threefry2x32(key, torch.zeros_like(data), data), dim=-1)


def _mix_(word: Tensor) -> Tensor:
    """Mix each word in place."""
    first, second, third = MIXER_SHIFTS
    # `>>` on int32 copies the sign; the mask makes it a logical shift.
    word.bitwise_xor_((word >> first).bitwise_and_((1 << 32 - first) - 1)).mul_(
        _signed(MIXER_MULTIPLIERS[0])
    )
    word.bitwise_xor_((word >> second).bitwise_and_((1 << 32 - second) - 1)).mul_(
        _signed(MIXER_MULTIPLIERS[1])
    )
    return word.bitwise_xor_((word >> third).bitwise_and_((1 << 32 - third) - 1))


def dropout_keep(
    key: Sequence[int],
    shape: tuple[int, ...],
    rate: float,
    device: torch.device | None = None,
    *,
    rows: tuple[int, int] | None = None,
) -> Tensor:
    """Return which elements are kept, a boolean tensor of the shape.

    Args:
        key: two signed 32-bit words.
        shape: of the tensor to drop from.
        rate: share of the elements to drop.
        device: where the tensor lies.
        rows: (start, total) where the last axis but one holds a block of the rows of a whole: the
            block has the bits that the whole has there.
    """
    *lead, columns = shape
    per_row = (columns + 1) // 2
    count, threshold = math.prod(lead) * per_row, dropout_threshold(rate) - DROPOUT_LEVELS // 2
    keep = torch.empty(2 * count, dtype=torch.bool, device=device)
    for start in range(0, count, WORDS_PER_BLOCK):
        end = min(start + WORDS_PER_BLOCK, count)
        words = torch.arange(start, end, dtype=torch.int32, device=device)
        if rows is not None:
            first, total = rows
            block = lead[-1] * per_row
            words += words.div(block, rounding_mode="floor") * (total * per_row - block)
            words += first * per_row
        words = _mix_(_mix_(words.bitwise_xor_(key[0])).bitwise_xor_(key[1]))
        torch.ge(words.view(torch.int16), threshold, out=keep[2 * start : 2 * end])
    return keep.view(*lead, 2 * per_row)[..., :columns]


class Masks(NamedTuple):
    """The dropout of one call.

    Args:
        rate: share of the elements to drop.
        keys: two words for each place of the model.
        native: draw from torch's generator instead of the shared hash.
    """

    rate: float
    keys: list[list[int]]
    native: bool = False

    def drop(self, x: Tensor, place: DropoutPlace, layer: int, rows: Rows | None = None) -> Tensor:
        """Return x with elements dropped and the rest scaled up; see `Call.drop`."""
        if self.native:
            return functional.dropout(x, self.rate)
        key = self.keys[dropout_place(place, layer)]
        part = None
        if rows is not None and rows.size < x.shape[-1]:
            part = (rows.start, x.shape[-1])
        keep = dropout_keep(key, tuple(x.shape), self.rate, x.device, rows=part)
        return x * keep.to(x.dtype).mul_(dropout_scale(self.rate))


class Dropout(nn.Module):
    """Dropout at every place of a model, its masks a function of (seed, step, place) or the
    framework's own.

    Args:
        rate: share of the elements to drop.
        num_layers: blocks of the model.
        seed: of the masks.
        native: draw from torch's generator instead.
    """

    def __init__(
        self, rate: float, *, num_layers: int, seed: int = 0, native: bool = False
    ) -> None:
        super().__init__()
        self.rate = rate
        self.num_layers = num_layers
        self.seed = seed
        self.native = native
        self.next_step = 0
        self._first_step = -1
        self._keys: list[list[list[int]]] = []

    def begin(self, step: int | None) -> Masks | None:
        """Return the masks of a training step; None, which keeps everything, in evaluation.

        Args:
            step: number of the training step; the one after the last when None.
        """
        if not self.training or self.rate == 0.0:
            return None
        if step is None:
            step = self.next_step
            self.next_step = step + 1
        if self.native:
            return Masks(self.rate, [], native=True)
        block = step - step % STEPS_PER_DRAW
        if block != self._first_step:
            self._first_step, self._keys = block, self._draw(block)
        return Masks(self.rate, self._keys[step - block])

    def _draw(self, first_step: int) -> list[list[list[int]]]:
        key = torch.tensor(
            [_signed(int(word)) for word in derive(self.seed, DROPOUT)], dtype=torch.int32
        )
        steps = torch.arange(first_step, first_step + STEPS_PER_DRAW, dtype=torch.int64).to(
            torch.int32
        )
        places = torch.arange(count_places(self.num_layers), dtype=torch.int32)
        keys: list[list[list[int]]] = fold_in(
            fold_in(key, steps)[:, None], places.expand(len(steps), -1)
        ).tolist()
        return keys
