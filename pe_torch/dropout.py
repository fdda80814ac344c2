"""The shared random numbers in torch: Threefry for keys, the keyed hash for dropout masks; see
`pe_core/model/random.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pe_core.model.dropout_places import DropoutPlace, count_places, dropout_place
from pe_core.model.inputs import check_native_rows
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
from pe_torch.positions import Rows, can_look

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
    key: Sequence[int] | Tensor,
    shape: Sequence[int],
    rate: float,
    device: torch.device | None = None,
    *,
    rows: tuple[int, int] | None = None,
    samples: Tensor | None = None,
) -> Tensor:
    """Return which elements are kept, a boolean tensor of the shape.

    Args:
        key: two signed 32-bit words.
        shape: of the tensor to drop from.
        rate: share of the elements to drop.
        device: where the tensor lies.
        rows: (start, total) where the last axis but one holds a block of the rows of a whole: the
            block has the bits that the whole has there.
        samples: (batch,) integers, where in a larger batch each entry of the first axis stands: it
            has the bits that it has there.
    """
    *lead, columns = shape
    per_row = (columns + 1) // 2
    count, threshold = math.prod(lead) * per_row, dropout_threshold(rate) - DROPOUT_LEVELS // 2
    keep = torch.empty(2 * count, dtype=torch.bool, device=device)
    ahead = None
    if samples is not None:
        ahead = samples.to(device, torch.int32) - torch.arange(
            len(samples), dtype=torch.int32, device=device
        )
    for start in range(0, count, WORDS_PER_BLOCK):
        end = min(start + WORDS_PER_BLOCK, count)
        words = torch.arange(start, end, dtype=torch.int32, device=device)
        if rows is not None or ahead is not None:
            words = _in_the_whole(words, lead, per_row, rows, ahead)
        words = _mix_(_mix_(words.bitwise_xor_(key[0])).bitwise_xor_(key[1]))
        torch.ge(words.view(torch.int16), threshold, out=keep[2 * start : 2 * end])
    return keep.view(*lead, 2 * per_row)[..., :columns]


def _in_the_whole(
    words: Tensor,
    lead: Sequence[int],
    per_row: int,
    rows: tuple[int, int] | None,
    ahead: Tensor | None,
) -> Tensor:
    """Return the numbers that the words of a part have in the whole."""
    # A batch of single vectors has one row a sample.
    size = lead[-1] if len(lead) > 1 else 1
    first, total = (0, size) if rows is None else rows
    found = words + (words.div(size * per_row, rounding_mode="floor") * (total - size) + first) * (
        per_row
    )
    if ahead is not None:
        of_one = math.prod(lead[1:]) * per_row
        sample = words.div(of_one, rounding_mode="floor")
        found += (ahead * (of_one // size * total))[sample]
    return found


@torch.library.custom_op(
    "pe_torch::dropout_keep",
    mutates_args=(),
    schema="(Tensor key, SymInt[] shape, float rate, SymInt start, SymInt total, Tensor? samples) "
    "-> Tensor",
)
def _keep(
    key: Tensor,
    shape: Sequence[int],
    rate: float,
    start: int,
    total: int,
    samples: Tensor | None,
) -> Tensor:
    """`dropout_keep` as one operation of a compiled graph, whose parts inductor would fuse for
    minutes.

    The key is a tensor here, so that one graph serves every step, and lies where the mask does;
    `total` is 0 for whole arrays.
    """
    # A look at a key on a GPU would wait for it.
    words = key.tolist() if key.device.type == "cpu" else key
    part = (start, total) if total else None
    kept = dropout_keep(words, shape, rate, key.device, rows=part, samples=samples)
    return kept.contiguous()


@_keep.register_fake
def _describe_keep(
    key: Tensor,
    shape: Sequence[int],
    rate: float,
    start: int,
    total: int,
    samples: Tensor | None,
) -> Tensor:
    return key.new_empty(shape, dtype=torch.bool)


@_keep.register_vmap
def _keep_each(
    info: Any, in_dims: Sequence[Any], key: Tensor, *arguments: Any
) -> tuple[Tensor, int]:
    *others, samples = arguments
    # Only keys and samples may differ.
    masks = [
        _keep(
            key if in_dims[0] is None else key.select(in_dims[0], n),
            *others,
            samples if in_dims[-1] is None else samples.select(in_dims[-1], n),
        )
        for n in range(info.batch_size)
    ]
    return torch.stack(masks), 0


@torch.library.custom_op(
    "pe_torch::dropout_keys",
    mutates_args=(),
    schema="(Tensor steps, SymInt[] key, SymInt places) -> Tensor",
)
def _keys_of_steps(steps: Tensor, key: Sequence[int], places: int) -> Tensor:
    """Return the keys of every place at these steps (...), (..., places, 2) int32."""
    words = torch.tensor(key, dtype=torch.int32, device=steps.device)
    numbers = torch.arange(places, dtype=torch.int32, device=steps.device)
    keys = fold_in(words, steps.to(torch.int32))
    return fold_in(keys[..., None, :], numbers.expand(*steps.shape, -1))


@_keys_of_steps.register_fake
def _describe_keys(steps: Tensor, key: Sequence[int], places: int) -> Tensor:
    return steps.new_empty((*steps.shape, places, 2), dtype=torch.int32)


@_keys_of_steps.register_vmap
def _keys_of_each(
    info: Any, in_dims: Sequence[Any], steps: Tensor, key: Sequence[int], places: int
) -> tuple[Tensor, int]:
    return _keys_of_steps(steps.movedim(in_dims[0], 0), key, places), 0


def _in_graph() -> bool:
    """Return whether torch.compile, torch.export or torch.jit.trace makes a graph of the call."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


class Masks(NamedTuple):
    """The dropout of one call.

    Args:
        rate: share of the elements to drop.
        keys: two words for each place of the model; an int32 tensor (places, 2) where they cannot
            be read, or not without waiting for a device.
        native: draw from torch's generator instead of the shared hash.
        samples: (batch,) integers, where in a larger batch each sequence stands.
    """

    rate: float
    keys: Sequence[Sequence[int]] | Tensor
    native: bool = False
    samples: Tensor | None = None

    def drop(self, x: Tensor, place: DropoutPlace, layer: int, rows: Rows | None = None) -> Tensor:
        """Return x with elements dropped and the rest scaled up; see `Call.drop`."""
        if self.native:
            return functional.dropout(x, self.rate)
        key = self.keys[dropout_place(place, layer)]
        part = None
        if rows is not None and rows.size < x.shape[-1]:
            part = (rows.start, x.shape[-1])
        if isinstance(key, Tensor):
            start, total = part or (0, 0)
            # torch.jit.trace has tensors for sizes, and a traced graph has one shape anyway.
            shape = x.shape if torch._C._get_tracing_state() is None else [int(n) for n in x.shape]
            keep = _keep(key, shape, self.rate, start, total, self.samples)
        else:
            keep = dropout_keep(
                key, tuple(x.shape), self.rate, x.device, rows=part, samples=self.samples
            )
        return x * keep.to(x.dtype).mul_(dropout_scale(self.rate))


class Dropout(nn.Module):
    """Dropout at every place of a model, its masks a function of (seed, step, place), or drawn from
    torch's generator.

    Args:
        rate: share of the elements to drop.
        num_layers: blocks of the model.
        seed: of the masks of steps.
        native: draw every mask with `torch.nn.functional.dropout`.
    """

    def __init__(
        self, rate: float, *, num_layers: int, seed: int = 0, native: bool = False
    ) -> None:
        super().__init__()
        self.rate = rate
        self.num_layers = num_layers
        self.native = native
        self._key = [_signed(int(word)) for word in derive(seed, DROPOUT)]
        self._first_step = -1
        self._keys: list[list[list[int]]] = []

    def begin(
        self,
        step: int | Tensor | None,
        samples: Tensor | None = None,
        device: torch.device | None = None,
    ) -> Masks | None:
        """Return the masks of a training step; None, which keeps everything, in evaluation.

        Args:
            step: number of the training step; None draws the keys from torch's generator, which
                `torch.manual_seed` governs and `torch.utils.checkpoint` restores.
            samples: (batch,) integers, where in a larger batch each sequence stands.
            device: whose generator.
        """
        if not self.training or self.rate == 0.0:
            return None
        if self.native:
            check_native_rows(samples)
            return Masks(self.rate, [], native=True)
        keys = self._random_keys(device) if step is None else self._step_keys(step)
        if isinstance(keys, Tensor):
            keys = keys.to(device)
        return Masks(self.rate, keys, samples=samples)

    def _random_keys(self, device: torch.device | None) -> Sequence[Sequence[int]] | Tensor:
        shape = (count_places(self.num_layers), 2)
        keys = torch.randint(-(1 << 31), 1 << 31, shape, device=device).to(torch.int32)
        # One look for all places, and none where it would wait.
        return keys.tolist() if can_look(keys) else keys

    def _step_keys(self, step: int | Tensor) -> Sequence[Sequence[int]] | Tensor:
        places = count_places(self.num_layers)
        if _in_graph() or (isinstance(step, Tensor) and not can_look(step)):
            # `torch.as_tensor` would make a graph for every number.
            number = step if isinstance(step, Tensor) else torch.full((), step)
            return _keys_of_steps(number, self._key, places)
        step = int(step)
        block = step - step % STEPS_PER_DRAW
        if block != self._first_step:
            steps = torch.arange(block, block + STEPS_PER_DRAW, dtype=torch.int64, device="cpu")
            self._first_step, self._keys = block, _keys_of_steps(steps, self._key, places).tolist()
        return self._keys[step - block]
