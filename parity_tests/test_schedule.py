"""The learning rate of a step is the closed form, which is also that of optax and of torch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

from parity_tests.adam_runs import PEAK, STEPS, WARMUP
from parity_tests.refusals import refused
from pe_core import TrainConfig
from pe_core.training.schedule import Schedule, make_schedule
from pe_parity.budgets import BUDGETS, distance


def test_the_closed_form() -> None:
    constant = Schedule(0.3)
    assert [constant(step) for step in (0, 1, 10**9)] == [0.3, 0.3, 0.3]
    schedule = Schedule(0.8, "warmup_cosine", 3, 11)
    # The rise starts above zero, so that no step is lost; the peak comes right after it; halfway
    # down is half; zero at the end and after.
    assert [schedule(step) for step in range(4)] == [0.2, 0.4, 0.6000000000000001, 0.8]
    assert [schedule(7), schedule(11), schedule(1000)] == [0.4, 0.0, 0.0]
    assert all(schedule(step) > schedule(step + 1) for step in range(3, 11))
    without = Schedule(0.8, "warmup_cosine", 0, 10)
    assert [without(0), without(5), without(10)] == [0.8, 0.4, 0.0]
    train = TrainConfig(learning_rate=0.8, schedule="warmup_cosine", warmup_steps=3)
    assert make_schedule(train, 11) == schedule
    assert make_schedule(TrainConfig(learning_rate=0.3), 11)(5) == 0.3


def test_the_cosine_is_that_of_optax_and_torch() -> None:
    schedule, plain = (
        Schedule(PEAK, "warmup_cosine", WARMUP, STEPS),
        Schedule(PEAK, "warmup_cosine", 0, STEPS),
    )
    ours = np.array([schedule(step) for step in range(STEPS + 10)])
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(True):
        counts = jnp.arange(STEPS + 10)
        same = np.asarray(
            optax.warmup_cosine_decay_schedule(PEAK / (WARMUP + 1), PEAK, WARMUP, STEPS)(counts)
        )
        default = np.asarray(optax.warmup_cosine_decay_schedule(0.0, PEAK, WARMUP, STEPS)(counts))
    assert distance(same, ours, ours) <= BUDGETS["tap", "float64"].bound
    # Its default start is zero, so that its first step does nothing; from the peak on the two are
    # one.
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
    words = f"warmup_steps must be fewer than the steps of the run, got {warmup} of {total}"
    with refused(ValueError, words, whole=True):
        Schedule(PEAK, "warmup_cosine", warmup, total)
