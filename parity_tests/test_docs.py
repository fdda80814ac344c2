"""What the pages in docs/ show is what the commands print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pe_cli.main import main

PAGE = (Path(__file__).parents[1] / "docs" / "divergence.md").read_text(encoding="utf-8")
# The last digits of a distance are the machine's own.
FIGURE = re.compile(r"\d\.\de[-+]\d\d(?=  )")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def commands(console: str) -> list[tuple[list[str], str]]:
    """Return each command of a block, as words, with what is shown below it."""
    return [
        (words.split(), shown)
        for words, shown in re.findall(r"^\$ pe (.*)\n((?:(?!\$ pe ).*\n)*)", console, re.MULTILINE)
    ]


def edited(text: str, diff: str) -> str:
    """Return a text with the lines of a diff put in the place of those that it takes away."""
    for before, after in re.findall(r"^-(.*)\n\+(.*)\n", diff, re.MULTILINE):
        assert text.count(before) == 1
        text = text.replace(before, after)
    return text


def test_the_port_gone_wrong_is_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    (port,), (fix,) = blocks("python"), blocks("diff")
    consoles = blocks("console")
    assert len(consoles) == 3
    codes = []
    for number, console in enumerate(consoles):
        # Modules of the same name, before and after the fix.
        name = "port" if number < 2 else "port_fixed"
        (tmp_path / f"{name}.py").write_text(port if number < 2 else edited(port, fix))
        for words, shown in commands(console):
            codes.append(main([name if word == "port" else word for word in words]))
            printed = capsys.readouterr().out.replace("port_fixed", "port")
            lines = [line.rstrip() for line in printed.splitlines()]
            assert [FIGURE.sub("#", line) for line in lines] == [
                FIGURE.sub("#", line) for line in shown.rstrip().splitlines()
            ]
    assert codes == [0, 0, 1, 0, 0]
