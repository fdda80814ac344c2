"""Faults of the encodings that act in attention, each planted in both backends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pe_flax
import pe_flax.call
import pe_flax.encodings.contextual
import pe_flax.encodings.rotary
import pe_torch
import pe_torch.call
import pe_torch.encodings.contextual
import pe_torch.encodings.rotary
from parity_tests.faults.fault import Fault, Patch, around
from pe_core.encodings import T5Bias

LOGITS, MIXED = "layers.0.attention.logits", "layers.0.attention.mixed"
# Four of eight channels are rotated: in this order, each pairing takes the pairs of the other.
OTHER_PAIRS = np.array([0, 2, 1, 3, 4, 5, 6, 7], np.int32)


def _other_pairing(rotate: Any, layer: Any, x: Any, positions: Any) -> Any:
    return rotate(layer, x[..., OTHER_PAIRS], positions)[..., OTHER_PAIRS]


def _clockwise(sine_cosine: Any, *arguments: Any) -> Any:
    sine, cosine = sine_cosine(*arguments)
    return -sine, cosine


def _as_it_was(original: Any, *arguments: Any) -> Any:
    """Return the array among the arguments: nothing is done to it."""
    return next(item for item in arguments if hasattr(item, "dtype"))


def _query_minus_key(of: Any, layer: Any, offset: Any) -> Any:
    return of(layer, -offset)


def _bias_scaled(of: Any, layer: Any, offset: Any) -> Any:
    """The bias is divided by the root of d_head as the product of query and key is."""
    return of(layer, offset) * 8**-0.5


def _late_boundary(boundaries: Any, options: Any) -> Any:
    """The last bucket begins one distance late."""
    *others, last = boundaries(options)
    return (*others, last + 1)


def _next_row(offsets: Any, *arguments: Any) -> Any:
    return offsets(*arguments) + 1


def _no_mix(prepare: Any, layer: Any, *arguments: Any) -> Any:
    return prepare(layer, *arguments)._replace(mix=None)


def _first_set(for_layer: Any, every: Any, layer: int) -> Any:
    return for_layer(every, 0)


def _mix_undropped(package: Any) -> Patch:
    """The vectors of the values are mixed with the weights as they were before dropout."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Any] = []

        def drop(original: Any, call: Any, x: Any, place: str, *rest: Any) -> Any:
            if place == "attention_weights":
                seen.append(x)
            return original(call, x, place, *rest)

        def prepare(original: Any, layer: Any, *arguments: Any) -> Any:
            terms = original(layer, *arguments)
            return terms._replace(
                mix=lambda rows, weights, visible: terms.mix(rows, seen[-1], visible)
            )

        around(package.call.Call, "drop", drop)(monkeypatch)
        around(package.ShawEncoding, "_prepare", prepare)(monkeypatch)

    return patch


def _of_backend(backend: str, package: Any) -> list[Fault]:
    rotary, shaw = package.encodings.rotary, package.encodings.contextual
    in_relative = [
        (
            "rotary in the other pairing",
            around(package.RotaryEncoding, "map_query", _other_pairing),
        ),
        ("rotary clockwise", around(rotary, "sine_cosine", _clockwise)),
        ("rotary keys not rotated", around(package.RotaryEncoding, "map_key", _as_it_was)),
        ("T5 query minus key", around(package.T5BiasEncoding, "of", _query_minus_key)),
        ("T5 last bucket one late", around(T5Bias, "boundaries", _late_boundary)),
        ("T5 bias scaled", around(package.T5BiasEncoding, "of", _bias_scaled)),
    ]
    in_shaw = [
        ("Shaw one row further", LOGITS, around(shaw, "offsets", _next_row)),
        ("Shaw at steps without a position", LOGITS, around(shaw, "zero_unplaced", _as_it_was)),
        ("Shaw values forgotten", MIXED, around(package.ShawEncoding, "_prepare", _no_mix)),
        (
            "Shaw one set for all layers",
            "layers.1.attention.logits",
            around(package.encodings.PerLayer, "_for_layer", _first_set),
        ),
    ]
    return [
        *(
            Fault("encodings", name, backend, LOGITS, patch, config="relative")
            for name, patch in in_relative
        ),
        *(
            Fault("encodings", name, backend, place, patch, config="shaw")
            for name, place, patch in in_shaw
        ),
        Fault(
            "encodings",
            "Shaw values not dropped",
            backend,
            MIXED,
            _mix_undropped(package),
            config="dropout",
            dropout=True,
        ),
    ]


ENCODING_FAULTS = (*_of_backend("torch", pe_torch), *_of_backend("flax", pe_flax))
