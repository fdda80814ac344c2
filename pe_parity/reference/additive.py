"""Encodings that are added to the steps."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Float64, Num

from pe_core.encodings import LearnedTable, Sinusoidal
from pe_core.model.values import require_positions_fit, require_positions_of_any_table
from pe_parity.reference.angles import angles
from pe_parity.reference.kinds import Additive, Arrays, Positions


def learned_table(
    table: Float64[np.ndarray, "max_length d_model"],
    positions: Num[np.ndarray, "..."],
    *,
    wraps: bool = False,
) -> Float64[np.ndarray, "... d_model"]:
    """A trained vector per position: P[p].

    Source: Gehring et al. 2017, "Convolutional sequence to sequence learning"; Devlin et al. 2019,
    BERT.
    Departs: a float position reads between two rows, (1 - t) P[k] + t P[k + 1] with k the floor of
    p and t = p - k; behind the last row comes the first again where the table wraps.
    """
    if not np.issubdtype(positions.dtype, np.floating):
        return table[positions]
    floor = np.minimum(np.floor(positions), len(table) - 1).astype(np.int64)
    above = (floor + 1) % len(table) if wraps else np.minimum(floor + 1, len(table) - 1)
    share = (positions - floor)[..., None]
    return table[floor] + share * (table[above] - table[floor])


def within_table(options: LearnedTable, positions: Positions) -> Num[np.ndarray, "..."]:
    """Return where positions p stand in a table of n rows.

    "clip": min(p, n - 1). "wrap": p mod n. "interpolate": p (n - 1) / max(m, n - 1), with m the
    last position of the sequence, or of the segment.

    Source: "interpolate" as in Dosovitskiy et al. 2021, "An image is worth 16x16 words", section
    3.2, in one dimension and linear, with the ends of the table kept.
    """
    values, last = positions.values, options.max_length - 1
    if options.over_length == "clip":
        return np.minimum(values, last)
    if options.over_length == "wrap":
        return values % (last + 1)
    values = np.atleast_2d(values)
    real = np.ones(values.shape, bool) if positions.placed is None else positions.placed
    ends = np.zeros(real.shape)
    for row, here in enumerate(np.broadcast_to(values, real.shape)):
        cuts = [] if positions.segments is None else np.diff(positions.segments[row]).nonzero()[0]
        for run in np.split(np.arange(here.size), np.asarray(cuts, int) + 1):
            ends[row, run] = here[run].max(initial=0, where=real[row, run])
    return values * (last / np.maximum(ends, max(last, 1)))


def sinusoidal(
    options: Sinusoidal, d_model: int, positions: Num[np.ndarray, "..."]
) -> Float64[np.ndarray, "... d_model"]:
    """Sine and cosine of p w_k with w_k = base^(-2k / d_model).

    "interleaved": PE[p, 2k] = sin(p w_k), PE[p, 2k + 1] = cos(p w_k). "half": all sines, then all
    cosines, with the same frequencies. "tensor2tensor": half, with w_k = base^(-k / (n - 1)) for n
    = floor(d_model / 2); an odd last column is zero.

    Source: Vaswani et al. 2017, "Attention is all you need", section 3.5; for the third layout the
    code of tensor2tensor, `get_timing_signal_1d`.
    Departs: an odd d_model ends in a sine in the first two layouts; the paper has even widths only.
    """
    tensor2tensor = options.layout == "tensor2tensor"
    count = d_model // 2 if tensor2tensor else (d_model + 1) // 2
    exponents = [
        Fraction(k, max(count - 1, 1)) if tensor2tensor else Fraction(2 * k, d_model)
        for k in range(count)
    ]
    found = angles(positions, options.base, exponents)
    sine, cosine = np.sin(found), np.cos(found)
    encoding = np.zeros((*found.shape[:-1], d_model))
    if options.layout == "interleaved":
        encoding[..., 0::2] = sine
        encoding[..., 1::2] = cosine[..., : d_model // 2]
    else:
        encoding[..., :count] = sine
        encoding[..., count : 2 * count] = cosine[..., : d_model - count]
    return encoding


class LearnedTableFormula(Additive):
    """P[p], added to the steps."""

    def add(self, options: Any, arrays: Arrays, x: np.ndarray, positions: Positions) -> np.ndarray:
        """Return x + P[p]."""
        values = positions.values
        lowest, highest = values.min().item(), values.max().item()
        if options.over_length == "error":
            require_positions_fit(options.max_length, lowest, highest)
            return x + learned_table(arrays["table"], values)
        require_positions_of_any_table(lowest, highest)
        inside = within_table(options, positions)
        return x + learned_table(arrays["table"], inside, wraps=options.over_length == "wrap")


class SinusoidalFormula(Additive):
    """Sines and cosines, added to the steps."""

    def add(self, options: Any, arrays: Arrays, x: np.ndarray, positions: Positions) -> np.ndarray:
        """Return x + PE[p]."""
        return x + sinusoidal(options, x.shape[-1], positions.values)
