"""What a call of a model accepts, decided once for every framework from shapes and kinds of numbers
alone.

Kinds are NumPy's letters: "f" floating point, "i" or "u" integer, "b" boolean.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from pe_core.encodings import LearnedTable
from pe_core.errors import UserTypeError, UserValueError
from pe_core.model.config import Features, ModelConfig


class Described(NamedTuple):
    """The shape of an array and its dtype, as a kind and a name."""

    shape: tuple[int, ...]
    kind: str
    dtype: str


def check_call(
    config: ModelConfig,
    x: Described,
    mask: Described | None,
    positions: Described | None,
    segment_ids: Described | None,
) -> None:
    """Raise one clear line unless the arguments of a call fit the config and each other.

    Raises:
        ValueError: a wrong rank, size or an empty batch.
        TypeError: a wrong kind of numbers.
    """
    if isinstance(config.inputs, Features):
        if len(x.shape) != 3:
            raise UserValueError(
                f"x must have the three axes (batch, length, num_features), got shape {x.shape}"
            )
        if x.kind != "f":
            raise UserTypeError(
                f"x must hold floating-point features, got {x.dtype}; convert it to float32"
            )
        if x.shape[2] != config.inputs.num_features:
            raise UserValueError(
                f"x has {x.shape[2]} features, but the model takes "
                f"num_features={config.inputs.num_features}"
            )
    else:
        if len(x.shape) != 2:
            raise UserValueError(f"x must have the two axes (batch, length), got shape {x.shape}")
        if x.kind not in "iu":
            raise UserTypeError(f"x must hold integer tokens, got {x.dtype}; convert it to int32")
    batch, length = x.shape[:2]
    if batch == 0 or length == 0:
        raise UserValueError(
            f"x is empty, got shape {x.shape}; pass at least one sequence of one step"
        )
    if mask is not None:
        if mask.kind != "b":
            raise UserTypeError(
                f"mask must be boolean with True for real steps, got {mask.dtype}; convert it, "
                "as in mask != 0"
            )
        _check_steps("mask", mask.shape, batch, length)
    if segment_ids is not None:
        if segment_ids.kind not in "iu":
            raise UserTypeError(
                f"segment_ids must be integers with 0 for padding, got {segment_ids.dtype}; "
                "convert them to int32"
            )
        if config.pooling == "cls":
            raise UserValueError(
                "segment_ids need one pooled vector per segment, but pooling='cls' has one per "
                "row; use pooling='mean'"
            )
        _check_steps("segment_ids", segment_ids.shape, batch, length)
    if positions is not None:
        if positions.kind not in "iuf":
            raise UserTypeError(
                f"positions must be integers or floating point, got {positions.dtype}"
            )
        if positions.shape != (length,):
            _check_steps("positions", positions.shape, batch, length, also=f" or ({length},)")


def _check_steps(
    what: str, shape: tuple[int, ...], batch: int, length: int, also: str = ""
) -> None:
    if shape != (batch, length):
        raise UserValueError(
            f"{what} must have shape (batch, length) = ({batch}, {length}){also}, got {shape}"
        )


def implicit_positions_fit(encoding: LearnedTable, length: int) -> bool:
    """Return whether positions counted from zero within `length` steps all lie in the table."""
    return length <= encoding.max_length


def require_positions_fit(encoding: LearnedTable, lowest: float, highest: float) -> None:
    """Raise a ValueError unless the positions lie in the table.

    Raises:
        ValueError: names the length that would be needed, the table's, and the remedies.
    """
    if lowest < 0:
        raise UserValueError(
            f"positions of a learned table must not be negative, got {lowest:g}; shift them so "
            "that the first is 0"
        )
    if not highest <= encoding.max_length - 1:
        if not highest < 1 << 31:
            raise UserValueError(
                f"positions of a learned table must be finite and below 2**31, got {highest}; "
                "correct them"
            )
        needed = math.ceil(highest) + 1
        raise UserValueError(
            f"a sequence of length {needed} does not fit the learned table of max_length "
            f"{encoding.max_length}; build the model with "
            f"LearnedTable(max_length={needed}), cut the sequences to {encoding.max_length} "
            "steps, or use Sinusoidal()"
        )


def require_tokens_fit(vocab_size: int, lowest: int, highest: int) -> None:
    """Raise a ValueError unless the tokens lie in the vocabulary."""
    if lowest < 0 or highest >= vocab_size:
        bad = lowest if lowest < 0 else highest
        raise UserValueError(
            f"token {bad} lies outside 0 .. {vocab_size - 1}; build the model with a larger "
            "vocab_size or map the token"
        )


def require_num_segments(num_segments: int | None) -> int:
    """Return the number of segments; raise a ValueError where it is needed and not given."""
    if num_segments is None:
        raise UserValueError(
            "segment_ids are traced, so their highest value is unknown here; pass num_segments, "
            "the most segments in a row"
        )
    return num_segments
