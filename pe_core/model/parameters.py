"""From a config to every parameter: canonical name, shape, initial law, whether decay applies.

The order here is the order in a weights file. Linear weights are (out, in). Query, key and value
share one weight: its rows are all of query, then key, then value, and inside each, head by head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pe_core.encodings import EncodingOptions, Sizes
from pe_core.model.config import Features, ModelConfig
from pe_core.model.laws import Constant, Normal, Parameter, XavierUniform

# Embeddings and trained steps start small, as in BERT.
TABLE = Normal(0.02)


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


def encoding_parameters(
    encoding: EncodingOptions, sizes: Sizes, num_layers: int
) -> tuple[Parameter, ...]:
    """Return every parameter of one encoding in a model, named within it: `table`, or
    `layers.0.table` and so on where every layer has its own.
    """
    own = [replace(item, decay=encoding.weight_decay) for item in encoding.parameters(sizes)]
    if not encoding.per_layer:
        return tuple(own)
    return tuple(
        replace(item, name=f"layers.{n}.{item.name}") for n in range(num_layers) for item in own
    )


def attention_parameters(
    sizes: Sizes, encodings: Sequence[EncodingOptions], *, bias: bool
) -> tuple[Parameter, ...]:
    """Return the parameters of one attention layer and of the encodings that act in it, named
    within it.
    """
    return (
        *(
            replace(item, name=f"encodings.{index}.{item.name}")
            for index, encoding in enumerate(encodings)
            for item in encoding.parameters(sizes)
        ),
        *_attention("", sizes.d_model, bias=bias),
    )


def _linear(
    name: str, out_features: int, in_features: int, *, bias: bool = True
) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (out_features, in_features), XavierUniform(), decay=True)
    if bias:
        yield Parameter(f"{name}.bias", (out_features,), Constant(0.0))


def _attention(prefix: str, width: int, *, bias: bool) -> Iterator[Parameter]:
    yield from _linear(f"{prefix}qkv", 3 * width, width, bias=bias)
    yield from _linear(f"{prefix}out", width, width)


def _norm(name: str, width: int) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (width,), Constant(1.0))
    yield Parameter(f"{name}.bias", (width,), Constant(0.0))


def _classifier(config: ModelConfig) -> Iterator[Parameter]:
    width = config.d_model
    if isinstance(config.inputs, Features):
        yield from _linear("input", width, config.inputs.num_features)
    else:
        yield Parameter("input.table", (config.inputs.vocab_size, width), TABLE)
    for index, encoding in enumerate(config.encodings):
        for item in encoding_parameters(encoding, config.sizes, config.num_layers):
            yield replace(item, name=f"encodings.{index}.{item.name}")
    if config.pooling == "cls":
        yield Parameter("cls", (width,), TABLE)
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
        yield Parameter("pooling.query", (width,), TABLE)
    yield from _linear("head", config.num_classes, width)
