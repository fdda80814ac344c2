"""What was read is said in a line; data that look wrong are told, and ordinary ones are not."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pe_core.data import DataWarning, load

RANDOM = np.random.default_rng(0)
LABELS = np.arange(60) % 2


def noise(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape)


def saved(folder: Path, name: str, arrays: dict[str, Any]) -> Path:
    path = folder / f"{name}.npz"
    np.savez(path, **{"y": LABELS[: len(arrays["X"])]} | arrays)
    return path


WALK = {"X": noise(60, 20, 3) * [1.0, 5.0, 100.0]}
MASKED = np.arange(5) < np.arange(60)[:, None] % 2 + 3
# The training file, what the test file has otherwise, and what is told; None = nothing.
TOLD: dict[str, tuple[dict[str, Any], dict[str, Any] | None, str | None]] = {
    "channels of noise": ({"X": noise(60, 6, 100)}, None, "length 6 with 100 .*channels-first"),
    "one channel": ({"X": noise(60, 1, 100)}, None, "length 1 with 100 .*channels-first"),
    "many channels that are smooth": (
        {"X": noise(1200, 6, 100).cumsum(axis=2), "y": np.arange(1200) % 2},
        None,
        "length 6 with 100 .*channels-first",
    ),
    "a feature of many sensors": ({"X": noise(60, 14, 96).cumsum(axis=1)}, None, None),
    "twelve coefficients": ({"X": noise(60, 29, 12), "lengths": 7 + LABELS * 22}, None, None),
    "six channels": ({"X": noise(60, 100, 6)}, {"X": noise(60, 100, 6)}, None),
    "a series of integers": (
        {"X": RANDOM.integers(0, 31_800, (60, 24))},
        None,
        "1,440 steps of a vocabulary of 31,.* inputs.astype",
    ),
    "words": ({"X": RANDOM.integers(0, 100, (60, 24))}, None, None),
    "a masked array": (
        {"X": np.where(MASKED[..., None], noise(60, 5, 2), 1e20)},
        None,
        "180 .* 1e20, which numpy.ma",
    ),
    "its mask": ({"X": np.where(MASKED[..., None], 1.0, 1e20), "mask": MASKED}, None, None),
    "another unit": (
        WALK,
        {"X": WALK["X"] * 1000},
        r"feature 0 \(and 2 more\) .*the units and the",
    ),
    "another place": (WALK, {"X": WALK["X"] + [0, 0, 900]}, "feature 2 has mean .*the units and"),
    "other lengths": (
        WALK,
        {"X": np.tile(WALK["X"], (1, 2, 1))},
        "length of 40 or more, .* have 20;",
    ),
    "one long sequence": (WALK, {"X": WALK["X"], "lengths": 20 - 5 * LABELS}, None),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_looks_wrong_is_told(tmp_path: Path, name: str) -> None:
    arrays, changes, words = TOLD[name]
    test = None if changes is None else saved(tmp_path, "test", changes)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", DataWarning)
        load(saved(tmp_path, "train", arrays), test=test)
    lines = [str(warning.message) for warning in found]
    assert any(re.search(words, line) for line in lines) if words else lines == []
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (WALK, "60 sequences of length 20, 3 features; classes 0 (30), 1 (30); X as inputs; y as"),
        (
            {
                "X": np.arange(75)[::-1].reshape(25, 3) % 7,
                "y": np.arange(25) % 12,
                "lengths": 1 + np.arange(25) % 3,
            },
            "25 sequences of length 1 to 3, a vocabulary of 7 tokens; 12 classes of 2 to 3 each; X",
        ),
    ],
)
def test_what_was_read_is_said(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    lines: list[str] = []
    load(saved(tmp_path, "x", arrays), validation_fraction=0.5, tell=lines.append)
    assert len(lines) == 1
    assert lines[0].startswith(f"x.npz: {words}")


def test_channels_first_is_the_same_data(tmp_path: Path) -> None:
    expected = load(saved(tmp_path, "x", WALK)).train.inputs
    path = saved(tmp_path, "y", {"X": WALK["X"].swapaxes(1, 2)})
    assert np.array_equal(load(path, layout="channels-first").train.inputs, expected)
