"""Traces: ordered dictionaries of named arrays, made by running the real model.

Names: taps as the model calls them, then `loss`, `gradient/<parameter>`, `moment/m/<parameter>` and
`moment/v/<parameter>` (of Adam after one step), `update/<parameter>` (what that step adds) and
`weights/<parameter>` (its value after the last step of a run). A key bias shifts all logits of a
query alike, so it has no effect and no gradient but rounding, which Adam turns into steps as large
as any: what training does to its rows has names of its own, `gauge/update/...` and
`gauge/weights/...`. `signal/update/<parameter>` and `signal/weights/<parameter>` are not compared:
they decide which elements the comparison leaves out (see `pe_parity.adam_noise`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from pe_core.data import Batch
from pe_core.errors import UserTypeError
from pe_core.model.config import ComputeConfig, ModelConfig
from pe_core.training.config import TrainConfig
from pe_core.training.engine import Engine, ForwardEngineType
from pe_parity.adam_noise import signals
from pe_parity.reference import cross_entropy, forward

Trace = dict[str, np.ndarray]
Depth = Literal["forward", "gradient", "step", "run"]
DEPTHS: tuple[Depth, ...] = ("forward", "gradient", "step", "run")


def trace(
    engine_type: ForwardEngineType,
    config: ModelConfig,
    arrays: Mapping[str, np.ndarray],
    batches: Iterable[Batch],
    *,
    depth: Depth = "step",
    train: TrainConfig | None = None,
    compute: ComputeConfig | None = None,
    dropout: bool = False,
) -> Trace:
    """Run a backend and return its trace.

    Args:
        engine_type: a backend's engine; beyond depth "forward", one that trains.
        config: what the model is.
        arrays: its parameters.
        batches: the first is traced; a run takes a step with each.
        depth: how far to go.
        train: what the run is.
        compute: how it is computed.
        dropout: trace with the dropout of step 0 instead of in evaluation mode.
    """
    steps = list(batches)
    engine = engine_type(
        config, arrays, train or TrainConfig(), compute or ComputeConfig(), len(steps)
    )
    step = 0 if dropout else None
    found: Trace = dict(engine.taps(steps[0], step))
    if depth == "forward":
        return found
    if not isinstance(engine, Engine):
        raise UserTypeError(f"depth={depth!r} needs an engine that trains; take depth='forward'")
    found |= {
        f"gradient/{name}": gradient
        for name, gradient in engine.gradients(steps[0], step)[1].items()
    }
    if depth == "gradient":
        return found
    before = engine.weights()
    engine.train_step(steps[0], 0)
    state = engine.state()
    for kind in ("m", "v"):
        found |= {f"moment/{kind}/{name}": state[f"adam/{kind}/{name}"] for name in before}
    found |= _trained(
        "update", {name: state[f"param/{name}"] - array for name, array in before.items()}
    )
    least = signals(second_moments(state))
    found |= _signal("update", least)
    if depth == "step":
        return found
    for number, batch in enumerate(steps[1:], start=1):
        engine.train_step(batch, number)
        least = signals(second_moments(engine.state()), least)
    return found | _trained("weights", engine.weights()) | _signal("weights", least)


def second_moments(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the second moments of Adam in an engine's state, by parameter."""
    return {
        name.removeprefix("adam/v/"): array
        for name, array in state.items()
        if name.startswith("adam/v/")
    }


def moved_arrays(baseline: Trace, arrays: Mapping[str, np.ndarray]) -> Trace:
    """Return how far each parameter moved in the run of a trace, under its names there."""
    return {name: baseline[name] - before for name, before in _trained("weights", arrays).items()}


def _trained(kind: str, arrays: Mapping[str, np.ndarray]) -> Trace:
    found: Trace = {}
    for name, array in arrays.items():
        if name.endswith("attention.qkv.bias"):
            query, key, value = np.split(array, 3)
            found[f"{kind}/{name}"] = np.concatenate([query, value])
            found[f"gauge/{kind}/{name}"] = key
        else:
            found[f"{kind}/{name}"] = array
    return found


def _signal(kind: str, arrays: Mapping[str, np.ndarray]) -> Trace:
    return {
        name: array
        for name, array in _trained(f"signal/{kind}", arrays).items()
        if not name.startswith("gauge/")
    }


def reference_trace(
    config: ModelConfig,
    arrays: Mapping[str, np.ndarray],
    batch: Batch,
    *,
    seed: int = 0,
    dropout: bool = False,
) -> Trace:
    """Return the trace of the reference: every tap and the loss, in float64.

    Args:
        config: what the model is.
        arrays: its parameters.
        batch: the inputs.
        seed: of the dropout.
        dropout: trace with the dropout of step 0 instead of in evaluation mode.
    """
    found: Trace = {}
    logits = forward(
        config,
        arrays,
        batch.inputs,
        mask=batch.mask,
        taps=found,
        seed=seed,
        dropout_step=0 if dropout else None,
    )
    found["loss"] = np.array(cross_entropy(logits, batch.labels, batch.weights))
    return found
