"""Canonical arrays to a live module and back. The layouts of torch are the canonical ones, so nothing is transposed here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pe_core.config import ComputeConfig, ModelConfig
from pe_core.parameters import parameters
from pe_core.weights import SavedModel, check_arrays, load_model, save_model
from pe_torch.encoder import Encoder, SequenceClassifier


def to_arrays(model: Encoder) -> dict[str, np.ndarray]:
    """Return copies of the weights under their canonical names, float32 or float64."""
    live = dict(model.named_parameters())
    order = [item.name for item in parameters(model.config) if item.name in live]
    return {name: live[name].detach().cpu().numpy().copy() for name in order}


def from_arrays(config: ModelConfig, arrays: Mapping[str, np.ndarray], *, compute: ComputeConfig | None = None) -> SequenceClassifier:
    """Return a classifier in evaluation mode with these weights.

    Raises:
        ValueError: missing, unexpected and misshapen names, reported together.
    """
    model = SequenceClassifier(config, compute=compute)
    load_arrays(model, arrays)
    return model.eval()


def load_arrays(model: SequenceClassifier, arrays: Mapping[str, np.ndarray]) -> None:
    """Put the weights into a live model, in place.

    Raises:
        ValueError: missing, unexpected and misshapen names, reported together.
    """
    check_arrays(parameters(model.config), arrays, "the dictionary of arrays")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(np.array(arrays[name])))


def save(model: SequenceClassifier, directory: str | os.PathLike[str], **details: Any) -> None:
    """Write a model directory; details such as class_names are kept in its config.json."""
    save_model(directory, SavedModel(model.config, to_arrays(model), details))


def load(directory: str | os.PathLike[str], *, compute: ComputeConfig | None = None) -> SequenceClassifier:
    """Return the classifier of a model directory, in evaluation mode.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or does not fit its config.
    """
    saved = load_model(directory)
    return from_arrays(saved.config, saved.arrays, compute=compute)
