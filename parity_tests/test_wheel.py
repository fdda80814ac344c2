"""What is installed: the files of the wheel, and versions that agree wherever they stand."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pinned(name: str) -> dict[str, str]:
    lines = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / name).read_text(), re.MULTILINE)
    return {canonicalize_name(package): version for package, version in lines}


def requirements(*groups: list[str]) -> dict[str, Requirement]:
    found = [Requirement(line) for group in groups for line in group]
    return {canonicalize_name(one.name): one for one in found if one.name != PROJECT["name"]}


def test_the_wheel_holds_the_packages_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry_points = archive.read(
            f"positional_encoding-{PROJECT['version']}.dist-info/entry_points.txt"
        ).decode()
    packages = ("pe_core", "pe_torch", "pe_flax", "pe_parity", "pe_cli")
    expected = {f"{package}/py.typed" for package in packages}
    for package in packages:
        expected |= {str(file.relative_to(ROOT)) for file in (ROOT / package).rglob("*.py")}
    assert names == expected
    assert "pe = pe_cli.main:main" in entry_points
    assert "[positional_encoding.backends]" in entry_points


def test_the_tested_versions_are_allowed() -> None:
    tested = pinned("constraints.txt")
    for name, one in requirements(PROJECT["dependencies"], *EXTRAS.values()).items():
        assert one.specifier.contains(tested[name]), one


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    tested, lowest = pinned("constraints.txt"), pinned("constraints-lowest.txt")
    bounds = requirements(PROJECT["dependencies"], EXTRAS["flax"], EXTRAS["data"])
    for name, one in bounds.items():
        (bound,) = one.specifier
        assert (bound.operator, Version(bound.version)) == (">=", Version(lowest[name])), one
    # jaxlib goes with jax; what else differs is not needed by the tested versions at all.
    others = {name: version for name, version in lowest.items() if name not in {*bounds, "jaxlib"}}
    assert {name: tested.get(name, version) for name, version in others.items()} == others
    assert "torch" not in lowest


def test_pre_commit_runs_the_tools_of_the_environment() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    tools = re.findall(r"^ +entry: \.venv/bin/(\w+) ", text, re.MULTILINE)
    assert tools == ["ruff", "ruff", "mypy"]
    assert set(tools) <= set(pinned("constraints.txt"))
    assert "rev:" not in text
