"""`pe predict`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Final

import numpy as np

from pe_cli.data_source import parse_columns
from pe_cli.options import COLUMNS, DATA, FILE, FLAT, FOLDER, FRAMEWORK
from pe_cli.reporting import check_json, console, require_positive, write_json
from pe_core.data import DATA_NAMES, Layout, Sequences, load
from pe_core.encodings.additive import OverLength
from pe_core.errors import UserValueError, require_integer
from pe_core.model.config import ComputeConfig, Precision
from pe_core.training.backends import backends, forward_type, require_backend, set_threads, versions
from pe_core.training.data_checks import check_sequences
from pe_core.training.predictor import Predictor, softmax

LINES_SHOWN: Final = 20


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
        over_length: what a learned table does with steps beyond it; as the model says when not
            given.
        threads: of the processor; as many as the framework takes when not given.
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
    over_length: OverLength | None = None
    threads: int | None = None
    json: Annotated[str | None, FILE] = None


def run(options: Annotated[PredictOptions, FLAT]) -> int:
    """Classify sequences with a trained model, in any framework."""
    compute = ComputeConfig(precision=options.precision)
    framework = options.framework or _first_installed()
    require_backend(framework)
    check_json(options.json)
    require_positive(threads=options.threads)
    make = forward_type(framework)
    set_threads(make, options.threads)
    predictor = Predictor.load(
        make, options.model, compute=compute, over_length=options.over_length
    )
    names = predictor.class_names
    sequences = _sequences(options, predictor)
    logits = predictor.logits_of(sequences, options.data)
    shares, best = softmax(logits), logits.argmax(axis=1)
    _print(sequences, names, best, shares)
    record = {
        "model": options.model,
        "data": options.data,
        "framework": framework,
        "class_names": list(names),
        "predictions": predictor.named(logits).tolist(),
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


def _sequences(options: PredictOptions, predictor: Predictor) -> Sequences:
    """Return the sequences to classify, standardised as in training."""
    seed = predictor.seed if options.seed is None else options.seed
    require_integer("seed", seed, 0, (1 << 63) - 1)
    names = predictor.class_names
    if options.data in DATA_NAMES:
        columns = parse_columns(options.columns)
        data = load(options.data, seed=seed, layout=options.layout, columns=columns)
        sequences = data.test or data.validation or data.train
        check_sequences(predictor.config, sequences, options.data)
        if data.class_names != names:
            found = f"the classes {', '.join(data.class_names)}, the model has {', '.join(names)}"
            raise UserValueError(
                f"{options.data} has {found}; give the data that the model was trained for"
            )
        return sequences
    return predictor.read(
        options.data,
        layout=options.layout,
        columns=parse_columns(options.columns),
        tell=console.print,
    )
