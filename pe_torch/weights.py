"""Canonical arrays to a live module and back; `layout.py` knows which of them are transposed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

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
from pe_torch.encoder import Encoder, SequenceClassifier
from pe_torch.layout import get_arrays, put_arrays, unwrap


def require_classifier(model: nn.Module) -> SequenceClassifier:
    """Return the classifier inside all wrappers of torch, such as that of torch.compile.

    Raises:
        UserTypeError: it is none.
    """
    inside = unwrap(model)
    if not isinstance(inside, SequenceClassifier):
        found = type(model).__name__
        if inside is not model:
            found += f" around {type(inside).__name__}"
        raise UserTypeError(
            f"a SequenceClassifier of pe_torch is needed, got {found}; pass one, in a wrapper of "
            "torch or not"
        )
    return inside


def to_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Return copies of the weights under their canonical names: float64 for float64, and float32
    for any narrower dtype.

    Args:
        model: an encoder or classifier, in a wrapper of torch or not.

    Raises:
        UserTypeError: it is another object.
        UserValueError: one of its weights is gone, replaced by other parameters.
    """
    inside = unwrap(model)
    if isinstance(inside, Encoder):
        items = encoder_parameters(inside.config)
    else:
        items = parameters(require_classifier(model).config)
    live = get_arrays(inside)
    missing = [item.name for item in items if item.name not in live]
    if missing:
        raise UserValueError(
            f"the model has no weight {', '.join(missing)}; undo what replaced it, such as a "
            "parametrization"
        )
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
    return model.eval()


def load_arrays(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Put the weights into a live model, in place and in its dtype.

    Raises:
        UserTypeError: it is no classifier, in a wrapper of torch or not.
        ValueError: missing, unexpected and misshapen names, reported together.
    """
    inside = require_classifier(model)
    check_arrays(parameters(inside.config), arrays, "the dictionary of arrays")
    put_arrays(inside, arrays)


def save(model: nn.Module, directory: str | os.PathLike[str], **details: Any) -> None:
    """Write a model directory; details such as class_names are kept in its config.json. Weights
    narrower than float32 are stored as float32.

    Raises:
        UserTypeError: it is no classifier, in a wrapper of torch or not.
    """
    inside = require_classifier(model)
    save_model(directory, SavedModel(inside.config, to_arrays(inside), details))


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
