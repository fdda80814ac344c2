"""`pe predict`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np

from pe_cli.options import COLUMNS, DATA, FILE, FLAT, FOLDER, FRAMEWORK, parse_columns
from pe_cli.reporting import check_json, console, write_json
from pe_core.data import DATA_NAMES, Layout, Sequences, Standardisation, load, read
from pe_core.errors import UserValueError, require_integer
from pe_core.model.config import ComputeConfig, Features, Precision
from pe_core.storage.model_directory import CONFIG_FILE, SavedModel, load_model
from pe_core.training.backends import backends, forward_type, require_backend, versions
from pe_core.training.config import TrainConfig
from pe_core.training.data_checks import check_sequences
from pe_core.training.loop import predict
from pe_core.training.run_directory import MODEL_FOLDER

LINES_SHOWN: Final = 20
BATCH_SIZE: Final = 64


@dataclass(frozen=True)
class PredictOptions:
    """Options of `pe predict`.

    Args:
        model: the folder of a run, or a model folder.
        data: a .npz, .ts, .csv or .tsv file, or built-in data, of which the test or else the
            validation part is taken.
        framework: where to compute; the first that is installed when not given.
        layout: of the arrays in an .npz file, (count, length, features) or channels-first.
        columns: of a .csv file, as in sequence=patient,label=diagnosis.
        seed: of the split of built-in data; that of the training when not given.
        precision: of the computation.
        json: write all predictions and probabilities to this file.
    """

    model: Annotated[str, FOLDER]
    _: KW_ONLY
    data: Annotated[str, DATA]
    framework: Annotated[str | None, FRAMEWORK] = None
    layout: Layout = "steps-first"
    columns: Annotated[str | None, COLUMNS] = None
    seed: int | None = None
    precision: Precision = ComputeConfig.precision
    json: Annotated[str | None, FILE] = None


def run(options: Annotated[PredictOptions, FLAT]) -> int:
    """Classify sequences with a trained model, in any framework."""
    compute = ComputeConfig(precision=options.precision)
    framework = options.framework or _first_installed()
    require_backend(framework)
    check_json(options.json)
    folder = Path(options.model)
    folder = folder / MODEL_FOLDER if (folder / MODEL_FOLDER).is_dir() else folder
    saved = load_model(folder)
    names, standardisation, seed = _details(saved, folder / CONFIG_FILE)
    sequences = _sequences(
        options, saved, names, standardisation, seed if options.seed is None else options.seed
    )
    engine = forward_type(framework)(saved.config, saved.arrays, TrainConfig(), compute, 0)
    logits = predict(engine, sequences, min(BATCH_SIZE, sequences.count)).astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    best = shares.argmax(axis=1)
    _print(sequences, names, best, shares)
    record = {
        "model": options.model,
        "data": options.data,
        "framework": framework,
        "class_names": list(names),
        "predictions": [names[index] for index in best],
        "probabilities": shares.tolist(),
        "versions": versions(),
    }
    if sequences.labels is not None:
        record["accuracy"] = float((best == sequences.labels).mean())
        console.print(f"accuracy {record['accuracy']:.3f} over {len(best):,} sequences")
    write_json(options.json, record)
    return 0


def _first_installed() -> str:
    """Return the first backend that is installed; the first of all where none is."""
    known = backends()
    return next((name for name in known if not known[name].missing()), next(iter(known)))


def _print(
    sequences: Sequences, names: tuple[str, ...], best: np.ndarray, shares: np.ndarray
) -> None:
    width = max(len("predicted"), *map(len, names))
    console.print(
        f"sequence   {'predicted':<{width}}   "
        f"probability{'' if sequences.labels is None else '   label'}"
    )
    for number in range(min(len(best), LINES_SHOWN)):
        known = "" if sequences.labels is None else f"   {names[sequences.labels[number]]}"
        console.print(
            f"{number:8d}   {names[best[number]]:<{width}}   "
            f"{shares[number, best[number]]:11.3f}{known}"
        )
    if len(best) > LINES_SHOWN:
        console.print(f"and {len(best) - LINES_SHOWN:,} more; --json FILE writes all")


def _details(saved: SavedModel, path: Path) -> tuple[tuple[str, ...], Standardisation | None, int]:
    """Return the names of the classes, the standardisation and the seed that were saved with a
    model, checked.
    """
    names = saved.details.get("class_names") or [
        str(number) for number in range(saved.config.num_classes)
    ]
    if (
        not isinstance(names, list)
        or len({name for name in names if isinstance(name, str) and name})
        != saved.config.num_classes
    ):
        raise UserValueError(
            f"{path}: class_names must be {saved.config.num_classes} different names, got "
            f"{str(names)[:80]}; correct the file"
        )
    try:
        standardisation = _standardisation(saved)
        seed = saved.details.get("seed", 0)
        require_integer("seed", seed, 0, (1 << 63) - 1)
    except (TypeError, ValueError) as error:
        raise UserValueError(f"{path}: {error}") from None
    return tuple(names), standardisation, seed


def _feature_names(saved: SavedModel) -> tuple[str, ...]:
    names: Any = saved.details.get("feature_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserValueError(
            f"feature_names of the model must be names, got {str(names)[:80]}; correct its "
            f"{CONFIG_FILE}"
        )
    return tuple(names)


def _standardisation(saved: SavedModel) -> Standardisation | None:
    record: Any = saved.details.get("standardisation")
    if record is None:
        return None
    found, inputs = Standardisation.from_json(record), saved.config.inputs
    if not isinstance(inputs, Features) or len(found.mean) != inputs.num_features:
        raise UserValueError(
            f"the standardisation has {len(found.mean)} features, the model takes {inputs}; save "
            "the model again"
        )
    return found


def _sequences(
    options: PredictOptions,
    saved: SavedModel,
    names: tuple[str, ...],
    standardisation: Standardisation | None,
    seed: int,
) -> Sequences:
    require_integer("seed", seed, 0, (1 << 63) - 1)
    if options.data in DATA_NAMES:
        data = load(options.data, seed=seed, layout=options.layout)
        sequences = data.test or data.validation
        check_sequences(saved.config, sequences, options.data)
        if data.class_names != names:
            found = f"the classes {', '.join(data.class_names)}, the model has {', '.join(names)}"
            raise UserValueError(
                f"{options.data} has {found}; give the data that the model was trained for"
            )
        return sequences
    sequences = read(
        options.data,
        class_names=names,
        standardisation=standardisation,
        layout=options.layout,
        columns=parse_columns(options.columns),
        positions=saved.details.get("positions", "ignore"),
        positions_unit=saved.details.get("positions_unit"),
        feature_names=_feature_names(saved),
        tell=console.print,
    )
    check_sequences(saved.config, sequences, options.data)
    return sequences
