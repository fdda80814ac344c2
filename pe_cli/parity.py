"""`pe parity`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

from pe_cli import calibration_report, evidence
from pe_cli.engines import engine_types, forward_types
from pe_cli.options import ENCODING, FILE, FLAT, FOLDER
from pe_cli.reporting import check_json, console, require_positive, write_json
from pe_core.encodings import ENCODINGS, parse_encoding
from pe_core.errors import UserValueError, require_integer
from pe_core.model.config import ModelConfig, Precision
from pe_core.storage.strict_json import read_json
from pe_core.training.backends import count_weights, versions
from pe_parity.calibrate import CASES
from pe_parity.check import DEFAULT_LENGTH, ParityCheck, check_parity, default_model
from pe_parity.report import failure_line, to_json, to_lines
from pe_parity.trace import Depth

# All batches of the run are in memory at once.
MAX_STEPS: Final = 10_000
# What an option means that is given without a value.
ALONE: Final = {"--calibrate": str(CASES), "--report": "docs"}


@dataclass(frozen=True, kw_only=True)
class ParityOptions:
    """Options of `pe parity`.

    Args:
        config: the config.json of a model; the model of the demonstration when not given.
        encoding: none, learned or sinusoidal with options, or all for one after the other; the
            config's own when not given.
        depth: how far to go.
        steps: of the run; five epochs when not given.
        precision: of the computation; float64 and then float32 when not given.
        calibrate: instead, measure the noise over so many random models (100 when no number is
            given) and hold the budgets against it.
        report: also measure how training drifts, some minutes, and write it all into this folder
            (docs when none is given).
        json: write every figure to this file.
    """

    config: Annotated[str | None, FILE] = None
    encoding: Annotated[str | None, ENCODING] = None
    depth: Depth = "run"
    steps: int | None = None
    precision: Precision | None = None
    calibrate: int | None = None
    report: Annotated[str | None, FOLDER] = None
    json: Annotated[str | None, FILE] = None


def run(options: Annotated[ParityOptions, FLAT] = ParityOptions()) -> int:
    """Compare the reference, PyTorch and Flax, name by name: intermediates, gradients, an Adam
    step, a training run.
    """
    if options.steps is not None:
        require_integer("steps", options.steps, 1, MAX_STEPS)
        if options.depth != "run":
            raise UserValueError(
                f"--steps {options.steps} goes with --depth run, got --depth {options.depth}; "
                "leave one of them out"
            )
    require_positive(calibrate=options.calibrate)
    _check_report(options)
    check_json(options.json)
    precisions: tuple[Precision, ...] = (
        ("float64", "float32") if options.precision is None else (options.precision,)
    )
    models = _models(options)
    if options.calibrate is not None:
        return calibration_report.run_calibration(
            engine_types(),
            options.calibrate,
            None if options.report is None else Path(options.report),
        )
    if options.report is not None:
        return evidence.run_report(
            engine_types(), Path(options.report), options.steps or evidence.FLOOR_STEPS
        )
    compared = forward_types() if options.depth == "forward" else engine_types()
    passed = True
    studies: dict[str, Any] = {}
    console.print(
        "Worst relative distance to what is exact, of each framework, and between them. Exact is:"
    )
    trained = f", {next(iter(compared))} in float64 for all that training adds"
    console.print(
        "the reference in NumPy float64 for taps and loss"
        f"{'' if options.depth == 'forward' else trained}."
    )
    for name, config in models.items():
        with console.status(f"{name}: running {' and '.join(compared)}"):
            found = check_parity(
                compared,
                config,
                precisions,
                depth=options.depth,
                steps=options.steps,
            )
        studies[name] = {}
        for precision, one in found.items():
            console.print()
            console.heading(f"{name}, {precision}")
            for line in _lines(one):
                console.print(line, style=None if one.passed else "red")
            passed &= one.passed
            studies[name][precision] = to_json(one.comparison) | {
                "equal_after_rounding": one.equal,
                "weights": one.total,
            }
    write_json(
        options.json,
        {"passed": passed, "depth": options.depth, "studies": studies, "versions": versions()},
    )
    if len(compared) == 1:
        agreement = f"{next(iter(compared))} {'keeps' if passed else 'leaves'} its budgets."
    else:
        agreement = "The frameworks agree." if passed else "The frameworks do not agree."
    console.print(f"\n{agreement}")
    return 0 if passed else 1


def _check_report(options: ParityOptions) -> None:
    """Raise one clear line where the folder of --report cannot be, or where it is given with what
    it does not go with.
    """
    if options.report is None and options.calibrate is None:
        return
    for name in ("config", "encoding", "precision", "json"):
        if getattr(options, name) is not None:
            raise UserValueError(
                f"--{name} does not go with --calibrate or --report, which choose their models "
                "themselves; leave it out"
            )
    if options.calibrate is not None and options.steps is not None:
        raise UserValueError(f"--steps {options.steps} does not go with --calibrate; leave it out")
    if options.report is not None and (
        not options.report or (Path(options.report).exists() and not Path(options.report).is_dir())
    ):
        raise UserValueError(
            f"--report needs a folder, got {options.report!r}; for example --report docs"
        )


def read_config(path: str) -> ModelConfig:
    """Return the config in a file: alone, or as a run or a model keeps it."""
    record = read_json(Path(path))
    try:
        return ModelConfig.from_json(
            record.get("model", record) if isinstance(record, dict) else record
        )
    except (TypeError, ValueError) as error:
        raise UserValueError(f"{path}: {error}") from None


def _lines(one: ParityCheck) -> Iterator[str]:
    yield from to_lines(one.comparison)
    if one.equal is not None:
        yield (
            f"{one.equal:,} of {one.total:,} weights after the run are the same bits once "
            "rounded to float32"
        )
    if one.comparison.first_failure is not None:
        yield failure_line(one.comparison.first_failure)
    elif not one.passed:
        yield "FAILED: a run in float64 must end on the same bits"


def _models(options: ParityOptions) -> dict[str, ModelConfig]:
    config = default_model()
    if options.config is not None:
        config = read_config(options.config)
    count_weights(config)
    if options.encoding is None:
        return {"+".join(encoding.name for encoding in config.encodings) or "none": config}
    names = ["none", *ENCODINGS] if options.encoding == "all" else [options.encoding]
    parsed = {name: parse_encoding(name, max_length=DEFAULT_LENGTH) for name in names}
    models = {
        name: replace(config, encodings=() if encoding is None else (encoding,))
        for name, encoding in parsed.items()
    }
    for model in models.values():
        count_weights(model)
    return models
