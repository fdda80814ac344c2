"""What a model is and how it is computed: frozen records, checked when made, to and from JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, TypeAlias

from pe_core.encodings import (
    EncodingOptions,
    Sizes,
    as_encodings,
    check_encodings,
    encoding_from_json,
    encoding_to_json,
)
from pe_core.errors import (
    UserTypeError,
    UserValueError,
    make_plain,
    require_boolean,
    require_fields,
    require_integer,
    require_number,
    require_one_of,
)

LAYER_NORM_EPSILON: Final = 1e-5
# A masked logit: far below every real one, yet finite, so that a row without a key gives numbers
# and not NaN.
MASKED_LOGIT: Final = -1e30

Pooling = Literal["mean", "max", "cls", "last", "attention"]
Precision = Literal["float32", "float64", "bfloat16"]

PRECISIONS: Final = ("float32", "float64", "bfloat16")
POOLINGS: Final = ("mean", "max", "cls", "last", "attention")


@dataclass(frozen=True)
class Features:
    """Inputs of real numbers, (batch, length, num_features)."""

    num_features: int

    def __post_init__(self) -> None:
        make_plain(self)
        require_integer("num_features", self.num_features, 1)


@dataclass(frozen=True)
class Tokens:
    """Inputs of integers in 0 .. vocab_size - 1, (batch, length)."""

    vocab_size: int

    def __post_init__(self) -> None:
        make_plain(self)
        require_integer("vocab_size", self.vocab_size, 1)


Inputs: TypeAlias = Features | Tokens


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a model is; saved with its weights.

    Args:
        inputs: `Features(num_features)` or `Tokens(vocab_size)`.
        num_classes: classes of the head.
        d_model: width of a step.
        num_heads: attention heads; divides d_model.
        num_layers: encoder blocks.
        d_ff: width inside the feed-forward part; four times d_model when None.
        encodings: positional encodings, in order; () is the model without positions.
        norm: "pre" normalises what enters a part of a block, "post" what leaves it.
        activation: "gelu" (the exact one, by the error function) or "relu".
        attention_bias: biases on query, key and value.
        pooling: "mean", "max", "cls" (a trained first step), "last" (the last real step) or
            "attention" (a trained query).
        dropout: rate on the input, the attention weights and inside and after both parts of a
            block, in multiples of 1/65536.

    Raises:
        TypeError, ValueError: one line with the rule and the value.
    """

    inputs: Inputs
    num_classes: int
    d_model: int = 64
    num_heads: int = 4
    num_layers: int = 2
    d_ff: int | None = None
    encodings: tuple[EncodingOptions, ...] = ()
    norm: Literal["pre", "post"] = "pre"
    activation: Literal["gelu", "relu"] = "gelu"
    attention_bias: bool = False
    pooling: Pooling = "mean"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        make_plain(self)
        if not isinstance(self.inputs, Features | Tokens):
            raise UserTypeError(
                f"inputs must be Features(num_features) or Tokens(vocab_size), got {self.inputs!r}"
            )
        require_integer("num_classes", self.num_classes, 2)
        require_integer("d_model", self.d_model, 1)
        require_integer("num_heads", self.num_heads, 1)
        require_integer("num_layers", self.num_layers, 1, 4096)
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        require_integer("d_ff", self.d_ff, 1)
        if self.d_model % self.num_heads:
            raise UserValueError(
                f"d_model must be divisible by num_heads, got d_model={self.d_model} and "
                f"num_heads={self.num_heads}; "
                "the nearest that fits is "
                f"d_model={max(1, round(self.d_model / self.num_heads)) * self.num_heads}"
            )
        object.__setattr__(self, "encodings", as_encodings(self.encodings))
        check_encodings(self.encodings, self.sizes)
        require_one_of("norm", self.norm, ("pre", "post"))
        require_one_of("activation", self.activation, ("gelu", "relu"))
        require_boolean("attention_bias", self.attention_bias)
        require_one_of("pooling", self.pooling, POOLINGS)
        require_number("dropout", self.dropout, 0.0, 1.0, open_maximum=True)

    @property
    def sizes(self) -> Sizes:
        """The widths that an encoding acts in."""
        return Sizes(self.d_model, self.num_heads)

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.d_model // self.num_heads

    @property
    def width_inside(self) -> int:
        """Width inside the feed-forward part, d_ff with its default filled in."""
        assert self.d_ff is not None
        return self.d_ff

    def to_json(self) -> dict[str, Any]:
        """Return the config as a dictionary for JSON."""
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        kind = "features" if isinstance(self.inputs, Features) else "tokens"
        size = (
            self.inputs.num_features
            if isinstance(self.inputs, Features)
            else self.inputs.vocab_size
        )
        return record | {
            "inputs": {"kind": kind, "size": size},
            "encodings": [encoding_to_json(item) for item in self.encodings],
        }

    @classmethod
    def from_json(cls, record: Any) -> ModelConfig:
        """Return the config of a dictionary.

        Raises:
            ValueError: not an object, an unknown or missing field, or a value that breaks a rule.
        """
        options = require_fields(cls, record)
        inputs = options["inputs"]
        if (
            not isinstance(inputs, dict)
            or set(inputs) != {"kind", "size"}
            or inputs["kind"] not in ("features", "tokens")
        ):
            raise UserValueError(
                f'inputs must be {{"kind": "features" or "tokens", "size": N}}, got {inputs!r}'
            )
        options["inputs"] = (Features if inputs["kind"] == "features" else Tokens)(inputs["size"])
        encodings = options.get("encodings", [])
        if not isinstance(encodings, list):
            raise UserValueError(f"encodings must be a list, got {encodings!r}")
        options["encodings"] = tuple(encoding_from_json(item) for item in encodings)
        return cls(**options)


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a model is computed; not part of what it is, and not saved with it.

    Args:
        precision: "float32"; "float64", everything in double; "bfloat16", dense products in
            bfloat16 and all else in float32.
        dropout_rng: "shared", the same masks in both frameworks; "native", the framework's own.
        rows_per_block: query rows that attention computes at a time, which bounds its memory; the
            backward pass computes each block again. All at once when None.
    """

    precision: Precision = "float32"
    dropout_rng: Literal["shared", "native"] = "shared"
    rows_per_block: int | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        require_one_of("precision", self.precision, PRECISIONS)
        require_one_of("dropout_rng", self.dropout_rng, ("shared", "native"))
        if self.rows_per_block is not None:
            require_integer("rows_per_block", self.rows_per_block, 1)

    def to_json(self) -> dict[str, Any]:
        """Return the config as a dictionary for JSON, without what was left open."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def array_dtype(self) -> Literal["float32", "float64"]:
        """The dtype of weights, logits, norms and the residual stream."""
        return "float64" if self.precision == "float64" else "float32"
