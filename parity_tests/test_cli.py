"""The options of the command `pe`, its help, and one clear line for each bad command line."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from parity_tests.cli import DUMMY, FRAMEWORKS, ROOT, TINY, WIDTH, Pe, files, pe, strict, table
from pe_cli import listing
from pe_cli.main import COMMANDS, make_app
from pe_core import ComputeConfig, ModelConfig, TrainConfig
from pe_core.data import DATA_NAMES
from pe_core.encodings import ENCODINGS

__all__ = ["files", "pe"]

# Frozen: to add, rename or remove an option or a field of a config is a change that users see.
OPTIONS = {
    "train": "config framework data test layout columns positions validation-fraction from lengthen"
    " encoding d-model num-heads num-layers d-ff norm activation"
    " attention-bias pooling dropout epochs batch-size learning-rate schedule warmup-steps"
    " weight-decay beta1 beta2 epsilon max-gradient-norm optimizer seed precision dropout-rng"
    " rows-per-block"
    " threads checkpoint-every stop-at out json",
    "resume": "RUN framework data test epochs threads checkpoint-every stop-at json",
    "predict": "MODEL data framework layout columns seed precision over-length threads json",
    "parity": "config encoding depth steps precision calibrate report json",
    "trace": "impl out config model seed masked depth precision",
    "compare": "A B reference precision json",
    "demo": "seed out json",
    "list": "",
}
CONFIG_FIELDS = {
    ModelConfig: "inputs num_classes d_model num_heads num_layers d_ff encodings norm activation"
    " attention_bias pooling dropout",
    TrainConfig: "epochs batch_size learning_rate schedule warmup_steps weight_decay beta1 beta2"
    " epsilon max_gradient_norm optimizer seed",
    ComputeConfig: "precision dropout_rng rows_per_block",
}


def test_options_and_fields_are_those_that_users_know() -> None:
    app = make_app()
    found = {}
    for command in COMMANDS:
        shown = [one for one in app[command].assemble_argument_collection() if one.show]
        names = [one.name.removeprefix("--") for one in shown]
        found[command] = [
            name.upper() if one.field_info.is_positional else name
            for name, one in zip(names, shown, strict=True)
        ]
    assert found == {name: options.split() for name, options in OPTIONS.items()}
    assert {kind: [field.name for field in fields(kind)] for kind in CONFIG_FIELDS} == {
        kind: names.split() for kind, names in CONFIG_FIELDS.items()
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_each_option_is(pe: Pe, command: str) -> None:
    text = pe(command, "--help")
    assert text.startswith(f"Usage: pe {command}")
    assert max(map(len, text.splitlines())) <= WIDTH
    for name in (*OPTIONS[command].split(), "import"):
        assert re.search(rf"^[* ]*(--)?{name} .*[a-z]{{2}}", text, re.MULTILINE), name


def test_help_names_every_command_and_exit_code(pe: Pe) -> None:
    text = pe("--help")
    assert re.findall(r"^ +([a-z]+)  +[A-Z]", text, re.MULTILINE) == list(COMMANDS)
    assert "70 a bug in pe" in text
    assert max(map(len, text.splitlines())) <= WIDTH


@pytest.mark.parametrize("line", ["--help", "train --help", "list"])
def test_help_and_list_import_no_framework(line: str) -> None:
    code = "import sys; from pe_cli.main import main; main(sys.argv[1:]); print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code, *line.split()],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not {"torch", "jax", "flax"} & set(found.stdout.splitlines()[-1].split())


def test_list_names_all_encodings_options_data_and_frameworks(pe: Pe) -> None:
    text = pe("list")
    assert set(DATA_NAMES) <= set(listing.DATA)
    options = {name for kind in ENCODINGS.values() for name in get_type_hints(kind.__init__)}
    for word in (*DATA_NAMES, *ENCODINGS, *options - {"return"}, *FRAMEWORKS):
        assert word in text
    assert max(map(len, text.splitlines())) <= WIDTH


@pytest.mark.parametrize(
    ("hint", "values"),
    [(bool, "true|false"), (float | None, "X|none"), (tuple[int, ...], "VALUE")],
)
def test_list_prints_an_option_of_any_type(hint: Any, values: str) -> None:
    assert listing.values(hint) == values


BAD_LINES = table("""
=> pe needs a command: train, resume, predict, parity, trace, compare, demo, list; see pe --help
trian => unknown command 'trian'; did you mean 'train'?
--framework torch => pe has no option '--framework'; options go behind a command; see pe --help
train => pe train needs --framework and --data; see pe train --help
train --data dummy => pe train needs --framework; see pe train --help
train --framwork torch --data dummy =>
    pe train has no option '--framwork'; did you mean '--framework'?
predict => pe predict needs MODEL and --data; see pe predict --help
predict x --data y z => pe predict does not know what 'z' belongs to; see pe predict --help
resume => pe resume needs RUN; see pe resume --help
resume none => none is not the folder of a run, config.json is missing; pass one that `pe train`
    wrote
resume none --stop-at soon => --stop-at must be a whole number or null, got 'soon'; see pe resume
    --help
list all => pe list does not know what 'all' belongs to; see pe list --help
train --framework troch --data dummy => unknown framework 'troch'; did you mean 'torch'?
train --framework torch --data dumy => unknown data 'dumy', the names are dummy, order, digits,
    digits64 or a path ending in .npz, .ts, .csv or .tsv; did you mean 'dummy'?
train --framework torch --data ./dummy => ./dummy: a data file must end in .npz, .ts, .csv or .tsv,
    got 'no ending'; convert it, for example with numpy.savez
predict none --data dummy => none is not a model directory, config.json is missing; pass a directory
    that save() or `pe train` wrote
parity --depth foward => --depth must be forward, gradient, step or run, got 'foward'; did you mean
    'forward'?
parity --precision float16 => --precision must be float32, float64, bfloat16 or null, got 'float16';
    did you mean 'bfloat16'?
parity --calibrate 0 => calibrate must lie in 1 .. 2147483648, got 0
parity --calibrate --encoding none => --encoding does not go with --calibrate or --report, which
    choose their models themselves; leave it out
parity --report= => --report needs a folder, got ''; for example --report docs
parity --steps 0 => steps must lie in 1 .. 10000, got 0
parity --steps 5 --depth step => --steps 5 goes with --depth run, got --depth step; leave one of
    them out
parity --config none.json => none.json does not exist; check the path
demo --seed -1 => seed must lie in 0 .. 9223372036854775807, got -1
""")
BAD_OPTIONS = table("""
--stop-at 0 => stop_at must lie in 1 .. 2147483648, got 0
--threads 0 => threads must lie in 1 .. 2147483648, got 0
--checkpoint-every -5 => checkpoint_every must lie in 1 .. 2147483648, got -5
--epoch 3 => pe train has no option '--epoch'; did you mean '--epochs'?
--class-weights=1 => pe train has no option '--class-weights'; see pe train --help
--folds 5 => pe train has no option '--folds'; see pe train --help
--model x => pe train has no option '--model'; see pe train --help
--num-classes 3 => pe train has no option '--num-classes'; see pe train --help
--lr 3 => pe train has no option '--lr'; did you mean '--learning-rate'?
--learning-rat 3 => pe train has no option '--learning-rat'; did you mean '--learning-rate'?
--heads 3 => pe train has no option '--heads'; did you mean '--num-heads'?
--max-grad-norm 3 => pe train has no option '--max-grad-norm'; did you mean '--max-gradient-norm'?
--batch 3 => pe train has no option '--batch'; did you mean '--batch-size'?
--bacth_size=3 => pe train has no option '--bacth-size'; did you mean '--batch-size'?
--epochs => --epochs needs a value; see pe train --help
--epochs two => --epochs must be a whole number, got 'two'; see pe train --help
--epochs 1.5 => --epochs must be a whole number, got '1.5'; see pe train --help
--d-ff wide => --d-ff must be a whole number or null, got 'wide'; see pe train --help
--learning-rate high => --learning-rate must be a number, got 'high'; see pe train --help
--learning-rate nan => learning_rate must be finite and lie in [0, inf], got nan
--max-gradient-norm inf => max_gradient_norm must be finite and lie in (0, inf], got inf
--attention-bias=3 => --attention-bias must be true or false, got '3'; see pe train --help
--attention-bias 3 => pe train does not know what '3' belongs to; see pe train --help
--pooling meen => --pooling must be mean, max, cls, last or attention, got 'meen'; did you mean
    'mean'?
--norm layer => --norm must be pre or post, got 'layer'; see pe train --help
--schedule cosine => --schedule must be constant or warmup_cosine, got 'cosine'; did you mean
    'warmup_cosine'?
--test dummy => a test file does not go with dummy, got dummy; leave it out, or give a training file
    too
--encoding lerned => unknown encoding 'lerned'; did you mean 'learned'? (for one of your own, give
    --import MODULE or call register first)
--encoding learned:max_len=5 => encoding 'learned' has no option 'max_len'; did you mean
    'max_length'?
--encoding learned:layers => option 'layers' of encoding 'learned' has no value; write layers=VALUE
--encoding learned:max_length=x => encoding 'learned': max_length of a learned table must be an
    integer, got 'x'
--encoding none:a=b => encoding 'none' has no options, got 'a=b'; write --encoding none
--encoding sinusoidal:base=nan => base of a sinusoidal encoding must be finite and lie in [1, inf],
    got nan
--encoding learned:max_length=5 => the train part of dummy has a sequence of 10 steps, but
    encoding 'learned' has max_length=5; train with the encoding learned:max_length=10 or
    sinusoidal, or cut the sequences, or take over_length clip, wrap, interpolate
--num-heads 3 => d_model must be divisible by num_heads, got d_model=64 and num_heads=3; the nearest
    that fits is d_model=63
--warmup-steps 5 => warmup_steps=5 needs schedule='warmup_cosine', got schedule='constant'
--schedule warmup_cosine --warmup-steps 160 => warmup_steps must be fewer than the steps of the run,
    got 160 of 160
--out= => --out needs the name of a folder, got ''; for example runs/first
--json= => --json needs the name of a file, got ''; for example result.json
--json . => --json needs the name of a file, got '.', a folder; for example result.json
--json none/x.json => the folder of --json none/x.json does not exist; make it first
--config => --config needs a value; see pe train --help
--config none.yaml => --config none.yaml: no such file; check the path
""")
BAD = BAD_LINES | {f"{DUMMY} {options}": message for options, message in BAD_OPTIONS.items()}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_one_clear_line(pe: Pe, line: str, tmp_path: Path) -> None:
    assert pe(*line.split(), code=2) == BAD[line]
    assert list(tmp_path.iterdir()) == []


HUGE = "99999999999999999999"
BAD_NUMBERS = {
    ("epochs batch_size d_model num_heads num_layers d_ff", f"0 -1 {HUGE}"): "must lie in 1 ..",
    ("seed warmup_steps", f"-1 {HUGE}"): "must lie in 0 ..",
    ("learning_rate weight_decay", "-1"): "must be finite and lie in [0, inf]",
    ("beta1 beta2", "-1 1"): "must be finite and lie in [0, 0.99999]",
    ("dropout", "-0.1 1.0"): "must be finite and lie in [0, 1)",
    ("max_gradient_norm", "0 -1"): "must be finite and lie in (0, inf]",
}


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        (name, value, rule)
        for (names, values), rule in BAD_NUMBERS.items()
        for name in names.split()
        for value in values.split()
    ],
)
def test_a_number_out_of_range_is_one_clear_line(pe: Pe, name: str, value: str, rule: str) -> None:
    found = pe(*DUMMY.split(), f"--{name}", value, code=2)
    assert found.startswith(f"{name} {rule}")
    assert re.search(rf", got {value}(\.0)?\b", found)


@pytest.mark.parametrize(
    "option", ["--d-model=100000000", "--encoding=learned:max_length=2000000000"]
)
def test_a_model_that_fits_no_machine_is_one_clear_line(pe: Pe, option: str) -> None:
    assert re.match(r"out of memory \([\d,]+ weights need ", pe(*DUMMY.split(), option, code=2))


BAD_CONFIGS = {
    "epochz: 1\n": "pe train has no option 'epochz'; did you mean 'epochs'?",
    "num_classes: 3\n": "pe train has no option 'num-classes'; ",
    "1: 2\n": "pe train has no option '1'; see pe train --help",
    "epochs: two\n": "epochs must be a whole number, got 'two'; see pe train --help",
    "epochs: [1]\n": "epochs must be a whole number, got '[1]'",
    "epochs:\n  a: 1\n": "pe train has no option 'epochs",
    "epochs: null\n": "epochs must be a whole number, got 'null'",
    "pooling: 3\n": "pooling must be mean, max, cls, last or attention, got '3'",
    "[1, 2]\n": "must hold options such as epochs: 5, got [1, 2]; write one NAME: VALUE a line",
    "": "must hold options such as epochs: 5, got nothing; write one NAME: VALUE a line",
    "epochs: [1\n": "not valid YAML or JSON",
    "epochs: \0\n": "not valid YAML or JSON",
    "epochs: \udcff\n": "not valid YAML or JSON",
    "[" * 10_000: "not valid YAML or JSON",
}


@pytest.mark.parametrize("text", BAD_CONFIGS, ids=lambda text: repr(text[:20]))
def test_a_bad_file_of_options_is_one_clear_line(pe: Pe, text: str, tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text(text, errors="surrogateescape")
    found = pe(*DUMMY.split(), "--config", "options.yaml", code=2)
    assert found.startswith(f"--config options.yaml: {BAD_CONFIGS[text]}")


@pytest.mark.parametrize("first", [True, False])
def test_a_file_of_options_yields_to_the_line(
    pe: Pe, files: Path, tmp_path: Path, first: bool
) -> None:
    (tmp_path / "options.yaml").write_text(
        "epochs: 7\nbatch-size: 11\nmax_gradient_norm: null\nlearning_rate: 1e-2\n"
        'attention_bias: true\nframework: torch\nout: "~"\n'
    )
    file, line = ("--config", "options.yaml"), (*TINY, "--data", files / "good.npz")
    pe("train", *(*file, *line) if first else (*line, *file))
    record = strict((tmp_path / "~" / "config.json").read_text())
    assert TrainConfig.from_json(record["train"]) == TrainConfig(
        epochs=1, batch_size=11, max_gradient_norm=None, learning_rate=1e-2
    )
    assert record["model"]["attention_bias"]


def test_every_field_of_a_config_is_an_option(pe: Pe, files: Path, tmp_path: Path) -> None:
    line = "--batch_size 7 --beta1 0.8 --epsilon 1e-6 --attention-bias true --out ~ --epochs 2"
    options = (*TINY[1:], "--epochs=1", *line.split(), "--dropout-rng=native", "--norm=post")
    pe("train", "--framework=torch", "--data", files / "good.npz", *options)
    record = strict((tmp_path / "~" / "config.json").read_text())
    assert record["train"] == TrainConfig(batch_size=7, beta1=0.8, epsilon=1e-6, epochs=2).to_json()
    assert record["compute"] == {"precision": "float32", "dropout_rng": "native"}
    assert (record["model"]["norm"], record["model"]["attention_bias"]) == ("post", True)


@pytest.mark.parametrize(
    ("script", "arguments"),
    [("train_torch", "--data=dumy"), ("train_flax", "--data=dumy"), ("check_parity", "--steps=0")],
)
def test_scripts_are_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, script: str, arguments: str
) -> None:
    monkeypatch.setattr(sys, "argv", [script, arguments])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
    said = "unknown data 'dumy'" if "data" in arguments else "steps must lie"
    assert capsys.readouterr().err.startswith(f"pe: error: {said}")
