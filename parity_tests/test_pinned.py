"""The numbers of version 0.1.0, which no later version may move unseen.

Version 0.1.0 wrote what lies in `pinned/`. A failure means that this version draws, orders, drops
or computes something else from the same seed, or no longer reads a model or a run of that version
as what it was. Either it is a fault, or a change of numerics that CHANGELOG.md must name; the
pinned numbers are not written again to make a test pass.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pe_flax
import pe_torch
from parity_tests.cases import ENGINES
from parity_tests.pinned import measures
from parity_tests.pinned.measures import CONFIGS, FOLDER, label
from pe_cli.main import main
from pe_core.data import epoch_order
from pe_core.model.config import ModelConfig
from pe_core.model.initial import initial_arrays
from pe_core.storage.model_directory import load_model
from pe_parity.budgets import budget, distance

PINNED = json.loads((FOLDER / "numbers.json").read_text(encoding="utf-8"))
Case = tuple[Any, ...]


def named(case: Case) -> str:
    return label(*case)


EACH = pytest.mark.parametrize("framework", ENGINES)


@pytest.mark.parametrize("seed", measures.SEEDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_initial_weights(name: str, seed: int) -> None:
    found = measures.sha256_each(initial_arrays(CONFIGS[name], seed))
    assert found == PINNED["initial_weights"][label(name, seed)]
    assert list(found) == list(PINNED["initial_weights"][label(name, seed)])


@pytest.mark.parametrize("case", measures.ORDERS, ids=named)
def test_order_of_the_data(case: Case) -> None:
    assert measures.sha256(epoch_order(*case)) == PINNED["orders"][label(*case)]


@pytest.mark.parametrize("case", measures.BATCHES, ids=named)
def test_batches(case: Case) -> None:
    assert measures.batches(*case) == PINNED["batches"][label(*case)]


@pytest.mark.parametrize("case", measures.DROPOUTS, ids=named)
def test_dropout_masks(case: measures.MaskCase) -> None:
    expected = PINNED["dropout_masks"][label(*case)]
    assert measures.masks(case) == dict.fromkeys(("shared", *ENGINES), expected)


@pytest.mark.parametrize("case", measures.DATA, ids=named)
def test_built_in_data(case: Case) -> None:
    assert measures.data_parts(*case) == PINNED["data"][label(*case)]


def require_near(found: np.ndarray, expected: Any) -> None:
    """Logits in float64 are the pinned ones but for the noise of another machine's products."""
    apart = distance(found, np.array(expected), np.array(expected))
    assert apart <= budget("head", "float64").bound, f"{apart:.2g} from the pinned logits"


@pytest.mark.parametrize("column", ["reference", *ENGINES])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits(name: str, column: str) -> None:
    found = measures.logits(column, CONFIGS[name], measures.weights(CONFIGS[name]))
    require_near(found, PINNED["logits"][name][column])


def require_ending(framework: str, arrays: dict[str, np.ndarray], pinned: dict[str, Any]) -> None:
    """Weights after training are the pinned ones: rounded to float32, everywhere; in float64 to the
    last bit with the libraries and the processor of then, and within the budget with others.
    """
    values = pinned["values_of_torch"]
    assert list(arrays) == list(values)
    apart, furthest = 0.0, ""
    for name, array in arrays.items():
        expected = measures.from_text(values[name]).reshape(array.shape)
        apart, furthest = max((apart, furthest), (distance(array, expected, expected), name))
    told = f"up to {apart:.2g} from the pinned weights of torch, in {furthest or 'none'}"
    assert measures.sha256_all(measures.rounded(arrays)) == pinned["float32"], told
    if measures.environment() == PINNED["environment"]:
        assert measures.sha256_all(arrays) == pinned["float64"][framework], told
    assert apart <= budget("weights", "float64").bound, told


@EACH
@pytest.mark.parametrize("name", measures.RUNS)
def test_weights_after_training(name: str, framework: str) -> None:
    require_ending(framework, measures.ending(framework, name), PINNED["runs"][name])


@EACH
def test_a_saved_model_is_read(framework: str) -> None:
    saved = load_model(FOLDER / "model_v1")
    assert saved.config == CONFIGS["both"]
    assert saved.details == {"class_names": ["a", "b", "c"]}
    expected = measures.sha256_each(measures.weights(CONFIGS["both"]))
    assert measures.sha256_each(saved.arrays) == expected
    logits = measures.loaded_logits(framework, FOLDER / "model_v1")
    require_near(logits, PINNED["model_v1"][framework])


@pytest.mark.parametrize("package", [pe_torch, pe_flax], ids=lambda package: package.__name__)
def test_a_saved_model_is_written_as_the_same_tensors(package: Any, tmp_path: Path) -> None:
    """Format 2 has other digests; the weights are the same bytes in the same places."""
    package.save(package.load(FOLDER / "model_v1"), tmp_path, class_names=["a", "b", "c"])
    (before, payload), after = (
        split_file(folder / "model.safetensors") for folder in (FOLDER / "model_v1", tmp_path)
    )
    assert after[1] == payload
    names = [name for name in before if name != "__metadata__"]
    assert {name: after[0][name] for name in names} == {name: before[name] for name in names}
    assert load_model(tmp_path).details == {"class_names": ["a", "b", "c"]}


def split_file(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and what follows it."""
    content = path.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:length]), content[length:]


@EACH
def test_a_stopped_run_goes_on(framework: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(FOLDER / "run_v1", run)
    before = (run / "metrics.jsonl").read_text(encoding="utf-8")
    assert main(["resume", str(run), "--framework", framework]) == 0
    require_ending(framework, load_model(run / "model").arrays, PINNED["run_v1"])
    after = (run / "metrics.jsonl").read_text(encoding="utf-8")
    assert after.startswith(before)
    kinds = [json.loads(line)["kind"] for line in after.splitlines()]
    assert kinds == 3 * [*5 * ["step"], "epoch"]


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_in_json(name: str) -> None:
    assert ModelConfig.from_json(PINNED["configs"][name]) == CONFIGS[name]
    assert CONFIGS[name].to_json() == PINNED["configs"][name]
