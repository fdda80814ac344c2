"""Functions of torch that transform, copy or trace a model: torch.func, copies, fake and meta
tensors, jit.trace; and devices without float64.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import pe_torch
from parity_tests.cases import small_config
from parity_tests.small_models import assert_near
from parity_tests.unchecked import unchecked_torch
from pe_core import LearnedTable, Sinusoidal, Tokens
from pe_core.encodings import Rotary, Shaw, T5Bias
from pe_core.errors import UserValueError
from pe_core.model.config import POOLINGS


@pytest.fixture(scope="module", autouse=True)
def _unchecked() -> Iterator[None]:
    global pe_torch
    with unchecked_torch() as pe_torch:
        yield


ENCODINGS = (Sinusoidal(layers="all"), LearnedTable(40), Rotary(), T5Bias(), Shaw(3))
MASK = torch.arange(6) < torch.tensor([[6], [4], [1]])
TOKENS = torch.arange(18).reshape(3, 6) % 5


def make(**changes: Any) -> Any:
    config = small_config(**({"encodings": ENCODINGS} | changes))
    return pe_torch.SequenceClassifier(config, seed=1).eval()


def inputs(length: int = 6) -> Tensor:
    return torch.randn(3, length, 3, generator=torch.Generator().manual_seed(0))


# --- torch.func ---


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("positions", [None, torch.arange(6) * 2, torch.arange(18).reshape(3, 6)])
def test_vmap_gives_each_sequence_alone(
    pooling: str, tokens: bool, positions: Tensor | None
) -> None:
    model = make(pooling=pooling, **({"inputs": Tokens(5)} if tokens else {}))
    x = TOKENS if tokens else inputs()
    places = None if positions is None else positions.expand(3, 6)

    def one(x: Tensor, mask: Tensor, places: Tensor | None) -> Tensor:
        given = None if places is None else places[None]
        return model(x[None], mask=mask[None], positions=given)[0]

    found = vmap(one, in_dims=(0, 0, None if places is None else 0))(x, MASK, places)
    assert_near(found, model(x, mask=MASK, positions=positions))


def loss(model: nn.Module, weights: Any, x: Tensor, mask: Tensor) -> Tensor:
    logits: Tensor = functional_call(model, weights, (x[None],), {"mask": mask[None]})
    return logits.square().sum()


@pytest.mark.parametrize("tokens", [False, True])
def test_gradients_per_sample_are_those_of_backward(tokens: bool) -> None:
    model = make(**({"inputs": Tokens(5)} if tokens else {}))
    x = TOKENS if tokens else inputs()
    weights = dict(model.named_parameters())
    each = vmap(grad(lambda *given: loss(model, *given)), in_dims=(None, 0, 0))(weights, x, MASK)
    model(x, mask=MASK).square().sum().backward()
    found, exact = (
        torch.cat([item.ravel() for item in items])
        for items in (
            [each[name].sum(0) for name in weights],
            [weight.grad for weight in weights.values() if weight.grad is not None],
        )
    )
    assert_near(found, exact, "gradient")


def test_blocks_of_rows_have_gradients_in_a_transform() -> None:
    found = []
    for rows in (None, 2):
        config = small_config(num_layers=1, encodings=ENCODINGS)
        compute = pe_torch.ComputeConfig(rows_per_block=rows)
        model = pe_torch.SequenceClassifier(config, seed=1, compute=compute).eval()
        found.append(grad(lambda x, model=model: model(x).sum())(inputs()))
    assert_near(found[1], found[0], "gradient")


TRANSFORMS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "grad": lambda model, x: grad(lambda x: model(x).sum())(x),
    "jacrev": lambda model, x: jacrev(model)(x),
    "jvp": lambda model, x: jvp(model, (x,), (x,)),
    "vmap": lambda model, x: vmap(lambda x: model(x[None])[0])(x),
    "weights": lambda model, x: grad(lambda weights: functional_call(model, weights, (x,)).sum())(
        dict(model.named_parameters())
    ),
    "functionalize": lambda model, x: torch.func.functionalize(model)(x),
    "make_fx": lambda model, x: make_fx(model)(x),
    "fake": lambda model, x: make_fx(model, tracing_mode="fake", _allow_non_fake_inputs=True)(x),
    "symbolic": lambda model, x: make_fx(
        model, tracing_mode="symbolic", _allow_non_fake_inputs=True
    )(x),
    "jit.trace": lambda model, x: torch.jit.trace(model, (x,)),
    "inference": lambda model, x: torch.inference_mode()(model)(x),
    "export": lambda model, x: torch.export.export(model, (x,)),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("before", [False, True])
def test_nothing_stays_behind_a_transform(name: str, before: bool) -> None:
    model = make(encodings=(Sinusoidal(), LearnedTable(40)))
    state = set(model.state_dict())
    if before:
        model(inputs())
    TRANSFORMS[name](model, inputs())
    exact = make(encodings=(Sinusoidal(), LearnedTable(40)))(inputs())
    assert torch.equal(model(inputs()), exact)
    assert torch.equal(copy.deepcopy(model)(inputs()), exact)
    assert torch.equal(pickle.loads(pickle.dumps(model))(inputs()), exact)
    assert set(model.state_dict()) == state
    model(inputs()).sum().backward()


def test_copies_carry_no_rows() -> None:
    model = make(encodings=(Sinusoidal(),))
    small = len(pickle.dumps(model))
    with torch.inference_mode():
        model(inputs(4000))
    assert len(pickle.dumps(model)) <= small + 100
    twin = copy.deepcopy(model)
    (encoding,) = twin.encoder.encodings
    assert all(not isinstance(item, Tensor) for item in vars(encoding).values())
    assert torch.equal(twin(inputs(9)), model(inputs(9)))


def test_rows_are_made_once_in_eager() -> None:
    encoding = pe_torch.SinusoidalEncoding(Sinusoidal(), d_model=12)
    made = []
    waves = encoding._waves
    encoding._waves = lambda *given: made.append(1) or waves(*given)  # type: ignore[method-assign, func-returns-value]
    for length in (9, 9, 5, 9):
        encoding(torch.zeros(2, length, 12))
    assert len(made) == 1
    encoding.double()(torch.zeros(2, 9, 12, dtype=torch.float64))
    assert len(made) == 2


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_model_gives_the_eager_numbers(tokens: bool) -> None:
    model = make(**({"inputs": Tokens(5)} if tokens else {}))
    x = TOKENS if tokens else inputs()
    traced = torch.jit.trace(model, (x,))
    assert_near(traced(x.flip(0)), model(x.flip(0)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_model_in_training_draws_new_masks() -> None:
    model = make(dropout=0.5).train()
    traced = torch.jit.trace(model, (inputs(),), check_trace=False)
    assert not torch.equal(traced(inputs()), traced(inputs()))


def test_models_are_made_on_the_default_device() -> None:
    with torch.device("meta"):
        model = make(pooling="cls")
        alone = pe_torch.SelfAttention(12, 3, encodings=ENCODINGS)
    for module in (model, alone):
        assert {item.device.type for item in module.parameters()} == {"meta"}
    assert model(inputs().to("meta")).shape == (3, 4)


# --- Values that cannot be read ---


def test_what_can_be_read() -> None:
    x = torch.ones(2, 3)
    assert pe_torch.positions.can_read(x)
    assert pe_torch.positions.can_read(nn.Parameter(x))
    assert pe_torch.positions.can_read(x.as_subclass(type("Mine", (Tensor,), {})))
    with torch.inference_mode():
        assert pe_torch.positions.can_read(torch.ones(2))
    assert not pe_torch.positions.can_read(x.to("meta"))
    found = []

    def look(x: Tensor) -> Tensor:
        found.append(pe_torch.positions.can_read(x))
        return x.sum()

    vmap(look)(x)
    grad(look)(x)
    make_fx(look)(x)
    torch.func.functionalize(look)(x)
    with FakeTensorMode() as mode:
        look(mode.from_tensor(x))
        look(torch.ones(2))
    assert found == [False] * 6
    assert pe_torch.positions.can_read(x)


def only_these_are_nan(call: Callable[[Tensor], Tensor], good: Tensor, bad: Tensor) -> bool:
    """Whether the rows of the bad values are NaN and the others as those of the good ones."""
    right, found = vmap(call)(torch.stack([good, bad]))
    same = good == bad
    return bool(found[~same].isnan().all()) and torch.equal(found[same], right[same])


@pytest.mark.parametrize("bad", [-1, 5, 99, -(2**40)])
def test_tokens_outside_the_vocabulary_are_nan_in_a_transform(bad: int) -> None:
    table = make(inputs=Tokens(5)).encoder.input
    good = torch.tensor([[0, 4, 2]])
    wrong = torch.tensor([[0, bad, 2]])
    assert only_these_are_nan(table, good, wrong)
    with pytest.raises(UserValueError, match=f"token {bad} lies outside"):
        table(wrong)


@pytest.mark.parametrize("bad", [-1, 9, 8.5, float("nan"), float("inf"), -0.5])
def test_positions_outside_a_table_are_nan_in_a_transform(bad: float) -> None:
    encoding = pe_torch.LearnedTableEncoding(LearnedTable(9), d_model=12, seed=0)
    good = torch.tensor([0, 8, 3])
    wrong = torch.tensor([0, bad, 3])
    if wrong.dtype.is_floating_point:
        good = good.float()
    zeros = torch.zeros(1, 3, 12)
    assert only_these_are_nan(lambda positions: encoding(zeros, positions)[0], good, wrong)
    with pytest.raises(UserValueError):
        encoding(zeros, wrong)


def test_padding_beyond_a_table_stays_finite_in_a_transform() -> None:
    model = make(encodings=(LearnedTable(4),))
    mask = torch.arange(6) < torch.tensor([[4], [2], [3]])
    found = vmap(lambda x, mask: model(x[None], mask=mask[None])[0])(inputs(), mask)
    assert_near(found, model(inputs(), mask=mask))


def test_packed_sequences_in_a_transform_need_their_number() -> None:
    model, ids = make(), torch.tensor([[1, 1, 2, 2, 3, 0]]).expand(3, 6)

    def one(x: Tensor, ids: Tensor, count: int | None = 3) -> Tensor:
        return model(x[None], segment_ids=ids[None], num_segments=count)[0]

    assert_near(vmap(one)(inputs(), ids), model(inputs(), segment_ids=ids))
    with pytest.raises(UserValueError, match="pass num_segments"):
        vmap(lambda x, ids: one(x, ids, None))(inputs(), ids)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("tokens", [False, True])
def test_meta_and_fake_models_give_shapes(pooling: str, tokens: bool) -> None:
    changes = {"inputs": Tokens(5)} if tokens else {}
    x = TOKENS if tokens else inputs()
    places = torch.arange(6)
    model = make(pooling=pooling, **changes)
    model(x)
    meta = copy.deepcopy(model).to("meta")
    assert meta(x.to("meta"), mask=MASK.to("meta")).shape == (3, 4)
    assert meta(x.to("meta"), positions=places.to("meta")).shape == (3, 4)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = model(mode.from_tensor(x), positions=mode.from_tensor(places))
    assert fake.shape == (3, 4)
    assert model(x).isfinite().all()


# --- Devices without float64 ---


class NoFloat64(TorchDispatchMode):
    """Makes a device without float64 of the meta device, whose values can be copied from it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to = kwargs.get("device")
        if func is torch.ops.aten._to_copy.default and to is not None and to.type == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        made = func(*args, **kwargs)
        for item in torch.utils._pytree.tree_leaves(made):
            if isinstance(item, Tensor) and item.is_meta:
                assert item.dtype != torch.float64, f"{func} makes float64 there"
        return made


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("positions", [None, torch.arange(6), torch.arange(6) * 0.5])
def test_no_float64_on_a_device_without_it(
    monkeypatch: pytest.MonkeyPatch, masked: bool, positions: Tensor | None
) -> None:
    angles = pe_torch.encodings.angles
    assert "mps" in angles.WITHOUT_FLOAT64
    monkeypatch.setattr(angles, "WITHOUT_FLOAT64", frozenset({"meta"}))
    encodings: tuple[Any, ...] = (Sinusoidal(), LearnedTable(40), Rotary())
    if positions is None or not positions.dtype.is_floating_point:
        encodings = (*encodings, T5Bias(), Shaw(3))
    model = make(encodings=encodings, pooling="attention")
    with NoFloat64():
        model.to("meta")
        given = {"mask": MASK if masked else None, "positions": positions}
        found = model(
            inputs().to("meta"),
            **{name: None if item is None else item.to("meta") for name, item in given.items()},
        )
        assert found.is_meta
        with pytest.raises(AssertionError, match="float64"):
            torch.ones(2, dtype=torch.float64, device="meta")
