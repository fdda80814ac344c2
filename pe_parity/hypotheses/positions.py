"""Mistakes in where the steps stand and in how an encoding is added."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import numpy as np

from pe_core.encodings import AdditiveOptions, EncodingOptions, Sinusoidal
from pe_parity.hypotheses.hypothesis import (
    Hypothesis,
    Places,
    edit,
    encoding_added,
    with_config,
)
from pe_parity.perturbed_reference import Edit, Moved, PerturbedReference

SHIFTS: Final = (1, -1, 2, -2, 3, -3)
BASES: Final = (100.0, 1000.0, 10000.0, 100000.0, 500000.0, 1000000.0)


def _columns(real: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.arange(real.shape[1]), real.shape)


# Where steps stand, from the right positions and the mask.
MOVED: Final[dict[str, Moved]] = {
    **{
        f"positions are off by {shift}: the first step has position {shift}, not 0": (
            lambda p, real, rows, shift=shift: p + shift  # type: ignore[misc]
        )
        for shift in SHIFTS
    },
    "positions are columns: padding in front of a step is counted": lambda p, real, rows: _columns(
        real
    ),
    "positions start at the other end: the last real step has position 0": lambda p, real, rows: (
        np.maximum(real.sum(axis=1, keepdims=True) - 1 - p, 0)
    ),
    "positions start at the other end: the last column has position 0": lambda p, real, rows: (
        real.shape[1] - 1 - _columns(real)
    ),
    "positions run to the end of the padded length: the last real step has the last": (
        lambda p, real, rows: p + real.shape[1] - real.sum(axis=1, keepdims=True)
    ),
    "positions count the sequences of the batch, not the steps": lambda p, real, rows: (
        np.broadcast_to(rows[:, None], real.shape)
    ),
    "every step has position 0": lambda p, real, rows: 0 * p,
    "every step has position 1": lambda p, real, rows: 0 * p + 1,
    "positions are doubled": lambda p, real, rows: 2 * p,
}


def positions(at: Places) -> Iterator[Hypothesis]:
    """Yield other positions, other options of the encodings, and other ways of adding them."""
    variant = at.variant
    encodings = variant.config.encodings
    if encodings:
        for text, moved in MOVED.items():
            yield Hypothesis(text, partial(_placed, moved))
        yield with_config("no positional encoding is added", encodings=())
    for index, encoding in enumerate(encodings):
        label = f"encodings.{index} ({encoding.name})"
        for option, value in _other_choices(encoding):
            text = f"{label} has {option} {value!r}, not {getattr(encoding, option)!r}"
            other: Any = replace(encoding, **{option: value})  # type: ignore[type-var]
            yield Hypothesis(text, partial(_with_encoding, encoding, other))
        if len(encodings) > 1:
            yield Hypothesis(f"{label} is missing", partial(_without_encoding, index))
    root = math.sqrt(variant.config.d_model)
    text = (
        "the input is multiplied by sqrt(d_model) before the encoding is added (Vaswani et "
        "al. 2017, section 3.4)"
    )
    for seen in (True, False):
        yield edit(text, Edit.of("input", lambda x: root * x, seen=seen))
    if any(isinstance(one, AdditiveOptions) and one.acts_before(0) for one in encodings):
        yield from _ways(at, root)
    for n, encoding in enumerate(encodings):
        if isinstance(encoding, Sinusoidal) and encoding.acts_before(0):
            yield from _sinusoids(variant, n, encoding)


def _placed(moved: Moved, variant: PerturbedReference) -> PerturbedReference:
    return replace(variant, moved=moved)


def _with_encoding(
    encoding: EncodingOptions, other: EncodingOptions, variant: PerturbedReference
) -> PerturbedReference:
    encodings = tuple(other if one is encoding else one for one in variant.config.encodings)
    return replace(variant, config=replace(variant.config, encodings=encodings))


def _without_encoding(index: int, variant: PerturbedReference) -> PerturbedReference:
    """Leave an encoding out; the weights of those behind it move up."""
    encodings = [*variant.config.encodings]
    weights: dict[str, np.ndarray] = {}
    for name, array in variant.weights.items():
        head, _, rest = name.partition(".")
        number, _, inside = rest.partition(".")
        if head != "encodings" or int(number) < index:
            weights[name] = array
        elif int(number) > index:
            weights[f"{head}.{int(number) - 1}.{inside}"] = array
    kept = (*encodings[:index], *encodings[index + 1 :])
    return replace(variant, config=replace(variant.config, encodings=kept), weights=weights)


def _other_choices(encoding: EncodingOptions) -> Iterator[tuple[str, Any]]:
    """Yield every option that is a choice of names, with each name that was not chosen, and other
    bases.
    """
    for option, hint in get_type_hints(type(encoding)).items():
        if get_origin(hint) is Literal:
            for value in get_args(hint):
                if value != getattr(encoding, option):
                    yield option, value
        elif option == "base":
            for base in BASES:
                if base != encoding.base:  # type: ignore[attr-defined]
                    yield option, base


def _ways(at: Places, root: float) -> Iterator[Hypothesis]:
    """Yield what may be made of the steps and their encoding other than their sum."""
    variant = at.variant
    ways: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "the encoding is multiplied with the steps, not added": lambda x, e: x * e,
        "the steps are multiplied by one plus the encoding, which is not added": lambda x, e: (
            x * (1.0 + e)
        ),
        "the encoding is added twice": lambda x, e: x + 2.0 * e,
        "the encoding is subtracted": lambda x, e: x - e,
        "the encoding takes the place of the input": lambda x, e: e,
        "the sum of input and encoding is multiplied by sqrt(d_model)": lambda x, e: root * (x + e),
        "the encoding is multiplied by sqrt(d_model)": lambda x, e: x + root * e,
        "the encoding is divided by sqrt(d_model)": lambda x, e: x + e / root,
        "the sum of input and encoding is halved": lambda x, e: 0.5 * (x + e),
    }
    for text, way in ways.items():
        yield edit(text, Edit("encoding", partial(_way, way)))
    without = Edit("encoding", _without)
    for text, where in {
        "the encoding is added after norm1 of the first layer, to what attention reads": (
            "layers.0.norm1"
        ),
        "the encoding is added after norm1 of every layer, to what attention reads": "norm1",
        "the encoding is added after the last norm, not to the input": "norm",
        "the encoding is added after the first layer, not to the input": "layers.0.output",
    }.items():
        yield from at.reading_padding(edit(text, without, Edit(where, _with)))
    text = "the encoding is added after norm1 of the first layer, to what its residual carries, too"
    if variant.config.norm == "pre":
        yield from at.reading_padding(
            edit(
                text,
                without,
                Edit("layers.0.norm1", _with),
                Edit("layers.0.attention", _normed, step="residual"),
            ),
        )
    if "cls" in variant.weights:
        moved = partial(_placed, lambda p, real, rows: p + 1)
        front = Edit("encoding", partial(_fronted, variant))
        text = "the encoding counts the cls step: it has position 0, the first step position 1"
        yield Hypothesis(text, lambda variant: moved(variant).edited(front))


def _way(way: Any, run: Any, encoded: np.ndarray) -> np.ndarray:
    found: np.ndarray = way(*encoding_added(run, encoded))
    return found


def _without(run: Any, encoded: np.ndarray) -> np.ndarray:
    before, run.added = encoding_added(run, encoded)
    return before


def _with(run: Any, x: np.ndarray) -> np.ndarray:
    found: np.ndarray = x + run.added
    return found


def _normed(run: Any, usual: Any, name: str, state: np.ndarray, branch: np.ndarray) -> np.ndarray:
    found: np.ndarray = run.values.get("layers.0.norm1", state) + branch
    return found


def _fronted(variant: PerturbedReference, run: Any, encoded: np.ndarray) -> np.ndarray:
    """Add the encoding of position 0 to the trained step in front."""
    zero = replace(
        variant,
        moved=lambda p, real, rows: 0 * p,
        weights={**variant.weights},
        edits=(),
        padding=None,
    )
    taps = zero.trace("encoding")
    first = (taps["encoding"][:, 1] - taps["input"][:, 0])[:1]
    return np.concatenate([encoded[:, :1] + first[:, None], encoded[:, 1:]], axis=1)


def _sinusoids(
    variant: PerturbedReference, index: int, options: Sinusoidal
) -> Iterator[Hypothesis]:
    """Yield sinusoids with other frequencies or another order of sine and cosine."""
    width = variant.config.d_model
    columns = np.arange(width)
    even = columns % 2 == 0 if options.layout == "interleaved" else columns < (width + 1) // 2
    k = columns // 2 if options.layout == "interleaved" else columns % ((width + 1) // 2)
    usual = options.base ** (-2.0 * k / width)
    laws: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "has sine and cosine exchanged": (usual, ~even),
        "takes the frequencies of 2i for column i: the pair's number was meant": (
            options.base ** (-2.0 * columns / width),
            even,
        ),
        "takes the frequencies of i for column i, so cosine differs from its sine": (
            options.base ** (-1.0 * columns / width),
            even,
        ),
        "takes the frequencies base^(-k/d_model), not base^(-2k/d_model)": (
            options.base ** (-1.0 * k / width),
            even,
        ),
        "takes the frequencies base^(-4k/d_model), not base^(-2k/d_model)": (
            options.base ** (-4.0 * k / width),
            even,
        ),
        "multiplies by base^(2k/d_model), not by its inverse": (1.0 / usual, even),
        "has sines only": (usual, np.ones(width, bool)),
    }
    for text, (frequencies, sines) in laws.items():
        compute = partial(_sinusoid, usual, frequencies, even, sines)
        yield edit(f"encodings.{index} (sinusoidal) {text}", Edit("encoding", compute))


def _sinusoid(
    usual: np.ndarray,
    frequencies: np.ndarray,
    even: np.ndarray,
    sines: np.ndarray,
    run: Any,
    encoded: np.ndarray,
) -> np.ndarray:
    positions = run.variant.positions()[..., None].astype(np.float64)

    def waves(frequencies: np.ndarray, sines: np.ndarray) -> np.ndarray:
        angles = positions * frequencies
        return np.where(sines, np.sin(angles), np.cos(angles))

    ahead = encoded.shape[1] - positions.shape[1]
    change = waves(frequencies, sines) - waves(usual, even)
    return encoded + np.pad(change, ((0, 0), (ahead, 0), (0, 0)))
