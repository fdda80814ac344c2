"""Write measurements: each a small JSON file that one command owns, and a table in a page of prose.

The prose is written by hand. A table stands between two comments, `<!-- table: NAME -->` and
`<!-- end -->`, and is replaced by every command that measures. What is committed is rounded; the
raw figures go into a folder beside it that is not.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from pe_core.errors import UserValueError
from pe_core.storage.files import write_file
from pe_core.storage.strict_json import read_object

FOLDER: Final = "evidence"
RAW: Final = "raw"
PAGE: Final = "parity.md"
END: Final = "<!-- end -->"
NAMES: Final = ("agreement", "floor", "calibration", "fairness", "faults", "false_alarms", "kills")
DIGITS: Final = 3


@dataclass(frozen=True)
class Section:
    """One measurement.

    Args:
        name: of the file and of the table.
        command: that measures it.
        columns: of the table.
        rows: of the table, texts and numbers.
        versions: what the figures depend on.
        curves: of a picture beside the page.
    """

    name: str
    command: str
    columns: list[str]
    rows: list[list[Any]]
    versions: dict[str, Any]
    curves: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the section as JSON, one row of the table a line."""
        record = {name: value for name, value in asdict(self).items() if value != {}}
        rows = [json.dumps(_rounded(row), allow_nan=False) for row in record.pop("rows")]
        head = json.dumps(record, allow_nan=False).removesuffix("}")
        return f'{head}, "rows": [\n' + ",\n".join(rows) + "\n]}\n"

    def table(self) -> str:
        """Return the table in Markdown, and how it was made."""
        cells = [[_cell(value) for value in row] for row in self.rows]
        lines = [self.columns, ["---"] * len(self.columns), *cells]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{table}\n\nMeasured by `{self.command}` with {_environment(self.versions)}."


def write_sections(
    folder: Path, sections: list[Section], raw: dict[str, Any] | None = None
) -> Path:
    """Write sections, put their tables into the page, and return the page.

    Args:
        folder: of the page.
        sections: what was measured; tables that the page lacks are appended to it.
        raw: unrounded figures by section.
    """
    (folder / FOLDER / RAW).mkdir(parents=True, exist_ok=True)
    for section in sections:
        write_file(folder / FOLDER / f"{section.name}.json", section.to_json().encode())
        record = asdict(section) | {"raw": (raw or {}).get(section.name)}
        write_file(
            folder / FOLDER / RAW / f"{section.name}.json", json.dumps(record, indent=1).encode()
        )
    page = folder / PAGE
    text = page.read_text(encoding="utf-8") if page.is_file() else "# Parity\n"
    write_file(page, with_tables(text, read_sections(folder)).encode())
    return page


def read_sections(folder: Path) -> list[Section]:
    """Read the sections that are there, in the order of the page.

    Raises:
        UserValueError: a file is damaged.
    """
    found = []
    for name in NAMES:
        path = folder / FOLDER / f"{name}.json"
        if path.is_file():
            try:
                found.append(Section(**read_object(path)))
            except TypeError as error:
                raise UserValueError(
                    f"{path} is not a section of the report ({error}); delete it and measure again"
                ) from None
    return found


def with_tables(text: str, sections: list[Section]) -> str:
    """Return the text of a page with the tables of sections in their places."""
    for section in sections:
        begin = f"<!-- table: {section.name} -->"
        if begin not in text:
            text += f"\n## {section.name.replace('_', ' ').capitalize()}\n\n{begin}\n{END}\n"
        before, _, rest = text.partition(begin)
        _, end, after = rest.partition(END)
        if not end:
            raise UserValueError(f"{PAGE}: no line {END} after {begin}; add it below the table")
        text = f"{before}{begin}\n{section.table()}\n{END}{after}"
    return text


def _rounded(row: list[Any]) -> list[Any]:
    return [float(f"{one:.{DIGITS}g}") if isinstance(one, float) else one for one in row]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        small_or_large = value != 0.0 and not 0.01 <= abs(value) < 1e4
        return f"{value:.1e}" if small_or_large else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _environment(versions: dict[str, Any]) -> str:
    machine = {"machine", "cores", "processor", "threads"}
    packages = [f"{name} {value}" for name, value in versions.items() if name not in machine]
    processor = versions.get("processor") or versions.get("machine")
    found = f"{', '.join(packages)} on {versions.get('cores')} cores of {processor}"
    threads = versions.get("threads")
    return found + (f", {threads} thread{'' if str(threads) == '1' else 's'}" if threads else "")
