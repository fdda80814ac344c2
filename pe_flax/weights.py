"""Canonical arrays to a live module and back; `layout.py` knows which of them are transposed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from pe_core.model.config import ComputeConfig, ModelConfig
from pe_core.model.parameters import parameters
from pe_core.storage.model_directory import SavedModel, check_arrays, load_model, save_model
from pe_flax.encoder import Encoder, SequenceClassifier
from pe_flax.layout import get_arrays, put_arrays


def to_arrays(model: Encoder | SequenceClassifier) -> dict[str, np.ndarray]:
    """Return copies of the weights under their canonical names, float32 or float64."""
    live = get_arrays(model)
    order = [item.name for item in parameters(model.config) if item.name in live]
    return {name: live[name] for name in order}


def from_arrays(
    config: ModelConfig, arrays: Mapping[str, np.ndarray], *, compute: ComputeConfig | None = None
) -> SequenceClassifier:
    """Return a classifier in evaluation mode with these weights.

    Raises:
        ValueError: missing, unexpected and misshapen names, reported together.
    """
    model = SequenceClassifier(config, compute=compute)
    load_arrays(model, arrays)
    model.eval()
    return model


def load_arrays(model: SequenceClassifier, arrays: Mapping[str, np.ndarray]) -> None:
    """Put the weights into a live model, in place.

    Raises:
        ValueError: missing, unexpected and misshapen names, reported together.
    """
    check_arrays(parameters(model.config), arrays, "the dictionary of arrays")
    put_arrays(model, arrays)


def save(model: SequenceClassifier, directory: str | os.PathLike[str], **details: Any) -> None:
    """Write a model directory; details such as class_names are kept in its config.json."""
    save_model(directory, SavedModel(model.config, to_arrays(model), details))


def load(
    directory: str | os.PathLike[str], *, compute: ComputeConfig | None = None
) -> SequenceClassifier:
    """Return the classifier of a model directory, in evaluation mode.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or does not fit its config.
    """
    saved = load_model(directory)
    return from_arrays(saved.config, saved.arrays, compute=compute)
