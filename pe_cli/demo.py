"""`pe demo`: from one seed, the same training in both frameworks, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pe_cli.reporting import TrainReporter, check_json, console, run_folder, write_json
from pe_core.data import dummy, order, steps_per_epoch
from pe_core.encodings import Encoding, LearnedTable, Sinusoidal
from pe_core.model.config import Features, ModelConfig
from pe_core.training.backends import FRAMEWORKS, engine_type, require_framework, versions
from pe_core.training.config import TrainConfig
from pe_core.training.engine import EngineType
from pe_core.training.loop import TrainResult, train
from pe_parity.budgets import quantity
from pe_parity.check import check_parity, default_model
from pe_parity.report import TITLES, failure_line, summary

ORDER_TRAINING = TrainConfig(epochs=18, learning_rate=2e-3)


@dataclass(frozen=True)
class DemoOptions:
    """The same training in both frameworks, side by side, then the evidence that they are one
    model.

    Args:
        seed: of everything.
        out: where the files of the runs go; runs/demo when not given.
        json: write every figure to this file.
    """

    seed: int = 0
    out: str | None = None
    json: str | None = None


def run(options: DemoOptions) -> int:
    """Run the demonstration; return 1 when the frameworks do not agree."""
    settings = TrainConfig(seed=options.seed)
    for name in FRAMEWORKS:
        require_framework(name)
    check_json(options.json)
    out = run_folder(options.out, "demo")
    engine_types = {name: engine_type(name) for name in FRAMEWORKS}
    found = versions()
    console.print(
        f"torch {found['torch']}, jax {found['jax']}, flax {found['flax']}, {found['cores']} "
        f"cores; seed {options.seed}\n"
    )
    results = _dummy(engine_types, settings, out)
    accuracies = _order(engine_types, options.seed)
    passed, figures = _parity(engine_types, options.seed)
    console.print(
        f"Files: {out / 'torch'} and {out / 'flax'}, each with config.json, metrics.jsonl and "
        "model/."
    )
    console.print(
        f"A model moves between the frameworks as it is: pe predict {out / 'torch'} --data dummy "
        "--framework flax"
    )
    last = {name: result.records[-1] for name, result in results.items()}
    write_json(
        options.json,
        {
            "dummy": {
                name: {"train_loss": one.train_loss, "validation_accuracy": one.validation_accuracy}
                for name, one in last.items()
            },
            "order": accuracies,
            "parity": figures,
            "versions": found,
        },
    )
    return 0 if passed else 1


def _dummy(
    engine_types: dict[str, EngineType], settings: TrainConfig, out: Path
) -> dict[str, TrainResult]:
    """Train on random labels in every framework and print the epochs side by side."""
    console.heading(
        "1. The dummy data in both frameworks",
        ": 1,000 sequences of length 10 with 16 features, random labels",
    )
    data, results = dummy(settings.seed), {}
    total = settings.epochs * steps_per_epoch(data.train.count, settings.batch_size)
    for name, engine in engine_types.items():
        with TrainReporter(settings.epochs, total, name, lines=False) as reporter:
            results[name] = train(
                engine, default_model(), data, train=settings, reporter=reporter, out=out / name,
                description={"framework": name, "versions": versions()},
            )  # fmt: skip
    console.print(
        "        train loss                         train accuracy     validation accuracy"
    )
    console.print("epoch   torch     flax      difference     torch   flax       torch   flax")
    torch, flax = (results[name].records for name in FRAMEWORKS)
    for a, b in zip(torch, flax, strict=True):
        console.print(
            f"{a.epoch + 1:5d}   {a.train_loss:.6f}  {b.train_loss:.6f}  "
            f"{abs(a.train_loss - b.train_loss):10.1e}"
            f"     {a.train_accuracy:.3f}   {b.train_accuracy:.3f}      "
            f"{a.validation_accuracy:.3f}   {b.validation_accuracy:.3f}"
        )
    a = torch[-1]
    gap = a.train_accuracy - a.validation_accuracy
    console.print(
        f"Training accuracy {a.train_accuracy:.3f}, validation {a.validation_accuracy:.3f}: a "
        f"gap of {gap:.3f}. The labels are random,\n"
        "so nothing can generalise and validation stays near one half; what training gains is "
        "memory.\n"
        "'Minimal overfitting' can only mean that five epochs are too few to remember everything.\n"
    )
    return results


def _order(engine_types: dict[str, EngineType], seed: int) -> dict[str, dict[str, float]]:
    """Train on the order of two markers without and with positions and print the validation
    accuracies.
    """
    console.heading(
        "2. A task that needs positions", ": which of two markers came first? Validation accuracy"
    )
    console.print("encoding      torch    flax")
    data = order(seed)
    choices: dict[str, tuple[Encoding, ...]] = {
        "none": (),
        "sinusoidal": (Sinusoidal(),),
        "learned": (LearnedTable(data.length),),
    }
    settings = TrainConfig(**(ORDER_TRAINING.to_json() | {"seed": seed}))
    total = settings.epochs * steps_per_epoch(data.train.count, settings.batch_size)
    found: dict[str, dict[str, float]] = {}
    for name, encodings in choices.items():
        config = ModelConfig(inputs=Features(16), num_classes=2, encodings=encodings)
        found[name] = {}
        for framework, engine in engine_types.items():
            with TrainReporter(
                settings.epochs, total, f"{name}, {framework}", lines=False
            ) as reporter:
                result = train(engine, config, data, train=settings, reporter=reporter)
            found[name][framework] = result.records[-1].validation_accuracy
        console.print(f"{name:12s}  {found[name]['torch']:.3f}   {found[name]['flax']:.3f}")
    console.print(
        "Without positions the encoder sees a set: a sequence and the one with its markers "
        "swapped, which has\n"
        "the other label, get the same answer. That is one half, by symmetry.\n"
    )
    return found


def _parity(engine_types: dict[str, EngineType], seed: int) -> tuple[bool, dict[str, Any]]:
    """Compare the frameworks on the model of part 1 and print the worst of each quantity."""
    console.heading(
        "3. Are they one model?",
        " Worst relative distance, to the referee and between the frameworks",
    )
    with console.status("comparing"):
        studies = check_parity(
            engine_types, default_model(), ("float64", "float32"), train=TrainConfig(seed=seed)
        )
    figures: dict[str, Any] = {}
    kinds = [quantity(row.name) for row in summary(studies["float64"].comparison)]
    widths = {kind: max(len(TITLES[kind]), len("0.0e+00")) for kind in kinds}
    console.print(
        f"          {'   '.join(f'{TITLES[kind]:<{widths[kind]}}' for kind in kinds)}".rstrip()
    )
    for precision, one in studies.items():
        worst = {quantity(row.name): row.worst for row in summary(one.comparison)}
        console.print(
            f"{precision}   {'   '.join(f'{worst[kind]:<{widths[kind]}.1e}' for kind in kinds)}".rstrip()
        )
        figures[precision] = {quantity(row.name): row.worst for row in summary(one.comparison)}
        if one.comparison.first_failure is not None:
            console.print(failure_line(one.comparison.first_failure), style="red")
    exact = studies["float64"]
    console.print(
        f"After 5 epochs in float64, rounded to float32: {exact.equal:,} of {exact.total:,} "
        "weights are the same bits.\n"
    )
    return all(one.passed for one in studies.values()), figures
