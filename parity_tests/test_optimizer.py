"""Both Adams take the steps of torch's AdamW in float64 and in float32, and the comparison can
fail.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import pe_flax
import pe_torch
from parity_tests.adam_runs import (
    BETAS,
    CLIP,
    DECAYING,
    EPS,
    FULL,
    GRID,
    PEAK,
    SHAPES,
    STEPS,
    Arrays,
    Case,
    as_trace,
    baseline,
    flax_run,
    initial,
    judged,
    live,
    put_gradients,
    scanned,
    stock_run,
    stream,
    torch_run,
)
from parity_tests.cases import CONFIGS, named, perturbed_arrays, small_config
from pe_core import ModelConfig, TrainConfig
from pe_core.model.parameters import parameters
from pe_core.model.random import derive, normal
from pe_core.training.config import CLIP_EPSILON
from pe_core.training.schedule import Schedule, make_schedule
from pe_flax.optimizer import AdamState
from pe_flax.optimizer import make_optimizer as make_flax
from pe_parity.budgets import BUDGETS, distance
from pe_parity.compare import compare
from pe_parity.trace import Trace
from pe_torch.optimizer import make_optimizer as make_torch
from pe_torch.weights import load_arrays, to_arrays


@dataclass(frozen=True)
class Fault:
    """What a wrong Adam does differently."""

    step_of_correction: Callable[[int], int] = lambda step: step + 1
    correct_second: bool = True
    step_of_rate: Callable[[int], int] = lambda step: step
    decaying: frozenset[str] = frozenset(DECAYING)
    coupled: bool = False
    decay_rate: Callable[[float], float] = lambda rate: rate
    clip_epsilon: float = CLIP_EPSILON
    clip_each: bool = False
    eps_inside: bool = False
    correction_dtype: type = np.float64


def numpy_run(case: Case, fault: Fault | None = None) -> Trace:
    """Adam once more, from the paper, in float64 NumPy, right or with a fault."""
    fault = fault or Fault()
    weights = {name: array.astype(np.float64) for name, array in initial().items()}
    first, second = (
        {name: np.zeros(array.shape) for name, array in weights.items()} for _ in range(2)
    )
    for step in range(case.steps):
        gradients = {
            name: array[step].astype(np.float64) for name, array in stream(case.steps).items()
        }
        norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
        rate = case.schedule(fault.step_of_rate(step))
        corrections = [
            1.0
            - fault.correction_dtype(beta) ** fault.correction_dtype(fault.step_of_correction(step))
            for beta in BETAS
        ]
        for name, gradient in gradients.items():
            if case.max_gradient_norm is not None:
                size = np.linalg.norm(gradient) if fault.clip_each else norm
                gradient = gradient * min(1.0, case.max_gradient_norm / (size + fault.clip_epsilon))
            decay = case.weight_decay if name in fault.decaying else 0.0
            if fault.coupled:
                gradient = gradient + decay * weights[name]
            else:
                weights[name] = weights[name] * (1.0 - fault.decay_rate(rate) * decay)
            first[name] = BETAS[0] * first[name] + (1.0 - BETAS[0]) * gradient
            second[name] = BETAS[1] * second[name] + (1.0 - BETAS[1]) * gradient**2
            variance = second[name] / corrections[1] if fault.correct_second else second[name]
            root = np.sqrt(variance + EPS) if fault.eps_inside else np.sqrt(variance) + EPS
            weights[name] = weights[name] - rate * first[name] / corrections[0] / root
    return as_trace(weights, first, second)


# --- The comparison ---


@pytest.mark.parametrize("case", GRID, ids=str)
def test_float64_steps_are_those_of_adamw(case: Case) -> None:
    traces = {
        "torch": torch_run(case, "float64"),
        "torch stock": torch_run(case, "float64", stock=True),
        "flax": flax_run(case, "float64", x64=True),
        "foreach": stock_run(case, "float64", foreach=True),
        "paper": numpy_run(case),
    }
    assert judged(case, traces, "float64").first_failure is None


@pytest.mark.parametrize("case", GRID, ids=str)
def test_float32_steps_are_those_of_adamw(case: Case) -> None:
    traces = {
        "torch": torch_run(case, "float32"),
        "torch stock": torch_run(case, "float32", stock=True),
        "flax": flax_run(case, "float32", x64=False),
        "single": stock_run(case, "float32", foreach=False),
    }
    assert judged(case, traces, "float32").first_failure is None


FAULTS = {
    "bias correction one step late": Fault(step_of_correction=lambda step: step + 2),
    "no bias correction of the second moment": Fault(correct_second=False),
    "bias correction stands still": Fault(step_of_correction=lambda step: 1),
    "learning rate one step late": Fault(step_of_rate=lambda step: max(0, step - 1)),
    "learning rate one step early": Fault(step_of_rate=lambda step: step + 1),
    "decay of everything": Fault(decaying=frozenset(SHAPES)),
    "decay of nothing": Fault(decaying=frozenset()),
    "decay in the gradient": Fault(coupled=True),
    "decay at the peak rate": Fault(decay_rate=lambda rate: PEAK),
    "clipping without epsilon": Fault(clip_epsilon=0.0),
    "clipping of each weight": Fault(clip_each=True),
    "epsilon under the root": Fault(eps_inside=True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_can_fail(fault: str) -> None:
    # Against the wider budgets: a fault that leaves them leaves those of float64 too.
    row = judged(FULL, {"fault": numpy_run(FULL, FAULTS[fault])}, "float32").first_failure
    assert row is not None
    assert row.name.startswith("weights/")


def test_the_stream_exercises_clipping_and_epsilon() -> None:
    rows = [gradients.astype(np.float64).reshape(STEPS, -1) for gradients in stream().values()]
    norms = np.linalg.norm(np.concatenate(rows, axis=1), axis=1)
    assert STEPS // 10 < (norms < CLIP).sum() < STEPS - STEPS // 10
    second = [baseline(FULL)[f"gradient/second/{name}"].min() for name in SHAPES]
    assert np.sqrt(min(second)) < 100 * EPS


# --- Bias corrections ---

TIMES = np.unique(
    np.r_[1:60, np.geomspace(60, 50_000, 300).astype(int), 36_800, 37_412, 37_413, 50_000]
)


def read_from_flax(
    schedule: Any, betas: tuple[float, float], dtype: Any = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Return what one update adds at each of the times, where moments and gradients are 1, and the
    second moment after it.
    """
    ones = jnp.ones(len(TIMES), dtype)
    start = AdamState(jnp.asarray(TIMES - 1, jnp.int32), ones, ones)
    updates, state = pe_flax.adam(schedule, betas=betas, eps=0.0).update(ones, start)
    assert isinstance(state, AdamState)
    return np.asarray(updates), np.asarray(state.nu)


def read_from_torch(
    rate: float, betas: tuple[float, float], dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same for torch, where each weight has its own time."""
    weights = [nn.Parameter(torch.zeros((), dtype=dtype)) for _ in TIMES]
    optimizer = pe_torch.Adam(weights, lambda step: rate, betas=betas, eps=0.0)
    for weight, time in zip(weights, TIMES, strict=True):
        weight.grad = torch.ones_like(weight)
        moments = {name: torch.ones_like(weight) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[weight] = {"step": torch.tensor(float(time - 1))} | moments
    optimizer.step()
    second = [optimizer.state[weight]["exp_avg_sq"].item() for weight in weights]
    return np.array([weight.item() for weight in weights]), np.array(second)


@pytest.mark.parametrize("rate", [1e-3, 0.37])
def test_step_sizes_are_exact_in_both_backends(rate: float) -> None:
    # beta2 = 0 makes the root of the second moment 1: what is left is the step size.
    expected = np.array([rate / (1.0 - 0.9 ** int(time)) for time in TIMES]).astype(np.float32)
    assert np.array_equal(read_from_flax(rate, (0.9, 0.0))[0], -expected)
    assert np.array_equal(read_from_flax(Schedule(rate), (0.9, 0.0))[0], -expected)
    assert np.array_equal(
        read_from_torch(rate, (0.9, 0.0), torch.float32)[0].astype(np.float32), -expected
    )


def test_step_sizes_of_a_schedule_are_exact() -> None:
    schedule = Schedule(PEAK, "warmup_cosine", 300, 40_000)
    expected = np.array(
        [schedule(int(time) - 1) / (1.0 - 0.9 ** int(time)) for time in TIMES]
    ).astype(np.float32)
    assert np.array_equal(read_from_flax(schedule, (0.9, 0.0))[0], -expected)
    assert expected[-1] == 0.0


def test_the_root_of_the_second_correction_is_exact() -> None:
    # beta1 = 0 makes the first moment the gradient, 1.
    roots = np.sqrt([1.0 - 0.999 ** int(time) for time in TIMES]).astype(np.float32)
    updates, second = read_from_flax(1.0, (0.0, 0.999))
    assert np.array_equal(updates, -(np.float32(1.0) / (np.sqrt(second) / roots)))
    updates, second = read_from_torch(1.0, (0.0, 0.999), torch.float32)
    assert np.array_equal(
        updates.astype(np.float32),
        -(np.float32(1.0) / (np.sqrt(second.astype(np.float32)) / roots)),
    )


def test_float64_corrections_are_those_of_python() -> None:
    expected = np.array([0.37 / (1.0 - 0.9 ** int(time)) for time in TIMES])
    with jax.enable_x64(True):
        found = read_from_flax(0.37, (0.9, 0.0), np.float64)[0]
    for updates in (found, read_from_torch(0.37, (0.9, 0.0), torch.float64)[0]):
        assert updates.dtype == np.float64
        assert distance(updates, -expected, expected) <= BUDGETS["tap", "float64"].bound


# --- The optimizer of a run ---

TINY = small_config(num_layers=1, num_classes=2, d_model=4, num_heads=2, d_ff=5, pooling="cls")


def model_steps(
    config: ModelConfig, train: TrainConfig, gradients: Arrays, arrays: Arrays, total: int
) -> tuple[Arrays, Arrays]:
    """The weights after steps with the given gradients, in torch and in JAX."""
    model = pe_torch.SequenceClassifier(config)
    load_arrays(model, arrays)
    optimizer = make_torch(model, config, train, total)
    steps = len(next(iter(gradients.values())))
    for step in range(steps):
        put_gradients(named(model), gradients, step)
        optimizer.step()
    # optax's own Adam counts in integers and multiplies by floats.
    with jax.numpy_dtype_promotion("standard" if train.optimizer == "stock" else "strict"):
        weights, _ = scanned(make_flax(config, train, total), arrays, gradients, "float32")
    return to_arrays(model), weights


@pytest.mark.parametrize("optimizer", ["exact", "stock"])
def test_the_optimizers_of_a_run_agree(optimizer: Any) -> None:
    total = 40
    train = TrainConfig(
        learning_rate=PEAK,
        schedule="warmup_cosine",
        warmup_steps=5,
        weight_decay=0.1,
        max_gradient_norm=1e3,
        optimizer=optimizer,
    )
    arrays = perturbed_arrays(TINY)
    gradients = {
        name: normal(derive(3, number), (total, *array.shape)).astype(np.float32)
        for number, (name, array) in enumerate(arrays.items())
    }
    left, right = model_steps(TINY, train, gradients, arrays, total)

    weights, schedule = live(arrays, "float64"), make_schedule(train, total)
    decays = {item.name for item in parameters(TINY) if item.decay}
    by_decay = [
        {
            "params": [w for n, w in weights.items() if (n in decays) == decayed],
            "weight_decay": rate,
        }
        for decayed, rate in ((True, 0.1), (False, 0.0))
    ]
    truth = torch.optim.AdamW(by_decay, PEAK, foreach=False)
    # LambdaLR counts as we do: the first step is step 0, and the rate is read before it is counted.
    rates = torch.optim.lr_scheduler.LambdaLR(truth, lambda step: schedule(step) / PEAK)
    for step in range(total):
        put_gradients(weights, gradients, step)
        truth.step()
        rates.step()
    final = {name: weight.detach().numpy() for name, weight in weights.items()}
    moved = {f"weights/{name}": final[name] - arrays[name] for name in arrays}
    exact, *ours = (
        {f"weights/{name}": tree[name] for name in arrays} for tree in (final, left, right)
    )
    runs = dict(zip(("torch", "flax"), ours, strict=True))
    assert compare(exact, runs, "float32", moved=moved).first_failure is None


@pytest.mark.parametrize("optimizer", ["exact", "stock"])
@pytest.mark.parametrize("name", ["both", "tokens"])
def test_tables_norms_and_biases_do_not_decay(name: str, optimizer: Any) -> None:
    config, arrays = CONFIGS[name], perturbed_arrays(CONFIGS[name])
    gradients = {key: np.zeros((1, *array.shape), np.float32) for key, array in arrays.items()}
    train = TrainConfig(learning_rate=0.5, weight_decay=1.0, optimizer=optimizer)
    linear = {key for key, array in arrays.items() if key.endswith(".weight") and array.ndim == 2}
    kept = (
        {"encodings.1.table", "pooling.query", "norm.weight", "layers.0.attention.qkv.bias"}
        if name == "both"
        else {"input.table", "cls"}
    )
    assert linear
    assert kept < arrays.keys() - linear
    for found in model_steps(config, train, gradients, arrays, 1):
        moved = {key for key, array in found.items() if not np.array_equal(array, arrays[key])}
        assert moved == linear
        # Half of each weight goes: the powers of two are exact.
        assert all(np.array_equal(found[key], 0.5 * arrays[key]) for key in linear)


def test_parameters_that_are_added_later_follow_the_schedule() -> None:
    first, second = (nn.Parameter(torch.ones(2)) for _ in range(2))
    adam = pe_torch.Adam([first], lambda step: 0.1 / (step + 1))
    for parameters_so_far in ([first], [first, second]):
        for item in parameters_so_far:
            item.grad = torch.ones(2)
        adam.step()
        if parameters_so_far == [first]:
            adam.add_param_group({"params": [second]})
    assert [group["count"] for group in adam.param_groups] == [2, 2]
    assert [group["lr"] for group in adam.param_groups] == [0.05, 0.05]
