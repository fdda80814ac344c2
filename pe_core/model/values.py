"""Which numbers a call of a model accepts, where they may be read: positions, segments, tokens and
rows. What shapes and kinds decide alone is in `inputs.py`.
"""

from __future__ import annotations

import math
from typing import NoReturn

from pe_core.errors import UserValueError


def require_positions_fit(max_length: int, lowest: float, highest: float) -> None:
    """Raise a UserValueError unless the positions lie in a table of max_length rows.

    Raises:
        ValueError: names the length that would be needed, the table's, and the remedies.
    """
    if lowest < 0:
        raise UserValueError(
            f"positions of a learned table must not be negative, got {lowest:g}; shift them so "
            "that the first is 0"
        )
    if not highest <= max_length - 1:
        if not highest < 1 << 31:
            raise UserValueError(
                f"positions of a learned table must be finite and below 2**31, got {highest}; "
                "correct them"
            )
        needed = math.ceil(highest) + 1
        raise UserValueError(
            f"a sequence of length {needed} does not fit the learned table of max_length "
            f"{max_length}; build the model with "
            f"LearnedTable(max_length={needed}), cut the sequences to {max_length} "
            "steps, take over_length='clip', 'wrap' or 'interpolate', or use Sinusoidal()"
        )


def require_positions_of_any_table(lowest: float, highest: float) -> None:
    """Raise a UserValueError unless the positions may be brought into a table by a policy."""
    require_positions_fit(1 << 31, lowest, highest)


def require_finite_position(bad: float) -> NoReturn:
    """Raise a UserValueError for a position of a real step that is not finite, or too large."""
    if math.isfinite(bad):
        raise UserValueError(
            f"positions must lie below 2**63, got {bad}; count them from a nearer origin"
        )
    raise UserValueError(
        f"positions must be finite, got {bad} at a real step; correct it, or mark the step as "
        "padding in the mask"
    )


def require_segment_fits(highest: int) -> None:
    """Raise a UserValueError unless a segment's number is one of int32."""
    if highest >= 1 << 31:
        raise UserValueError(
            f"segment_ids must lie below 2**31, got {highest}; number the segments of a row from 1"
        )


def require_num_segments(num_segments: int | None, highest: int | None) -> int:
    """Return the number of segments.

    Args:
        num_segments: as given.
        highest: of the numbers of segments; None where they cannot be read.

    Raises:
        UserValueError: it is needed and not given, or below the highest, or there is no segment.
    """
    if highest is not None:
        if highest < 1:
            raise UserValueError(
                f"segment_ids hold no segment, the highest is {highest}; number them from 1"
            )
        if num_segments is not None and num_segments < highest:
            raise UserValueError(
                f"segment_ids go up to {highest}, got num_segments={num_segments}; pass {highest}"
            )
        return highest if num_segments is None else num_segments
    if num_segments is None:
        raise UserValueError(
            "segment_ids are traced, so their highest value is unknown here; pass num_segments, "
            "the most segments in a row"
        )
    return num_segments


def require_tokens_fit(vocab_size: int, lowest: int, highest: int) -> None:
    """Raise a ValueError unless the tokens lie in the vocabulary."""
    if lowest < 0 or highest >= vocab_size:
        bad = lowest if lowest < 0 else highest
        raise UserValueError(
            f"token {bad} lies outside 0 .. {vocab_size - 1}; build the model with a larger "
            "vocab_size or map the token"
        )


def require_dropout_rows_fit(lowest: int, highest: int) -> None:
    """Raise one clear line unless rows of a larger batch lie in 0 .. 2**31 - 1."""
    for row in (lowest, highest):
        if not 0 <= row < 1 << 31:
            raise UserValueError(f"dropout_rows must lie in 0 .. 2**31 - 1, got {row}")
