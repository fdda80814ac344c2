"""Canonical names and layouts against those of a live module: the only place that knows that a
kernel is transposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx


def canonical_variables(
    model: nnx.Module | Mapping[Any, Any],
) -> dict[str, tuple[nnx.Variable, bool]]:
    """Return each weight of a live module under its canonical name, and whether its layout is the
    transposed one.

    A kernel (in, out) is a canonical weight (out, in); the scale of a norm is its canonical weight.
    What has the layout of the module's state, such as the moments of an optimizer, is named
    likewise.
    """
    found = {}
    state: Any = nnx.state(model, nnx.Param) if isinstance(model, nnx.Module) else model
    for path, variable in nnx.to_flat_state(state):
        *parents, leaf = (str(part) for part in path)
        name = ".".join([*parents, {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)])
        found[name] = (variable, leaf == "kernel")
    return found


def put_arrays(model: nnx.Module | Mapping[Any, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Put canonical arrays into a live module, in place and in the module's dtype."""
    for name, (variable, transposed) in canonical_variables(model).items():
        array = np.asarray(arrays[name], variable.dtype)
        variable[...] = jnp.asarray(array.T if transposed else array)


def get_arrays(model: nnx.Module | Mapping[Any, Any]) -> dict[str, np.ndarray]:
    """Return copies of the weights of a live module in the canonical layout, contiguous."""
    return {
        name: np.ascontiguousarray(
            np.asarray(variable[...]).T if transposed else np.array(variable[...])
        )
        for name, (variable, transposed) in canonical_variables(model).items()
    }
