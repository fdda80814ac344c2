"""Canonical names and layouts against those of a live module, and tensors described for checks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from pe_core.model.inputs import Described


def canonical_variables(model: nn.Module) -> dict[str, tuple[nn.Parameter, bool]]:
    """Return each parameter of a live module under its canonical name, and whether its layout is
    the transposed one, which none is here. A classifier's encoder has no name of its own.
    """
    return {
        name.removeprefix("encoder."): (parameter, False)
        for name, parameter in model.named_parameters()
    }


def put_arrays(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Put canonical arrays into a live module, in place and in the module's dtype."""
    live = canonical_variables(model)
    with torch.no_grad():
        for name, array in arrays.items():
            # torch warns of arrays that it may not write to, so it gets a copy.
            live[name][0].copy_(torch.from_numpy(np.array(array)))


def get_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Return copies of the parameters of a live module in the canonical layout, contiguous."""
    return {
        name: parameter.detach().cpu().numpy().copy()
        for name, (parameter, _) in canonical_variables(model).items()
    }


def described(x: Tensor) -> Described:
    """Return shape, kind and dtype of a tensor."""
    if x.dtype.is_floating_point:
        kind = "f"
    else:
        kind = "b" if x.dtype == torch.bool else "c" if x.dtype.is_complex else "i"
    return Described(tuple(x.shape), kind, str(x.dtype))


def describe(x: Tensor | None) -> Described | None:
    """Return shape, kind and dtype of a tensor that may be None."""
    return None if x is None else described(x)
