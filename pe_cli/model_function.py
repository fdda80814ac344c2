"""Anybody's model, by the name of its module: a function that takes arrays and returns named
intermediates.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from pe_core.errors import UserValueError, nearest
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
        ValueError: no such module or function, or it fails; the line says where.
    """
    name, _, function = text.partition(":")
    if name.endswith(".py") or "/" in name:
        raise UserValueError(
            f"--impl {text}: give the name of the module, not its file; for example "
            f"{_module_name(name)}"
        )
    if not all(word.isidentifier() for word in name.split(".")):
        raise UserValueError(
            f"--impl {text!r} is no name of a module; write {', '.join(backends())}, "
            "reference, MODULE or MODULE:FUNCTION"
        )
    if (
        os.getcwd() not in sys.path
    ):  # the command pe has its own folder in front, python -m the current one
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise UserValueError(f"--impl {text}: {_told(error)}; install what it needs") from error
        hint = nearest(name, (*backends(), "reference"))
        remedy = hint if hint.startswith("did you mean") else "check the name"
        raise UserValueError(
            f"--impl {text}: no module of that name here or among the installed; {remedy}"
        ) from None
    except Exception as error:
        raise UserValueError(
            f"--impl {text}: cannot be imported, {_told(error)}; correct it"
        ) from error
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
        raise UserValueError(f"--impl {text}: {_told(error)}; correct it") from error
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
            f"--impl {text}: {name} cannot be made an array, {_told(error)}"
        ) from error
    if array.dtype.kind not in "fiub":
        raise UserValueError(
            f"--impl {text}: {name} must hold real numbers, got {type(value).__name__} of dtype "
            f"{array.dtype}"
        )
    return array


def _told(error: BaseException) -> str:
    """Return an error of somebody's code on one line, with the place."""
    frames = traceback.extract_tb(error.__traceback__)
    # The last line outside libraries is the one that its author can change.
    own = [
        frame
        for frame in frames
        if "site-packages" not in frame.filename
        and not frame.filename.startswith(("<", sys.base_prefix))
    ]
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if len(own) > 1 else ""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}{place}"


def _module_name(file: str) -> str:
    return file.removesuffix(".py").removeprefix("./").strip("/").replace("/", ".")
