"""`pe trace`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pe_cli.model_function import implementation
from pe_cli.options import FILE, FLAT, FOLDER
from pe_cli.parity import read_config
from pe_cli.reporting import check_file, console
from pe_core.errors import UserValueError, require_integer
from pe_core.model.config import ComputeConfig, Precision
from pe_core.storage.model_directory import load_model
from pe_core.training.backends import backends, count_weights, engine_type, forward_type, versions
from pe_core.training.config import TrainConfig
from pe_parity.check import default_model
from pe_parity.probe_inputs import probe_arrays, probe_batches
from pe_parity.trace import Depth, reference_trace, trace
from pe_parity.trace_file import Given, TraceFile, write_trace

REFERENCE = "reference"


@dataclass(frozen=True, kw_only=True)
class TraceOptions:
    """Options of `pe trace`.

    Args:
        impl: torch, flax, reference, or MODULE or MODULE:FUNCTION of a model of yours.
        out: the .npz file to write.
        config: the config.json of a model; the model of the demonstration when not given.
        model: the folder of a run or a model, for its config and its weights.
        seed: of the weights and of the inputs.
        masked: pad sequences on the right to different lengths.
        depth: how far to go; the reference and a module go forward.
        precision: of the computation; of a module, what it computes in.
    """

    impl: Annotated[str, Parameter(metavar="torch|flax|reference|MODULE")]
    out: Annotated[str, FILE]
    config: Annotated[str | None, FILE] = None
    model: Annotated[str | None, FOLDER] = None
    seed: int = 0
    masked: bool = True
    depth: Depth = "forward"
    precision: Precision = "float32"


def run(options: Annotated[TraceOptions, FLAT]) -> int:
    """Write every named intermediate of a model to a file: of PyTorch, Flax, the reference or a
    module of yours.
    """
    require_integer("seed", options.seed, 0, (1 << 63) - 1)
    known = backends()
    if options.impl not in known and options.depth != "forward":
        raise UserValueError(
            f"--depth {options.depth} needs --impl {' or '.join(known)}, got --impl "
            f"{options.impl}; "
            "take --depth forward"
        )
    check_file("out", options.out)
    file = _traced(options)
    write_trace(file)
    size = Path(options.out).stat().st_size / 2**20
    console.print(
        f"{options.out}: {len(file.trace)} names from {options.impl} in {file.precision}, "
        f"{size:.1f} MiB"
    )
    return 0


def _traced(options: TraceOptions) -> TraceFile:
    precision, depth = options.precision, options.depth
    given, train = _given(options)
    batches = probe_batches(
        given.config, train, None if depth == "run" else 1, masked=options.masked
    )
    given = replace(given, inputs=batches[0].inputs, mask=batches[0].mask)
    if options.impl in backends():
        compute = ComputeConfig(precision=precision)
        found = trace(
            (forward_type if depth == "forward" else engine_type)(options.impl),
            given.config,
            given.weights,
            batches,
            depth=depth,
            train=train,
            compute=compute,
        )
    elif options.impl == REFERENCE:
        found, precision = reference_trace(given.config, given.weights, batches[0]), "float64"
    else:
        found = implementation(options.impl)(given)
    about = {"impl": options.impl, "depth": depth, "seed": options.seed, "versions": versions()}
    return TraceFile(Path(options.out), found, given, precision, about)


def _given(options: TraceOptions) -> tuple[Given, TrainConfig]:
    train = TrainConfig(seed=options.seed)
    if options.model is not None:
        if options.config is not None:
            raise UserValueError(
                f"--model {options.model} has its own config, got --config {options.config} too; "
                "leave one of them out"
            )
        saved = load_model(options.model)
        config, weights = saved.config, saved.arrays
    else:
        config = default_model() if options.config is None else read_config(options.config)
        count_weights(config)
        weights = probe_arrays(config, options.seed)
    # The batch of the study follows from the config.
    return Given(
        config, weights, probe_batches(config, train, 1, masked=False)[0].inputs, None
    ), train
