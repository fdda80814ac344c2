"""A run stops before a number that is not finite does harm, at an interrupt after its step, and
before it starts where the data do not fit.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.cases import BATCH, ENGINES
from parity_tests.refusals import each_refusal, refused
from parity_tests.small_runs import CONFIG, COUNT, Recorder, bits, data
from pe_core import Features, LearnedTable, TrainConfig
from pe_core.data import Batch, batch_at, epoch_order
from pe_core.training.data_checks import check_data
from pe_core.training.engine import Engine, EngineType
from pe_core.training.evaluation import NotFiniteError
from pe_core.training.loop import train


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# --- Not finite ---


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


@pytest.mark.parametrize("name", ENGINES)
def test_a_number_that_is_not_finite_stops_the_run_before_the_weights_change(
    name: str, tmp_path: Path
) -> None:
    options = TrainConfig(epochs=2, batch_size=BATCH, learning_rate=1e30)
    kind, words = Kept(ENGINES[name]), r"^step 1 \(epoch 0\): loss nan, gradient norm nan; .* is "
    with pytest.raises(NotFiniteError, match=words + r"layers\.0\.\S+; the weights are") as raised:
        train(kind, CONFIG, data(), train_config=options, out=tmp_path / "run")
    tensor = str(raised.value).split("not finite is ")[1].split(";")[0]
    first = kind.states[0]
    for state in (*kind.states, kind.engine.state()):
        assert bits(state) == bits(first)
    assert all(np.isfinite(array).all() for array in first.values())
    taps = kind.engine.taps(batch_at(data().train, epoch_order(0, 0, COUNT), 1, BATCH), 1)
    assert tensor == next(tap for tap, array in taps.items() if not np.isfinite(array).all())
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [0]


BAD, GOOD = {"b": np.array([1.0, np.inf])}, {"a": np.ones(2)}


@pytest.mark.parametrize(
    ("taps", "gradients", "words"),
    [
        (GOOD | BAD, {}, "b"),
        (GOOD, GOOD | BAD, "the gradient of b"),
        (GOOD, GOOD, "the norm of all gradients together"),
    ],
)
def test_the_first_bad_tensor_is_named(
    taps: dict[str, np.ndarray], gradients: dict[str, np.ndarray], words: str
) -> None:
    bad = Recorder(lambda step: (np.inf, 0.0, 5.0, 1.0) if step == 4 else None, taps, gradients)
    with pytest.raises(NotFiniteError) as raised:
        train(bad, CONFIG, data(), train_config=TrainConfig(epochs=2, batch_size=BATCH))
    start = "step 4 (epoch 1): loss inf, gradient norm 1; the first tensor that is not finite is "
    assert str(raised.value).startswith(f"{start}{words};")


# --- Interrupts ---


def test_an_interrupt_finishes_the_step(tmp_path: Path) -> None:
    def metrics(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    recorder, out = Recorder(metrics), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(
            recorder, CONFIG, data(), train_config=TrainConfig(epochs=3, batch_size=BATCH), out=out
        )
    assert len(recorder.seen) == 5
    steps = [line["step"] for line in lines_of(out) if line["kind"] == "step"]
    epochs = [line["epoch"] for line in lines_of(out) if line["kind"] == "epoch"]
    assert (steps, epochs) == ([0, 1, 2, 3, 4], [0])
    assert not (out / "model").exists()
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


# --- Data that do not fit ---


@each_refusal(
    {
        ValueError: {
            "the train part of small has 3 features, but the model takes num_features=5": {
                "inputs": Features(5)
            },
            "small has 4 classes, but the model has num_classes=3": {"num_classes": 3},
            "the train part of small has a sequence of 7 steps, but encoding 'learned' has "
            "max_length=4": {"encodings": (LearnedTable(4),)},
        }
    }
)
def test_data_that_do_not_fit_are_refused_before_the_run(
    kind: type[Exception], words: str, what: dict[str, Any], tmp_path: Path
) -> None:
    config = replace(CONFIG, **what)
    with refused(kind, words):
        check_data(config, data())
    with refused(kind, words):
        train(Recorder(), config, data(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
