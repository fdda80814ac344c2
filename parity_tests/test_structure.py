"""Imports follow the layers, the backends mirror each other, modules are short, and the wheel holds
the packages alone; each check can fail.
"""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each package and what it may import; the rules themselves stand in its ruff.toml.
MAY_IMPORT = {
    "pe_core": set(),
    "pe_torch": {"pe_core", "torch"},
    "pe_flax": {"pe_core", "jax", "jaxlib", "flax", "optax"},
    "pe_parity": {"pe_core"},
    "pe_cli": {"pe_core", "pe_parity"},
}
FRAMEWORKS = {"torch", "jax", "jaxlib", "flax", "optax"}
MAX_LINES = 400
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "base"}

# Where the backends may differ: `file: name` -> the reason.
MIRROR_EXCEPTIONS = {
    "mkl.py: ": "XLA brings its own vector functions",
    "mkl.py: choose_kernels": "XLA brings its own vector functions",
    "__init__.py: __all__": "an optimizer is a class in torch and a function in optax: Adam, adam",
    "attention.py: Attention": "nnx.tabulate cannot show a Call: private in Flax",
    "encoder.py: FeedForward": "nnx.tabulate cannot show a Call",
    "encoder.py: Block": "nnx.tabulate cannot show a Call",
    "encodings/angles.py: Frequencies": "torch.compile cannot trace how they are made",
    "layout.py: as_batch_first": "torch's convention",
    "layout.py: as_int64": "JAX by default has no int64",
    "layout.py: from_numpy": "torch takes no other byte order",
    "layers.py: zeros": "torch.empty",
    "layers.py: under_autocast": "autocast is torch's",
    "layers.py: without_autocast": "the same",
    "layers.py: widened": "one expression in each place of Flax",
    "encodings/kinds.py: bare": "nothing wraps a Flax module",
    "layers.py: fill_parameters": "the same where rngs draw, in Flax alone",
    "program.py: ": "torch compiles nothing unless it is asked to",
    "program.py: Program": "the same",
    "program.py: State": "the same",
    "program.py: program": "the same",
    "layers.py: random_seed": "Flax draws from the rngs that it is given",
    "layout.py: unwrap": "nothing wraps a Flax module",
    "layout.py: canonical_name": "the same",
    "positions.py: is_captured": "CUDA graphs are recorded by hand in torch",
    "optimizer.py: Adam": "a torch.optim.Optimizer",
    "optimizer.py: require_plain": (
        "torch keeps the options of an optimizer with its state, optax does not"
    ),
    "optimizer.py: parameter_groups": "torch tells decay by groups",
    "optimizer.py: adam": "an optax.GradientTransformation",
    "optimizer.py: AdamState": "optax keeps the state outside",
    "optimizer.py: decay_mask": "optax tells decay by a mask",
    "optimizer.py: global_norm": "torch.nn.utils.get_total_norm",
    "optimizer.py: clip_factor": "torch.nn.utils.clip_grads_with_norm_",
    "optimizer.py: make_optimizer": "a torch optimizer holds the weights, an optax one does not",
}


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def python(root: Path, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_ruff_refuses_what_a_package_may_not_import(tmp_path: Path, package: str) -> None:
    names = sorted({*MAY_IMPORT, *FRAMEWORKS, "parity_tests"} - {package})
    tables = ("pyproject.toml", f"{package}/ruff.toml")
    plant(tmp_path, {name: (ROOT / name).read_text() for name in tables})
    plant(tmp_path, {f"{package}/planted.py": "".join(f"import {name} as x\n" for name in names)})
    options = ["-m", "ruff", "check", "--no-cache", "--select=TID251", "--output-format=concise"]
    found = python(tmp_path, *options, package, code=1)
    refused = {names[int(line) - 1] for line in re.findall(r"planted\.py:(\d+):", found)}
    assert refused == set(names) - MAY_IMPORT[package]


IMPORT_ALL = """
import importlib, pkgutil, sys, {package} as package
for module in pkgutil.walk_packages(package.__path__, "{package}."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*{{name.split(".")[0] for name in sys.modules}})
"""


def loaded(root: Path, package: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after all modules of a package."""
    return set(python(root, "-c", IMPORT_ALL.format(package=package)).split())


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_loads_no_framework_but_its_own(package: str) -> None:
    assert not loaded(ROOT, package) & (
        {*MAY_IMPORT, *FRAMEWORKS} - {package, *MAY_IMPORT[package]}
    )


def test_an_import_at_run_time_is_seen(tmp_path: Path) -> None:
    files = {"jax.py": "", "pe_torch/__init__.py": "", "pe_torch/layer.py": "__import__('jax')"}
    assert "jax" in loaded(plant(tmp_path, files), "pe_torch")


def signature(function: ast.FunctionDef) -> str:
    """Names, kinds and defaults of the parameters, without what the two frameworks spell apart."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    for argument in (*named, arguments.vararg, arguments.kwarg):
        if argument:
            argument.annotation = None
    marks = [ast.unparse(mark) for mark in function.decorator_list]
    kinds = [mark for mark in marks if mark in {"property", "classmethod", "staticmethod"}]
    text = re.sub(r"\b(torch|jax\.numpy|jnp|jax)\.", "", ast.unparse(arguments))
    # Flax layers take `rngs`, where torch has a generator of its own. torch's functions are told a
    # device, XLA's make arrays where the program runs. `batch_first` is torch's convention.
    text = re.sub(r", (rngs|device|batch_first)(=\w+)?", "", text)
    return f"{' '.join(kinds)}({text})"


def interface(body: list[ast.stmt], prefix: str = "", *, record: bool = False) -> dict[str, str]:
    """Public functions, classes, methods and the fields of records, and `__all__`."""
    found = {}
    for node in body:
        match node:
            case ast.FunctionDef(name="forward" | "__call__") if prefix:
                # nnx.remat takes only what can be passed by position.
                found[f"{prefix}__call__"] = signature(node).replace("*, ", "")
            case ast.FunctionDef(name=name) if name[0] != "_" or name == "__init__":
                found[prefix + name] = signature(node)
            case ast.ClassDef(name=name) if name[0] != "_":
                marks = " ".join(map(ast.unparse, [*node.decorator_list, *node.bases]))
                fields = "dataclass" in marks or "NamedTuple" in marks
                found[name] = "record" if fields else "class"
                found |= interface(node.body, f"{name}.", record=fields)
            case ast.AnnAssign(target=target, value=value) if record:
                found[prefix + ast.unparse(target)] = ast.unparse(value) if value else "required"
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                found["__all__"] = ast.unparse(value)
    return found


def mirror_violations(root: Path, exceptions: dict[str, str]) -> list[str]:
    """Where the backends differ in files, `__all__` or signatures, and exceptions without need."""

    def offered(package: str) -> dict[tuple[str, str], str]:
        files = {
            str(file.relative_to(root / package)): file for file in (root / package).rglob("*.py")
        }
        return {(path, ""): "a file" for path in files} | {
            (path, name): text
            for path, file in files.items()
            for name, text in interface(ast.parse(file.read_text()).body).items()
        }

    torch, flax = offered("pe_torch"), offered("pe_flax")
    found, used = [], set()
    for path, name in sorted(torch.keys() | flax.keys()):
        one, other = (side.get((path, name), "missing") for side in (torch, flax))
        # An exception for a class holds for its members.
        entry = f"{path}: {name.split('.')[0]}"
        if one != other:
            used.add(entry)
            found += [] if entry in exceptions else [f"{path}: {name}: torch {one}, flax {other}"]
    return found + [f"{entry}: needs no exception" for entry in exceptions if entry not in used]


def test_the_backends_mirror_each_other() -> None:
    assert mirror_violations(ROOT, MIRROR_EXCEPTIONS) == []


LAYER = "class Layer:\n    def {}(self, x, *, mask{}): ...\n"
MIRRORED = {
    "pe_torch/__init__.py": "__all__ = []",
    "pe_flax/__init__.py": "__all__ = []",
    "pe_torch/layer.py": LAYER.format("forward", "=None"),
    "pe_flax/layer.py": LAYER.format("__call__", "=None"),
}
FAULTS = {
    "attention.py: : torch a file, flax missing": ("pe_torch/attention.py", ""),
    "__init__.py: __all__": ("pe_flax/__init__.py", "__all__ = ['Layer']"),
    "layer.py: Layer: torch class, flax missing": ("pe_flax/layer.py", "class Stack: ..."),
    "layer.py: Layer.__call__": ("pe_flax/layer.py", LAYER.format("__call__", "")),
}


@pytest.mark.parametrize("found", FAULTS)
def test_the_mirror_can_fail(tmp_path: Path, found: str) -> None:
    plant(tmp_path, MIRRORED)
    assert mirror_violations(tmp_path, {}) == []
    assert mirror_violations(tmp_path, {"a.py: save": ""}) == ["a.py: save: needs no exception"]
    plant(tmp_path, dict([FAULTS[found]]))
    assert any(line.startswith(found) for line in mirror_violations(tmp_path, {}))


def file_violations(root: Path) -> list[str]:
    """Modules that are too long, and those named after nothing that they hold."""
    files = [file for package in MAY_IMPORT for file in sorted((root / package).rglob("*.py"))]
    long = [file.name for file in files if len(file.read_text().splitlines()) > MAX_LINES]
    return long + [str(file) for file in files if VAGUE_NAMES & {file.stem, file.parent.name}]


def test_modules_are_short_and_named_after_what_they_hold(tmp_path: Path) -> None:
    assert file_violations(ROOT) == []
    plant(tmp_path, {"pe_core/data.py": "\n" * (MAX_LINES + 1), "pe_flax/misc/__init__.py": ""})
    assert len(file_violations(tmp_path)) == 2


def test_the_wheel_holds_the_packages_and_nothing_else(tmp_path: Path) -> None:
    python(ROOT, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    names, planted = zipfile.ZipFile(wheel).namelist(), ["scripts/a.py", "pe_core/ruff.toml"]
    wanted = re.compile(rf"({'|'.join(MAY_IMPORT)})/.*(\.py|py\.typed)|[^/]+\.dist-info/.*")
    assert [name for name in [*names, *planted] if not wanted.fullmatch(name)] == planted
    assert {f"{package}/__init__.py" for package in MAY_IMPORT} < set(names)
