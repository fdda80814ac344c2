"""Positional encodings as layers, for this model or any other."""

from __future__ import annotations

from flax import nnx

from pe_core.encodings import EncodingOptions, Sizes, register_options
from pe_core.errors import UserTypeError
from pe_core.model.config import ComputeConfig
from pe_flax.encodings.additive import LearnedTableEncoding, SinusoidalEncoding
from pe_flax.encodings.bias import T5BiasEncoding
from pe_flax.encodings.contextual import ShawEncoding
from pe_flax.encodings.kinds import (
    Additive,
    Contextual,
    Encoding,
    LogitBias,
    PerLayer,
    QueryKey,
    Steps,
    Terms,
)
from pe_flax.encodings.rotary import RotaryEncoding

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


def register(options: type[EncodingOptions], layer: type[Encoding]) -> None:
    """Make models of this backend compute an encoding of one's own.

    Args:
        options: the options class.
        layer: a subclass of `Additive`, `QueryKey`, `LogitBias` or `Contextual` whose
            `options_type` is that class.

    Raises:
        UserTypeError, UserValueError: the layer is not one of these, or the name is taken.
    """
    register_options(options)
    known = (Additive, QueryKey, LogitBias, Contextual)
    if not isinstance(layer, type) or not issubclass(layer, known):
        kinds = ", ".join(kind.__name__ for kind in known)
        raise UserTypeError(f"a layer must derive from {kinds}, got {layer!r}")
    if getattr(layer, "options_type", None) is not options:
        raise UserTypeError(
            f"{layer.__name__}.options_type must be {options.__name__}, got "
            f"{getattr(layer, 'options_type', None)!r}; set it in the class"
        )
    LAYERS[options] = layer


def make_encoding(
    options: EncodingOptions,
    sizes: Sizes,
    *,
    num_layers: int = 1,
    seed: int | None = None,
    rngs: nnx.Rngs | None = None,
    compute: ComputeConfig | None = None,
) -> Encoding | PerLayer:
    """Return the layer of an encoding's options, with one for every layer where each has its own.

    Raises:
        UserTypeError: the options are registered, but not with this backend.
    """
    if type(options) not in LAYERS:
        raise UserTypeError(
            f"encoding {options.name!r} has no layer here; call pe_flax.register("
            f"{type(options).__name__}, its layer)"
        )
    layer = LAYERS[type(options)]
    given = {name: getattr(sizes, name) for name in layer.takes}

    def make() -> Encoding:
        return layer(options, **given, seed=seed, rngs=rngs, compute=compute)

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
