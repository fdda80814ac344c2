"""Sines and cosines of positions times frequencies, at any position."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pe_torch.positions import Positions


def sine_cosine(positions: Positions, frequencies: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return sine and cosine of position times frequency in float64, (..., length, count) each.

    Args:
        positions: where the steps stand, integer or floating point.
        frequencies: (count,) float64, in radians per step.
    """
    values = positions.values
    angles = values.double()[..., None] * torch.from_numpy(frequencies).to(values.device)
    return angles.sin(), angles.cos()
