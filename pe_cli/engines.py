"""The engines of all backends that are installed, with a line about each that is left out."""

from __future__ import annotations

from pe_cli.reporting import console
from pe_core.training.backends import backends, engine_type, forward_type, require_backend
from pe_core.training.engine import EngineType, ForwardEngineType, can_train


def forward_types() -> dict[str, ForwardEngineType]:
    """Return the engines of the backends that are installed, by name.

    Raises:
        ModuleNotFoundError: none is installed.
    """
    known = backends()
    missing = [name for name, backend in known.items() if backend.missing()]
    if len(missing) == len(known):
        require_backend(missing[0])
    for name in missing:
        console.print(f"Left out: {name}, {known[name].title()}")
    return {name: forward_type(name) for name in known if name not in missing}


def engine_types() -> dict[str, EngineType]:
    """Return the engines that train, of the backends that are installed, by name.

    Raises:
        ValueError: none of them trains.
        ModuleNotFoundError: none is installed.
    """
    found = forward_types()
    trained = {name: one for name, one in found.items() if can_train(one)}
    if not trained:
        engine_type(next(iter(found)))
    for name in found:
        if name not in trained:
            console.print(f"Left out: {name}, which only predicts; --depth forward compares it")
    return trained
