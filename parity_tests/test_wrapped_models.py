"""A model inside a wrapper of the framework is the model; anything else is refused in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import pe_flax
import pe_flax.weights
import pe_torch
import pe_torch.optimizer
import pe_torch.weights
from parity_tests.cases import small_config
from parity_tests.small_models import assert_near
from parity_tests.unchecked import unchecked_torch
from pe_core import Features, LearnedTable, Sinusoidal, Tokens
from pe_core.encodings import Rotary, Shaw, T5Bias
from pe_core.errors import UserTypeError, UserValueError
from pe_core.storage.model_directory import load_model

CONFIG = small_config(pooling="cls")
# torch.compile looks at the gradient of every tensor that enters a graph.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.fixture(scope="module", autouse=True)
def _unchecked() -> Iterator[None]:
    global pe_torch
    with unchecked_torch() as pe_torch:
        yield


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


class Module(nn.Module):
    """As DistributedDataParallel, Lightning and others hold a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Any) -> Any:
        return self.module(x)


def inner_compiled(model: Any) -> Any:
    model.encoder.layers[0] = compiled(model.encoder.layers[0])
    model.encoder = compiled(model.encoder)
    return model


def inner_parallel(model: Any) -> Any:
    model.encoder = nn.DataParallel(model.encoder)
    return model


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "none": lambda model: model,
    "compile": compiled,
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "module": Module,
    "parallel of compiled": lambda model: nn.DataParallel(compiled(model)),
    "compiled average": lambda model: compiled(AveragedModel(model)),
    "twice": lambda model: Module(Module(model)),
    "parts compiled": inner_compiled,
    "encoder parallel": inner_parallel,
}
wrapped = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return list(one) == list(other) and all(np.array_equal(one[name], other[name]) for name in one)


@wrapped
def test_arrays_and_files_of_a_wrapped_model(
    tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    arrays = pe_torch.to_arrays(pe_torch.SequenceClassifier(CONFIG, seed=3))
    live = wrap(pe_torch.SequenceClassifier(CONFIG, seed=3))
    assert same(pe_torch.to_arrays(live), arrays)
    pe_torch.save(live, tmp_path, class_names=["a"])
    assert same(load_model(tmp_path).arrays, arrays)
    other = wrap(pe_torch.SequenceClassifier(CONFIG, seed=4))
    pe_torch.weights.load_arrays(other, arrays)
    assert same(pe_torch.to_arrays(other), arrays)


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, Module])
def test_arrays_of_a_wrapped_encoder(wrap: Callable[[nn.Module], nn.Module]) -> None:
    bare = pe_torch.Encoder(CONFIG, seed=3)
    assert same(pe_torch.to_arrays(wrap(bare)), pe_torch.to_arrays(bare))


@wrapped
@pytest.mark.parametrize("named", [False, True])
def test_the_optimizer_of_a_wrapped_model(
    wrap: Callable[[nn.Module], nn.Module], named: bool
) -> None:
    states = []
    for through in (lambda model: model, wrap):
        live = through(pe_torch.SequenceClassifier(CONFIG, seed=3))
        weights: Any = live.named_parameters() if named else live.parameters()
        optimizer = torch.optim.AdamW(weights)
        inner = live.module if isinstance(live, AveragedModel) else live
        inner(torch.ones(2, 5, 3)).square().sum().backward()
        optimizer.step()
        states.append(pe_torch.import_adam(live, optimizer))
    plain, found = states
    # Compiled, a short softmax is another kernel's.
    assert list(found) == list(plain)
    first, second = (np.hstack([x.ravel() for x in state.values()]) for state in (found, plain))
    assert_near(first, second, "moment")
    other = wrap(pe_torch.SequenceClassifier(CONFIG, seed=4))
    optimizer = torch.optim.AdamW(other.parameters())
    assert pe_torch.export_adam(plain, other, optimizer)
    assert same(pe_torch.import_adam(other, optimizer), plain)


@wrapped
def test_decay_of_a_wrapped_model(wrap: Callable[[nn.Module], nn.Module]) -> None:
    def sizes(model: nn.Module) -> list[list[tuple[int, ...]]]:
        groups = pe_torch.optimizer.parameter_groups(model, CONFIG, 0.1)
        return [[tuple(weight.shape) for weight in group["params"]] for group in groups]

    bare = pe_torch.SequenceClassifier(CONFIG)
    assert sizes(wrap(pe_torch.SequenceClassifier(CONFIG))) == sizes(bare)
    assert all(sizes(bare))


@wrapped
def test_a_wrapped_model_still_runs(wrap: Callable[[nn.Module], nn.Module]) -> None:
    x = torch.ones(2, 5, 3)
    bare = pe_torch.SequenceClassifier(CONFIG, seed=3).eval()
    live = wrap(pe_torch.SequenceClassifier(CONFIG, seed=3)).eval()
    assert_near(live(x), bare(x))


@pytest.mark.parametrize("wrap", [compiled, checkpoint_wrapper, nn.DataParallel])
def test_wrapped_parts_are_seen_for_what_they_are(wrap: Callable[[Any], Any]) -> None:
    options = (Sinusoidal(), LearnedTable(9), Rotary(), T5Bias(), Shaw(2))
    x = torch.randn(2, 5, 3)
    for inputs, given in ((Features(3), x), (Tokens(7), x[..., 0].int().abs())):
        config = small_config(inputs=inputs, encodings=options, pooling="cls")
        model = pe_torch.SequenceClassifier(config, seed=3).eval()
        exact, encoder = model(given), model.encoder
        encoder.input = wrap(encoder.input)
        parts: Any = encoder.encodings
        for n, item in enumerate(parts):
            if hasattr(item, "layers"):
                item.layers[0] = wrap(item.layers[0])
            else:
                parts[n] = wrap(item)
        assert_near(model(given), exact)
    alone = pe_torch.SelfAttention(12, 3, encodings=options, seed=3)
    steps = torch.randn(2, 5, 12)
    exact = alone(steps)
    for n, item in enumerate(alone.encodings):
        alone.encodings[n] = wrap(item)
    assert_near(alone(steps), exact)


# --- What is no model ---

OBJECTS: dict[str, Any] = {
    "Linear": nn.Linear(2, 2),
    "Module": Module(nn.Linear(2, 2)),
    "SelfAttention": pe_torch.SelfAttention(4, 2, seed=0),
    "dict": {"head.weight": np.zeros(1)},
    "NoneType": None,
    "SequenceClassifier": pe_flax.SequenceClassifier(CONFIG),
}
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "to_arrays": lambda package, model: package.to_arrays(model),
    "save": lambda package, model: package.save(model, "nowhere"),
    "load_arrays": lambda package, model: package.weights.load_arrays(model, {}),
    "import_adam": lambda package, model: package.import_adam(model, None),
    "export_adam": lambda package, model: package.export_adam({}, model, None),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("package", [pe_torch, pe_flax])
def test_what_is_no_model_is_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: Any,
    kind: str,
    call: Callable[[Any, Any], Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    other = OBJECTS[kind]
    if package is pe_flax and isinstance(other, pe_flax.SequenceClassifier):
        other = pe_torch.SequenceClassifier(CONFIG)
    with pytest.raises(UserTypeError, match=rf"got .*{kind}.*; pass ") as caught:
        call(package, other)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", [pe_torch, pe_flax])
def test_an_encoder_alone_is_no_classifier(package: Any, tmp_path: Path) -> None:
    encoder = package.Encoder(CONFIG)
    arrays = package.to_arrays(package.SequenceClassifier(CONFIG))
    for call in (
        lambda: package.save(encoder, tmp_path / "model"),
        lambda: package.weights.load_arrays(encoder, arrays),
        lambda: package.import_adam(encoder, None),
        lambda: package.export_adam({}, encoder, None),
    ):
        with pytest.raises(UserTypeError, match=r"got .*Encoder"):
            call()


def test_a_model_without_one_of_its_weights_is_refused() -> None:
    model = pe_torch.SequenceClassifier(CONFIG)
    nn.utils.parametrizations.weight_norm(model.head)
    with pytest.raises(UserValueError, match=r"no weight head\.weight"):
        pe_torch.to_arrays(model)


# --- Flax ---


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_flax_models_that_were_cast_are_saved(tmp_path: Path, dtype: str) -> None:
    model = pe_flax.SequenceClassifier(CONFIG, seed=3)
    state = nnx.state(model, nnx.Param)
    nnx.update(model, nnx.map(lambda _, item: item.astype(dtype), state))
    arrays = pe_flax.to_arrays(model)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    pe_flax.save(model, tmp_path)
    assert same(load_model(tmp_path).arrays, arrays)
    assert same(pe_flax.to_arrays(pe_flax.load(tmp_path)), arrays)
    exact = pe_torch.to_arrays(pe_torch.SequenceClassifier(CONFIG, seed=3))
    rounded = {
        name: np.asarray(jnp.asarray(array).astype(dtype).astype("float32"))
        for name, array in exact.items()
    }
    assert same(arrays, rounded)


def test_flax_optimizers_of_models_that_were_cast_go_through_arrays() -> None:
    model = pe_flax.SequenceClassifier(CONFIG, seed=3)
    state = nnx.state(model, nnx.Param)
    nnx.update(model, nnx.map(lambda _, item: item.astype("bfloat16"), state))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    arrays = pe_flax.import_adam(model, optimizer)
    assert {array.dtype for array in arrays.values()} == {np.dtype("float32"), np.dtype("int64")}
    pe_flax.export_adam(arrays, model, optimizer)
    assert same(pe_flax.import_adam(model, optimizer), arrays)
