"""`pe predict`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pe_core.cli.reporting import console, write_json
from pe_core.cli.wing import engine_type, missing_packages, versions
from pe_core.config import FRAMEWORKS, ComputeConfig, TrainConfig
from pe_core.data import DATA_NAMES, Sequences, Standardisation, load, read
from pe_core.training import MODEL_FOLDER, check_sequences, predict
from pe_core.weights import SavedModel, load_model

LINES_SHOWN: Final = 20
BATCH_SIZE: Final = 64


@dataclass(frozen=True)
class PredictOptions:
    """Options of `pe predict`.

    Args:
        model: a model directory, or the folder of a run.
        data: a file ending in .npz or .ts, or the name of a built-in task, of which the test or else the validation part is taken.
        framework: torch or flax; the first that is installed when not given.
        seed: of the split of a built-in task.
        precision: float32, float64 or bfloat16.
        json: file for all predictions.
    """

    model: str
    data: str
    framework: str | None = None
    seed: int = 0
    precision: str = ComputeConfig.precision
    json: str | None = None


def run(options: PredictOptions) -> int:
    """Print the class of each sequence and the accuracy where the labels are known."""
    compute = ComputeConfig(precision=options.precision)  # type: ignore[arg-type]  # text from outside; the config checks it
    make = engine_type(options.framework or next((name for name in FRAMEWORKS if not missing_packages(name)), FRAMEWORKS[0]))
    folder = Path(options.model)
    saved = load_model(folder / MODEL_FOLDER if (folder / MODEL_FOLDER).is_dir() else folder)
    names = tuple(saved.details.get("class_names") or (str(number) for number in range(saved.config.num_classes)))
    sequences = _sequences(options, saved, names)
    check_sequences(saved.config, sequences, options.data)
    engine = make(saved.config, saved.arrays, TrainConfig(), compute, 0)
    logits = predict(engine, sequences, min(BATCH_SIZE, sequences.count)).astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    best = shares.argmax(axis=1)
    for number in range(min(len(best), LINES_SHOWN)):
        known = "" if sequences.labels is None else f"   label {names[sequences.labels[number]]}"
        console.print(f"{number:6d}   {names[best[number]]}   {shares[number, best[number]]:.3f}{known}", markup=False)
    if len(best) > LINES_SHOWN:
        console.print(f"and {len(best) - LINES_SHOWN:,} more; --json FILE writes all")
    record = {
        "model": options.model,
        "data": options.data,
        "class_names": list(names),
        "predictions": [names[index] for index in best],
        "probabilities": shares.tolist(),
        "versions": versions(),
    }
    if sequences.labels is not None:
        accuracy = float((best == sequences.labels).mean())
        console.print(f"accuracy {accuracy:.3f} over {len(best):,} sequences")
        record["accuracy"] = accuracy
    write_json(options.json, record)
    return 0


def _sequences(options: PredictOptions, saved: SavedModel, names: tuple[str, ...]) -> Sequences:
    if options.data in DATA_NAMES:
        data = load(options.data, seed=options.seed)
        return data.test or data.validation
    record = saved.details.get("standardisation")
    standardisation = None if record is None else Standardisation.from_json(record)
    sequences = read(options.data, class_names=names, fill=None if standardisation is None else standardisation.mean)
    check_sequences(saved.config, sequences, options.data)
    return sequences if standardisation is None else standardisation.apply(sequences)
