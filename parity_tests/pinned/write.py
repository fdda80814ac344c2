"""Write the pinned numbers: `python -m parity_tests.pinned.write` in the tree of version 0.1.0.

They are written once. A later version reads them, and does not write them again to agree.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from typing import Any

import numpy as np

import parity_tests.conftest  # noqa: F401  # the threads and the strictness of the tests
import pe_torch
from parity_tests.cases import ENGINES
from parity_tests.pinned import measures
from parity_tests.pinned.measures import CONFIGS, DROPOUTS, FOLDER, RUNS, label
from pe_cli.main import main
from pe_core.data import epoch_order
from pe_core.model.initial import initial_arrays
from pe_core.storage.model_directory import load_model

# Fifteen steps, five to an epoch, some of them clipped. The run stops inside its second epoch.
OPTIONS = (
    "train --data order --d-model 8 --num-heads 2 --num-layers 1 --d-ff 12 --dropout 0.1",
    "--epochs 3 --batch-size 200 --learning-rate 0.01 --schedule warmup_cosine --warmup-steps 3",
    "--weight-decay 0.1 --max-gradient-norm 0.15 --seed 3 --precision float64",
    "--checkpoint-every 100",
)
STOP = 7


def run(*options: str) -> None:
    assert main([*" ".join(OPTIONS).split(), *options]) == 0


def resumed(framework: str) -> dict[str, np.ndarray]:
    """The weights at the end of the stopped run, which are those of the run that never stops."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(FOLDER / "run_v1", f"{folder}/stopped")
        assert main(["resume", f"{folder}/stopped", "--framework", framework]) == 0
        run("--framework", framework, "--out", f"{folder}/whole")
        found, whole = (load_model(f"{folder}/{name}/model") for name in ("stopped", "whole"))
    ends = {measures.sha256_all(measures.rounded(model.arrays)) for model in (found, whole)}
    assert len(ends) == 1
    return found.arrays


def ending(arrays: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """What is kept of the ends of a run; rounded, those of both frameworks are one."""
    found = {framework: measures.sha256_all(of) for framework, of in arrays.items()}
    (shared,) = {measures.sha256_all(measures.rounded(of)) for of in arrays.values()}
    values = {name: measures.to_text(array) for name, array in arrays["torch"].items()}
    return {"float32": shared, "float64": found, "values_of_torch": values}


def logits(name: str) -> dict[str, Any]:
    arrays = measures.weights(CONFIGS[name])
    columns = ("reference", *ENGINES)
    return {column: measures.logits(column, CONFIGS[name], arrays).tolist() for column in columns}


def write() -> None:
    for name in ("model_v1", "run_v1"):
        shutil.rmtree(FOLDER / name, ignore_errors=True)
    model = pe_torch.from_arrays(CONFIGS["both"], measures.weights(CONFIGS["both"]))
    pe_torch.save(model, FOLDER / "model_v1", class_names=["a", "b", "c"])
    run("--framework", "torch", "--stop-at", str(STOP), "--out", str(FOLDER / "run_v1"))
    saved = FOLDER / "model_v1"
    cases = [(name, seed) for name in CONFIGS for seed in measures.SEEDS]
    drawn = {label(name, seed): initial_arrays(CONFIGS[name], seed) for name, seed in cases}
    numbers = {
        "version": "0.1.0",
        "environment": measures.environment(),
        "configs": {name: config.to_json() for name, config in CONFIGS.items()},
        "initial_weights": {case: measures.sha256_each(found) for case, found in drawn.items()},
        "orders": {label(*case): measures.sha256(epoch_order(*case)) for case in measures.ORDERS},
        "batches": {label(*case): measures.batches(*case) for case in measures.BATCHES},
        "dropout_masks": {label(*case): measures.masks(case)["shared"] for case in DROPOUTS},
        "data": {label(*case): measures.data_parts(*case) for case in measures.DATA},
        "logits": {name: logits(name) for name in CONFIGS},
        "model_v1": {of: measures.loaded_logits(of, saved).tolist() for of in ENGINES},
        "runs": {name: ending({of: measures.ending(of, name) for of in ENGINES}) for name in RUNS},
        "run_v1": ending({of: resumed(of) for of in ENGINES}),
    }
    text = json.dumps(numbers, indent=1, allow_nan=False)
    (FOLDER / "numbers.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
