"""The torch backend as users import it. torch.compile and torch.jit.trace cannot go through the
checks of shapes that `conftest.py` puts into every function.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch._library.custom_ops import OPDEFS


@contextmanager
def unchecked_torch() -> Iterator[Any]:
    """Give a second `pe_torch` without checks, which every import finds meanwhile. What is compiled
    must all be of this one: Dynamo knows modules by their names.
    """
    checked, unchecked = _modules(), _import_again()
    sys.modules.update(unchecked)
    try:
        yield unchecked["pe_torch"]
    finally:
        sys.modules.update(checked)


def _modules() -> dict[str, Any]:
    return {name: sys.modules[name] for name in sys.modules if name.split(".")[0] == "pe_torch"}


@cache
def _import_again() -> dict[str, Any]:
    checked = _modules()
    hooks = [finder for finder in sys.meta_path if type(finder).__module__.startswith("jaxtyping")]
    # An operator has one registration: a second one would take it from the first package.
    register = torch.library.custom_op
    for name in checked:
        del sys.modules[name]
    for hook in hooks:
        sys.meta_path.remove(hook)
    found: Any = lambda name, **_: lambda _: OPDEFS[name]  # noqa: E731
    torch.library.custom_op = found
    try:
        for name in checked:
            importlib.import_module(name)
        return _modules()
    finally:
        torch.library.custom_op = register
        sys.modules.update(checked)
        sys.meta_path[:0] = hooks
