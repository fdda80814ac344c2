"""Reference, torch and Flax are one model: the same names in the same order, every intermediate,
the loss, every gradient, one step.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from parity_tests.cases import (
    BACKENDS,
    BATCH,
    CONFIGS,
    ENGINES,
    LENGTH,
    perturbed_arrays,
    short_batch,
    small_batch,
    small_config,
)
from pe_core import ComputeConfig, LearnedTable, ModelConfig, Sinusoidal
from pe_core.data import Batch
from pe_core.model.config import POOLINGS, Precision
from pe_core.model.random import derive, normal
from pe_parity import Trace, compare, reference_trace, trace
from pe_parity.budgets import DIFFERENCE_ERROR, DIFFERENCE_STEP, FAIR
from pe_parity.reference import cross_entropy, encode, forward

# Random directions in which the gradient of each parameter is compared with the reference.
DIRECTIONS = 3


# What training adds to a trace, in its order.
TRAINED = ("gradient/", "moment/", "update/", "gauge/", "signal/")


@functools.cache
def case(name: str, masked: bool) -> tuple[ModelConfig, dict[str, np.ndarray], Batch]:
    config = CONFIGS[name]
    return config, perturbed_arrays(config), short_batch(config, masked=masked)


@functools.cache
def baseline(name: str, masked: bool) -> Trace:
    """Taps and loss of the reference, then the gradients of torch in float64, which a test below
    checks against the reference.
    """
    config, arrays, batch = case(name, masked)
    found = reference_trace(config, arrays, batch, dropout=drops(name))
    exact = trace(
        ENGINES["torch"],
        config,
        arrays,
        [batch],
        depth="step",
        compute=ComputeConfig(precision="float64"),
        dropout=drops(name),
    )
    return found | {key: value for key, value in exact.items() if key.startswith(TRAINED)}


def drops(name: str) -> bool:
    return CONFIGS[name].dropout > 0.0


def up_to(depth: str, found: Trace) -> Trace:
    beyond = {"forward": TRAINED, "gradient": TRAINED[1:], "step": ()}[depth]
    return {name: array for name, array in found.items() if not name.startswith(beyond)}


def require_agreement(exact: Trace, traces: dict[str, Trace], precision: str) -> None:
    """The traces have the names of the baseline in its order, and keep their budgets."""
    assert {label: list(found) for label, found in traces.items()} == dict.fromkeys(
        traces, list(exact)
    )
    rows = compare(exact, traces, precision).rows
    assert rows
    assert [row for row in rows if not row.passed] == []


# JAX's compiler takes two seconds for each of these. All run operation by operation in
# `test_models_step_by_step`.
COMPILED = [("post", True), ("relative", True), ("dropout", True), ("default", False)]
STEP_BY_STEP: list[tuple[str, bool, Precision]] = [
    *((name, True, "float64") for name in CONFIGS),
    ("default", False, "float64"),
    ("tokens", False, "float32"),
]


@pytest.mark.parametrize(("name", "masked"), COMPILED)
def test_compiled_engines_in_float32(name: str, masked: bool) -> None:
    config, arrays, batch = case(name, masked)
    depth: Any = "step" if name == "dropout" else "gradient"
    exact = up_to(depth, baseline(name, masked))
    traces = {
        label: trace(engine, config, arrays, [batch], depth=depth, dropout=drops(name))
        for label, engine in ENGINES.items()
    }
    require_agreement(exact, traces, "float32")


def test_compiled_engines_in_float64() -> None:
    config = small_config(num_layers=1, attention_bias=True, norm="post")
    arrays, batch, compute = (
        perturbed_arrays(config),
        small_batch(config, masked=True),
        ComputeConfig(precision="float64"),
    )
    traces = {
        label: trace(engine, config, arrays, [batch], depth="step", compute=compute)
        for label, engine in ENGINES.items()
    }
    exact = reference_trace(config, arrays, batch)
    exact |= {name: array for name, array in traces["torch"].items() if name.startswith(TRAINED)}
    require_agreement(exact, traces, "float64")


def loss_gradient(logits: np.ndarray, batch: Batch) -> np.ndarray:
    """The gradient of the loss by the logits, in closed form: softmax less one at the label."""
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    shares[np.arange(len(logits)), batch.labels] -= 1.0
    return np.asarray(shares * batch.weights[:, None] / batch.weights.sum(dtype=np.float64))


@pytest.mark.parametrize(("name", "masked", "precision"), STEP_BY_STEP)
def test_models_step_by_step(name: str, masked: bool, precision: Precision) -> None:
    config, arrays, batch = case(name, masked)
    exact = up_to("gradient" if precision == "float64" else "forward", baseline(name, masked))
    step = 0 if drops(name) else None
    traces: dict[str, Trace] = {}
    for label, backend in BACKENDS.items():
        with backend.mode(precision):
            model = backend.classifier(config, arrays, precision)
            if step is not None:
                model.train()
            found: Trace = {}
            call: dict[str, Any] = {"mask": batch.mask, "dropout_step": step}
            logits = backend.call(model, batch.inputs, taps=found, **call)
            assert {array.dtype for array in found.values()} == {np.dtype(precision)}
            found["loss"] = np.array(
                cross_entropy(logits.astype(np.float64), batch.labels, batch.weights)
            )
            if precision == "float64":
                cotangent = loss_gradient(exact["head"], batch)
                gradients = backend.pullback(model, cotangent, batch.inputs, **call)[1]
                found |= {f"gradient/{name}": gradients[name] for name in arrays}
        traces[label] = found
    require_agreement(exact, traces, precision)


@pytest.mark.parametrize(
    ("name", "masked"), [*((name, True) for name in CONFIGS), ("default", False)]
)
def test_gradients_are_those_of_the_reference(name: str, masked: bool) -> None:
    config, arrays, batch = case(name, masked)
    exact = baseline(name, masked)
    step = 0 if drops(name) else None
    weights = {key: array.astype(np.float64) for key, array in arrays.items()}

    def loss(changed: dict[str, np.ndarray]) -> float:
        logits = forward(
            config, weights | changed, batch.inputs, mask=batch.mask, dropout_step=step
        )
        return cross_entropy(logits, batch.labels, batch.weights)

    for number, (key, array) in enumerate(weights.items()):
        for direction in normal(derive(0, 97, number), (DIRECTIONS, *array.shape)):
            direction /= np.linalg.norm(direction)
            ahead, behind = (
                loss({key: array + sign * DIFFERENCE_STEP * direction}) for sign in (1, -1)
            )
            slope = (ahead - behind) / (2 * DIFFERENCE_STEP)
            assert abs(slope - (exact[f"gradient/{key}"] * direction).sum()) <= DIFFERENCE_ERROR, (
                key
            )


LINE = np.arange(LENGTH)
ROWS = np.arange(BATCH)[:, None]
PACKED = np.array(
    [
        [1, 1, 1, 2, 2, 2, 2],
        [1, 1, 2, 2, 3, 3, 3],
        [1, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 2, 2, 0],
        [0] * 7,
    ],
    np.int32,
)
MASK = small_batch(CONFIGS["default"], masked=True).mask
WAVES_AND_TABLE = CONFIGS["both"]
ALL_LAYERS_CLS = CONFIGS["post"]

CALLS: dict[str, tuple[ModelConfig, dict[str, Any]]] = {
    "positions of a row": (WAVES_AND_TABLE, {"positions": (LINE[::-1] + 1).astype(np.int32)}),
    "positions of each row": (
        WAVES_AND_TABLE,
        {"positions": ((LINE * (ROWS + 1)) % 9).astype(np.int32)},
    ),
    "positions between rows": (
        WAVES_AND_TABLE,
        {"positions": ((LINE * 0.7 + ROWS * 0.9) % 8.0).astype(np.float32)},
    ),
    "positions and a mask": (
        WAVES_AND_TABLE,
        {"positions": (LINE * 1.25).astype(np.float32), "mask": MASK},
    ),
    "every layer, a first step": (
        ALL_LAYERS_CLS,
        {"positions": ((LINE + ROWS) % 9).astype(np.int32), "mask": MASK},
    ),
    "packed": (WAVES_AND_TABLE, {"segment_ids": PACKED}),
    "packed, masked": (WAVES_AND_TABLE, {"segment_ids": PACKED, "mask": MASK}),
    "packed, positions": (
        WAVES_AND_TABLE,
        {"segment_ids": PACKED, "positions": ((LINE + ROWS) % 9).astype(np.int32)},
    ),
    "packed, more segments": (WAVES_AND_TABLE, {"segment_ids": PACKED, "num_segments": 5}),
    "every layer, first only": (
        small_config(encodings=(LearnedTable(9), Sinusoidal(layers="all"))),
        {"mask": MASK},
    ),
}
CALLS |= {
    f"packed {kind}": (small_config(pooling=kind), {"segment_ids": PACKED})
    for kind in POOLINGS
    if kind != "cls"
}
CALLS |= {f"pooled {kind}": (small_config(pooling=kind), {"mask": MASK}) for kind in POOLINGS}
CALLS |= {
    f"dropout {step}": (
        small_config(dropout=0.3, pooling="cls", attention_bias=True),
        {"mask": MASK, "dropout_step": step},
    )
    for step in (1, 300)
}


# Positions have a path of their own in float32.
IN_FLOAT32 = [
    what for what in CALLS if "position" in what or what in ("packed", "packed, more segments")
]
IN_FLOAT64 = [what for what in CALLS if what != "packed, more segments"]


@pytest.mark.parametrize(
    ("what", "precision"),
    [(what, "float64") for what in IN_FLOAT64] + [(what, "float32") for what in IN_FLOAT32],
)
def test_calls(what: str, precision: Precision) -> None:
    config, arguments = CALLS[what]
    arrays, x = perturbed_arrays(config), short_batch(config).inputs
    if config.pooling == "cls":
        arguments = {
            name: value[..., :-1] if isinstance(value, np.ndarray) else value
            for name, value in arguments.items()
        }
    exact: Trace = {}
    cotangent = normal(derive(0, 96), forward(config, arrays, x, taps=exact, **arguments).shape)
    traces: dict[str, Trace] = {}
    for label, backend in BACKENDS.items():
        with backend.mode(precision):
            model = backend.classifier(config, arrays, precision)
            if "dropout_step" in arguments:
                model.train()
            found: Trace = {}
            backend.call(model, x, taps=found, **arguments)
            if precision == "float64":
                exactly = x.astype(np.float64)
                of_x, gradients = backend.pullback(model, cotangent, exactly, **arguments)
                found |= {"gradient/x": of_x} | {
                    f"gradient/{name}": gradients[name] for name in arrays
                }
        traces[label] = found
    if precision == "float64":
        exact |= {
            name: array for name, array in traces["torch"].items() if name.startswith("gradient/")
        }
    require_agreement(exact, traces, precision)


def test_an_encoder_has_the_taps_of_a_classifier_but_the_last_two() -> None:
    config = CONFIGS["post"]
    arrays, batch = perturbed_arrays(config), small_batch(config, masked=True)
    without = {name: array for name, array in arrays.items() if name != "cls"}
    exact: Trace = {}
    encode(config, without, batch.inputs, mask=batch.mask, taps=exact)
    traces: dict[str, Trace] = {}
    for label, backend in BACKENDS.items():
        traces[label] = {}
        model = backend.encoder(config, arrays)
        backend.call(model, batch.inputs, mask=batch.mask, taps=traces[label])
    require_agreement(exact, traces, "float32")


@pytest.mark.parametrize("name", ["default", "both"])
def test_bfloat16_costs_both_backends_the_same(name: str) -> None:
    config, arrays, batch = case(name, True)
    exact = {
        key: array
        for key, array in baseline(name, True).items()
        if "/" not in key and key != "loss"
    }
    traces: dict[str, Trace] = {}
    for label, backend in BACKENDS.items():
        traces[label] = {}
        model = backend.classifier(config, arrays, "bfloat16")
        logits = backend.call(model, batch.inputs, mask=batch.mask, taps=traces[label])
        assert logits.dtype == np.float32
    require_agreement(exact, traces, "bfloat16")
    for row in compare(exact, traces, "bfloat16").rows:
        assert max(row.errors.values()) <= FAIR * min(row.errors.values()), row
