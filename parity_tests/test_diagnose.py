"""Each diagnosis is made on a running model with a fault planted in it; a model without one has no
diagnosis.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import pe_torch.attention
import pe_torch.encoder
import pe_torch.encodings.additive
import pe_torch.engine
import pe_torch.layers
from parity_tests.cases import CONFIGS, ENGINES, perturbed_arrays, small_batch
from parity_tests.faults import FAULTS, around, attribute
from parity_tests.faults.fault import Patch
from pe_core.model.config import ComputeConfig, Precision
from pe_core.model.random import derive, normal
from pe_parity import Trace, reference_trace, trace
from pe_parity.budgets import budget
from pe_parity.diagnose import Diagnosis, diagnose
from pe_parity.resemblance import resemblances
from pe_parity.rounding import BFLOAT16, TF32, rounded
from pe_parity.trace_file import Given

PLANTED = {(fault.backend, fault.name): fault.patch for fault in FAULTS}


def traces(
    config: str, masked: bool, backend: str, precision: Precision
) -> tuple[Trace, Trace, Given]:
    model = CONFIGS[config]
    arrays, batch = perturbed_arrays(model), small_batch(model, masked=masked)
    found = trace(
        ENGINES[backend],
        model,
        arrays,
        [batch],
        depth="forward",
        compute=ComputeConfig(precision=precision),
    )
    return (
        reference_trace(model, arrays, batch),
        found,
        Given(model, arrays, batch.inputs, batch.mask),
    )


def diagnosed(
    config: str, masked: bool, backend: str = "torch", precision: Precision = "float32"
) -> Diagnosis:
    return diagnose(*traces(config, masked, backend, precision), precision)


def load(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Patch:
    """The weights are changed on their way into the model."""
    return around(
        pe_torch.engine,
        "load_arrays",
        lambda load, model, arrays: load(model, change(dict(arrays))),
    )


def every(part: str, change: Callable[[Any], Any]) -> Patch:
    return load(
        lambda arrays: {
            name: change(array) if name.endswith(part) else array for name, array in arrays.items()
        }
    )


def attended(change: Callable[..., tuple[Any, ...]]) -> Patch:
    return around(
        pe_torch.attention, "attend", lambda attend, *arguments: attend(*change(*arguments))
    )


def _key_value_swapped(weight: Any) -> Any:
    query, key, value = np.split(np.asarray(weight), 3)
    return np.concatenate([query, value, key])


def _packed_by_head(weight: Any) -> Any:
    heads = CONFIGS["default"].num_heads
    blocks = np.asarray(weight).reshape(heads, 3, -1, weight.shape[-1])
    return blocks.swapaxes(0, 1).reshape(weight.shape)


def _heads_in_order(x: torch.Tensor) -> torch.Tensor:
    return x[:, [2, 0, 1]]


def _reread(weight: Any) -> Any:
    return np.asarray(weight).ravel().reshape(weight.shape[::-1]).T.copy()


def _merged_without_transpose(attend: Any, *arguments: Any) -> Any:
    mixed = attend(*arguments)
    batch, heads, length, width = mixed.shape
    return mixed.reshape(batch, length, heads, width).transpose(1, 2)


def _norm(scaled: Callable[[torch.Tensor], torch.Tensor]) -> Patch:
    return around(
        pe_torch.layers.LayerNorm,
        "forward",
        lambda norm, module, x: scaled(x) * module.weight + module.bias,
    )


def _linear(operand: Callable[[torch.Tensor], torch.Tensor]) -> Patch:
    """Products take operands with fewer digits, as on a GPU."""

    def forward(linear: Any, module: Any, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(operand(x), operand(module.weight), module.bias)

    return around(pe_torch.layers.Linear, "forward", forward)


def _tf32(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(rounded(x.detach().numpy(), TF32).astype(np.float32))


def _shifted(by: int) -> Patch:
    def add(add: Any, encoding: Any, x: Any, positions: Any) -> Any:
        return add(encoding, x, type(positions)(torch.arange(x.shape[1]) + by))

    return around(pe_torch.encodings.additive.SinusoidalEncoding, "add", add)


EPSILON = attribute(pe_torch.layers, "LAYER_NORM_EPSILON", 1e-6)
TANH = PLANTED["torch", "tanh GELU"]
# (name of the fault, its patch, config, masked, the name where it shows, words of the diagnosis)
# fmt: off
CASES: list[tuple[str, Patch, str, bool, str, str]] = [
    ("epsilon 1e-6", EPSILON, "default", False, "layers.0.norm1", "LayerNorm has epsilon 1e-06"),
    ("epsilon 1e-3", attribute(pe_torch.layers, "LAYER_NORM_EPSILON", 1e-3), "post", True,
     "layers.0.norm1", "epsilon 0.001"),
    ("epsilon 1e-12", attribute(pe_torch.layers, "LAYER_NORM_EPSILON", 1e-12), "default", False,
     "layers.0.norm1", "epsilon 1e-12"),
    ("unbiased", _norm(lambda x: (x - x.mean(-1, True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt()),
     "default", False, "layers.0.norm1", "divides the variance by one less"),
    ("RMSNorm", _norm(lambda x: x / ((x**2).mean(-1, True) + 1e-5).sqrt()), "default", False,
     "layers.0.norm1", "does not subtract the mean"),
    ("post-norm with the final norm", PLANTED["torch", "post- for pre-norm"], "default", False,
     "layers.0.norm1", "post-norm.*, and the final norm of pre-norm stays"),
    ("tanh GELU", TANH, "default", False, "layers.0.feed_forward.hidden",
     "tanh approximation of GELU"),
    ("ReLU", around(functional, "gelu", lambda gelu, x, approximate: functional.relu(x)), "default",
     False, "layers.0.feed_forward.hidden", "the activation is ReLU"),
    ("one transposed weight", PLANTED["torch", "transposed square matrix"], "default", False,
     "layers.0.attention.output", "layers.0.attention.out.weight alone is used transposed"),
    ("transposed weights", every("attention.out.weight", np.transpose), "default", False,
     "layers.0.attention.output", "attention.out.weight of every layer is used transposed"),
    ("memory of the transpose", every("feed_forward.up.weight", _reread), "default", False,
     "layers.0.feed_forward.hidden", "the memory of feed_forward.up.weight"),
    ("inverted mask", PLANTED["torch", "inverted mask"], "default", True,
     "layers.0.attention.weights", "mask of attention is inverted"),
    ("mask forgotten", PLANTED["torch", "mask forgotten"], "default", True,
     "layers.0.attention.weights", "attention ignores the mask"),
    ("padding pooled", PLANTED["torch", "padding pooled"], "default", True, "pooled",
     "pooling ignores the mask"),
    ("table off by one", PLANTED["torch", "off by one"], "default", False, "encoding",
     "positions are off by 1"),
    ("sinusoids off by two", _shifted(2), "sinusoidal", False, "encoding",
     "positions are off by 2"),
    ("sinusoids off by minus one", _shifted(-1), "sinusoidal", False, "encoding",
     "positions are off by -1"),
    ("scale of d_model", PLANTED["torch", "scale of d_model"], "default", False,
     "layers.0.attention.logits",
     r"multiplied by 0.57735, 1 / sqrt\(num_heads\) = sqrt\(d_head / d_model\)"),
    ("no scale", attended(lambda q, *rest: (q * q.shape[-1] ** 0.5, *rest)), "default", False,
     "layers.0.attention.logits", r"multiplied by 2, sqrt\(d_head\)"),
    ("key and value swapped", every("qkv.weight", _key_value_swapped), "default", False,
     "layers.0.attention.key", "key and value are swapped"),
    ("packed head by head", every("qkv.weight", _packed_by_head), "default", False,
     "layers.0.attention.query", "packed head by head"),
    ("heads interleaved", PLANTED["torch", "heads interleaved"], "default", False,
     "layers.0.attention.logits", "heads are interleaved"),
    ("heads permuted", attended(lambda q, k, v, *rest: (*map(_heads_in_order, (q, k, v)), *rest)),
     "default", False, "layers.0.attention.logits",
     "heads come in another order: rotated, with 2 first"),
    ("merged without a transpose", around(pe_torch.attention, "attend", _merged_without_transpose),
     "default", False, "layers.0.attention.output", "merged by a reshape alone"),
    ("bias missing", every("feed_forward.down.bias", np.zeros_like), "default", False,
     "layers.0.feed_forward.output", "feed_forward.down.bias of every layer is missing"),
    ("scale of a norm missing", every("norm2.weight", np.ones_like), "default", False,
     "layers.0.norm2", "norm2.weight of every layer is missing"),
    ("TF32", _linear(_tf32), "default", False, "input", "operands in TF32"),
    ("bfloat16", _linear(lambda x: x.bfloat16().float()), "tokens", False,
     "layers.0.attention.query", "operands in bfloat16"),
]
# fmt: on


@pytest.mark.parametrize(
    ("patch", "config", "masked", "name", "text"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_a_planted_fault_is_diagnosed(
    patch: Patch, config: str, masked: bool, name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(monkeypatch)
    found = diagnosed(config, masked)
    assert [(one.name, one.explained) for one in found.findings] == [(name, True)], found
    assert re.search(text, found.findings[0].text), found
    # A shorter format is reported once: what comes after it is noise of its size.
    assert found.checked == (None if "operands" in text else found.total)


@pytest.mark.parametrize(
    ("name", "place", "masked", "text"),
    [
        ("tanh GELU", "layers.0.feed_forward.hidden", False, "tanh approximation"),
        ("LayerNorm epsilon of Flax", "layers.0.norm1", False, "epsilon 1e-06"),
        ("inverted mask", "layers.0.attention.weights", True, "inverted"),
    ],
)
def test_a_planted_fault_in_flax_is_diagnosed(
    name: str, place: str, masked: bool, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    PLANTED["flax", name](monkeypatch)
    found = diagnosed("default", masked, "flax")
    assert [one.name for one in found.findings] == [place]
    assert text in found.findings[0].text


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_two_faults_are_found_one_after_the_other(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    EPSILON(monkeypatch)
    TANH(monkeypatch)
    found = diagnosed("default", False, precision=precision)
    assert [one.name for one in found.findings] == [
        "layers.0.norm1",
        "layers.0.feed_forward.hidden",
    ]
    assert found.checked == found.total


def test_what_is_left_after_a_fault_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The epsilon is known, the activation is nobody's."""
    EPSILON(monkeypatch)
    around(functional, "gelu", lambda gelu, x, approximate: gelu(x) + torch.sin(3 * x))(monkeypatch)
    first, second = diagnosed("default", False).findings
    assert "epsilon 1e-06" in first.text
    assert (second.name, second.explained) == ("layers.0.feed_forward.hidden", False)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_clean_model_has_no_diagnosis(config: str, precision: Precision) -> None:
    assert diagnosed(config, True, precision=precision) == Diagnosis(())


@pytest.mark.parametrize("size", [1e-5, 1e-3, 1e-1, 1e1])
@pytest.mark.parametrize(
    "name",
    [
        "input",
        "layers.0.norm1",
        "layers.0.attention.logits",
        "layers.1.feed_forward.hidden",
        "head",
    ],
)
def test_a_random_difference_is_not_explained(name: str, size: float) -> None:
    baseline, actual, given = traces("default", False, "torch", "float32")
    noise = normal(derive(0, 97), actual[name].shape)
    changed = actual[name] + size * noise * np.linalg.norm(actual[name]) / np.linalg.norm(noise)
    (finding,) = diagnose(baseline, actual | {name: changed}, given, "float32").findings
    assert (finding.name, finding.explained) == (name, False)
    assert finding.text.startswith("nothing known accounts for it; the largest difference is at")


def test_the_trace_that_is_off_may_be_the_first() -> None:
    baseline, actual, given = traces("default", False, "torch", "float32")
    (finding,) = diagnose(
        baseline | {"pooled": 2 * baseline["pooled"]}, actual, given, "float32"
    ).findings
    assert (
        finding.text
        == "the reference agrees with the second trace, not with the first: that one is off"
    )


def test_only_the_head_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that shows its result alone is diagnosed from it."""
    TANH(monkeypatch)
    baseline, actual, given = traces("default", False, "torch", "float32")
    found = diagnose(baseline, {"head": actual["head"]}, given, "float32")
    assert [one.name for one in found.findings] == ["head"]
    assert "tanh approximation" in found.findings[0].text


RANDOM = normal(derive(0, 96), (4, 3, 5, 7))
GRADIENT = normal(derive(0, 95), (6, 4))
# Mistakes in arrays of an unknown model, and in gradients: (name, expected, found, diagnosis)
# fmt: off
ALONE: dict[str, tuple[str, np.ndarray, np.ndarray, str]] = {
    "halved": ("gradient/head.weight", GRADIENT, 0.5 * GRADIENT, "it is multiplied by 0.5"),
    "sign": ("gradient/head.weight", GRADIENT, -GRADIENT, "it is multiplied by -1"),
    "transposed": ("gradient/head.weight", GRADIENT, GRADIENT.T, "it is transposed"),
    "zero": ("gradient/head.weight", GRADIENT, 0 * GRADIENT, "all numbers are zero"),
    "NaN": ("gradient/head.weight", GRADIENT, np.where(GRADIENT > 0, GRADIENT, np.nan),
     f"{(GRADIENT <= 0).sum()} of 24 numbers are NaN"),
    "axes": ("layers.0.attention.query", RANDOM, RANDOM.transpose(0, 2, 1, 3),
     "its axes are transposed, to the order 0, 2, 1, 3"),
    "shape": ("layers.0.attention.query", RANDOM, RANDOM[:, :, 1:],
     "the shape is (4, 3, 4, 7), not (4, 3, 5, 7)"),
    "heads": ("layers.0.attention.query", RANDOM, RANDOM[:, [1, 0, 2]],
     "heads come in another order: 0 and 1 change places"),
    "reversed": ("layers.0.attention.query", RANDOM, RANDOM[:, :, ::-1],
     "steps come in another order: reversed"),
    "shift": ("layers.0.attention.query", RANDOM,
     np.pad(RANDOM[:, :, :-2], ((0, 0), (0, 0), (2, 0), (0, 0))),
     "steps stand 2 later than they should"),
    "offset": ("layers.0.attention.query", RANDOM, RANDOM + 0.25, "0.25 is added to every number"),
    "bias": ("input", RANDOM[0], RANDOM[0] + np.arange(7),
     "one vector is added to every step, as a bias is, or taken away"),
    "dropout": ("encoding", RANDOM[0], np.where(RANDOM[0] > -0.5, RANDOM[0] / 0.9, 0),
     f"{(RANDOM[0] <= -0.5).mean():.0%} of the numbers are zero and the others are multiplied by "
     "1.11111: dropout is on"),
    "bfloat16": ("input", RANDOM[0], rounded(RANDOM[0], BFLOAT16),
     "every number is a bfloat16 number: 8 significant bits of 24"),
    "float16": ("input", RANDOM[0], RANDOM[0].astype(np.float16),
     "every number is a float16 or TF32 number: 11 significant bits of 24"),
}
# fmt: on


@pytest.mark.parametrize(("name", "expected", "actual", "text"), ALONE.values(), ids=ALONE)
def test_arrays_alone_are_diagnosed(
    name: str, expected: np.ndarray, actual: np.ndarray, text: str
) -> None:
    (finding,) = diagnose({name: expected}, {name: actual}, None, "float32").findings
    assert finding.text == text
    assert (
        next(
            resemblances(
                name, expected, expected + 0.1 * expected**2, budget(name, "float32").bound, None
            ),
            None,
        )
        is None
    )


def test_rounding_is_that_of_the_formats() -> None:
    x = np.concatenate([RANDOM.ravel(), [0.0, -0.0, 1.0, 1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8]]).astype(
        np.float32
    )
    np.testing.assert_array_equal(
        rounded(x, BFLOAT16), torch.from_numpy(x).bfloat16().float().numpy()
    )
    np.testing.assert_array_equal(rounded(x, TF32), x.astype(np.float16))
