"""The options of each positional encoding, by where it acts."""

from pe_core.encodings.additive import LearnedTable, Sinusoidal
from pe_core.encodings.bias import T5Bias
from pe_core.encodings.contextual import Shaw
from pe_core.encodings.options import (
    KINDS,
    AdditiveOptions,
    ContextualOptions,
    EncodingOptions,
    LogitBiasOptions,
    QueryKeyOptions,
    Sizes,
)
from pe_core.encodings.registry import (
    ENCODINGS,
    as_encodings,
    check_encodings,
    check_layer,
    encoding_from_json,
    encoding_to_json,
    parse_encoding,
    register_options,
)
from pe_core.encodings.rotary import Rotary

for kind in (LearnedTable, Sinusoidal, Rotary, T5Bias, Shaw):
    register_options(kind)

__all__ = [
    "ENCODINGS",
    "KINDS",
    "AdditiveOptions",
    "ContextualOptions",
    "EncodingOptions",
    "LearnedTable",
    "LogitBiasOptions",
    "QueryKeyOptions",
    "Rotary",
    "Shaw",
    "Sinusoidal",
    "Sizes",
    "T5Bias",
    "as_encodings",
    "check_encodings",
    "check_layer",
    "encoding_from_json",
    "encoding_to_json",
    "parse_encoding",
    "register_options",
]
