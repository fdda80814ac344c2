"""What a long test found, as a file for the page of evidence: written where PE_EVIDENCE names a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pe_core.cli.wing import versions


def write_section(name: str, title: str, command: str, text: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a section of the page.

    Args:
        name: of the file, without its ending.
        title: above the section.
        command: what makes it again.
        text: sentences.
        columns: titles of the table.
        rows: of the table.
    """
    folder = os.environ.get("PE_EVIDENCE")
    if folder is None:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "title": title,
        "command": command,
        "text": list(text),
        "columns": list(columns),
        "rows": [list(row) for row in rows],
    }
    record |= {"versions": versions(), "machine": f"{os.cpu_count()} CPU cores"}
    (Path(folder) / f"{name}.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
