"""Options of encodings whose terms read the content of the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pe_core.encodings.options import ContextualOptions, Sizes
from pe_core.errors import require_boolean, require_integer
from pe_core.model.laws import Normal, Parameter


@dataclass(frozen=True)
class Shaw(ContextualOptions):
    """Trained vectors per clipped offset, added to the keys and to the values that a query sees.

    Args:
        max_distance: offsets are clipped to -max_distance .. max_distance.
        values: add vectors to the values too, not to the keys alone.
        per_layer: vectors for every layer; one set serves all otherwise.
    """

    name: ClassVar[str] = "shaw"
    paper: ClassVar[str] = "Shaw et al. 2018"
    fractional: ClassVar[bool] = False
    beyond: ClassVar[str] = "clipped at max_distance"

    max_distance: int = 16
    values: bool = True
    per_layer: bool = True

    def __post_init__(self) -> None:
        require_integer("max_distance", self.max_distance, 1, 1 << 16)
        require_boolean("values", self.values)
        require_boolean("per_layer", self.per_layer)

    def parameters(self, sizes: Sizes) -> tuple[Parameter, ...]:
        """Return the vectors of the keys and of the values, (2 max_distance + 1, d_head) each."""
        shape = (2 * self.max_distance + 1, sizes.d_head)
        names = ("keys", "values") if self.values else ("keys",)
        return tuple(Parameter(name, shape, Normal(0.02)) for name in names)
