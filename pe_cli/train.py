"""`pe train`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

from cyclopts import Group, Parameter

from pe_cli.data_source import Source
from pe_cli.option_files import encoding_text
from pe_cli.options import COLUMNS, DATA, ENCODING, FILE, FLAT, FOLDER, FRAMEWORK
from pe_cli.reporting import (
    TrainReporter,
    check_json,
    console,
    require_positive,
    run_folder,
    write_json,
)
from pe_core.data import Dataset, Layout, UseOfPositions, steps_per_epoch
from pe_core.data.loading import VALIDATION_FRACTION
from pe_core.data.plausibility import warn
from pe_core.encodings import EncodingOptions, parse_encoding
from pe_core.errors import UserValueError
from pe_core.model.config import ComputeConfig, Features, Inputs, ModelConfig, Tokens
from pe_core.model.inputs import has_table
from pe_core.storage.model_directory import SavedModel, load_model
from pe_core.training.backends import (
    count_weights,
    engine_type,
    require_backend,
    set_threads,
    versions,
)
from pe_core.training.config import TrainConfig
from pe_core.training.data_checks import check_data
from pe_core.training.details import (
    saved_feature_names,
    saved_positions,
    saved_standardisation,
)
from pe_core.training.loop import TrainResult, train
from pe_core.training.run_directory import RunDirectory
from pe_core.training.schedule import make_schedule
from pe_core.training.start import MAX_ROWS, Lengthen, Start, start_from

VERBS: Final = {"train": "train", "validation": "validate", "test": "test"}


# What the data decide is no option; until they are read it has a value that any rule accepts.
FROM_DATA: Final = Parameter(parse=False)
UNKNOWN: Final = Features(1)


def _flat(group: str) -> Parameter:
    return Parameter(name="*", group=Group.create_ordered(group))


@dataclass(frozen=True, kw_only=True)
class ModelOptions(ModelConfig):
    """A model whose inputs, classes and encodings are known once the data are read."""

    inputs: Annotated[Inputs, FROM_DATA] = UNKNOWN
    num_classes: Annotated[int, FROM_DATA] = 2
    encodings: Annotated[tuple[EncodingOptions, ...], FROM_DATA] = ()


# cyclopts evaluates these in this module, but some were written in that of ModelConfig.
ModelOptions.__init__.__annotations__ = get_type_hints(ModelOptions, include_extras=True)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of `pe train`.

    Args:
        config: a YAML or JSON file with options, or the folder of a run, whose options are taken;
            options given here win.
        framework: where to train.
        data: built-in data (dummy, order, digits, digits64), or a file ending in .npz, .ts, .csv or
            .tsv.
        test: a second file, to test on after training.
        layout: of the arrays in .npz files, (count, length, features) or channels-first.
        columns: of .csv files, as in sequence=patient,label=diagnosis.
        positions: use of those in the files: given to the encoding, a feature, both, or none.
        validation_fraction: the share of the training examples that is held out; 0 trains on all.
        from_: begin with the weights of a saved model, the folder of a run or of a model.
        lengthen: what a table of that model gets where the data are longer: its rows interpolated,
            or new rows behind them.
        encoding: none, or a name of pe list with its options, as in learned:layers=all.
        model: the model.
        train: the run.
        compute: how it is computed.
        threads: of the processor; as many as the framework takes when not given.
        checkpoint_every: steps between checkpoints; the end of every epoch when not given.
        stop_at: stop with a checkpoint after so many steps; pe resume goes on.
        out: where the run's files go, a new or empty folder; runs/DATA-FRAMEWORK when not given.
        json: write the figures of the run to this file.
    """

    config: Annotated[str | None, FILE] = None
    framework: Annotated[str, FRAMEWORK]
    data: Annotated[str, DATA]
    test: Annotated[str | None, FILE] = None
    layout: Layout = "steps-first"
    columns: Annotated[str | None, COLUMNS] = None
    positions: UseOfPositions = "encode"
    validation_fraction: float = VALIDATION_FRACTION
    from_: Annotated[str | None, Parameter(name="--from", metavar="FOLDER")] = None
    lengthen: Lengthen | None = None
    encoding: Annotated[str, ENCODING] = "learned"
    model: Annotated[ModelOptions, _flat("Model")] = field(default_factory=ModelOptions)
    train: Annotated[TrainConfig, _flat("Training")] = field(default_factory=TrainConfig)
    compute: Annotated[ComputeConfig, _flat("Computation")] = field(default_factory=ComputeConfig)
    threads: int | None = None
    checkpoint_every: int | None = None
    stop_at: int | None = None
    out: Annotated[str | None, FOLDER] = None
    json: Annotated[str | None, FILE] = None


def model_config(options: TrainOptions, data: Dataset) -> ModelConfig:
    """Return the model that the options describe, with sizes from the data."""
    rows = data.table_length
    encoding = parse_encoding(options.encoding, max_length=min(max(rows, 1), MAX_ROWS))
    if encoding is not None and encoding.length_limit == MAX_ROWS < rows:
        raise UserValueError(
            f"{data.name} has positions up to {rows - 1:,} {data.positions_unit}, too many for a "
            f"table of encoding {encoding.name!r}; take sinusoidal or rotary, or count steps with "
            "--positions ignore"
        )
    if getattr(encoding, "over_length", "error") != "error":
        # What is longer than the training part gets no row that is never trained.
        encoding = parse_encoding(options.encoding, max_length=data.trained_length)
    inputs = (
        Tokens(data.vocab_size)
        if data.vocab_size is not None
        else Features(data.train.inputs.shape[2])
    )
    given = vars(options.model) | {
        "inputs": inputs,
        "num_classes": len(data.class_names),
        "encodings": () if encoding is None else (encoding,),
    }
    config = ModelConfig(**given)
    last = max(int(part.lengths.max()) for part in data.parts.values())
    if has_table(config.encodings) and data.train.positions is None and last > data.trained_length:
        limits = [item.length_limit or 0 for item in config.encodings]
        if max(limits) > data.trained_length:
            warn(
                f"the training part has at most {data.trained_length} steps, another part {last}: "
                f"rows {data.trained_length} to {last - 1} of the table are never trained; "
                f"--encoding {options.encoding}{',' if ':' in options.encoding else ':'}"
                "over_length=interpolate, clip or wrap reads trained ones"
            )
    return config


def started(options: TrainOptions, saved: SavedModel, data: Dataset) -> Start:
    """Return what a run begins from with `--from`.

    Raises:
        ValueError: an option says otherwise than the model.
    """
    max_length, rows = 0, min(max(data.table_length, 1), MAX_ROWS)
    encoding = parse_encoding(options.encoding or "none", max_length=rows)
    if options.encoding:
        max_length = getattr(encoding, "max_length", 0)
        own = saved.config.encodings
        if any(getattr(one, "max_length", 0) < max_length for one in own):
            own = tuple(replace(one, max_length=max_length) for one in own)  # type: ignore[type-var]
        if own != (() if encoding is None else (encoding,)):
            raise _conflict("encoding", options.encoding, options, encoding_text(saved.config))
    for name, value in vars(options.model).items():
        found = getattr(saved.config, name)
        if name not in ("inputs", "num_classes", "encodings", "dropout") and value != found:
            raise _conflict(name, value, options, found)
    return start_from(
        saved,
        data,
        seed=options.train.seed,
        dropout=options.model.dropout,
        max_length=max_length,
        lengthen=options.lengthen,
    )


def _conflict(name: str, value: Any, options: TrainOptions, found: Any) -> UserValueError:
    option = name.replace("_", "-")
    return UserValueError(
        f"--{option} {value} does not go with --from {options.from_}, whose {name} is {found}; "
        "leave it out"
    )


def run(options: Annotated[TrainOptions, FLAT]) -> int:
    """Train a sequence classifier."""
    backend = require_backend(options.framework)
    check_json(options.json)
    require_positive(
        threads=options.threads, checkpoint_every=options.checkpoint_every, stop_at=options.stop_at
    )
    saved = None if options.from_ is None else load_model(options.from_)
    if saved is None and options.lengthen is not None:
        raise UserValueError(
            f"--lengthen {options.lengthen} goes with --from, got none; leave it out"
        )
    source = Source(
        options.data,
        options.test,
        options.validation_fraction,
        options.layout,
        options.columns,
        options.positions,
    )
    source = source if saved is None else replace(source, **_of_model(saved, options.positions))
    data = source.load(options.train.seed)
    start = None if saved is None else started(options, saved, data)
    config = model_config(options, data) if start is None else start.config
    out = run_folder(options.out, f"{data.name}-{options.framework}")
    RunDirectory(out).require_free()
    weights = count_weights(config)
    steps = options.train.epochs * steps_per_epoch(data.train.count, options.train.batch_size)
    make_schedule(options.train, steps)
    check_data(config, data)
    make = engine_type(options.framework)
    set_threads(make, options.threads)
    found = versions()
    parts = ", ".join(
        f"{sequences.count:,} to {VERBS[name]}" for name, sequences in data.parts.items()
    )
    width = (
        f"{data.num_features} feature{'' if data.num_features == 1 else 's'}"
        if data.num_features is not None
        else f"{data.vocab_size} tokens"
    )
    console.print(
        f"{data.name}: {parts}; length {data.length}, {width}, {len(data.class_names)} classes"
    )
    size = f"{weights:,} weights, {steps:,} {'step' if steps == 1 else 'steps'}"
    encoding = options.encoding or "+".join(one.name for one in config.encodings) or "none"
    console.print(f"{backend.title()}, {options.compute.precision}, encoding {encoding}: {size}")
    if start is not None:
        units = "" if source.standardisation is None else " and its standardisation"
        console.print(f"beginning with the weights of {options.from_}{units}")
        for note in start.notes:
            console.print(note)
    held_out = data.validation is not None
    with TrainReporter(options.train.epochs, steps, "training", validation=held_out) as reporter:
        result = train(
            make,
            config,
            data,
            train_config=options.train,
            compute=options.compute,
            reporter=reporter,
            out=out,
            description={
                "framework": options.framework,
                "source": source.to_json(),
                "versions": found,
            }
            | _origin(options),
            initial=None if start is None else start.arrays,
            checkpoint_every=options.checkpoint_every,
            stop_at=options.stop_at,
        )
    return conclude(result, options.framework, data.name, out, options.json)


def _of_model(saved: SavedModel, use: UseOfPositions) -> dict[str, Any]:
    """Return what a source takes of the model that a run begins from."""
    unit = saved_positions(saved)[1]
    return {
        "standardisation": saved_standardisation(saved),
        "positions_unit": None if use == "ignore" else unit,
        "feature_names": saved_feature_names(saved),
    }


def _origin(options: TrainOptions) -> dict[str, Any]:
    """Return what the config of the run says of the model that it began from."""
    if options.from_ is None:
        return {}
    model = str(Path(options.from_).resolve())
    return {"from": {"from": model, "lengthen": options.lengthen}}


def conclude(result: TrainResult, framework: str, data: str, out: Path, json: str | None) -> int:
    """Print the result of a run, write it as JSON and return the exit code."""
    found = versions()
    if not result.finished:
        console.print(
            f"stopped after step {result.steps:,} with a checkpoint; go on with: pe resume {out}"
        )
        write_json(
            json,
            {
                "framework": framework,
                "data": data,
                "steps": result.steps,
                "finished": False,
                "versions": found,
            },
        )
        return 0
    last = result.records[-1]
    if result.test_accuracy is not None:
        console.print(f"test loss {result.test_loss:.4f}, accuracy {result.test_accuracy:.3f}")
    speed = (
        ""
        if math.isnan(result.seconds_per_step)
        else f"{1e3 * result.seconds_per_step:.2f} ms a step; "
    )
    console.print(f"{speed}model in {out / 'model'}, metrics in {out / 'metrics.jsonl'}")
    record = {
        "framework": framework,
        "data": data,
        "train_loss": last.train_loss,
        "train_accuracy": last.train_accuracy,
        "seconds_per_step": None
        if math.isnan(result.seconds_per_step)
        else result.seconds_per_step,
        "steps": result.steps,
        "finished": True,
        "model": str(out / "model"),
        "versions": found,
    }
    if last.validation_loss is not None:
        record["validation_loss"] = last.validation_loss
        record["validation_accuracy"] = last.validation_accuracy
    if result.test is not None:
        record |= {
            "test_loss": result.test_loss,
            "test_accuracy": result.test_accuracy,
            "test": result.test.to_json(),
        }
    write_json(json, record)
    return 0
