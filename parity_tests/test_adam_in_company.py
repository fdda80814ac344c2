"""Each Adam in the company of its framework: chains, masks and schedules of optax; state
dictionaries, closures and guards of torch.
"""

import copy
import io
from collections.abc import Mapping
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
from parity_tests.adam_runs import (
    CLIP,
    DECAYING,
    FULL,
    GRID,
    PEAK,
    SHAPES,
    STEPS,
    WARMUP,
    as_trace,
    flax_adam,
    flax_run,
    groups,
    initial,
    judged,
    live,
    put_gradients,
    scanned,
    stock_run,
    stream,
    torch_run,
    torch_trace,
)
from pe_core.model.random import derive, normal
from pe_flax.optimizer import AdamState, clip_factor, global_norm
from pe_parity.budgets import BUDGETS, distance
from pe_parity.trace import Trace

# --- pe_flax.adam in company ---


def test_the_x64_flag_does_not_change_float32() -> None:
    for case in (GRID[0], FULL):
        off, on = flax_run(case, "float32", x64=False), flax_run(case, "float32", x64=True)
        for name, array in off.items():
            assert array.dtype == on[name].dtype == np.float32
            assert np.array_equal(array, on[name])


def test_float32_decay_rounds_as_in_torch() -> None:
    """A float32 near 1 cannot hold 1 - 1e-5: torch's decay is a thousandth too strong or weak, at
    every step, and so is ours.
    """
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
    split, _ = one_update(
        optax.multi_transform({"ours": alone, "frozen": optax.set_to_zero()}, labels)
    )
    eager, state = one_update(alone, compiled=False)
    assert isinstance(state, AdamState)
    assert state.count == 1
    for name in SHAPES:
        assert np.any(expected[name])
        assert np.array_equal(halved[name], 0.5 * expected[name])
        assert np.array_equal(
            masked[name], expected[name] if name in DECAYING else stream()[name][0]
        )
        assert np.array_equal(
            split[name], expected[name] if name in DECAYING else np.zeros(SHAPES[name])
        )
        assert (
            distance(eager[name], expected[name], expected[name]) <= BUDGETS["tap", "float32"].bound
        )


def test_a_mask_may_be_a_function() -> None:
    expected, _ = one_update(
        pe_flax.adam(PEAK, weight_decay=0.1, mask={name: name in DECAYING for name in SHAPES})
    )
    found, _ = one_update(
        pe_flax.adam(
            PEAK,
            weight_decay=0.1,
            mask=lambda weights: {name: name in DECAYING for name in weights},
        )
    )
    nothing, _ = one_update(pe_flax.adam(PEAK))
    for name in SHAPES:
        assert np.array_equal(found[name], expected[name])
        assert np.array_equal(found[name], nothing[name]) == (name not in DECAYING)


def test_decay_without_the_weights_is_refused() -> None:
    optimizer = pe_flax.adam(PEAK, weight_decay=0.1)
    with pytest.raises(
        ValueError,
        match=r"^weight_decay=0\.1 needs the weights; call update\(gradients, state, params\)$",
    ):
        optimizer.update({}, optimizer.init({}))


def test_a_schedule_of_optax_is_asked_at_the_step() -> None:
    """optax's warmup_cosine_decay_schedule is ours when it starts at peak / (warmup + 1) instead of
    its default, zero.
    """
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
        assert (
            distance(np.asarray(ours), theirs.numpy(), theirs.numpy())
            <= BUDGETS["tap", "float32"].bound
        )
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

    resumed = live(
        {name: weight.detach().numpy() for name, weight in saved["weights"].items()}, "float32"
    )
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

    one, other = (
        pe_torch.Adam(weights.values(), lambda step: PEAK),
        pe_torch.Adam(others.values(), lambda step: PEAK),
    )

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
def test_a_gradient_that_is_not_finite_changes_nothing_now_and_later(
    stock: bool, bad: float
) -> None:
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
            steps = {
                name: optimizer.state[weight]["step"].numpy() for name, weight in weights.items()
            }
            traces.append(copy.deepcopy(torch_trace(weights, optimizer) | steps))
            if guarded:
                assert optimizer.finite.item() == (step < 3)
                assert [group["count"] for group in optimizer.param_groups] == [
                    min(step + 1, 3)
                ] * 2
                assert optimizer.gradient_norm.isfinite().item() == (step != 3)
        return traces

    guarded = run(guarded=True)
    assert not any(np.array_equal(array, guarded[2][name]) for name, array in guarded[1].items())
    for later in guarded[3:]:
        for name, array in later.items():
            assert np.array_equal(array, guarded[2][name])
    assert np.isnan(run(guarded=False)[3]["weights/bias"]).any()


def test_the_fused_kernel_skips_a_step_by_itself() -> None:
    """What a GPU does instead of waiting for the host; the kernel of the CPU keeps the same
    rule.
    """
    weights = live(initial(), "float32")
    optimizer = pe_torch.Adam(groups(weights, 0.1), FULL.schedule, **FULL.options)
    put_gradients(weights, stream(), 0)
    optimizer.step()
    before = copy.deepcopy(torch_trace(weights, optimizer))
    put_gradients(weights, stream(), 1)
    weights["bias"].grad[2] = float("nan")  # type: ignore[index]
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert all(
        np.array_equal(array, before[name])
        for name, array in torch_trace(weights, optimizer).items()
    )
    assert all(optimizer.state[weight]["step"] == 1.0 for weight in weights.values())


def test_stock_is_adamw_bit_for_bit() -> None:
    for precision in ("float32", "float64"):
        ours, theirs = (
            torch_run(FULL, precision, stock=True),
            stock_run(FULL, precision, foreach=None),
        )
        assert all(np.array_equal(array, theirs[name]) for name, array in ours.items())
