"""Mistakes in what attention sees, and in its softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import numpy as np

from pe_core.model.config import MASKED_LOGIT
from pe_parity.hypotheses.hypothesis import Hypothesis, Places, edit
from pe_parity.hypotheses.pooling import pooled_all, softmax
from pe_parity.perturbed_reference import Edit, PerturbedReference

Compute = Callable[..., Any]
WEIGHTS: Final = "attention.weights"
IGNORED: Final = "attention ignores the mask: padding is seen too"


def _seen(change: Callable[[Any, np.ndarray], Any]) -> Compute:
    """Return attention with other keys to see, given the run and the right ones."""

    def compute(run: Any, usual: Any, logits: np.ndarray, allowed: np.ndarray | None) -> Any:
        shape = (len(logits), 1, *logits.shape[2:])
        every = np.broadcast_to(True if allowed is None else allowed, shape)
        return usual(logits, change(run, every))

    return compute


def _lowered(change: Callable[[Any, np.ndarray], np.ndarray], value: float) -> Compute:
    """Return the same with a finite logit for what is not seen: a query that sees no key has equal
    weights then, and not none; with -inf it has NaN.
    """

    def compute(run: Any, usual: Any, logits: np.ndarray, allowed: np.ndarray | None) -> Any:
        every = np.broadcast_to(True if allowed is None else allowed, logits[:, :1].shape)
        return usual(np.where(change(run, every), logits, value), None)

    return compute


INVERTED: Final = "the mask of attention is inverted: padding is seen, real steps are not"
QUERIES: Final = "the mask of attention cuts queries, not keys: padding is seen too"
# The same mistake with what else a query without a key may have.
KEYLESS: Final[dict[str, Callable[[Any, np.ndarray], np.ndarray]]] = {
    INVERTED: lambda run, allowed: ~allowed,
    QUERIES: lambda run, allowed: allowed.swapaxes(2, 3),
}
# The large negative numbers in use.
LOW: Final = (-1e9, -1e30, -1e4, float(np.finfo(np.float32).min), -np.inf)
# Masks of attention that need one to be wrong in.
MASKS: Final[dict[str, Compute]] = {
    INVERTED: _seen(lambda run, allowed: ~allowed),
    IGNORED: _seen(lambda run, allowed: None),
    QUERIES: _seen(lambda run, allowed: allowed.swapaxes(2, 3)),
    "a causal mask takes the place of the padding mask": _seen(
        lambda run, allowed: np.tril(np.ones_like(allowed))
    ),
    "the mask is multiplied with the logits: padding has logit 0, which the softmax sees": (
        lambda run, usual, logits, allowed: usual(np.where(allowed, logits, 0.0), None)
    ),
    "the mask is added to the logits as 0 and 1": (
        lambda run, usual, logits, allowed: usual(logits + allowed, None)
    ),
    "the inverted mask is added to the logits as 0 and 1": (
        lambda run, usual, logits, allowed: usual(logits + ~allowed, None)
    ),
    "the mask acts after the softmax: padding takes its share of the sum": (
        lambda run, usual, logits, allowed: np.where(allowed, usual(logits, None), 0.0)
    ),
    **{
        f"a masked logit is only {value:g}": (
            lambda run, usual, logits, allowed, value=value: usual(
                np.where(allowed, logits, value), None
            )
        )
        for value in (-1.0, 1.0, -10.0)
    },
    "a masked logit is only lowered by 10": lambda run, usual, logits, allowed: usual(
        np.where(allowed, logits, logits - 10.0), None
    ),
}
# Masks that act where there is no padding, too.
TRIANGLES: Final[dict[str, Compute]] = {
    "attention is causal: a step sees none after it": _seen(lambda run, allowed: np.tril(allowed)),
    "attention is causal the wrong way round: a step sees none before it": _seen(
        lambda run, allowed: np.triu(allowed)
    ),
}
FRONT: Final[dict[str, Compute]] = {
    "the mask of attention hides the cls step": _seen(
        lambda run, allowed: allowed & (np.arange(allowed.shape[-1]) > 0)
    ),
    "the mask of attention is one step off: the cls step was put in front of the steps only": (
        _seen(lambda run, allowed: np.roll(allowed, -1, axis=-1))
    ),
}


def masks(at: Places) -> Iterator[Hypothesis]:
    """Yield masks of attention that are inverted, ignored, or act at another place."""
    variant = at.variant
    padded = variant.mask is not None and not bool(variant.mask.all())
    if at.rare:
        yield from _attention(at, IGNORED, MASKS[IGNORED]) if padded else ()
        return
    for text, compute in TRIANGLES.items():
        yield from _attention(at, text, compute)
    if not padded:
        return
    for text, compute in MASKS.items():
        yield from _attention(at, text, compute)
    for value in LOW:
        yield from _attention(
            at, "the mask is added after the softmax, not before it", partial(_added_after, value)
        )
    for text, change in KEYLESS.items():
        for value in (MASKED_LOGIT, -np.inf):
            yield from _attention(at, text, _lowered(change, value))
    if variant.config.pooling != "cls":
        both = "attention and pooling ignore the mask: padding is seen and pooled too"
        ignored = Edit(WEIGHTS, MASKS[IGNORED], step="weights")
        yield from at.reading_padding(edit(both, ignored, Edit("pooled", pooled_all)))
    if "cls" in variant.weights:
        for text, compute in FRONT.items():
            yield from _attention(at, text, compute)
    yield from at.reading_padding(Hypothesis("heads see the masks of other sequences", _of_others))


def _added_after(
    value: float, run: Any, usual: Any, logits: np.ndarray, allowed: np.ndarray
) -> Any:
    return usual(logits, None) + np.where(allowed, 0.0, value)


def _attention(at: Places, text: str, compute: Compute) -> Iterator[Hypothesis]:
    for where, alone in at.of(WEIGHTS):
        one = edit(text + alone, Edit(where, partial(_where_masked, compute), step="weights"))
        for found in at.reading_padding(one):
            # A mask that cuts queries is a mistake of its own, above.
            if found.padding is None or found.padding.queries is None:
                yield found


def _where_masked(
    compute: Compute, run: Any, usual: Any, logits: np.ndarray, allowed: np.ndarray | None
) -> Any:
    """Let a mistake in the mask act where another has not taken the mask away."""
    if allowed is None and run.variant.mask is not None:
        return usual(logits, None)
    return compute(run, usual, logits, allowed)


def _of_others(variant: PerturbedReference) -> PerturbedReference:
    """The mask is repeated per head as (heads, batch), and read as (batch, heads)."""
    heads, mask = variant.config.num_heads, variant.mask
    assert mask is not None
    order = np.arange(len(mask) * heads).reshape(len(mask), heads) % len(mask)

    def compute(run: Any, usual: Any, logits: np.ndarray, allowed: np.ndarray) -> Any:
        ahead = ((0, 0),) * 3 + ((logits.shape[-1] - mask.shape[1], 0),)
        others = np.pad(mask[order[run.variant.computed]][:, :, None], ahead, constant_values=True)
        return usual(np.where(others, logits, MASKED_LOGIT), None)

    return variant.edited(Edit(WEIGHTS, compute, step="weights"))


def softmaxes(at: Places) -> Iterator[Hypothesis]:
    """Yield softmaxes over other axes."""
    unmasked = at.variant.mask is None
    for axis, words in ((-2, "queries"), (1, "heads")):
        for masked in (False,) if unmasked else (True, False):
            ignored = "" if masked or unmasked else ", and the mask is ignored"
            text = f"the softmax of attention runs over the {words}, not over the keys{ignored}"
            yield from _attention(at, text, partial(_over, axis, masked))
    for text, compute in {
        "attention takes no softmax": lambda run, usual, logits, allowed: (
            logits if allowed is None else np.where(allowed, logits, 0.0)
        ),
        "attention takes the sigmoid of its logits, not their softmax": (
            lambda run, usual, logits, allowed: np.where(
                True if allowed is None else allowed, 1.0 / (1.0 + np.exp(-logits)), 0.0
            )
        ),
    }.items():
        yield from _attention(at, text, compute)


def _over(
    axis: int, masked: bool, run: Any, usual: Any, logits: np.ndarray, allowed: np.ndarray | None
) -> np.ndarray:
    if masked and allowed is not None:
        logits = np.where(allowed, logits, MASKED_LOGIT)
    return softmax(logits, axis)
