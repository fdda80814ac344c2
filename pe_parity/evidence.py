"""What was measured, in sections: each a JSON file that one command writes, all of them together a
page.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from pe_core.errors import UserValueError
from pe_core.storage.files import read_object, write_file

EVIDENCE_FOLDER: Final = "evidence"
PAGE: Final = "parity.md"
# The order of the page, and the command that measures what is not there yet.
SECTIONS: Final = {
    "agreement": "pe parity --report",
    "floor": "pe parity --report",
    "calibration": "pe parity --calibrate --report",
    "fairness": "pe parity --calibrate --report",
    "faults": "make evidence",
    "false_alarms": "make evidence",
    "kills": "make evidence",
}
HEAD: Final = """\
# How equal the frameworks are

Everything here was measured by commands of this repository, which anyone can run; `make evidence` runs them all. Figures hold for the
versions and the machine named under each heading. What each decision of the model is, where it is made and which test holds it stands in
[decisions.md](decisions.md); what to do with a port of your own that went wrong, in [divergence.md](divergence.md).
"""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        name: of the file.
        title: of the part.
        command: that measures it.
        text: sentences.
        columns: of the table; none without one.
        rows: of the table, texts and numbers.
        versions: what the figures depend on.
        details: more, for machines.
        picture: a file beside the page.
    """

    name: str
    title: str
    command: str
    text: list[str]
    columns: list[str]
    rows: list[list[Any]]
    versions: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)
    picture: str | None = None


def write_sections(folder: Path, sections: list[Section]) -> Path:
    """Write the sections beside those that other commands wrote, and the page of all of them;
    return the page.
    """
    (folder / EVIDENCE_FOLDER).mkdir(parents=True, exist_ok=True)
    for section in sections:
        write_file(
            folder / EVIDENCE_FOLDER / f"{section.name}.json",
            (json.dumps(asdict(section), indent=1, allow_nan=False) + "\n").encode(),
        )
    page = folder / PAGE
    write_file(page, rendered(read_sections(folder)).encode())
    return page


def read_sections(folder: Path) -> list[Section]:
    """Return the sections that are there, in the order of the page.

    Raises:
        ValueError: a file is damaged.
    """
    found = []
    for name in SECTIONS:
        path = folder / EVIDENCE_FOLDER / f"{name}.json"
        if path.is_file():
            try:
                found.append(Section(**read_object(path)))
            except TypeError as error:
                raise UserValueError(
                    f"{path} is not a section of the report ({error}); measure it again with "
                    f"{SECTIONS[name]}"
                ) from None
    return found


def rendered(sections: list[Section]) -> str:
    """Return the page."""
    parts = [HEAD]
    for section in sections:
        parts.append(f"## {section.title}\n")
        # What begins with a hyphen is an item of a list, on a line of its own.
        parts.append(
            " ".join(f"\n{line}" if line.startswith("- ") else line for line in section.text)
            .replace(" \n", "\n")
            .lstrip()
            + "\n"
        )
        if section.picture:
            parts.append(f"![{section.title}]({section.picture})\n")
        if section.columns:
            table = [
                section.columns,
                ["---"] * len(section.columns),
                *([_cell(value) for value in row] for row in section.rows),
            ]
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in table) + "\n")
        parts.append(f"Made by `{section.command}` with {_told(section.versions)}.\n")
    missing = [
        f"{name} (`{command}`)"
        for name, command in SECTIONS.items()
        if name not in {section.name for section in sections}
    ]
    if missing:
        parts.append(f"Not measured here: {', '.join(missing)}.\n")
    return "\n".join(part for part in parts if part)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return (
            "0"
            if value == 0.0
            else f"{value:.1e}"
            if not 0.01 <= abs(value) < 1e4
            else f"{value:.3g}"
        )
    return f"{value:,}" if isinstance(value, int) else str(value)


def _told(versions: dict[str, Any]) -> str:
    packages = [
        f"{name} {value}"
        for name, value in versions.items()
        if name not in ("machine", "cores", "processor", "threads")
    ]
    machine = (
        f"{versions.get('cores')} cores of {versions.get('processor') or versions.get('machine')}"
    )
    threads = versions.get("threads")
    return f"{', '.join(packages)} on {machine}" + (f", {threads} threads" if threads else "")
