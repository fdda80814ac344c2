"""Mistakes that ports make, each as a variant of the model to compare a trace with.

They know no port: each changes the reference, at every place where it can act.
"""

from __future__ import annotations

from collections.abc import Iterator

from pe_parity.hypotheses.blocks import activations, norms, residuals
from pe_parity.hypotheses.heads import across, heads, scales
from pe_parity.hypotheses.hypothesis import ALONE, Hypothesis, Places
from pe_parity.hypotheses.masks import masks, softmaxes
from pe_parity.hypotheses.parameters import layers, packed, parameters
from pe_parity.hypotheses.pooling import pooling
from pe_parity.hypotheses.positions import positions
from pe_parity.hypotheses.precision import precisions
from pe_parity.padding import RARE, USUAL
from pe_parity.perturbed_reference import PerturbedReference

__all__ = ["ALONE", "Hypothesis", "hypotheses"]


def across_for_cls(at: Places) -> Iterator[Hypothesis]:
    """Yield attention over another axis before attention that is causal: the result of a cls step
    that sees itself alone is the same for both, and `batch_first` is forgotten more often.
    """
    yield from across(at) if at.variant.config.pooling == "cls" else ()


def across_for_others(at: Places) -> Iterator[Hypothesis]:
    """Yield the same where nothing is taken for it."""
    yield from across(at) if at.variant.config.pooling != "cls" else ()


# The order decides between two that explain the same names equally well.
TABLES = (
    norms,
    activations,
    across_for_cls,
    masks,
    pooling,
    positions,
    scales,
    heads,
    across_for_others,
    parameters,
    packed,
    residuals,
    softmaxes,
    layers,
    precisions,
)


def hypotheses(
    variant: PerturbedReference, first: int, last: int
) -> Iterator[Iterator[Hypothesis]]:
    """Yield every known mistake, in groups, the likeliest first.

    Args:
        variant: the model so far.
        first: the number of the first layer in which a mistake of one layer alone can act.
        last: that of the last.
    """
    for conventions in (USUAL, RARE):
        for table in TABLES:
            found = table(Places(variant, first, last, conventions, conventions is RARE))
            # What does not read padding comes once.
            yield (one for one in found if one.reads_padding or conventions is USUAL)
