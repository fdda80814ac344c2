"""A stock Adam whose run would go on wrongly is refused by name, and nothing is changed then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

import pe_torch
from parity_tests.adam_runs import put_gradients
from parity_tests.cases import BACKENDS, named
from parity_tests.refusals import each_refusal, refused
from parity_tests.stock_runs import CONFIG, GRADIENTS, START, STOCK, StockFlax, decaying, stopped
from pe_core.training.state import COUNT

Pair = tuple[Any, Any]


def unchanged(model: Any, package: Any) -> bool:
    return all(np.array_equal(array, START[n]) for n, array in package.to_arrays(model).items())


# --- torch ---


def made(kind: Any = torch.optim.AdamW, **options: Any) -> Pair:
    model = pe_torch.from_arrays(CONFIG, START)
    return model, kind(model.named_parameters(), lr=1e-3, **options)


def stepped(model: Any, optimizer: Any) -> Pair:
    live = {name: one for name, one in named(model).items() if one.requires_grad}
    put_gradients(live, GRADIENTS, 0)
    optimizer.step()
    return model, optimizer


def a_stranger() -> Pair:
    model, optimizer = made()
    optimizer.add_param_group({"params": [("other", nn.Parameter(torch.zeros(2, 5)))]})
    return model, optimizer


def a_part() -> Pair:
    model, _ = made()
    body = [one for name, one in named(model).items() if not name.startswith("head")]
    return model, torch.optim.AdamW(body)


def a_frozen_weight() -> Pair:
    model, optimizer = made()
    model.cls.requires_grad_(False)
    return stepped(model, optimizer)


def another_order() -> Pair:
    """Two weights of one shape change places: torch loads by index and says nothing."""
    model, saved = stepped(*made())
    live = named(model)
    one, other = "layers.0.norm1.weight", "layers.0.norm2.weight"
    order = {one: other, other: one}
    optimizer = torch.optim.AdamW([live[order.get(name, name)] for name in live])
    optimizer.load_state_dict(saved.state_dict())
    return model, optimizer


def another_moment(name: str, array: torch.Tensor) -> Pair:
    model, optimizer = stepped(*made())
    optimizer.state[model.cls][name] = array
    return model, optimizer


NOT_SUPPORTED = "group 0 of the optimizer has {0}=True, which is not supported; train it with "
NOT_SUPPORTED += "{0}=False"
REFUSED_BOTH_WAYS: dict[str, Callable[[], Pair]] = {
    "the optimizer is SGD, its state is not Adam's; pass a torch.optim.Adam or AdamW": (
        lambda: made(torch.optim.SGD)
    ),
    NOT_SUPPORTED.format("amsgrad"): lambda: made(amsgrad=True),
    NOT_SUPPORTED.format("maximize"): lambda: made(maximize=True),
    "group 0 of the optimizer has weight_decay=0.1 in the gradient, which is not supported; "
    "use torch.optim.AdamW": lambda: made(torch.optim.Adam, weight_decay=0.1),
    "the optimizer holds a weight of shape (2, 5) that is not the model's; make it over "
    "model.named_parameters()": a_stranger,
    "the optimizer does not hold head.weight, head.bias; make it over model.named_parameters()": (
        a_part
    ),
    "the state of layers.0.norm2.weight was saved for layers.0.norm1.weight; torch loads by "
    "index: make the optimizer over the weights in the order that was saved": another_order,
}
# These concern what is taken out, and would be overwritten by what is put in.
REFUSED_ON_IMPORT: dict[str, Callable[[], Pair]] = {
    "the optimizer has no state for cls; give every weight a gradient before the first step": (
        a_frozen_weight
    ),
    "exp_avg of cls is float32 (13,), its weight is float32 (12,); load the state of this model": (
        lambda: another_moment("exp_avg", torch.zeros(13))
    ),
    "exp_avg_sq of cls is float64 (12,), its weight is float32 (12,); load the state of this "
    "model": lambda: another_moment("exp_avg_sq", torch.zeros(12, dtype=torch.float64)),
}


@each_refusal({ValueError: REFUSED_BOTH_WAYS | REFUSED_ON_IMPORT})
def test_torch_refuses_by_name(kind: type[Exception], words: str, what: Callable[[], Pair]) -> None:
    model, optimizer = what()
    with refused(kind, words, whole=True):
        pe_torch.import_adam(model, optimizer)
    if words in REFUSED_BOTH_WAYS:
        before = pe_torch.to_arrays(model)
        with refused(kind, words, whole=True):
            pe_torch.export_adam(stopped("torch", "float32"), model, optimizer)
        for name, array in pe_torch.to_arrays(model).items():
            assert np.array_equal(array, before[name])


# --- optax ---


def kernels_apart(weights: Any) -> Any:
    return jax.tree.map(lambda decays: "linear" if decays else "other", decaying(weights))


TRAVELS = (
    "whose state does not travel; use optax.adam or adamw, alone or in a chain with "
    "clipping, decay and schedules"
)
HALVES = {"linear": optax.adam(1e-3), "other": optax.adam(1e-4)}
MISSING = (
    "opt_state.inner_state[0].mu does not fit the config; missing: input.bias, encodings.0.table, "
    "cls, layers.0.norm1.weight, layers.0.norm1.bias, layers.0.attention.out.bias, "
    "layers.0.norm2.weight, layers.0.norm2.bias, layers.0.feed_forward.up.bias, "
    "layers.0.feed_forward.down.bias, norm.weight, norm.bias, head.bias; load it with the config "
    "it was saved with"
)


@each_refusal(
    {
        ValueError: {
            "the optimizer has 0 states of Adam, in opt_state; make it with one": optax.sgd(1e-3),
            f"opt_state[0] is ScaleByAmsgradState, {TRAVELS}": optax.amsgrad(1e-3),
            f"opt_state is MultiStepsState, {TRAVELS}": optax.MultiSteps(optax.adam(1e-3), 2),
            "the optimizer has 2 states of Adam, in opt_state[0][0], opt_state[1][0]; make it with "
            "one": optax.chain(optax.adam(1e-3), optax.adam(1e-3)),
            f"opt_state is PartitionState, {TRAVELS}": optax.multi_transform(HALVES, kernels_apart),
            "opt_state[0].mu of cls is bfloat16, its weight is float32; leave mu_dtype at None": (
                optax.adam(1e-3, mu_dtype=jnp.bfloat16)
            ),
            MISSING: optax.masked(optax.adam(1e-3), decaying),
        }
    }
)
def test_flax_refuses_by_name(kind: type[Exception], words: str, what: Any) -> None:
    run = StockFlax("float32", what)
    with refused(kind, words, whole=True):
        run.take()
    with refused(kind, words, whole=True):
        run.put(stopped("torch", "float32"))
    assert unchanged(run.model, BACKENDS["flax"].package)


# --- The state ---


@pytest.mark.parametrize("framework", list(STOCK))
def test_a_state_that_is_not_whole_is_refused(framework: str) -> None:
    run, state = STOCK[framework]("float32"), stopped("torch", "float32")
    without = {name: {n: state[n] for n in state if n != name} for name in ("adam/v/cls", COUNT)}
    for changed, words in [
        (without["adam/v/cls"], "adam/v of the state does not fit ...; missing: cls; "),
        (
            state | {"adam/m/other": state["adam/m/cls"]},
            "adam/m of the state does not fit ...; unexpected: other; ",
        ),
        (
            state | {"param/cls": np.zeros(13, np.float32)},
            "param of the state does not fit ...; misshapen: cls is (13,), not (12,); ",
        ),
        (without[COUNT], "the state has no adam/count; set it to the number of steps"),
        (state | {COUNT: np.array(-1)}, "adam/count must lie in 0 .. 2147483647, got -1"),
    ]:
        with refused(ValueError, words):
            run.put(changed)
    assert unchanged(run.model, BACKENDS[framework].package)
