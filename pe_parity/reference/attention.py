"""Scaled dot-product attention with masks."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64

from pe_core.model.config import MASKED_LOGIT


def logits(
    query: Float64[np.ndarray, "batch heads queries width"],
    key: Float64[np.ndarray, "batch heads keys width"],
    scale: float,
) -> Float64[np.ndarray, "batch heads queries keys"]:
    """q k scale, with scale 1 / sqrt(d_head) unless an encoding changes it.

    Source: Vaswani et al. 2017, equation 1.
    """
    return np.einsum("bhqd,bhkd->bhqk", query, key) * scale


def weights(
    logits: Float64[np.ndarray, "batch heads queries keys"],
    allowed: Bool[np.ndarray, "batch 1 #queries keys"] | None,
) -> Float64[np.ndarray, "batch heads queries keys"]:
    """Softmax over the allowed keys; a query without one has weights of zero."""
    if allowed is not None:
        logits = np.where(allowed, logits, MASKED_LOGIT)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    normalised = powers / powers.sum(axis=-1, keepdims=True)
    return (
        normalised
        if allowed is None
        else np.where(allowed.any(axis=-1, keepdims=True), normalised, 0.0)
    )


def mixed(
    weights: Float64[np.ndarray, "batch heads queries keys"],
    value: Float64[np.ndarray, "batch heads keys d_head"],
) -> Float64[np.ndarray, "batch heads queries d_head"]:
    """The weighted sum of the values."""
    return np.einsum("bhqk,bhkd->bhqd", weights, value)
