"""Mistakes in the weights: missing, transposed, in another order, of another layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import permutations
from typing import Any, Final

import numpy as np

from pe_parity.hypotheses.hypothesis import Hypothesis, Places, edit, matching, with_weights
from pe_parity.padding import part
from pe_parity.perturbed_reference import Change, Edit, PerturbedReference

QKV: Final = "attention.qkv.weight"
OUT: Final = "attention.out.weight"


def _scopes(at: Places) -> Iterator[tuple[str, list[str], str]]:
    """Yield each kind of parameter, of every layer and of one alone: its part, the names and the
    words for them.
    """
    variant = at.variant
    for where in dict.fromkeys(map(part, variant.weights)):
        names = matching(variant, where)
        if len(names) == 1:
            yield where, names, names[0]
            continue
        yield where, names, f"{where} of every layer"
        for n in range(at.first, at.last + 1):
            name = f"layers.{n}.{where}"
            if name in names:
                yield where, [name], f"{name} alone"


def _reread(weight: np.ndarray) -> np.ndarray:
    return weight.ravel().reshape(weight.shape[::-1]).T


def _rewritten(weight: np.ndarray) -> np.ndarray:
    return weight.T.ravel().reshape(weight.shape)


def _blocks(change: Change, weight: np.ndarray) -> np.ndarray:
    return np.concatenate([change(block) for block in np.split(weight, 3)])


def parameters(at: Places) -> Iterator[Hypothesis]:
    """Yield parameters that are missing or transposed."""
    variant = at.variant
    arrays = variant.weights
    dense = [name for name, one in arrays.items() if one.ndim == 2 and _is_dense(name)]
    square = [name for name in dense if arrays[name].shape[0] == arrays[name].shape[1]]
    for where, names, label in _scopes(at):
        array = arrays[names[0]]
        if where.endswith("bias") and array.any():
            yield with_weights(f"{label} is missing", names, np.zeros_like)
        elif array.ndim == 1 and not where.endswith(("query", "cls")):
            yield with_weights(f"{label} is missing", names, np.ones_like)
        elif where == QKV:
            text = f"the query, key and value of {label} are used transposed"
            yield with_weights(text, names, partial(_blocks, np.transpose))
        if not _is_dense(where) or array.ndim != 2:
            continue
        if array.shape[0] == array.shape[1]:
            yield with_weights(f"{label} is used transposed", names, np.transpose)
        else:
            text = f"the memory of {label} is read as if it were its transpose's"
            yield with_weights(text, names, _reread)
            yield with_weights(f"{text}, written that way", names, _rewritten)
    for text, (ends, there) in TOGETHER.items():
        names = [name for name in arrays if name.endswith(f".{ends}") and there(name)]
        if len(names) > 1:
            fill = np.zeros_like if ends == "bias" else np.ones_like
            yield with_weights(f"{text} is missing", names, fill)
    yield edit("LayerNorm has neither scale nor bias", Edit("", _bare, step="layer_norm"))
    for name in ("norm1", "norm2", "norm"):
        if matching(variant, f"{name}.weight"):
            yield edit(f"{name} has neither scale nor bias", Edit(name, _bare, step="layer_norm"))
    qkv = matching(variant, QKV)
    split = with_weights("", qkv, partial(_blocks, np.transpose))
    turned = with_weights("", square, np.transpose)
    yield Hypothesis(
        "every square weight is used transposed",
        lambda variant: split.apply(turned.apply(variant)),
    )
    yield with_weights(
        "every linear weight is read in the memory order of its transpose",
        dense,
        lambda weight: weight.T if weight.shape[0] == weight.shape[1] else _reread(weight),
    )


def _is_norm(name: str) -> bool:
    return part(name).startswith("norm")


def _is_dense(name: str) -> bool:
    return part(name).startswith(("attention", "feed_forward", "input.weight", "head"))


def _in_layers(name: str) -> bool:
    return part(name) != name


# Parameters that go missing together.
TOGETHER: Final[dict[str, tuple[str, Callable[[str], bool]]]] = {
    "every bias": ("bias", lambda name: True),
    "every bias in the layers": ("bias", _in_layers),
    "the bias of every linear layer": ("bias", lambda name: not _is_norm(name)),
    "the bias of every linear layer of the blocks": (
        "bias",
        lambda name: _in_layers(name) and not _is_norm(name),
    ),
    "the bias of every LayerNorm": ("bias", _is_norm),
    "the scale of every LayerNorm": ("weight", _is_norm),
    "every bias of attention": ("bias", lambda name: part(name).startswith("attention.")),
    "every bias of the feed-forward layers": (
        "bias",
        lambda name: part(name).startswith("feed_forward."),
    ),
}


def _bare(run: Any, usual: Any, name: str, x: np.ndarray, **law: Any) -> Any:
    return (usual(name, x, **law) - run.arrays[f"{name}.bias"]) / run.arrays[f"{name}.weight"]


def _orders(heads: int, width: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield other orders of the rows of query, key and value in their one matrix."""
    d_model = heads * width
    rows = np.arange(3 * d_model)
    names, blocks = ("query", "key", "value"), rows.reshape(3, d_model)
    for order in permutations(range(3)):
        moved = [n for n in range(3) if order[n] != n]
        words = " and ".join(names[n] for n in moved)
        if len(moved) == 2:
            yield f"{words} are swapped", blocks[list(order)].ravel()
        elif moved:
            taken = ", ".join(names[n] for n in order)
            yield f"query, key and value are taken as {taken}", blocks[list(order)].ravel()
    for to, of in permutations(range(3), 2):
        taken_from = [of if n == to else n for n in range(3)]
        yield f"{names[to]} is made by the weights of {names[of]}", blocks[taken_from].ravel()
    packed = rows.reshape(heads, 3, width).swapaxes(0, 1).ravel()
    yield "query, key and value are packed head by head", packed
    yield "query, key and value are packed head by head, written that way", np.argsort(packed)
    yield (
        "query, key and value are packed feature by feature",
        rows.reshape(d_model, 3).T.ravel(),
    )
    interleaved = rows.reshape(3, width, heads).swapaxes(1, 2).ravel()
    yield "heads are interleaved within query, key and value", interleaved


def packed(at: Places) -> Iterator[Hypothesis]:
    """Yield other orders of the rows of query, key and value, and of the columns of the output
    projection.
    """
    variant = at.variant
    heads, width = variant.config.num_heads, variant.config.d_head
    columns = np.arange(heads * width).reshape(width, heads).T.ravel()
    for where, names, label in _scopes(at):
        beside = [name.removesuffix("weight") + "bias" for name in names]
        both = [*names, *(name for name in beside if name in variant.weights)]
        if where == QKV:
            for text, order in _orders(heads, width):
                yield with_weights(f"{text} in {label}", both, partial(_ordered, order))
        if where == OUT:
            text = f"heads are interleaved in {label}"
            yield with_weights(text, names, lambda weight: weight[:, columns])


def _ordered(order: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight[order]


def layers(at: Places) -> Iterator[Hypothesis]:
    """Yield layers in another order, left out, or with the weights of others."""
    variant = at.variant
    count = variant.config.num_layers
    if count == 1:
        return
    orders: dict[str, list[int]] = {
        "every layer has the weights of the first": [0] * count,
        "every layer has the weights of the last": [count - 1] * count,
        "the layers come in reverse order": list(range(count))[::-1],
    }
    for n in range(count):
        orders[f"layer {n} is left out"] = [k for k in range(count) if k != n]
    for text, order in orders.items():
        yield Hypothesis(text, partial(_reordered, order))


def _reordered(order: list[int], variant: PerturbedReference) -> PerturbedReference:
    if variant.config.num_layers <= max(order):
        return variant
    weights = {name: one for name, one in variant.weights.items() if part(name) == name}
    for n, source in enumerate(order):
        prefix = f"layers.{source}."
        for name, one in variant.weights.items():
            if name.startswith(prefix):
                weights[f"layers.{n}.{name.removeprefix(prefix)}"] = one
    config = replace(variant.config, num_layers=len(order))
    return replace(variant, config=config, weights=weights)
