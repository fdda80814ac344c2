"""What a planted fault is, and how it is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from parity_tests.cases import CONFIGS, ENGINES, perturbed_arrays, small_batch
from pe_core import ComputeConfig, TrainConfig
from pe_core.model.config import Precision
from pe_parity import Trace, reference_trace, trace
from pe_parity.trace import Depth

Patch = Callable[[pytest.MonkeyPatch], None]
DEFAULT = TrainConfig()
BOTH: tuple[Precision, ...] = ("float64", "float32")


@dataclass(frozen=True)
class Fault:
    """A planted fault.

    Args:
        area: of the code.
        name: what is wrong.
        backend: torch, flax, or shared.
        place: the first name of the trace that must leave its budget.
        patch: plants it.
        config: of `cases.CONFIGS`.
        masked: whether the batch has padding.
        dropout: whether the trace is made in training mode.
        train: what the run is.
        steps: how many the run takes, where the place is in the weights at its end.
        precisions: in which it must be caught; an error below the rounding of float32 shows in
            float64 alone.
        observe: returns what is compared instead of a trace of the model; every name in it is
            exact.
    """

    area: str
    name: str
    backend: str
    place: str
    patch: Patch
    config: str = "default"
    masked: bool = False
    dropout: bool = False
    train: TrainConfig = DEFAULT
    steps: int = 1
    precisions: tuple[Precision, ...] = BOTH
    observe: Callable[[str], Trace] | None = None

    @property
    def depth(self) -> Depth:
        """How far the trace must go to reach the place."""
        head = self.place.split("/")[0]
        return {"gradient": "gradient", "moment": "step", "update": "step", "weights": "run"}.get(
            head, "forward"
        )  # type: ignore[return-value]

    def seen(self, precision: Precision) -> Trace:
        """Return what the backend shows, with whatever is planted."""
        if self.observe is not None:
            return {f"exact/{name}": array for name, array in self.observe(self.backend).items()}
        return self._trace(self.backend, precision)

    def expected(self) -> Trace:
        """Return what is expected; call it before anything is planted."""
        if self.observe is not None:
            return self.seen("float32")
        config = CONFIGS[self.config]
        found = self._trace("torch", "float64")
        batch = small_batch(config, masked=self.masked)
        # The reference replaces every tap and keeps the order of the trace's own names.
        return found | reference_trace(
            config, perturbed_arrays(config), batch, dropout=self.dropout
        )

    def _trace(self, backend: str, precision: Precision) -> Trace:
        config = CONFIGS[self.config]
        batches = [small_batch(config, masked=self.masked, seed=step) for step in range(self.steps)]
        return trace(
            ENGINES[backend],
            config,
            perturbed_arrays(config),
            batches,
            depth=self.depth,
            train=self.train,
            compute=ComputeConfig(precision=precision),
            dropout=self.dropout,
        )


def attribute(target: Any, name: str, value: Any) -> Patch:
    """Replace an attribute."""
    return lambda monkeypatch: monkeypatch.setattr(target, name, value)


def around(target: Any, name: str, wrapper: Callable[..., Any]) -> Patch:
    """Replace a function by wrapper(function, *arguments)."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(target, name)
        monkeypatch.setattr(
            target, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs)
        )

    return patch
