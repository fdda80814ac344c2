"""The four kinds of encodings, each on the whole square of queries and keys, and their registry.

A formula has no state: it is given the options and the parameters, under their names within the
encoding, at every call. Shapes: steps (batch, length, d_model), heads (batch, heads, length,
d_head), logits (batch, heads, queries, keys).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pe_core.encodings import (
    AdditiveOptions,
    ContextualOptions,
    EncodingOptions,
    LogitBiasOptions,
    QueryKeyOptions,
    register_options,
)
from pe_core.errors import UserTypeError

Array = np.ndarray
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Positions:
    """Where the steps stand.

    Args:
        values: (length,) or (batch, length); 0 where a step has no position.
        placed: (batch, length), False for a trained step in front and for padding; None when every
            step has a position.
        segments: (batch, length) of packed sequences.
    """

    values: Array
    placed: Array | None = None
    segments: Array | None = None

    def offsets(self) -> Array:
        """Return key position minus query position, (length, length) or (batch, length, length)."""
        here, there = self.values[..., :, None], self.values[..., None, :]
        if self.values.dtype.kind == "f" or not (np.abs(self.values.astype("f8")) >= 2.0**62).any():
            return there - here
        # Python's integers do not overflow; an offset that int64 cannot hold is as far as any.
        exact = there.astype(object) - here.astype(object)
        return np.clip(exact, 1 - (1 << 63), (1 << 63) - 1).astype(np.int64)

    def where_placed(self, x: Array) -> Array:
        """Return x (..., queries, keys), broadcast over heads, with 0 where either step of a pair
        has no position.
        """
        if self.placed is None:
            return x
        pairs = self.placed[:, :, None] & self.placed[:, None, :]
        return np.where(pairs[:, None], x, 0.0)


@dataclass(frozen=True)
class Steps:
    """What attention has at hand in one layer.

    Args:
        x: what attention reads.
        query: before any map, without the logit scale.
        key: before any map.
        value: of each step.
        scale: 1/sqrt(d_head) times all factors.
    """

    x: Array
    query: Array
    key: Array
    value: Array
    scale: float


class Additive:
    """Changes the steps themselves."""

    def add(self, options: Any, arrays: Arrays, x: Array, positions: Positions) -> Array:
        """Return the steps with the encoding; padding may hold anything."""
        raise NotImplementedError


class QueryKey:
    """Maps queries and keys before their product."""

    def query(self, options: Any, arrays: Arrays, x: Array, positions: Positions) -> Array:
        """Return the mapped queries."""
        raise NotImplementedError

    def key(self, options: Any, arrays: Arrays, x: Array, positions: Positions) -> Array:
        """Return the mapped keys; as the queries unless overridden."""
        return self.query(options, arrays, x, positions)


class LogitBias:
    """Adds a function of two positions to the logits."""

    def of(self, options: Any, arrays: Arrays, offset: Array) -> Array:
        """Return the bias of each offset, key minus query, (heads, *offset.shape)."""
        raise NotImplementedError

    def bias(self, options: Any, arrays: Arrays, positions: Positions) -> Array:
        """Return the bias, (heads, queries, keys) or (batch, heads, queries, keys)."""
        return np.moveaxis(self.of(options, arrays, positions.offsets()), 0, -3)


class Contextual:
    """Adds terms that read the content."""

    def logits(self, options: Any, arrays: Arrays, steps: Steps, positions: Positions) -> Array:
        """Return what is added to the logits."""
        return np.zeros(())

    def mix(
        self, options: Any, arrays: Arrays, steps: Steps, positions: Positions, weights: Array
    ) -> Array:
        """Return what is added to the mixed values, given the attention weights after dropout."""
        return np.zeros(())


Formula = Additive | QueryKey | LogitBias | Contextual
KINDS: dict[type[EncodingOptions], type[Formula]] = {
    AdditiveOptions: Additive,
    QueryKeyOptions: QueryKey,
    LogitBiasOptions: LogitBias,
    ContextualOptions: Contextual,
}
FORMULAS: dict[type[EncodingOptions], Formula] = {}


def register(options: type[EncodingOptions], formula: Formula) -> None:
    """Make the reference compute an encoding of one's own by its formula.

    Args:
        options: the options class.
        formula: an instance of one of the four kinds above, the one that the options are of.

    Raises:
        UserTypeError: the formula is of another kind than the options, or of none.
        UserValueError: the name is taken.
    """
    register_options(options)
    kind = next(base for known, base in KINDS.items() if issubclass(options, known))
    if not isinstance(formula, kind):
        raise UserTypeError(
            f"the formula of {options.__name__} must be an instance of pe_parity.reference's "
            f"{kind.__name__}, got {formula!r}"
        )
    FORMULAS[options] = formula


def formula_of(options: EncodingOptions) -> Any:
    """Return the formula of an encoding.

    Raises:
        UserTypeError: the options are registered, but not with the reference.
    """
    if type(options) not in FORMULAS:
        raise UserTypeError(
            f"encoding {options.name!r} has no formula; call pe_parity.reference.register("
            f"{type(options).__name__}, FORMULA) where the encoding is registered"
        )
    return FORMULAS[type(options)]
