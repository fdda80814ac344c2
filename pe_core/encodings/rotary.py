"""Options of encodings that map queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pe_core.encodings.options import QueryKeyOptions, Sizes
from pe_core.errors import UserValueError, require_number, require_one_of

Pairing = Literal["interleaved", "half"]


@dataclass(frozen=True)
class Rotary(QueryKeyOptions):
    """Rotation of pairs of channels of queries and keys by angles proportional to the position
    (RoPE): logits depend on the offset of two steps alone. Nothing to train.

    Args:
        base: ratio of the longest wavelength to the shortest, nearly.
        pairing: "interleaved" pairs channels 2k and 2k + 1, "half" pairs k and k + d/2.
        fraction: share of a head's channels that are rotated, from the first on; the rest passes.
    """

    name: ClassVar[str] = "rotary"
    paper: ClassVar[str] = "Su et al. 2021"

    base: float = 10000.0
    pairing: Pairing = "interleaved"
    fraction: float = 1.0

    def __post_init__(self) -> None:
        require_number("base of a rotary encoding", self.base, 1.0)
        require_one_of("pairing", self.pairing, ("interleaved", "half"))
        require_number("fraction", self.fraction, 0.0, 1.0, open_minimum=True)

    def rotated(self, sizes: Sizes) -> int:
        """Return how many channels of a head are rotated."""
        return int(self.fraction * sizes.d_head)

    def check(self, sizes: Sizes) -> None:
        """Raise a UserValueError unless a positive, even number of channels is rotated."""
        rotated = self.rotated(sizes)
        if rotated < 2 or rotated % 2:
            raise UserValueError(
                f"a rotary encoding rotates an even number of channels, got {rotated} (fraction "
                f"{self.fraction:g} of d_head={sizes.d_head}); choose another d_model, num_heads "
                "or fraction"
            )
