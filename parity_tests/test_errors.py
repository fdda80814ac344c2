"""What does not fit is refused in one line, the same in both frameworks: what was wrong, the value,
the remedy.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import pe_flax
from parity_tests.cases import (
    BATCH,
    CONFIGS,
    FEATURES,
    LENGTH,
    WINGS,
    perturbed_arrays,
    small_batch,
    small_config,
)
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
from pe_core.errors import UserError

in_each_wing = pytest.mark.parametrize("label", WINGS)
X = small_batch(CONFIGS["default"]).inputs
LONG = np.zeros((2, 10, FEATURES), np.float32)
TOKENS = small_batch(CONFIGS["tokens"]).inputs
IDS = np.ones((BATCH, LENGTH), np.int32)


def far_token(token: int) -> np.ndarray:
    tokens = TOKENS.copy()
    tokens[2, 3] = token
    return tokens


def up_to(last: float, dtype: Any) -> np.ndarray:
    return np.append(np.arange(LENGTH - 1), last).astype(dtype)


REMEDIES = (
    "; build the model with LearnedTable(max_length={0}), cut the sequences to 9 steps, "
    "or use Sinusoidal()"
)
OVER = "a sequence of length {0} does not fit the learned table of max_length 9" + REMEDIES
ENDLESS = "positions of a learned table must be finite and below 2**31, got {0}; correct them"
Call = tuple[str, np.ndarray, dict[str, Any], type[Exception], str]
# The name of a config, x, the other arguments, the kind of exception and the whole line; where the
# line names a dtype, each framework names its own.
CALLS: dict[str, Call] = {
    "length over the table": ("default", LONG, {}, ValueError, OVER.format(10)),
    "masked length over the table": (
        "default",
        LONG,
        {"mask": np.ones((2, 10), bool)},
        ValueError,
        OVER.format(10),
    ),
    "position over the table": (
        "default",
        X,
        {"positions": up_to(9, np.int32)},
        ValueError,
        OVER.format(10),
    ),
    "position between the last row and nothing": (
        "default",
        X,
        {"positions": up_to(8.5, np.float32)},
        ValueError,
        OVER.format(10),
    ),
    "position without end": (
        "default",
        X,
        {"positions": up_to(np.inf, np.float32)},
        ValueError,
        ENDLESS.format("inf"),
    ),
    "position that is not a number": (
        "default",
        X,
        {"positions": up_to(np.nan, np.float32)},
        ValueError,
        ENDLESS.format("nan"),
    ),
    "negative position": (
        "default",
        X,
        {"positions": up_to(-2, np.int32)},
        ValueError,
        (
            "positions of a learned table must not be negative, got -2; shift them so that the "
            "first "
            "is 0"
        ),
    ),
    "another number of features": (
        "default",
        X[..., :2],
        {},
        ValueError,
        "x has 2 features, but the model takes num_features=3",
    ),
    "two axes": (
        "default",
        X[0],
        {},
        ValueError,
        "x must have the three axes (batch, length, num_features), got shape (7, 3)",
    ),
    "three axes of tokens": (
        "tokens",
        TOKENS[..., None],
        {},
        ValueError,
        "x must have the two axes (batch, length), got shape (5, 7, 1)",
    ),
    "integers for features": (
        "default",
        X.astype(np.int32),
        {},
        TypeError,
        "x must hold floating-point features, got DTYPE; convert it to float32",
    ),
    "numbers for tokens": (
        "tokens",
        TOKENS.astype(np.float32),
        {},
        TypeError,
        "x must hold integer tokens, got DTYPE; convert it to int32",
    ),
    "booleans for tokens": (
        "tokens",
        TOKENS > 3,
        {},
        TypeError,
        "x must hold integer tokens, got DTYPE; convert it to int32",
    ),
    "empty batch": (
        "default",
        X[:0],
        {},
        ValueError,
        "x is empty, got shape (0, 7, 3); pass at least one sequence of one step",
    ),
    "empty sequences": (
        "default",
        X[:, :0],
        {},
        ValueError,
        "x is empty, got shape (5, 0, 3); pass at least one sequence of one step",
    ),
    "mask of another length": (
        "default",
        X,
        {"mask": np.ones((BATCH, LENGTH + 1), bool)},
        ValueError,
        "mask must have shape (batch, length) = (5, 7), got (5, 8)",
    ),
    "mask of one row": (
        "default",
        X,
        {"mask": np.ones(LENGTH, bool)},
        ValueError,
        "mask must have shape (batch, length) = (5, 7), got (7,)",
    ),
    "mask of numbers": (
        "default",
        X,
        {"mask": np.ones((BATCH, LENGTH), np.float32)},
        TypeError,
        "mask must be boolean with True for real steps, got DTYPE; convert it, as in mask != 0",
    ),
    "segments as numbers": (
        "default",
        X,
        {"segment_ids": IDS.astype(np.float32)},
        TypeError,
        "segment_ids must be integers with 0 for padding, got DTYPE; convert them to int32",
    ),
    "segments as booleans": (
        "default",
        X,
        {"segment_ids": IDS > 0},
        TypeError,
        "segment_ids must be integers with 0 for padding, got DTYPE; convert them to int32",
    ),
    "segments of another batch": (
        "default",
        X,
        {"segment_ids": IDS[1:]},
        ValueError,
        "segment_ids must have shape (batch, length) = (5, 7), got (4, 7)",
    ),
    "segments and one vector": (
        "post",
        X,
        {"segment_ids": IDS},
        ValueError,
        (
            "segment_ids need one pooled vector per segment, but pooling='cls' has one per row; "
            "use "
            "pooling='mean'"
        ),
    ),
    "positions as booleans": (
        "default",
        X,
        {"positions": np.ones(LENGTH, bool)},
        TypeError,
        "positions must be integers or floating point, got DTYPE",
    ),
    "positions of another length": (
        "default",
        X,
        {"positions": np.arange(LENGTH - 1, dtype=np.int32)},
        ValueError,
        "positions must have shape (batch, length) = (5, 7) or (7,), got (6,)",
    ),
    "token over the vocabulary": (
        "tokens",
        far_token(11),
        {},
        ValueError,
        "token 11 lies outside 0 .. 10; build the model with a larger vocab_size or map the token",
    ),
    "negative token": (
        "tokens",
        far_token(-1),
        {},
        ValueError,
        "token -1 lies outside 0 .. 10; build the model with a larger vocab_size or map the token",
    ),
}


@functools.cache
def model(label: str, name: str) -> Any:
    return WINGS[label].classifier(CONFIGS[name], perturbed_arrays(CONFIGS[name]))


@in_each_wing
@pytest.mark.parametrize("what", CALLS)
def test_calls_that_do_not_fit(label: str, what: str) -> None:
    name, x, arguments, kind, line = CALLS[what]
    with pytest.raises(kind) as caught:
        WINGS[label].call(model(label, name), x, **arguments)
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, kind)
    assert (
        re.sub(
            r"got (torch\.)?(bool|float32|int32|int64);?",
            lambda found: "got DTYPE" + ";" * found[0].endswith(";"),
            str(caught.value),
        )
        == line
    )


@in_each_wing
def test_an_encoder_refuses_the_same(label: str) -> None:
    encoder = WINGS[label].encoder(CONFIGS["default"], perturbed_arrays(CONFIGS["default"]))
    with pytest.raises(ValueError, match=re.escape(OVER.format(10))):
        WINGS[label].call(encoder, LONG)
    with pytest.raises(ValueError, match="x has 2 features, but the model takes num_features=3"):
        WINGS[label].call(encoder, X[..., :2])


@in_each_wing
def test_a_layer_alone_refuses_the_same(label: str) -> None:
    layer = WINGS[label].package.LearnedTableEncoding(LearnedTable(9), 6)
    calls: list[dict[str, Any]] = [{}, {"positions": np.arange(10, dtype=np.int32)}]
    for arguments in calls:
        with pytest.raises(ValueError, match=re.escape(OVER.format(10))):
            WINGS[label].call(layer, np.zeros((2, 10, 6), np.float32), **arguments)


def test_compiled_flax_refuses_what_shapes_tell() -> None:
    live = model("flax", "default")
    with pytest.raises(ValueError, match=re.escape(OVER.format(10))):
        jax.jit(lambda x: live(x))(LONG)
    line = (
        "segment_ids are traced, so their highest value is unknown here; pass num_segments, "
        "the most segments in a row"
    )
    with pytest.raises(ValueError, match="segment_ids are traced") as caught:
        jax.jit(lambda x, ids: live(x, segment_ids=ids))(X, IDS)
    assert str(caught.value) == line
    assert jax.jit(lambda x, ids: live(x, segment_ids=ids, num_segments=2))(X, IDS).shape == (
        BATCH,
        2,
        4,
    )


def test_float64_in_jax_has_to_be_switched_on() -> None:
    line = (
        "precision 'float64' is off in JAX; switch it on with "
        "jax.config.update('jax_enable_x64', True)"
    )
    for kind in (pe_flax.Encoder, pe_flax.SequenceClassifier):
        with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
            kind(CONFIGS["default"], compute=ComputeConfig(precision="float64"))


RULES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "heads that do not divide": (
        lambda: small_config(d_model=13),
        ValueError,
        (
            "d_model must be divisible by num_heads, got d_model=13 and num_heads=3; the nearest "
            "that fits is d_model=12"
        ),
    ),
    "more heads than width": (
        lambda: small_config(d_model=2, num_heads=5),
        ValueError,
        (
            "d_model must be divisible by num_heads, got d_model=2 and num_heads=5; the nearest "
            "that "
            "fits is d_model=5"
        ),
    ),
    "norm": (
        lambda: small_config(norm="prenorm"),
        ValueError,
        "unknown norm 'prenorm'; did you mean 'pre'?",
    ),
    "activation": (
        lambda: small_config(activation="glu"),
        ValueError,
        "unknown activation 'glu'; did you mean 'gelu'?",
    ),
    "pooling": (
        lambda: small_config(pooling="meen"),
        ValueError,
        "unknown pooling 'meen'; did you mean 'mean'?",
    ),
    "pooling, far": (
        lambda: small_config(pooling="xyz"),
        ValueError,
        "unknown pooling 'xyz'; known: attention, cls, last, max, mean",
    ),
    "layout": (
        lambda: Sinusoidal(layout="halves"),  # type: ignore[arg-type]
        ValueError,
        "unknown layout 'halves'; did you mean 'half'?",
    ),
    "layers": (
        lambda: LearnedTable(9, layers="every"),  # type: ignore[arg-type]
        ValueError,
        "unknown layers 'every'; known: all, first",
    ),
    "base": (
        lambda: Sinusoidal(base=0.5),
        ValueError,
        "base of a sinusoidal encoding must be finite and lie in [1, inf], got 0.5",
    ),
    "max_length": (
        lambda: LearnedTable(0),
        ValueError,
        "max_length of a learned table must lie in 1 .. 2147483648, got 0",
    ),
    "max_length, kind": (
        lambda: LearnedTable(2.5),  # type: ignore[arg-type]
        TypeError,
        "max_length of a learned table must be an integer, got 2.5",
    ),
    "num_classes": (
        lambda: small_config(num_classes=1),
        ValueError,
        "num_classes must lie in 2 .. 2147483648, got 1",
    ),
    "num_heads": (
        lambda: small_config(num_heads=0),
        ValueError,
        "num_heads must lie in 1 .. 2147483648, got 0",
    ),
    "num_layers": (
        lambda: small_config(num_layers=True),
        TypeError,
        "num_layers must be an integer, got True",
    ),
    "attention_bias": (
        lambda: small_config(attention_bias=1),
        TypeError,
        "attention_bias must be True or False, got 1",
    ),
    "dropout": (
        lambda: small_config(dropout=1.0),
        ValueError,
        "dropout must be finite and lie in [0, 1), got 1.0",
    ),
    "dropout, negative": (
        lambda: small_config(dropout=-0.1),
        ValueError,
        "dropout must be finite and lie in [0, 1), got -0.1",
    ),
    "dropout, NaN": (
        lambda: small_config(dropout=float("nan")),
        ValueError,
        "dropout must be finite and lie in [0, 1), got nan",
    ),
    "dropout, kind": (
        lambda: small_config(dropout="0.1"),
        TypeError,
        "dropout must be a number, got '0.1'",
    ),
    "inputs": (
        lambda: small_config(inputs=3),
        TypeError,
        "inputs must be Features(num_features) or Tokens(vocab_size), got 3",
    ),
    "features": (
        lambda: Features(0),
        ValueError,
        "num_features must lie in 1 .. 2147483648, got 0",
    ),
    "tokens": (lambda: Tokens(0), ValueError, "vocab_size must lie in 1 .. 2147483648, got 0"),
    "encodings": (
        lambda: small_config(encodings=("learned",)),
        TypeError,
        "encodings must be options such as LearnedTable(max_length=10), got 'learned'",
    ),
    "precision": (
        lambda: ComputeConfig(precision="float"),  # type: ignore[arg-type]
        ValueError,
        "unknown precision 'float'; did you mean 'float64'?",
    ),
    "dropout_rng": (
        lambda: ComputeConfig(dropout_rng="share"),  # type: ignore[arg-type]
        ValueError,
        "unknown dropout_rng 'share'; did you mean 'shared'?",
    ),
    "schedule": (
        lambda: TrainConfig(schedule="cosine"),  # type: ignore[arg-type]
        ValueError,
        "unknown schedule 'cosine'; did you mean 'warmup_cosine'?",
    ),
    "warmup": (
        lambda: TrainConfig(warmup_steps=5),
        ValueError,
        "warmup_steps=5 needs schedule='warmup_cosine', got schedule='constant'",
    ),
    "encoding": (
        lambda: parse_encoding("lerned", max_length=9),
        ValueError,
        "unknown encoding 'lerned'; did you mean 'learned'?",
    ),
    "encoding, far": (
        lambda: parse_encoding("", max_length=9),
        ValueError,
        "unknown encoding ''; known: learned, none, sinusoidal",
    ),
    "option": (
        lambda: parse_encoding("learned:max_len=4", max_length=9),
        ValueError,
        "encoding 'learned' has no option 'max_len'; did you mean 'max_length'?",
    ),
    "option without a value": (
        lambda: parse_encoding("sinusoidal:layout", max_length=9),
        ValueError,
        "option 'layout' of encoding 'sinusoidal' has no value; write layout=VALUE",
    ),
    "option of none": (
        lambda: parse_encoding("none:base=3", max_length=9),
        ValueError,
        "encoding 'none' has no options, got 'base=3'; write --encoding none",
    ),
    "value": (
        lambda: parse_encoding("sinusoidal:layout=halves", max_length=9),
        ValueError,
        "unknown layout 'halves'; did you mean 'half'?",
    ),
    "value, kind": (
        lambda: parse_encoding("sinusoidal:base=ten", max_length=9),
        ValueError,
        "encoding 'sinusoidal': base of a sinusoidal encoding must be a number, got 'ten'",
    ),
    "JSON name": (
        lambda: encoding_from_json({"name": "sinus"}),
        ValueError,
        "unknown encoding 'sinus'; did you mean 'sinusoidal'?",
    ),
    "JSON option": (
        lambda: encoding_from_json({"name": "sinusoidal", "bases": 3.0}),
        ValueError,
        "encoding 'sinusoidal' has no option 'bases'; did you mean 'base'?",
    ),
    "JSON without a name": (
        lambda: encoding_from_json({"base": 3.0}),
        ValueError,
        "an encoding must be an object with a \"name\", got {'base': 3.0}",
    ),
    "fields": (
        lambda: ModelConfig.from_json(
            {"inputs": {"kind": "features", "size": 3}, "num_head": 3, "width": 3}
        ),
        ValueError,
        "ModelConfig: unknown field 'num_head' (did you mean 'num_heads'?); unknown field "
        "'width' (known: activation, attention_bias, "
        "d_ff, d_model, dropout, encodings, inputs, norm, num_classes, num_heads, num_layers, "
        "pooling); missing field 'num_classes'",
    ),
    "no object": (
        lambda: ModelConfig.from_json([1]),
        ValueError,
        "ModelConfig must be a JSON object, got [1]",
    ),
    "JSON inputs": (
        lambda: ModelConfig.from_json({"inputs": {"kind": "pixels", "size": 3}, "num_classes": 2}),
        ValueError,
        (
            'inputs must be {"kind": "features" or "tokens", "size": N}, got {\'kind\': '
            "'pixels', "
            "'size': 3}"
        ),
    ),
    "JSON encodings": (
        lambda: ModelConfig.from_json(small_config().to_json() | {"encodings": "learned"}),
        ValueError,
        "encodings must be a list, got 'learned'",
    ),
    "training field": (
        lambda: TrainConfig.from_json({"epoch": 3}),
        ValueError,
        "TrainConfig: unknown field 'epoch' (did you mean 'epochs'?)",
    ),
}


@pytest.mark.parametrize("what", RULES)
def test_rules_are_checked_at_birth(what: str) -> None:
    make, kind, line = RULES[what]
    with pytest.raises(kind, match=f"^{re.escape(line)}$") as caught:
        make()
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, kind)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_survive_json(name: str) -> None:
    config = CONFIGS[name]
    record = config.to_json()
    text = json.dumps(record, allow_nan=False)
    assert ModelConfig.from_json(json.loads(text)) == config
    assert config.to_json() == record == json.loads(text)
    assert set(record) == {field.name for field in dataclasses.fields(ModelConfig)}
    assert hash(ModelConfig.from_json(json.loads(text))) == hash(config)
    for encoding in config.encodings:
        assert encoding_from_json(json.loads(json.dumps(encoding_to_json(encoding)))) == encoding
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.d_model = 4  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.inputs.num_features = 4  # type: ignore[misc, union-attr]


def test_defaults_are_filled_in() -> None:
    config = ModelConfig.from_json({"inputs": {"kind": "features", "size": 3}, "num_classes": 2})
    assert config == ModelConfig(inputs=Features(3), num_classes=2)
    assert config.d_ff == config.width_inside == 4 * config.d_model
    assert config.encodings == ()
    train = TrainConfig(schedule="warmup_cosine", warmup_steps=3, max_gradient_norm=None)
    assert TrainConfig.from_json(json.loads(json.dumps(train.to_json()))) == train


def test_encodings_as_text() -> None:
    assert parse_encoding("none", max_length=9) is None
    assert parse_encoding("learned", max_length=9) == LearnedTable(9)
    assert parse_encoding("learned:max_length=4,layers=all", max_length=9) == LearnedTable(
        4, layers="all"
    )
    assert parse_encoding("sinusoidal:base=100,layout=tensor2tensor", max_length=9) == Sinusoidal(
        base=100, layout="tensor2tensor"
    )
    assert parse_encoding("sinusoidal:base=1e3", max_length=9) == Sinusoidal(base=1000.0)
