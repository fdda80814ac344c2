"""What a model is, what a training run is, and how both are computed: frozen records, valid from birth, to and from JSON."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from typing import Any, Final, Literal, TypeAlias

from pe_core.encodings import ENCODINGS, Encoding, encoding_from_json, encoding_to_json
from pe_core.errors import nearest, require_boolean, require_integer, require_number, require_one_of

LAYER_NORM_EPSILON: Final = 1e-5
# A masked logit: far below every real one, yet finite, so that a row without a key gives numbers and not NaN.
MASKED_LOGIT: Final = -1e30
# Added to the norm before the division, as `torch.nn.utils.clip_grad_norm_` does.
CLIP_EPSILON: Final = 1e-6

Pooling = Literal["mean", "max", "cls", "last", "attention"]
Framework = Literal["torch", "flax"]
Precision = Literal["float32", "float64", "bfloat16"]

FRAMEWORKS: Final = ("torch", "flax")
PRECISIONS: Final = ("float32", "float64", "bfloat16")
POOLINGS: Final = ("mean", "max", "cls", "last", "attention")


@dataclass(frozen=True)
class Features:
    """Inputs of real numbers, (batch, length, num_features)."""

    num_features: int

    def __post_init__(self) -> None:
        require_integer("num_features", self.num_features, 1)


@dataclass(frozen=True)
class Tokens:
    """Inputs of integers in 0 .. vocab_size - 1, (batch, length)."""

    vocab_size: int

    def __post_init__(self) -> None:
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
        pooling: "mean", "max", "cls" (a trained first step), "last" (the last real step) or "attention" (a trained query).
        dropout: rate on the input, the attention weights and inside and after both parts of a block, in multiples of 1/65536.

    Raises:
        TypeError, ValueError: one line with the rule and the value.
    """

    inputs: Inputs
    num_classes: int
    d_model: int = 64
    num_heads: int = 4
    num_layers: int = 2
    d_ff: int | None = None
    encodings: tuple[Encoding, ...] = ()
    norm: Literal["pre", "post"] = "pre"
    activation: Literal["gelu", "relu"] = "gelu"
    attention_bias: bool = False
    pooling: Pooling = "mean"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.inputs, Features | Tokens):
            raise TypeError(f"inputs must be Features(num_features) or Tokens(vocab_size), got {self.inputs!r}")
        require_integer("num_classes", self.num_classes, 2)
        require_integer("d_model", self.d_model, 1)
        require_integer("num_heads", self.num_heads, 1)
        require_integer("num_layers", self.num_layers, 1, 4096)
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        require_integer("d_ff", self.d_ff, 1)
        if self.d_model % self.num_heads:
            raise ValueError(
                f"d_model must be divisible by num_heads, got d_model={self.d_model} and num_heads={self.num_heads}; "
                f"the nearest that fits is d_model={max(1, round(self.d_model / self.num_heads)) * self.num_heads}"
            )
        object.__setattr__(self, "encodings", tuple(self.encodings))
        for encoding in self.encodings:
            if type(encoding) not in ENCODINGS.values():
                raise TypeError(f"encodings must be options such as LearnedTable(max_length=10), got {encoding!r}")
        require_one_of("norm", self.norm, ("pre", "post"))
        require_one_of("activation", self.activation, ("gelu", "relu"))
        require_boolean("attention_bias", self.attention_bias)
        require_one_of("pooling", self.pooling, POOLINGS)
        require_number("dropout", self.dropout, 0.0, 1.0, open_maximum=True)

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
        size = self.inputs.num_features if isinstance(self.inputs, Features) else self.inputs.vocab_size
        return record | {"inputs": {"kind": kind, "size": size}, "encodings": [encoding_to_json(item) for item in self.encodings]}

    @classmethod
    def from_json(cls, record: Any) -> ModelConfig:
        """Return the config of a dictionary.

        Raises:
            ValueError: not an object, an unknown or missing field, or a value that breaks a rule.
        """
        options = _checked(cls, record)
        inputs = options["inputs"]
        if not isinstance(inputs, dict) or set(inputs) != {"kind", "size"} or inputs["kind"] not in ("features", "tokens"):
            raise ValueError(f'inputs must be {{"kind": "features" or "tokens", "size": N}}, got {inputs!r}')
        options["inputs"] = (Features if inputs["kind"] == "features" else Tokens)(inputs["size"])
        encodings = options.get("encodings", [])
        if not isinstance(encodings, list):
            raise ValueError(f"encodings must be a list, got {encodings!r}")
        options["encodings"] = tuple(encoding_from_json(item) for item in encodings)
        return cls(**options)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a training run is, apart from its model and its data.

    Args:
        epochs: passes over the training part.
        batch_size: sequences in a step; the last batch of an epoch is filled up with rows of weight zero.
        learning_rate: the peak of the schedule.
        schedule: "constant", or "warmup_cosine": a linear rise over warmup_steps, then half a cosine to zero at the last step.
        warmup_steps: steps of the rise.
        weight_decay: decoupled decay of the linear weights; tables, norms and biases get none.
        beta1: decay rate of Adam's first moment.
        beta2: decay rate of Adam's second moment.
        epsilon: added to the root of the second moment.
        max_gradient_norm: the global norm to which gradients are clipped; None clips nothing.
        optimizer: "exact" (the same steps in both frameworks) or "stock" (`torch.optim.AdamW`, `optax.adamw` as they come).
        seed: of the initial weights, the order of the data and the dropout.
    """

    epochs: int = 5
    batch_size: int = 32
    learning_rate: float = 1e-3
    schedule: Literal["constant", "warmup_cosine"] = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    max_gradient_norm: float | None = 1.0
    optimizer: Literal["exact", "stock"] = "exact"
    seed: int = 0

    def __post_init__(self) -> None:
        require_integer("epochs", self.epochs, 1)
        require_integer("batch_size", self.batch_size, 1)
        require_number("learning_rate", self.learning_rate, 0.0)
        require_one_of("schedule", self.schedule, ("constant", "warmup_cosine"))
        require_integer("warmup_steps", self.warmup_steps, 0)
        if self.warmup_steps and self.schedule == "constant":
            raise ValueError(f"warmup_steps={self.warmup_steps} needs schedule='warmup_cosine', got schedule='constant'")
        require_number("weight_decay", self.weight_decay, 0.0)
        require_number("beta1", self.beta1, 0.0, 0.99999)
        require_number("beta2", self.beta2, 0.0, 0.99999)
        require_number("epsilon", self.epsilon, 0.0)
        if self.max_gradient_norm is not None:
            require_number("max_gradient_norm", self.max_gradient_norm, 0.0, open_minimum=True)
        require_one_of("optimizer", self.optimizer, ("exact", "stock"))
        require_integer("seed", self.seed, 0, (1 << 63) - 1)

    def to_json(self) -> dict[str, Any]:
        """Return the config as a dictionary for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, record: Any) -> TrainConfig:
        """Return the config of a dictionary; unknown fields and broken rules raise a ValueError."""
        return cls(**_checked(cls, record))


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a model is computed; not part of what it is, and not saved with it.

    Args:
        precision: "float32"; "float64", everything in double; "bfloat16", dense products in bfloat16 and all else in float32.
        dropout_rng: "shared", the same masks in both frameworks; "native", the framework's own.
    """

    precision: Precision = "float32"
    dropout_rng: Literal["shared", "native"] = "shared"

    def __post_init__(self) -> None:
        require_one_of("precision", self.precision, PRECISIONS)
        require_one_of("dropout_rng", self.dropout_rng, ("shared", "native"))

    @property
    def array_dtype(self) -> Literal["float32", "float64"]:
        """The dtype of weights, logits, norms and the residual stream."""
        return "float64" if self.precision == "float64" else "float32"


def _checked(kind: type, record: Any) -> dict[str, Any]:
    """Return the record as keyword arguments of a dataclass, all wrong names reported at once."""
    if not isinstance(record, dict):
        raise ValueError(f"{kind.__name__} must be a JSON object, got {json.dumps(record)[:80]}")
    known = {field.name: field for field in fields(kind)}
    problems = [f"unknown field {name!r} ({nearest(name, known)})" for name in record if name not in known]
    required = [name for name, field in known.items() if field.default is MISSING and field.default_factory is MISSING]
    problems += [f"missing field {name!r}" for name in required if name not in record]
    if problems:
        raise ValueError(f"{kind.__name__}: {'; '.join(problems)}")
    return dict(record)
