"""Parameters and batches on which no bug cancels out."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from pe_core.data import Batch
from pe_core.model.config import ModelConfig
from pe_core.model.initial import initial_arrays
from pe_core.model.positions import mask_from_lengths
from pe_core.model.random import derive, normal
from pe_core.training.config import TrainConfig
from pe_parity.check import default_batches

# The purpose of the random numbers, apart from those of a run.
PROBE: Final = 99
DEVIATION: Final = 0.2


def probe_arrays(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Return initial parameters moved off their special values.

    Otherwise a port that forgets a bias of zeros, leaves out a norm's scale of ones or reads the
    wrong row of a table near zero would give the right result.
    """
    return {
        name: (array + DEVIATION * normal(derive(seed, PROBE, number), array.shape)).astype(
            np.float32
        )
        for number, (name, array) in enumerate(initial_arrays(config, seed).items())
    }


def probe_batches(
    config: ModelConfig, train: TrainConfig, steps: int | None, *, masked: bool
) -> list[Batch]:
    """Return the batches of the default check, masked with every length from full to one step.

    The padding is on the right, where counting all steps and counting real steps give real steps
    the same positions.
    """
    found = default_batches(config, train, steps)
    return [replace(batch, mask=_ragged(batch)) for batch in found] if masked else found


def _ragged(batch: Batch) -> np.ndarray:
    count, length = batch.inputs.shape[:2]
    return mask_from_lengths(length - np.arange(count) % length, length)
