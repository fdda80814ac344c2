"""`.npz` and `.ts` files come back as they were written, and a bad file is named with its line and
the remedy.
"""

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.refusals import each_refusal, refused
from pe_core.data import DataWarning, Sequences, Standardisation, load, read
from pe_core.model.random import SPLIT, derive, permutation

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, max_value=2.0**66)
# The name of a class in a .ts file: no space, colon or comma, and not a comment.
TS_NAMES = st.text("abcXYZ0123456789_.-é", min_size=1, max_size=6)


@st.composite
def ragged(draw: st.DrawFn, labels: st.SearchStrategy[str]) -> tuple[list[np.ndarray], list[str]]:
    """Draw float32 examples (steps, features) of different lengths, and the class name of each."""
    features = draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))

    def exactly(count: int, of: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(of, min_size=count, max_size=count))

    examples = [
        np.array(exactly(length * features, FLOATS), np.float32).reshape(length, features)
        for length in lengths
    ]
    return examples, exactly(len(lengths), labels)


def padded(examples: list[np.ndarray], filler: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the examples right-padded with a filler, and their lengths."""
    lengths = np.array([len(example) for example in examples])
    inputs = np.full((len(examples), lengths.max(), examples[0].shape[1]), filler, np.float32)
    for row, example in enumerate(examples):
        inputs[row, : len(example)] = example
    return inputs, lengths


def assert_holds(data: Sequences, examples: list[np.ndarray], names: list[str]) -> None:
    """Assert that the sequences are these examples, bit for bit, zero-padded, under these names."""
    inputs, lengths = padded(examples, 0.0)
    assert data.lengths.tolist() == lengths.tolist()
    assert np.array_equal(data.inputs, inputs)
    assert [data.class_names[label] for label in labels_of(data)] == names


def labels_of(data: Sequences) -> list[int]:
    assert data.labels is not None
    return data.labels.tolist()


def ts(folder: Path, *lines: str) -> Path:
    path = folder / "data.ts"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


# --- .npz ---


@given(ragged(st.text("abcXYZ é:,", min_size=1, max_size=4)), st.booleans())
def test_npz_round_trip(drawn: tuple[list[np.ndarray], list[str]], by_lengths: bool) -> None:
    examples, names = drawn
    inputs, lengths = padded(examples, np.nan)
    mask = np.arange(inputs.shape[1]) < lengths[:, None]
    shape = {"lengths": lengths} if by_lengths else {"mask": mask}
    with tempfile.TemporaryDirectory() as folder:
        data = read(npz(Path(folder), inputs=inputs, labels=np.array(names), **shape))
    assert_holds(data, examples, names)


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        (np.array([3, 1, 10]), ("1", "3", "10"), [1, 0, 2]),
        (np.array([0, 1, 1], np.uint8), ("0", "1"), [0, 1, 1]),
        (np.array([-1, 1, -1]), ("-1", "1"), [0, 1, 0]),
        (np.array(["b", "a", "C"]), ("C", "a", "b"), [2, 1, 0]),
        (np.array(["10", "9", "2"]), ("2", "9", "10"), [2, 1, 0]),
        (np.char.encode(["é", "b", "b"], "utf-8"), ("b", "é"), [1, 0, 0]),
        (np.array(["nan", "9", "10"]), ("10", "9", "nan"), [2, 1, 0]),
    ],
)
def test_classes_of_an_npz_file_are_its_distinct_labels(
    tmp_path: Path, labels: np.ndarray, names: tuple[str, ...], indices: list[int]
) -> None:
    told: list[str] = []
    data = read(npz(tmp_path, X=np.zeros((3, 2, 1)), y=labels), tell=told.append)
    assert told[0].endswith("; X as inputs; y as labels")
    assert (data.class_names, labels_of(data)) == (names, indices)


def test_shapes_of_an_npz_file(tmp_path: Path) -> None:
    assert read(npz(tmp_path, inputs=np.zeros((3, 2)))).inputs.shape == (3, 2, 1)
    assert read(npz(tmp_path, inputs=np.zeros((3, 2, 4), int))).inputs.dtype == np.float32
    tokens = read(npz(tmp_path, inputs=np.zeros((3, 2), int), lengths=np.array([1, 2, 2])))
    assert (tokens.inputs.dtype.name, tokens.num_features) == ("int32", None)
    assert tokens.lengths.tolist() == [1, 2, 2]
    assert read(npz(tmp_path, inputs=np.zeros((3, 2, 4)), lengths=np.array([2, 2, 2]))).mask is None


TWO = {"inputs": np.zeros((2, 3))}


@each_refusal(
    {
        ValueError: {
            "unknown array input, the known ones are inputs, labels, mask, lengths, positions, "
            "positions_unit (or X and y for the first two); did you mean 'inputs'?": {
                "input": np.zeros((2, 3, 1))
            },
            "unknown array w, z, ...; rename it if it is one of these": TWO
            | {"w": np.ones(2), "z": np.ones(2)},
            "holds both inputs and X, each would be inputs; keep one": TWO | {"X": np.ones((2, 3))},
            "has no array inputs (or X), only labels; save": {"labels": np.ones(2)},
            "has no array inputs (or X), only nothing; save": {},
            "array X holds Python objects and is not unpickled; if its sequences differ in length, "
            "pad": {"X": np.array([[object()]])},
            "array labels holds Python objects ...; save labels.astype(str)": TWO
            | {"labels": np.array(["a", None])},
            "labels (2, 1) do not fit ..., shape (2,), for example labels.ravel()": TWO
            | {"y": np.ones((2, 1), int)},
            "labels (2, 3) do not fit ... labels.argmax(axis=1) where they are one-hot": TWO
            | {"y": np.ones((2, 3), int)},
            "labels are bytes that are not UTF-8 (b'\\xff'); save them as strings": TWO
            | {"y": np.array([b"\xff", b"a"])},
            "inputs must have shape ... got (3,); reshape": {"inputs": np.ones(3)},
            "got (0, 3, 1); reshape": {"inputs": np.zeros((0, 3))},
            "got (); reshape": {"inputs": np.float32(3)},
            "inputs hold nan in example 0, step 0, feature 0;... or impute it": {
                "inputs": np.full((2, 3), np.nan)
            },
            "labels (1,) do not fit 2 examples; give one": TWO | {"labels": np.array([0])},
            "mask (2, 2) does not fit": TWO | {"mask": np.ones((2, 2), bool)},
            "holds both mask and lengths; keep one": TWO
            | {"mask": np.ones(2), "lengths": np.ones(2)},
            "lengths must be integers of shape (2,), got float64 (2,)": TWO
            | {"lengths": np.ones(2)},
            "lengths must be integers of shape (2,), got int64 (1,)": TWO
            | {"lengths": np.array([3])},
            "length 0 of example 1 is outside 1 .. 3; correct": TWO | {"lengths": np.array([3, 0])},
            "length 4 of example 0 is outside 1 .. 3": TWO | {"lengths": np.array([4, 3])},
        },
        TypeError: {
            "inputs must be real numbers, got dtype complex128; convert": {
                "inputs": np.zeros((2, 3), complex)
            },
            "inputs have dtype |V2, as files show bfloat16 ...; save inputs.astype(numpy.float32": {
                "x": np.zeros((2, 3), ml_dtypes.bfloat16)
            },
            "labels must be integers or strings, got dtype float64; convert": TWO
            | {"labels": np.ones(2)},
            "class_names must be ... non-empty": TWO | {"labels": np.array(["", "a"])},
            "mask must be a bool array, True = real step, got dtype float64": TWO
            | {"mask": np.ones((2, 3))},
        },
    }
)
def test_npz_refuses(tmp_path: Path, kind: type[Exception], words: str, what: Any) -> None:
    with refused(kind, f"data.npz: ...{words}"):
        read(npz(tmp_path, **what))


def test_damaged_npz(tmp_path: Path) -> None:
    path = npz(tmp_path, inputs=np.arange(3000.0).reshape(10, 30, 10), labels=np.arange(10) % 2)
    good, single = path.read_bytes(), io.BytesIO()
    np.save(single, np.zeros((2, 3)))
    for content, words in [
        (b"", "not an .npz archive, or cut short, ...; write it with"),
        (b"not a zip file", "not an .npz archive"),
        (good[: len(good) // 2], "not an .npz archive, or cut short"),
        (single.getvalue(), "not an .npz archive"),
        (
            good[:1000] + bytes([good[1000] ^ 0xFF]) + good[1001:],
            "array inputs is damaged, Bad CRC-32 ...; write the file again",
        ),
    ]:
        path.write_bytes(content)
        with refused(ValueError, f"data.npz: {words}"):
            read(path)


def test_a_flipped_byte_ends_in_one_line_or_changes_nothing(tmp_path: Path) -> None:
    path = npz(tmp_path, inputs=np.ones((2, 3)))
    good, refused = path.read_bytes(), 0
    for byte in range(len(good)):
        path.write_bytes(good[:byte] + bytes([good[byte] ^ 0x55]) + good[byte + 1 :])
        try:
            data = read(path)
        except (ValueError, TypeError) as error:
            message = str(error)
        else:
            # Times, attributes and other fields that nobody reads.
            assert (data.inputs == 1.0).all()
            continue
        refused += 1
        assert message.startswith(str(path))
        assert "\n" not in message
    assert refused > len(good) / 2


def test_an_npz_header_that_promises_too_much(tmp_path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000, 1, 1), }"
    header = header.ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        magic = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
        archive.writestr("inputs.npy", magic + header)
    with refused(ValueError, "data.npz: array inputs is damaged, ...; write the file again"):
        read(tmp_path / "data.npz")


# --- .ts ---


@given(ragged(TS_NAMES), st.booleans(), st.sampled_from(["\n", "\r\n", "\r"]))
def test_ts_round_trip(
    drawn: tuple[list[np.ndarray], list[str]], listed: bool, newline: str
) -> None:
    examples, names = drawn
    distinct = tuple(dict.fromkeys(reversed(names)))
    lines = ["# a comment: 1,2", "% another", "@problemName Round trip", "@TIMESTAMPS False", ""]
    lines += ["@missing false", "@univariate false", f"@dimensions {examples[0].shape[1]}"]
    lines += ["@equalLength false", "@classLabel true " + " ".join(distinct), "@Data"]
    if not listed:
        lines[-2] = "@classlabel TRUE"
    for example, name in zip(examples, names, strict=True):
        features = [",".join(map(repr, feature.tolist())) for feature in example.T]
        lines.append(":".join([*features, name]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.ts"
        path.write_bytes(newline.join([*lines, ""]).encode("utf-8"))
        data = read(path)
    assert_holds(data, examples, names)
    assert set(data.class_names) == set(names)
    assert not listed or data.class_names == distinct


def test_ts_labels_may_differ_in_capitals_only(tmp_path: Path) -> None:
    lines = ["@classLabel true Walking Running", "@data", "1,2:walking", "3,4: RUNNING "]
    data = read(ts(tmp_path, *lines))
    assert (data.class_names, labels_of(data)) == (("Walking", "Running"), [0, 1])
    exact = read(ts(tmp_path, "@classLabel true a A", "@data", "1,2:A", "3,4:a"))
    assert labels_of(exact) == [1, 0]


def test_ts_without_labels(tmp_path: Path) -> None:
    data = read(ts(tmp_path, "@classLabel false", "@data", "1,2:3,4"))
    assert (data.labels, data.class_names) == (None, ())
    assert data.inputs.tolist() == [[[1.0, 3.0], [2.0, 4.0]]]
    assert read(ts(tmp_path, "@targetLabel false", "@data", "1,2")).labels is None


def test_ts_tolerates_what_published_files_hold(tmp_path: Path) -> None:
    lines = ["%# André", "@problemName p", "@problemName q", "@unheardOf 3", "@dimension 1"]
    lines += ["@classLabel true a b", "@data", "", "1:a", "# x", "2:b"]
    for encoding in ("latin-1", "utf-8-sig"):
        path = tmp_path / "data.ts"
        path.write_bytes("\n".join(lines).encode(encoding))
        assert read(path).inputs.ravel().tolist() == [1.0, 2.0]


def test_ts_gaps_are_interpolated(tmp_path: Path) -> None:
    lines = ["@missing true", "@classLabel true a b", "@data", "?,1,?,?,4,NaN:0,nan,2, ? ,-2,?:a"]
    data = read(ts(tmp_path, *lines))
    assert data.inputs[0].T.tolist() == [[1, 1, 2, 3, 4, 4], [0, 1, 2, 0, -2, -2]]
    assert data.mask is None


@pytest.mark.parametrize("header", ["@equalLength true", "@equalLength false", "@missing true"])
def test_ts_missing_steps_at_the_end_are_padding(tmp_path: Path, header: str) -> None:
    lines = [header, "@classLabel true a b", "@data", "1,?,NaN,NaN:4,5,?,?:a", "1,2,3,?:?,5,6,7:b"]
    lines += ["?,?,?,?:?,?,?,?:b"]
    data = read(ts(tmp_path, *lines), fill=(0.0, 0.0))
    padded = header != "@equalLength false"
    assert data.lengths.tolist() == ([2, 4, 4] if padded else [4, 4, 4])
    assert data.inputs[:2, :, 0].tolist() == [[1, 1, *((0, 0) if padded else (1, 1))], [1, 2, 3, 3]]


def test_digits_that_float64_cuts_are_told(tmp_path: Path) -> None:
    lines = ["@classLabel true a", "@data", "1700000000000000001,1700000000000000002:a"]
    with pytest.warns(DataWarning, match="line 3: 1700000000000000001 is read as 17.* subtract"):
        read(ts(tmp_path, *lines))


def test_a_wholly_missing_feature_takes_the_mean(tmp_path: Path) -> None:
    header = ["@classLabel true a b", "@data"]
    path = ts(tmp_path, *header, "1,2,3:4,4,6:a", "?,?:5,5:b", "6,6,6:?,?,?:b")
    own, given = read(path).inputs, read(path, fill=(7.0, 8.0)).inputs
    assert own[1].tolist() == [[4.0, 5.0], [4.0, 5.0], [0.0, 0.0]]
    assert own[2, :, 1].tolist() == [np.float32(24 / 5)] * 3
    assert (given[1, 0, 0], given[2, 0, 1]) == (7.0, 8.0)
    with refused(ValueError, "fill must hold 2 numbers, got (1.0,); give one per feature"):
        read(path, fill=(1.0,))
    assert (read(ts(tmp_path, *header, "?,?:a", "?,?:b")).inputs == 0.0).all()


HEADER = "@problemName p / @timeStamps false / @univariate true / @classLabel true a b / @data"


def test_load_fills_with_the_mean_of_the_training_part(tmp_path: Path) -> None:
    numbers = np.array([1, 2, 4, 8, 16, 32, 64, 128, np.nan, np.nan])
    rows = [f"{number},{number}:{label}" for number, label in zip(numbers, "ab" * 5, strict=True)]
    train, test = tmp_path / "X_TRAIN.ts", tmp_path / "X_TEST.ts"
    train.write_text("\n".join([*HEADER.split(" / "), *rows]))
    test.write_text("\n".join([*HEADER.split(" / "), "?,?:b", "100,100:a"]))
    dataset = load(train, test=test, seed=1)
    taken = permutation(derive(1, SPLIT), 10)[2:]
    assert np.isnan(numbers[taken]).any()
    mean = float(np.nanmean(numbers[taken]))
    fitted = Standardisation.fit(read(train, fill=(mean,)).take(taken))
    assert (dataset.name, dataset.standardisation) == ("X", fitted)
    assert dataset.test is not None
    expected = fitted.apply(read(test, ("a", "b"), fill=(mean,)))
    assert np.array_equal(dataset.test.inputs, expected.inputs)


def test_test_classes_follow_the_header_of_the_training_file(tmp_path: Path) -> None:
    train, test = tmp_path / "X_TRAIN.ts", tmp_path / "X_TEST.ts"
    header = "@classLabel true b a\n@equalLength true\n@seriesLength 2\n@data\n"
    train.write_text(header + "1,2:a\n3,4:b\n" * 4)
    test.write_text("@classLabel true a b\n@data\n1,2,3:a\n4,5:b\n")
    dataset = load(str(train), test=str(test))
    assert dataset.test is not None
    assert (dataset.class_names, labels_of(dataset.test)) == (("b", "a"), [1, 0])
    assert dataset.test.lengths.tolist() == [3, 2]
    test.write_text("@classLabel true a z\n@data\n1,2:a\n3,4:z\n")
    words = "X_TEST.ts, line 4: label 'z' is not among the classes b, a; correct it"
    with refused(ValueError, words):
        load(train, test=test)


# A file, its lines divided by slashes, and what is said of it; H is the header above.
REFUSED_TS = """
# x / @targetLabel true / @data / 1:2.0 => , line 2: a regression target is not supported; use
@univariate true / @data / 1:a => : has no @classLabel line; add @classLabel true
@classLabel true a / 1,2:a => , line 2: expected a header line such as @classLabel, got '1,2:a'; put
@classLabel true a => : has no @data line; is it a .ts file
 => : has no @data line
@ / @classLabel true a => : has no @data line
@classLabel true a / @data 1,2:a => , line 2: @data must stand alone; start the data on the next
@classLabel true a / @data /  / # x => : no data after @data; add one line per example
@classLabel / @data / 1:a => , line 1: @classlabel must be true or false, got 'nothing'; correct
@classLabel a b / @data / 1:a => , line 1: @classlabel must be true or false, got 'a b'; correct
@classLabel true a b a / @data / 1:a => , line 1: @classLabel names a class twice, a b a; name each
@classLabel true a / @classLabel true b / @data => , line 2: @classLabel is given twice, ...; keep
@equalLength maybe / @classLabel true a / @data => , line 1: @equallength must be ... got 'maybe'
@dimensions two / @classLabel true a / @data => , line 1: @dimensions must be a whole ... got 'two'
@seriesLength / @classLabel true a / @data => , line 1: @serieslength must be ... got 'nothing'
H / 1,2:a / 1,2:c => , line 7: label 'c' is not among the classes a, b; correct it
H / 1,2: => , line 6: label '' is not among the classes a, b
H / 1,2 => , line 6: expected values, a colon and a class label; add the label
H / 1,2:3,4:a => , line 6: 2 dimensions, but the header says @univariate true; correct one of them
H / 1,x:a => , line 6, dimension 1: 'x' is not a number; write ? for a missing value
H / 1,,2:a => , line 6, dimension 1: '' is not a number
H / 1,inf:a => , line 6, dimension 1: an infinite value; write
H / (2007-01-01,1):a => , line 6, dimension 1: '(2007-01-01' is not a number
H / 1e39,1:a => : inputs hold 1e+39 in example 0, step 0, feature 0
@dimensions 2 / @classLabel true a / @data / 1,2:a => , line 4: 1 ... the header says @dimensions 2
@classLabel true a / @data / 1,2:1,2:a / 1,2:a => , line 4: 1 dimensions, the first example has 2;
@classLabel true a / @data / 1,2:1,2,3:a => , line 3: dimension 2 has 3 values, dimension 1 has 2;
@equalLength true / @classLabel true a / @data / 1,2:a / 1:a => , line 5: 1 values, the first ... 2;
@seriesLength 3 / @equalLength true / @classLabel true a / @data / 1:a => , line 5: 1 values, but
""".strip().split("\n")


@pytest.mark.parametrize("row", REFUSED_TS)
def test_ts_refuses(tmp_path: Path, row: str) -> None:
    lines, words = row.split(" => ")
    path = ts(tmp_path, *lines.replace("H", HEADER).split(" / "))
    with refused(ValueError, f"{path}{words}"):
        read(path)


def test_many_classes_are_not_all_listed(tmp_path: Path) -> None:
    names = " ".join(f"c{number}" for number in range(100))
    with refused(ValueError, "label 'x' is not among the classes c0, ..., c19, ...; correct it"):
        read(ts(tmp_path, f"@classLabel true {names}", "@data", "1:x"))
