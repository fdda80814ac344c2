"""The loop: a run is a function of its config, what it reports is what was computed, and it stops
well.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from parity_tests.cases import (
    BATCH,
    CONFIGS,
    ENGINES,
    FEATURES,
    LENGTH,
    perturbed_arrays,
    small_batch,
    small_config,
)
from pe_core import ComputeConfig, Features, LearnedTable, ModelConfig, TrainConfig
from pe_core.data import Batch, Dataset, Sequences, batch_at, epoch_order, order, swapped
from pe_core.model.config import Precision
from pe_core.model.initial import initial_arrays
from pe_core.model.random import derive, normal
from pe_core.training.data_checks import check_data
from pe_core.training.engine import Engine, EngineType
from pe_core.training.loop import NotFiniteError, TrainResult, evaluate, predict, train
from pe_parity.budgets import budget
from pe_parity.compare import distance
from pe_parity.reference import cross_entropy, forward

EACH = pytest.mark.parametrize("name", ENGINES)
CONFIG = small_config(num_layers=1)
COUNT = 14  # three batches of five, of which the last has four


def part(number: int, count: int, *, masked: bool = False) -> Sequences:
    inputs = normal(derive(0, 95, number), (count, LENGTH, FEATURES)).astype(np.float32)
    mask = np.arange(LENGTH) < 3 + np.arange(count)[:, None] % 5 if masked else None
    return Sequences(inputs, np.arange(count) % 4, mask, tuple("abcd"))


def data(*, masked: bool = False) -> Dataset:
    return Dataset(
        "small", part(0, COUNT, masked=masked), part(1, 9, masked=masked), part(2, 6, masked=masked)
    )


def run(
    name: str,
    config: ModelConfig = CONFIG,
    precision: Precision = "float32",
    *,
    masked: bool = False,
    **changes: Any,
) -> TrainResult:
    options = TrainConfig(**({"epochs": 2, "batch_size": BATCH} | changes))
    return train(
        ENGINES[name],
        config,
        data(masked=masked),
        train=options,
        compute=ComputeConfig(precision=precision),
    )


def bits(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[str, bytes]]:
    return {name: (str(array.dtype), array.tobytes()) for name, array in arrays.items()}


def figures(result: TrainResult) -> list[Any]:
    return [replace(record, seconds=0.0) for record in result.records] + [
        result.test_loss,
        result.test_accuracy,
        result.steps,
    ]


class Recorder:
    """An engine that computes nothing: it notes its batches and gives the metrics that it is told
    to.

    Args:
        metrics: (loss, correct, weight, gradient norm) of a step; None is a healthy one.
        taps: the named intermediates.
        gradients: of the weights.
    """

    def __init__(
        self,
        metrics: Callable[[int], tuple[float, float, float, float] | None] = lambda step: None,
        taps: Mapping[str, np.ndarray] | None = None,
        gradients: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.metrics = metrics
        self.seen: list[Batch] = []
        self.found = dict(taps or {}), dict(gradients or {})
        self.arrays: dict[str, np.ndarray] = {}

    def __call__(
        self, config: ModelConfig, arrays: Mapping[str, np.ndarray], *arguments: Any, **options: Any
    ) -> Engine:
        self.arrays = dict(arrays)
        return self

    def train_step(self, batch: Batch, step: int) -> Any:
        self.seen.append(batch)
        return self.metrics(step) or (1.0, 1.0, float(batch.weights.sum()), 1.0)

    def evaluate(self, batch: Batch) -> Any:
        return (1.0, 1.0, float(batch.weights.sum()), 0.0)

    def predict(self, batch: Batch) -> np.ndarray:
        raise NotImplementedError

    def read(self, metrics: Sequence[Any]) -> np.ndarray:
        return np.array(metrics)

    def gradients(
        self, batch: Batch, step: int | None = None
    ) -> tuple[float, dict[str, np.ndarray]]:
        return 1.0, self.found[1]

    def taps(self, batch: Batch, step: int | None = None) -> dict[str, np.ndarray]:
        return self.found[0]

    def weights(self) -> dict[str, np.ndarray]:
        return self.arrays

    def state(self) -> dict[str, np.ndarray]:
        return self.arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        raise NotImplementedError


@EACH
def test_the_same_run_twice_is_the_same_bits(name: str) -> None:
    config = replace(CONFIG, dropout=0.2)
    one, other = (run(name, config, masked=True) for _ in range(2))
    assert figures(one) == figures(other)
    assert bits(one.arrays) == bits(other.arrays)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_batches_is_a_function_of_the_seed(seed: int) -> None:
    found, recorder = data(masked=True), Recorder()
    train(recorder, CONFIG, found, train=TrainConfig(epochs=2, batch_size=BATCH, seed=seed))
    assert len(recorder.seen) == 6
    for number, batch in enumerate(recorder.seen):
        expected = batch_at(found.train, epoch_order(seed, number // 3, COUNT), number % 3, BATCH)
        assert bits(vars(batch)) == bits(vars(expected))
    for epoch in (recorder.seen[:3], recorder.seen[3:]):
        rows = [
            row
            for batch in epoch
            for row, weight in zip(batch.inputs, batch.weights, strict=True)
            if weight
        ]
        assert sorted(row.tobytes() for row in rows) == sorted(
            row.tobytes() for row in found.train.inputs
        )
    assert recorder.seen[0].inputs.tobytes() != recorder.seen[3].inputs.tobytes()


def test_another_seed_is_another_order() -> None:
    recorders = [Recorder(), Recorder()]
    for seed, recorder in enumerate(recorders):
        train(recorder, CONFIG, data(), train=TrainConfig(epochs=1, batch_size=BATCH, seed=seed))
    assert recorders[0].seen[0].inputs.tobytes() != recorders[1].seen[0].inputs.tobytes()


def test_a_batch_is_not_larger_than_the_training_part() -> None:
    recorder = Recorder()
    result = train(recorder, CONFIG, data(), train=TrainConfig(epochs=1, batch_size=10**9))
    assert [len(batch.weights) for batch in recorder.seen] == [COUNT]
    assert np.isnan(result.seconds_per_step)


@EACH
def test_looking_at_an_engine_changes_nothing(name: str) -> None:
    config, batch = CONFIGS["dropout"], small_batch(CONFIGS["dropout"], masked=True)
    engine = ENGINES[name](config, perturbed_arrays(config), TrainConfig(), ComputeConfig(), 4)
    engine.train_step(batch, 0)
    before = engine.state()
    for look in (
        engine.evaluate,
        engine.predict,
        engine.taps,
        engine.gradients,
        lambda batch: engine.gradients(batch, 1),
    ):
        look(batch)
    evaluate(engine, part(0, COUNT, masked=True), BATCH)
    assert bits(engine.state()) == bits(before)


@EACH
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_metrics_over_a_short_last_batch_are_those_of_all_examples(
    name: str, precision: Precision
) -> None:
    """At a learning rate of zero every step sees the same weights, so the mean over an epoch is
    that over all examples.
    """
    result = run(name, CONFIG, precision, masked=True, learning_rate=0.0)
    arrays = initial_arrays(CONFIG, 0)
    record = result.records[-1]
    found = data(masked=True)
    for sequences, loss, accuracy in (
        (found.train, record.train_loss, record.train_accuracy),
        (found.validation, record.validation_loss, record.validation_accuracy),
        (found.test, result.test_loss, result.test_accuracy),
    ):
        assert sequences is not None
        assert sequences.labels is not None
        logits = forward(CONFIG, arrays, sequences.inputs, mask=sequences.mask)
        exact = cross_entropy(logits, sequences.labels, np.ones(sequences.count))
        assert (
            distance(np.array(loss), np.array(exact), np.array(exact))
            <= budget("loss", precision).bound
        )
        assert accuracy == (logits.argmax(axis=1) == sequences.labels).mean()
    assert bits(result.arrays) == bits(
        {key: array.astype(precision) for key, array in arrays.items()}
    )


@EACH
def test_predict_leaves_filler_rows_out(name: str) -> None:
    engine = ENGINES[name](CONFIG, initial_arrays(CONFIG, 0), TrainConfig(), ComputeConfig(), 0)
    sequences = part(0, COUNT, masked=True)
    exact = forward(CONFIG, initial_arrays(CONFIG, 0), sequences.inputs, mask=sequences.mask)
    assert (
        distance(predict(engine, sequences, BATCH), exact, exact) <= budget("head", "float32").bound
    )


class Kept:
    """An engine's type that keeps the engine that it makes, and its state after each step."""

    def __init__(self, kind: EngineType) -> None:
        self.kind = kind
        self.states: list[dict[str, np.ndarray]] = []

    def __call__(self, *arguments: Any, **options: Any) -> Engine:
        self.engine = self.kind(*arguments, **options)
        step = self.engine.train_step

        def kept(batch: Batch, number: int) -> Any:
            metrics = step(batch, number)
            self.states.append(self.engine.state())
            return metrics

        self.engine.train_step = kept  # type: ignore[assignment, method-assign]
        return self.engine


@EACH
def test_a_number_that_is_not_finite_stops_the_run_before_the_weights_change(
    name: str, tmp_path: Path
) -> None:
    options = TrainConfig(epochs=2, batch_size=BATCH, learning_rate=1e30)
    kind = Kept(ENGINES[name])
    with pytest.raises(
        NotFiniteError,
        match=r"^step 1 \(epoch 0\): loss nan, gradient norm nan; .* is layers\.0\.\S+; the "
        r"weights are",
    ) as raised:
        train(kind, CONFIG, data(), train=options, out=tmp_path / "run")
    tensor = str(raised.value).split("not finite is ")[1].split(";")[0]
    assert [bits(state) for state in kind.states[1:]] == [bits(kind.states[0])] * (
        len(kind.states) - 1
    )
    assert bits(kind.engine.state()) == bits(kind.states[0])
    assert all(np.isfinite(array).all() for array in kind.states[0].values())
    taps = kind.engine.taps(batch_at(data().train, epoch_order(0, 0, COUNT), 1, BATCH), 1)
    assert tensor == next(tap for tap, array in taps.items() if not np.isfinite(array).all())
    assert [
        json.loads(line)["step"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ] == [0]


BAD, GOOD = {"b": np.array([1.0, np.inf])}, {"a": np.ones(2)}


@pytest.mark.parametrize(
    ("taps", "gradients", "words"),
    [
        (
            GOOD | BAD,
            {},
            (
                "step 4 (epoch 1): loss inf, gradient norm 1; the first tensor that is not "
                "finite is "
                "b;"
            ),
        ),
        (GOOD, GOOD | BAD, "the first tensor that is not finite is the gradient of b;"),
        (GOOD, GOOD, "the first tensor that is not finite is the norm of all gradients together;"),
    ],
)
def test_the_first_bad_tensor_is_named(
    taps: dict[str, np.ndarray], gradients: dict[str, np.ndarray], words: str
) -> None:
    recorder = Recorder(
        lambda step: (np.inf, 0.0, 5.0, 1.0) if step == 4 else None, taps, gradients
    )
    with pytest.raises(NotFiniteError) as raised:
        train(recorder, CONFIG, data(), train=TrainConfig(epochs=2, batch_size=BATCH))
    assert words in str(raised.value)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_runs_in_float64_end_on_the_same_float32_bits(masked: bool) -> None:
    config = small_config(
        dropout=0.2, num_layers=2 if masked else 1, pooling="attention" if masked else "mean"
    )
    torch, flax = (
        run(name, config, "float64", masked=masked, weight_decay=0.1, max_gradient_norm=0.5)
        for name in ENGINES
    )
    assert {array.dtype for array in (*torch.arrays.values(), *flax.arrays.values())} == {
        np.dtype(np.float64)
    }
    rounded = [
        {key: array.astype(np.float32) for key, array in result.arrays.items()}
        for result in (torch, flax)
    ]
    assert bits(rounded[0]) == bits(rounded[1])
    for key, start in initial_arrays(config, 0).items():
        assert (rounded[0][key] != start).any(), key
    for a, b in zip(torch.records, flax.records, strict=True):
        assert (a.train_accuracy, a.validation_accuracy) == (
            b.train_accuracy,
            b.validation_accuracy,
        )
        assert (
            distance(np.array(a.train_loss), np.array(b.train_loss), np.array(b.train_loss))
            <= budget("loss", "float64").bound
        )


@EACH
@pytest.mark.parametrize(
    ("precision", "optimizer"), [("float32", "stock"), ("float64", "stock"), ("bfloat16", "exact")]
)
def test_other_ways_to_compute_run_and_learn(
    name: str, precision: Precision, optimizer: str
) -> None:
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        result = run(
            name, CONFIG, precision, masked=True, optimizer=optimizer, epochs=10, learning_rate=1e-2
        )
    assert result.records[-1].train_loss < result.records[0].train_loss
    assert all(np.isfinite(array).all() for array in result.arrays.values())


@EACH
def test_without_positions_the_order_of_two_markers_is_out_of_reach(name: str) -> None:
    found = order()
    logits = {}
    for encodings in ((), (LearnedTable(found.length),)):
        config = ModelConfig(
            inputs=Features(16),
            num_classes=2,
            d_model=12,
            num_heads=3,
            num_layers=1,
            d_ff=20,
            encodings=encodings,
        )
        compute = ComputeConfig(precision="float64")
        result = train(
            ENGINES[name],
            config,
            found,
            train=TrainConfig(epochs=2, learning_rate=1e-2),
            compute=compute,
        )
        engine = ENGINES[name](config, result.arrays, TrainConfig(), compute, 0)
        one, other = (
            predict(engine, sequences, 250)
            for sequences in (found.validation, swapped(found.validation))
        )
        logits[bool(encodings)] = result.records[-1].validation_accuracy, distance(one, other, one)
    accuracy, apart = logits[False]
    assert accuracy == 0.5
    assert apart <= budget("head", "float64").bound
    assert logits[True][1] > budget("head", "float64").fault


def interrupted_at(*steps: int) -> Recorder:
    def metrics(step: int) -> None:
        if step in steps:
            os.kill(os.getpid(), signal.SIGINT)

    return Recorder(metrics)


def test_an_interrupt_finishes_the_step(tmp_path: Path) -> None:
    recorder = interrupted_at(4)
    with pytest.raises(KeyboardInterrupt):
        train(
            recorder,
            CONFIG,
            data(),
            train=TrainConfig(epochs=3, batch_size=BATCH),
            out=tmp_path / "run",
        )
    assert len(recorder.seen) == 5
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [0, 1, 2, 3, 4]
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [0]
    assert not (tmp_path / "run" / "model").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_does_not_wait() -> None:
    def twice(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second interrupt was held back")

    with pytest.raises(KeyboardInterrupt):
        train(Recorder(twice), CONFIG, data())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_in_a_thread_leaves_signals_alone() -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(train(Recorder(), CONFIG, data())))
    thread.start()
    thread.join()
    assert len(results) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"inputs": Features(5)},
            "the train part of small has 3 features, but the model takes num_features=5",
        ),
        ({"num_classes": 3}, "small has 4 classes, but the model has num_classes=3"),
        (
            {"encodings": (LearnedTable(4),)},
            (
                "the train part of small has a sequence of 7 steps, but the learned table has "
                "max_length=4"
            ),
        ),
    ],
)
def test_data_that_do_not_fit_are_refused_before_the_run(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    config = replace(CONFIG, **change)
    with pytest.raises(ValueError, match=words):
        check_data(config, data())
    with pytest.raises(ValueError, match=words):
        train(Recorder(), config, data(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_padding_beyond_a_table_is_no_obstacle() -> None:
    short = Sequences(
        part(0, COUNT).inputs,
        part(0, COUNT).labels,
        np.arange(LENGTH) < np.full((COUNT, 1), 4),
        tuple("abcd"),
    )
    found, config = Dataset("short", short, short), replace(CONFIG, encodings=(LearnedTable(4),))
    losses = [
        train(kind, config, found, train=TrainConfig(epochs=1)).records[-1].train_loss
        for kind in ENGINES.values()
    ]
    exact = np.array(losses[0])
    assert distance(np.array(losses[1]), exact, exact) <= budget("loss", "float32").bound
