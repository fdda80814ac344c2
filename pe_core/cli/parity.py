"""`pe parity`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pe_core.cli.reporting import check_json, console, write_json
from pe_core.cli.wing import count_weights, engine_type, require_framework, versions
from pe_core.config import FRAMEWORKS, ModelConfig, Precision
from pe_core.encodings import ENCODINGS, parse_encoding
from pe_core.errors import require_integer, require_one_of
from pe_core.parity.report import failure_line, to_json, to_lines
from pe_core.parity.study import DEFAULT_LENGTH, Study, default_model, study
from pe_core.parity.trace import DEPTHS
from pe_core.weights import read_json

# All batches of the run are in memory at once.
MAX_STEPS: Final = 10_000


@dataclass(frozen=True)
class ParityOptions:
    """Compare the reference, PyTorch and Flax, name by name: intermediates, gradients, an Adam step, a training run.

    Args:
        config: the config.json of a model; the model of the demonstration when not given.
        encoding: none, learned or sinusoidal with options, or all for one after the other; the config's own when not given.
        depth: how far to go, to forward, gradient, step or run.
        steps: of the run; five epochs when not given.
        precision: float32 or float64; both when not given.
        json: write every figure to this file.
    """

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
        require_integer("steps", options.steps, 1, MAX_STEPS)
        if options.depth != "run":
            raise ValueError(f"--steps {options.steps} goes with --depth run, got --depth {options.depth}; leave one of them out")
    for name in FRAMEWORKS:
        require_framework(name)
    check_json(options.json)
    precisions: tuple[Precision, ...] = ("float64", "float32") if options.precision is None else (options.precision,)  # type: ignore[assignment]
    models = _models(options)
    engine_types = {name: engine_type(name) for name in FRAMEWORKS}
    passed = True
    studies: dict[str, Any] = {}
    console.print("Worst relative distance to the referee, of each framework, and between the frameworks. The referee:")
    console.print("the reference in NumPy float64 for taps and loss, torch in float64 for all that training adds.")
    for name, config in models.items():
        with console.status(f"{name}: running both frameworks"):
            found = study(engine_types, config, precisions, depth=options.depth, steps=options.steps)  # type: ignore[arg-type]
        studies[name] = {}
        for precision, one in found.items():
            console.print()
            console.heading(f"{name}, {precision}")
            for line in _lines(one):
                console.print(line, style=None if one.passed else "red")
            passed &= one.passed
            studies[name][precision] = to_json(one.comparison) | {"equal_after_rounding": one.equal, "weights": one.total}
    write_json(options.json, {"passed": passed, "depth": options.depth, "studies": studies, "versions": versions()})
    console.print(f"\n{'The frameworks agree.' if passed else 'The frameworks do not agree.'}")
    return 0 if passed else 1


def read_config(path: str) -> ModelConfig:
    """Return the config in a file: alone, or as a run or a model keeps it."""
    record = read_json(Path(path))
    try:
        return ModelConfig.from_json(record.get("model", record) if isinstance(record, dict) else record)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _lines(one: Study) -> Iterator[str]:
    yield from to_lines(one.comparison)
    if one.equal is not None:
        yield f"{one.equal:,} of {one.total:,} weights after the run are the same bits once rounded to float32"
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
    models = {name: replace(config, encodings=() if encoding is None else (encoding,)) for name, encoding in parsed.items()}
    for model in models.values():
        count_weights(model)
    return models
