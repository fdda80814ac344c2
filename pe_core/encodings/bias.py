"""Options of encodings that add a bias to the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pe_core.encodings.options import LogitBiasOptions, Sizes
from pe_core.errors import UserValueError, require_boolean, require_integer
from pe_core.model.laws import Normal, Parameter


@dataclass(frozen=True)
class T5Bias(LogitBiasOptions):
    """A trained bias per head and bucket of offsets: near offsets have a bucket each, far ones
    share buckets that grow geometrically; steps before and after have buckets of their own.

    Args:
        num_buckets: buckets in all, an even number; half of them for steps after.
        max_distance: from this distance on, the last bucket is shared.
        per_layer: a table for every layer; one serves all otherwise, as published.
    """

    name: ClassVar[str] = "t5"
    paper: ClassVar[str] = "Raffel et al. 2020"
    beyond: ClassVar[str] = "the last bucket from max_distance on"

    num_buckets: int = 32
    max_distance: int = 128
    per_layer: bool = False

    def __post_init__(self) -> None:
        require_integer("num_buckets", self.num_buckets, 4, 1 << 16)
        require_integer("max_distance", self.max_distance, 2)
        require_boolean("per_layer", self.per_layer)
        if self.num_buckets % 2:
            raise UserValueError(
                f"num_buckets must be even, one half for each side, got {self.num_buckets}; "
                f"for example {self.num_buckets + 1}"
            )
        if self.max_distance <= self.num_buckets // 4:
            raise UserValueError(
                f"max_distance must exceed the {self.num_buckets // 4} distances with a bucket of "
                f"their own, got {self.max_distance}; raise it or lower num_buckets"
            )

    def parameters(self, sizes: Sizes) -> tuple[Parameter, ...]:
        """Return the table, (num_heads, num_buckets)."""
        return (Parameter("table", (sizes.num_heads, self.num_buckets), Normal(0.02)),)

    def boundaries(self) -> tuple[int, ...]:
        """Return the least distance of each bucket of one side but the first.

        The published rule takes a logarithm and rounds down; in integers it is exact:
        bucket e + t begins at the least n with n^m e^t >= e^m max_distance^t, where e buckets are
        of one distance each and m are wider.
        """
        half = self.num_buckets // 2
        exact = half // 2
        wider = half - exact
        found = list(range(1, exact + 1))
        for t in range(1, wider):
            n = found[-1]
            while n**wider * exact**t < exact**wider * self.max_distance**t:
                n += 1
            found.append(n)
        return tuple(found)
