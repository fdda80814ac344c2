"""Sines and cosines of positions times frequencies, at any position."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Final

import numpy as np
import torch
from torch import Tensor

from pe_torch.positions import Positions

PI: Final = Decimal("3.141592653589793238462643383279502884197169399375105820974944592")
# Kinds of devices that have no float64.
WITHOUT_FLOAT64: Final = frozenset({"mps"})


class Frequencies:
    """The frequencies base^(-k / divisor) for k < count.

    Made with a layer and not in its call, which `torch.compile` must be able to trace. Both arrays
    stay on the CPU whatever device is the default, for a module on "meta" has no values.

    Args:
        radians: per step, float64.
        base: of the powers.
        divisor: of the exponents.
    """

    def __init__(self, radians: np.ndarray, base: float | int, divisor: float | int) -> None:
        with localcontext() as context:
            context.prec = 60
            turns = [
                int((Decimal(base) ** (-Decimal(k) / Decimal(divisor)) / (2 * PI)) * 2**128)
                for k in range(len(radians))
            ]
        self.radians = torch.from_numpy(np.ascontiguousarray(radians))
        # Turns per step in 128 bits: those that an int64 product with a position wraps to whole
        # turns, and the rest.
        self.high = torch.from_numpy(np.array([turn >> 64 for turn in turns], np.int64))
        self.low = torch.from_numpy(np.array([(turn % 2**64) / 2**128 for turn in turns]))


def sine_cosine(
    positions: Positions, frequencies: Frequencies, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return sine and cosine of position times frequency, (..., length, count) each. They are taken
    in float64, on the CPU where the device has none.

    Args:
        positions: where the steps stand, integer or floating point.
        frequencies: in radians and in turns per step.
        dtype: of the results.
    """
    values = positions.values
    device = values.device
    if device.type in WITHOUT_FLOAT64:
        found = sine_cosine(positions._replace(values=values.cpu()), frequencies, dtype)
        return found[0].to(device), found[1].to(device)
    if positions.bound is not None:
        angles = values.double()[..., None] * frequencies.radians.to(device)
    else:
        angles = _turns(values, frequencies) * (2 * np.pi)
    return angles.sin().to(dtype), angles.cos().to(dtype)


def _turns(values: Tensor, frequencies: Frequencies) -> Tensor:
    """Return positions times frequencies in turns, less the whole turns, as float64.

    A float64 product of a time in milliseconds has no digits left below 1e-4. In int64, what
    overflows are whole turns.
    """
    device = values.device
    high, low = frequencies.high.to(device), frequencies.low.to(device)
    floating = values.dtype.is_floating_point
    whole = values.floor().long() if floating else values
    turns = (whole[..., None] * high).double() * 2.0**-64 + whole.double()[..., None] * low
    if not floating:
        return turns
    # Not a number stays one, which a cast to int64 loses.
    share = (values - values.floor()).double()[..., None]
    return turns + share * (frequencies.radians.to(device) / (2 * np.pi))
