"""What every encoding says about itself, and the four kinds by where an encoding acts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, Literal

from pe_core.errors import make_plain
from pe_core.model.laws import Parameter

Layers = Literal["first", "all"]


@dataclass(frozen=True)
class Sizes:
    """The widths of the model that an encoding acts in.

    Args:
        d_model: width of a step.
        num_heads: attention heads.
    """

    d_model: int
    num_heads: int = 1

    def __post_init__(self) -> None:
        make_plain(self)

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.d_model // self.num_heads


class EncodingOptions:
    """The options of an encoding: a frozen dataclass that derives from one of the four kinds below.

    Options know all about an encoding but its mathematics, which stands once in the reference and
    once in each backend.

    Attributes:
        name: in files and on the command line.
        paper: where the encoding comes from.
        directed: whether it can tell a step before from a step after.
        fractional: whether positions may be floating point; whole numbers are required otherwise.
        beyond: what happens to positions that training did not see.
        weight_decay: whether weight decay applies to its parameters, its group of the optimizer.
        added: fields that it had not from the start. Files leave their defaults out, so that what
            an earlier version wrote is the same model.
        per_layer: whether every layer has parameters of its own; one set serves all otherwise.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    directed: ClassVar[bool] = True
    fractional: ClassVar[bool] = True
    beyond: ClassVar[str] = "defined for any position"
    weight_decay: ClassVar[bool] = False
    added: ClassVar[tuple[str, ...]] = ()
    per_layer: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Have the numbers of NumPy made plain before an encoding checks its options, one of your
        own as well.
        """
        super().__init_subclass__(**options)
        check = cls.__dict__.get("__post_init__")
        if check is not None:

            @wraps(check)
            def plain_and_checked(self: EncodingOptions) -> None:
                make_plain(self)
                check(self)

            cls.__post_init__ = plain_and_checked  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        make_plain(self)

    @property
    def length_limit(self) -> int | None:
        """The longest sequence that it can encode; None for any length."""
        return None

    def parameters(self, sizes: Sizes) -> tuple[Parameter, ...]:
        """Return the parameters, named within the encoding: of one layer where `per_layer`."""
        return ()

    def factor(self, sizes: Sizes) -> float:
        """Return what the logit scale 1/sqrt(d_head) is multiplied by; factors multiply."""
        return 1.0

    def check(self, sizes: Sizes) -> None:
        """Raise a UserValueError where the options do not fit the sizes."""


class AdditiveOptions(EncodingOptions):
    """An encoding that changes the steps themselves, by adding to them.

    Attributes:
        layers: "first" acts on the input, "all" again before every layer.
    """

    layers: Layers = "first"

    def acts_before(self, layer: int) -> bool:
        """Return whether the encoding acts on the steps before a layer, counted from 0."""
        return layer == 0 or self.layers == "all"


class QueryKeyOptions(EncodingOptions):
    """An encoding that maps queries and keys before their product; at most one per model."""


class LogitBiasOptions(EncodingOptions):
    """An encoding that adds a bias to the logits, a function of two positions alone."""


class ContextualOptions(EncodingOptions):
    """An encoding that adds terms to the logits or the mixed values that read the content."""


KINDS = (AdditiveOptions, QueryKeyOptions, LogitBiasOptions, ContextualOptions)
