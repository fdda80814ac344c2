"""The reference with mistakes in it: what a model that makes them computes, name by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from pe_core.model.config import LAYER_NORM_EPSILON, ModelConfig
from pe_parity.padding import part, without_padding
from pe_parity.reference.encoder import Run, forward
from pe_parity.trace import Trace
from pe_parity.trace_file import Given

Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Edit:
    """A change of a tap.

    Args:
        where: its name, or its name within a layer for every layer.
        change: applied to the array.
        seen: whether the tap itself shows the change, or only the names after it.
    """

    where: str
    change: Change
    seen: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class PerturbedReference:
    """A model with mistakes; the defaults make none.

    Args:
        config: what the model is.
        weights: under their canonical names.
        inputs: features or tokens.
        mask: True for real steps.
        positions: of the steps; counted when None.
        scaled: normalises the steps in a LayerNorm.
        activation: of the feed-forward layer.
        allowed: turns the keys that a query may see into those that it sees.
        pools_padding: whether padded steps are pooled.
        rounding: of the operands of a dense product.
        edits: changes of taps.
    """

    config: ModelConfig
    weights: Mapping[str, np.ndarray]
    inputs: np.ndarray
    mask: np.ndarray | None
    positions: np.ndarray | None = None
    scaled: Change | None = None
    activation: Change | None = None
    allowed: Callable[[np.ndarray], np.ndarray | None] | None = None
    pools_padding: bool = False
    rounding: Change | None = None
    edits: tuple[Edit, ...] = ()

    @classmethod
    def of(cls, given: Given, rows: int) -> PerturbedReference:
        """Return the right model, on the first rows of the inputs."""
        return cls(
            config=given.config,
            weights=given.weights,
            inputs=given.inputs[:rows],
            mask=None if given.mask is None else given.mask[:rows],
        )

    def trace(self, until: str | None = None) -> Trace:
        """Return the taps, all of them or up to one, without padding."""
        taps: Trace = {}
        run_type = partial(_PerturbedRun, self, until)
        with suppress(_ReachedError):
            forward(
                self.config,
                self.weights,
                self.inputs,
                mask=self.mask,
                positions=self.positions,
                taps=taps,
                run_type=run_type,
            )
        return without_padding(taps, self.mask)


class _ReachedError(Exception):
    """The last requested tap has been computed."""


class _PerturbedRun(Run):
    """One pass of a variant."""

    def __init__(self, variant: PerturbedReference, until: str | None, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.variant = variant
        self.until = until

    def tap(self, name: str, value: np.ndarray) -> np.ndarray:
        seen = value
        for edit in self.variant.edits:
            if edit.where in (name, part(name)):
                value = edit.change(value)
                seen = value if edit.seen else seen
        self.taps[name] = seen
        if name == self.until:
            raise _ReachedError
        return value

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        rounding = self.variant.rounding
        if rounding is None:
            return super().linear(name, x)
        product = rounding(x) @ rounding(self.arrays[f"{name}.weight"]).T
        return product + self.arrays.get(f"{name}.bias", 0.0)

    def layer_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        if self.variant.scaled is None:
            return super().layer_norm(name, x)
        scale, bias = self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"]
        return self.tap(name, self.variant.scaled(x) * scale + bias)

    def activation(self, x: np.ndarray) -> np.ndarray:
        return (
            super().activation(x) if self.variant.activation is None else self.variant.activation(x)
        )

    def weights(self, logits: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
        if allowed is not None and self.variant.allowed is not None:
            allowed = self.variant.allowed(allowed)
        return super().weights(logits, allowed)

    def pool(self, state: np.ndarray, member: np.ndarray) -> np.ndarray:
        return super().pool(state, np.ones_like(member) if self.variant.pools_padding else member)


def normalised(
    x: np.ndarray,
    *,
    epsilon: float = LAYER_NORM_EPSILON,
    ddof: int = 0,
    centre: bool = True,
    outside: bool = False,
) -> np.ndarray:
    """Normalise steps as another implementation of LayerNorm does.

    Args:
        x: the steps.
        epsilon: under the root.
        ddof: 1 for the unbiased variance.
        centre: subtract the mean; False is RMSNorm.
        outside: add epsilon to the root instead.
    """
    centred = x - x.mean(axis=-1, keepdims=True) if centre else x
    variance = (centred**2).sum(axis=-1, keepdims=True) / (x.shape[-1] - ddof)
    return centred / (np.sqrt(variance) + epsilon if outside else np.sqrt(variance + epsilon))
