"""Canonical names and layouts against those of a live module, and arrays described for checks. The
only place that knows that a kernel is transposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pe_core.model.inputs import Described


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
        name = name.removeprefix("encoder.")
        found[name] = (variable, leaf == "kernel")
    return found


def put_arrays(model: nnx.Module | Mapping[Any, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Put canonical arrays into a live module, in place and in the module's dtype."""
    live = canonical_variables(model)
    for name, given in arrays.items():
        variable, transposed = live[name]
        array = np.asarray(given, variable.dtype)
        variable[...] = jnp.asarray(array.T if transposed else array)


def get_arrays(model: nnx.Module | Mapping[Any, Any]) -> dict[str, np.ndarray]:
    """Return copies of the weights of a live module in the canonical layout, contiguous."""
    return {
        name: np.ascontiguousarray(
            np.asarray(variable[...]).T if transposed else np.array(variable[...])
        )
        for name, (variable, transposed) in canonical_variables(model).items()
    }


def described(x: Array) -> Described:
    """Return shape, kind and dtype of an array."""
    kind = "f" if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype.kind
    return Described(x.shape, kind, str(x.dtype))


def describe(x: Array | None) -> Described | None:
    """Return shape, kind and dtype of an array that may be None."""
    return None if x is None else described(x)


def as_arrays(*items: Any) -> tuple[Any, ...]:
    """Return NumPy arrays as JAX arrays; JAX arrays, traced or not, and None stay what they are."""
    return tuple(None if item is None else jnp.asarray(item) for item in items)
