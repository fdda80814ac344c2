"""Reaching a wing by its name."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
import os
import platform
from pathlib import Path
from typing import Any, Final, cast

from pe_core.errors import UserMemoryError, UserModuleNotFoundError, require_one_of
from pe_core.model.config import ModelConfig
from pe_core.model.parameters import parameters
from pe_core.training.engine import EngineType

FRAMEWORKS: Final = ("torch", "flax")
# What each wing needs, and the packages whose versions a report names.
REQUIREMENTS: Final = {"torch": ("torch",), "flax": ("jax", "flax", "optax")}
REPORTED: Final = ("positional-encoding", "numpy", "torch", "jax", "flax", "optax")
# A weight in training, its gradient and the two moments of Adam, in float32; less than what is
# really needed.
BYTES_PER_WEIGHT: Final = 16


def missing_packages(framework: str) -> list[str]:
    """Return the packages that a framework needs and that are not installed."""
    return [name for name in REQUIREMENTS[framework] if not _found(name)]


def require_framework(framework: str) -> None:
    """Raise one clear line where a framework cannot be used; imports nothing.

    Raises:
        ValueError: an unknown framework.
        ModuleNotFoundError: it is not installed; the line has the extra that installs it.
    """
    require_one_of("framework", framework, FRAMEWORKS)
    missing = missing_packages(framework)
    if missing:
        raise UserModuleNotFoundError(
            f"framework {framework!r} needs {', '.join(missing)}, not installed here; "
            f"install with: pip install 'positional-encoding[{framework}]'"
        )


def engine_type(framework: str) -> EngineType:
    """Return a wing's engine.

    Raises:
        ValueError: an unknown framework.
        ModuleNotFoundError: it is not installed, or cannot be imported.
    """
    require_framework(framework)
    try:
        return cast(EngineType, importlib.import_module(f"pe_{framework}.engine").Engine)
    except ImportError as error:
        raise UserModuleNotFoundError(
            f"framework {framework!r} is installed but cannot be imported ({error}); "
            f"install it again: pip install --force-reinstall 'positional-encoding[{framework}]'"
        ) from error


def _found(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (
        ImportError,
        ValueError,
    ):  # what finders raise for a package that is blocked or half removed
        return False


def count_weights(config: ModelConfig) -> int:
    """Return how many weights a model has.

    Raises:
        MemoryError: more than this machine could train.
    """
    weights = sum(math.prod(item.shape) for item in parameters(config))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if weights * BYTES_PER_WEIGHT > memory:
        needed = weights * BYTES_PER_WEIGHT
        raise UserMemoryError(
            f"{weights:,} weights need {needed / 2**30:,.0f} GiB in training, this machine has "
            f"{memory / 2**30:,.0f} GiB"
        )
    return weights


def versions() -> dict[str, Any]:
    """Return the versions and the machine that figures depend on."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in REPORTED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found |= {"machine": platform.machine(), "cores": os.cpu_count(), "processor": _processor()}
    return found | {"threads": os.environ.get("OMP_NUM_THREADS", "default")}


def _processor() -> str:
    """The name of the processor; what the platform says where it is not to be had."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
