"""Canonical names and layouts against those of a live module, and tensors described for checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from pe_core.errors import UserTypeError
from pe_core.model.inputs import Described

# The arguments of public calls that cannot be left out.
REQUIRED: Final = ("x", "queries", "keys")


# Where wrappers keep the module inside: torch.compile; DataParallel, DistributedDataParallel and
# AveragedModel; checkpointed and sharded ones. Names of parameters have the same parts.
WRAPPERS: Final = ("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def unwrap(model: Any) -> Any:
    """Return the module inside all wrappers, or the object itself where it is none."""
    while True:
        parts = (getattr(model, name, None) for name in WRAPPERS)
        inside = next((part for part in parts if isinstance(part, nn.Module)), None)
        if inside is None:
            return model
        model = inside


def canonical_name(name: str) -> str:
    """Return the canonical name of a parameter from its name in a module, wrapped or not. A
    classifier's encoder has no name of its own.
    """
    *parents, leaf = name.split(".")
    parts = [part for part in parents if part not in WRAPPERS]
    return ".".join([*(parts[1:] if parts[:1] == ["encoder"] else parts), leaf])


def canonical_variables(model: nn.Module) -> dict[str, tuple[nn.Parameter, bool]]:
    """Return each parameter of a live module under its canonical name, and whether its layout is
    the transposed one, which none is here.
    """
    return {
        canonical_name(name): (parameter, False) for name, parameter in model.named_parameters()
    }


def put_arrays(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Put canonical arrays into a live module, in place and in the module's dtype."""
    live = canonical_variables(model)
    with torch.no_grad():
        for name, array in arrays.items():
            live[name][0].copy_(from_numpy(array))


def get_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Return copies of the parameters of a live module in the canonical layout, contiguous, in
    float32, or float64 for float64.
    """
    return {
        name: to_numpy(parameter) for name, (parameter, _) in canonical_variables(model).items()
    }


def from_numpy(array: np.ndarray) -> Tensor:
    """Return a copy of an array as a tensor: torch takes no other byte order than the machine's,
    and warns of arrays that it may not write to.
    """
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("=")))


def as_arrays(**items: Any) -> tuple[Any, ...]:
    """Return the arguments, by their names, which are tensors; None where one may be left out.

    Raises:
        UserTypeError: an array of NumPy, a list, or anything else.
    """
    for name, item in items.items():
        if isinstance(item, Tensor) or (item is None and name not in REQUIRED):
            continue
        if item is None:
            raise UserTypeError(f"{name} must be a torch.Tensor, got None")
        kind = type(item)
        called = (
            kind.__name__
            if kind.__module__ == "builtins"
            else (f"{kind.__module__.split('.')[0]}.{kind.__name__}")
        )
        remedy = "torch.from_numpy" if isinstance(item, np.ndarray) else "torch.tensor"
        raise UserTypeError(f"{name} must be a torch.Tensor, got {called}; pass {remedy}({name})")
    return tuple(items.values())


def as_batch_first(x: Tensor, batch_first: bool) -> Tensor:
    """Return steps (batch, length, d_model) from (length, batch, d_model) where the batch is not
    first, and the other way round.
    """
    return x if batch_first or x.ndim != 3 else x.transpose(0, 1)


def as_int64(x: Tensor) -> Tensor:
    """Return integers as int64: torch computes little in the unsigned types, and differences of
    these wrap.
    """
    return x.long()


def to_numpy(x: Tensor) -> np.ndarray:
    """Return a copy as float64 for float64 and as float32 for any narrower dtype, which is exact;
    files hold no other.
    """
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    return x.detach().to(wide).cpu().numpy().copy()


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
