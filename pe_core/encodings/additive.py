"""Options of encodings that are added to the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal, get_args

from pe_core.encodings.options import AdditiveOptions, Layers, Sizes
from pe_core.errors import require_integer, require_number, require_one_of
from pe_core.model.laws import Normal, Parameter

Layout = Literal["interleaved", "half", "tensor2tensor"]
OverLength = Literal["error", "clip", "wrap", "interpolate"]
# What takes longer sequences.
POLICIES: Final = ("clip", "wrap", "interpolate")


@dataclass(frozen=True)
class LearnedTable(AdditiveOptions):
    """A trained vector per position, added to the steps; float positions read between two rows.

    Args:
        max_length: rows of the table; the longest sequence that it can encode by itself.
        layers: "first" adds it to the input, "all" again before every layer.
        over_length: what a position beyond the table gets: "error" refuses it, "clip" reads the
            last row, "wrap" begins again with the first, "interpolate" stretches the table over the
            sequence.
    """

    name: ClassVar[str] = "learned"
    paper: ClassVar[str] = "Gehring et al. 2017; Devlin et al. 2019"
    beyond: ClassVar[str] = "refused beyond max_length, or as over_length says"
    added: ClassVar[tuple[str, ...]] = ("over_length",)

    max_length: int
    layers: Layers = "first"
    over_length: OverLength = "error"

    def __post_init__(self) -> None:
        require_integer("max_length of a learned table", self.max_length, 1)
        require_one_of("layers", self.layers, ("first", "all"))
        require_one_of("over_length", self.over_length, get_args(OverLength))

    @property
    def length_limit(self) -> int | None:
        """The rows of the table; None where another policy than "error" takes any length."""
        return self.max_length if self.over_length == "error" else None

    def parameters(self, sizes: Sizes) -> tuple[Parameter, ...]:
        """Return the table, (max_length, d_model)."""
        return (Parameter("table", (self.max_length, sizes.d_model), Normal(0.02)),)


@dataclass(frozen=True)
class Sinusoidal(AdditiveOptions):
    """Sines and cosines of the position at geometrically spaced frequencies, added to the steps;
    any length, nothing to train.

    Args:
        base: ratio of the longest wavelength to the shortest, nearly.
        layout: "interleaved" (sine, cosine, sine, ...), "half" (all sines, then all cosines), or
            "tensor2tensor" (half, with the last frequency exactly 1/base).
        layers: "first" adds it to the input, "all" again before every layer.
    """

    name: ClassVar[str] = "sinusoidal"
    paper: ClassVar[str] = "Vaswani et al. 2017"

    base: float = 10000.0
    layout: Layout = "interleaved"
    layers: Layers = "first"

    def __post_init__(self) -> None:
        require_number("base of a sinusoidal encoding", self.base, 1.0)
        require_one_of("layout", self.layout, ("interleaved", "half", "tensor2tensor"))
        require_one_of("layers", self.layers, ("first", "all"))
