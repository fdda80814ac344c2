"""`pe parity --report`: measure the agreement and the noise floor, and write them down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pe_cli.picture import curves, draw
from pe_cli.reporting import Bar, console
from pe_core.data import Sequences, load, steps_per_epoch
from pe_core.encodings import LearnedTable
from pe_core.errors import UserValueError
from pe_core.model.config import Features, ModelConfig
from pe_core.training.backends import versions
from pe_core.training.config import TrainConfig
from pe_core.training.engine import EngineType
from pe_parity.budgets import AIM, SAME_BITS_AFTER, quantity
from pe_parity.check import ParityCheck, check_parity, default_model
from pe_parity.evidence import Section, write_sections
from pe_parity.floor import Curves, Floor, noise_floor
from pe_parity.report import TITLES, count, summary, to_json

# Enough for training to become chaotic on the dummy data and on digits.
FLOOR_STEPS: Final = 1500
ULPS: Final = 8
DROPOUT: Final = 0.1
# Handed over before its first step, a run is the other backend's run.
AT_ONCE: Final = "at step 0"
PICTURE: Final = "noise_floor.svg"


def run_report(engine_types: Mapping[str, EngineType], folder: Path, steps: int) -> int:
    """Measure, write tables and a picture into the folder, and return 1 where a budget is not
    kept.
    """
    settings = floor_settings()
    rise = max(train.warmup_steps for _, _, train in settings.values())
    if steps <= rise:
        raise UserValueError(
            f"--steps {steps} with --report must be more than {rise}, the steps in which the "
            "learning rate of digits rises"
        )
    with console.status("every name of the default model"):
        checks = check_parity(engine_types, default_model(), ("float64", "float32"))
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
        console.print(_line(name, floors[name].all_weights))
    command = "pe parity --report" + (f" --steps {steps}" if steps != FLOOR_STEPS else "")
    sections = [agreement(checks, command), floor_section(floors, command)]
    raw = {
        "agreement": {name: to_json(one.comparison) for name, one in checks.items()},
        "floor": {name: floor.to_json() for name, floor in floors.items()},
    }
    page = write_sections(folder, sections, raw)
    draw(folder / PICTURE, sections[1].curves)
    console.print(f"\nWritten to {page}")
    return 0 if all(one.passed for one in checks.values()) else 1


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


def agreement(checks: Mapping[str, ParityCheck], command: str) -> Section:
    """Return the worst distance of each quantity in each precision."""
    rows: list[list[Any]] = []
    frameworks = list(checks["float32"].comparison.rows[0].errors)
    for precision, one in checks.items():
        for row in summary(one.comparison):
            kind = quantity(row.name)
            same = kind == "weights" and precision == SAME_BITS_AFTER and one.equal is not None
            alike = [other for other in one.comparison.rows if quantity(other.name) == kind]
            left_out = sum(other.left_out for other in alike)
            rows.append([
                precision, TITLES[kind], count(one.comparison, kind), *row.errors.values(),
                row.mutual, row.bound, f"`{row.name}`", left_out,
                f"{one.equal:,} of {one.total:,}" if same else "",
            ])  # fmt: skip
    columns = [
        "precision", "compared", "names", *(f"{name} to baseline" for name in frameworks),
        "between", "bound", "worst name", "left out", "same bits in float32",
    ]  # fmt: skip
    return Section("agreement", command, columns, rows, versions())


def floor_section(floors: Mapping[str, Floor], command: str) -> Section:
    """Return the figures of each training at its last step before chaos, and its curves."""
    rows: list[list[Any]] = []
    for name, floor in floors.items():
        rows.append([name, f"all but {floor.left_out[-1]}", *_figures(floor.compared)])
        rows.append([name, "all", *_figures(floor.all_weights)])
    frameworks = next(iter(floors.values())).all_weights.exact
    columns = [
        "training", "parameters", "steps measured", "last step before chaos",
        "between the backends", *(f"{name} to float64" for name in frameworks), "one ulp",
        "backends / one ulp", f"within {AIM:g} from step", "handed over at step 0 / one ulp",
        "handed over later / one ulp",
    ]  # fmt: skip
    drawn = {name: curves(floor) for name, floor in floors.items()}
    return Section("floor", command, columns, rows, versions(), drawn)


def _changes(data: Sequences, train: TrainConfig, steps: int) -> dict[str, list[int]]:
    """Return when the runs are handed over: at the start, after a step, within an epoch, at its
    end, during the warm-up, and again and again.
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


def _before_chaos(curves: Curves) -> int:
    return (len(curves.steps) if curves.chaos is None else curves.steps.index(curves.chaos)) - 1


def _line(name: str, curves: Curves) -> str:
    """Return the distances at the last step before chaos, in words."""
    at = _before_chaos(curves)
    between = f"the frameworks differ by {curves.between[at]:.1e}, " if curves.between else ""
    exact = max(curve[at] for curve in curves.exact.values())
    chaos = f"; from step {curves.chaos:,} on training is chaotic" if curves.chaos else ""
    return (
        f"{name}: after {curves.steps[at]:,} steps {between}float32 from float64 by {exact:.1e}, "
        f"a one-ulp change by {curves.floor[at]:.1e}{chaos}."
    )


def _figures(curves: Curves) -> list[Any]:
    """Return the figures of a row of the table; ratios are the largest before chaos."""
    at = _before_chaos(curves)
    ratios = curves.worst_ratio_handed_over
    later = max((ratio for change, ratio in ratios.items() if change != AT_ONCE), default="-")
    return [
        curves.steps[-1], curves.steps[at], curves.between[at] if curves.between else "-",
        *(curve[at] for curve in curves.exact.values()), curves.floor[at], curves.worst_ratio,
        curves.settled or "none", ratios.get(AT_ONCE, "-"), later,
    ]  # fmt: skip
