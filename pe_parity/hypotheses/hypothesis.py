"""What a hypothesis is, and where it can act."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from pe_core.model.config import ModelConfig
from pe_parity.padding import Padding, part
from pe_parity.perturbed_reference import Change, Edit, PerturbedReference

# What the text of a mistake in one layer, or one kind of place, has.
ALONE: Final = " alone"
Apply = Callable[[PerturbedReference], PerturbedReference]


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A mistake and the model that makes it.

    Args:
        text: what is wrong, as a sentence without its full stop.
        apply: makes a model make it, on top of its other mistakes.
        followed: whether the model also gives the names after the first difference exactly.
        padding: what padded steps hold, where the mistake lets them reach the result.
        reads_padding: whether it does.
    """

    text: str
    apply: Apply
    followed: bool = True
    padding: Padding | None = None
    reads_padding: bool = False

    def on(self, variant: PerturbedReference) -> PerturbedReference:
        """Return a model with this mistake too."""
        return self.apply(replace(variant, padding=self.padding) if self.reads_padding else variant)


def edit(text: str, *edits: Edit) -> Hypothesis:
    """Return the mistake of taking steps another way."""
    return Hypothesis(text, lambda variant: variant.edited(*edits))


def with_config(text: str, **changes: Any) -> Hypothesis:
    """Return the mistake of another config."""
    return Hypothesis(text, lambda variant: replace(variant, config=_config(variant, changes)))


def _config(variant: PerturbedReference, changes: dict[str, Any]) -> ModelConfig:
    found: ModelConfig = replace(variant.config, **changes)
    return found


def with_weights(text: str, names: list[str], change: Change) -> Hypothesis:
    """Return the mistake of other weights."""

    def apply(variant: PerturbedReference) -> PerturbedReference:
        # A layer may be left out by then.
        there = (name for name in names if name in variant.weights)
        changed = {name: change(variant.weights[name]) for name in there}
        return replace(variant, weights={**variant.weights, **changed})

    return Hypothesis(text, apply)


@dataclass(frozen=True)
class Places:
    """Where mistakes can act.

    Args:
        variant: the model so far.
        first: the number of the first layer in which a mistake of one layer alone can act.
        last: that of the last.
        conventions: what padded steps may hold.
        rare: whether these are the rare conventions, which only the usual mistakes are tried with.
    """

    variant: PerturbedReference
    first: int
    last: int
    conventions: tuple[Padding | None, ...]
    rare: bool = False

    def of(self, where: str) -> Iterator[tuple[str, str]]:
        """Yield a name within a layer, for every layer and for each alone, and the words for it."""
        yield where, ""
        if self.variant.config.num_layers > 1:
            for n in range(self.first, self.last + 1):
                yield f"layers.{n}.{where}", f", in layer {n}{ALONE}"

    def reading_padding(self, one: Hypothesis) -> Iterator[Hypothesis]:
        """Yield a hypothesis with everything that padding may hold."""
        conventions = self.conventions
        if self.variant.mask is None or self.variant.padding is not None:
            # It does not matter, or the mistakes so far have shown it.
            conventions = (self.variant.padding,)
        for padding in conventions:
            yield replace(one, padding=padding, reads_padding=True)


def matching(variant: PerturbedReference, where: str) -> list[str]:
    """Return the parameters of this name, or of this name within their layer."""
    return [name for name in variant.weights if where in (name, part(name))]


def encoding_added(run: Any, encoded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps before the encodings were added, and what they added; 0 at a trained step
    in front.
    """
    ahead = encoded.shape[1] - run.values["input"].shape[1]
    before = np.concatenate([encoded[:, :ahead], run.values["input"]], axis=1)
    return before, encoded - before
