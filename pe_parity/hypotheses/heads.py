"""Mistakes in how heads are split, scaled and merged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np

from pe_core.model.config import MASKED_LOGIT
from pe_parity.hypotheses.hypothesis import Hypothesis, Places, edit
from pe_parity.perturbed_reference import Change, Edit, PerturbedReference

PARTS: Final = ("attention.query", "attention.key", "attention.value")
MIXED: Final = "attention.mixed"


def scales(at: Places) -> Iterator[Hypothesis]:
    """Yield other scales of the logits; what their query is multiplied by says which."""
    variant = at.variant
    sizes = variant.config
    width, d_model, count = sizes.d_head, sizes.d_model, sizes.num_heads
    root = math.sqrt(width)
    wrong = {
        "have no scale": (root, "sqrt(d_head)"),
        "are scaled by 1 / sqrt(d_model), not 1 / sqrt(d_head)": (
            math.sqrt(width / d_model),
            "1 / sqrt(num_heads) = sqrt(d_head / d_model)",
        ),
        "are scaled by 1 / sqrt(d_head) twice, so by 1 / d_head": (1 / root, "1 / sqrt(d_head)"),
        "are scaled by 1 / d_model, not 1 / sqrt(d_head)": (
            root / d_model,
            "sqrt(d_head) / d_model",
        ),
        "are scaled by sqrt(d_head): multiplied, not divided": (float(width), "d_head"),
        "are scaled by d_head: multiplied, not divided, and without the root": (
            root * width,
            "d_head sqrt(d_head)",
        ),
        "are scaled by sqrt(d_model), multiplied, not divided": (
            math.sqrt(d_model) * root,
            "sqrt(d_model) sqrt(d_head)",
        ),
        "are scaled by 1 / sqrt(num_heads), not 1 / sqrt(d_head)": (
            math.sqrt(width / count),
            "sqrt(d_head / num_heads)",
        ),
        "are scaled by 1 / d_head^(1/4), as if of the query only": (
            math.sqrt(root),
            "d_head^(1/4)",
        ),
        "have the wrong sign": (-1.0, "the sign"),
    }
    for text, (factor, origin) in wrong.items():
        if math.isclose(factor, 1.0):
            continue
        for where, alone in at.of(PARTS[0]):
            label = f"attention logits {text}: multiplied by {factor:.6g}, {origin}{alone}"
            yield edit(label, Edit(where, partial(_times, factor), seen=False))


def _times(factor: float, run: Any, x: np.ndarray) -> np.ndarray:
    return factor * x


def heads(at: Places) -> Iterator[Hypothesis]:
    """Yield heads that are split, attended and merged along other axes."""
    variant = at.variant
    count, width = variant.config.num_heads, variant.config.d_head

    def interleaved(x: np.ndarray) -> np.ndarray:
        return x.transpose(0, 2, 1, 3).reshape(len(x), -1, width, count).transpose(0, 3, 1, 2)

    def split_untransposed(x: np.ndarray) -> np.ndarray:
        return x.transpose(0, 2, 1, 3).reshape(x.shape)

    def merged(axes: tuple[int, ...] | None) -> Change:
        def change(x: np.ndarray) -> np.ndarray:
            order = x if axes is None else x.transpose(axes)
            return order.reshape(x.transpose(0, 2, 1, 3).shape).transpose(0, 2, 1, 3)

        return change

    def split(where: str, change: Change, *, seen: bool) -> tuple[Edit, ...]:
        return tuple(Edit.of(where.replace("attention", part), change, seen=seen) for part in PARTS)

    texts: dict[str, tuple[Change, bool]] = {
        "heads are interleaved: each takes every num_heads-th feature, not d_head side by side": (
            interleaved,
            False,
        ),
        "(batch, length, d_model) is reshaped to (batch, heads, length, d_head) without a "
        "transpose": (split_untransposed, True),
    }
    for text, (change, reads) in texts.items():
        for where, alone in at.of("attention"):
            for seen, more in ((True, ""), (False, ", once query, key and value are there")):
                one = edit(f"{text}{more}{alone}", *split(where, change, seen=seen))
                yield from at.reading_padding(one) if reads else iter((one,))
    for text, wrong in WHOLE.items():
        for where, alone in at.of("attention.qkv"):
            compute = partial(_resplit, partial(wrong, count))
            one = edit(f"{text}{alone}", Edit(where, compute, step="linear"))
            if "batch" in text:
                one = replace(one, apply=partial(_mixed, one))
            yield from at.reading_padding(one)
    merges: dict[str, tuple[int, ...] | None] = {
        "the heads are merged by a reshape alone: (batch, heads, length, d_head) needs a "
        "transpose first": None,
        "the heads are merged with their axes in the wrong order: (batch, length, d_head, heads)": (
            0,
            2,
            3,
            1,
        ),
        "the heads are merged with their axes in the wrong order: (batch, heads, d_head, length)": (
            0,
            1,
            3,
            2,
        ),
        "the heads are merged with their axes in the wrong order: (batch, d_head, length, heads)": (
            0,
            3,
            2,
            1,
        ),
    }
    for text, axes in merges.items():
        for where, alone in at.of(MIXED):
            one = edit(f"{text}{alone}", Edit.of(where, merged(axes), seen=False))
            yield from at.reading_padding(one)


def _mixed(one: Hypothesis, variant: PerturbedReference) -> PerturbedReference:
    """Let a mistake see the whole batch."""
    return replace(one.apply(variant), mixed=True)


def _resplit(wrong: Change, run: Any, usual: Any, name: str, x: np.ndarray) -> np.ndarray:
    """Lay out query, key and value so that the right split gives those of a wrong one."""
    packed = usual(name, x)
    return wrong(packed).transpose(1, 3, 0, 2, 4).reshape(packed.shape)


def _of_sequence(heads: int, x: np.ndarray) -> np.ndarray:
    batch, length, width = x.shape
    shape = (batch, 3, heads, length, width // 3 // heads)
    return x.reshape(shape).transpose(1, 0, 2, 3, 4)


def _of_heads(heads: int, x: np.ndarray) -> np.ndarray:
    batch, length, width = x.shape
    each = x.reshape(batch, heads, length, width // heads)
    return np.stack(np.split(each, 3, axis=-1))


def _of_batch(heads: int, x: np.ndarray) -> np.ndarray:
    batch, length, width = x.shape
    return x.reshape(3, batch, heads, length, width // 3 // heads)


WHOLE: Final[dict[str, Callable[[int, np.ndarray], np.ndarray]]] = {
    "(batch, length, 3 d_model) is reshaped to (batch, 3, heads, length, d_head) without a "
    "transpose": _of_sequence,
    "(batch, length, 3 d_model) is reshaped to (batch, heads, length, 3 d_head) without a "
    "transpose": _of_heads,
    "(batch, length, 3 d_model) is reshaped to (3, batch, heads, length, d_head) without a "
    "transpose, across the sequences": _of_batch,
}


def _across(axis: int, masked: bool, run: Any, mixed: np.ndarray) -> np.ndarray:
    """Attend over the heads or the sequences, perhaps under the transposed mask."""
    query, key, value = (np.swapaxes(run.values[f"{run.layer}{part}"], axis, 2) for part in PARTS)
    logits = query @ key.swapaxes(2, 3) / math.sqrt(query.shape[-1])
    if masked:
        # (length, heads, batch, batch): of every step, the sequences in which it is real.
        logits = np.where(run.real.T[:, None, None], logits, MASKED_LOGIT)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.swapaxes(powers / powers.sum(axis=-1, keepdims=True) @ value, axis, 2)


OVER_BATCH: Final = (
    "attention runs over the sequences of the batch, not over the steps: the first axis is the "
    "batch (batch_first)"
)
ACROSS: Final[tuple[tuple[str, Callable[..., np.ndarray]], ...]] = (
    (
        "attention runs over the heads of a step, not over the steps: a transpose is missing",
        partial(_across, 1, False),
    ),
    (OVER_BATCH, partial(_across, 0, False)),
    (OVER_BATCH, partial(_across, 0, True)),
)


def across(at: Places) -> Iterator[Hypothesis]:
    """Yield attention over another axis than the steps."""
    for text, attend in ACROSS:
        for where, alone in at.of(MIXED):
            one = edit(f"{text}{alone}", Edit(where, attend))
            if text == OVER_BATCH:
                one = replace(one, apply=partial(_mixed, one))
            yield from at.reading_padding(one)
