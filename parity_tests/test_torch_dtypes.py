"""Autocast, casts and inputs of any floating dtype in PyTorch, and models that were cast in files:
layers follow the dtype of their parameters, and logits and softmax are float32 at least.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pe_torch
from parity_tests.cases import small_config
from parity_tests.small_models import assert_near
from pe_core import ComputeConfig, LearnedTable, Sinusoidal, Tokens
from pe_core.encodings import Rotary, Shaw, T5Bias
from pe_core.model.config import POOLINGS
from pe_core.storage.model_directory import load_model

NARROW = (torch.float16, torch.bfloat16)
# Relative to the largest logit: a few roundings to the dtype.
ERROR = {torch.float16: 0.01, torch.bfloat16: 0.08, torch.float64: 1e-5}
ENCODINGS = (Sinusoidal(), LearnedTable(40), Rotary(), T5Bias(), Shaw(3))
MASK = torch.arange(6) < torch.tensor([[6], [4], [0]])

in_each_dtype = pytest.mark.parametrize("dtype", ERROR, ids=str)
in_narrow_dtypes = pytest.mark.parametrize("dtype", NARROW, ids=str)


def make(**changes: Any) -> pe_torch.SequenceClassifier:
    config = small_config(**({"encodings": ENCODINGS} | changes))
    return pe_torch.SequenceClassifier(config, seed=1).eval()


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, exact: Tensor, dtype: torch.dtype) -> bool:
    return bool((found.double() - exact.double()).abs().max() <= ERROR[dtype] * exact.abs().max())


# --- Autocast ---


@in_narrow_dtypes
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_autocast_leaves_logits_softmax_and_pooling_in_float32(
    dtype: torch.dtype, masked: bool, pooling: str
) -> None:
    model, mask = make(pooling=pooling), MASK if masked else None
    exact, taps = model(inputs(), mask=mask), {}  # type: ignore[var-annotated]
    with torch.autocast("cpu", dtype):
        found = model(inputs(), mask=mask, taps=taps)
    names = [f"layers.{n}.attention.{part}" for n in (0, 1) for part in ("logits", "weights")]
    assert {taps[name].dtype for name in [*names, "pooled", "head"]} == {torch.float32}
    assert taps["layers.0.attention.query"].dtype == dtype
    assert close(found, exact, dtype)


@in_narrow_dtypes
@pytest.mark.parametrize(("norm", "rows"), [("pre", None), ("post", None), ("pre", 4)])
def test_training_under_autocast_scaled_as_without(
    dtype: torch.dtype, norm: str, rows: int | None
) -> None:
    config = small_config(norm=norm, pooling="attention", encodings=ENCODINGS)
    norms = {}
    for narrow in (False, True):
        compute = ComputeConfig(rows_per_block=rows)
        model = pe_torch.SequenceClassifier(config, seed=1, compute=compute)
        optimizer = pe_torch.Adam(model.parameters(), lambda step: 1e-3, max_gradient_norm=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=narrow)
        for _ in range(2):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype, enabled=narrow):
                loss = model(inputs(), mask=MASK).square().sum()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        norms[narrow] = optimizer.gradient_norm.item()
        assert optimizer.param_groups[0]["count"] == 2
        assert all(torch.isfinite(item).all() for item in model.parameters())
    assert_near(norms[True], norms[False], precision="bfloat16")


def test_a_step_that_the_scaler_skips_is_not_counted() -> None:
    model = make()
    optimizer = pe_torch.Adam(model.parameters(), lambda step: 1e-3)
    scaler, before = torch.amp.GradScaler("cpu"), pe_torch.to_arrays(model)
    scaler.scale(model(inputs()).sum() * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.param_groups[0]["count"] == 0
    after = pe_torch.to_arrays(model)
    assert all(np.array_equal(after[name], before[name]) for name in before)


@in_narrow_dtypes
def test_attention_alone_under_autocast(dtype: torch.dtype) -> None:
    encodings = (Rotary(), T5Bias(), Shaw(3))
    alone = pe_torch.SelfAttention(12, 3, encodings=encodings, seed=0)
    x = torch.randn(3, 6, 12, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype):
        found = alone(x, mask=MASK)
    assert found.dtype == torch.float32
    assert close(found, alone(x, mask=MASK), dtype)


# --- Models that were cast ---


@in_each_dtype
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_model_that_was_cast_computes_in_the_dtype_of_its_weights(
    dtype: torch.dtype, norm: str, pooling: str
) -> None:
    model = make(norm=norm, pooling=pooling)
    exact = model(inputs(), mask=MASK)
    model.to(dtype)
    for given in (torch.float32, dtype):
        taps: dict[str, Tensor] = {}
        found = model(inputs().to(given), mask=MASK, taps=taps)
        assert found.dtype == dtype
        assert close(found, exact, dtype)
        high = torch.float64 if dtype == torch.float64 else torch.float32
        assert taps["layers.0.attention.logits"].dtype == high
        assert taps["layers.0.attention.weights"].dtype == high
    assert model.to(torch.float32)(inputs(), mask=MASK).dtype == torch.float32


def test_a_double_model_is_the_one_that_was_made_in_float64() -> None:
    for changes in ({"pooling": "attention"}, {"pooling": "cls"}, {"inputs": Tokens(5)}):
        config = small_config(encodings=ENCODINGS, **changes)
        compute = ComputeConfig(precision="float64")
        x = torch.arange(18).reshape(3, 6) % 5 if "inputs" in changes else inputs().double()
        made = pe_torch.SequenceClassifier(config, seed=1, compute=compute)
        cast = pe_torch.SequenceClassifier(config, seed=1).double()
        cast.load_state_dict(made.state_dict())
        assert torch.equal(cast(x, mask=MASK), made(x, mask=MASK))


@in_narrow_dtypes
def test_a_part_that_was_cast_alone(dtype: torch.dtype) -> None:
    for part in ("encoder", "head", "pooling", "encoder.norm", "encoder.input", "encoder.layers.0"):
        for norm in ("pre", "post"):
            if part == "encoder.norm" and norm == "post":
                continue
            model = make(norm=norm, pooling="attention")
            exact = model(inputs(), mask=MASK)
            model.get_submodule(part).to(dtype)
            assert close(model(inputs(), mask=MASK), exact, dtype)
    # Norms are often kept wide.
    model = make(pooling="cls").to(dtype)
    for module in model.modules():
        if "Norm" in type(module).__name__:
            module.float()
    assert close(model(inputs(), mask=MASK), make(pooling="cls")(inputs(), mask=MASK), dtype)


@in_narrow_dtypes
def test_a_model_that_was_cast_trains(dtype: torch.dtype) -> None:
    model = make(pooling="attention").to(dtype).train()
    model(inputs(), mask=MASK).float().square().sum().backward()
    assert {weight.grad.dtype for weight in model.parameters() if weight.grad is not None} == {
        dtype
    }


def test_the_product_mode_stays_with_a_cast() -> None:
    compute = ComputeConfig(precision="bfloat16")
    model = pe_torch.SequenceClassifier(small_config(), seed=1, compute=compute).double()
    taps: dict[str, Tensor] = {}
    assert model(inputs(), taps=taps).dtype == torch.float64
    assert taps["layers.0.attention.query"].dtype == torch.bfloat16


# --- Inputs of any dtype to a layer alone ---


def layers_alone() -> dict[str, tuple[nn.Module, Any]]:
    x, heads = torch.randn(2, 6, 12), torch.randn(2, 3, 6, 4)
    fractions = torch.arange(6) * 0.5
    return {
        "table": (pe_torch.LearnedTableEncoding(LearnedTable(9), d_model=12), (x,)),
        "between": (pe_torch.LearnedTableEncoding(LearnedTable(9), d_model=12), (x, fractions)),
        "sinusoid": (pe_torch.SinusoidalEncoding(Sinusoidal(), d_model=12), (x,)),
        "fractions": (pe_torch.SinusoidalEncoding(Sinusoidal(), d_model=12), (x, fractions)),
        "rotary": (pe_torch.RotaryEncoding(Rotary(), d_head=4, num_heads=3), (heads, heads)),
        "attention": (pe_torch.SelfAttention(12, 3, encodings=(*ENCODINGS,)), (x,)),
    }


@in_each_dtype
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", layers_alone())
def test_the_output_has_the_dtype_of_the_input(
    dtype: torch.dtype, weights: torch.dtype, name: str
) -> None:
    layer, arguments = layers_alone()[name]
    exact = layer(*arguments)
    layer.to(weights)
    found = layer(*(item.to(dtype) for item in arguments))
    wider = torch.bfloat16 if torch.bfloat16 in (dtype, weights) else dtype
    for one, other in zip(
        *(item if isinstance(item, tuple) else (item,) for item in (found, exact)), strict=True
    ):
        assert one.dtype == dtype
        assert close(one, other, wider)


@in_each_dtype
def test_a_bias_has_the_dtype_of_its_table(dtype: torch.dtype) -> None:
    layer = pe_torch.T5BiasEncoding(T5Bias(), num_heads=2).to(dtype)
    assert layer.bias(torch.arange(4), torch.arange(5)).dtype == dtype


@in_narrow_dtypes
def test_shaw_sums_many_small_weights_in_float32(dtype: torch.dtype) -> None:
    alone = pe_torch.SelfAttention(4, 1, encodings=(Shaw(1),), seed=0)
    with torch.no_grad():
        for item in alone.parameters():
            item.zero_()
        alone.get_parameter("encodings.0.values").fill_(1.0)
        alone.out.weight.copy_(torch.eye(4))
    # Every key has the same weight, and the weights sum to one however many there are.
    found = alone.to(dtype)(torch.zeros(1, 2000, 4))
    assert_near(found.float(), torch.ones(found.shape), precision="bfloat16")


# --- In files ---


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32, torch.float64], ids=str)
def test_a_model_that_was_cast_is_saved_and_loaded_exactly(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    model = make(pooling="cls").to(dtype)
    live = {name: item.detach().double().numpy() for name, item in model.named_parameters()}
    arrays = pe_torch.to_arrays(model)
    wide = np.float64 if dtype == torch.float64 else np.float32
    assert {array.dtype for array in arrays.values()} == {np.dtype(wide)}
    pe_torch.save(model, tmp_path)
    stored = load_model(tmp_path).arrays
    for name, array in live.items():
        assert np.array_equal(stored[name.removeprefix("encoder.")], array)
    precision: Any = "float64" if dtype == torch.float64 else "float32"
    loaded = pe_torch.load(tmp_path, compute=ComputeConfig(precision=precision)).to(dtype)
    assert torch.equal(loaded(inputs()), model(inputs()))
    pe_torch.load(tmp_path)


@in_narrow_dtypes
def test_the_optimizer_of_a_model_that_was_cast_goes_through_arrays(dtype: torch.dtype) -> None:
    model = make().to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), eps=1e-3)
    model(inputs()).float().square().sum().backward()
    optimizer.step()
    state = pe_torch.import_adam(model, optimizer)
    assert {array.dtype for array in state.values()} == {np.dtype("float32"), np.dtype("int64")}
    fresh = make().to(dtype)
    other = torch.optim.AdamW(fresh.parameters())
    pe_torch.export_adam(state, fresh, other)
    again = pe_torch.import_adam(fresh, other)
    assert all(np.array_equal(again[name], state[name]) for name in state)
