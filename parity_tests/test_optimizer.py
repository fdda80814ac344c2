"""Both Adams take the steps of torch's AdamW in float64 and in float32, and the comparison that says so can fail."""

import copy
import io
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

import pe_flax
import pe_torch
from parity_tests.cases import CONFIGS, perturbed_arrays
from pe_core import Features, LearnedTable, ModelConfig, TrainConfig
from pe_core.config import CLIP_EPSILON
from pe_core.parameters import parameters
from pe_core.parity.budget import BUDGETS
from pe_core.parity.compare import Comparison, compare, distance
from pe_core.parity.trace import Trace, moved_arrays
from pe_core.random import derive, normal, uniform
from pe_core.schedule import Schedule, make_schedule
from pe_flax.optimizer import AdamState, clip_factor, global_norm
from pe_flax.optimizer import make_optimizer as make_flax
from pe_torch.optimizer import make_optimizer as make_torch
from pe_torch.weights import load_arrays, to_arrays

STEPS, WARMUP, PEAK = 200, 20, 1e-2
BETAS, EPS = (0.9, 0.999), 1e-8
SHAPES: dict[str, tuple[int, ...]] = {"matrix": (4, 3), "table": (2, 5), "bias": (7,), "scale": ()}
DECAYING = {"matrix", "scale"}
# Between the smallest and the largest gradient norm of the stream, and near to what is added to the norm.
CLIP = 1e-4

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """What the optimizers are asked for."""

    weight_decay: float
    max_gradient_norm: float | None
    kind: Any

    @property
    def schedule(self) -> Schedule:
        return Schedule(PEAK, self.kind, WARMUP if self.kind == "warmup_cosine" else 0, STEPS)

    @property
    def options(self) -> dict[str, Any]:
        return {"betas": BETAS, "eps": EPS, "max_gradient_norm": self.max_gradient_norm}


GRID = [Case(*options) for options in itertools.product((0.0, 0.1), (None, CLIP), ("constant", "warmup_cosine"))]
# Where every fault shows.
FULL = GRID[-1]


@cache
def initial() -> Arrays:
    return {name: normal(derive(1, number), shape).astype(np.float32) for number, (name, shape) in enumerate(SHAPES.items())}


@cache
def stream() -> Arrays:
    """The gradients of every step: some lean to one side, their sizes go over four orders of magnitude from step to step."""
    size = 10.0 ** (4.0 * uniform(derive(2, 0), (STEPS,)) - 6.0)
    drawn = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        lean, spread = normal(derive(2, 1, number), shape), 10.0 ** (-2.0 * uniform(derive(2, 2, number), shape))
        drawn[name] = (normal(derive(2, 3, number), (STEPS, *shape)) + lean) * spread * size.reshape(-1, *(1 for _ in shape))
    return {name: gradients.astype(np.float32) for name, gradients in drawn.items()}


def as_trace(weights: Mapping[str, Any], first: Mapping[str, Any], second: Mapping[str, Any]) -> Trace:
    """The end of a run; the moments are averages of gradients and have their budget."""
    kinds = {"weights": weights, "gradient/first": first, "gradient/second": second}
    return {f"{kind}/{name}": np.array(kinds[kind][name]) for kind in kinds for name in weights}


# --- The runs ---


def live(weights: Mapping[str, np.ndarray], precision: str) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.tensor(array, dtype=getattr(torch, precision))) for name, array in weights.items()}


def groups(weights: Mapping[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    return [
        {"params": [weight for name, weight in weights.items() if (name in DECAYING) == decays], "weight_decay": weight_decay * decays}
        for decays in (True, False)
    ]


def put_gradients(weights: Mapping[str, nn.Parameter], gradients: Mapping[str, np.ndarray], step: int) -> None:
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
    optimizer = torch.optim.AdamW(groups(weights, case.weight_decay), PEAK, BETAS, EPS, foreach=foreach)
    # In the optimizer's order: a sum in another order rounds otherwise.
    clipped = [weight for group in optimizer.param_groups for weight in group["params"]]
    for step in range(STEPS):
        put_gradients(weights, stream(), step)
        if case.max_gradient_norm is not None:
            nn.utils.clip_grad_norm_(clipped, case.max_gradient_norm)
        for group in optimizer.param_groups:
            group["lr"] = case.schedule(step)
        optimizer.step()
    return torch_trace(weights, optimizer)


@cache
def referee(case: Case) -> Trace:
    return stock_run(case, "float64", foreach=False)


def torch_run(case: Case, precision: str, **options: Any) -> Trace:
    weights = live(initial(), precision)
    optimizer = pe_torch.Adam(groups(weights, case.weight_decay), case.schedule, **case.options, **options)
    for step in range(STEPS):
        put_gradients(weights, stream(), step)
        optimizer.step()
    return torch_trace(weights, optimizer)


def scanned(optimizer: optax.GradientTransformation, weights: Arrays, gradients: Arrays, precision: str) -> tuple[Any, Any]:
    """All steps in one compiled loop; the weights and the state at its end."""

    def step(carry: Any, gradient: Any) -> tuple[Any, None]:
        weights, state = carry
        updates, state = optimizer.update(gradient, state, weights)
        return (optax.apply_updates(weights, updates), state), None

    def run(weights: Any, gradients: Any) -> Any:
        return jax.lax.scan(step, (weights, optimizer.init(weights)), gradients)[0]

    cast = [{name: np.asarray(array, precision) for name, array in tree.items()} for tree in (weights, gradients)]
    return jax.device_get(jax.jit(run)(*cast))


def flax_adam(case: Case, schedule: Any = None, **options: Any) -> optax.GradientTransformation:
    mask = {name: name in DECAYING for name in SHAPES}
    return pe_flax.adam(schedule or case.schedule, weight_decay=case.weight_decay, mask=mask, **case.options, **options)


@cache
def flax_run(case: Case, precision: str, x64: bool) -> Trace:
    with jax.enable_x64(x64):
        weights, state = scanned(flax_adam(case), initial(), stream(), precision)
    assert isinstance(state, AdamState)
    assert state.count == STEPS
    return as_trace(weights, state.mu, state.nu)


@dataclass(frozen=True)
class Fault:
    """What a wrong Adam does otherwise."""

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
    first, second = ({name: np.zeros(array.shape) for name, array in weights.items()} for _ in range(2))
    for step in range(STEPS):
        gradients = {name: array[step].astype(np.float64) for name, array in stream().items()}
        norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
        rate = case.schedule(fault.step_of_rate(step))
        corrections = [1.0 - fault.correction_dtype(beta) ** fault.correction_dtype(fault.step_of_correction(step)) for beta in BETAS]
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


def judged(case: Case, traces: Mapping[str, Trace], precision: str) -> Comparison:
    """The comparison of runs with torch's AdamW in float64; weights over the distance that they moved."""
    truth = referee(case)
    return compare(truth, traces, precision, moved=moved_arrays(truth, initial()))


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
    norms = np.sqrt(sum((gradients.astype(np.float64).reshape(STEPS, -1) ** 2).sum(axis=1) for gradients in stream().values()))
    assert (norms < CLIP).sum() > STEPS // 10
    assert (norms > CLIP).sum() > STEPS // 10
    assert min(np.sqrt(referee(FULL)[f"gradient/second/{name}"]).min() for name in SHAPES) < 100 * EPS


# --- Bias corrections ---

TIMES = np.unique(np.r_[1:60, np.geomspace(60, 50_000, 300).astype(int), 36_800, 37_412, 37_413, 50_000])


def read_from_flax(schedule: Any, betas: tuple[float, float], dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """One update at each of the times, of moments and gradients that are 1: what it adds, and the second moment then."""
    optimizer = pe_flax.adam(schedule, betas=betas, eps=0.0)
    ones = jnp.ones(len(TIMES), dtype)
    updates, state = optimizer.update(ones, AdamState(jnp.asarray(TIMES - 1, jnp.int32), ones, ones))
    assert isinstance(state, AdamState)
    return np.asarray(updates), np.asarray(state.nu)


def read_from_torch(rate: float, betas: tuple[float, float], dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The same for torch, where each weight has its own time."""
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
def test_step_sizes_are_exact_in_both_wings(rate: float) -> None:
    # beta2 = 0 makes the root of the second moment 1: what is left is the step size.
    expected = np.array([rate / (1.0 - 0.9 ** int(time)) for time in TIMES]).astype(np.float32)
    assert np.array_equal(read_from_flax(rate, (0.9, 0.0))[0], -expected)
    assert np.array_equal(read_from_flax(Schedule(rate), (0.9, 0.0))[0], -expected)
    assert np.array_equal(read_from_torch(rate, (0.9, 0.0), torch.float32)[0].astype(np.float32), -expected)


def test_step_sizes_of_a_schedule_are_exact() -> None:
    schedule = Schedule(PEAK, "warmup_cosine", 300, 40_000)
    expected = np.array([schedule(int(time) - 1) / (1.0 - 0.9 ** int(time)) for time in TIMES]).astype(np.float32)
    assert np.array_equal(read_from_flax(schedule, (0.9, 0.0))[0], -expected)
    assert expected[-1] == 0.0


def test_the_root_of_the_second_correction_is_exact() -> None:
    # beta1 = 0 makes the first moment the gradient, 1.
    roots = np.sqrt([1.0 - 0.999 ** int(time) for time in TIMES]).astype(np.float32)
    updates, second = read_from_flax(1.0, (0.0, 0.999))
    assert np.array_equal(updates, -(np.float32(1.0) / (np.sqrt(second) / roots)))
    updates, second = read_from_torch(1.0, (0.0, 0.999), torch.float32)
    assert np.array_equal(updates.astype(np.float32), -(np.float32(1.0) / (np.sqrt(second.astype(np.float32)) / roots)))


def test_float64_corrections_are_those_of_python() -> None:
    expected = np.array([0.37 / (1.0 - 0.9 ** int(time)) for time in TIMES])
    with jax.enable_x64(True):
        found = read_from_flax(0.37, (0.9, 0.0), np.float64)[0]
    for updates in (found, read_from_torch(0.37, (0.9, 0.0), torch.float64)[0]):
        assert updates.dtype == np.float64
        assert distance(updates, -expected, expected) <= BUDGETS["tap", "float64"].bound


# --- pe_flax.adam in company ---


def test_the_x64_flag_does_not_change_float32() -> None:
    for case in (GRID[0], FULL):
        off, on = flax_run(case, "float32", x64=False), flax_run(case, "float32", x64=True)
        for name, array in off.items():
            assert array.dtype == on[name].dtype == np.float32
            assert np.array_equal(array, on[name])


def test_float32_decay_rounds_as_in_torch() -> None:
    """A float32 near 1 cannot hold 1 - 1e-5: torch's decay is a thousandth too strong or weak, at every step, and so is ours."""
    rate, weight_decay, steps = 1e-3, 1e-2, 300
    arrays = {"matrix": normal(derive(4), (64,)).astype(np.float32)}
    zeros = {"matrix": np.zeros((steps, 64), np.float32)}
    runs = {}
    for precision in ("float32", "float64"):
        weights = live(arrays, precision)
        optimizer = pe_torch.Adam(weights.values(), lambda step: rate, weight_decay=weight_decay)
        for step in range(steps):
            put_gradients(weights, zeros, step)
            optimizer.step()
        runs[precision] = weights["matrix"].detach().numpy()
    found, _ = scanned(pe_flax.adam(rate, weight_decay=weight_decay), arrays, zeros, "float32")
    moved = runs["float64"] - arrays["matrix"]
    assert distance(found["matrix"], runs["float32"], moved) <= BUDGETS["weights", "float32"].bound
    assert distance(runs["float32"], runs["float64"], moved) > BUDGETS["weights", "float32"].bound


def one_update(optimizer: optax.GradientTransformation, compiled: bool = True) -> tuple[Any, Any]:
    """The updates of the stream's first step."""
    weights = {name: jnp.asarray(array) for name, array in initial().items()}
    gradients = {name: jnp.asarray(array[0]) for name, array in stream().items()}
    update = jax.jit(optimizer.update) if compiled else optimizer.update
    return update(gradients, optimizer.init(weights), weights)


def test_adam_is_a_part_of_any_optax_chain() -> None:
    alone = pe_flax.adam(PEAK, weight_decay=0.1)
    expected, _ = one_update(alone)
    halved, _ = one_update(optax.chain(alone, optax.scale(0.5)))
    masked, _ = one_update(optax.masked(alone, {name: name in DECAYING for name in SHAPES}))
    labels = {name: "ours" if name in DECAYING else "frozen" for name in SHAPES}
    split, _ = one_update(optax.multi_transform({"ours": alone, "frozen": optax.set_to_zero()}, labels))
    eager, state = one_update(alone, compiled=False)
    assert isinstance(state, AdamState)
    assert state.count == 1
    for name in SHAPES:
        assert np.any(expected[name])
        assert np.array_equal(halved[name], 0.5 * expected[name])
        assert np.array_equal(masked[name], expected[name] if name in DECAYING else stream()[name][0])
        assert np.array_equal(split[name], expected[name] if name in DECAYING else np.zeros(SHAPES[name]))
        assert distance(eager[name], expected[name], expected[name]) <= BUDGETS["tap", "float32"].bound


def test_a_mask_may_be_a_function() -> None:
    expected, _ = one_update(pe_flax.adam(PEAK, weight_decay=0.1, mask={name: name in DECAYING for name in SHAPES}))
    found, _ = one_update(pe_flax.adam(PEAK, weight_decay=0.1, mask=lambda weights: {name: name in DECAYING for name in weights}))
    nothing, _ = one_update(pe_flax.adam(PEAK))
    for name in SHAPES:
        assert np.array_equal(found[name], expected[name])
        assert np.array_equal(found[name], nothing[name]) == (name not in DECAYING)


def test_decay_without_the_weights_is_refused() -> None:
    optimizer = pe_flax.adam(PEAK, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"^weight_decay=0\.1 needs the weights; call update\(gradients, state, params\)$"):
        optimizer.update({}, optimizer.init({}))


def test_a_schedule_of_optax_is_asked_at_the_step() -> None:
    """optax's warmup_cosine_decay_schedule is ours when it starts at peak / (warmup + 1) instead of its default, zero."""
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(True):
        theirs = optax.warmup_cosine_decay_schedule(PEAK / (WARMUP + 1), PEAK, WARMUP, STEPS)
        weights, state = scanned(flax_adam(FULL, theirs), initial(), stream(), "float64")
    judgement = judged(FULL, {"flax": as_trace(weights, state.mu, state.nu)}, "float32")
    assert judgement.first_failure is None


def test_norm_and_clipping_are_those_of_torch() -> None:
    weights = live(initial(), "float32")
    for step in range(8):
        put_gradients(weights, stream(), step)
        ours = global_norm({name: jnp.asarray(array[step]) for name, array in stream().items()})
        theirs = nn.utils.clip_grad_norm_(weights.values(), CLIP)
        assert distance(np.asarray(ours), theirs.numpy(), theirs.numpy()) <= BUDGETS["tap", "float32"].bound
        gradient = weights["bias"].grad
        assert gradient is not None
        clipped = stream()["bias"][step] * np.asarray(clip_factor(ours, CLIP))
        assert distance(clipped, gradient.numpy(), clipped) <= BUDGETS["tap", "float32"].bound


# --- pe_torch.Adam in company ---


@pytest.mark.parametrize("stock", [False, True])
def test_a_state_dict_goes_on_where_it_was(stock: bool) -> None:
    def make(weights: Mapping[str, nn.Parameter]) -> pe_torch.Adam:
        return pe_torch.Adam(groups(weights, 0.1), FULL.schedule, **FULL.options, stock=stock)

    def go(weights: Mapping[str, nn.Parameter], optimizer: pe_torch.Adam, steps: range) -> None:
        for step in steps:
            put_gradients(weights, stream(), step)
            optimizer.step()

    weights = live(initial(), "float32")
    optimizer = make(weights)
    go(weights, optimizer, range(15))
    file = io.BytesIO()
    torch.save({"weights": weights, "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    go(weights, optimizer, range(15, 30))

    resumed = live({name: weight.detach().numpy() for name, weight in saved["weights"].items()}, "float32")
    other = make(resumed)
    other.load_state_dict(saved["optimizer"])
    assert [group["count"] for group in other.param_groups] == [15, 15]
    go(resumed, other, range(15, 30))
    assert [group["count"] for group in other.param_groups] == [30, 30]
    for name, array in torch_trace(weights, optimizer).items():
        assert np.array_equal(array, torch_trace(resumed, other)[name])


def test_a_closure_is_called_once_and_its_loss_returned() -> None:
    weights, others = live(initial(), "float32"), live(initial(), "float32")
    calls = []

    def loss_of(some: Mapping[str, nn.Parameter]) -> torch.Tensor:
        return torch.stack([(weight**2).sum() for weight in some.values()]).sum()

    one, other = pe_torch.Adam(weights.values(), lambda step: PEAK), pe_torch.Adam(others.values(), lambda step: PEAK)

    def closure() -> float:
        calls.append(1)
        one.zero_grad()
        loss = loss_of(weights)
        loss.backward()
        return loss.item()

    for _ in range(3):
        other.zero_grad()
        loss = loss_of(others)
        loss.backward()
        assert other.step() is None
        assert one.step(closure) == loss.item()
    assert len(calls) == 3
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


def test_the_norm_is_that_before_clipping_and_weights_without_gradient_stay() -> None:
    weights = live(initial(), "float32")
    optimizer = pe_torch.Adam(weights.values(), lambda step: PEAK, max_gradient_norm=CLIP)
    for step in range(8):
        put_gradients(weights, stream(), step)
        weights["table"].grad = None
        gradients = [weight.grad.clone() for weight in weights.values() if weight.grad is not None]
        optimizer.step()
        assert torch.equal(optimizer.gradient_norm, nn.utils.get_total_norm(gradients))
    assert np.array_equal(weights["table"].detach().numpy(), initial()["table"])
    assert weights["table"] not in optimizer.state
    optimizer.zero_grad()
    optimizer.step()
    assert optimizer.gradient_norm == 0.0


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing_now_and_later(stock: bool, bad: float) -> None:
    def run(guarded: bool) -> list[Trace]:
        weights = live(initial(), "float32")
        optimizer = pe_torch.Adam(groups(weights, 0.1), FULL.schedule, **FULL.options, stock=stock)
        optimizer.finite = torch.tensor(True) if guarded else None
        traces = []
        for step in range(6):
            put_gradients(weights, stream(), step)
            if step == 3:
                weights["bias"].grad[2] = bad  # type: ignore[index]
            optimizer.step()
            steps = {name: optimizer.state[weight]["step"].numpy() for name, weight in weights.items()}
            traces.append(copy.deepcopy(torch_trace(weights, optimizer) | steps))
            if guarded:
                assert optimizer.finite.item() == (step < 3)
                assert [group["count"] for group in optimizer.param_groups] == [min(step + 1, 3)] * 2
                assert optimizer.gradient_norm.isfinite().item() == (step != 3)
        return traces

    guarded = run(guarded=True)
    assert not any(np.array_equal(array, guarded[2][name]) for name, array in guarded[1].items())
    for later in guarded[3:]:
        for name, array in later.items():
            assert np.array_equal(array, guarded[2][name])
    assert np.isnan(run(guarded=False)[3]["weights/bias"]).any()


def test_the_fused_kernel_skips_a_step_by_itself() -> None:
    """What a GPU does instead of waiting for the host; the kernel of the CPU keeps the same rule."""
    weights = live(initial(), "float32")
    optimizer = pe_torch.Adam(groups(weights, 0.1), FULL.schedule, **FULL.options)
    put_gradients(weights, stream(), 0)
    optimizer.step()
    before = copy.deepcopy(torch_trace(weights, optimizer))
    put_gradients(weights, stream(), 1)
    weights["bias"].grad[2] = float("nan")  # type: ignore[index]
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert all(np.array_equal(array, before[name]) for name, array in torch_trace(weights, optimizer).items())
    assert all(optimizer.state[weight]["step"] == 1.0 for weight in weights.values())


def test_stock_is_adamw_bit_for_bit() -> None:
    for precision in ("float32", "float64"):
        ours, theirs = torch_run(FULL, precision, stock=True), stock_run(FULL, precision, foreach=None)
        assert all(np.array_equal(array, theirs[name]) for name, array in ours.items())


# --- The optimizer of a run ---

TINY = ModelConfig(
    inputs=Features(3), num_classes=2, d_model=4, num_heads=2, num_layers=1, d_ff=5, encodings=(LearnedTable(6),), pooling="cls"
)


def model_steps(config: ModelConfig, train: TrainConfig, gradients: Arrays, arrays: Arrays, total: int) -> tuple[Arrays, Arrays]:
    """The weights after steps with the given gradients, in torch and in JAX."""
    model = pe_torch.SequenceClassifier(config)
    load_arrays(model, arrays)
    optimizer = make_torch(model, config, train, total)
    steps = len(next(iter(gradients.values())))
    for step in range(steps):
        put_gradients(dict(model.named_parameters()), gradients, step)
        optimizer.step()
    # optax's own Adam counts in integers and multiplies by floats.
    with jax.numpy_dtype_promotion("standard" if train.optimizer == "stock" else "strict"):
        weights, _ = scanned(make_flax(config, train, total), arrays, gradients, "float32")
    return to_arrays(model), weights


@pytest.mark.parametrize("optimizer", ["exact", "stock"])
def test_the_optimizers_of_a_run_agree(optimizer: Any) -> None:
    total = 40
    train = TrainConfig(
        learning_rate=PEAK, schedule="warmup_cosine", warmup_steps=5, weight_decay=0.1, max_gradient_norm=1e3, optimizer=optimizer
    )
    arrays = perturbed_arrays(TINY)
    gradients = {
        name: normal(derive(3, number), (total, *array.shape)).astype(np.float32) for number, (name, array) in enumerate(arrays.items())
    }
    left, right = model_steps(TINY, train, gradients, arrays, total)

    weights, schedule = live(arrays, "float64"), make_schedule(train, total)
    decays = {item.name for item in parameters(TINY) if item.decay}
    by_decay = [
        {"params": [weight for name, weight in weights.items() if name in decays], "weight_decay": 0.1},
        {"params": [weight for name, weight in weights.items() if name not in decays], "weight_decay": 0.0},
    ]
    truth = torch.optim.AdamW(by_decay, PEAK, foreach=False)
    # LambdaLR counts as we do: the first step is step 0, and the rate is read before it is counted.
    rates = torch.optim.lr_scheduler.LambdaLR(truth, lambda step: schedule(step) / PEAK)
    for step in range(total):
        put_gradients(weights, gradients, step)
        truth.step()
        rates.step()
    final = {name: weight.detach().numpy() for name, weight in weights.items()}
    moved = {name: final[name] - arrays[name] for name in arrays}
    traces = [{f"weights/{name}": tree[name] for name in arrays} for tree in (final, left, right)]
    assert compare(traces[0], {"torch": traces[1], "flax": traces[2]}, "float32", moved=moved).first_failure is None


@pytest.mark.parametrize("optimizer", ["exact", "stock"])
@pytest.mark.parametrize("name", ["both", "tokens"])
def test_tables_norms_and_biases_do_not_decay(name: str, optimizer: Any) -> None:
    config, arrays = CONFIGS[name], perturbed_arrays(CONFIGS[name])
    gradients = {key: np.zeros((1, *array.shape), np.float32) for key, array in arrays.items()}
    train = TrainConfig(learning_rate=0.5, weight_decay=1.0, optimizer=optimizer)
    linear = {key for key, array in arrays.items() if key.endswith(".weight") and array.ndim == 2}
    kept = (
        {"encodings.1.table", "pooling.query", "norm.weight", "layers.0.attention.qkv.bias"} if name == "both" else {"input.table", "cls"}
    )
    assert linear
    assert kept < arrays.keys() - linear
    for found in model_steps(config, train, gradients, arrays, 1):
        assert {key for key, array in found.items() if not np.array_equal(array, arrays[key])} == linear
        # Half of each weight goes: the powers of two are exact.
        assert all(np.array_equal(found[key], 0.5 * arrays[key]) for key in linear)


# --- Schedules ---


def test_the_closed_form() -> None:
    constant = Schedule(0.3)
    assert [constant(step) for step in (0, 1, 10**9)] == [0.3, 0.3, 0.3]
    schedule = Schedule(0.8, "warmup_cosine", 3, 11)
    # The rise starts above zero, so that no step is lost; the peak comes right after it; halfway down is half; zero at the end and after.
    assert [schedule(step) for step in range(4)] == [0.2, 0.4, 0.6000000000000001, 0.8]
    assert [schedule(7), schedule(11), schedule(1000)] == [0.4, 0.0, 0.0]
    assert all(schedule(step) > schedule(step + 1) for step in range(3, 11))
    without = Schedule(0.8, "warmup_cosine", 0, 10)
    assert [without(0), without(5), without(10)] == [0.8, 0.4, 0.0]
    train = TrainConfig(learning_rate=0.8, schedule="warmup_cosine", warmup_steps=3)
    assert make_schedule(train, 11) == schedule
    assert make_schedule(TrainConfig(learning_rate=0.3), 11)(5) == 0.3


def test_the_cosine_is_that_of_optax_and_torch() -> None:
    schedule, plain = Schedule(PEAK, "warmup_cosine", WARMUP, STEPS), Schedule(PEAK, "warmup_cosine", 0, STEPS)
    ours = np.array([schedule(step) for step in range(STEPS + 10)])
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(True):
        counts = jnp.arange(STEPS + 10)
        same = np.asarray(optax.warmup_cosine_decay_schedule(PEAK / (WARMUP + 1), PEAK, WARMUP, STEPS)(counts))
        default = np.asarray(optax.warmup_cosine_decay_schedule(0.0, PEAK, WARMUP, STEPS)(counts))
    assert distance(same, ours, ours) <= BUDGETS["tap", "float64"].bound
    # Its default start is zero, so that its first step does nothing; from the peak on the two are one.
    assert default[0] == 0.0 < ours[0]
    assert distance(default[WARMUP:], ours[WARMUP:], ours) <= BUDGETS["tap", "float64"].bound

    # torch has the cosine without the rise, and goes up again after the end; ours stays at zero.
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], PEAK)
    annealing, rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS), []
    for _ in range(STEPS + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        annealing.step()
    expected = np.array([plain(step) for step in range(STEPS + 1)])
    assert distance(np.array(rates), expected, expected) <= BUDGETS["tap", "float64"].bound


@pytest.mark.parametrize(("warmup", "total"), [(10, 10), (11, 10), (0, 0), (-1, 10)])
def test_a_rise_as_long_as_the_run_is_refused(warmup: int, total: int) -> None:
    with pytest.raises(ValueError, match=rf"^warmup_steps must be fewer than the steps of the run, got {warmup} of {total}$"):
        Schedule(PEAK, "warmup_cosine", warmup, total)
