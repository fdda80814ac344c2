"""The rules of the house hold, and each guard can fail."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from parity_tests import guards

ROOT = Path(__file__).resolve().parent.parent

# Where the wings may differ: `file: name` -> the reason.
MIRROR_EXCEPTIONS = {
    "__init__.py: __all__": "an optimizer is a class in torch and a function in optax: Adam, adam",
    "dropout.py: DropoutCount": "nnx keeps what changes in a variable, torch in any attribute",
    "dropout.py: dropout_keep": "torch makes a tensor on a device, XLA where the program runs",
    "layers.py: zeros": "torch.empty",
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
    """Write a small house with two equal wings, and then the given files over it."""
    good = {f"{folder}/__init__.py": "__all__ = []\n" for folder in guards.PACKAGES}
    good |= {
        "pe_core/training/backends.py": "import importlib\nimportlib.import_module(name)\n",
        "pe_core/training/__init__.py": "",
        "pe_parity/reference/__init__.py": "",
    }
    good |= {"scripts/train.py": "from pe_cli.main import main\n"}
    good |= {"pe_torch/layer.py": "class Layer:\n    def forward(self, x, *, mask=None): ...\n"}
    good |= {"pe_flax/layer.py": "class Layer:\n    def __call__(self, x, *, mask=None): ...\n"}
    for name, text in (good | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_imports_point_one_way() -> None:
    assert guards.import_violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        (
            "pe_core/data.py",
            "import numpy\ndef load():\n    import torch.utils.data\n",
            "imports torch",
        ),
        ("pe_core/data.py", "from jax import numpy\n", "imports jax"),
        (
            "pe_core/data.py",
            "import importlib\nimportlib.import_module('pe_flax')\n",
            "imports pe_flax",
        ),
        (
            "pe_core/data.py",
            (
                "from importlib import import_module as load\nfrom pe_cli.main import "
                "main\n__import__(name)\n"
            ),
            "imports ?",
        ),
        ("pe_cli/train.py", "import pe_torch\n", "imports pe_torch"),
        ("pe_torch/engine.py", "import jax.numpy as jnp\n", "imports jax.numpy"),
        ("pe_torch/engine.py", "from pe_parity import reference\n", "imports pe_parity"),
        ("pe_torch/engine.py", "from pe_flax.layer import Layer\n", "imports pe_flax.layer"),
        ("pe_flax/engine.py", "from torch import nn\n", "imports torch"),
        ("pe_flax/engine.py", "from parity_tests import guards\n", "imports parity_tests"),
        ("pe_core/__init__.py", "from pe_parity.reference import additive\n", "pe_flax -> "),
        ("scripts/train.py", "import pe_torch\n", "imports pe_torch"),
    ],
)
def test_the_import_guard_can_fail(tmp_path: Path, file: str, text: str, found: str) -> None:
    files = {"pe_flax/__init__.py": "import pe_core\n__all__ = []\n"}
    assert guards.import_violations(plant(tmp_path, files)) == []
    found = re.escape(found).replace(r"pe_flax\ \->\ ", r"pe_flax:1 -> pe_core:1 imports pe_parity")
    assert re.search(
        found, "\n".join(guards.import_violations(plant(tmp_path, files | {file: text})))
    )


@pytest.mark.parametrize("package", guards.PACKAGES)
def test_ruff_bans_the_same_names(tmp_path: Path, package: str) -> None:
    table = (ROOT / package / "ruff.toml").read_text()
    banned = tomllib.loads(table)["lint"]["flake8-tidy-imports"]["banned-api"]
    assert set(banned) == set(guards.BANNED[package])
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    planted = [f"import {name} as planted" for name in banned]
    plant(
        tmp_path,
        {
            f"{package}/ruff.toml": table,
            f"{package}/planted.py": "\n".join(["import numpy as np", *planted]),
        },
    )
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--no-cache",
        "--select",
        "TID251",
        "--output-format",
        "concise",
        package,
    ]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert re.findall(r"planted\.py:(\d+):", run.stdout) == [
        str(line) for line in range(2, len(banned) + 2)
    ], run.stdout + run.stderr


@pytest.mark.parametrize("package", guards.PACKAGES)
def test_a_fresh_interpreter_leaves_the_other_framework_out(package: str) -> None:
    assert not guards.loaded_after(ROOT, f"import {package}") & set(guards.BANNED[package])


def test_the_fresh_interpreter_guard_can_fail(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {
            "jax.py": "",
            "pe_torch/__init__.py": "from pe_torch import layer",
            "pe_torch/layer.py": "__import__('jax')",
        },
    )
    assert "jax" in guards.loaded_after(tmp_path, "import pe_torch")
    assert "jax" not in guards.loaded_after(tmp_path, "import pe_flax")
    with pytest.raises(RuntimeError, match="No module named 'pe_nothing'"):
        guards.loaded_after(tmp_path, "import pe_nothing")


def test_the_wings_mirror_each_other() -> None:
    assert guards.mirror_violations(ROOT, MIRROR_EXCEPTIONS) == []


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("pe_torch/attention.py", "", "attention.py: file: pe_torch present, pe_flax missing"),
        ("pe_flax/__init__.py", "__all__ = ['Layer']\n", "__init__.py: __all__"),
        (
            "pe_flax/layer.py",
            "class Layer:\n    def __call__(self, x, *, mask): ...\n",
            "layer.py: Layer.__call__",
        ),
        (
            "pe_flax/layer.py",
            "class Layer:\n    def __call__(self, x, mask=None): ...\n",
            "layer.py: Layer.__call__",
        ),
        (
            "pe_flax/layer.py",
            "class Layer:\n    def __call__(self, x, *, keep=None): ...\n",
            "layer.py: Layer.__call__",
        ),
        (
            "pe_flax/layer.py",
            "class Stack:\n    def __call__(self, x, *, mask=None): ...\n",
            "layer.py: Stack",
        ),
        (
            "pe_torch/layer.py",
            "class Layer:\n    def forward(self, x, *, mask=None): ...\ndef save(): ...\n",
            "layer.py: save",
        ),
    ],
)
def test_the_mirror_can_fail(tmp_path: Path, file: str, text: str, found: str) -> None:
    assert guards.mirror_violations(plant(tmp_path, {}), {}) == []
    violations = guards.mirror_violations(plant(tmp_path, {file: text}), {})
    assert any(line.startswith(found) for line in violations), violations


def test_a_missing_wing_and_a_stale_exception_fail(tmp_path: Path) -> None:
    assert guards.mirror_violations(tmp_path, {}) == ["a wing is missing"]
    stale = {"layer.py: Layer": "no reason left"}
    assert guards.mirror_violations(plant(tmp_path, {}), stale) == [
        "layer.py: Layer: an exception that is not needed"
    ]
    needed = {"layer.py: save": "torch only"}
    plant(
        tmp_path,
        {"pe_torch/layer.py": (tmp_path / "pe_torch/layer.py").read_text() + "def save(): ...\n"},
    )
    assert guards.mirror_violations(tmp_path, needed) == []


def test_modules_are_short_and_named_after_what_they_hold() -> None:
    assert guards.file_violations(ROOT) == []


def test_the_file_guard_can_fail(tmp_path: Path) -> None:
    assert (
        guards.file_violations(plant(tmp_path, {"pe_core/data.py": "\n" * guards.MAX_LINES})) == []
    )
    plant(
        tmp_path,
        {
            "pe_core/data.py": "\n" * (guards.MAX_LINES + 1),
            "scripts/utils.py": "",
            "pe_flax/misc/__init__.py": "",
        },
    )
    assert [line.split(":")[0] for line in guards.file_violations(tmp_path)] == [
        "pe_core.data",
        "pe_flax.misc",
        "scripts.utils",
    ]
