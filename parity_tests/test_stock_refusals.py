"""A stock Adam whose run would go on wrongly is refused by name, and nothing is changed then."""

from __future__ import annotations

import re
from collections.abc import Callable
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
from parity_tests.adam_runs import put_gradients
from parity_tests.cases import WINGS
from parity_tests.stock_runs import CONFIG, GRADIENTS, START, STOCK, StockFlax, decaying, stopped
from pe_core.training.state import COUNT


def make_torch(
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW, **options: Any
) -> tuple[Any, Any]:
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
    return model, torch.optim.AdamW(
        [weight for name, weight in model.named_parameters() if not name.startswith("head")]
    )


def a_frozen_weight() -> tuple[Any, Any]:
    model, optimizer = make_torch()
    model.cls.requires_grad_(False)
    put_gradients(
        {name: weight for name, weight in model.named_parameters() if name != "cls"}, GRADIENTS, 0
    )
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
    "SGD": (
        lambda: make_torch(torch.optim.SGD),
        "the optimizer is SGD, its state is not Adam's; pass a torch.optim.Adam or AdamW",
    ),
    "amsgrad": (
        lambda: make_torch(amsgrad=True),
        (
            "group 0 of the optimizer has amsgrad=True, which is not supported; train it with "
            "amsgrad=False"
        ),
    ),
    "maximize": (
        lambda: make_torch(maximize=True),
        (
            "group 0 of the optimizer has maximize=True, which is not supported; train it with "
            "maximize=False"
        ),
    ),
    "decay in the gradient": (
        lambda: make_torch(torch.optim.Adam, weight_decay=0.1),
        (
            "group 0 of the optimizer has weight_decay=0.1 in the gradient, which is not "
            "supported; "
            "use torch.optim.AdamW"
        ),
    ),
    "a stranger": (
        a_stranger,
        (
            "the optimizer holds a weight of shape (2, 5) that is not the model's; make it over "
            "model.named_parameters()"
        ),
    ),
    "a part": (
        a_part,
        "the optimizer does not hold head.weight, head.bias; make it over model.named_parameters()",
    ),
    "another order": (
        another_order,
        "the state of layers.0.norm2.weight was saved for layers.0.norm1.weight; torch loads by "
        "index:"
        " make the optimizer over the weights in the order that was saved",
    ),
}
# These concern what is taken out, and would be overwritten by what is put in.
REFUSED_ON_IMPORT: dict[str, tuple[Callable[[], tuple[Any, Any]], str]] = {
    "a frozen weight": (
        a_frozen_weight,
        "the optimizer has no state for cls; give every weight a gradient before the first step",
    ),
    "another shape": (
        another_shape,
        (
            "exp_avg of cls is float32 (13,), its weight is float32 (12,); load the state of this "
            "model"
        ),
    ),
    "another dtype": (
        another_dtype,
        (
            "exp_avg_sq of cls is float64 (12,), its weight is float32 (12,); load the state of "
            "this "
            "model"
        ),
    ),
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
        assert all(
            np.array_equal(array, before[one]) for one, array in pe_torch.to_arrays(model).items()
        )


def kernels_apart(weights: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "linear" if "kernel" in jax.tree_util.keystr(path) else "other", weights
    )


TRAVELS = (
    "whose state does not travel; use optax.adam or adamw, alone or in a chain with "
    "clipping, decay and schedules"
)
REFUSED_OF_OPTAX: dict[str, tuple[Callable[[], Any], str]] = {
    "sgd": (
        lambda: optax.sgd(1e-3),
        "the optimizer has 0 states of Adam, in opt_state; make it with one",
    ),
    "amsgrad": (lambda: optax.amsgrad(1e-3), f"opt_state[0] is ScaleByAmsgradState, {TRAVELS}"),
    "MultiSteps": (
        lambda: optax.MultiSteps(optax.adam(1e-3), 2),
        f"opt_state is MultiStepsState, {TRAVELS}",
    ),
    "two": (
        lambda: optax.chain(optax.adam(1e-3), optax.adam(1e-3)),
        "the optimizer has 2 states of Adam, in opt_state[0][0], opt_state[1][0]; make it with one",
    ),
    "groups": (
        lambda: optax.multi_transform(
            {"linear": optax.adam(1e-3), "other": optax.adam(1e-4)}, kernels_apart
        ),
        f"opt_state is PartitionState, {TRAVELS}",
    ),
    "mu_dtype": (
        lambda: optax.adam(1e-3, mu_dtype=jnp.bfloat16),
        "opt_state[0].mu of cls is bfloat16, its weight is float32; leave mu_dtype at None",
    ),
    "masked": (
        lambda: optax.masked(optax.adam(1e-3), decaying),
        "opt_state.inner_state[0].mu does not fit the config; missing: input.bias, "
        "encodings.0.table, cls, layers.0.norm1.weight,"
        " layers.0.norm1.bias, layers.0.attention.out.bias, layers.0.norm2.weight, "
        "layers.0.norm2.bias, layers.0.feed_forward.up.bias,"
        " layers.0.feed_forward.down.bias, norm.weight, norm.bias, head.bias; load it with the "
        "config it was saved with",
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
    assert all(
        np.array_equal(array, START[one]) for one, array in pe_flax.to_arrays(run.model).items()
    )


@pytest.mark.parametrize("framework", list(STOCK))
def test_a_state_that_is_not_whole_is_refused(framework: str) -> None:
    run, state = STOCK[framework]("float32"), stopped("torch", "float32")
    for changed, message in [
        (
            {name: array for name, array in state.items() if name != "adam/v/cls"},
            r"^adam/v of the state does not fit .*; missing: cls; ",
        ),
        (
            state | {"adam/m/other": state["adam/m/cls"]},
            r"^adam/m of the state does not fit .*; unexpected: other; ",
        ),
        (
            state | {"param/cls": np.zeros(13, np.float32)},
            r"^param of the state does not fit .*; misshapen: cls is \(13,\), not \(12,\); ",
        ),
        (
            {name: array for name, array in state.items() if name != COUNT},
            r"^the state has no adam/count; set it to the number of steps",
        ),
        (state | {COUNT: np.array(-1)}, r"^adam/count must lie in 0 \.\. 2147483647, got -1$"),
    ]:
        with pytest.raises(ValueError, match=message):
            run.put(changed)
    assert all(
        np.array_equal(array, START[name])
        for name, array in WINGS[framework].package.to_arrays(run.model).items()
    )
