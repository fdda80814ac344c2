"""torch.export and torch.compile of the classifier and of every layer, once for any batch and
length, give the eager numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export

import pe_torch
from parity_tests.cases import small_config
from parity_tests.small_models import assert_near
from parity_tests.unchecked import unchecked_torch
from pe_core import ComputeConfig, LearnedTable, Sinusoidal, Tokens
from pe_core.encodings import Rotary, Shaw, T5Bias

EVERY = (Sinusoidal(), LearnedTable(40), Rotary(), T5Bias(), Shaw(3))
BATCH, LENGTH = Dim("batch", max=64), Dim("length", max=40)
SIZES = ((2, 7), (5, 33), (1, 2), (6, 6))


@pytest.fixture(scope="module", autouse=True)
def _unchecked() -> Iterator[None]:
    global pe_torch
    with unchecked_torch() as pe_torch:
        yield


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Without it one test's compiled code counts against the next one's limit."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def make(compute: ComputeConfig | None = None, **changes: Any) -> nn.Module:
    config = small_config(**({"encodings": EVERY, "num_layers": 1} | changes))
    model: nn.Module = pe_torch.SequenceClassifier(config, seed=1, compute=compute)
    return model.eval()


def calls(batch: int, length: int) -> dict[str, dict[str, Any]]:
    """Arguments of the classifier by what is in them."""
    random = torch.Generator().manual_seed(length)
    x = torch.randn(batch, length, 3, generator=random)
    real = torch.arange(length) < torch.randint(1, length + 1, (batch, 1), generator=random)
    ids = torch.arange(length).mul(3).div(length, rounding_mode="floor").expand(batch, -1)
    places = torch.randint(0, 40, (batch, length), generator=random)
    tokens = torch.randint(0, 5, (batch, length), generator=random)
    return {
        "x": {"x": x},
        "mask": {"x": x, "mask": real},
        "positions": {"x": x, "positions": places},
        "line": {"x": x, "positions": places[0]},
        "fractions": {"x": x, "mask": real, "positions": places[0] * 0.5},
        "packed": {"x": x, "segment_ids": ids},
        "all": {"x": x, "mask": real, "segment_ids": ids, "positions": places},
        "tokens": {"x": tokens},
        "masked tokens": {"x": tokens, "mask": real},
    }


def dynamic(
    arguments: dict[str, Any], lengths: tuple[Any, Any] = (BATCH, LENGTH)
) -> dict[str, Any]:
    batch, length = lengths
    return {
        name: {0: length} if name == "positions" and item.ndim == 1 else {0: batch, 1: length}
        for name, item in arguments.items()
        if isinstance(item, Tensor)
    }


def exported(model: nn.Module, arguments: dict[str, Any], dims: Any = None, **options: Any) -> Any:
    shapes = dims or dynamic(arguments)
    shapes |= {name: None for name in arguments if name not in shapes}
    return export(model, (), arguments, dynamic_shapes=shapes, **options).module()


CASES = [
    ("mean", "x", EVERY),
    ("mean", "mask", (Sinusoidal(layout="half", layers="all"),)),
    ("max", "x", (T5Bias(per_layer=True),)),
    ("max", "mask", ()),
    ("cls", "x", (LearnedTable(40, layers="all"),)),
    ("cls", "mask", (Sinusoidal(), Rotary())),
    ("last", "x", ()),
    ("last", "mask", (Rotary(),)),
    ("attention", "x", (Shaw(3),)),
    ("cls", "line", (LearnedTable(40), T5Bias())),
    ("max", "fractions", (LearnedTable(40), Sinusoidal(), Rotary())),
    ("mean", "packed", ()),
    ("attention", "all", EVERY),
    ("attention", "masked tokens", (Sinusoidal(),)),
]
in_each_case = pytest.mark.parametrize(("pooling", "what", "encodings"), CASES)


def case(pooling: str, what: str, encodings: Any) -> tuple[nn.Module, Callable[..., Any]]:
    inputs: dict[str, Any] = {"inputs": Tokens(5)} if "tokens" in what else {}
    model = make(pooling=pooling, encodings=encodings, **inputs)

    def arguments(batch: int, length: int) -> dict[str, Any]:
        count = {"num_segments": 3} if what in ("packed", "all") else {}
        return calls(batch, length)[what] | count

    return model, arguments


@in_each_case
def test_one_export_serves_any_batch_and_length(pooling: str, what: str, encodings: Any) -> None:
    model, arguments = case(pooling, what, encodings)
    program = exported(model, arguments(3, 9))
    for size in SIZES:
        given = arguments(*size)
        assert_near(program(**given), model(**given))


@pytest.mark.parametrize(("strict", "dim"), [(True, Dim.DYNAMIC), (False, Dim.AUTO)])
def test_other_ways_of_exporting(strict: bool, dim: Any) -> None:
    model, arguments = case("attention", "all", (LearnedTable(40), Rotary()))
    dims = dynamic(arguments(3, 20), (dim, dim))
    program = exported(model, arguments(3, 20), dims, strict=strict)
    for size in ((2, 7), (4, 33)):
        given = arguments(*size)
        assert_near(program(**given), model(**given))


COMPILED = [
    ("eager", "cls", "mask", EVERY),
    ("eager", "max", "fractions", (LearnedTable(40), Sinusoidal())),
    ("eager", "last", "all", ()),
    ("aot_eager", "attention", "masked tokens", (Sinusoidal(),)),
]


@pytest.mark.parametrize(("backend", "pooling", "what", "encodings"), COMPILED)
def test_compiled_whole_it_gives_the_eager_numbers(
    backend: str, pooling: str, what: str, encodings: Any
) -> None:
    model, arguments = case(pooling, what, encodings)
    model(**arguments(2, 12))
    count = CompileCounterWithBackend(backend)
    compiled, graphs = torch.compile(model, fullgraph=True, backend=count, dynamic=True), 0
    # A batch as large as something that is fixed, such as the 3 features or the 6 frequencies,
    # would be taken for it.
    for size in ((5, 9), (2, 7), (8, 33)):
        given = arguments(*size)
        assert_near(compiled(**given), model(**given))
        graphs = graphs or count.frame_count
    assert count.frame_count == graphs


@pytest.mark.parametrize("rows", [None, 4])
def test_training_compiled_gives_the_eager_gradients(rows: int | None) -> None:
    found = []
    for compiled in (False, True):
        model = make(ComputeConfig(rows_per_block=rows), pooling="attention").train()
        run: Any = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        run(**calls(3, 9)["mask"]).square().sum().backward()
        gradients = [item.grad for item in model.parameters() if item.grad is not None]
        found.append(torch.cat([gradient.ravel() for gradient in gradients]))
    assert_near(found[1], found[0], "gradient")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_gives_the_eager_numbers() -> None:
    model = make(pooling="attention")
    compiled = torch.compile(model, fullgraph=True)
    given = calls(2, 7)["mask"]
    assert_near(compiled(**given), model(**given))


def test_blocks_of_rows_are_exported_for_any_length() -> None:
    model = make(ComputeConfig(rows_per_block=4), encodings=(T5Bias(),))
    program = exported(model, calls(3, 9)["mask"])
    for size in SIZES:
        given = calls(*size)["mask"]
        assert_near(program(**given), model(**given))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_model_that_was_cast_is_exported(dtype: torch.dtype) -> None:
    model = make(encodings=(Sinusoidal(), T5Bias())).to(dtype)
    program = exported(model, calls(3, 9)["mask"])
    given = calls(5, 33)["mask"]
    assert_near(program(**given), model(**given))


def test_an_exported_table_gives_nan_outside() -> None:
    model = make(encodings=(LearnedTable(9),))
    program = exported(model, calls(3, 9)["positions"] | {"positions": torch.zeros(3, 9).long()})
    x = torch.zeros(2, 7, 3)
    good, bad = torch.zeros(2, 7).long(), torch.zeros(2, 7).long()
    bad[1, 3] = 9
    assert program(x=x, positions=good).isfinite().all()
    found = program(x=x, positions=bad)
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


# --- Every layer alone ---


class Bias(nn.Module):
    """The bias between queries and keys, as a user's own attention asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoding = pe_torch.T5BiasEncoding(T5Bias(), num_heads=3, seed=0)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1], device=x.device)
        return x.sum() + self.encoding.bias(steps, steps)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "encoder": lambda: pe_torch.Encoder(
        small_config(encodings=(Sinusoidal(), Shaw(3)), num_layers=1, inputs=pe_torch.Features(12)),
        seed=0,
    ),
    "attention": lambda: pe_torch.SelfAttention(12, 3, encodings=EVERY, seed=0),
    "table": lambda: pe_torch.LearnedTableEncoding(LearnedTable(40), d_model=12, seed=0),
    "sinusoid": lambda: pe_torch.SinusoidalEncoding(Sinusoidal(), d_model=12),
    "bias": Bias,
}


@pytest.mark.parametrize(
    ("name", "masked"), [*((name, False) for name in LAYERS), ("attention", True), ("table", True)]
)
@pytest.mark.parametrize("compiled", [False, True])
def test_every_layer_alone(name: str, masked: bool, compiled: bool) -> None:
    layer = LAYERS[name]().eval()

    def arguments(batch: int, length: int) -> dict[str, Any]:
        given = calls(batch, length)["mask"]
        x = torch.cat([given["x"]] * 4, dim=-1)
        return {"x": x, "mask": given["mask"]} if masked else {"x": x}

    run: Any = (
        torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
        if compiled
        else exported(layer, arguments(3, 9))
    )
    for size in SIZES[:2]:
        given = arguments(*size)
        assert_near(run(**given), layer(**given))


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_rotary_alone(positions: bool, compiled: bool) -> None:
    layer = pe_torch.RotaryEncoding(Rotary(), d_head=4, num_heads=3)

    def arguments(batch: int, length: int) -> dict[str, Any]:
        x = (
            torch.cat([calls(batch, length)["x"]["x"]] * 4, dim=-1)
            .unflatten(-1, (3, 4))
            .transpose(1, 2)
        )
        given = {"positions": torch.arange(length) * 3} if positions else {}
        return {"query": x, "key": x * 2} | given

    dims = {"query": {0: BATCH, 2: LENGTH}, "key": {0: BATCH, 2: LENGTH}}
    dims |= {"positions": {0: LENGTH}} if positions else {}
    run: Any = (
        torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
        if compiled
        else exported(layer, arguments(3, 9), dims)
    )
    for size in SIZES[:2]:
        given = arguments(*size)
        assert_near(run(**given), layer(**given))


def test_one_graph_serves_training() -> None:
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    config = small_config(dropout=0.4, num_layers=1, encodings=EVERY)
    model, x = pe_torch.SequenceClassifier(config, seed=1).train(), torch.ones(2, 7, 3)
    compiled = torch.compile(model, fullgraph=True, backend=count)
    assert not torch.equal(compiled(x), compiled(x))
    assert len(graphs) == 1
    for step in range(4):
        found = compiled(x, dropout_step=torch.tensor(step))
        assert_near(found, model(x, dropout_step=step))
    assert len(graphs) == 2
    # A step that is seen to change is a number of the graph and not a constant.
    for step in range(5):
        compiled(x, dropout_step=step)
    assert len(graphs) == 3
