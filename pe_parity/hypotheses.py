"""Mistakes that ports make, each as a variant of the model to compare a trace with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import numpy as np

from pe_core.encodings import EncodingOptions
from pe_core.model.config import LAYER_NORM_EPSILON, ModelConfig
from pe_core.model.positions import resolve_positions
from pe_parity.padding import part
from pe_parity.perturbed_reference import Change, Edit, PerturbedReference, normalised
from pe_parity.rounding import FORMATS

# Where another epsilon comes from; the last stands for all that have no effect.
EPSILONS: Final = {
    1e-6: "1e-06, the default of Flax",
    1e-3: "0.001, the default of Keras",
    1e-12: "1e-12, as in BERT, or another far below every variance",
}
SHIFTS: Final = (1, -1, 2, -2, 3, -3)
# Hendrycks and Gimpel 2016, section 2: the two approximations of GELU.
TANH_FACTOR: Final = 0.044715
SIGMOID_FACTOR: Final = 1.702


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A mistake and the model that makes it.

    Args:
        text: what is wrong, as a sentence without its full stop.
        variant: the model.
        followed: whether the variant also gives the names after the first difference exactly.
    """

    text: str
    variant: PerturbedReference
    followed: bool = True


def hypotheses(variant: PerturbedReference, name: str) -> Iterator[Hypothesis]:
    """Yield every known mistake on top of those that a variant already makes.

    Args:
        variant: the model so far.
        name: the tap where it goes wrong; mistakes in one layer alone are tried in its layer.
    """
    layer = name.removesuffix(part(name))
    yield from _norms(variant)
    yield from _activations(variant)
    yield from _masks(variant)
    yield from _positions(variant)
    yield from _heads(variant)
    yield from _dense(variant, layer)
    yield from _packed(variant, layer)
    yield from _configs(variant)
    for label, rounded in FORMATS.items():
        yield Hypothesis(
            f"dense products take their operands in {label}",
            replace(variant, rounding=rounded),
            followed=False,
        )


def _norms(variant: PerturbedReference) -> Iterator[Hypothesis]:
    def hypothesis(text: str, scaled: Change) -> Hypothesis:
        return Hypothesis(f"LayerNorm {text}", replace(variant, scaled=scaled))

    for epsilon, origin in EPSILONS.items():
        # The value is bound here: a closure would see the last one.
        yield hypothesis(
            f"has epsilon {origin}, not {LAYER_NORM_EPSILON:g}",
            lambda x, epsilon=epsilon: normalised(x, epsilon=epsilon),  # type: ignore[misc]
        )
    yield hypothesis(
        "adds epsilon to the standard deviation, not under the root",
        lambda x: normalised(x, outside=True),
    )
    yield hypothesis(
        "divides the variance by one less than the width", lambda x: normalised(x, ddof=1)
    )
    yield hypothesis(
        "does not subtract the mean, as RMSNorm", lambda x: normalised(x, centre=False)
    )
    if variant.config.norm == "pre":
        yield Hypothesis(
            "the blocks normalise the output of a sublayer (post-norm), not its input",
            _config(variant, norm="post"),
        )
    else:
        final = {
            f"norm.{kind}": np.full(variant.config.d_model, value)
            for kind, value in (("weight", 1.0), ("bias", 0.0))
        }
        pre = replace(_config(variant, norm="pre"), weights={**variant.weights, **final})
        yield Hypothesis(
            "the blocks normalise the input of a sublayer (pre-norm), not its output", pre
        )


def _activations(variant: PerturbedReference) -> Iterator[Hypothesis]:
    known: dict[str, Change] = {
        "the tanh approximation of GELU": lambda x: (
            0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + TANH_FACTOR * x**3)))
        ),
        "the sigmoid approximation of GELU, x sigmoid(1.702 x)": lambda x: (
            x * _sigmoid(SIGMOID_FACTOR * x)
        ),
        "SiLU, x sigmoid(x)": lambda x: x * _sigmoid(x),
        "nothing at all": lambda x: x,
    }
    due = "ReLU" if variant.config.activation == "relu" else "the exact GELU"
    for label, activation in known.items():
        yield Hypothesis(
            f"the activation is {label}, not {due}", replace(variant, activation=activation)
        )
    other = "gelu" if variant.config.activation == "relu" else "relu"
    found = "the exact GELU" if other == "gelu" else "ReLU"
    yield Hypothesis(
        f"the activation is {found}, not {due}",
        replace(_config(variant, activation=other), activation=None),
    )


def _masks(variant: PerturbedReference) -> Iterator[Hypothesis]:
    if variant.mask is not None:
        yield Hypothesis(
            "the mask of attention is inverted: padding is seen, real steps are not",
            replace(variant, allowed=np.logical_not),
        )
        yield Hypothesis(
            "attention ignores the mask: padding is seen too",
            replace(variant, allowed=lambda allowed: None),
        )
        yield Hypothesis(
            "pooling ignores the mask: padding is pooled too", replace(variant, pools_padding=True)
        )
        both = replace(variant, allowed=lambda allowed: None, pools_padding=True)
        yield Hypothesis(
            "attention and pooling ignore the mask: padding is seen and pooled too", both
        )


def _positions(variant: PerturbedReference) -> Iterator[Hypothesis]:
    counted = resolve_positions(variant.inputs.shape[1], None, variant.mask, None)
    for shift in SHIFTS if variant.config.encodings else ():
        positions = counted + shift
        for encoding in variant.config.encodings:
            limit = encoding.length_limit
            if limit is not None:
                # An index past the end stops at the end, as jax has it; one before the start counts
                # from the end.
                positions = np.where(
                    positions < 0, positions % limit, np.minimum(positions, limit - 1)
                )
        yield Hypothesis(
            f"positions are off by {shift}: the first step has position {shift}, not 0",
            replace(variant, positions=positions),
        )


def _heads(variant: PerturbedReference) -> Iterator[Hypothesis]:
    heads, width = variant.config.num_heads, variant.config.d_head
    parts = ("attention.query", "attention.key", "attention.value")

    def interleaved(x: np.ndarray) -> np.ndarray:
        return x.transpose(0, 2, 1, 3).reshape(len(x), -1, width, heads).transpose(0, 3, 1, 2)

    def split_untransposed(x: np.ndarray) -> np.ndarray:
        return x.transpose(0, 2, 1, 3).reshape(x.shape)

    def merged_untransposed(x: np.ndarray) -> np.ndarray:
        return x.reshape(x.transpose(0, 2, 1, 3).shape).transpose(0, 2, 1, 3)

    def edited(change: Change, places: tuple[str, ...], *, seen: bool) -> PerturbedReference:
        return replace(
            variant, edits=(*variant.edits, *(Edit(place, change, seen) for place in places))
        )

    text = "heads are interleaved: each takes every num_heads-th feature, not d_head side by side"
    yield Hypothesis(text, edited(interleaved, parts, seen=True))
    yield Hypothesis(
        f"{text}, once query, key and value are there", edited(interleaved, parts, seen=False)
    )
    text = (
        "(batch, length, d_model) is reshaped to (batch, heads, length, d_head) without a transpose"
    )
    yield Hypothesis(text, edited(split_untransposed, parts, seen=True))
    text = (
        "the heads are merged by a reshape alone: (batch, heads, length, d_head) needs a "
        "transpose first"
    )
    yield Hypothesis(text, edited(merged_untransposed, ("attention.mixed",), seen=False))


def _dense(variant: PerturbedReference, layer: str) -> Iterator[Hypothesis]:
    for where, label in _scopes(variant, layer):
        names = _matching(variant, where)
        array = variant.weights[names[0]]
        if where.endswith("bias") and array.any():
            yield Hypothesis(f"{label} is missing", _changed(variant, names, np.zeros_like))
        elif array.ndim == 1 and not where.endswith(("query", "cls")):
            yield Hypothesis(f"{label} is missing", _changed(variant, names, np.ones_like))
        elif array.ndim == 2 and array.shape[0] == array.shape[1]:
            yield Hypothesis(f"{label} is used transposed", _changed(variant, names, np.transpose))
        elif array.ndim == 2:
            text = f"the memory of {label} is read as if it were its transpose's"
            yield Hypothesis(
                text,
                _changed(
                    variant, names, lambda weight: weight.ravel().reshape(weight.shape[::-1]).T
                ),
            )
            yield Hypothesis(
                f"{text}, written that way",
                _changed(variant, names, lambda weight: weight.T.ravel().reshape(weight.shape)),
            )


def _packed(variant: PerturbedReference, layer: str) -> Iterator[Hypothesis]:
    """Yield other orders of the rows of query, key and value in their one matrix, and of the
    columns of the output projection.
    """
    heads, width, d_model = variant.config.num_heads, variant.config.d_head, variant.config.d_model
    rows = np.arange(3 * d_model)
    query, key, value = rows.reshape(3, d_model)
    orders = {
        "key and value are swapped": np.concatenate([query, value, key]),
        "query and key are swapped": np.concatenate([key, query, value]),
        "query and value are swapped": np.concatenate([value, key, query]),
        "query, key and value are packed head by head": rows.reshape(heads, 3, width)
        .swapaxes(0, 1)
        .ravel(),
        "query, key and value are packed feature by feature": rows.reshape(d_model, 3).T.ravel(),
        "heads are interleaved within query, key and value": rows.reshape(3, width, heads)
        .swapaxes(1, 2)
        .ravel(),
    }
    columns = np.arange(d_model).reshape(width, heads).T.ravel()
    for where, label in _scopes(variant, layer):
        names = _matching(variant, where)
        beside = [name.removesuffix("weight") + "bias" for name in names]
        with_biases = [*names, *(name for name in beside if name in variant.weights)]
        if part(where) == "attention.qkv.weight":
            for text, order in orders.items():
                yield Hypothesis(
                    f"{text} in {label}",
                    _changed(variant, with_biases, lambda weight, order=order: weight[order]),  # type: ignore[misc]
                )
            text = f"the query, key and value of {label} are used transposed"
            yield Hypothesis(
                text,
                _changed(
                    variant,
                    names,
                    lambda weight: np.concatenate([block.T for block in np.split(weight, 3)]),
                ),
            )
        if part(where) == "attention.out.weight":
            yield Hypothesis(
                f"heads are interleaved in {label}",
                _changed(variant, names, lambda weight: weight[:, columns]),
            )


def _other_choices(encoding: EncodingOptions) -> Iterator[tuple[str, str]]:
    """Yield every option that is a choice of names, with each name that was not chosen."""
    for option, hint in get_type_hints(type(encoding)).items():
        if get_origin(hint) is Literal:
            for value in get_args(hint):
                if value != getattr(encoding, option):
                    yield option, value


def _configs(variant: PerturbedReference) -> Iterator[Hypothesis]:
    encodings = variant.config.encodings
    if encodings:
        yield Hypothesis("no positional encoding is added", _config(variant, encodings=()))
    for index, encoding in enumerate(encodings):
        before, after = encodings[:index], encodings[index + 1 :]
        for option, value in _other_choices(encoding):
            text = (
                f"encodings.{index} ({encoding.name}) has {option} {value!r}, not "
                f"{getattr(encoding, option)!r}"
            )
            other: Any = replace(encoding, **{option: value})  # type: ignore[type-var]
            yield Hypothesis(text, _config(variant, encodings=(*before, other, *after)))
    root = math.sqrt(variant.config.d_model)
    text = (
        "the input is multiplied by sqrt(d_model) before the encoding is added (Vaswani et "
        "al. 2017, section 3.4)"
    )
    for seen in (True, False):
        yield Hypothesis(
            text, replace(variant, edits=(*variant.edits, Edit("input", lambda x: root * x, seen)))
        )


def _scopes(variant: PerturbedReference, layer: str) -> Iterator[tuple[str, str]]:
    """Yield each kind of parameter, in every layer and in one layer alone, and its label."""
    for where in dict.fromkeys(map(part, variant.weights)):
        names = _matching(variant, where)
        if len(names) == 1:
            yield names[0], names[0]
            continue
        yield where, f"{where} of every layer"
        if f"{layer}{where}" in names and layer:
            yield f"{layer}{where}", f"{layer}{where} alone"


def _matching(variant: PerturbedReference, where: str) -> list[str]:
    return [name for name in variant.weights if where in (name, part(name))]


def _changed(variant: PerturbedReference, names: list[str], change: Change) -> PerturbedReference:
    changed: Mapping[str, np.ndarray] = {name: change(variant.weights[name]) for name in names}
    return replace(variant, weights={**variant.weights, **changed})


def _config(variant: PerturbedReference, **changes: object) -> PerturbedReference:
    config: ModelConfig = replace(variant.config, **changes)  # type: ignore[arg-type]
    return replace(variant, config=config)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))
