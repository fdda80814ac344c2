"""Canonical names and layouts against those of a live module: in torch they are the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn


def canonical_variables(model: nn.Module) -> dict[str, tuple[nn.Parameter, bool]]:
    """Return each weight of a live module under its canonical name, and whether its layout is the
    transposed one, which none is.
    """
    return {name: (parameter, False) for name, parameter in model.named_parameters()}


def put_arrays(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Put canonical arrays into a live module, in place and in the module's dtype."""
    with torch.no_grad():
        for name, (parameter, _) in canonical_variables(model).items():
            # torch warns of arrays that it may not write to, so it gets a copy.
            parameter.copy_(torch.from_numpy(np.array(arrays[name])))


def get_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Return copies of the weights of a live module in the canonical layout, contiguous."""
    return {
        name: parameter.detach().cpu().numpy().copy()
        for name, (parameter, _) in canonical_variables(model).items()
    }
