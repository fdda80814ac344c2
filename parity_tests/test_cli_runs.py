"""What `pe` computes: each good command gives the same in both frameworks, and says what it did."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pe_torch.engine
from parity_tests.cli import (
    COUNT,
    DUMMY,
    FRAMEWORKS,
    NAMES,
    TINY,
    WIDTH,
    Pe,
    files,
    pe,
    runs,
    strict,
)
from pe_cli import demo
from pe_core import ComputeConfig, Features, LearnedTable, ModelConfig, TrainConfig
from pe_core.data import load, read
from pe_core.encodings import ENCODINGS
from pe_core.storage.model_directory import load_model
from pe_core.training.backends import backends
from pe_core.training.predictor import predict
from pe_parity.budgets import budget, distance
from pe_parity.check import default_model

__all__ = ["files", "pe", "runs"]

SMALL: dict[str, Any] = {"d_model": 8, "num_heads": 2, "num_layers": 1, "d_ff": 8}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def metrics(run: Path) -> list[Any]:
    return [strict(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def accuracies(record: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in record.items() if key.endswith("accuracy")}


# Training.


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_train_writes_what_it_says(runs: Path, name: str) -> None:
    record = strict((runs / f"{name}.json").read_text())
    parts = ("train", "validation", "test")
    figures = {f"{part}_{kind}" for part in parts for kind in ("loss", "accuracy")}
    others = "framework data seconds_per_step steps finished model versions test"
    assert set(record) == figures | set(others.split())
    assert (record["framework"], record["steps"]) == (name, 4)
    assert Path(record["model"]) == runs / name / "model"
    assert {"python", "numpy", "torch", "jax", "cores"} <= set(record["versions"])
    files = ["checkpoints", "config.json", "metrics.jsonl", "model", "test.json"]
    assert names(runs / name) == files
    assert strict((runs / name / "test.json").read_text()) == record["test"]
    assert np.trace(record["test"]["confusion"]) == record["test_accuracy"] * COUNT
    lines = metrics(runs / name)
    assert [line["kind"] for line in lines] == ["step", "step", "epoch"] * 2
    assert [line["step"] for line in lines if line["kind"] == "step"] == [0, 1, 2, 3]
    for key in ("train_loss", "validation_loss", "validation_accuracy"):
        assert lines[-1][key] == record[key]
    config = strict((runs / name / "config.json").read_text())
    assert TrainConfig.from_json(config["train"]).epochs == 2
    assert ModelConfig.from_json(config["model"]).num_classes == len(NAMES)


def test_the_frameworks_train_alike(runs: Path) -> None:
    one, other = (load_model(runs / name / "model") for name in FRAMEWORKS)
    assert one.config == other.config
    assert one.details == other.details
    assert one.details["class_names"] == list(NAMES)
    a, b = (strict((runs / f"{name}.json").read_text()) for name in FRAMEWORKS)
    assert accuracies(a) == accuracies(b)


@pytest.mark.parametrize("data", ["tokens.npz", "Toy_TRAIN.ts", "ünï [bold]ço.npz", "dummy"])
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_other_data(pe: Pe, files: Path, tmp_path: Path, name: str, data: str) -> None:
    given = [data if data == "dummy" else str(files / data)]
    if data.endswith(".ts"):
        given += ["--test", str(files / "Toy_TEST.ts")]
    out = f"{name}-{Path(data).stem}"
    line = ("--framework", name, "--data", *given, *TINY, "--batch-size=999", "--out", out)
    text = pe("train", *line, "--json=figures.json")
    assert f"model in {out}/model" in text
    tested = "test_accuracy" in strict((tmp_path / "figures.json").read_text())
    assert tested == data.endswith(".ts")
    text += pe("predict", out, "--data", given[-1], "--framework", "torch")
    assert max(map(len, text.splitlines())) <= WIDTH


def test_folders_are_numbered_where_none_is_given(pe: Pe, files: Path) -> None:
    for folder in ("good-torch", "good-torch-2"):
        text = pe("train", "--framework=torch", "--data", files / "good.npz", *TINY)
        assert f"model in runs/{folder}/model" in text


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("torch", "--learning-rate=1e30", r"step 1 \(epoch 0\): loss nan, .* is layers\.0\.\S+;"),
        ("flax", "--learning-rate=1e30", r"step 1 \(epoch 0\): loss nan, .* is layers\.0\.\S+;"),
        (
            "torch",
            "--learning-rate=1e38 --batch-size=1000",
            r"after step 0 \(epoch 0\): loss nan in evaluation; .* not finite is \S+;",
        ),
    ],
)
def test_a_number_that_is_not_finite_stops_the_run(
    pe: Pe, tmp_path: Path, name: str, options: str, found: str
) -> None:
    line = DUMMY.replace("torch", name).split()
    assert re.search(found, pe(*line, *TINY, *options.split(), "--out=run", code=1))
    assert names(tmp_path / "run") == ["config.json", "metrics.jsonl"]
    assert [line["step"] for line in metrics(tmp_path / "run")] == [0]


def test_a_run_goes_on_in_the_other_framework(pe: Pe, files: Path, tmp_path: Path) -> None:
    options = (*TINY, "--epochs=2", "--batch-size=16", "--precision=float64")
    line = ("train", "--framework=torch", "--data", files / "good.npz", *options)
    pe(*line, "--out=whole", "--json=whole.json")
    text = pe(*line, "--out=part", "--stop-at=3", "--json=part.json")
    last = text.splitlines()[-1]
    assert last == "stopped after step 3 with a checkpoint; go on with: pe resume part"
    stopped = strict((tmp_path / "part.json").read_text())
    assert (stopped["steps"], stopped["finished"]) == (3, False)
    pe("resume", "part", "--framework=flax", "--json=part.json")
    whole, part = (strict((tmp_path / f"{name}.json").read_text()) for name in ("whole", "part"))
    assert (part["steps"], part["finished"], part["framework"]) == (4, True, "flax")
    assert accuracies(part) == accuracies(whole)
    one, other = (load_model(tmp_path / name / "model").arrays for name in ("whole", "part"))
    for name, array in one.items():
        assert (array.astype(np.float32) == other[name].astype(np.float32)).all(), name
    assert [line["step"] for line in metrics(tmp_path / "part")] == [0, 1, 2, 2, 3, 4]


# Prediction.


@pytest.mark.parametrize("trained", FRAMEWORKS)
def test_predict_gives_the_same_in_either_framework(
    pe: Pe, files: Path, runs: Path, tmp_path: Path, trained: str
) -> None:
    texts, records = [], []
    for name in FRAMEWORKS:
        model = runs / trained if name == trained else runs / trained / "model"
        line = ("predict", model, "--data", files / "good.npz", "--framework", name)
        texts.append(pe(*line, "--json=all.json"))
        records.append(strict((tmp_path / "all.json").read_text()))
    assert texts[0] == texts[1]
    last = texts[0].splitlines()[-1]
    assert last == f"accuracy {records[0]['accuracy']:.3f} over {COUNT} sequences"
    assert set(records[0]["predictions"]) <= set(NAMES)
    assert records[0]["predictions"] == records[1]["predictions"]
    one, other = (np.array(record["probabilities"]) for record in records)
    assert distance(one, other, one) <= budget("head", "float32").bound


def test_predict_standardises_as_in_training(
    pe: Pe, files: Path, runs: Path, tmp_path: Path
) -> None:
    saved = load_model(runs / "torch" / "model")
    data = load(files / "good.npz", test=files / "lengths.npz")
    assert data.standardisation is not None
    assert saved.details["standardisation"] == data.standardisation.to_json()
    line = ("predict", runs / "torch", "--data", files / "unlabelled.npz", "--framework=torch")
    pe(*line, "--json=all.json")
    engine = pe_torch.engine.Engine(saved.config, saved.arrays, TrainConfig(), ComputeConfig(), 0)
    assert data.test is not None
    logits = predict(engine, data.test, COUNT)  # the same sequences, standardised by `load`
    record = strict((tmp_path / "all.json").read_text())
    assert "accuracy" not in record
    assert record["predictions"] == [NAMES[index] for index in logits.argmax(axis=1)]
    raw = predict(engine, read(files / "good.npz", NAMES), COUNT)
    assert distance(raw, logits, logits) > budget("head", "float32").fault


def test_predict_takes_the_split_of_the_training(pe: Pe, tmp_path: Path) -> None:
    line = ("--framework=torch", "--data=digits", "--seed=3", *TINY, "--out=run")
    pe("train", *line, "--json=train.json")
    pe("predict", "run", "--data=digits", "--json=predict.json")
    trained, predicted = (
        strict((tmp_path / f"{name}.json").read_text()) for name in ("train", "predict")
    )
    assert predicted["accuracy"] == trained["test_accuracy"]


# Parity.


@pytest.fixture
def parity(pe: Pe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`pe parity` of a small model, in torch alone unless told otherwise; its output and JSON."""
    config = ModelConfig(inputs=Features(3), num_classes=3, encodings=(LearnedTable(6),), **SMALL)
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))

    known = backends()

    def run(*options: str, code: int = 0, frameworks: tuple[str, ...] = ("torch",)) -> Any:
        kept = {name: known[name] for name in frameworks}
        monkeypatch.setattr("pe_cli.engines.backends", lambda: kept)
        text = pe("parity", "--config=config.json", *options, "--json=all.json", code=code)
        assert max(map(len, text.splitlines())) <= WIDTH
        return text, strict((tmp_path / "all.json").read_text())

    return run


def test_parity_of_a_model(parity: Any) -> None:
    text, record = parity("--steps=3", "--precision=float64", frameworks=FRAMEWORKS)
    assert record["passed"] is True
    assert list(record["studies"]) == ["learned"]
    exact = record["studies"]["learned"]["float64"]
    assert exact["equal_after_rounding"] == exact["weights"]
    kinds = {row["name"].split("/")[0] for row in exact["rows"]}
    assert kinds >= {"input", "loss", "gradient", "update", "weights"}
    assert text.splitlines()[-1] == "The frameworks agree."


def test_parity_of_all_encodings(parity: Any) -> None:
    _, record = parity("--depth=forward", "--encoding=all")
    assert {name: list(one) for name, one in record["studies"].items()} == dict.fromkeys(
        ["none", *ENCODINGS], ["float64", "float32"]
    )
    line = ("--depth=forward", "--encoding=learned:max_length=4", "--precision=float32")
    _, record = parity(*line)
    assert {name: list(one) for name, one in record["studies"].items()} == {
        "learned:max_length=4": ["float32"]
    }


def test_parity_fails_where_a_fault_is_planted(
    parity: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taps = pe_torch.engine.Engine.taps
    share = budget("input", "float32").fault

    def faulty(self: Any, *arguments: Any) -> dict[str, np.ndarray]:
        return {
            name: array * (1 + share) if name == "layers.0.norm1" else array
            for name, array in taps(self, *arguments).items()
        }

    monkeypatch.setattr(pe_torch.engine.Engine, "taps", faulty)
    text, record = parity("--depth=forward", "--precision=float32", code=1)
    assert f"first out of budget: layers.0.norm1\ntorch {share:.1e}" in text
    assert "FAILED" in text
    assert text.splitlines()[-1] == "torch leaves its budgets."
    assert record["passed"] is False


def test_parity_fails_where_float64_ends_on_other_bits(
    parity: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pe_parity.check.same_bits", lambda arrays: arrays[0].size - 1)
    # torch in both places, which compiles nothing.
    monkeypatch.setattr("pe_cli.engines.forward_type", lambda name: pe_torch.engine.Engine)
    text, _ = parity("--steps=2", "--precision=float64", code=1, frameworks=FRAMEWORKS)
    assert "FAILED: a run in float64 must end on the same bits" in text
    assert text.splitlines()[-1] == "The frameworks do not agree."


def test_demo_in_small(pe: Pe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = TrainConfig(epochs=1, batch_size=500).to_json()
    small = vars(default_model()) | SMALL
    # Its texts and its files are tested here; `make demo` shows that both frameworks run it.
    monkeypatch.setattr("pe_cli.engines.forward_type", lambda name: pe_torch.engine.Engine)
    monkeypatch.setattr(demo, "ORDER_TRAINING", TrainConfig(**short))
    monkeypatch.setattr(demo, "TrainConfig", lambda **given: TrainConfig(**(short | given)))
    monkeypatch.setattr(demo, "default_model", lambda: ModelConfig(**small))
    monkeypatch.setattr(
        demo,
        "ModelConfig",
        lambda *, encodings, **_: ModelConfig(**small | {"encodings": encodings}),
    )
    text = pe("demo", "--out=demo", "--json=demo.json")
    assert max(map(len, text.splitlines())) <= WIDTH
    record = strict((tmp_path / "demo.json").read_text())
    assert record["order"]["none"] == dict.fromkeys(FRAMEWORKS, 0.5)
    assert set(record["parity"]) == {"float64", "float32"}
    pe("predict", "demo/torch", "--data=dummy", "--framework=flax")
