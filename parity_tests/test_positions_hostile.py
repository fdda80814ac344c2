"""Positions as people have them: Unix times, milliseconds, fractions, NaN in the padding. What they
say is computed to the last digit of float32, or refused in one line.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import pe_flax
import pe_torch
from parity_tests.cases import BACKENDS, FEATURES, perturbed_arrays, small_config
from parity_tests.refusals import refused
from parity_tests.small_models import COLUMNS, assert_near, in_each_backend, in_each_column
from parity_tests.unchecked import unchecked_torch
from pe_core import ComputeConfig, LearnedTable, ModelConfig, Sinusoidal
from pe_core.encodings import Rotary, Shaw, T5Bias
from pe_parity.reference import forward
from pe_parity.reference.additive import sinusoidal
from pe_parity.reference.rotary import rotate

PI = Decimal(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862"
)
STEPS = np.arange(5)
FAR: dict[str, np.ndarray] = {
    "seconds": 1_700_000_000 + STEPS,
    "seconds in int32": (1_700_000_000 + STEPS).astype(np.int32),
    "seconds in uint32": (3_000_000_000 + STEPS).astype(np.uint32),
    "milliseconds": 1_700_000_000_123 + STEPS,
    "nanoseconds": 1_700_000_000_123_456_789 + STEPS,
    "2**62": (1 << 62) + STEPS,
    "-2**62": -(1 << 62) - STEPS,
    "the largest": (1 << 63) - 5 + STEPS,
    "the largest of uint64": ((1 << 63) - 5 + STEPS).astype(np.uint64),
    "fractions of a second": 1_700_000_000.123 + STEPS / 8,
    "fractions of a millisecond": 1_700_000_000_123.5 + STEPS / 4,
    "before the epoch": -1_700_000_000.75 - STEPS,
    "float64 beyond float32": np.float64(1 << 60) + STEPS * 512,
    "float32": (1_700_000_000 + 512 * STEPS).astype(np.float32),
    "big-endian": (1_700_000_000_123 + STEPS).astype(">i8"),
}


def angle(position: Any, base: float, exponent: Decimal) -> float:
    """Return position * base^-exponent, less whole turns, from eighty digits."""
    with localcontext() as context:
        context.prec = 80
        turn = 2 * PI
        exact = Decimal(position) * Decimal(base) ** -exponent
        return float(exact - turn * (exact / turn).to_integral_value())


def exact_angles(positions: np.ndarray, base: float, count: int) -> np.ndarray:
    exponents = [Decimal(k) / count for k in range(count)]
    return np.array([[angle(p.item(), base, e) for e in exponents] for p in positions])


def waves(column: str, options: Sinusoidal, width: int, positions: np.ndarray) -> np.ndarray:
    if column == "reference":
        return sinusoidal(options, width, positions)
    layer = BACKENDS[column].package.SinusoidalEncoding(options, d_model=width)
    zeros = np.zeros((1, len(positions), width), np.float32)
    return given(column, layer, zeros, positions=positions)[0]


def given(column: str, layer: Any, x: np.ndarray, **arguments: Any) -> np.ndarray:
    """Call a layer with arrays as a user of the backend has them: in Flax, those of NumPy."""
    if column == "torch":
        arguments = {
            key: torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
            for key, value in arguments.items()
        }
        return np.asarray(layer(torch.from_numpy(x), **arguments).detach())
    return np.asarray(layer(x, **arguments))


@in_each_column
@pytest.mark.parametrize("what", FAR)
def test_waves_keep_their_digits_at_times(column: str, what: str) -> None:
    positions = FAR[what]
    for base in (10_000.0, 7.25):
        angles = exact_angles(positions, base, 4)
        found = waves(column, Sinusoidal(base=base), 8, positions)
        assert_near(found[:, 0::2], np.sin(angles))
        assert_near(found[:, 1::2], np.cos(angles))
    assert len(np.unique(found, axis=0)) == len(STEPS)
    half = waves(column, Sinusoidal(layout="half"), 8, positions)
    assert np.array_equal(half[:, :4], waves(column, Sinusoidal(), 8, positions)[:, 0::2])


@in_each_column
@pytest.mark.parametrize("what", FAR)
def test_rotations_keep_their_digits_at_times(column: str, what: str) -> None:
    positions = FAR[what]
    angles = exact_angles(positions, 10_000.0, 4)
    x = np.zeros((1, 1, len(STEPS), 8), np.float32)
    x[..., 0::2] = 1.0
    if column == "reference":
        found = rotate(Rotary(), x.astype(np.float64), positions)
    else:
        layer = BACKENDS[column].package.RotaryEncoding(Rotary(), d_head=8)
        x = x if column == "torch" else x.swapaxes(1, 2)
        found = given(column, layer.key, x, positions=positions)
        found = found if column == "torch" else found.swapaxes(1, 2)
    assert_near(found[0, 0, :, 0::2], np.cos(angles))
    assert_near(found[0, 0, :, 1::2], np.sin(angles))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@pytest.mark.parametrize("origin", [0, -7, 1_000_003, 1_700_000_000, -1_700_000_000])
def test_compiled_waves_keep_their_digits(dtype: Any, origin: int) -> None:
    positions = (origin + STEPS * 1024).astype(dtype)
    angles = exact_angles(positions, 10_000.0, 4)
    layer = pe_flax.SinusoidalEncoding(Sinusoidal(), d_model=8)
    add = jax.jit(lambda x, p: layer(x, p))
    found = np.asarray(add(jnp.zeros((1, 5, 8)), jnp.asarray(positions)))[0]
    assert_near(found[:, 0::2], np.sin(angles))
    with unchecked_torch() as pe_torch:
        other = pe_torch.SinusoidalEncoding(Sinusoidal(), d_model=8)
        compiled = torch.compile(other, backend="eager", fullgraph=True)
        same = np.asarray(compiled(torch.zeros(1, 5, 8), torch.from_numpy(positions)))[0]
    assert_near(same[:, 0::2], np.sin(angles))


ORIGINS = [1_700_000_000, 1_700_000_000_123, -(1 << 62), (1 << 63) - 10]


@in_each_backend
@pytest.mark.parametrize("origin", ORIGINS)
def test_offsets_of_far_positions_are_exact(label: str, origin: int) -> None:
    layer = BACKENDS[label].package.T5BiasEncoding(T5Bias(8, 16), num_heads=2, seed=0)
    near = np.array([3, 0, 4, 9, 1])
    found = []
    for positions in (near, near + origin):
        given: Any = torch.from_numpy(positions) if label == "torch" else positions
        found.append(BACKENDS[label].numpy(layer.bias(given, given)))
    assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize(
    ("column", "rows"),
    [("reference", None), ("torch", None), ("torch", 2), ("flax", None), ("flax", 2)],
)
@pytest.mark.parametrize("origin", [ORIGINS[-1]])
def test_models_with_offsets_see_only_offsets(column: str, rows: int | None, origin: int) -> None:
    config = small_config(encodings=(T5Bias(8, 16), Shaw(2)), num_layers=1)
    near = np.array([3, 0, 4, 9, 1])
    found = [
        output(column, config, rows=rows, positions=positions)
        for positions in (near, near + origin, np.tile(near + origin, (2, 1)))
    ]
    assert_near(found[1], found[0])
    assert_near(found[2], found[0])


@in_each_column
@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.uint64])
def test_padding_beyond_the_types_of_jax_reaches_no_table(column: str, dtype: Any) -> None:
    config = small_config(encodings=(LearnedTable(9), Rotary()), num_layers=1)
    positions = np.tile(np.arange(5, dtype=dtype), (2, 1))
    expected = output(column, config, positions=positions, mask=MASK)
    positions[~MASK] = np.iinfo(dtype).max
    assert np.array_equal(output(column, config, positions=positions, mask=MASK), expected)


@in_each_column
def test_fractional_offsets_beyond_the_integers_are_far(column: str) -> None:
    config = small_config(encodings=(T5Bias(8, 16),), num_layers=1)
    found = [
        output(column, config, positions=np.array([-far, far, 0.0, 1.0, 2.0]))
        for far in (1000.0, 9e18)
    ]
    assert_near(found[1], found[0])


@in_each_column
def test_offsets_that_no_type_holds_are_far(column: str) -> None:
    config = small_config(encodings=(T5Bias(8, 16), Shaw(2)), num_layers=1)
    found = [
        output(column, config, positions=np.array([-far, 1 - far, 0, far - 1, far - 2]))
        for far in (1000, 1_700_000_000, 1 << 40, (1 << 63) - 1)
    ]
    for one in found[1:]:
        assert_near(one, found[0])


@in_each_column
def test_fractional_offsets_are_those_of_float64(column: str) -> None:
    # In float32, 1.3 - 0.3 is less than 1 and falls into another bucket.
    positions = np.array([0.3, 1.3, 2.3, 1_700_000_000.25, 1_700_000_001.25])
    config = small_config(encodings=(T5Bias(8, 16),))
    expected = output("reference", config, positions=positions)
    for rows in (None, 2):
        assert_near(output(column, config, rows=rows, positions=positions), expected)


MASK = np.array([[True] * 5, [True, True, False, True, False]])


def output(
    column: str, config: ModelConfig, *, rows: int | None = None, **arguments: Any
) -> np.ndarray:
    """Return the logits of a model for two sequences of five steps."""
    x = np.random.default_rng(0).normal(size=(2, 5, FEATURES)).astype(np.float32)
    if column == "reference":
        return forward(config, perturbed_arrays(config), x, **arguments)
    live = BACKENDS[column].package.from_arrays(
        config, perturbed_arrays(config), compute=ComputeConfig(rows_per_block=rows)
    )
    return given(column, live, x, **arguments)


MODELS: dict[str, tuple[Any, ...]] = {
    "none": (),
    "learned": (LearnedTable(9),),
    "learned in all layers": (LearnedTable(9, layers="all"),),
    "sinusoidal": (Sinusoidal(),),
    "rotary": (Rotary(),),
    "t5": (T5Bias(8, 16),),
    "all": (Sinusoidal(), LearnedTable(9), Rotary(), T5Bias(8, 16)),
    "shaw": (Shaw(2),),
}
HIDDEN = [math.nan, math.inf, -math.inf, -1, 1 << 40, -(1 << 62)]


@in_each_column
@pytest.mark.parametrize(
    ("name", "pooling"), [("all", "cls"), *((name, "mean") for name in MODELS)]
)
def test_padding_holds_no_position(column: str, name: str, pooling: Any) -> None:
    layers = 2 if "layers" in name else 1
    config = small_config(encodings=MODELS[name], pooling=pooling, num_layers=layers)
    whole = "shaw" in name
    values = np.tile(np.arange(5), (2, 1)) + 0 if whole else np.tile(np.arange(5) / 2, (2, 1))
    expected = output(column, config, positions=values, mask=MASK)
    for hidden in HIDDEN:
        if whole and not isinstance(hidden, int):
            continue
        positions = np.where(MASK, values, hidden).astype(values.dtype)
        assert np.array_equal(output(column, config, positions=positions, mask=MASK), expected)


@in_each_column
@pytest.mark.parametrize("name", [name for name in MODELS if name != "shaw"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_real_step_stands_somewhere(column: str, name: str, dtype: Any) -> None:
    config = small_config(encodings=MODELS[name], num_layers=1)
    for bad in (math.nan, math.inf, -math.inf):
        positions = np.array([0, 1, 2, bad, 4], dtype)
        with refused(ValueError, "positions"):
            output(column, config, positions=positions)
        with refused(ValueError, "positions"):
            output(column, config, positions=np.tile(positions, (2, 1)), mask=MASK)


@in_each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e300])
def test_layers_alone_refuse_what_is_nowhere(label: str, bad: float) -> None:
    package = BACKENDS[label].package
    positions = np.array([0.0, bad, 2.0])
    steps, heads = np.zeros((1, 3, 8), np.float32), np.zeros((1, 3, 3, 8), np.float32)
    sinusoid = package.SinusoidalEncoding(Sinusoidal(), d_model=8)
    table = package.LearnedTableEncoding(LearnedTable(9), d_model=8, seed=0)
    rotary = package.RotaryEncoding(Rotary(), d_head=8)
    attention = package.SelfAttention(8, 2, encodings=(T5Bias(),), seed=0)
    bias = package.T5BiasEncoding(T5Bias(), num_heads=2, seed=0)
    for layer, x in [(sinusoid, steps), (table, steps), (rotary.query, heads), (attention, steps)]:
        with refused(ValueError, "positions"):
            given(label, layer, x, positions=positions)
    with refused(ValueError, "positions"):
        arrays = torch.from_numpy(positions) if label == "torch" else positions
        bias(arrays, arrays)


def test_uint64_beyond_int64_is_refused() -> None:
    positions = np.full(5, 1 << 63, np.uint64)
    for column in COLUMNS:
        with refused(ValueError, "positions must lie below 2**63, got 9223372036854775808"):
            output(column, small_config(encodings=(Sinusoidal(),)), positions=positions)


def test_positions_have_gradients() -> None:
    positions = np.array([0.0, -0.75, 2.5, -3.0, 1e6], np.float32)
    exact = np.cos(positions.astype(np.float64))
    theirs = pe_flax.SinusoidalEncoding(Sinusoidal(), d_model=2)
    found = jax.grad(lambda p: theirs(jnp.zeros((1, 5, 2)), p)[..., 0].sum())(
        jnp.asarray(positions)
    )
    assert_near(found, exact, "gradient")
    live = torch.from_numpy(positions).requires_grad_()
    ours = pe_torch.SinusoidalEncoding(Sinusoidal(), d_model=2)
    ours(torch.zeros(1, 5, 2), live)[..., 0].sum().backward()
    assert live.grad is not None
    assert_near(live.grad, exact, "gradient")


def test_a_table_answers_nan_where_it_cannot_look() -> None:
    with unchecked_torch() as pe_torch:
        layer = pe_torch.LearnedTableEncoding(LearnedTable(9), d_model=6, seed=0)
        waves = pe_torch.SinusoidalEncoding(Sinusoidal(), d_model=6)
    x = torch.zeros(2, 3, 6)
    positions = torch.tensor([[0, 1, 2], [8, 9, -1]])
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    batched = torch.func.vmap(lambda x, p: layer(x[None], p[None])[0])
    for found in (compiled(x, positions), batched(x, positions), batched(x, positions / 1.0)):
        assert found[0].isfinite().all()
        assert found[1].isnan().all(dim=-1).tolist() == [False, True, True]
    for kind in (waves, layer):
        fractions = torch.tensor([0.0, math.nan, 1.5])
        found = torch.compile(kind, backend="eager", fullgraph=True)(x, fractions)
        assert found[0].isnan().any(dim=-1).tolist() == [False, True, False]


@in_each_backend
def test_models_run_in_transforms_with_positions(label: str) -> None:
    config = small_config(encodings=(Sinusoidal(), LearnedTable(9), Rotary(), T5Bias(8, 16)))
    positions = np.array([0.5, 1.25, 2.0, 3.5, 4.0], np.float32)
    hidden = np.where(MASK, positions, np.nan).astype(np.float32)
    expected = output(label, config, positions=hidden, mask=MASK)
    x = np.random.default_rng(0).normal(size=(2, 5, FEATURES)).astype(np.float32)
    live = BACKENDS[label].package.from_arrays(config, perturbed_arrays(config))
    call: Any
    one: Any

    def single(x: Any, mask: Any, positions: Any) -> Any:
        return live(x[None], mask=mask[None], positions=positions[None])[0]

    if label == "flax":
        call = jax.jit(lambda x, mask, p: live(x, mask=mask, positions=p))
        constant = jax.jit(lambda x, mask: live(x, mask=mask, positions=hidden.astype("f8") + 0.0))
        far = np.where(MASK, 1_700_000_000_123 + STEPS, -(1 << 60))
        other = small_config(encodings=(Sinusoidal(), Rotary(), T5Bias(8, 16), Shaw(2)))
        waves: Any = pe_flax.from_arrays(other, perturbed_arrays(other))
        traced = jax.jit(lambda x, mask: waves(x, mask=mask, positions=far))
        assert_near(traced(x, MASK), waves(x, mask=MASK, positions=far))
        assert_near(constant(x, MASK), expected)
        found = np.asarray(call(x, MASK, hidden))
        one = jax.vmap(single)
        assert_near(one(x, MASK, hidden), expected)
    else:
        tensors = [torch.from_numpy(item) for item in (x, MASK, hidden)]
        found = expected
        one = torch.func.vmap(single)
        assert_near(one(*tensors), expected)
    assert_near(found, expected)


def test_what_a_traced_type_cannot_hold_is_refused() -> None:
    layer = pe_flax.SinusoidalEncoding(Sinusoidal(), d_model=8)
    add = jax.jit(lambda x, p: layer(x, p))
    with refused(TypeError, "positions of uint32 ... convert them to int32"):
        add(jnp.zeros((1, 5, 8)), jnp.arange(5, dtype=jnp.uint32))
