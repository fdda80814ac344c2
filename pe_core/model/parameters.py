"""From a config to every weight: its canonical name, shape, initial law and whether decay applies.

The order here is the order in a weights file. Linear weights are (out, in). Query, key and value
share one weight: its rows are all of query, then key, then value, and inside each, head by head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pe_core.encodings import Encoding, LearnedTable
from pe_core.model.config import Features, ModelConfig

Law = Literal["xavier_uniform", "normal", "zeros", "ones"]


@dataclass(frozen=True)
class Parameter:
    """One weight.

    Args:
        name: canonical name.
        shape: canonical shape.
        law: initial law; "normal" has standard deviation 0.02.
        decay: whether weight decay applies.
    """

    name: str
    shape: tuple[int, ...]
    law: Law
    decay: bool = False


def parameters(config: ModelConfig) -> tuple[Parameter, ...]:
    """Return every weight of a SequenceClassifier, in the order of the file."""
    return tuple(_classifier(config))


def encoder_parameters(config: ModelConfig) -> tuple[Parameter, ...]:
    """Return every weight of an Encoder: those of the classifier without pooling and head."""
    return tuple(
        item
        for item in _classifier(config)
        if item.name != "cls" and item.name.split(".")[0] not in ("pooling", "head")
    )


def encoding_parameters(encoding: Encoding, d_model: int) -> tuple[Parameter, ...]:
    """Return the weights of one encoding, named within it."""
    match encoding:
        case LearnedTable():
            return (Parameter("table", (encoding.max_length, d_model), "normal"),)
        case _:
            return ()


def _linear(
    name: str, out_features: int, in_features: int, *, bias: bool = True
) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (out_features, in_features), "xavier_uniform", decay=True)
    if bias:
        yield Parameter(f"{name}.bias", (out_features,), "zeros")


def _norm(name: str, width: int) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (width,), "ones")
    yield Parameter(f"{name}.bias", (width,), "zeros")


def _classifier(config: ModelConfig) -> Iterator[Parameter]:
    width = config.d_model
    if isinstance(config.inputs, Features):
        yield from _linear("input", width, config.inputs.num_features)
    else:
        yield Parameter("input.table", (config.inputs.vocab_size, width), "normal")
    for index, encoding in enumerate(config.encodings):
        for item in encoding_parameters(encoding, width):
            yield Parameter(f"encodings.{index}.{item.name}", item.shape, item.law, item.decay)
    if config.pooling == "cls":
        yield Parameter("cls", (width,), "normal")
    for n in range(config.num_layers):
        yield from _norm(f"layers.{n}.norm1", width)
        yield from _linear(
            f"layers.{n}.attention.qkv", 3 * width, width, bias=config.attention_bias
        )
        yield from _linear(f"layers.{n}.attention.out", width, width)
        yield from _norm(f"layers.{n}.norm2", width)
        yield from _linear(f"layers.{n}.feed_forward.up", config.width_inside, width)
        yield from _linear(f"layers.{n}.feed_forward.down", width, config.width_inside)
    if config.norm == "pre":
        yield from _norm("norm", width)
    if config.pooling == "attention":
        yield Parameter("pooling.query", (width,), "normal")
    yield from _linear("head", config.num_classes, width)
