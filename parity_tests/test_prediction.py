"""Raw data become class names and probabilities in one call, from any folder and framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.cases import BACKENDS, ENGINES, FEATURES, perturbed_arrays, small_config
from parity_tests.refusals import each_refusal, refused
from parity_tests.small_models import assert_near
from parity_tests.small_runs import data, run
from pe_core import Features, ModelConfig, Tokens
from pe_core.encodings import Sinusoidal
from pe_core.model.random import derive, normal
from pe_core.storage.model_directory import MODEL_FOLDER, SavedModel, save_model
from pe_core.training.loop import train
from pe_core.training.predictor import Predictor
from pe_parity.reference import forward

CONFIG = small_config(num_layers=1)
NAMES = ("ape", "bee", "cow", "doe")
# Time stamps are that large: a cast before the mean is taken would make all of them equal.
MEAN, SCALE = np.array([1.7e9, 0.5, -3e8]), np.array([2.0, 1e-3, 5.0])
LENGTHS = np.array([7, 2, 5, 1, 6])
MASK = np.arange(7) < LENGTHS[:, None]
STEPS = normal(derive(0, 97), (5, 7, FEATURES))
RAW = MEAN + SCALE * STEPS


def folder(
    path: Path, config: ModelConfig = CONFIG, *, standardised: bool = True, **others: object
) -> Path:
    details: dict[str, Any] = {"class_names": NAMES[: config.num_classes], "seed": 3} | others
    if standardised:
        details["standardisation"] = {"mean": MEAN.tolist(), "scale": SCALE.tolist()}
    save_model(path, SavedModel(config, perturbed_arrays(config), details))
    return path


@pytest.mark.parametrize("run", ["", MODEL_FOLDER])
@pytest.mark.parametrize("label", BACKENDS)
def test_raw_data_are_classified_in_one_call(label: str, run: str, tmp_path: Path) -> None:
    folder(tmp_path / "run" / run)
    found = BACKENDS[label].package.load_predictor(tmp_path / "run", batch_size=2)
    exact = forward(CONFIG, perturbed_arrays(CONFIG), (RAW - MEAN) / SCALE, mask=MASK)
    shares = np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True)
    ragged = [row[:length] for row, length in zip(RAW, LENGTHS, strict=True)]
    assert_near(found.logits(RAW, mask=MASK), exact)
    assert_near(found.logits(np.ma.array(RAW, mask=~MASK[..., None] | np.zeros(3, bool))), exact)
    assert_near(found.predict_proba(ragged), shares)
    assert found.predict_proba(ragged).dtype == np.float32
    names = [NAMES[index] for index in exact.argmax(axis=1)]
    assert len(set(names)) > 1
    for given in (ragged, [row.tolist() for row in ragged], np.array(ragged, object)):
        assert found.predict(given).tolist() == names
    assert found.predict(RAW[:1]).tolist() == found.predict([RAW[0]]).tolist() == names[:1]


def test_tokens_and_a_single_feature_have_no_axis_of_features(tmp_path: Path) -> None:
    for inputs, x in ((Tokens(11), np.arange(6).reshape(2, 3)), (Features(1), STEPS[:2, :3, 0])):
        config = small_config(num_layers=1, inputs=inputs)
        path = folder(tmp_path / type(inputs).__name__, config, standardised=False)
        found = Predictor.load(ENGINES["torch"], path)
        wide = x if isinstance(inputs, Tokens) else x[..., None]
        assert_near(found.logits(x), forward(config, perturbed_arrays(config), wide))
        assert_near(found.logits(list(x)), found.logits(x))


PLACES = np.cumsum(np.abs(STEPS[..., 0]), axis=1)


@pytest.mark.parametrize("use", ["encode", "feature", "both"])
@pytest.mark.parametrize("label", BACKENDS)
def test_positions_are_used_as_in_training(label: str, use: str, tmp_path: Path) -> None:
    config = small_config(num_layers=1, encodings=(Sinusoidal(),))
    inputs = RAW if use == "encode" else RAW[..., :2]
    standard = (RAW - MEAN) / SCALE
    if use != "encode":
        standard[..., 2] = (PLACES - MEAN[2]) / SCALE[2]
    folder(tmp_path, config, positions=use, positions_unit="days")
    found = BACKENDS[label].package.load_predictor(tmp_path, batch_size=2)
    encoded = None if use == "feature" else PLACES
    exact = forward(config, perturbed_arrays(config), standard, mask=MASK, positions=encoded)
    assert_near(found.logits(inputs, mask=MASK, positions=PLACES), exact)
    ragged = [
        [row[:length] for row, length in zip(array, LENGTHS, strict=True)]
        for array in (inputs, PLACES)
    ]
    assert_near(found.logits(ragged[0], positions=ragged[1]), exact)
    words = "the model was trained with positions in days, and x comes without; pass positions"
    with refused(ValueError, words):
        found.predict(inputs, mask=MASK)
    with refused(ValueError, "positions have shape (5, 6), x has (5, 7) steps; give one number"):
        found.predict(inputs, positions=PLACES[:, :6])
    with refused(ValueError, "positions do not fit the 5 sequences of the list x; give a list"):
        found.predict(ragged[0], positions=PLACES)


@each_refusal(
    {
        ValueError: {
            "config.json: unknown use of positions 'maybe'": {"positions": "maybe"},
            "config.json: unknown unit of positions None": {"positions": "encode"},
            "config.json: feature_names must be names, got [1]": {"feature_names": [1]},
        }
    }
)
def test_details_that_do_not_fit_are_refused(
    kind: type[Exception], words: str, what: Any, tmp_path: Path
) -> None:
    with refused(kind, words):
        Predictor.load(ENGINES["torch"], folder(tmp_path, **what))


@each_refusal(
    {
        ValueError: {
            "x has 2 features, but the model takes num_features=3": RAW[..., :2],
            "or (count, channels, length): turn it with x.transpose(0, 2, 1)": (
                RAW.transpose(0, 2, 1)
            ),
            "x has shape (7, 3), not (count, length, 3); give one sequence as x[None]": RAW[0],
            "sequence 1 has 2 features": [RAW[0], RAW[0, :, :2]],
            "x has no sequence": [],
            "x has no step in sequence 1": [RAW[0], RAW[0, :0]],
            "inputs are empty": RAW[:0],
            "x has a sequence of 10 steps, but encoding 'learned' has max_length=9": (
                np.zeros((1, 10, 3))
            ),
            "counted from example 2 on: inputs hold nan in example 1": (
                np.where(np.arange(5)[:, None, None] == 3, np.nan, RAW)
            ),
        },
        TypeError: {
            "x must be real numbers, got ndarray of dtype <U1": np.full((1, 2, 3), "a"),
            "x must be real numbers, got ndarray of dtype bool": RAW > 0,
            "sequence 0 is a masked array": [np.ma.masked_less(RAW[0], 0)],
            "sequence 0 must be real numbers, got NoneType": [None],
        },
    }
)
def test_what_the_model_does_not_take_is_refused(
    kind: type[Exception], words: str, what: Any, tmp_path: Path
) -> None:
    found = Predictor.load(ENGINES["torch"], folder(tmp_path), batch_size=2)
    with refused(kind, words):
        found.predict(what)
    with refused(ValueError, "mask must be bool (5, 7), True = real step, got bool (4, 7)"):
        found.predict(RAW, mask=MASK[:4])
    with refused(ValueError, "positions are given, but the model was trained on counted steps;"):
        found.predict(RAW, positions=PLACES)


@pytest.mark.parametrize("label", BACKENDS)
def test_load_says_what_it_does_not_apply(label: str, tmp_path: Path) -> None:
    package = BACKENDS[label].package
    assert "load_predictor" in package.load.__doc__
    words = "holds a standardisation of the inputs and the names of the classes, and load.. applies"
    with pytest.warns(UserWarning, match=words) as caught:
        package.load(folder(tmp_path / "with"))
    assert [warning.filename for warning in caught] == [__file__]
    package.load(folder(tmp_path / "without", standardised=False))


def test_a_run_predicts_as_its_folder_does(tmp_path: Path) -> None:
    result = train(ENGINES["torch"], CONFIG, data(), out=tmp_path)
    saved = Predictor.load(ENGINES["torch"], tmp_path)
    assert (result.predictor().predict_proba(STEPS) == saved.predict_proba(STEPS)).all()
    assert saved.class_names == data().class_names
    (tmp_path / MODEL_FOLDER / "config.json").unlink()
    words = "is a run that has no model yet; finish it with: pe resume"
    with refused(FileNotFoundError, words):
        Predictor.load(ENGINES["torch"], tmp_path)


def test_the_test_part_is_counted_by_class() -> None:
    found, part = run("torch").test, data().test
    assert found is not None
    assert part is not None
    assert part.labels is not None
    assert found.confusion.sum(axis=1).tolist() == np.bincount(part.labels, minlength=4).tolist()
    assert np.trace(found.confusion) == found.accuracy * part.count
    record = found.to_json()
    assert record["labels"] == [data().class_names[label] for label in part.labels]
