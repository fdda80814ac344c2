"""A run of torch's or optax's own Adam goes on in either framework, and one of ours in theirs; what would go on wrongly is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn

import pe_flax
import pe_torch
from parity_tests.adam_runs import put_gradients
from parity_tests.cases import ENGINES, FEATURES, WINGS, perturbed_arrays, small_batch
from pe_core import ComputeConfig, Features, LearnedTable, ModelConfig, TrainConfig
from pe_core.config import Precision
from pe_core.engine import Engine
from pe_core.engine_state import COUNT
from pe_core.parameters import parameters
from pe_core.parity.compare import compare
from pe_core.random import derive, normal
from pe_core.schedule import make_schedule
from pe_torch.optimizer import parameter_groups

CONFIG = ModelConfig(
    inputs=Features(FEATURES), num_classes=4, d_model=12, num_heads=3, num_layers=1, d_ff=20, encodings=(LearnedTable(9),), pooling="cls"
)
BEFORE, TOTAL = 6, 14
TRAIN = TrainConfig(learning_rate=3e-3, weight_decay=0.1, schedule="warmup_cosine", warmup_steps=4, max_gradient_norm=None)
RATE = make_schedule(TRAIN, TOTAL)
NAMES = [item.name for item in parameters(CONFIG)]
START = perturbed_arrays(CONFIG)

Arrays = dict[str, np.ndarray]


def arrays_of(weights: Arrays, precision: str) -> Arrays:
    return {name: array.astype(precision) for name, array in weights.items()}


# --- Stock runs: what anyone would write, over our model ---


class StockTorch:
    """torch.optim.AdamW with a LambdaLR."""

    def __init__(self, precision: Precision) -> None:
        self.model = pe_torch.from_arrays(CONFIG, START, compute=ComputeConfig(precision=precision)).train()
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, CONFIG, TRAIN.weight_decay), TRAIN.learning_rate)

    def go(self, steps: Sequence[int]) -> None:
        batch = small_batch(CONFIG)
        for step in steps:
            for group in self.optimizer.param_groups:
                group["lr"] = RATE(step)
            self.optimizer.zero_grad()
            logits = self.model(torch.from_numpy(batch.inputs))
            nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels).long()).backward()
            self.optimizer.step()

    def take(self) -> Arrays:
        return pe_torch.import_adam(self.model, self.optimizer)

    def put(self, arrays: Arrays) -> tuple[str, ...]:
        return pe_torch.export_adam(arrays, self.model, self.optimizer)


def decaying(weights: Any) -> Any:
    """The linear weights: in Flax, the kernels."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in jax.tree_util.keystr(path), weights)


def scheduled(precision: Precision) -> Callable[[Any], Any]:
    rates = np.array([RATE(step) for step in range(TOTAL + 1)], precision)
    return lambda count: jnp.asarray(rates)[count]


class StockFlax:
    """optax.adamw with a schedule, in an nnx.Optimizer."""

    def __init__(self, precision: Precision, chain: optax.GradientTransformation | None = None) -> None:
        self.mode: Callable[[], AbstractContextManager[Any]] = lambda: WINGS["flax"].mode(precision)
        with self.mode():
            self.model = pe_flax.from_arrays(CONFIG, START, compute=ComputeConfig(precision=precision))
            adamw = chain or optax.adamw(scheduled(precision), weight_decay=TRAIN.weight_decay, mask=decaying)
            self.optimizer = nnx.Optimizer(self.model, adamw, wrt=nnx.Param)

    def go(self, steps: Sequence[int]) -> None:
        with self.mode(), jax.numpy_dtype_promotion("standard"):
            for _ in steps:
                stock_flax_step(self.model, self.optimizer)

    def take(self) -> Arrays:
        with self.mode():
            return pe_flax.import_adam(self.model, self.optimizer)

    def put(self, arrays: Arrays) -> tuple[str, ...]:
        with self.mode():
            return pe_flax.export_adam(arrays, self.model, self.optimizer)


@nnx.jit
def stock_flax_step(model: nnx.Module, optimizer: nnx.Optimizer) -> None:
    batch = small_batch(CONFIG)

    def loss(model: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(model(jnp.asarray(batch.inputs)), batch.labels).mean()

    optimizer.update(model, nnx.grad(loss)(model))


STOCK: dict[str, Callable[[Precision], StockTorch | StockFlax]] = {"torch": StockTorch, "flax": StockFlax}


@cache
def stopped(framework: str, precision: Precision) -> Arrays:
    """The state of a stock run after its first steps."""
    run = STOCK[framework](precision)
    run.go(range(BEFORE))
    return run.take()


@cache
def engine(framework: str, precision: Precision) -> Engine:
    return ENGINES[framework](CONFIG, START, TRAIN, ComputeConfig(precision=precision), TOTAL)


def gone_on(where: str, state: Arrays, precision: Precision) -> Arrays:
    """The state after the last steps, taken by `engine torch`, `engine flax`, `stock torch` or `stock flax`."""
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
    moved = {name: truth[f"param/{name}"] - START[name] for name in NAMES}
    assert all(np.any(distance) for distance in moved.values())
    return compare(traces[0], {"run": traces[1]}, precision, moved=moved).first_failure


@cache
def truth(first: str) -> Arrays:
    """The stock run that never stopped, in float64."""
    run = STOCK[first]("float64")
    run.go(range(TOTAL))
    return run.take()


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("first", list(STOCK))
@pytest.mark.parametrize("then", ["engine torch", "engine flax", "stock torch", "stock flax"])
def test_a_stock_run_goes_on_anywhere(first: str, then: str, precision: Precision) -> None:
    last = gone_on(then, stopped(first, precision), precision)
    assert last[COUNT] == TOTAL
    assert first_failure(last, truth(first), precision) is None


@pytest.mark.parametrize("what", ["adam/count", "adam/m", "adam/v"])
def test_the_comparison_can_fail(what: str) -> None:
    state = stopped("torch", "float64")
    lost = {name: np.zeros_like(array) if name.startswith(what) else array for name, array in state.items()}
    assert first_failure(gone_on("engine torch", lost, "float64"), truth("torch"), "float32") is not None


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
    assert all(np.array_equal(array, state[name]) for name, array in pe_torch.import_adam(model, ours).items())
    run = StockFlax("float32", pe_flax.adam(RATE, weight_decay=0.1))
    assert run.put(state) == ("step", "opt_state.count")
    assert all(np.array_equal(array, state[name]) for name, array in run.take().items())


# --- Every counter counts ---

GRADIENTS = {
    name: normal(derive(7, number), (TOTAL, *array.shape)).astype(np.float32) for number, (name, array) in enumerate(START.items())
}


def torch_weights(forgotten: str | None = None) -> tuple[Arrays, tuple[str, ...], StockTorch]:
    """Weights after one more step with a given gradient, where one counter was left at zero."""
    run = StockTorch("float32")
    counters, live = run.put(stopped("torch", "float32")), dict(run.model.named_parameters())
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
        assert [other for other in NAMES if not np.array_equal(wrong[other], right[other])] == [name]
        with pytest.raises(ValueError, match=rf"^steps differ: 1 of {re.escape(name)}, {BEFORE + 1} of .*; give every weight"):
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
        optax.clip_by_global_norm(1.0), optax.inject_hyperparams(optax.adamw)(scheduled("float32"), weight_decay=0.1)
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
        gradients = nnx.state(run.model, nnx.Param)
        gradients = jax.tree.map(jnp.copy, gradients)
        pe_flax.layout.put_arrays(gradients, {name: array[0] for name, array in GRADIENTS.items()})
        run.optimizer.update(run.model, gradients)
    return pe_flax.to_arrays(run.model), run


@pytest.mark.parametrize("chain", list(CHAINS))
def test_a_forgotten_counter_of_optax_is_caught(chain: str) -> None:
    right, _ = flax_weights(chain)
    for counter in COUNTERS[chain]:
        wrong, run = flax_weights(chain, counter)
        same = [name for name in NAMES if np.array_equal(wrong[name], right[name])]
        assert same == (NAMES if counter in BOOKS[chain] else []), counter
        with pytest.raises(ValueError, match=rf"^counts differ: 1 in {re.escape(counter)}, {BEFORE + 1} in "):
            run.take()


# --- What is refused ---


def make_torch(kind: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW, **options: Any) -> tuple[Any, Any]:
    model = pe_torch.from_arrays(CONFIG, START)
    return model, kind(model.named_parameters(), lr=1e-3, **options)


def stepped(model: Any, optimizer: Any) -> tuple[Any, Any]:
    put_gradients(dict(model.named_parameters()), GRADIENTS, 0)
    optimizer.step()
    return model, optimizer


def a_stranger() -> tuple[Any, Any]:
    model, optimizer = make_torch()
    optimizer.add_param_group({"params": [("other", nn.Parameter(torch.zeros(2, 5)))]})
    return model, optimizer


def a_part() -> tuple[Any, Any]:
    model = pe_torch.from_arrays(CONFIG, START)
    return model, torch.optim.AdamW([weight for name, weight in model.named_parameters() if not name.startswith("head")])


def a_frozen_weight() -> tuple[Any, Any]:
    model, optimizer = make_torch()
    model.cls.requires_grad_(False)
    put_gradients({name: weight for name, weight in model.named_parameters() if name != "cls"}, GRADIENTS, 0)
    optimizer.step()
    return model, optimizer


def another_order() -> tuple[Any, Any]:
    """Two weights of one shape change places: torch loads by index and says nothing."""
    model, saved = stepped(*make_torch())
    live = dict(model.named_parameters())
    one, other = "layers.0.norm1.weight", "layers.0.norm2.weight"
    order = {one: other, other: one}
    optimizer = torch.optim.AdamW([live[order.get(name, name)] for name in live])
    optimizer.load_state_dict(saved.state_dict())
    return model, optimizer


def another_shape() -> tuple[Any, Any]:
    model, optimizer = stepped(*make_torch())
    optimizer.state[model.cls]["exp_avg"] = torch.zeros(13)
    return model, optimizer


def another_dtype() -> tuple[Any, Any]:
    model, optimizer = stepped(*make_torch())
    optimizer.state[model.cls]["exp_avg_sq"] = torch.zeros(12, dtype=torch.float64)
    return model, optimizer


REFUSED_OF_TORCH: dict[str, tuple[Callable[[], tuple[Any, Any]], str]] = {
    "SGD": (lambda: make_torch(torch.optim.SGD), "the optimizer is SGD, its state is not Adam's; pass a torch.optim.Adam or AdamW"),
    "amsgrad": (
        lambda: make_torch(amsgrad=True),
        "group 0 of the optimizer has amsgrad=True, which is not supported; train it with amsgrad=False",
    ),
    "maximize": (
        lambda: make_torch(maximize=True),
        "group 0 of the optimizer has maximize=True, which is not supported; train it with maximize=False",
    ),
    "decay in the gradient": (
        lambda: make_torch(torch.optim.Adam, weight_decay=0.1),
        "group 0 of the optimizer has weight_decay=0.1 in the gradient, which is not supported; use torch.optim.AdamW",
    ),
    "a stranger": (
        a_stranger,
        "the optimizer holds a weight of shape (2, 5) that is not the model's; make it over model.named_parameters()",
    ),
    "a part": (a_part, "the optimizer does not hold head.weight, head.bias; make it over model.named_parameters()"),
    "another order": (
        another_order,
        "the state of layers.0.norm2.weight was saved for layers.0.norm1.weight; torch loads by index:"
        " make the optimizer over the weights in the order that was saved",
    ),
}
# These concern what is taken out, and would be overwritten by what is put in.
REFUSED_ON_IMPORT: dict[str, tuple[Callable[[], tuple[Any, Any]], str]] = {
    "a frozen weight": (a_frozen_weight, "the optimizer has no state for cls; give every weight a gradient before the first step"),
    "another shape": (another_shape, "exp_avg of cls is float32 (13,), its weight is float32 (12,); load the state of this model"),
    "another dtype": (another_dtype, "exp_avg_sq of cls is float64 (12,), its weight is float32 (12,); load the state of this model"),
}


@pytest.mark.parametrize("name", list(REFUSED_OF_TORCH | REFUSED_ON_IMPORT))
def test_torch_refuses_by_name(name: str) -> None:
    make, message = (REFUSED_OF_TORCH | REFUSED_ON_IMPORT)[name]
    model, optimizer = make()
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        pe_torch.import_adam(model, optimizer)
    if name in REFUSED_OF_TORCH:
        before = pe_torch.to_arrays(model)
        with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
            pe_torch.export_adam(stopped("torch", "float32"), model, optimizer)
        assert all(np.array_equal(array, before[one]) for one, array in pe_torch.to_arrays(model).items())


def kernels_apart(weights: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: "linear" if "kernel" in jax.tree_util.keystr(path) else "other", weights)


TRAVELS = "whose state does not travel; use optax.adam or adamw, alone or in a chain with clipping, decay and schedules"
REFUSED_OF_OPTAX: dict[str, tuple[Callable[[], Any], str]] = {
    "sgd": (lambda: optax.sgd(1e-3), "the optimizer has 0 states of Adam, in opt_state; make it with one"),
    "amsgrad": (lambda: optax.amsgrad(1e-3), f"opt_state[0] is ScaleByAmsgradState, {TRAVELS}"),
    "MultiSteps": (lambda: optax.MultiSteps(optax.adam(1e-3), 2), f"opt_state is MultiStepsState, {TRAVELS}"),
    "two": (
        lambda: optax.chain(optax.adam(1e-3), optax.adam(1e-3)),
        "the optimizer has 2 states of Adam, in opt_state[0][0], opt_state[1][0]; make it with one",
    ),
    "groups": (
        lambda: optax.multi_transform({"linear": optax.adam(1e-3), "other": optax.adam(1e-4)}, kernels_apart),
        f"opt_state is PartitionState, {TRAVELS}",
    ),
    "mu_dtype": (
        lambda: optax.adam(1e-3, mu_dtype=jnp.bfloat16),
        "opt_state[0].mu of cls is bfloat16, its weight is float32; leave mu_dtype at None",
    ),
    "masked": (
        lambda: optax.masked(optax.adam(1e-3), decaying),
        "opt_state.inner_state[0].mu does not fit the config; missing: input.bias, encodings.0.table, cls, layers.0.norm1.weight,"
        " layers.0.norm1.bias, layers.0.attention.out.bias, layers.0.norm2.weight, layers.0.norm2.bias, layers.0.feed_forward.up.bias,"
        " layers.0.feed_forward.down.bias, norm.weight, norm.bias, head.bias; load it with the config it was saved with",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED_OF_OPTAX))
def test_flax_refuses_by_name(name: str) -> None:
    make, message = REFUSED_OF_OPTAX[name]
    run = StockFlax("float32", make())
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        run.take()
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        run.put(stopped("torch", "float32"))
    assert all(np.array_equal(array, START[one]) for one, array in pe_flax.to_arrays(run.model).items())


def test_a_bare_state_of_optax_is_refused() -> None:
    model = pe_flax.from_arrays(CONFIG, START)
    state: Any = optax.adam(1e-3).init(nnx.state(model, nnx.Param))
    message = "the optimizer is tuple; pass an nnx.Optimizer(model, optax.adamw(...), wrt=nnx.Param)"
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        pe_flax.import_adam(model, state)


@pytest.mark.parametrize("framework", list(STOCK))
def test_a_state_that_is_not_whole_is_refused(framework: str) -> None:
    run, state = STOCK[framework]("float32"), stopped("torch", "float32")
    for changed, message in [
        ({name: array for name, array in state.items() if name != "adam/v/cls"}, r"^adam/v of the state does not fit .*; missing: cls; "),
        (state | {"adam/m/other": state["adam/m/cls"]}, r"^adam/m of the state does not fit .*; unexpected: other; "),
        (state | {"param/cls": np.zeros(13, np.float32)}, r"^param of the state does not fit .*; misshapen: cls is \(13,\), not \(12,\); "),
        ({name: array for name, array in state.items() if name != COUNT}, r"^the state has no adam/count; set it to the number of steps"),
        (state | {COUNT: np.array(-1)}, r"^adam/count must lie in 0 \.\. 2147483647, got -1$"),
    ]:
        with pytest.raises(ValueError, match=message):
            run.put(changed)
    assert all(np.array_equal(array, START[name]) for name, array in WINGS[framework].package.to_arrays(run.model).items())


@pytest.mark.parametrize("framework", list(STOCK))
def test_float64_stays_float64_whatever_the_flag(framework: str) -> None:
    state, run = stopped("torch", "float64"), STOCK[framework]("float64")
    package = WINGS[framework].package
    package.export_adam(state, run.model, run.optimizer)
    assert all(np.array_equal(array, state[name]) for name, array in package.import_adam(run.model, run.optimizer).items())
