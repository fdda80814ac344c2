"""Configurations and encodings obey their rules from creation on, and survive JSON and text."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from parity_tests.cases import CONFIGS, small_config
from parity_tests.refusals import each_refusal, refused
from pe_core import (
    ComputeConfig,
    Features,
    LearnedTable,
    ModelConfig,
    Sinusoidal,
    Tokens,
    TrainConfig,
)
from pe_core.encodings import encoding_from_json, encoding_to_json, parse_encoding

DIVISIBLE = "d_model must be divisible by num_heads, got d_model={} and num_heads={}; "
DIVISIBLE += "the nearest that fits is d_model={}"
DROPOUT = "dropout must be finite and lie in [0, 1), got {}"
TABLE = "max_length of a learned table must {}"


@each_refusal(
    {
        ValueError: {
            DIVISIBLE.format(13, 3, 12): {"d_model": 13},
            DIVISIBLE.format(2, 5, 5): {"d_model": 2, "num_heads": 5},
            "unknown norm 'prenorm'; did you mean 'pre'?": {"norm": "prenorm"},
            "unknown activation 'glu'; did you mean 'gelu'?": {"activation": "glu"},
            "unknown pooling 'meen'; did you mean 'mean'?": {"pooling": "meen"},
            "unknown pooling 'xyz'; known: attention, cls, last, max, mean": {"pooling": "xyz"},
            "num_classes must lie in 2 .. 2147483648, got 1": {"num_classes": 1},
            "num_heads must lie in 1 .. 2147483648, got 0": {"num_heads": 0},
            DROPOUT.format("1.0"): {"dropout": 1.0},
            DROPOUT.format("-0.1"): {"dropout": -0.1},
            DROPOUT.format("nan"): {"dropout": float("nan")},
        },
        TypeError: {
            "num_layers must be an integer, got True": {"num_layers": True},
            "attention_bias must be True or False, got 1": {"attention_bias": 1},
            "dropout must be a number, got '0.1'": {"dropout": "0.1"},
            "inputs must be Features(num_features) or Tokens(vocab_size), got 3": {"inputs": 3},
            "encodings must be options such as LearnedTable(max_length=10), got 'learned'": {
                "encodings": ("learned",)
            },
        },
    }
)
def test_a_model_config_obeys_its_rules(kind: type[Exception], words: str, what: Any) -> None:
    with refused(kind, words, whole=True):
        small_config(**what)


@each_refusal(
    {
        ValueError: {
            "unknown layout 'halves'; did you mean 'half'?": (Sinusoidal, {"layout": "halves"}),
            "unknown layers 'every'; known: all, first": (
                LearnedTable,
                {"max_length": 9, "layers": "every"},
            ),
            "base of a sinusoidal encoding must be finite and lie in [1, inf], got 0.5": (
                Sinusoidal,
                {"base": 0.5},
            ),
            TABLE.format("lie in 1 .. 2147483648, got 0"): (LearnedTable, {"max_length": 0}),
            "num_features must lie in 1 .. 2147483648, got 0": (Features, {"num_features": 0}),
            "vocab_size must lie in 1 .. 2147483648, got 0": (Tokens, {"vocab_size": 0}),
            "unknown precision 'float'; did you mean 'float64'?": (
                ComputeConfig,
                {"precision": "float"},
            ),
            "unknown dropout_rng 'share'; did you mean 'shared'?": (
                ComputeConfig,
                {"dropout_rng": "share"},
            ),
            "unknown schedule 'cosine'; did you mean 'warmup_cosine'?": (
                TrainConfig,
                {"schedule": "cosine"},
            ),
            "warmup_steps=5 needs schedule='warmup_cosine', got schedule='constant'": (
                TrainConfig,
                {"warmup_steps": 5},
            ),
        },
        TypeError: {
            TABLE.format("be an integer, got 2.5"): (LearnedTable, {"max_length": 2.5}),
        },
    }
)
def test_options_obey_their_rules(kind: type[Exception], words: str, what: Any) -> None:
    made, options = what
    with refused(kind, words, whole=True):
        made(**options)


@each_refusal(
    {
        ValueError: {
            "unknown encoding 'lerned'; did you mean 'learned'?...": "lerned",
            "unknown encoding ''; known: learned, none, rotary, shaw, sinusoidal, t5...": "",
            "encoding 'learned' has no option 'max_len'; did you mean 'max_length'?": (
                "learned:max_len=4"
            ),
            "option 'layout' of encoding 'sinusoidal' has no value; write layout=VALUE": (
                "sinusoidal:layout"
            ),
            "encoding 'none' has no options, got 'base=3'; write --encoding none": "none:base=3",
            "unknown layout 'halves'; did you mean 'half'?": "sinusoidal:layout=halves",
            "encoding 'sinusoidal': base of a sinusoidal encoding must be a number, got 'ten'": (
                "sinusoidal:base=ten"
            ),
        }
    }
)
def test_text_that_names_no_encoding(kind: type[Exception], words: str, what: str) -> None:
    with refused(kind, words, whole=True):
        parse_encoding(what, max_length=9)


FIELDS = (
    "ModelConfig: unknown field 'num_head' (did you mean 'num_heads'?); unknown field 'width' "
    "(known: activation, attention_bias, d_ff, d_model, dropout, encodings, inputs, norm, "
    "num_classes, num_heads, num_layers, pooling); missing field 'num_classes'"
)
INPUTS = 'inputs must be {"kind": "features" or "tokens", "size": N}, got '
THREE = {"inputs": {"kind": "features", "size": 3}}
PIXELS = {"inputs": {"kind": "pixels", "size": 3}, "num_classes": 2}


@each_refusal(
    {
        ValueError: {
            "unknown encoding 'sinus'; did you mean 'sinusoidal'?...": (
                encoding_from_json,
                {"name": "sinus"},
            ),
            "encoding 'sinusoidal' has no option 'bases'; did you mean 'base'?": (
                encoding_from_json,
                {"name": "sinusoidal", "bases": 3.0},
            ),
            "an encoding must be an object with a \"name\", got {'base': 3.0}": (
                encoding_from_json,
                {"base": 3.0},
            ),
            FIELDS: (ModelConfig.from_json, THREE | {"num_head": 3, "width": 3}),
            "ModelConfig must be a JSON object, got [1]": (ModelConfig.from_json, [1]),
            INPUTS + "{'kind': 'pixels', 'size': 3}": (ModelConfig.from_json, PIXELS),
            "encodings must be a list, got 'learned'": (
                ModelConfig.from_json,
                THREE | {"num_classes": 2, "encodings": "learned"},
            ),
            "TrainConfig: unknown field 'epoch' (did you mean 'epochs'?)": (
                TrainConfig.from_json,
                {"epoch": 3},
            ),
        }
    }
)
def test_json_that_does_not_fit(kind: type[Exception], words: str, what: Any) -> None:
    read, record = what
    with refused(kind, words, whole=True):
        read(record)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_survive_json(name: str) -> None:
    config = CONFIGS[name]
    record = config.to_json()
    copy = json.loads(json.dumps(record, allow_nan=False))
    assert config.to_json() == record == copy
    assert set(record) == {field.name for field in dataclasses.fields(ModelConfig)}
    assert ModelConfig.from_json(copy) == config
    assert hash(ModelConfig.from_json(copy)) == hash(config)
    for encoding in config.encodings:
        assert encoding_from_json(json.loads(json.dumps(encoding_to_json(encoding)))) == encoding
    for frozen, field in ((config, "d_model"), (config.inputs, "num_features")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, field, 4)


def test_defaults_are_filled_in() -> None:
    config = ModelConfig.from_json(THREE | {"num_classes": 2})
    assert config == ModelConfig(inputs=Features(3), num_classes=2)
    assert config.d_ff == config.width_inside == 4 * config.d_model
    assert config.encodings == ()
    train = TrainConfig(schedule="warmup_cosine", warmup_steps=3, max_gradient_norm=None)
    assert TrainConfig.from_json(json.loads(json.dumps(train.to_json()))) == train


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("none", None),
        ("learned", LearnedTable(9)),
        ("learned:max_length=4,layers=all", LearnedTable(4, layers="all")),
        ("sinusoidal:base=1e2,layout=half", Sinusoidal(base=100.0, layout="half")),
        ("sinusoidal:base=100", Sinusoidal(base=100)),
    ],
)
def test_encodings_as_text(text: str, encoding: Any) -> None:
    assert parse_encoding(text, max_length=9) == encoding
