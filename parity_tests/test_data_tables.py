"""Long tables, one step a row, are the sequences that they were made of: files and data frames, in
any order of rows; a bad cell is named with its line.
"""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.refusals import refused
from pe_core.data import DataWarning, load, read

RANDOM = np.random.default_rng(0)
LENGTHS = RANDOM.integers(3, 7, 12)
HEAD = ("id", "step", "size", "count", "label")
# In the order of sequences and steps; the last sequence has one gap.
ROWS: list[tuple[Any, ...]] = [
    (f"p{number}", step, step * 0.5 + number, (1 << 40) + step, "ab"[number % 2])
    for number, length in enumerate(LENGTHS)
    for step in range(length)
]
GAPS = [row if row[:2] != ("p11", 1) else (*row[:2], "", *row[3:]) for row in ROWS]


class Frame:
    """What a data frame of pandas or polars has in common."""

    def __init__(self, rows: list[tuple[Any, ...]], head: tuple[str, ...] = HEAD) -> None:
        self.columns = list(head)
        self.found = {name: np.array(cells) for name, *cells in zip(head, *rows, strict=True)}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.found[name]


def text(rows: list[tuple[Any, ...]], head: tuple[str, ...] = HEAD, delimiter: str = ",") -> str:
    written = io.StringIO()
    csv.writer(written, delimiter=delimiter).writerows([head, *rows])
    return written.getvalue()


def renamed(head: tuple[str, ...]) -> dict[str, Any]:
    return {"head": ("", *head), "rows": [(row, *cells) for row, cells in enumerate(ROWS)]}


SHUFFLED = [ROWS[row] for row in [0, *(1 + RANDOM.permutation(len(ROWS) - 1))]]
DATES = [(row[0], f"2024-05-01T00:00:{row[1]:02d}", *row[2:]) for row in SHUFFLED]
TABLES: dict[str, tuple[str, dict[str, Any], dict[str, str] | None]] = {
    "commas": (".csv", {}, None),
    "semicolons": (".csv", {"delimiter": ";"}, None),
    "tabs": (".tsv", {"delimiter": "\t"}, None),
    "gaps": (".csv", {"rows": GAPS}, None),
    "shuffled": (".csv", {"rows": SHUFFLED}, None),
    "dates": (".csv", {"rows": DATES, "head": ("ID", "Time", *HEAD[2:])}, None),
    "other names": (
        ".csv",
        renamed(("patient", "when", "size", "count", "dx")),
        {"sequence": "patient", "step": "when", "label": "dx"},
    ),
    "a frame": ("", {}, None),
    "a shuffled frame": ("", {"rows": SHUFFLED}, None),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_its_sequences(tmp_path: Path, name: str) -> None:
    ending, options, columns = TABLES[name]
    rows, head = options.get("rows", ROWS), options.get("head", HEAD)
    path = tmp_path / f"data{ending}"
    source: Any = Frame(rows, head) if not ending else path
    if ending:
        path.write_text(text(**{"rows": rows} | options))
    found = read(source, ("b", "a"), columns=columns)
    order = dict.fromkeys(row[len(head) - len(HEAD)] for row in rows)
    assert found.count == len(LENGTHS) == len(order)
    for row, sequence in enumerate(order):
        steps = [cells for cells in ROWS if cells[0] == sequence]
        assert found.lengths[row] == len(steps)
        exact = np.array([cells[2:4] for cells in steps])
        assert np.array_equal(found.inputs[row, : len(steps)], exact.astype(np.float32))
        assert np.asarray(found.labels)[row] == "ba".index(steps[0][4])


def test_columns_go_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text(ROWS))
    swapped = [(*row[:2], row[3], row[2], row[4]) for row in ROWS]
    (tmp_path / "y.csv").write_text(text(swapped, ("id", "step", "count", "size", "label")))
    dataset = load(tmp_path / "x.csv", test=tmp_path / "y.csv")
    assert dataset.feature_names == ("size", "count")
    assert dataset.test is not None
    expected = read(tmp_path / "x.csv", standardisation=dataset.standardisation).inputs
    assert np.array_equal(dataset.test.inputs, expected)
    (tmp_path / "z.csv").write_text(text(ROWS, ("id", "step", "size", "number", "label")))
    with refused(ValueError, "z.csv: the features are size, number, in training they were size, c"):
        load(tmp_path / "x.csv", test=tmp_path / "z.csv")


def test_tokens_and_long_integers_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("id,token\na,3\na,4\nb,0\n")
    found = read(path)
    assert (found.num_features, found.inputs.tolist(), found.labels) == (
        None,
        [[3, 4], [0, 0]],
        None,
    )
    times = 1_700_000_000_000_000_000 + np.arange(20)
    path.write_text(
        text(
            [(f"s{n // 4}", time, n // 4 % 2) for n, time in enumerate(times)], ("id", "u", "label")
        )
    )
    assert len(np.unique(load(path, validation_fraction=0.5).train.inputs)) == 8
    path.write_text("id,u,v\na,0.5,1700000000000000001\n")
    with pytest.warns(DataWarning, match="line 2, column 'v': 1700000000000000001 is read as"):
        read(path)


# A file, its lines divided by slashes, and what is said of it.
REFUSED = """
id,u => : has no rows below a line with the names of the columns; write
id,u / a,1 / a,1,2 => , line 3: 3 cells, the first line names 2 columns; give all lines the same
id,u,u / a,1,2 => : column 'u' is named twice; give each its own name
u,v / 1,2 => : no column says to which sequence a row belongs, the columns are u, v; name one id
id,case,u / a,1,2 => : columns id and case could each be the sequence; choose one with --columns
id,label / a,u => : has no column of features beside id, label; add one
id,u / ,2 => , line 2: column 'id' is empty; say to which sequence the row belongs
id,u / a,1 / a,red => , line 3, column 'u': 'red' is not a number; leave the column out
id;u / a;1,5 => , line 2, column 'u': '1,5' is not a number; write a point, not a comma
id,u / a,inf => , line 2, column 'u': 'inf' is not a finite number; leave the cell empty
id,step,u / a,1,2 / a,1,3 => , line 3: step 1 of sequence 'a' is given twice; keep one
id,step,u / a,,2 => , line 2, column 'step': '' is not a finite number; give each row its place
id,time,u / a,2024-05-01,2 / a,soon,3 => , line 3, column 'time': 'soon' is no ISO date such as
id,u,label / a,1,x / a,2,y => , line 3: sequence 'a' has label 'y', and 'x' before; give
id,u,label / a,1,x / b,2, => , line 3: sequence 'b' has no label; give it in every row
id,token / a,1.5 => : tokens must be integers; name the column otherwise
""".strip().split("\n")


@pytest.mark.parametrize("row", REFUSED)
def test_tables_refuse(tmp_path: Path, row: str) -> None:
    lines, words = row.split(" => ")
    path = tmp_path / "x.csv"
    path.write_text(lines.replace(" / ", "\n"))
    with refused(ValueError, f"{path}{words}"):
        read(path)


def test_names_of_columns_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,u\na,1\n")
    with refused(ValueError, "columns name the sequence, step, time, label, got 'seq'; take one"):
        read(tmp_path / "x.csv", columns={"seq": "id"})
    with refused(ValueError, "x.csv: has no column 'idd' for the sequence; did you mean 'id'?"):
        read(tmp_path / "x.csv", columns={"sequence": "idd"})
    with refused(ValueError, "x.npz: columns are those of a .csv file; leave them out"):
        read("x.npz", columns={"sequence": "id"})
    with refused(TypeError, "data must be the name of a file or a data frame, got list; save"):
        load([1])
    with refused(ValueError, "data frame, row 1: sequence 'a' has label 'y', and 'x' before"):
        load(Frame([("a", 1, "x"), ("a", 2, "y")], ("id", "u", "label")))
