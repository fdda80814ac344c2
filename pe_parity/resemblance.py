"""Describe the difference of two arrays without a model: a scale, an offset, an order, a
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Final

import numpy as np

from pe_core.model.config import ModelConfig
from pe_parity.budgets import distance, last_place
from pe_parity.padding import part
from pe_parity.perturbed_reference import Change
from pe_parity.rounding import BFLOAT16, TF32, rounded

# How far from its place a row is searched for.
LONGEST_SHIFT: Final = 4
# A model in a short format rounds again and again: at its end it is so many roundings away.
MOST_ROUNDINGS: Final = 16.0
# Beyond this many rows no other order is searched for: it compares every row with every other.
MOST_ROWS: Final = 2048
ROWS_NAMED: Final = 12
# Names at which a factor may come from a width of the model; elsewhere it is a plain number.
SCALED: Final = ("attention", "input", "encoding")
AXES: Final = {
    "attention.logits": ("sequences", "heads", "queries", "keys"),
    "attention.weights": ("sequences", "heads", "queries", "keys"),
    **{
        f"attention.{name}": ("sequences", "heads", "steps", "features")
        for name in ("query", "key", "value", "mixed")
    },
}


@dataclass(frozen=True, eq=False)
class Resemblance:
    """How an array resembles the expected one.

    Args:
        text: what it looks like, as a sentence without its full stop.
        change: turns the expected array into the other; None where it cannot do so exactly.
    """

    text: str
    change: Change | None = None


def resemblances(
    name: str, expected: np.ndarray, actual: np.ndarray, bound: float, config: ModelConfig | None
) -> Iterator[Resemblance]:
    """Yield the explanations of a difference that hold to within the bound, the simplest first.

    Args:
        name: of both arrays.
        expected: the right array.
        actual: the other.
        bound: largest distance of an explanation from `actual`.
        config: its widths name a factor.
    """
    expected, actual = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    if np.isnan(actual).any() and not np.isnan(expected).any():
        yield Resemblance(f"{np.isnan(actual).sum():,} of {actual.size:,} numbers are NaN")
        return
    yield from (one for one in _axes(expected, actual) if _explains(one, expected, actual, bound))
    if expected.shape != actual.shape:
        yield Resemblance(f"the shape is {actual.shape}, not {expected.shape}")
        return
    if not np.isfinite(expected).all() or not np.isfinite(actual).all():
        return
    if not actual.any():
        yield Resemblance("all numbers are zero", np.zeros_like)
        return
    known = [
        *_scale(expected, actual, bound, config if part(name).split(".")[0] in SCALED else None),
        *_offset(expected, actual),
        *_orders(name, expected, actual),
    ]
    yield from (one for one in known if _explains(one, expected, actual, bound))
    yield from _shifts(name, expected, actual, bound)
    yield from _dropout(expected, actual, bound)
    yield from _roundings(expected, actual)


def _explains(one: Resemblance, expected: np.ndarray, actual: np.ndarray, bound: float) -> bool:
    return one.change is not None and distance(one.change(expected), actual, expected) <= bound


def _axes(expected: np.ndarray, actual: np.ndarray) -> Iterator[Resemblance]:
    for order in permutations(range(expected.ndim)):
        if (
            order != tuple(range(expected.ndim))
            and tuple(expected.shape[axis] for axis in order) == actual.shape
        ):
            text = (
                "it is transposed"
                if expected.ndim == 2
                else f"its axes are transposed, to the order {', '.join(map(str, order))}"
            )
            yield Resemblance(text, lambda x, order=order: x.transpose(order))  # type: ignore[misc]


def _scale(
    expected: np.ndarray, actual: np.ndarray, bound: float, config: ModelConfig | None
) -> Iterator[Resemblance]:
    power = float((expected * expected).sum())
    if power > 0.0:
        factor = float((expected * actual).sum()) / power
        yield Resemblance(
            f"it is multiplied by {factor:.6g}{_origin(factor, bound, config)}",
            lambda x: factor * x,
        )


def _origin(factor: float, bound: float, config: ModelConfig | None) -> str:
    """Return where a factor comes from, if it is a power of one of the model's widths."""
    if factor == -1.0 or config is None:
        return ""
    sizes = {
        "d_head": config.d_head,
        "d_model": config.d_model,
        "num_heads": config.num_heads,
        "d_ff": config.width_inside,
    }
    for label, size in sizes.items():
        for text, power in (
            (f"sqrt({label})", 0.5),
            (f"1 / sqrt({label})", -0.5),
            (label, 1.0),
            (f"1 / {label}", -1.0),
        ):
            if size > 1 and math.isclose(factor, size**power, rel_tol=bound):
                heads = {0.5: "sqrt(d_model / d_head)", -0.5: "sqrt(d_head / d_model)"}.get(
                    power, ""
                )
                return f", {text}{f' = {heads}' if label == 'num_heads' and heads else ''}"
    return ""


def _offset(expected: np.ndarray, actual: np.ndarray) -> Iterator[Resemblance]:
    offset = float((actual - expected).mean())
    yield Resemblance(f"{offset:.6g} is added to every number", lambda x: x + offset)
    if expected.ndim > 1:
        along = (actual - expected).reshape(-1, expected.shape[-1]).mean(axis=0)
        yield Resemblance(
            "one vector is added to every step, as a bias is, or taken away", lambda x: x + along
        )


def _orders(name: str, expected: np.ndarray, actual: np.ndarray) -> Iterator[Resemblance]:
    for axis, size in enumerate(expected.shape):
        order = _order(
            np.moveaxis(expected, axis, 0).reshape(size, -1),
            np.moveaxis(actual, axis, 0).reshape(size, -1),
        )
        if order is not None and (order != np.arange(size)).any():
            text = f"{_axis(name, expected, axis)} come in another order: {_order_text(order)}"
            yield Resemblance(text, lambda x, order=order, axis=axis: np.take(x, order, axis))  # type: ignore[misc]


def _order(expected: np.ndarray, actual: np.ndarray) -> np.ndarray | None:
    """Return for each row of one array the nearest row of the other, if each is taken once."""
    if not 1 < len(expected) <= MOST_ROWS:
        return None
    near = (expected**2).sum(axis=1) - 2.0 * actual @ expected.T
    order = near.argmin(axis=1)
    return order if len(set(order.tolist())) == len(order) else None


def _order_text(order: np.ndarray) -> str:
    places = np.flatnonzero(order != np.arange(len(order)))
    if len(places) == 2:
        return f"{places[0]} and {places[1]} change places"
    if (order == np.arange(len(order))[::-1]).all():
        return "reversed"
    if (np.diff(order) % len(order) == 1).all():
        return f"rotated, with {order[0]} first"
    return ", ".join(map(str, order[:ROWS_NAMED])) + (", ..." if len(order) > ROWS_NAMED else "")


def _shifts(
    name: str, expected: np.ndarray, actual: np.ndarray, bound: float
) -> Iterator[Resemblance]:
    for axis in range(1, expected.ndim):
        for shift in range(1, min(LONGEST_SHIFT, expected.shape[axis] - 1) + 1):
            front, back = (np.moveaxis(array, axis, 0) for array in (expected, actual))
            for text, left, right in (
                ("later", front[:-shift], back[shift:]),
                ("earlier", front[shift:], back[:-shift]),
            ):
                if left.any() and distance(right, left, left) <= bound:
                    yield Resemblance(
                        f"{_axis(name, expected, axis)} stand {shift} {text} than they should"
                    )


def _dropout(expected: np.ndarray, actual: np.ndarray, bound: float) -> Iterator[Resemblance]:
    """Yield dropout, where it is the last thing that was done: what it keeps it scales up."""
    # Padding is zero in both.
    kept, dropped = actual != 0.0, (actual == 0.0) & (expected != 0.0)
    if not dropped.any() or not kept.any():
        return
    share = float(dropped.sum() / (expected != 0.0).sum())
    power = float((expected[kept] ** 2).sum())
    factor = float((expected[kept] * actual[kept]).sum()) / power if power > 0.0 else 1.0
    if factor > 1.0 and distance(factor * expected[kept], actual[kept], expected) <= bound:
        yield Resemblance(
            f"{share:.0%} of the numbers are zero and the others are multiplied by {factor:.6g}: "
            "dropout is on"
        )


def _roundings(expected: np.ndarray, actual: np.ndarray) -> Iterator[Resemblance]:
    """Yield the shorter format of which every number is one."""
    for label, bits in (("bfloat16", BFLOAT16), ("float16 or TF32", TF32)):
        near = distance(actual, expected, expected) <= MOST_ROUNDINGS * last_place(bits)
        if near and np.array_equal(rounded(actual, bits), actual):
            yield Resemblance(f"every number is a {label} number: {bits} significant bits of 24")
            return


def _axis(name: str, array: np.ndarray, axis: int) -> str:
    if part(name) in AXES and array.ndim == 4:
        return AXES[part(name)][axis]
    if array.ndim == 3 and "/" not in name:
        return ("sequences", "steps", "features")[axis]
    return ("rows", "columns")[axis] if array.ndim == 2 else f"the entries of axis {axis}"
