"""Reaching a wing by its name."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
from typing import Any, Final, cast

from pe_core.config import FRAMEWORKS
from pe_core.engine import EngineType
from pe_core.errors import require_one_of

# What each wing needs, and the packages whose versions a report names.
REQUIREMENTS: Final = {"torch": ("torch",), "flax": ("jax", "flax", "optax")}
REPORTED: Final = ("positional-encoding", "numpy", "torch", "jax", "flax", "optax")


def missing_packages(framework: str) -> list[str]:
    """Return the packages that a framework needs and that are not installed."""
    return [name for name in REQUIREMENTS[framework] if importlib.util.find_spec(name) is None]


def engine_type(framework: str) -> EngineType:
    """Return a wing's engine.

    Raises:
        ValueError: an unknown framework.
        ModuleNotFoundError: it is not installed; the line has the extra that installs it.
    """
    require_one_of("framework", framework, FRAMEWORKS)
    missing = missing_packages(framework)
    if missing:
        raise ModuleNotFoundError(
            f"framework {framework!r} needs {', '.join(missing)}, not installed here; "
            f"install with: pip install 'positional-encoding[{framework}]'"
        )
    return cast(EngineType, importlib.import_module(f"pe_{framework}.engine").Engine)


def versions() -> dict[str, Any]:
    """Return the versions and the machine that figures depend on."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in REPORTED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"machine": platform.machine(), "cores": os.cpu_count()}
