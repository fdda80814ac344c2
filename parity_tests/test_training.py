"""A run is a function of its config, and what it reports is what was computed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from parity_tests.cases import (
    BATCH,
    CONFIGS,
    ENGINES,
    LENGTH,
    perturbed_arrays,
    small_batch,
    small_config,
)
from parity_tests.small_runs import CONFIG, COUNT, Recorder, bits, data, part, run
from pe_core import ComputeConfig, Features, LearnedTable, TrainConfig
from pe_core.data import Dataset, Sequences, batch_at, epoch_order, order, swapped
from pe_core.model.config import Precision
from pe_core.model.initial import initial_arrays
from pe_core.training.evaluation import evaluate
from pe_core.training.loop import TrainResult, train
from pe_core.training.predictor import predict
from pe_parity.budgets import budget, distance
from pe_parity.reference import cross_entropy, forward

EACH = pytest.mark.parametrize("name", ENGINES)


def near(found: Any, exact: Any, quantity: Any, precision: Precision) -> bool:
    scale = np.array(exact)
    return distance(np.array(found), scale, scale) <= budget(quantity, precision).bound


def figures(result: TrainResult) -> list[Any]:
    records = [replace(record, seconds=0.0) for record in result.records]
    return [*records, result.test_loss, result.test_accuracy, result.steps]


# --- Order and repetition ---


@EACH
def test_the_same_run_twice_is_the_same_bits(name: str) -> None:
    config = replace(CONFIG, dropout=0.2)
    one, other = (run(name, config, masked=True) for _ in range(2))
    assert figures(one) == figures(other)
    assert bits(one.arrays) == bits(other.arrays)


def test_seeds_share_what_flax_compiles() -> None:
    """A study over seeds compiles once, and each seed still has masks of its own."""
    config, losses, programs = CONFIGS["dropout"], [], []
    for seed in (0, 1):
        given = TrainConfig(seed=seed, epochs=seed + 1)
        arrays = perturbed_arrays(config)
        engine: Any = ENGINES["flax"](config, arrays, given, ComputeConfig(), seed + 1)
        losses.append(engine.read([engine.train_step(small_batch(config), 0)])[0, 0])
        programs.append(engine._program)
    assert programs[0] is programs[1]
    assert losses[0] != losses[1]


def test_the_order_of_batches_is_a_function_of_the_seed() -> None:
    found, first = data(masked=True), set()
    for seed in (0, 1):
        recorder = Recorder()
        train(
            recorder, CONFIG, found, train_config=TrainConfig(epochs=2, batch_size=BATCH, seed=seed)
        )
        assert len(recorder.seen) == 6
        for number, batch in enumerate(recorder.seen):
            rows = epoch_order(seed, number // 3, COUNT)
            expected = batch_at(found.train, rows, number % 3, BATCH)
            assert bits(vars(batch)) == bits(vars(expected))
        first |= {recorder.seen[step].inputs.tobytes() for step in (0, 3)}
    assert len(first) == 4


def test_a_batch_is_not_larger_than_the_training_part() -> None:
    recorder = Recorder()
    result = train(recorder, CONFIG, data(), train_config=TrainConfig(epochs=1, batch_size=10**9))
    assert [len(batch.weights) for batch in recorder.seen] == [COUNT]
    assert np.isnan(result.seconds_per_step)


@EACH
def test_looking_at_an_engine_changes_nothing(name: str) -> None:
    config = replace(CONFIGS["dropout"], num_layers=1)
    batch = small_batch(config, masked=True)
    engine = ENGINES[name](config, perturbed_arrays(config), TrainConfig(), ComputeConfig(), 4)
    engine.train_step(batch, 0)
    before = engine.state()
    for look in (engine.evaluate, engine.predict, engine.taps, engine.gradients):
        look(batch)
    engine.gradients(batch, 1)
    evaluate(engine, part(0, COUNT, masked=True), BATCH)
    assert bits(engine.state()) == bits(before)


# --- What is reported ---


@EACH
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_metrics_over_a_short_last_batch_are_those_of_all_examples(
    name: str, precision: Precision
) -> None:
    """At a learning rate of zero every step sees the same parameters, so the mean over an epoch is
    that over all examples.
    """
    result = run(name, CONFIG, precision, masked=True, learning_rate=0.0)
    arrays, record, found = initial_arrays(CONFIG, 0), result.records[-1], data(masked=True)
    reported = {
        "train": (record.train_loss, record.train_accuracy),
        "validation": (record.validation_loss, record.validation_accuracy),
        "test": (result.test_loss, result.test_accuracy),
    }
    for name_of_part, (loss, accuracy) in reported.items():
        sequences = found.parts[name_of_part]
        labels = np.asarray(sequences.labels)
        logits = forward(CONFIG, arrays, sequences.inputs, mask=sequences.mask)
        assert near(loss, cross_entropy(logits, labels, np.ones(len(labels))), "loss", precision)
        assert accuracy == (logits.argmax(axis=1) == labels).mean()
    unmoved = {key: array.astype(precision) for key, array in arrays.items()}
    assert bits(result.arrays) == bits(unmoved)


@EACH
def test_predict_leaves_filler_rows_out(name: str) -> None:
    arrays, sequences = initial_arrays(CONFIG, 0), part(0, COUNT, masked=True)
    engine = ENGINES[name](CONFIG, arrays, TrainConfig(), ComputeConfig(), 0)
    exact = forward(CONFIG, arrays, sequences.inputs, mask=sequences.mask)
    assert near(predict(engine, sequences, BATCH), exact, "head", "float32")


# --- What is learned ---


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_runs_in_float64_end_on_the_same_float32_bits(masked: bool) -> None:
    shape = {"num_layers": 2, "pooling": "attention"} if masked else {"num_layers": 1}
    config = small_config(dropout=0.2, **shape)
    results = [
        run(name, config, "float64", masked=masked, weight_decay=0.1, max_gradient_norm=0.5)
        for name in ENGINES
    ]
    rounded = []
    for result in results:
        assert {array.dtype for array in result.arrays.values()} == {np.dtype(np.float64)}
        rounded.append({key: array.astype(np.float32) for key, array in result.arrays.items()})
    assert bits(rounded[0]) == bits(rounded[1])
    for key, start in initial_arrays(config, 0).items():
        assert (rounded[0][key] != start).any(), key
    for a, b in zip(*(result.records for result in results), strict=True):
        assert a.train_accuracy == b.train_accuracy
        assert a.validation_accuracy == b.validation_accuracy
        assert near(a.train_loss, b.train_loss, "loss", "float64")


@EACH
@pytest.mark.parametrize(
    ("precision", "optimizer"), [("float32", "stock"), ("float64", "stock"), ("bfloat16", "exact")]
)
def test_other_ways_to_compute_run_and_learn(
    name: str, precision: Precision, optimizer: str
) -> None:
    changes = {"optimizer": optimizer, "epochs": 10, "learning_rate": 1e-2}
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        result = run(name, CONFIG, precision, masked=True, **changes)
    assert result.records[-1].train_loss < result.records[0].train_loss
    assert all(np.isfinite(array).all() for array in result.arrays.values())


@EACH
def test_without_positions_the_order_of_two_markers_is_out_of_reach(name: str) -> None:
    found, compute = order(), ComputeConfig(precision="float64")
    assert found.validation is not None
    options = TrainConfig(epochs=2, learning_rate=1e-2)
    accuracy, apart = {}, {}
    for encodings in ((), (LearnedTable(found.length),)):
        config = replace(CONFIG, inputs=Features(16), num_classes=2, encodings=encodings)
        result = train(ENGINES[name], config, found, train_config=options, compute=compute)
        engine = ENGINES[name](config, result.arrays, TrainConfig(), compute, 0)
        both = (found.validation, swapped(found.validation))
        one, other = (predict(engine, sequences, 250) for sequences in both)
        accuracy[encodings] = result.records[-1].validation_accuracy
        apart[encodings] = distance(one, other, one)
    assert accuracy.pop(()) == 0.5
    assert apart.pop(()) <= budget("head", "float64").bound
    assert apart.popitem()[1] > budget("head", "float64").fault


def test_padding_beyond_a_table_is_no_obstacle() -> None:
    whole = part(0, COUNT)
    mask = np.arange(LENGTH) < np.full((COUNT, 1), 4)
    short = Sequences(whole.inputs, whole.labels, mask, whole.class_names)
    found, config = Dataset("short", short, short), replace(CONFIG, encodings=(LearnedTable(4),))
    losses = [
        train(kind, config, found, train_config=TrainConfig(epochs=1)).records[-1].train_loss
        for kind in ENGINES.values()
    ]
    assert near(losses[1], losses[0], "loss", "float32")
