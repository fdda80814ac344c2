"""Mistakes in the parts of a block: its norms, its residual connections, its activation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, Final

import numpy as np

from pe_core.model.config import LAYER_NORM_EPSILON
from pe_parity.hypotheses.hypothesis import Hypothesis, Places, edit
from pe_parity.perturbed_reference import Change, Edit, PerturbedReference
from pe_parity.perturbed_run import gelu

# Where another epsilon comes from; the last stands for all that have no effect.
EPSILONS: Final = {
    1e-6: "1e-06, the default of Flax",
    1e-3: "0.001, the default of Keras",
    1e-12: "1e-12, as in BERT, or another far below every variance",
}
LAWS: Final[tuple[dict[str, tuple[str, Any]], ...]] = (
    {
        f"has epsilon {origin}, not {LAYER_NORM_EPSILON:g}": ("epsilon", value)
        for value, origin in EPSILONS.items()
    },
    {"adds epsilon to the standard deviation, not under the root": ("outside", True)},
    {"divides the variance by one less than the width": ("ddof", 1)},
    {"does not subtract the mean, as RMSNorm": ("centre", False)},
)
# Hendrycks and Gimpel 2016, section 2: the two approximations of GELU.
TANH_FACTOR: Final = 0.044715
SIGMOID_FACTOR: Final = 1.702
ACTIVATIONS: Final[dict[str, Change]] = {
    "the tanh approximation of GELU": lambda x: (
        0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + TANH_FACTOR * x**3)))
    ),
    "the sigmoid approximation of GELU, x sigmoid(1.702 x)": lambda x: (
        x * _sigmoid(SIGMOID_FACTOR * x)
    ),
    "SiLU, x sigmoid(x)": lambda x: x * _sigmoid(x),
    "nothing at all": lambda x: x,
    "tanh": np.tanh,
    "the sigmoid": lambda x: _sigmoid(x),
    "leaky ReLU with slope 0.01": lambda x: np.maximum(x, 0.01 * x),
    "ELU": lambda x: np.where(x > 0.0, x, np.expm1(np.minimum(x, 0.0))),
    "softplus": lambda x: np.logaddexp(x, 0.0),
    "the square of ReLU": lambda x: np.maximum(x, 0.0) ** 2,
}
OVER: Final[dict[str, tuple[int, ...]]] = {"steps": (1,), "steps and features together": (1, 2)}
ATTENTION: Final = "attention"
FEED_FORWARD: Final = "feed_forward"


def norms(at: Places) -> Iterator[Hypothesis]:
    """Yield other laws of LayerNorm, norms left out or taken twice, and their other order."""
    variant = at.variant
    kinds = ["norm1", "norm2"] + (["norm"] if variant.config.norm == "pre" else [])
    for chosen in sorted(product(*([*law.items(), None] for law in LAWS)), key=_deviations):
        words = [one[0] for one in chosen if one is not None]
        law = dict(one[1] for one in chosen if one is not None)
        without_effect = law.get("epsilon") == min(EPSILONS) and "outside" in law
        if law and not without_effect:
            text = f"LayerNorm {' and '.join(words)}"
            yield edit(text, _norm("", partial(_scaled, law)))
        if len(law) == 1:
            for kind in kinds:
                yield edit(f"{text}, in {kind} alone", _norm(kind, partial(_scaled, law)))
    yield edit(
        "LayerNorm subtracts no mean and adds no bias, as RMSNorm",
        _norm("", _without_mean_and_bias),
    )
    if variant.config.norm == "pre":
        yield from _final_norms(variant)
    else:
        yield from _post_norms(variant)
    for kind in ("norm1", "norm2"):
        for where, alone in at.of(kind):
            yield edit(f"{kind} is missing{alone}", _norm(where, _missing))
            yield edit(f"{kind} is applied twice{alone}", _norm(where, _twice))
    yield edit(
        "norm1 and norm2 change places",
        _norm("norm1", partial(_with_weights_of, "2")),
        _norm("norm2", partial(_with_weights_of, "1")),
    )
    for over, axes in OVER.items():
        text = f"LayerNorm takes mean and variance over the {over}"
        yield from at.reading_padding(edit(text, _norm("", partial(_over, axes))))


def _deviations(chosen: tuple[Any, ...]) -> int:
    return sum(one is not None for one in chosen)


def _norm(where: str, compute: Callable[..., np.ndarray]) -> Edit:
    return Edit(where, compute, step="layer_norm")


# A law of LayerNorm comes with what is computed another way on top of another way.
def _scaled(
    law: Mapping[str, Any], run: Any, usual: Any, name: str, x: np.ndarray, **more: Any
) -> Any:
    return usual(name, x, **{**law, **more})


def _missing(run: Any, usual: Any, name: str, x: np.ndarray, **law: Any) -> Any:
    return x


def _twice(run: Any, usual: Any, name: str, x: np.ndarray, **law: Any) -> Any:
    return usual(name, usual(name, x, **law), **law)


def _without_mean_and_bias(run: Any, usual: Any, name: str, x: np.ndarray, **law: Any) -> Any:
    return usual(name, x, **{**law, "centre": False}) - _bias(run, name)


def _with_weights_of(
    number: str, run: Any, usual: Any, name: str, x: np.ndarray, **law: Any
) -> Any:
    return usual(name[:-1] + number, x, **law)


def _of_block_input(run: Any, usual: Any, name: str, x: np.ndarray, **law: Any) -> Any:
    return usual(name, run.inputs.get(name[:-1] + "1", x), **law)


def _over(axes: tuple[int, ...], run: Any, usual: Any, name: str, x: np.ndarray, **law: Any) -> Any:
    centred = x - x.mean(axis=axes, keepdims=True)
    root = np.sqrt((centred**2).mean(axis=axes, keepdims=True) + LAYER_NORM_EPSILON)
    return centred / root * run.arrays[f"{name}.weight"] + _bias(run, name)


def _bias(run: Any, name: str) -> Any:
    return run.arrays[f"{name}.bias"]


def _final_norms(variant: PerturbedReference) -> Iterator[Hypothesis]:
    yield edit("the final norm is missing", _norm("norm", _missing))
    yield edit("the final norm is applied twice", _norm("norm", _twice))
    order = "the blocks normalise the output of a sublayer (post-norm), not its input"
    end = f"layers.{variant.config.num_layers - 1}.output"

    def without_norm(run: Any, x: np.ndarray) -> np.ndarray:
        run.taps["norm"] = x
        return x

    def with_norm(run: Any, x: np.ndarray) -> np.ndarray:
        found: np.ndarray = run.scaled("norm", x)
        run.taps["norm"] = found
        return found

    for words, compute in (
        ("", without_norm),
        (", and the final norm of pre-norm stays", with_norm),
    ):
        yield Hypothesis(order + words, partial(_post, Edit(end, compute, seen=False)))
    # A pooled vector has no steps: what was norm is the mean of what it was given.
    yield edit(
        "the final norm is applied to the pooled vector, not to the steps",
        _norm("norm", _missing),
        Edit("pooled", lambda run, x: run.scaled("norm", x)),
    )
    yield edit(
        "the encoded input is normalised by the final norm",
        Edit("encoding", lambda run, x: run.scaled("norm", x), seen=False),
    )


def _post(edit: Edit, variant: PerturbedReference) -> PerturbedReference:
    return replace(variant, config=replace(variant.config, norm="post")).edited(edit)


def _post_norms(variant: PerturbedReference) -> Iterator[Hypothesis]:
    ones, zeros = np.ones(variant.config.d_model), np.zeros(variant.config.d_model)
    order = "the blocks normalise the input of a sublayer (pre-norm), not its output"

    def pre(variant: PerturbedReference) -> PerturbedReference:
        weights = {**variant.weights, "norm.weight": ones, "norm.bias": zeros}
        return replace(variant, config=replace(variant.config, norm="pre"), weights=weights)

    none = _norm("norm", _missing)
    yield Hypothesis(f"{order}, and a final norm without weights follows", pre)
    yield Hypothesis(order, lambda variant: pre(variant).edited(none))
    end = f"layers.{variant.config.num_layers - 1}.output"

    for n, words in ((1, "norm1"), (2, "norm2")):
        kind = f"layers.{variant.config.num_layers - 1}.norm{n}"
        yield edit(
            f"a final norm follows the last layer, with the weights of its {words}",
            Edit(end, lambda run, x, kind=kind: run.scaled(kind, x), seen=False),
        )


def activations(at: Places) -> Iterator[Hypothesis]:
    """Yield other activations, and the right one at another place."""
    variant = at.variant
    relu = variant.config.activation == "relu"
    due = "ReLU" if relu else "the exact GELU"
    other: dict[str, Change] = (
        {"the exact GELU": gelu} if relu else {"ReLU": lambda x: np.maximum(x, 0.0)}
    )
    hidden = "feed_forward.hidden"
    for label, activation in {**ACTIVATIONS, **other}.items():
        for where, alone in at.of(hidden):
            compute = partial(_activated, activation)
            text = f"the activation is {label}, not {due}{alone}"
            yield edit(text, Edit(where, compute, step="activation"))
    # Twice ReLU is ReLU.
    for where, alone in () if relu else at.of(hidden):
        yield edit(
            f"the activation is applied twice{alone}",
            Edit(where, lambda run, usual, x: usual(usual(x)), step="activation"),
        )
    for where, alone in at.of("feed_forward.output"):
        yield edit(
            f"the activation follows the second product of the feed-forward layer, not the "
            f"first{alone}",
            Edit(where.replace("output", "hidden"), lambda run, usual, x: x, step="activation"),
            Edit(where, lambda run, x: run._activation(x)),
        )


def _activated(activation: Change, run: Any, usual: Any, x: np.ndarray) -> np.ndarray:
    return activation(x)


def residuals(at: Places) -> Iterator[Hypothesis]:
    """Yield residual connections left out or wrong, and sublayers that read something else."""
    variant = at.variant
    around: dict[str, Callable[..., Any]] = {
        "the residual connection around {} is missing": lambda run, usual, name, x, y: y,
        "what {} computes is not added to its input: it has no effect": (
            lambda run, usual, name, x, y: x
        ),
        "the input of {} is added twice": lambda run, usual, name, x, y: usual(name, x, x + y),
        "what {} computes is added twice": lambda run, usual, name, x, y: usual(name, x, y + y),
        "the sum around {} is divided by sqrt(2)": (
            lambda run, usual, name, x, y: usual(name, x, y) / math.sqrt(2.0)
        ),
    }
    if variant.config.norm == "pre":
        around["{} is added to its normalised input, not to the input itself"] = (
            lambda run, usual, name, x, y: run.values.get(_norm_of(name), x) + y
        )
    words = {ATTENTION: "attention", FEED_FORWARD: "the feed-forward layer"}
    for text, compute in around.items():
        for where in (ATTENTION, FEED_FORWARD):
            for place, alone in at.of(where):
                label = text.format(words[where]) + alone
                yield edit(label, Edit(place, compute, step="residual"))
        label = text.format("each sublayer")
        yield edit(label, Edit("", compute, step="residual"))
    if variant.config.norm == "pre":
        yield edit(
            "the feed-forward layer reads what attention reads, not the sum behind it",
            _norm("norm2", _of_block_input),
        )
        yield edit(
            "key and value are made of the steps before the norm",
            Edit("attention.qkv", _half_normalised, step="linear"),
        )
    yield edit(
        "the output projection of attention is left out",
        Edit("attention.out", lambda run, usual, name, x: x, step="linear"),
    )


def _norm_of(name: str) -> str:
    return name.replace(ATTENTION, "norm1").replace(FEED_FORWARD, "norm2")


def _half_normalised(run: Any, usual: Any, name: str, x: np.ndarray) -> np.ndarray:
    before = run.inputs.get(name.replace("attention.qkv", "norm1"), x)
    width = x.shape[-1]
    return np.concatenate([usual(name, x)[..., :width], usual(name, before)[..., width:]], axis=-1)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))
