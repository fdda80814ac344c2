"""Runs of Adam over one stream of gradients, by hand and by each optimizer: what the tests of the
optimizers share.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
import optax
import torch
from torch import nn

import pe_flax
import pe_torch
from pe_core.model.random import derive, normal, uniform
from pe_core.training.schedule import Schedule
from pe_flax.optimizer import AdamState
from pe_parity.compare import Comparison, compare
from pe_parity.trace import Trace, moved_arrays

STEPS, WARMUP, PEAK = 200, 20, 1e-2
BETAS, EPS = (0.9, 0.999), 1e-8
SHAPES: dict[str, tuple[int, ...]] = {"matrix": (4, 3), "table": (2, 5), "bias": (7,), "scale": ()}
DECAYING = {"matrix", "scale"}
# Between the smallest and the largest gradient norm of the stream, and near to what is added to the
# norm.
CLIP = 1e-4

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """What the optimizers are asked for."""

    weight_decay: float
    max_gradient_norm: float | None
    kind: Any
    steps: int = STEPS

    @property
    def schedule(self) -> Schedule:
        return Schedule(PEAK, self.kind, WARMUP if self.kind == "warmup_cosine" else 0, self.steps)

    @property
    def options(self) -> dict[str, Any]:
        return {"betas": BETAS, "eps": EPS, "max_gradient_norm": self.max_gradient_norm}


GRID = [
    Case(*options)
    for options in itertools.product((0.0, 0.1), (None, CLIP), ("constant", "warmup_cosine"))
]
# Where every fault shows.
FULL = GRID[-1]


@cache
def initial() -> Arrays:
    return {
        name: normal(derive(1, number), shape).astype(np.float32)
        for number, (name, shape) in enumerate(SHAPES.items())
    }


@cache
def stream(steps: int = STEPS) -> Arrays:
    """The gradients of every step: some lean to one side, their sizes go over four orders of
    magnitude from step to step.
    """
    size = 10.0 ** (4.0 * uniform(derive(2, 0), (steps,)) - 6.0)
    drawn = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        lean, spread = (
            normal(derive(2, 1, number), shape),
            10.0 ** (-2.0 * uniform(derive(2, 2, number), shape)),
        )
        drawn[name] = (
            (normal(derive(2, 3, number), (steps, *shape)) + lean)
            * spread
            * size.reshape(-1, *(1 for _ in shape))
        )
    return {name: gradients.astype(np.float32) for name, gradients in drawn.items()}


def as_trace(
    weights: Mapping[str, Any], first: Mapping[str, Any], second: Mapping[str, Any]
) -> Trace:
    """The end of a run; the moments are averages of gradients and have their budget."""
    kinds = {"weights": weights, "gradient/first": first, "gradient/second": second}
    return {f"{kind}/{name}": np.array(kinds[kind][name]) for kind in kinds for name in weights}


# --- The runs ---


def live(weights: Mapping[str, np.ndarray], precision: str) -> dict[str, nn.Parameter]:
    return {
        name: nn.Parameter(torch.tensor(array, dtype=getattr(torch, precision)))
        for name, array in weights.items()
    }


def groups(weights: Mapping[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    return [
        {
            "params": [weight for name, weight in weights.items() if (name in DECAYING) == decays],
            "weight_decay": weight_decay * decays,
        }
        for decays in (True, False)
    ]


def put_gradients(
    weights: Mapping[str, nn.Parameter], gradients: Mapping[str, np.ndarray], step: int
) -> None:
    for name, weight in weights.items():
        weight.grad = torch.tensor(gradients[name][step], dtype=weight.dtype)


def torch_trace(weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> Trace:
    state = {name: optimizer.state[weight] for name, weight in weights.items()}
    return as_trace(
        {name: weight.detach().numpy() for name, weight in weights.items()},
        {name: one["exp_avg"].numpy() for name, one in state.items()},
        {name: one["exp_avg_sq"].numpy() for name, one in state.items()},
    )


def stock_run(case: Case, precision: str, foreach: bool | None) -> Trace:
    """torch.optim.AdamW by hand: clip, set the learning rate, step."""
    weights = live(initial(), precision)
    optimizer = torch.optim.AdamW(
        groups(weights, case.weight_decay), PEAK, BETAS, EPS, foreach=foreach
    )
    # In the optimizer's order: a sum in another order rounds otherwise.
    clipped = [weight for group in optimizer.param_groups for weight in group["params"]]
    for step in range(case.steps):
        put_gradients(weights, stream(case.steps), step)
        if case.max_gradient_norm is not None:
            nn.utils.clip_grad_norm_(clipped, case.max_gradient_norm)
        for group in optimizer.param_groups:
            group["lr"] = case.schedule(step)
        optimizer.step()
    return torch_trace(weights, optimizer)


@cache
def baseline(case: Case) -> Trace:
    return stock_run(case, "float64", foreach=False)


def torch_run(case: Case, precision: str, **options: Any) -> Trace:
    weights = live(initial(), precision)
    optimizer = pe_torch.Adam(
        groups(weights, case.weight_decay), case.schedule, **case.options, **options
    )
    for step in range(case.steps):
        put_gradients(weights, stream(case.steps), step)
        optimizer.step()
    return torch_trace(weights, optimizer)


def scanned(
    optimizer: optax.GradientTransformation, weights: Arrays, gradients: Arrays, precision: str
) -> tuple[Any, Any]:
    """All steps in one compiled loop; the weights and the state at its end."""

    def step(carry: Any, gradient: Any) -> tuple[Any, None]:
        weights, state = carry
        updates, state = optimizer.update(gradient, state, weights)
        return (optax.apply_updates(weights, updates), state), None

    def run(weights: Any, gradients: Any) -> Any:
        return jax.lax.scan(step, (weights, optimizer.init(weights)), gradients)[0]

    cast = [
        {name: np.asarray(array, precision) for name, array in tree.items()}
        for tree in (weights, gradients)
    ]
    return jax.device_get(jax.jit(run)(*cast))


def flax_adam(case: Case, schedule: Any = None, **options: Any) -> optax.GradientTransformation:
    mask = {name: name in DECAYING for name in SHAPES}
    return pe_flax.adam(
        schedule or case.schedule,
        weight_decay=case.weight_decay,
        mask=mask,
        **case.options,
        **options,
    )


@cache
def flax_run(case: Case, precision: str, x64: bool) -> Trace:
    with jax.enable_x64(x64):
        weights, state = scanned(flax_adam(case), initial(), stream(case.steps), precision)
    assert isinstance(state, AdamState)
    assert state.count == case.steps
    return as_trace(weights, state.mu, state.nu)


def judged(case: Case, traces: Mapping[str, Trace], precision: str) -> Comparison:
    """The comparison of runs with torch's AdamW in float64; weights over the distance that they
    moved.
    """
    truth = baseline(case)
    return compare(truth, traces, precision, moved=moved_arrays(truth, initial()))
