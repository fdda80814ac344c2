"""Positional encodings as layers, for this model or any other."""

from __future__ import annotations

from pe_core.encodings import (
    AdditiveOptions,
    ContextualOptions,
    EncodingOptions,
    LogitBiasOptions,
    QueryKeyOptions,
    Sizes,
    check_layer,
    register_options,
)
from pe_core.errors import UserTypeError
from pe_core.model.config import ComputeConfig
from pe_torch.encodings.additive import LearnedTableEncoding, SinusoidalEncoding
from pe_torch.encodings.bias import T5BiasEncoding
from pe_torch.encodings.contextual import ShawEncoding
from pe_torch.encodings.kinds import (
    Additive,
    Contextual,
    Encoding,
    LogitBias,
    PerLayer,
    QueryKey,
    Steps,
    Terms,
)
from pe_torch.encodings.rotary import RotaryEncoding

LAYERS: dict[type[EncodingOptions], type[Encoding]] = {
    layer.options_type: layer
    for layer in (
        LearnedTableEncoding,
        SinusoidalEncoding,
        RotaryEncoding,
        T5BiasEncoding,
        ShawEncoding,
    )
}

KINDS: dict[type[EncodingOptions], type[Encoding]] = {
    AdditiveOptions: Additive,
    QueryKeyOptions: QueryKey,
    LogitBiasOptions: LogitBias,
    ContextualOptions: Contextual,
}


def register(options: type[EncodingOptions], layer: type[Encoding]) -> None:
    """Make models of this backend compute an encoding of one's own.

    Args:
        options: the options class.
        layer: a subclass of `Additive`, `QueryKey`, `LogitBias` or `Contextual`, as the options
            are, whose `options_type` is that class.

    Raises:
        UserTypeError: the layer is of another kind than the options, or of none.
        UserValueError: the name is taken.
    """
    register_options(options)
    check_layer(options, layer, KINDS)
    LAYERS[options] = layer


def make_encoding(
    options: EncodingOptions,
    sizes: Sizes,
    *,
    num_layers: int = 1,
    seed: int | None = None,
    compute: ComputeConfig | None = None,
) -> Encoding | PerLayer:
    """Return the layer of an encoding's options, with one for every layer where each has its own.

    Raises:
        UserTypeError: the options are registered, but not with this backend.
    """
    if type(options) not in LAYERS:
        raise UserTypeError(
            f"encoding {options.name!r} has no layer in PyTorch; call pe_torch.register("
            f"{type(options).__name__}, LAYER) where the encoding is registered"
        )
    layer = LAYERS[type(options)]
    given = {name: getattr(sizes, name) for name in layer.takes}

    def make() -> Encoding:
        return layer(options, **given, seed=seed, compute=compute)

    return PerLayer([make() for _ in range(num_layers)]) if options.per_layer else make()


__all__ = [
    "Additive",
    "Contextual",
    "Encoding",
    "LearnedTableEncoding",
    "LogitBias",
    "PerLayer",
    "QueryKey",
    "RotaryEncoding",
    "ShawEncoding",
    "SinusoidalEncoding",
    "Steps",
    "T5BiasEncoding",
    "Terms",
    "make_encoding",
    "register",
]
