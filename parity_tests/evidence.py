"""Write what the long tests measured into docs/parity.md."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pe_core.training.backends import versions
from pe_parity.evidence import Section, write_sections

# The variable that names the folder of the page; nothing is written without it.
FOLDER = "PE_EVIDENCE"


def write_section(name: str, columns: list[str], rows: list[list[Any]], raw: Any = None) -> None:
    """Write a section and its table into the page."""
    if folder := os.environ.get(FOLDER):
        section = Section(name, "make evidence", columns, rows, versions())
        write_sections(Path(folder), [section], {name: raw})
