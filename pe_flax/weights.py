"""Canonical arrays to a live module and back; `layout.py` knows which of them are transposed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from pe_core.errors import UserTypeError, UserValueError
from pe_core.model.config import ComputeConfig, ModelConfig
from pe_core.model.parameters import encoder_parameters, parameters
from pe_core.storage.model_directory import (
    SavedModel,
    check_arrays,
    load_model,
    save_model,
    warn_of_details,
)
from pe_flax.encoder import Encoder, SequenceClassifier
from pe_flax.layout import get_arrays, put_arrays


def require_classifier(model: nnx.Module) -> SequenceClassifier:
    """Return the model.

    Raises:
        UserTypeError: it is no classifier.
    """
    if not isinstance(model, SequenceClassifier):
        raise UserTypeError(
            f"a SequenceClassifier of pe_flax is needed, got {type(model).__name__}; pass one"
        )
    return model


def to_arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    """Return copies of the weights under their canonical names: float64 for float64, and float32
    for any narrower dtype.

    Args:
        model: an encoder or classifier.

    Raises:
        UserTypeError: it is another object.
        UserValueError: one of its weights is gone, replaced by other parameters.
    """
    if isinstance(model, Encoder):
        items = encoder_parameters(model.config)
    else:
        items = parameters(require_classifier(model).config)
    live = get_arrays(model)
    missing = [item.name for item in items if item.name not in live]
    if missing:
        raise UserValueError(f"the model has no weight {', '.join(missing)}; undo what replaced it")
    return {item.name: live[item.name] for item in items}


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


def load_arrays(model: nnx.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Put the weights into a live model, in place and in its dtype.

    Raises:
        UserTypeError: it is no classifier.
        ValueError: missing, unexpected and misshapen names, reported together.
    """
    check_arrays(parameters(require_classifier(model).config), arrays, "the dictionary of arrays")
    put_arrays(model, arrays)


def save(model: nnx.Module, directory: str | os.PathLike[str], **details: Any) -> None:
    """Write a model directory; details such as class_names are kept in its config.json. Weights
    narrower than float32 are stored as float32.

    Raises:
        UserTypeError: it is no classifier.
    """
    config = require_classifier(model).config
    save_model(directory, SavedModel(config, to_arrays(model), details))


def load(
    directory: str | os.PathLike[str], *, compute: ComputeConfig | None = None
) -> SequenceClassifier:
    """Return the classifier of a model directory or of a finished run, in evaluation mode.

    It is the bare model: it takes inputs as they were in training, standardised where the data
    were, and gives logits without names. What else the folder holds, the standardisation and the
    names of the classes, is applied by `load_predictor`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or does not fit its config.

    Warns:
        UserWarning: the folder holds a standardisation.
    """
    saved = load_model(directory)
    warn_of_details(saved, directory)
    return from_arrays(saved.config, saved.arrays, compute=compute)
