"""Finding the backends: each is an entry point `name = "module:Engine"` of some distribution.

This is the only place where they are looked up. A backend needs the packages of that extra of its
distribution that bears its name; a distribution without such an extra needs nothing more than what
was installed with it. So whether a backend is installed, and what would install it, is known
without importing it.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from packaging.requirements import Requirement

from pe_core.errors import (
    UserMemoryError,
    UserModuleNotFoundError,
    UserValueError,
    require_one_of,
)
from pe_core.model.config import ModelConfig
from pe_core.model.parameters import parameters
from pe_core.training.engine import EngineType, ForwardEngineType, can_train

GROUP: Final = "positional_encoding.backends"
DISTRIBUTION: Final = "positional-encoding"
# A weight in training, its gradient and the two moments of Adam, in float32; less than what is
# really needed.
BYTES_PER_WEIGHT: Final = 16


@dataclass(frozen=True)
class Backend:
    """A backend that a distribution registers, installed or not.

    Args:
        name: of its entry point.
        entry: its entry point.
        distribution: the distribution that registers it.
        packages: the distributions of the extra that bears its name.
    """

    name: str
    entry: importlib.metadata.EntryPoint
    distribution: str
    packages: tuple[str, ...]

    @property
    def requirement(self) -> str:
        """What pip installs to make it work."""
        return f"{self.distribution}[{self.name}]" if self.packages else self.distribution

    def missing(self) -> list[str]:
        """Return the packages that it needs and that are not installed."""
        return [name for name in self.packages if _version(name) is None]

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that it needs; its own where it needs none."""
        names = self.packages or (self.distribution,)
        return {name: version for name in names if (version := _version(name)) is not None}

    def title(self) -> str:
        """Return the versions for people, or what installs it."""
        if self.missing():
            return f"not installed; install with: pip install '{self.requirement}'"
        return ", ".join(f"{name} {version}" for name, version in self.versions().items())


def backends() -> dict[str, Backend]:
    """Return the backends that are registered, by name.

    Those of this project come first, so that installing another changes no default; of these, the
    one that needs the fewest packages.

    Raises:
        ModuleNotFoundError: none is registered.
    """
    found = _registered()
    if not found:
        raise UserModuleNotFoundError(
            "no backend is registered, because this project is not installed; in its folder, run: "
            "pip install -e ."
        )
    return found


def require_backend(name: str) -> Backend:
    """Return a backend that can be used here; imports nothing.

    Raises:
        ValueError: an unknown name.
        ModuleNotFoundError: it is not installed; the line says what installs it.
    """
    known = backends()
    require_one_of("framework", name, tuple(known))
    backend = known[name]
    if missing := backend.missing():
        raise UserModuleNotFoundError(
            f"framework {name!r} needs {', '.join(missing)}, not installed here; "
            f"install with: pip install '{backend.requirement}'"
        )
    return backend


def forward_type(name: str) -> ForwardEngineType:
    """Return a backend's engine, which may be one that only predicts.

    Raises:
        ValueError: an unknown name.
        ModuleNotFoundError: it is not installed, or cannot be imported.
    """
    backend = require_backend(name)
    try:
        return cast(ForwardEngineType, backend.entry.load())
    except ImportError as error:
        raise UserModuleNotFoundError(
            f"framework {name!r} is installed but cannot be imported ({error}); "
            f"install it again: pip install --force-reinstall '{backend.requirement}'"
        ) from error


def engine_type(name: str) -> EngineType:
    """Return a backend's engine.

    Raises:
        ValueError: an unknown name, or an engine that only predicts.
        ModuleNotFoundError: it is not installed, or cannot be imported.
    """
    found = forward_type(name)
    if not can_train(found):
        others = ", ".join(other for other in backends() if other != name)
        raise UserValueError(f"framework {name!r} only predicts; take another, of: {others}")
    return found


def set_threads(engine_type: ForwardEngineType, count: int | None) -> None:
    """Have the processor's share of the work done by so many threads, before anything is computed;
    None leaves it to the framework.
    """
    if count is not None:
        # Also for what is loaded later, and so that `versions` says it.
        os.environ["OMP_NUM_THREADS"] = str(count)
        getattr(engine_type, "set_threads", lambda number: None)(count)


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
    for name in (DISTRIBUTION, "numpy"):
        if (version := _version(name)) is not None:
            found[name] = version
    for backend in _registered().values():
        found |= backend.versions()
    found |= {"machine": platform.machine(), "cores": os.cpu_count(), "processor": _processor()}
    return found | {"threads": os.environ.get("OMP_NUM_THREADS", "default")}


def _registered() -> dict[str, Backend]:
    registered = [_backend(entry) for entry in importlib.metadata.entry_points(group=GROUP)]
    registered.sort(key=lambda one: (one.distribution != DISTRIBUTION, len(one.packages), one.name))
    found: dict[str, Backend] = {}
    for backend in registered:
        found.setdefault(backend.name, backend)
    return found


def _backend(entry: importlib.metadata.EntryPoint) -> Backend:
    assert entry.dist is not None
    names = [_required(text, entry.name) for text in entry.dist.requires or ()]
    return Backend(entry.name, entry, entry.dist.name, tuple(name for name in names if name))


def _required(text: str, extra: str) -> str | None:
    """Return the name in a requirement where the extra asks for it and its marker holds here."""
    requirement = Requirement(text)
    marker = requirement.marker
    # A marker that holds without the extra is one of what is always installed.
    if marker is None or marker.evaluate({"extra": ""}) or not marker.evaluate({"extra": extra}):
        return None
    return requirement.name


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


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
