"""`pe train`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pe_cli.reporting import TrainReporter, check_json, console, run_folder, write_json
from pe_core.data import DATA_NAMES, Dataset, load, steps_per_epoch
from pe_core.encodings import parse_encoding
from pe_core.errors import require_integer
from pe_core.model.config import ComputeConfig, Features, ModelConfig, Tokens
from pe_core.training.backends import count_weights, engine_type, require_backend, versions
from pe_core.training.config import TrainConfig
from pe_core.training.data_checks import check_data
from pe_core.training.loop import TrainResult, train
from pe_core.training.run_directory import RunDirectory
from pe_core.training.schedule import make_schedule

VERBS: Final = {"train": "train", "validation": "validate", "test": "test"}


@dataclass(frozen=True)
class TrainOptions:
    """Train a sequence classifier.

    Args:
        framework: where to train.
        data: built-in data (dummy, order, digits, digits64), or a file ending in .npz or .ts.
        test: a second file, to test on after training.
        encoding: none, learned or sinusoidal, with options as in learned:layers=all; see pe list.
        d_model: width of a step.
        num_heads: attention heads; must divide the width.
        num_layers: encoder blocks.
        d_ff: width inside the feed-forward part; four times d_model when not given.
        norm: pre (normalise what enters a part of a block) or post (what leaves it).
        activation: gelu or relu.
        attention_bias: biases on query, key and value.
        pooling: mean, max, cls, last or attention.
        dropout: rate, from 0 to below 1.
        epochs: passes over the training part.
        batch_size: sequences in a step.
        learning_rate: the peak of the schedule.
        schedule: constant or warmup_cosine.
        warmup_steps: steps of the rise, with warmup_cosine.
        weight_decay: decoupled decay of the linear weights.
        max_gradient_norm: gradients are clipped to this norm; null clips nothing.
        optimizer: exact (the same steps in both frameworks) or stock (the framework's own).
        seed: of the initial weights, the order of the data, the dropout and the split.
        precision: float32, float64 or bfloat16.
        dropout_rng: shared (the same masks in both frameworks) or native (the framework's own).
        checkpoint_every: steps between checkpoints; the end of every epoch when not given.
        stop_at: stop with a checkpoint after so many steps; pe resume goes on.
        out: where the run's files go, a new or empty folder; runs/DATA-FRAMEWORK when not given.
        json: write the figures of the run to this file.
    """

    framework: str
    data: str
    test: str | None = None
    encoding: str = "learned"
    d_model: int = ModelConfig.d_model
    num_heads: int = ModelConfig.num_heads
    num_layers: int = ModelConfig.num_layers
    d_ff: int | None = None
    norm: str = ModelConfig.norm
    activation: str = ModelConfig.activation
    attention_bias: bool = ModelConfig.attention_bias
    pooling: str = ModelConfig.pooling
    dropout: float = ModelConfig.dropout
    epochs: int = TrainConfig.epochs
    batch_size: int = TrainConfig.batch_size
    learning_rate: float = TrainConfig.learning_rate
    schedule: str = TrainConfig.schedule
    warmup_steps: int = TrainConfig.warmup_steps
    weight_decay: float = TrainConfig.weight_decay
    max_gradient_norm: float | None = TrainConfig.max_gradient_norm
    optimizer: str = TrainConfig.optimizer
    seed: int = TrainConfig.seed
    precision: str = ComputeConfig.precision
    dropout_rng: str = ComputeConfig.dropout_rng
    checkpoint_every: int | None = None
    stop_at: int | None = None
    out: str | None = None
    json: str | None = None


def model_config(options: TrainOptions, data: Dataset) -> ModelConfig:
    """Return the model that the options describe, with sizes from the data."""
    encoding = parse_encoding(options.encoding, max_length=data.length)
    inputs = (
        Tokens(data.vocab_size)
        if data.vocab_size is not None
        else Features(data.train.inputs.shape[2])
    )
    return ModelConfig(
        inputs=inputs,
        num_classes=len(data.class_names),
        d_model=options.d_model,
        num_heads=options.num_heads,
        num_layers=options.num_layers,
        d_ff=options.d_ff,
        encodings=() if encoding is None else (encoding,),
        norm=options.norm,  # type: ignore[arg-type]  # text from outside; the config checks it
        activation=options.activation,  # type: ignore[arg-type]
        attention_bias=options.attention_bias,
        pooling=options.pooling,  # type: ignore[arg-type]
        dropout=options.dropout,
    )


def train_config(options: TrainOptions) -> TrainConfig:
    """Return the run that the options describe."""
    names = TrainConfig.__dataclass_fields__
    return TrainConfig(**{name: getattr(options, name) for name in names if hasattr(options, name)})


def run(options: TrainOptions) -> int:
    """Train, save and say what came of it."""
    compute = ComputeConfig(precision=options.precision, dropout_rng=options.dropout_rng)  # type: ignore[arg-type]
    settings = train_config(options)
    backend = require_backend(options.framework)
    check_json(options.json)
    for name, value in (
        ("checkpoint_every", options.checkpoint_every),
        ("stop_at", options.stop_at),
    ):
        if value is not None:
            require_integer(name, value, 1)
    data = load(options.data, test=options.test, seed=options.seed)
    config = model_config(options, data)
    out = run_folder(options.out, f"{data.name}-{options.framework}")
    RunDirectory(out).require_free()
    weights, steps = (
        count_weights(config),
        settings.epochs * steps_per_epoch(data.train.count, settings.batch_size),
    )
    make_schedule(settings, steps)
    check_data(config, data)
    make = engine_type(options.framework)
    found = versions()
    parts = ", ".join(
        f"{sequences.count:,} to {VERBS[name]}" for name, sequences in data.parts.items()
    )
    width = (
        f"{data.num_features} features"
        if data.num_features is not None
        else f"{data.vocab_size} tokens"
    )
    console.print(
        f"{data.name}: {parts}; length {data.length}, {width}, {len(data.class_names)} classes"
    )
    size = f"{weights:,} weights, {steps:,} {'step' if steps == 1 else 'steps'}"
    console.print(f"{backend.title()}, {options.precision}, encoding {options.encoding}: {size}")
    with TrainReporter(settings.epochs, steps, "training") as reporter:
        result = train(
            make,
            config,
            data,
            train=settings,
            compute=compute,
            reporter=reporter,
            out=out,
            description={
                "framework": options.framework,
                "source": source(options),
                "versions": found,
            },
            checkpoint_every=options.checkpoint_every,
            stop_at=options.stop_at,
        )
    return conclude(result, options.framework, data.name, out, options.json)


def source(options: TrainOptions) -> dict[str, str | None]:
    """Return where the data come from, in words that hold in another folder too."""

    def absolute(name: str | None) -> str | None:
        return name if name is None or name in DATA_NAMES else str(Path(name).resolve())

    return {"data": absolute(options.data), "test": absolute(options.test)}


def conclude(result: TrainResult, framework: str, data: str, out: Path, json: str | None) -> int:
    """Say what came of a run, and write it for machines."""
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
        "validation_loss": last.validation_loss,
        "validation_accuracy": last.validation_accuracy,
        "seconds_per_step": None
        if math.isnan(result.seconds_per_step)
        else result.seconds_per_step,
        "steps": result.steps,
        "finished": True,
        "model": str(out / "model"),
        "versions": found,
    }
    if result.test_accuracy is not None:
        record |= {"test_loss": result.test_loss, "test_accuracy": result.test_accuracy}
    write_json(json, record)
    return 0
