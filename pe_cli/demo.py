"""`pe demo`: from one seed, the same training in every framework, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pe_cli.engines import engine_types
from pe_cli.options import FILE, FLAT, FOLDER
from pe_cli.reporting import TrainReporter, check_json, console, run_folder, write_json
from pe_core.data import dummy, order, steps_per_epoch
from pe_core.encodings import EncodingOptions, LearnedTable, Sinusoidal
from pe_core.model.config import Features, ModelConfig
from pe_core.training.backends import backends, versions
from pe_core.training.config import TrainConfig
from pe_core.training.engine import EngineType
from pe_core.training.loop import TrainResult, train
from pe_parity.budgets import quantity
from pe_parity.check import check_parity, default_model
from pe_parity.report import TITLES, failure_line, summary

ORDER_TRAINING = TrainConfig(epochs=18, learning_rate=2e-3)


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of `pe demo`.

    Args:
        seed: of everything.
        out: where the files of the runs go; runs/demo when not given.
        json: write every figure to this file.
    """

    seed: int = 0
    out: Annotated[str | None, FOLDER] = None
    json: Annotated[str | None, FILE] = None


def run(options: Annotated[DemoOptions, FLAT] = DemoOptions()) -> int:
    """Train one model in every framework, side by side, and show that they agree."""
    settings = TrainConfig(seed=options.seed)
    check_json(options.json)
    out = run_folder(options.out, "demo")
    engines, known, found = engine_types(), backends(), versions()
    titles = ", ".join(known[name].title() for name in engines)
    console.print(f"{titles}, {found['cores']} cores; seed {options.seed}\n")
    results = _dummy(engines, settings, out)
    accuracies = _order(engines, options.seed)
    passed, figures = _parity(engines, options.seed)
    folders = " and ".join(str(out / name) for name in engines)
    console.print(f"Files: {folders}, each with config.json, metrics.jsonl and model/.")
    first, *others = engines
    if others:
        console.print(
            f"A model moves between the frameworks as it is: pe predict {out / first} --data dummy "
            f"--framework {others[0]}"
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
    engines: dict[str, EngineType], settings: TrainConfig, out: Path
) -> dict[str, TrainResult]:
    """Train on random labels in every framework and print the epochs side by side."""
    console.heading(
        "1. The dummy data in both frameworks",
        ": 1,000 sequences of length 10 with 16 features, random labels",
    )
    data, results = dummy(settings.seed), {}
    total = settings.epochs * steps_per_epoch(data.train.count, settings.batch_size)
    for name, engine in engines.items():
        with TrainReporter(settings.epochs, total, name, lines=False) as reporter:
            results[name] = train(
                engine,
                default_model(),
                data,
                train_config=settings,
                reporter=reporter,
                out=out / name,
                description={"framework": name, "versions": versions()},
            )
    for line in _epochs(results):
        console.print(line)
    last = next(iter(results.values())).records[-1]
    assert last.validation_accuracy is not None
    gap = last.train_accuracy - last.validation_accuracy
    console.print(
        f"Training accuracy {last.train_accuracy:.3f}, validation {last.validation_accuracy:.3f}: "
        f"a gap of {gap:.3f}. The labels are random,\n"
        "so nothing can generalise and validation stays near one half; what training gains is "
        "memory.\n"
        "'Minimal overfitting' can only mean that five epochs are too few to remember everything.\n"
    )
    return results


def _epochs(results: dict[str, TrainResult]) -> Iterator[str]:
    """Yield the epochs of all runs as a table."""
    names = list(results)
    several = len(names) > 1
    wide, narrow = 10 * len(names) + (15 if several else 2), max(8 * len(names) + 3, 16)

    def line(epoch: object, *groups: Iterable[str], apart: str) -> str:
        losses, trained, validated = groups
        left = "".join(f"{cell:<10}" for cell in losses) + (apart if several else "")
        middle = "".join(f"{cell:<8}" for cell in trained)
        right = "".join(f"{cell:<8}" for cell in validated)
        return f"{epoch:>5}   {left:<{wide}}{middle:<{narrow}}{right}".rstrip()

    yield f"{'':8}{'train loss':<{wide}}{'train accuracy':<{narrow}}validation accuracy"
    yield line("epoch", names, names, names, apart="difference")
    for epoch, found in enumerate(zip(*(one.records for one in results.values()), strict=True), 1):
        losses = [one.train_loss for one in found]
        yield line(
            epoch,
            [f"{loss:.6f}" for loss in losses],
            [f"{one.train_accuracy:.3f}" for one in found],
            [f"{one.validation_accuracy:.3f}" for one in found],
            apart=f"{max(losses) - min(losses):10.1e}",
        )


def _order(engines: dict[str, EngineType], seed: int) -> dict[str, dict[str, float]]:
    """Train on the order of two markers without and with positions and print the validation
    accuracies.
    """
    console.heading(
        "2. A task that needs positions", ": which of two markers came first? Validation accuracy"
    )
    console.print("encoding      " + "".join(f"{name:<8}" for name in engines).rstrip())
    data = order(seed)
    choices: dict[str, tuple[EncodingOptions, ...]] = {
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
        for framework, engine in engines.items():
            with TrainReporter(
                settings.epochs, total, f"{name}, {framework}", lines=False
            ) as reporter:
                result = train(engine, config, data, train_config=settings, reporter=reporter)
            accuracy = result.records[-1].validation_accuracy
            assert accuracy is not None
            found[name][framework] = accuracy
        console.print(
            f"{name:12s}  " + "".join(f"{one:<8.3f}" for one in found[name].values()).rstrip()
        )
    console.print(
        "Without positions the encoder sees a set: a sequence and the one with its markers "
        "swapped, which has\n"
        "the other label, get the same answer. That is one half, by symmetry.\n"
    )
    return found


def _parity(engines: dict[str, EngineType], seed: int) -> tuple[bool, dict[str, Any]]:
    """Compare the frameworks on the model of part 1 and print the worst of each quantity."""
    console.heading(
        "3. Are they one model?",
        " Worst relative distance, to the reference and between the frameworks",
    )
    with console.status("comparing"):
        studies = check_parity(
            engines, default_model(), ("float64", "float32"), train=TrainConfig(seed=seed)
        )
    figures: dict[str, Any] = {}
    kinds = [quantity(row.name) for row in summary(studies["float64"].comparison)]
    widths = {kind: max(len(TITLES[kind]), len("0.0e+00")) for kind in kinds}
    console.print(
        f"          {'   '.join(f'{TITLES[kind]:<{widths[kind]}}' for kind in kinds)}".rstrip()
    )
    for precision, one in studies.items():
        worst = {quantity(row.name): row.worst for row in summary(one.comparison)}
        cells = (f"{worst[kind]:<{widths[kind]}.1e}" for kind in kinds)
        console.print(f"{precision}   {'   '.join(cells)}".rstrip())
        figures[precision] = {quantity(row.name): row.worst for row in summary(one.comparison)}
        if one.comparison.first_failure is not None:
            console.print(failure_line(one.comparison.first_failure), style="red")
    exact = studies["float64"]
    console.print(
        f"After 5 epochs in float64, rounded to float32: {exact.equal:,} of {exact.total:,} "
        "weights are the same bits.\n"
    )
    return all(one.passed for one in studies.values()), figures
