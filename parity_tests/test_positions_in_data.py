"""Positions come from files of every format with their unit, reach the encodings of both backends
with all their digits, or become a feature; a model asks for what it was trained on.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.cases import ENGINES, perturbed_arrays, small_batch, small_config
from parity_tests.cli import TINY, Pe, pe, strict
from parity_tests.refusals import refused
from parity_tests.small_models import assert_near
from pe_core.data import Dataset, DataWarning, Sequences, load, read
from pe_core.encodings import LearnedTable, Shaw, Sinusoidal, T5Bias
from pe_core.model.config import ComputeConfig
from pe_core.training.config import TrainConfig
from pe_core.training.data_checks import check_sequences
from pe_parity.reference import forward

__all__ = ["pe"]

LENGTHS = np.array([3, 2, 3, 3])
TIMES = np.array([[0, 2, 3], [0, 4, 0], [0, 1, 2], [1, 2, 9]])
HEADER = "@timeStamps true\n@classLabel true a b\n@data\n"


def each(times: Any, pattern: str, between: str) -> list[str]:
    """A text of every real step: its sequence i, its time t."""
    rows = [
        [pattern.format(i=i, t=t) for t in row[:n]]
        for i, (row, n) in enumerate(zip(times, LENGTHS, strict=True))
    ]
    return [between.join(row) for row in rows]


def written(folder: Path, name: str, times: Any) -> Path:
    path = folder / name
    if name.endswith(".npz"):
        mask = np.arange(3) < LENGTHS[:, None]
        shape: dict[str, Any] = {"X": np.ones((4, 3, 1)), "lengths": LENGTHS, "y": np.arange(4) % 2}
        np.savez(path, positions=np.where(mask, times, 7), **shape)
    elif name.endswith(".ts"):
        lines = [f"{line}:{'ab'[i % 2]}" for i, line in enumerate(each(times, "({t},1)", ","))]
        path.write_text(HEADER + "\n".join(lines))
    else:
        column = "step" if "step" in name else "time"
        path.write_text(f"id,{column},u\n" + "\n".join(each(times, "{i},{t},1", "\n")))
    return path


DATES = [[f"2024-05-01 10:00:{t:02d}" for t in row] for row in TIMES]
FROM_FIRST = TIMES - TIMES[:, :1]
FILES: dict[str, tuple[Any, Any, str]] = {
    "x.npz": (TIMES, TIMES, "steps"),
    "x.ts": (TIMES, TIMES, "steps"),
    "step.csv": (TIMES, TIMES, "steps"),
    "time.csv": (TIMES, TIMES, "seconds"),
    "half.npz": (TIMES / 2, TIMES / 2, "seconds"),
    "half.ts": (TIMES / 2, TIMES / 2, "seconds"),
    "dates.ts": (DATES, FROM_FIRST, "seconds"),
    "dates.csv": (DATES, FROM_FIRST, "seconds"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_say_where_steps_stand(tmp_path: Path, name: str) -> None:
    times, expected, unit = FILES[name]
    told: list[str] = []
    found = read(written(tmp_path, name, times), tell=told.append)
    mask = np.arange(3) < LENGTHS[:, None]
    assert np.array_equal(np.asarray(found.positions), np.where(mask, expected, 0))
    assert f"positions in {unit}" in told[0]
    assert np.array_equal(np.asarray(found.take(np.array([2])).positions), expected[2:3])
    ignored = read(tmp_path / name, positions="ignore", tell=told.append)
    assert ignored.positions is None
    assert f"positions in {unit} not used" in told[1]
    whole, part = (
        read(tmp_path / name, positions="both"),
        read(tmp_path / name, positions="feature"),
    )
    assert np.array_equal(part.inputs[..., 1], np.where(mask, expected, 0).astype(np.float32))
    assert (part.positions, np.asarray(whole.positions).shape) == (None, (4, 3))


def test_steps_without_a_gap_are_counted(tmp_path: Path) -> None:
    counted = np.broadcast_to(np.arange(1, 4), (4, 3))
    assert read(written(tmp_path, "step.csv", counted)).positions is None
    # Where the other file has gaps, both count from 0.
    path = tmp_path / "step.csv"
    found = read(path, positions_unit="steps").positions
    assert np.asarray(found).tolist() == [[0, 1, 2], [0, 1, 0], [0, 1, 2], [0, 1, 2]]


def test_gaps_are_filled_between_times(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,time,u\na,0,1\na,1,\na,10,11\n")
    assert read(tmp_path / "x.csv").inputs.ravel().tolist() == [1, 2, 11]


def test_units_of_time_are_converted(tmp_path: Path) -> None:
    train, test = tmp_path / "a.npz", tmp_path / "b.npz"
    shape: dict[str, Any] = {"X": np.arange(24.0).reshape(8, 3, 1), "y": np.arange(8) % 2}
    times = np.arange(24.0).reshape(8, 3)
    np.savez(train, positions=times, positions_unit="minutes", **shape)
    np.savez(test, positions=times * 60_000, positions_unit="milliseconds", **shape)
    dataset = load(train, test=test)
    assert dataset.positions_unit == "minutes"
    assert dataset.test is not None
    assert np.array_equal(np.asarray(dataset.test.positions), times)
    assert dataset.table_length == 24
    np.savez(test, positions=times.astype(int), **shape)
    with refused(ValueError, "b.npz: positions are in steps, in training they were in minutes"):
        load(train, test=test)
    np.savez(test, **shape)
    with refused(ValueError, "b.npz: has no positions in minutes, as in training; add them"):
        load(train, test=test)
    with refused(ValueError, "b.npz: has no positions to make a feature of; add them"):
        load(test, positions="feature")
    np.savez(test, positions=times, positions_unit="parsecs", **shape)
    with refused(ValueError, "positions_unit must be one of steps, seconds, ... got 'parsecs'"):
        load(test)
    plain = Sequences(shape["X"], shape["y"], None, ("a", "b"))
    with refused(ValueError, "the train part of x has positions, the validation part has none"):
        Dataset("x", replace(plain, positions=times), plain)


@pytest.mark.parametrize(
    ("positions", "kind", "words"),
    [
        (np.full((2, 3), np.nan), ValueError, "positions hold nan in example 0, step 0; a real"),
        (np.full((2, 3), 1e19), ValueError, "positions hold 1e+19 in example 0, step 0; a real"),
        (np.ones((2, 2)), ValueError, "positions (2, 2) do not fit the steps; ... must be (2, 3)"),
        (np.ones((2, 3), bool), TypeError, "positions must be an array of integers or floats, got"),
        ([[0, 1, 2]] * 2, TypeError, "positions must be an array of integers or floats, got list"),
    ],
)
def test_positions_refuse(positions: Any, kind: type[Exception], words: str) -> None:
    with refused(kind, words):
        Sequences(np.ones((2, 3, 1)), positions=positions)


REFUSED_TS = """
1,2:a => , line 4, dimension 1: expected pairs such as (0,1.5)
(0,1),(1,2:a => , line 4, dimension 1: expected pairs
(0,1):(1,2):a => , line 4: dimension 2 has other times than dimension 1
(soon,1):a => , line 4: 'soon' is not a time; write a number or a date
(2024-05-01,1),(1,2):a => , line 4: '1' is no ISO date
(0,x):a => , line 4, dimension 1: 'x' is not a number
""".strip().split("\n")


@pytest.mark.parametrize("row", REFUSED_TS)
def test_timestamps_refuse(tmp_path: Path, row: str) -> None:
    line, words = row.split(" => ")
    path = tmp_path / "x.ts"
    path.write_text(HEADER + line)
    with refused(ValueError, f"{path}{words}"):
        read(path)


PLACED = Sequences(np.ones((2, 3, 3)), positions=np.array([[0.5, 4, 9], [1, 2, 3]]))


def test_encodings_that_cannot_take_positions_say_so() -> None:
    def check(*encodings: Any) -> None:
        check_sequences(small_config(encodings=encodings), PLACED, "mine")

    check(Sinusoidal(), LearnedTable(10))
    with refused(ValueError, "mine: a sequence of length 10 does not fit ... max_length 9;"):
        check(LearnedTable(9))
    with refused(TypeError, "mine has fractional positions, but encoding 'shaw' takes whole ones"):
        check(Shaw(max_distance=2))
    with pytest.warns(DataWarning, match="no encoding that would see them"):
        check()


@pytest.mark.parametrize("framework", ENGINES)
def test_engines_see_every_digit_of_positions(framework: str) -> None:
    config = small_config(encodings=(Sinusoidal(), T5Bias(num_buckets=8, max_distance=5)))
    batch, weights = small_batch(config, masked=True), perturbed_arrays(config)
    times = 1.7e9 + np.linspace(0, 40, batch.inputs.shape[0] * batch.inputs.shape[1])
    placed = replace(batch, positions=times.reshape(batch.inputs.shape[:2]))
    engine = ENGINES[framework](config, weights, TrainConfig(), ComputeConfig(), 2)
    expected = forward(config, weights, batch.inputs, mask=batch.mask, positions=placed.positions)
    assert_near(engine.predict(placed)[:4], expected[:4])
    evaluated, trained = engine.read([engine.evaluate(placed), engine.train_step(placed, 0)])
    assert_near(trained[:1], evaluated[:1], "loss")


def test_a_model_asks_for_the_positions_it_was_trained_on(pe: Pe, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"X": np.zeros((20, 4, 1)), "y": np.arange(20) % 2}
    times = np.arange(4) * (1.5 + np.arange(20) % 2)[:, None]
    np.savez("s.npz", positions=times, **shape)
    np.savez("ms.npz", positions=times * 1000, positions_unit="milliseconds", **shape)
    np.savez("none.npz", **shape)
    line = ("--encoding=sinusoidal", *TINY, "--epochs=2", "--out=run")
    pe("train", "--framework=torch", "--data=s.npz", *line, "--stop-at=1")
    pe("resume", "run", "--framework=flax")
    found = []
    for data, framework in (("s.npz", "torch"), ("ms.npz", "flax")):
        pe("predict", "run", "--data", data, "--framework", framework, "--json=x.json")
        found.append(np.array(strict((tmp_path / "x.json").read_text())["probabilities"]))
    assert_near(*found)
    assert len(np.unique(found[0].round(6), axis=0)) == 2
    words = "none.npz: has no positions in seconds, as in training; add them"
    assert pe("predict", "run", "--data=none.npz", code=2) == words


def test_a_run_goes_on_with_data_read_as_they_were(pe: Pe, tmp_path: Path) -> None:
    """By resume and --config, and by --from where the next file has another order or unit."""
    rows = [(i, t * (1.5 + 1.5 * (i % 2)), t, -t, "ab"[i % 2]) for i in range(20) for t in range(3)]
    turned = [(i, t, v, u, label) for i, t, u, v, label in rows]
    for name, header, table in (("uv", "time,u,v", rows), ("vu", "time,v,u", turned)):
        lines = [f"who,{header},label", *(",".join(map(str, row)) for row in table)]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    numbers = np.array([row[1:4] for row in rows], float).reshape(20, 3, 3)
    arrays: dict[str, Any] = {"X": numbers[..., 1:], "y": np.array(["a", "b"] * 10)}
    np.savez("ms.npz", positions=1000 * numbers[..., 0], positions_unit="milliseconds", **arrays)
    columns = "--columns=sequence=who"
    read_as = (columns, "--positions=both", "--validation-fraction=0", "--framework=torch")
    line = ("--encoding=sinusoidal", *TINY, "--epochs=2", "--data=uv.csv", "--out=run")
    pe("train", *read_as, *line, "--stop-at=1")
    assert "positions in seconds as a feature" in pe("resume", "run")
    pe("train", "--config=run", "--out=again")
    model = "model/model.safetensors"
    assert Path("run", model).read_bytes() == Path("again", model).read_bytes()
    for data, rest in (("uv.csv", [columns]), ("vu.csv", [columns]), ("ms.npz", [])):
        begun = ("--from=run", "--framework=torch", "--validation-fraction=0", "--data", data)
        pe("train", *begun, *rest, "--out", f"from-{data}")
        pe("resume", f"from-{data}", "--epochs=9")
    configs = [strict(path.read_text()) for path in tmp_path.glob("*/config.json")]
    assert [config["source"]["positions"] for config in configs] == ["both"] * 5
    assert len({config["data_sha256"] for config in configs}) == 1
