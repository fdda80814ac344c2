"""Where the long tests leave what they measured: sections of docs/parity.md."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pe_core.training.backends import versions
from pe_parity.evidence import Section, write_sections

# The folder of the page; nothing is written without it.
FOLDER = "PE_EVIDENCE"


def write_section(
    name: str, title: str, text: list[str], columns: list[str], rows: list[list[Any]]
) -> None:
    """Write a section and the page, where the environment names the folder of the page."""
    if folder := os.environ.get(FOLDER):
        write_sections(
            Path(folder), [Section(name, title, "make evidence", text, columns, rows, versions())]
        )
