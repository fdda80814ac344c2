"""A run of torch's or optax's own Adam continues in either framework, and one of ours in theirs."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pe_flax
import pe_torch
from parity_tests.adam_runs import put_gradients
from parity_tests.cases import ENGINES, named, small_batch
from parity_tests.refusals import refused
from parity_tests.stock_runs import (
    BEFORE,
    CONFIG,
    GRADIENTS,
    NAMES,
    RATE,
    START,
    STOCK,
    TOTAL,
    TRAIN,
    Arrays,
    StockFlax,
    StockTorch,
    scheduled,
    stopped,
)
from pe_core import ComputeConfig
from pe_core.model.config import Precision
from pe_core.training.engine import Engine
from pe_core.training.state import COUNT
from pe_parity.compare import compare
from pe_torch.optimizer import parameter_groups


@cache
def engine(framework: str, precision: Precision) -> Engine:
    return ENGINES[framework](CONFIG, START, TRAIN, ComputeConfig(precision=precision), TOTAL)


def continued(where: str, state: Arrays, precision: Precision) -> Arrays:
    """The state after the last steps, taken by `engine torch`, `engine flax`, `stock torch` or
    `stock flax`.
    """
    kind, framework = where.split()
    if kind == "stock":
        run = STOCK[framework](precision)
        run.put(state)
        run.go(range(BEFORE, TOTAL))
        return run.take()
    ours = engine(framework, precision)
    ours.restore(state)
    for step in range(BEFORE, TOTAL):
        ours.train_step(small_batch(CONFIG), step)
    return ours.state()


def first_failure(state: Arrays, truth: Arrays, precision: Precision) -> Any:
    """The first weight of a run that leaves its budget against the run that went on."""
    traces = [{f"weights/{name}": one[f"param/{name}"] for name in NAMES} for one in (truth, state)]
    moved = {f"weights/{name}": truth[f"param/{name}"] - START[name] for name in NAMES}
    assert all(np.any(distance) for distance in moved.values())
    return compare(traces[0], {"run": traces[1]}, precision, moved=moved).first_failure


@cache
def truth(first: str) -> Arrays:
    """The stock run that never stopped, in float64."""
    run = STOCK[first]("float64")
    run.go(range(TOTAL))
    return run.take()


@pytest.mark.parametrize(
    ("first", "then", "precision"),
    [
        *(
            (first, f"{kind} {then}", "float64")
            for kind in ("engine", "stock")
            for first in STOCK
            for then in STOCK
        ),
        ("flax", "engine torch", "float32"),
        ("torch", "stock flax", "float32"),
    ],
)
def test_a_stock_run_continues_anywhere(first: str, then: str, precision: Precision) -> None:
    last = continued(then, stopped(first, precision), precision)
    assert last[COUNT] == TOTAL
    assert first_failure(last, truth(first), precision) is None


@pytest.mark.parametrize("what", ["adam/count", "adam/m", "adam/v"])
def test_the_comparison_can_fail(what: str) -> None:
    state = stopped("torch", "float64")
    lost = state | {name: np.zeros_like(state[name]) for name in state if name.startswith(what)}
    last = continued("engine torch", lost, "float64")
    assert first_failure(last, truth("torch"), "float32") is not None


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("into", list(STOCK))
@pytest.mark.parametrize("first", list(STOCK))
def test_in_and_out_is_the_same_state(first: str, into: str, precision: Precision) -> None:
    state, run = stopped(first, precision), STOCK[into](precision)
    run.put(state)
    found = run.take()
    assert list(found) == list(state)
    for name, array in state.items():
        assert found[name].dtype == array.dtype == (np.int64 if name == COUNT else precision)
        assert found[name].flags.c_contiguous
        assert np.array_equal(found[name], array)
    assert state[COUNT] == BEFORE


@pytest.mark.parametrize("framework", list(STOCK))
def test_a_fresh_optimizer_is_a_state_of_no_steps(framework: str) -> None:
    state = STOCK[framework]("float32").take()
    assert state[COUNT] == 0
    assert all(not np.any(array) for name, array in state.items() if name.startswith("adam/"))


def test_a_checkpoint_keeps_other_things_beside_the_state() -> None:
    run = StockTorch("float32")
    run.put(stopped("torch", "float32") | {"epoch/metrics": np.zeros((2, 4))})
    assert run.take().keys() == stopped("torch", "float32").keys()


def test_our_own_adam_goes_in_and_out_too() -> None:
    state, model = stopped("torch", "float32"), pe_torch.SequenceClassifier(CONFIG)
    ours = pe_torch.Adam(parameter_groups(model, CONFIG, 0.1), RATE)
    counters = pe_torch.export_adam(state, model, ours)
    assert [group["count"] for group in ours.param_groups] == [BEFORE, BEFORE]
    assert {"param_groups[0]['count']", "param_groups[1]['count']"} < set(counters)
    found = pe_torch.import_adam(model, ours)
    assert all(np.array_equal(array, state[name]) for name, array in found.items())
    run = StockFlax("float32", pe_flax.adam(RATE, weight_decay=0.1))
    assert run.put(state) == ("step", "opt_state.count")
    assert all(np.array_equal(array, state[name]) for name, array in run.take().items())


# --- Every counter counts ---


def torch_weights(forgotten: str | None = None) -> tuple[Arrays, tuple[str, ...], StockTorch]:
    """Weights after one more step with a given gradient, where one counter was left at zero."""
    run = StockTorch("float32")
    counters, live = run.put(stopped("torch", "float32")), named(run.model)
    if forgotten is not None:
        (name,) = re.findall(r"state\[(.*)\]\['step'\]", forgotten)
        run.optimizer.state[live[name]]["step"].zero_()
    put_gradients(live, GRADIENTS, 0)
    run.optimizer.step()
    return pe_torch.to_arrays(run.model), counters, run


def test_a_forgotten_counter_of_torch_is_caught() -> None:
    right, counters, _ = torch_weights()
    assert sorted(counters) == sorted(f"state[{name}]['step']" for name in NAMES)
    for name in NAMES:
        wrong, _, run = torch_weights(f"state[{name}]['step']")
        moved = [other for other in NAMES if not np.array_equal(wrong[other], right[other])]
        assert moved == [name]
        words = f"steps differ: 1 of {name}, {BEFORE + 1} of ...; give every weight"
        with refused(ValueError, words):
            run.take()


CHAINS = {
    "adamw": lambda: optax.adamw(scheduled("float32"), weight_decay=0.1),
    "chain": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(scheduled("float32")),
    ),
    "inject": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.inject_hyperparams(optax.adamw)(scheduled("float32"), weight_decay=0.1),
    ),
}
COUNTERS = {
    "adamw": ("step", "opt_state[0].count", "opt_state[2].count"),
    "chain": ("step", "opt_state[1].count", "opt_state[3].count"),
    "inject": (
        "step",
        "opt_state[1].count",
        "opt_state[1].hyperparams_states['learning_rate'].count",
        "opt_state[1].inner_state[0].count",
    ),
}
# Nothing reads these in a step: only the books are wrong.
BOOKS = {"adamw": {"step"}, "chain": {"step"}, "inject": {"step", "opt_state[1].count"}}


def flax_weights(chain: str, forgotten: str | None = None) -> tuple[Arrays, StockFlax]:
    with jax.numpy_dtype_promotion("standard"):
        run = StockFlax("float32", CHAINS[chain]())
        assert run.put(stopped("torch", "float32")) == COUNTERS[chain]
        if forgotten is not None:
            counter = eval(f"optimizer.{forgotten}", {"optimizer": run.optimizer})
            assert counter[...] == BEFORE
            counter[...] = jnp.zeros((), counter.dtype)
        gradients = jax.tree.map(jnp.copy, nnx.state(run.model, nnx.Param))
        pe_flax.layout.put_arrays(gradients, {name: array[0] for name, array in GRADIENTS.items()})
        run.optimizer.update(run.model, gradients)
    return pe_flax.to_arrays(run.model), run


@pytest.mark.parametrize("chain", ["chain", "inject"])
def test_a_forgotten_counter_of_optax_is_caught(chain: str) -> None:
    right, _ = flax_weights(chain)
    for counter in COUNTERS[chain]:
        wrong, run = flax_weights(chain, counter)
        same = [name for name in NAMES if np.array_equal(wrong[name], right[name])]
        assert same == (NAMES if counter in BOOKS[chain] else []), counter
        with refused(ValueError, f"counts differ: 1 in {counter}, {BEFORE + 1} in "):
            run.take()
