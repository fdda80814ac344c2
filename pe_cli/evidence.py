"""`pe parity --calibrate` and `pe parity --report`: the long measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pe_cli.picture import draw_floor
from pe_cli.reporting import Bar, console
from pe_core.data import Sequences, load, steps_per_epoch
from pe_core.encodings import LearnedTable
from pe_core.errors import UserValueError
from pe_core.model.config import Features, ModelConfig
from pe_core.training.backends import versions
from pe_core.training.config import TrainConfig
from pe_core.training.engine import EngineType
from pe_parity.check import ParityCheck, check_parity, default_model
from pe_parity.evidence import Section, write_sections
from pe_parity.floor import AIM, CHAOS, Curves, Floor, noise_floor
from pe_parity.report import TITLES, count, left_out, summary, to_json

# Enough for training to become chaotic on the dummy data and on digits.
FLOOR_STEPS: Final = 1500
ULPS: Final = 8
DROPOUT: Final = 0.1
# A run that changes sides before its first step; it is the other framework's run.
AT_ONCE: Final = "at step 0"


def run_report(engine_types: Mapping[str, EngineType], folder: Path, steps: int) -> int:
    """Measure the agreement and the noise floor, write them into the folder with a picture, and
    return 1 where a budget is not kept.
    """
    settings = floor_settings()
    rise = max(train.warmup_steps for _, _, train in settings.values())
    if steps <= rise:
        raise UserValueError(
            f"--steps {steps} with --report must be more than {rise}, the steps in which the "
            "learning rate of digits rises"
        )
    with console.status("every name of the default model"):
        studies = check_parity(engine_types, default_model(), ("float64", "float32"))
    floors: dict[str, Floor] = {}
    for name, (config, data, train) in settings.items():
        with Bar(name, steps) as bar:
            changes = _changes(data, train, steps) if len(engine_types) > 1 else {}
            floors[name] = noise_floor(
                engine_types,
                config,
                data,
                train,
                steps=steps,
                ulps=ULPS,
                changes=changes,
                progress=bar,
            )
        console.print(_sentence(name, floors[name].all_weights))
    picture = draw_floor(folder / "noise_floor.svg", floors)
    if picture is None:
        console.print("The picture needs matplotlib: pip install 'positional-encoding[plot]'")
    command = "pe parity --report" + (f" --steps {steps}" if steps != FLOOR_STEPS else "")
    page = write_sections(folder, [_agreement(studies, command), _floor(floors, command, picture)])
    console.print(f"\nWritten to {page}")
    return 0 if all(one.passed for one in studies.values()) else 1


def floor_settings() -> dict[str, tuple[ModelConfig, Sequences, TrainConfig]]:
    """Return the trainings whose noise floor is measured: the demonstration's and the digits',
    without and with dropout.
    """
    digits = ModelConfig(inputs=Features(8), num_classes=10, encodings=(LearnedTable(8),))
    trainings = {
        "dummy data": (default_model(), load("dummy").train, TrainConfig()),
        "digits": (
            digits,
            load("digits").train,
            TrainConfig(learning_rate=2e-3, schedule="warmup_cosine", warmup_steps=50),
        ),
    }
    found = {}
    for name, (config, data, train) in trainings.items():
        found[name] = (config, data, train)
        found[f"{name}, dropout {DROPOUT}"] = (replace(config, dropout=DROPOUT), data, train)
    return found


def _changes(data: Sequences, train: TrainConfig, steps: int) -> dict[str, list[int]]:
    """Where the runs change sides: at the very start, after a step, in an epoch, at its end, in the
    rise, and all the time.
    """
    epoch = steps_per_epoch(data.count, train.batch_size)
    found = {
        AT_ONCE: [0],
        "at step 1": [1],
        "within an epoch": [epoch // 2],
        "at the end of an epoch": [epoch],
    }
    if train.warmup_steps:
        found["within the rise"] = [train.warmup_steps // 2]
    return found | {"every 7 steps": list(range(1, steps, 7))}


def _sentence(name: str, curves: Curves) -> str:
    """The honest sentence, at the last step before chaos."""
    at = (len(curves.steps) if curves.chaos is None else curves.steps.index(curves.chaos)) - 1
    between = f"the frameworks differ by {curves.between[at]:.1e}, " if curves.between else ""
    exact = max(curve[at] for curve in curves.exact.values())
    chaos = f"; from step {curves.chaos:,} on training is chaotic" if curves.chaos else ""
    return (
        f"{name}: after {curves.steps[at]:,} steps {between}float32 from float64 by {exact:.1e}, "
        f"a one-ulp change by {curves.floor[at]:.1e}"
        f"{chaos}."
    )


def _agreement(studies: dict[str, ParityCheck], command: str) -> Section:
    rows: list[list[Any]] = []
    frameworks = list(studies["float32"].comparison.rows[0].errors)
    for precision, one in studies.items():
        for row in summary(one.comparison):
            kind = (
                row.name.split("/")[0]
                if "/" in row.name
                else "loss"
                if row.name == "loss"
                else "tap"
            )
            rows.append(
                [
                    precision,
                    TITLES[kind],
                    count(one.comparison, kind),
                    *row.errors.values(),
                    row.mutual,
                    row.bound,
                    f"`{row.name}`",
                ]
            )
    exact = studies["float64"]
    text = [
        (
            "The model and the data of the demonstration: the worst relative distance over all "
            "names, to the referee and between the"
        ),
        (
            "frameworks. The referee of taps and loss is the reference in NumPy float64, of all "
            f"that training adds {frameworks[0]} in"
        ),
        "float64, whose gradients the tests hold against central differences of the reference.",
    ]
    if exact.equal is not None:
        rounded = "After five epochs in float64, rounded to float32,"
        text.append(
            f"{rounded} {exact.equal:,} of {exact.total:,} weights are the same bits in both "
            "frameworks."
        )
    text += [
        f"Elements of {precision} {told}."
        for precision, one in studies.items()
        if (told := left_out(one.comparison))
    ]
    details = {precision: to_json(one.comparison) for precision, one in studies.items()}
    columns = [
        "precision",
        "compared",
        "names",
        *(f"{name} to referee" for name in frameworks),
        "between",
        "bound",
        "worst name",
    ]
    return Section(
        "agreement",
        "Forward pass, gradients, Adam, a run",
        command,
        text,
        columns,
        rows,
        versions(),
        details,
    )


def _floor(floors: dict[str, Floor], command: str, picture: str | None) -> Section:
    rows: list[list[Any]] = []
    for name, floor in floors.items():
        rows.append([name, f"all but {floor.left_out[-1]}", *_figures(floor.compared)])
        rows.append([name, "all", *_figures(floor.all_weights)])
    frameworks = list(next(iter(floors.values())).all_weights.exact)
    columns = [
        "training", "weights", "steps", "between the frameworks", *(f"{name} to float64" for name in frameworks), "one ulp",
        "chaotic from step", "frameworks / one ulp", f"within {AIM:g} from step", ("changing " "sides at step " "0 / one ulp"),
        "changing sides later / one ulp",
    ]  # fmt: skip
    text = [
        *(f"- {_sentence(name, floor.all_weights)}" for name, floor in floors.items()),
        "\n\nDistances are of all weights together, as a share of the distance that they moved;",
        (
            f"one ulp is the largest of {ULPS} {frameworks[0]} runs of which one weight, drawn "
            "among "
            "all, was moved by one ulp before"
        ),
        (
            f"the first step. Training is called chaotic from where that has grown to {CHAOS:g} "
            "times the least that it ever was;"
        ),
        (
            "ratios are the largest over all steps before. The aim is that the frameworks lie "
            f"within {AIM:g} times the floor."
        ),
        (
            "Adam's first step is g / (|g| + epsilon), so a few weights whose gradient is near "
            "epsilon or its own rounding hold most of the"
        ),
        (
            "distance between any two runs at first, and one or two of them decide a ratio. So all "
            "is shown twice: with all weights, and"
        ),
        (
            "without those for which the root of Adam's second moment was at some step smaller "
            "than "
            "what the budget allows a gradient to be"
        ),
        (
            "off, as in the budgets below. Runs change sides before their first step (that is the "
            "other framework's run), right after it,"
        ),
        (
            "within and at the end of an epoch, within the rise of the rate, and every seven "
            "steps; "
            "they are compared to the run that never"
        ),
        "did.",
    ]
    details = {name: floor.to_json() for name, floor in floors.items()}
    return Section(
        "floor",
        "The noise floor of training",
        command,
        text,
        columns,
        rows,
        versions(),
        details,
        picture,
    )


def _figures(curves: Curves) -> list[Any]:
    """What the table says of curves, at the last step before chaos and as the largest ratios up to
    there.
    """
    at = (len(curves.steps) if curves.chaos is None else curves.steps.index(curves.chaos)) - 1
    changes = curves.worst_ratio_handed_over
    between = curves.between[at] if curves.between else "-"
    later = max((ratio for change, ratio in changes.items() if change != AT_ONCE), default="-")
    return [
        curves.steps[at], between, *(curve[at] for curve in curves.exact.values()), curves.floor[at], curves.chaos or "none seen",
        curves.worst_ratio, curves.settled or "none", changes.get(AT_ONCE, "-"), later,
    ]  # fmt: skip
