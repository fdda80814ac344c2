"""Canonical names and layouts against those of a live module, and arrays described for checks. The
only place that knows that a kernel is transposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pe_core.errors import UserTypeError
from pe_core.model.inputs import Described

# The arguments of public calls that cannot be left out.
REQUIRED: Final = ("x", "queries", "keys")


def canonical_variables(
    model: nnx.Module | Mapping[Any, Any],
) -> dict[str, tuple[nnx.Variable, bool]]:
    """Return each weight of a live module under its canonical name, and whether its layout is the
    transposed one.

    A kernel (in, out) is a canonical weight (out, in); the scale of a norm is its canonical weight.
    Parameters of an encoding have the names and layouts of its options, whatever they are called.
    What has the layout of the module's state, such as the moments of an optimizer, is named
    likewise.
    """
    found = {}
    state: Any = nnx.state(model, nnx.Param) if isinstance(model, nnx.Module) else model
    for path, variable in nnx.to_flat_state(state):
        *parents, leaf = (str(part) for part in path)
        of_flax = "encodings" not in parents
        called = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf) if of_flax else leaf
        name = ".".join([*parents, called]).removeprefix("encoder.")
        found[name] = (variable, of_flax and leaf == "kernel")
    return found


def put_arrays(model: nnx.Module | Mapping[Any, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Put canonical arrays into a live module, in place and in the module's dtype."""
    live = canonical_variables(model)
    for name, given in arrays.items():
        variable, transposed = live[name]
        array = np.asarray(given, variable.dtype)
        variable[...] = jnp.asarray(array.T if transposed else array)


def get_arrays(model: nnx.Module | Mapping[Any, Any]) -> dict[str, np.ndarray]:
    """Return copies of the weights of a live module in the canonical layout, contiguous, in
    float32, or float64 for float64.
    """
    return {
        name: np.array(
            to_numpy(variable[...]).T if transposed else to_numpy(variable[...]), order="C"
        )
        for name, (variable, transposed) in canonical_variables(model).items()
    }


def to_numpy(x: Array) -> np.ndarray:
    """Return a copy as float64 for float64 and as float32 for any narrower dtype, which is exact;
    files hold no other.
    """
    return np.array(x, np.float64 if x.dtype == jnp.float64 else np.float32)


def described(x: Array | np.ndarray) -> Described:
    """Return shape, kind and dtype of an array."""
    kind = "f" if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype.kind
    return Described(x.shape, kind, str(x.dtype))


def describe(x: Array | np.ndarray | None) -> Described | None:
    """Return shape, kind and dtype of an array that may be None."""
    return None if x is None else described(x)


def as_arrays(**items: Any) -> tuple[Any, ...]:
    """Return arrays of JAX as they are, traced or not, and None; lists and arrays of NumPy as
    arrays of NumPy in the byte order of the machine, which nothing has cut to fewer bits yet.

    Raises:
        UserTypeError: something that is no array, by its name.
    """
    return tuple(_as_array(name, item) for name, item in items.items())


def _as_array(name: str, item: Any) -> Any:
    if isinstance(item, jax.Array) or (item is None and name not in REQUIRED):
        return item
    if item is None:
        raise UserTypeError(f"{name} must be a jax.Array or a numpy.ndarray, got None")
    if isinstance(item, np.ma.MaskedArray):
        raise UserTypeError(
            f"{name} must be an array without a mask of its own, got a numpy.ma.MaskedArray; pass "
            f"{name}.data, and mask for steps that are not real"
        )
    if hasattr(item, "__jax_array__"):
        return jnp.asarray(item)
    if isinstance(item, list | tuple) and any(
        isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(item)
    ):
        return jnp.asarray(item)
    if not isinstance(item, np.ndarray | np.generic | list | tuple | int | float):
        kind = type(item)
        called = (
            kind.__name__
            if kind.__module__ == "builtins"
            else f"{kind.__module__.split('.')[0]}.{kind.__name__}"
        )
        raise UserTypeError(
            f"{name} must be a jax.Array or a numpy.ndarray, got {called}; pass "
            f"numpy.asarray({name})"
        )
    try:
        array = np.asarray(item)
    except ValueError:
        raise UserTypeError(
            f"{name} must be an array, got a list of rows of several lengths; pad them to one"
        ) from None
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
