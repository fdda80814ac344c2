"""`pe parity --calibrate` and `pe parity --report`: the long measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pe_core.cli.picture import draw_floor
from pe_core.cli.reporting import Bar, console
from pe_core.cli.wing import versions
from pe_core.config import PRECISIONS, Features, ModelConfig, TrainConfig
from pe_core.data import Sequences, load, steps_per_epoch
from pe_core.encodings import LearnedTable
from pe_core.engine import EngineType
from pe_core.parity.budget import BUDGETS, LOOSE, quantity
from pe_core.parity.calibrate import CASES, Calibration, calibrate
from pe_core.parity.evidence import Section, write_sections
from pe_core.parity.floor import AIM, CHAOS, Curves, noise_floor
from pe_core.parity.report import TITLES, count, summary, to_json
from pe_core.parity.study import Study, default_model, study

# Enough for training to become chaotic on the dummy data and on digits.
FLOOR_STEPS: Final = 1500
ULPS: Final = 8
# Nobody's error against the referee is to be more than this many times the other's.
FAIR: Final = 2.0
DROPOUT: Final = 0.1
# Runs that change sides after their first step; one that does at step 0 is the other framework's.
LATER: Final = ("at step 1", "within an epoch", "at the end of an epoch", "within the rise", "every 7 steps")


def run_calibration(engine_types: Mapping[str, EngineType], cases: int, folder: Path | None) -> int:
    """Measure the noise, print what would change in the table, and return 1 where a bound does not fit the noise."""
    with Bar("random models", cases) as bar:
        found = calibrate(engine_types, cases, progress=bar)
    rows, proposals, passed = _calibrated(found)
    columns = ["quantity", "precision", "names", "noise", "worst name", "in the table", "fault", "bound", "bound / noise", ""]
    _print(columns, rows)
    for line in proposals or ["Nothing would change in pe_core/parity/budget.py."]:
        console.print(line)
    if folder is not None:
        frameworks = " and ".join(engine_types)
        text = [
            f"The largest distance, to the referee and between the frameworks ({frameworks}), over {cases} random models, weights,",
            "batches and runs. The bound must lie above the noise, at most ten times above it, and below the smallest planted fault that",
            "the precision can show. Gradients and moments are a share of their own norm or of an average weight's of their size,",
            "whichever is larger. Models with max pooling or ReLU, where rounding chooses between two gradients, are compared up to the",
            "loss and up to the gradient, the latter unless a unit fell on the other side of its kink. Where float32 updates or weights",
            "are marked too tight, single weights with a gradient near Adam's epsilon took another first step: the noise then exceeds the",
            "smallest fault, a learning rate that is one percent off, and the bound is kept although it does not hold for such models.",
        ]
        command = f"pe parity --calibrate {cases} --report"
        sections = [Section("calibration", "Budgets and the noise they come from", command, text, columns, rows, versions())]
        if len(engine_types) > 1:
            sections.append(_fairness(found, command))
        console.print(f"\nWritten to {write_sections(folder, sections)}")
    return 0 if passed else 1


def _calibrated(found: Calibration) -> tuple[list[list[Any]], list[str], bool]:
    rows: list[list[Any]] = []
    proposals, passed = [], True
    for precision in PRECISIONS:
        for kind in TITLES:
            noise = found.noise.get((kind, precision))
            if noise is None or (kind, precision) not in BUDGETS:
                continue
            entry = BUDGETS[kind, precision]  # type: ignore[index]
            verdict = "ok"
            if noise.largest > entry.bound:
                verdict, passed = "too tight", False
            elif entry.bound > LOOSE * noise.largest:
                # A few models have less noise than many.
                verdict, passed = "loose", passed and found.cases < CASES
            if noise.largest > entry.noise:
                proposals.append(f"{kind}, {precision}: noise {entry.noise:.1e} -> {noise.largest:.1e} (case {noise.case}, {noise.name})")
            ratio = entry.bound / noise.largest if noise.largest else "no noise"
            rows.append(
                [TITLES[kind], precision, noise.count, noise.largest, noise.name, entry.noise, entry.fault, entry.bound, ratio, verdict]
            )
    return rows, proposals, passed


def _fairness(found: Calibration, command: str) -> Section:
    rows: list[list[Any]] = []
    for kind, errors in found.medians().items():
        if quantity(kind) not in ("tap", "loss", "gradient"):
            continue
        (_, a), (_, b) = errors.items()
        ratio = max(a, b) / min(a, b)
        rows.append([f"`{kind}`", a, b, ratio, "fair" if ratio <= FAIR else f"{max(errors, key=errors.__getitem__)} is worse"])
    unfair = [row[0] for row in rows if row[3] > FAIR]
    text = [
        f"The median error of each framework against the float64 referee in float32, over the same {found.cases} models, for each kind",
        "of name (a star is any layer). Neither is to be more than twice the other's. The distance between the frameworks is at most the",
        "sum of both errors, by the triangle inequality.",
        f"Beyond that: {', '.join(unfair)}; elementwise functions (exp, erf) and the order of sums are the frameworks' own."
        if unfair
        else "None is.",
    ]
    names = list(next(iter(found.errors.values())))
    return Section("fairness", "Fairness", command, text, ["name", *names, "ratio", ""], rows, versions())


def run_report(engine_types: Mapping[str, EngineType], folder: Path, steps: int) -> int:
    """Measure the agreement and the noise floor, write them into the folder with a picture, and return 1 where a budget is not kept."""
    with console.status("every name of the default model"):
        studies = study(engine_types, default_model(), ("float64", "float32"))
    settings = floor_settings()
    curves: dict[str, Curves] = {}
    for name, (config, data, train) in settings.items():
        with Bar(name, steps) as bar:
            changes = _changes(data, train, steps) if len(engine_types) > 1 else {}
            curves[name] = noise_floor(engine_types, config, data, train, steps=steps, ulps=ULPS, changes=changes, progress=bar)
        console.print(_sentence(name, curves[name]))
    picture = draw_floor(folder / "noise_floor.svg", curves)
    if picture is None:
        console.print("The picture needs matplotlib: pip install 'positional-encoding[plot]'")
    command = "pe parity --report" + (f" --steps {steps}" if steps != FLOOR_STEPS else "")
    page = write_sections(folder, [_agreement(studies, command), _floor(curves, command, picture)])
    console.print(f"\nWritten to {page}")
    return 0 if all(one.passed for one in studies.values()) else 1


def floor_settings() -> dict[str, tuple[ModelConfig, Sequences, TrainConfig]]:
    """Return the trainings whose noise floor is measured: the demonstration's and the digits', without and with dropout."""
    digits = ModelConfig(inputs=Features(8), num_classes=10, encodings=(LearnedTable(8),))
    trainings = {
        "dummy data": (default_model(), load("dummy").train, TrainConfig()),
        "digits": (digits, load("digits").train, TrainConfig(learning_rate=2e-3, schedule="warmup_cosine", warmup_steps=50)),
    }
    found = {}
    for name, (config, data, train) in trainings.items():
        found[name] = (config, data, train)
        found[f"{name}, dropout {DROPOUT}"] = (replace(config, dropout=DROPOUT), data, train)
    return found


def _changes(data: Sequences, train: TrainConfig, steps: int) -> dict[str, list[int]]:
    """Where the runs change sides: at the very start, after a step, in an epoch, at its end, in the rise, and all the time."""
    epoch = steps_per_epoch(data.count, train.batch_size)
    found = {"at step 0": [0], "at step 1": [1], "within an epoch": [epoch // 2], "at the end of an epoch": [epoch]}
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
        f"{name}: after {curves.steps[at]:,} steps {between}float32 from float64 by {exact:.1e}, a one-ulp change by {curves.floor[at]:.1e}"
        f"{chaos}."
    )


def _agreement(studies: dict[str, Study], command: str) -> Section:
    rows: list[list[Any]] = []
    frameworks = list(studies["float32"].comparison.rows[0].errors)
    for precision, one in studies.items():
        for row in summary(one.comparison):
            kind = row.name.split("/")[0] if "/" in row.name else "loss" if row.name == "loss" else "tap"
            rows.append(
                [precision, TITLES[kind], count(one.comparison, kind), *row.errors.values(), row.mutual, row.bound, f"`{row.name}`"]
            )
    exact = studies["float64"]
    text = [
        "The model and the data of the demonstration: the worst relative distance over all names, to the referee and between the",
        f"frameworks. The referee of taps and loss is the reference in NumPy float64, of all that training adds {frameworks[0]} in",
        "float64, whose gradients the tests hold against central differences of the reference.",
    ]
    if exact.equal is not None:
        rounded = "After five epochs in float64, rounded to float32,"
        text.append(f"{rounded} {exact.equal:,} of {exact.total:,} weights are the same bits in both frameworks.")
    details = {precision: to_json(one.comparison) for precision, one in studies.items()}
    columns = ["precision", "compared", "names", *(f"{name} to referee" for name in frameworks), "between", "bound", "worst name"]
    return Section("agreement", "Forward pass, gradients, Adam, a run", command, text, columns, rows, versions(), details)


def _floor(curves: dict[str, Curves], command: str, picture: str | None) -> Section:
    rows: list[list[Any]] = []
    for name, one in curves.items():
        at = (len(one.steps) if one.chaos is None else one.steps.index(one.chaos)) - 1
        handed = max((ratio for change, ratio in one.worst_ratio_handed_over.items() if change in LATER), default=0.0)
        between = one.between[at] if one.between else "-"
        rows.append([
            name, one.steps[at], between, *(curve[at] for curve in one.exact.values()), one.floor[at],
            one.chaos or "none seen", one.worst_ratio, one.settled or "none", handed,
        ])  # fmt: skip
    frameworks = list(next(iter(curves.values())).exact)
    columns = [
        "training", "steps", "between the frameworks", *(f"{name} to float64" for name in frameworks), "one ulp", "chaotic from step",
        "frameworks / one ulp", f"within {AIM:g} from step", "changing sides / one ulp",
    ]  # fmt: skip
    text = [
        *(f"- {_sentence(name, one)}" for name, one in curves.items()),
        "\n\nDistances are of all weights together, as a share of the distance that they moved;",
        f"one ulp is the largest of {ULPS} {frameworks[0]} runs of which one weight, drawn among all, was moved by one ulp before",
        f"the first step. Training is called chaotic from where that has grown to {CHAOS:g} times the least that it ever was;",
        f"ratios are the largest over all steps before. The aim is that the frameworks lie within {AIM:g} times the floor.",
        "Where they do not, the first step decides: Adam moves by g / (|g| + epsilon), and a few weights whose gradient is near epsilon",
        "turn its rounding into steps; what that makes stays while all else moves on, so the ratio falls. Runs that change sides after",
        "their first step (right after it, within and at the end of an epoch, within the rise of the rate, every seven steps) are",
        "compared to the run that never did; one that changes at step 0 is the other framework's run and misses the aim where that does.",
    ]
    details = {name: one.to_json() for name, one in curves.items()}
    return Section("floor", "The noise floor of training", command, text, columns, rows, versions(), details, picture)


def _print(columns: list[str], rows: list[list[Any]]) -> None:
    table = [columns, *([f"{value:.1e}" if isinstance(value, float) else str(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        console.print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
