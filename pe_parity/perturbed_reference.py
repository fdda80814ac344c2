"""The reference with mistakes in it: what a model that makes them computes, name by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from pe_core.model.config import ModelConfig, Tokens
from pe_core.model.positions import resolve_positions
from pe_parity.budgets import distance
from pe_parity.padding import Padding, without_padding
from pe_parity.perturbed_run import PerturbedRun, Step, StoppedError
from pe_parity.reference.encoder import forward
from pe_parity.trace import Trace
from pe_parity.trace_file import Given

Change = Callable[[np.ndarray], np.ndarray]
Moved = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Edit:
    """Another way to take one step of the model.

    Args:
        where: its name, or its name within a layer for every layer; "" for all steps of this kind.
        compute: is called with the run, the usual way and what that takes; of a tap with the run
            and the array.
        step: the method of `Run` that is replaced.
        seen: whether a tap itself shows the change, or only the names after it.
    """

    where: str
    compute: Callable[..., np.ndarray]
    step: Step = "tap"
    seen: bool = True

    @classmethod
    def of(cls, where: str, change: Change, *, seen: bool = True) -> Edit:
        """Return a change of a tap that needs nothing but its array."""
        return cls(where, lambda run, x: change(x), seen=seen)


@dataclass(frozen=True, kw_only=True, eq=False)
class PerturbedReference:
    """A model with mistakes; the defaults make none.

    Args:
        config: what the model is.
        weights: under their canonical names, in float64.
        inputs: features or tokens.
        mask: True for real steps.
        rows: the numbers of the sequences of the batch that are traced.
        rounded: whether intermediates are rounded to float32, which shows how much of its rounding
            a model makes.
        mixed: whether sequences reach one another, so that the whole batch must be computed.
        padding: what padded steps hold; None for what the reference has there.
        moved: gives the positions that the model takes, (batch, length), from the right ones, the
            mask and the numbers of the sequences.
        edits: steps taken another way.
        memory: products of the first pass, which others share as far as they go alike; fill it with
            the model that they depart from.
    """

    config: ModelConfig
    weights: Mapping[str, np.ndarray]
    inputs: np.ndarray
    mask: np.ndarray | None
    rows: np.ndarray
    rounded: bool = False
    mixed: bool = False
    padding: Padding | None = None
    moved: Moved | None = None
    edits: tuple[Edit, ...] = ()
    memory: dict[str, tuple[np.ndarray, tuple[Any, ...], np.ndarray]] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Given, rows: int) -> PerturbedReference:
        """Return the right model, on the first rows of the inputs."""
        return cls(
            config=given.config,
            weights={name: np.asarray(one, np.float64) for name, one in given.weights.items()},
            inputs=given.inputs,
            mask=given.mask,
            rows=np.arange(min(rows, len(given.inputs))),
        )

    def edited(self, *edits: Edit) -> PerturbedReference:
        """Return the model with more steps taken another way."""
        return replace(self, edits=(*self.edits, *edits))

    @property
    def computed(self) -> np.ndarray:
        """The numbers of the sequences that are computed."""
        return np.arange(len(self.inputs)) if self.mixed else self.rows

    @property
    def real(self) -> np.ndarray:
        """True for the real steps of the sequences that are computed, (batch, length)."""
        shape = self.inputs.shape[:2]
        return (np.ones(shape, bool) if self.mask is None else self.mask)[self.computed]

    def positions(self) -> np.ndarray:
        """Return the position that each step takes, (batch, length)."""
        real = self.real
        found = resolve_positions(real.shape[1], None, real)
        if self.padding is not None:
            found = np.where(real, found, self.padding.positions(real))
        if self.moved is None:
            return found
        return self._within(self.moved(found, real, self.computed))

    def _within(self, positions: np.ndarray) -> np.ndarray:
        """Return positions that every table has: past the end they stop there, as in jax; before
        the start they count from the end.
        """
        for encoding in self.config.encodings:
            limit = encoding.length_limit
            if limit is not None:
                stopped = np.minimum(positions, limit - 1)
                positions = np.where(positions < 0, positions % limit, stopped)
        return positions

    def trace(self, until: str | None = None) -> Trace:
        """Return the taps of the first rows, without padding; all of them, or up to one."""
        taps = self._taps(until, None)
        return {name: self.shown(name, array) for name, array in taps.items()}

    def sensitivity(self) -> dict[str, float]:
        """Return how far rounding moves each tap, relative to it."""
        exact, found = self.trace(), replace(self, rounded=True, memory={}).trace()
        return {name: distance(found[name], array, array) for name, array in exact.items()}

    def at(self, name: str, check: Callable[[str, np.ndarray], bool]) -> np.ndarray | None:
        """Return one tap as `trace` has it; None where there is none, or where the check of one
        before answers False.

        Args:
            name: of the tap.
            check: is given every tap as it is computed.
        """
        taps = self._taps(name, check)
        return self.shown(name, taps[name]) if name in taps else None

    def _taps(self, until: str | None, check: Callable[[str, np.ndarray], bool] | None) -> Trace:
        taps: Trace = {}
        real = self.real
        x, mask, positions = self.inputs[self.computed], None, None
        if self.mask is not None:
            mask = real
        if self.padding is not None:
            # Without a mask the reference lets padding hold what it is given; the run has the mask.
            x, mask = self._padded(x, real), None
        if self.padding is not None or self.moved is not None:
            positions = self.positions()
        with suppress(StoppedError):
            forward(
                self.config,
                self.weights,
                x,
                mask=mask,
                positions=positions,
                taps=taps,
                run_type=partial(PerturbedRun, self, until, check),
            )
        return taps

    def _padded(self, x: np.ndarray, real: np.ndarray) -> np.ndarray:
        assert self.padding is not None
        tokens = isinstance(self.config.inputs, Tokens)
        return x if self.padding.inputs else np.where(real if tokens else real[..., None], x, 0)

    def shown(self, name: str, array: np.ndarray) -> np.ndarray:
        """Return of a tap what is compared: the traced rows, without padding."""
        return self.cleared(name, array[self.rows] if self.mixed else array)

    def of_batch(self, name: str, array: np.ndarray) -> np.ndarray:
        """Return the same of a tap of the whole batch."""
        whole = array.ndim > 0 and len(array) == len(self.inputs)
        return self.cleared(name, np.asarray(array[self.rows] if whole else array, np.float64))

    def cleared(self, name: str, array: np.ndarray) -> np.ndarray:
        """Return a tap of the traced rows without padding."""
        mask = None if self.mask is None else self.mask[self.rows]
        return without_padding({name: array}, mask)[name]
