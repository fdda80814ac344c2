"""A call that does not fit is refused in one line, the same in both frameworks: what was wrong, the
value, the remedy.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import pe_flax
from parity_tests.cases import (
    BACKENDS,
    BATCH,
    CONFIGS,
    FEATURES,
    LENGTH,
    small_batch,
)
from parity_tests.refusals import each_refusal, refused
from parity_tests.small_models import in_each_backend, model, weights
from pe_core import ComputeConfig, LearnedTable

X = small_batch(CONFIGS["default"]).inputs
LONG = np.zeros((2, 10, FEATURES), np.float32)
TOKENS = small_batch(CONFIGS["tokens"]).inputs
IDS = np.ones((BATCH, LENGTH), np.int32)


def far_token(token: int) -> np.ndarray:
    tokens = TOKENS.copy()
    tokens[2, 3] = token
    return tokens


def call(x: np.ndarray, name: str = "default", **arguments: Any) -> Any:
    return name, x, arguments


def at(*positions: float) -> Any:
    """A call at 0, 1, 2, ... and, last, these positions: whole numbers are integers."""
    whole = all(isinstance(position, int) for position in positions)
    before = range(LENGTH - len(positions))
    return call(X, positions=np.array([*before, *positions], np.int32 if whole else np.float32))


OVER = (
    "a sequence of length 10 does not fit the learned table of max_length 9; build the model with "
    "LearnedTable(max_length=10), cut the sequences to 9 steps, take over_length='clip', 'wrap' or "
    "'interpolate', or use Sinusoidal()"
)
ENDLESS = "positions of a learned table must be finite and below 2**31, got {}; correct them"
NEGATIVE = (
    "positions of a learned table must not be negative, got -2; shift them so that the first is 0"
)
ONE_VECTOR = (
    "segment_ids need one pooled vector per segment, but pooling='cls' has one per row; "
    "use pooling='mean'"
)
TOKEN = "token {} lies outside 0 .. 10; build the model with a larger vocab_size or map the token"
EMPTY = "x is empty, got shape {}; pass at least one sequence of one step"
SEGMENTS = "segment_ids must be integers with 0 for padding, got ...; convert them to int32"


# Whole lines, but for the names of dtypes, which are each framework's own.
@each_refusal(
    {
        ValueError: {
            OVER: [call(LONG), call(LONG, mask=np.ones((2, 10), bool)), at(9), at(8.5)],
            ENDLESS.format("inf"): [at(np.inf)],
            ENDLESS.format("nan"): [at(np.nan)],
            NEGATIVE: [at(-2)],
            "x has 2 features, but the model takes num_features=3": [call(X[..., :2])],
            "x must have the three axes (batch, length, num_features), got shape (7, 3)": [
                call(X[0])
            ],
            "x must have the two axes (batch, length), got shape (5, 7, 1)": [
                call(TOKENS[..., None], "tokens")
            ],
            EMPTY.format("(0, 7, 3)"): [call(X[:0])],
            EMPTY.format("(5, 0, 3)"): [call(X[:, :0])],
            "mask must have shape (batch, length) = (5, 7), got (5, 8)": [
                call(X, mask=np.ones((BATCH, LENGTH + 1), bool))
            ],
            "mask must have shape (batch, length) = (5, 7), got (7,)": [
                call(X, mask=np.ones(LENGTH, bool))
            ],
            "segment_ids must have shape (batch, length) = (5, 7), got (4, 7)": [
                call(X, segment_ids=IDS[1:])
            ],
            ONE_VECTOR: [call(X, "post", segment_ids=IDS)],
            "positions must have shape (batch, length) = (5, 7) or (7,), got (6,)": [
                call(X, positions=np.arange(LENGTH - 1, dtype=np.int32))
            ],
            "segment_ids go up to 2, got num_segments=1; pass 2": [
                call(X, segment_ids=IDS + (np.arange(LENGTH) > 3), num_segments=1)
            ],
            "segment_ids hold no segment, the highest is 0; number them from 1": [
                call(X, segment_ids=IDS * 0)
            ],
            "num_segments=3 needs segment_ids; pass both or neither": [call(X, num_segments=3)],
            "dropout_step must lie in 0 .. 4294967295, got -1": [call(X, dropout_step=-1)],
            "dropout_rows must have shape (batch,) = (5,), got (7,)": [
                call(X, dropout_rows=np.arange(7))
            ],
            "dropout_rows must lie in 0 .. 2**31 - 1, got -1": [
                call(X, dropout_rows=np.arange(BATCH) - 1)
            ],
            TOKEN.format(11): [call(far_token(11), "tokens")],
            TOKEN.format(-1): [call(far_token(-1), "tokens")],
        },
        TypeError: {
            "x must hold floating-point features, got ...; convert it to float32": [
                call(X.astype(np.int32))
            ],
            "x must hold integer tokens, got ...; convert it to int32": [
                call(TOKENS.astype(np.float32), "tokens"),
                call(TOKENS > 3, "tokens"),
            ],
            "mask must be boolean with True for real steps, got ...; convert it, as in mask != 0": [
                call(X, mask=np.ones((BATCH, LENGTH), np.float32))
            ],
            "num_segments must be an integer, got 2.5": [
                call(X, segment_ids=IDS, num_segments=2.5)
            ],
            "dropout_step must be an integer, got 1.5": [call(X, dropout_step=1.5)],
            "dropout_rows must be integers, got ...; convert them": [
                call(X, dropout_rows=np.ones(BATCH, np.float32))
            ],
            SEGMENTS: [call(X, segment_ids=IDS.astype("f4")), call(X, segment_ids=IDS > 0)],
            "positions must be integers or floating point, got ...bool": [
                call(X, positions=np.ones(LENGTH, bool))
            ],
        },
    }
)
@in_each_backend
def test_calls_that_do_not_fit(
    label: str, kind: type[Exception], words: str, what: list[Any]
) -> None:
    for name, x, arguments in what:
        with refused(kind, words, whole=True):
            BACKENDS[label].call(model(label, name), x, **arguments)


@in_each_backend
def test_an_encoder_refuses_the_same(label: str) -> None:
    encoder = BACKENDS[label].encoder(CONFIGS["default"], weights("default"))
    with refused(ValueError, OVER):
        BACKENDS[label].call(encoder, LONG)
    with refused(ValueError, "x has 2 features, but the model takes num_features=3"):
        BACKENDS[label].call(encoder, X[..., :2])


@in_each_backend
def test_a_layer_alone_refuses_the_same(label: str) -> None:
    layer = BACKENDS[label].package.LearnedTableEncoding(LearnedTable(9), d_model=6, seed=0)
    calls: list[dict[str, Any]] = [{}, {"positions": np.arange(10, dtype=np.int32)}]
    for arguments in calls:
        with refused(ValueError, OVER):
            BACKENDS[label].call(layer, np.zeros((2, 10, 6), np.float32), **arguments)


def test_compiled_flax_refuses_what_shapes_show() -> None:
    live = model("flax", "default")
    with refused(ValueError, OVER):
        jax.jit(lambda x: live(x))(LONG)
    line = (
        "segment_ids are traced, so their highest value is unknown here; pass num_segments, "
        "the most segments in a row"
    )
    with refused(ValueError, line, whole=True):
        jax.jit(lambda x, ids: live(x, segment_ids=ids))(X, IDS)
    counted = jax.jit(lambda x, ids: live(x, segment_ids=ids, num_segments=2))
    assert counted(X, IDS).shape == (BATCH, 2, 4)


def test_float64_in_jax_has_to_be_switched_on() -> None:
    line = (
        "precision 'float64' is off in JAX; switch it on with "
        "jax.config.update('jax_enable_x64', True)"
    )
    for kind in (pe_flax.Encoder, pe_flax.SequenceClassifier):
        with refused(ValueError, line, whole=True):
            kind(CONFIGS["default"], compute=ComputeConfig(precision="float64"))
