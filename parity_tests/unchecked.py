"""The torch backend as users import it. torch.compile and torch.jit.trace cannot go through the
checks of shapes that `conftest.py` puts into every function.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def _modules() -> dict[str, Any]:
    return {name: sys.modules[name] for name in sys.modules if name.split(".")[0] == "pe_torch"}


@contextmanager
def unchecked_torch() -> Iterator[Any]:
    """Give a second `pe_torch` without checks, which every import finds meanwhile."""
    checked = _modules()
    hooks = [finder for finder in sys.meta_path if type(finder).__module__.startswith("jaxtyping")]
    for name in checked:
        del sys.modules[name]
    for hook in hooks:
        sys.meta_path.remove(hook)
    try:
        package = importlib.import_module("pe_torch")
        for name in checked:
            importlib.import_module(name)
        yield package
    finally:
        for name in _modules():
            del sys.modules[name]
        sys.modules.update(checked)
        sys.meta_path[:0] = hooks
