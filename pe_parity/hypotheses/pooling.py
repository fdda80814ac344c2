"""Mistakes in how steps become one vector, and in what follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import numpy as np

from pe_parity.hypotheses.hypothesis import Hypothesis, Places, edit
from pe_parity.perturbed_reference import Edit

POOLED: Final = "pooling ignores the mask: padding is pooled too"


def pooled_all(run: Any, pooled: np.ndarray) -> np.ndarray:
    """Pool padding too."""
    found: np.ndarray = run.pooled(np.ones_like(run.real))
    return found


def _mean(x: np.ndarray, real: np.ndarray, divisor: Any) -> np.ndarray:
    return np.asarray(np.where(real[..., None], x, 0.0).sum(axis=1) / divisor)


def _last(x: np.ndarray, real: np.ndarray) -> np.ndarray:
    at = real.shape[1] - 1 - real[:, ::-1].argmax(axis=1)
    return x[np.arange(len(x)), at]


# Other ways from steps to one vector, given the steps and which of them are real.
POOLS: Final[dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "the mean over all real steps": lambda x, real: _mean(x, real, real.sum(1)[:, None]),
    "the mean over all steps, padding too": lambda x, real: x.mean(axis=1),
    "the sum over the real steps divided by the padded length: padding is pooled as zeros": (
        lambda x, real: _mean(x, real, real.shape[1])
    ),
    "the sum over the real steps": lambda x, real: _mean(x, real, 1),
    "the sum over all steps, padding too": lambda x, real: x.sum(axis=1),
    "the sum over all steps, padding too, divided by the number of real ones": lambda x, real: (
        x.sum(axis=1) / real.sum(1)[:, None]
    ),
    "the largest number of the real steps": lambda x, real: np.where(
        real[..., None], x, -np.inf
    ).max(axis=1),
    "the largest number of all steps, padding too": lambda x, real: x.max(axis=1),
    "the largest number of the real steps and 0: padding is pooled as zeros": lambda x, real: (
        np.where(real[..., None], x, 0.0).max(axis=1)
    ),
    "the first step": lambda x, real: x[:, 0],
    "the second step": lambda x, real: x[:, min(1, x.shape[1] - 1)],
    "the last real step": _last,
    "the last step of the padded length": lambda x, real: x[:, -1],
    "the last but one of the real steps": lambda x, real: _last(
        x[:, :-1], real[:, 1:] | ~np.any(real[:, 1:], axis=1, keepdims=True)
    ),
}
DUE: Final = {
    "mean": ("the mean over the real steps", "the mean over all real steps"),
    "max": ("the largest number of the real steps", "the largest number of the real steps"),
    "cls": ("the first step", "the first step"),
    "last": ("the last real step", "the last real step"),
    "attention": ("the attention over the real steps", ""),
}


def pooling(at: Places) -> Iterator[Hypothesis]:
    """Yield pooled padding, and other ways of pooling."""
    variant = at.variant
    kind = variant.config.pooling
    due, same = DUE[kind]
    if variant.mask is not None and kind != "cls":
        padded = edit(POOLED, Edit("pooled", pooled_all))
        # Zeros among what is pooled are named below, as what they do to the result.
        yield from (
            one
            for one in at.reading_padding(padded)
            if kind not in ("mean", "max")
            or one.padding is None
            or "norm" not in one.padding.cleared
        )
    for text, pool in POOLS.items():
        if text != same:
            one = edit(f"pooling gives {text}, not {due}", Edit("pooled", partial(_pooled, pool)))
            yield from at.reading_padding(one)
            if "cls" in variant.weights:
                text = f"pooling gives {text}, the cls step left out, not {due}"
                behind = edit(text, Edit("pooled", partial(_pooled, pool, ahead=1)))
                yield from at.reading_padding(behind)
    if kind == "attention":
        root = np.sqrt(variant.config.d_model)
        for text, factor in (("not scaled by 1 / sqrt(d_model)", root), ("scaled twice", 1 / root)):
            yield edit(
                f"the scores of pooling are {text}",
                Edit("pooled", partial(_rescaled, factor)),
            )
    yield edit("a softmax follows the head: it gives probabilities", Edit.of("head", softmax))
    yield edit(
        "a log-softmax follows the head: it gives log-probabilities",
        Edit.of("head", lambda x: x - np.log(np.exp(x).sum(axis=-1, keepdims=True))),
    )
    yield edit("a sigmoid follows the head", Edit.of("head", lambda x: 1.0 / (1.0 + np.exp(-x))))


def _pooled(pool: Any, run: Any, pooled: np.ndarray, ahead: int = 0) -> np.ndarray:
    found: np.ndarray = pool(run.steps[:, ahead:], run.real[:, ahead:])
    return found


def _rescaled(factor: float, run: Any, pooled: np.ndarray) -> np.ndarray:
    query = run.arrays["pooling.query"]
    run.arrays["pooling.query"] = factor * query
    found: np.ndarray = run.pooled(run.real)
    run.arrays["pooling.query"] = query
    return found


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the softmax over an axis."""
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))
