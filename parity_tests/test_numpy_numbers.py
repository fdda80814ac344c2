"""NumPy's numbers are numbers in every config, encoding and layer, and are kept as Python's."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from parity_tests.cases import BACKENDS
from parity_tests.small_models import in_each_backend
from pe_core import (
    ComputeConfig,
    Features,
    LearnedTable,
    ModelConfig,
    Sinusoidal,
    Tokens,
    TrainConfig,
)
from pe_core.encodings import Rotary, Shaw, T5Bias

# mypy knows that these are no numbers of Python, which is the point.
of_numpy: Any = np

NUMBERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "sizes": lambda: (
        ModelConfig(
            inputs=Features(of_numpy.int64(3)),
            num_classes=of_numpy.int64(3),
            d_model=of_numpy.int32(16),
            num_heads=of_numpy.uint8(2),
            num_layers=of_numpy.int64(1),
            d_ff=of_numpy.int16(8),
            dropout=of_numpy.float32(0.25),
            attention_bias=of_numpy.bool_(True),
            norm=of_numpy.str_("post"),
            encodings=(LearnedTable(of_numpy.int64(7)),),
        ),
        ModelConfig(
            inputs=Features(3),
            num_classes=3,
            d_model=16,
            num_heads=2,
            num_layers=1,
            d_ff=8,
            dropout=0.25,
            attention_bias=True,
            norm="post",
            encodings=(LearnedTable(7),),
        ),
    ),
    "tokens": lambda: (Tokens(of_numpy.int64(9)), Tokens(9)),
    "t5": lambda: (
        T5Bias(of_numpy.int64(8), of_numpy.int32(16), of_numpy.bool_(True)),
        T5Bias(8, 16, True),
    ),
    "shaw": lambda: (
        Shaw(of_numpy.int64(3), of_numpy.bool_(False), of_numpy.bool_(False)),
        Shaw(3, False, False),
    ),
    "rotary": lambda: (
        Rotary(of_numpy.float32(100.0), fraction=of_numpy.float64(0.5)),
        Rotary(100.0, fraction=0.5),
    ),
    "sinusoidal": lambda: (Sinusoidal(of_numpy.int64(100)), Sinusoidal(100)),
    "compute": lambda: (
        ComputeConfig(rows_per_block=of_numpy.int64(2)),
        ComputeConfig(rows_per_block=2),
    ),
    "train": lambda: (
        TrainConfig(
            epochs=of_numpy.int64(2), learning_rate=of_numpy.float32(0.5), seed=of_numpy.uint64(7)
        ),
        TrainConfig(epochs=2, learning_rate=0.5, seed=7),
    ),
}


@pytest.mark.parametrize("what", NUMBERS)
def test_numbers_of_numpy_are_numbers(what: str) -> None:
    found, plain = NUMBERS[what]()
    assert found == plain
    assert hash(found) == hash(plain)
    assert repr(found) == repr(plain)
    if hasattr(found, "to_json"):
        assert json.dumps(found.to_json()) == json.dumps(plain.to_json())


@in_each_backend
def test_layers_take_numbers_of_numpy(label: str) -> None:
    package = BACKENDS[label].package
    package.SinusoidalEncoding(Sinusoidal(), d_model=np.int64(8))
    package.RotaryEncoding(Rotary(), d_head=np.int64(8), num_heads=np.int32(2))
    one = package.SelfAttention(np.int64(8), np.int64(2), seed=np.int64(3), dropout=np.float32(0))
    other = package.SelfAttention(8, 2, seed=3)
    for a, b in zip(
        package.layout.get_arrays(one).values(),
        package.layout.get_arrays(other).values(),
        strict=True,
    ):
        assert np.array_equal(a, b)
