"""`pe resume`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

from pe_cli.data_source import Source
from pe_cli.options import DATA, FILE, FLAT, FOLDER, FRAMEWORK
from pe_cli.reporting import TrainReporter, check_json, console, require_positive
from pe_cli.train import conclude
from pe_core.data import DATA_NAMES, Dataset, steps_per_epoch
from pe_core.errors import (
    UnknownEncodingError,
    UserFileNotFoundError,
    UserValueError,
    require_one_of,
)
from pe_core.model.config import ComputeConfig, ModelConfig
from pe_core.storage.model_directory import is_saved
from pe_core.storage.strict_json import read_object
from pe_core.training.backends import backends, engine_type, require_backend, set_threads
from pe_core.training.config import TrainConfig
from pe_core.training.loop import train
from pe_core.training.run_directory import (
    CONFIG_FILE,
    MODEL_FOLDER,
    OTHER_DATA,
    RunDirectory,
    data_digest,
)

FIELDS: Final = {
    "model",
    "train",
    "compute",
    "data",
    "data_sha256",
    "framework",
    "source",
    "versions",
    "from",
}


@dataclass(frozen=True)
class ResumeOptions:
    """Options of `pe resume`.

    Args:
        run: folder of the run.
        framework: where to go on; where it was when not given.
        data: where the training data are now, if they have moved.
        test: where the test data are now.
        epochs: of the whole run, more or fewer than before; a finished run goes on.
        threads: of the processor; as many as the framework takes when not given.
        checkpoint_every: steps between checkpoints; the end of every epoch when not given.
        stop_at: stop with a checkpoint after so many steps since the beginning of the run.
        json: write the figures of the run to this file.
    """

    run: Annotated[str, FOLDER]
    _: KW_ONLY
    framework: Annotated[str | None, FRAMEWORK] = None
    data: Annotated[str | None, DATA] = None
    test: Annotated[str | None, FILE] = None
    epochs: int | None = None
    threads: int | None = None
    checkpoint_every: int | None = None
    stop_at: int | None = None
    json: Annotated[str | None, FILE] = None


def run(options: Annotated[ResumeOptions, FLAT]) -> int:
    """Go on with a run that stopped, or with more epochs, in either framework."""
    check_json(options.json)
    require_positive(
        epochs=options.epochs,
        threads=options.threads,
        checkpoint_every=options.checkpoint_every,
        stop_at=options.stop_at,
    )
    directory = RunDirectory(Path(options.run))
    record = directory.config()
    try:
        config, settings = (
            ModelConfig.from_json(record["model"]),
            TrainConfig.from_json(record["train"]),
        )
        compute, source = ComputeConfig(**record["compute"]), Source.from_run(record)
        if "framework" in record:
            require_one_of("framework", record["framework"], tuple(backends()))
        framework = options.framework or record.get("framework")
        if unknown := set(record) - FIELDS:
            raise UserValueError(f"unknown field {min(unknown)[:40]!r}")
    except UnknownEncodingError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserValueError(
            f"{directory.path / CONFIG_FILE} is not that of a run ({error}); correct it"
        ) from None
    unsaid = [] if framework else ["--framework"]
    if "source" not in record and options.data is None and source.data not in DATA_NAMES:
        unsaid.append("--data")
    if framework is None or unsaid:
        raise UserValueError(
            f"{options.run} does not say where to go on, as a run from Python; give "
            f"{' and '.join(unsaid)}"
        )
    require_backend(framework)
    epochs = settings.epochs if options.epochs is None else options.epochs
    if _finished_epochs(directory.path, settings) == epochs:
        raise UserValueError(
            f"{options.run} is finished after {epochs} {'epoch' if epochs == 1 else 'epochs'}, its "
            f"model is in {directory.path / MODEL_FOLDER}; go on with pe resume {options.run} "
            f"--epochs {2 * epochs}, or predict with pe predict {options.run} --data FILE"
        )
    settings = replace(settings, epochs=epochs)
    moved = {name: getattr(options, name) for name in ("data", "test") if getattr(options, name)}
    source = replace(source, **moved)
    # The name of a file that was renamed stays that of the run.
    data = replace(_load(source, settings.seed), name=str(record["data"]))
    _require_same_data(data, source, record)
    make = engine_type(framework)
    set_threads(make, options.threads)
    console.print(f"{options.run}: going on in {framework} with {data.name}")
    total = settings.epochs * steps_per_epoch(
        data.train.count, min(settings.batch_size, data.train.count)
    )
    held_out = data.validation is not None
    with TrainReporter(settings.epochs, total, "training", validation=held_out) as reporter:
        result = train(
            make,
            config,
            data,
            train_config=settings,
            compute=compute,
            reporter=reporter,
            out=directory.path,
            description={"source": source.to_json()},
            checkpoint_every=options.checkpoint_every,
            stop_at=options.stop_at,
            resume=True,
        )
    return conclude(result, framework, data.name, directory.path, options.json)


def _load(source: Source, seed: int) -> Dataset:
    try:
        return source.load(seed)
    except UserFileNotFoundError as error:
        raise UserFileNotFoundError(
            f"{error}; where the data have moved, give --data, and --test for a test file"
        ) from None


def _finished_epochs(run: Path, settings: TrainConfig) -> int | None:
    """Return after how many epochs the model of a run was saved; None where there is none."""
    if not is_saved(run / MODEL_FOLDER):
        return None
    found = read_object(run / MODEL_FOLDER / CONFIG_FILE).get("epochs", settings.epochs)
    return found if isinstance(found, int) else settings.epochs


def _require_same_data(data: Dataset, source: Source, record: dict[str, Any]) -> None:
    found, expected = data_digest(data), record.get("data_sha256")
    if found != expected:
        raise UserValueError(
            f"{source.data}: not the data of the run (data_sha256 is {found[:12]}..., the run has "
            f"{str(expected)[:12]}...){OTHER_DATA}; give the file that it was trained on"
        )
