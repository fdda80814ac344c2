"""`pe parity`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from pe_core.cli.reporting import console, write_json
from pe_core.cli.wing import engine_type, versions
from pe_core.config import FRAMEWORKS, ModelConfig, Precision
from pe_core.encodings import ENCODINGS, parse_encoding
from pe_core.errors import require_integer, require_one_of
from pe_core.parity.report import failure_line, to_json, to_table
from pe_core.parity.study import DEFAULT_LENGTH, default_model, study
from pe_core.parity.trace import DEPTHS
from pe_core.weights import read_json


@dataclass(frozen=True)
class ParityOptions:
    """Options of `pe parity`.

    Args:
        config: the config.json of a model; the model of the demonstration when not given.
        encoding: none, learned or sinusoidal with options, or all for one after the other; the config's own when not given.
        depth: forward, gradient, step or run.
        steps: of the run; five epochs when not given.
        precision: float32 or float64; both when not given.
        json: file for every figure.
    """

    READS_CONFIG: ClassVar[bool] = False

    config: str | None = None
    encoding: str | None = None
    depth: str = "run"
    steps: int | None = None
    precision: str | None = None
    json: str | None = None


def run(options: ParityOptions) -> int:
    """Print a table for each model and precision; return 1 when anything leaves its budget."""
    require_one_of("depth", options.depth, DEPTHS)
    if options.precision is not None:
        require_one_of("precision", options.precision, ("float32", "float64"))
    if options.steps is not None:
        require_integer("steps", options.steps, 1)
    precisions: tuple[Precision, ...] = ("float64", "float32") if options.precision is None else (options.precision,)  # type: ignore[assignment]
    engine_types = {name: engine_type(name) for name in FRAMEWORKS}
    passed = True
    studies: dict[str, Any] = {}
    for name, config in _models(options).items():
        with console.status(f"{name}: running both frameworks"):
            found = study(engine_types, config, precisions, depth=options.depth, steps=options.steps)  # type: ignore[arg-type]
        studies[name] = {}
        for precision, one in found.items():
            console.print(to_table(one.comparison, f"{name}, {precision}"))
            if one.equal is not None:
                console.print(f"weights after the run, rounded to float32: {one.equal:,} of {one.total:,} the same bits")
            if one.comparison.first_failure is not None:
                console.print(failure_line(one.comparison.first_failure), style="bold red")
            elif not one.passed:
                console.print("float64 must end on the same bits", style="bold red")
            console.print()
            passed &= one.passed
            studies[name][precision] = to_json(one.comparison) | {"equal_after_rounding": one.equal, "weights": one.total}
    write_json(options.json, {"passed": passed, "depth": options.depth, "studies": studies, "versions": versions()})
    console.print("the frameworks agree" if passed else "the frameworks do not agree")
    return 0 if passed else 1


def _models(options: ParityOptions) -> dict[str, ModelConfig]:
    config = default_model()
    if options.config is not None:
        record = read_json(Path(options.config))
        config = ModelConfig.from_json(record.get("model", record) if isinstance(record, dict) else record)
    if options.encoding is None:
        return {"+".join(encoding.name for encoding in config.encodings) or "none": config}
    names = ["none", *ENCODINGS] if options.encoding == "all" else [options.encoding]
    parsed = {name: parse_encoding(name, max_length=DEFAULT_LENGTH) for name in names}
    return {name: replace(config, encodings=() if encoding is None else (encoding,)) for name, encoding in parsed.items()}
