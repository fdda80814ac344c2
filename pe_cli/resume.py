"""`pe resume`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pe_cli.options import FILE, FLAT, FOLDER, FRAMEWORK, parse_columns
from pe_cli.reporting import TrainReporter, check_json, console, require_positive
from pe_cli.train import conclude
from pe_core.data import load, steps_per_epoch
from pe_core.errors import UnknownEncodingError, UserValueError, require_one_of
from pe_core.model.config import ComputeConfig, ModelConfig
from pe_core.storage.model_directory import is_saved
from pe_core.training.backends import backends, engine_type, require_backend
from pe_core.training.config import TrainConfig
from pe_core.training.loop import train
from pe_core.training.run_directory import CONFIG_FILE, MODEL_FOLDER, RunDirectory

FIELDS: Final = {
    "model",
    "train",
    "compute",
    "data",
    "data_sha256",
    "framework",
    "source",
    "versions",
}


@dataclass(frozen=True)
class ResumeOptions:
    """Options of `pe resume`.

    Args:
        run: folder of the run.
        framework: where to go on; where it was when not given.
        checkpoint_every: steps between checkpoints; the end of every epoch when not given.
        stop_at: stop with a checkpoint after so many steps since the beginning of the run.
        json: write the figures of the run to this file.
    """

    run: Annotated[str, FOLDER]
    _: KW_ONLY
    framework: Annotated[str | None, FRAMEWORK] = None
    checkpoint_every: int | None = None
    stop_at: int | None = None
    json: Annotated[str | None, FILE] = None


def run(options: Annotated[ResumeOptions, FLAT]) -> int:
    """Go on with a run that stopped, in either framework."""
    check_json(options.json)
    require_positive(checkpoint_every=options.checkpoint_every, stop_at=options.stop_at)
    directory = RunDirectory(Path(options.run))
    record = directory.config()
    try:
        config, settings = (
            ModelConfig.from_json(record["model"]),
            TrainConfig.from_json(record["train"]),
        )
        compute, source = ComputeConfig(**record["compute"]), _source(record["source"])
        require_one_of("framework", record["framework"], tuple(backends()))
        framework = options.framework or record["framework"]
        if unknown := set(record) - FIELDS:
            raise UserValueError(f"unknown field {min(unknown)[:40]!r}")
    except UnknownEncodingError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserValueError(
            f"{directory.path / CONFIG_FILE} is not that of a run ({error}); correct it"
        ) from None
    require_backend(framework)
    if is_saved(directory.path / MODEL_FOLDER):
        raise UserValueError(
            f"{options.run} is finished, its model is in {directory.path / MODEL_FOLDER}; train "
            "again for another run"
        )
    data = load(
        source["data"],
        test=source["test"],
        seed=settings.seed,
        layout=source.get("layout", "steps-first"),
        columns=parse_columns(source.get("columns")),
        positions=source.get("positions", "encode"),
        tell=console.print,
    )
    make = engine_type(framework)
    console.print(f"{options.run}: going on in {framework} with {data.name}")
    total = settings.epochs * steps_per_epoch(
        data.train.count, min(settings.batch_size, data.train.count)
    )
    with TrainReporter(settings.epochs, total, "training") as reporter:
        result = train(
            make,
            config,
            data,
            train_config=settings,
            compute=compute,
            reporter=reporter,
            out=directory.path,
            checkpoint_every=options.checkpoint_every,
            stop_at=options.stop_at,
            resume=True,
        )
    return conclude(result, framework, data.name, directory.path, options.json)


def _source(record: Any) -> dict[str, Any]:
    if (
        not isinstance(record, dict)
        or not isinstance(record.get("data"), str)
        or not all(isinstance(record.get(name), str | None) for name in ("test", "columns"))
    ):
        raise UserValueError(f"source is {str(record)[:80]}")
    return record
