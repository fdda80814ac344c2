"""The rules of the house, each a function from a source tree to its violations. Files are read, not
imported, so any tree can be judged.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

PACKAGES = ("pe_core", "pe_torch", "pe_flax", "pe_parity", "pe_cli")
FOLDERS = (*PACKAGES, "parity_tests", "scripts", "benchmarks")
FRAMEWORKS = ("torch", "jax", "jaxlib", "flax", "optax")
# what may not be imported, not even through a module of ours; a package's own ruff.toml names the
# same
BANNED = {
    "pe_core": (
        "torch",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "pe_torch",
        "pe_flax",
        "pe_parity",
        "pe_cli",
    ),
    "pe_torch": ("jax", "jaxlib", "flax", "optax", "pe_flax", "pe_parity", "pe_cli"),
    "pe_flax": ("torch", "pe_torch", "pe_parity", "pe_cli"),
    "pe_parity": ("torch", "jax", "jaxlib", "flax", "optax", "pe_torch", "pe_flax", "pe_cli"),
    "pe_cli": ("torch", "jax", "jaxlib", "flax", "optax", "pe_torch", "pe_flax"),
    "scripts": (*FRAMEWORKS, "pe_torch", "pe_flax"),
}
NOT_SHIPPED = ("parity_tests", "scripts", "benchmarks")
RUN_TIME_IMPORTS = (
    "pe_core.training.backends",
    "pe_cli.model_function",
)  # the places that import what they are given by name
MAX_LINES = 400
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "base"}


def within(name: str, parents: Iterable[str]) -> bool:
    """Whether a dotted name is one of the parents or lies inside one."""
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


def modules(root: Path) -> dict[str, Path]:
    """Every module of the house by its dotted name."""
    files = [file for folder in FOLDERS for file in sorted((root / folder).rglob("*.py"))]
    return {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }


def imports(name: str, file: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of every import in a file, wherever it stands; a name computed at run
    time reads as `?`.
    """
    found = []
    package = name.split(".") if file.stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, node.module] if node.module else above)
            found += [
                (node.lineno, source),
                *((node.lineno, f"{source}.{alias.name}") for alias in node.names),
            ]
        elif isinstance(node, ast.Call) and re.search(
            r"(^|\.)(import_module|__import__)$", ast.unparse(node.func)
        ):
            match node.args:
                case _ if within(name, RUN_TIME_IMPORTS):
                    pass
                case [ast.Constant(str(target)), *_]:
                    found.append((node.lineno, target))
                case _:
                    found.append((node.lineno, "?"))
    return found


def import_violations(root: Path) -> list[str]:
    """Imports that point the wrong way, each with the chain of modules that leads to it."""
    known = modules(root)
    graph = {name: imports(name, file) for name, file in known.items()}
    violations = []
    for part, banned in BANNED.items():
        chain = {name: name for name in known if within(name, [part])}
        if not chain:
            violations.append(f"{part}: no such folder")
        queue = list(chain)
        for (
            name
        ) in queue:  # grows while it is walked, by the modules of ours that these ones bring in
            for line, target in graph[name]:
                if target == "?" or within(
                    target, (*banned, *(folder for folder in NOT_SHIPPED if folder != part))
                ):
                    violations.append(f"{part}: {chain[name]}:{line} imports {target}")
                words = target.split(".")
                for parent in (".".join(words[:end]) for end in range(1, len(words) + 1)):
                    if (
                        parent in known
                        and parent not in chain
                        and not within(parent, (*banned, *NOT_SHIPPED))
                    ):
                        chain[parent] = f"{chain[name]}:{line} -> {parent}"
                        queue.append(parent)
    return violations


def loaded_after(root: Path, statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after one statement, run in the
    tree's root.
    """
    code = (
        f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise RuntimeError(f"{statement} failed:\n{run.stderr}")
    return set(run.stdout.split())


def file_violations(root: Path) -> list[str]:
    """Modules that are too long, in the packages, and files named after nothing."""
    violations = []
    for name, file in modules(root).items():
        lines = len(file.read_text().splitlines())
        if within(name, PACKAGES) and lines > MAX_LINES:
            violations.append(
                f"{name}: {lines} lines, at most {MAX_LINES}; make it a folder, in all columns"
            )
        if VAGUE_NAMES & set(name.split(".")):
            violations.append(f"{name}: name it after what it holds")
    return violations


def signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Names, kinds and defaults of the parameters, without annotations and without the framework's
    name in a default.
    """
    arguments = function.args
    for argument in [
        *arguments.posonlyargs,
        *arguments.args,
        *arguments.kwonlyargs,
        arguments.vararg,
        arguments.kwarg,
    ]:
        if argument:
            argument.annotation = None
    kind = "".join(
        f"@{text} "
        for text in map(ast.unparse, function.decorator_list)
        if text in {"property", "classmethod", "staticmethod"}
    )
    return kind + "(" + re.sub(r"\b(torch|jax\.numpy|jnp|jax)\.", "", ast.unparse(arguments)) + ")"


def interface(file: Path) -> dict[str, str]:
    """What a module offers: `__all__`, public functions, classes, their fields if they are records,
    and their public methods.
    """
    body = ast.parse(file.read_text(), str(file)).body
    values = {
        ast.unparse(node).split()[0].rstrip(":"): node.value
        for node in body
        if isinstance(node, ast.Assign | ast.AnnAssign)
    }
    value = values.get("__all__")
    listed = ast.literal_eval(value) if value else None
    found = {} if listed is None else {"__all__": ", ".join(listed)}
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or not (
            node.name in listed if listed else node.name[0] != "_"
        ):
            continue
        if isinstance(node, ast.FunctionDef):
            found[node.name] = signature(node)
            continue
        record = any(
            "dataclass" in ast.unparse(mark) or "NamedTuple" in ast.unparse(mark)
            for mark in [*node.decorator_list, *node.bases]
        )
        found[node.name] = "record" if record else "class"
        for item in node.body:
            if record and isinstance(item, ast.AnnAssign):
                found[f"{node.name}.{ast.unparse(item.target)}"] = (
                    f"field = {ast.unparse(item.value) if item.value else 'required'}"
                )
            if isinstance(item, ast.FunctionDef):
                name = (
                    "__call__" if item.name == "forward" else item.name
                )  # the two idioms of one thing
                if name[0] != "_" or name in {"__init__", "__call__"}:
                    found[f"{node.name}.{name}"] = signature(item)
    return found


def mirror_violations(root: Path, exceptions: Mapping[str, str]) -> list[str]:
    """Where the wings differ in files, `__all__` or signatures; `exceptions` maps `file: name` to
    its reason.
    """
    wings = ("pe_torch", "pe_flax")
    files = [
        {str(file.relative_to(root / wing)): file for file in (root / wing).rglob("*.py")}
        for wing in wings
    ]
    violations = [] if all("__init__.py" in column for column in files) else ["a wing is missing"]
    used = set()
    for path in sorted(files[0].keys() | files[1].keys()):
        sides = [
            {"file": "present", **interface(column[path])}
            if path in column
            else {"file": "missing"}
            for column in files
        ]
        names = (
            sorted(sides[0].keys() | sides[1].keys())
            if sides[0]["file"] == sides[1]["file"]
            else ["file"]
        )
        for name in names:
            left, right = (side.get(name, "missing") for side in sides)
            if left == right:
                continue
            # An exception for a class holds for its members.
            entry = f"{path}: {name.split('.')[0]}"
            used.add(entry)
            if entry not in exceptions:
                violations.append(f"{path}: {name}: {wings[0]} {left}, {wings[1]} {right}")
        if path == "__init__.py" and "__all__" not in sides[0]:
            violations.append(f"{path}: no __all__")
    return violations + [
        f"{entry}: an exception that is not needed" for entry in exceptions if entry not in used
    ]
