"""Load a model function from MODULE[:FUNCTION]: it takes arrays and returns named intermediates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from pe_cli.imports import cause, import_module
from pe_core.errors import UserValueError
from pe_core.training.backends import backends
from pe_parity.trace import Trace
from pe_parity.trace_file import ABOUT, GIVEN, Given

FUNCTION: Final = "taps"
CONVENTION: Final = (
    "def taps(config, weights, inputs, mask), which returns a dictionary of named arrays"
)


def implementation(text: str) -> Callable[[Given], Trace]:
    """Return what traces the model of MODULE or MODULE:FUNCTION, found where Python finds modules
    and in the current folder.

    Raises:
        UserValueError: no such module or function, or it fails; the line says where.
    """
    name, _, function = text.partition(":")
    found: Any = import_module(
        name,
        f"--impl {text}",
        known=(*backends(), "reference"),
        form="torch, flax, reference, MODULE or MODULE:FUNCTION",
    )
    for word in (function or FUNCTION).split("."):
        if not hasattr(found, word):
            raise UserValueError(
                f"--impl {text}: {name} has no {function or FUNCTION}; it needs {CONVENTION}"
            )
        found = getattr(found, word)
    if not callable(found):
        raise UserValueError(
            f"--impl {text}: {function or FUNCTION} is no function; it needs {CONVENTION}"
        )
    return lambda given: _called(text, found, given)


def _called(text: str, function: Callable[..., Any], given: Given) -> Trace:
    # Copies: a function that works in place must not change what is written beside its trace.
    weights = {name: array.copy() for name, array in given.weights.items()}
    mask = None if given.mask is None else given.mask.copy()
    try:
        found = function(given.config.to_json(), weights, given.inputs.copy(), mask)
    except Exception as error:
        raise UserValueError(f"--impl {text}: {cause(error)}; correct it") from error
    if not isinstance(found, dict) or not found:
        got = (
            f"a dictionary without names, {found!r}"
            if isinstance(found, dict)
            else type(found).__name__
        )
        raise UserValueError(f"--impl {text}: must return a dictionary of named arrays, got {got}")
    return {_checked_name(text, name): _array(text, name, value) for name, value in found.items()}


def _checked_name(text: str, name: Any) -> str:
    if not isinstance(name, str) or not name or name == ABOUT or name.startswith((GIVEN, "/")):
        raise UserValueError(
            f"--impl {text}: {name!r} cannot be the name of an array; take one such as "
            "layers.0.attention.logits"
        )
    return name


def _array(text: str, name: str, value: Any) -> np.ndarray:
    """Return an array of any framework as NumPy's, without importing the framework."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if "bfloat16" in str(value.dtype) else value
    try:
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    except Exception as error:
        raise UserValueError(
            f"--impl {text}: {name} cannot be made an array, {cause(error)}"
        ) from error
    if array.dtype.kind not in "fiub":
        raise UserValueError(
            f"--impl {text}: {name} must hold real numbers, got {type(value).__name__} of dtype "
            f"{array.dtype}"
        )
    return array
