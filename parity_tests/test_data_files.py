"""`.npz` and `.ts` files come back as they were written, and a bad file is named with its line and
the remedy.
"""

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pe_core.data import Sequences, Standardisation, load, read
from pe_core.model.random import SPLIT, derive, permutation

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
# A name of a class in a .ts file: no space, colon or comma, and not a comment.
TS_NAMES = st.text("abcXYZ0123456789_.-é", min_size=1, max_size=6)


@st.composite
def ragged(draw: st.DrawFn, labels: st.SearchStrategy[str]) -> tuple[list[np.ndarray], list[str]]:
    """Draw float32 examples (steps, features) of different lengths, and the name of the class of
    each.
    """
    features = draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    examples = [
        np.array(
            draw(st.lists(FLOATS, min_size=length * features, max_size=length * features)),
            np.float32,
        ).reshape(length, features)
        for length in lengths
    ]
    return examples, draw(st.lists(labels, min_size=len(lengths), max_size=len(lengths)))


def padded(examples: list[np.ndarray], filler: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the examples right-padded with a filler, and their lengths."""
    lengths = np.array([len(example) for example in examples])
    inputs = np.full((len(examples), lengths.max(), examples[0].shape[1]), filler, np.float32)
    for row, example in enumerate(examples):
        inputs[row, : len(example)] = example
    return inputs, lengths


def assert_holds(data: Sequences, examples: list[np.ndarray], names: list[str]) -> None:
    """Assert that the sequences are these examples, bit for bit, padded with zeros, under these
    names.
    """
    assert data.lengths.tolist() == [len(example) for example in examples]
    assert np.array_equal(data.inputs, padded(examples, 0.0)[0])
    assert data.labels is not None
    assert [data.class_names[label] for label in data.labels] == names


def ts(*lines: str, folder: Path) -> Path:
    path = folder / "data.ts"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


@given(ragged(st.text("abcXYZ é:,", min_size=1, max_size=4)), st.booleans())
def test_npz_round_trip(drawn: tuple[list[np.ndarray], list[str]], by_lengths: bool) -> None:
    examples, names = drawn
    inputs, lengths = padded(examples, np.nan)
    shape = (
        {"lengths": lengths}
        if by_lengths
        else {"mask": np.arange(inputs.shape[1]) < lengths[:, None]}
    )
    with tempfile.TemporaryDirectory() as folder:
        assert_holds(
            read(npz(Path(folder), inputs=inputs, labels=np.array(names), **shape)), examples, names
        )


@given(ragged(TS_NAMES), st.booleans(), st.sampled_from(["\n", "\r\n", "\r"]))
def test_ts_round_trip(
    drawn: tuple[list[np.ndarray], list[str]], listed: bool, newline: str
) -> None:
    examples, names = drawn
    lines = [
        "# a comment: 1,2",
        "% another",
        "@problemName Round trip",
        "@TIMESTAMPS False",
        "",
        "@missing false",
    ]
    lines += ["@univariate false", f"@dimensions {examples[0].shape[1]}", "@equalLength false"]
    lines += [
        "@classLabel true " + " ".join(dict.fromkeys(reversed(names)))
        if listed
        else "@classlabel TRUE",
        "@Data",
    ]
    for example, name in zip(examples, names, strict=True):
        lines.append(
            ":".join([",".join(map(repr, feature.tolist())) for feature in example.T] + [name])
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.ts"
        path.write_bytes(newline.join([*lines, ""]).encode("utf-8"))
        data = read(path)
    assert_holds(data, examples, names)
    assert set(data.class_names) == set(names)
    assert not listed or data.class_names == tuple(dict.fromkeys(reversed(names)))


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        (np.array([3, 1, 10]), ("1", "3", "10"), [1, 0, 2]),
        (np.array([0, 1, 1], np.uint8), ("0", "1"), [0, 1, 1]),
        (np.array([-1, 1, -1]), ("-1", "1"), [0, 1, 0]),
        (np.array(["b", "a", "C"]), ("C", "a", "b"), [2, 1, 0]),
        (np.array(["10", "9", "2"]), ("2", "9", "10"), [2, 1, 0]),
        (np.array(["nan", "9", "10"]), ("10", "9", "nan"), [2, 1, 0]),
    ],
)
def test_classes_of_an_npz_file_are_its_distinct_labels(
    tmp_path: Path, labels: np.ndarray, names: tuple[str, ...], indices: list[int]
) -> None:
    data = read(npz(tmp_path, inputs=np.zeros((3, 2, 1)), labels=labels))
    assert data.labels is not None
    assert (data.class_names, data.labels.tolist()) == (names, indices)


def test_shapes_of_an_npz_file(tmp_path: Path) -> None:
    assert read(npz(tmp_path, inputs=np.zeros((3, 2), np.float64))).inputs.shape == (3, 2, 1)
    assert read(npz(tmp_path, inputs=np.zeros((3, 2, 4), int))).inputs.dtype == np.float32
    tokens = read(npz(tmp_path, inputs=np.zeros((3, 2), np.int64), lengths=np.array([1, 2, 2])))
    assert (tokens.inputs.dtype.name, tokens.num_features, tokens.lengths.tolist()) == (
        "int32",
        None,
        [1, 2, 2],
    )
    assert read(npz(tmp_path, inputs=np.zeros((3, 2, 4)), lengths=np.array([2, 2, 2]))).mask is None


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        (
            {"input": np.zeros((2, 3, 1))},
            ValueError,
            (
                "unknown array input, the known ones are inputs, labels, mask, lengths; did you "
                "mean "
                "inputs?"
            ),
        ),
        (
            {"inputs": np.zeros((2, 3)), "weather": np.zeros(2), "z": np.zeros(2)},
            ValueError,
            "unknown array weather, z, .*; remove it",
        ),
        ({"labels": np.zeros(2, int)}, ValueError, "has no array inputs, only labels; save"),
        ({}, ValueError, "has no array inputs, only nothing; save"),
        (
            {"inputs": np.array([[object()]])},
            ValueError,
            "array inputs holds Python objects and is not unpickled; save it as numbers",
        ),
        (
            {"inputs": np.zeros((2, 3)), "labels": np.array(["a", None])},
            ValueError,
            "array labels holds Python objects",
        ),
        ({"inputs": np.zeros(3)}, ValueError, r"inputs must have shape .* got \(3,\); reshape"),
        ({"inputs": np.zeros((0, 3))}, ValueError, r"got \(0, 3, 1\); reshape"),
        ({"inputs": np.float32(3)}, ValueError, r"got \(\); reshape"),
        (
            {"inputs": np.zeros((2, 3), complex)},
            TypeError,
            "inputs must be real numbers, got dtype complex128; convert",
        ),
        (
            {"inputs": np.full((2, 3), np.nan)},
            ValueError,
            "inputs hold nan in example 0, step 0, feature 0;.* or impute it",
        ),
        (
            {"inputs": np.zeros((2, 3)), "labels": np.array([0.0, 1.0])},
            TypeError,
            "labels must be integers or strings, got dtype float64; convert",
        ),
        (
            {"inputs": np.zeros((2, 3)), "labels": np.array([0])},
            ValueError,
            r"labels \(1,\) do not fit 2 examples; give one",
        ),
        (
            {"inputs": np.zeros((2, 3)), "labels": np.array(["", "a"])},
            TypeError,
            "class_names must be .* non-empty",
        ),
        (
            {"inputs": np.zeros((2, 3)), "mask": np.ones((2, 3))},
            TypeError,
            "mask must be a bool array, True = real step, got dtype float64",
        ),
        (
            {"inputs": np.zeros((2, 3)), "mask": np.ones((2, 2), bool)},
            ValueError,
            r"mask \(2, 2\) does not fit",
        ),
        (
            {
                "inputs": np.zeros((2, 3)),
                "mask": np.ones((2, 3), bool),
                "lengths": np.array([3, 3]),
            },
            ValueError,
            "holds both mask and lengths; keep one",
        ),
        (
            {"inputs": np.zeros((2, 3)), "lengths": np.array([3.0, 3.0])},
            ValueError,
            r"lengths must be integers of shape \(2,\), got float64 \(2,\)",
        ),
        (
            {"inputs": np.zeros((2, 3)), "lengths": np.array([3])},
            ValueError,
            r"lengths must be integers of shape \(2,\), got int64 \(1,\)",
        ),
        (
            {"inputs": np.zeros((2, 3)), "lengths": np.array([3, 0])},
            ValueError,
            "length 0 of example 1 is outside 1 .. 3; correct it",
        ),
        (
            {"inputs": np.zeros((2, 3)), "lengths": np.array([4, 3])},
            ValueError,
            "length 4 of example 0 is outside 1 .. 3",
        ),
    ],
)
def test_npz_refuses(
    tmp_path: Path, arrays: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"data.npz: .*{message}") as caught:
        read(npz(tmp_path, **arrays))
    assert "\n" not in str(caught.value)


def test_damaged_npz(tmp_path: Path) -> None:
    path = npz(tmp_path, inputs=np.arange(3000.0).reshape(10, 30, 10), labels=np.arange(10) % 2)
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[1000] ^= 0xFF
    for content, message in [
        (b"", "not an .npz archive, or cut short, .*; write it with"),
        (b"not a zip file", "not an .npz archive"),
        (good[: len(good) // 2], "not an .npz archive, or cut short"),
        (bytes(flipped), "array inputs is damaged, Bad CRC-32 .*; write the file again"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"data.npz: {message}") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    single = io.BytesIO()
    np.save(single, np.zeros((2, 3)))
    path.write_bytes(single.getvalue())
    with pytest.raises(ValueError, match=r"not an \.npz archive"):
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
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr(
            "inputs.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        )
    with pytest.raises(
        ValueError, match=r"data\.npz: array inputs is damaged, .*; write the file again"
    ):
        read(tmp_path / "data.npz")


HEADER = (
    "@problemName p",
    "@timeStamps false",
    "@univariate true",
    "@classLabel true a b",
    "@data",
)


def test_ts_labels_may_differ_in_capitals_only(tmp_path: Path) -> None:
    data = read(
        ts(
            "@classLabel true Walking Running",
            "@data",
            "1,2:walking",
            "3,4: RUNNING ",
            folder=tmp_path,
        )
    )
    assert data.class_names == ("Walking", "Running")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1]
    exact = read(ts("@classLabel true a A", "@data", "1,2:A", "3,4:a", folder=tmp_path))
    assert exact.labels is not None
    assert exact.labels.tolist() == [1, 0]


def test_ts_without_labels(tmp_path: Path) -> None:
    data = read(ts("@classLabel false", "@data", "1,2:3,4", folder=tmp_path))
    assert (data.labels, data.class_names, data.inputs.tolist()) == (
        None,
        (),
        [[[1.0, 3.0], [2.0, 4.0]]],
    )
    assert read(ts("@targetLabel false", "@data", "1,2", folder=tmp_path)).labels is None


def test_ts_tolerates_what_published_files_hold(tmp_path: Path) -> None:
    path = tmp_path / "data.ts"
    lines = [
        "%# André",
        "@problemName p",
        "@problemName q",
        "@unheardOf 3",
        "@dimension 1",
        "@classLabel true a b",
        "@data",
        "",
        "1:a",
        "# x",
        "2:b",
    ]
    path.write_bytes("\n".join(lines).encode("latin-1"))
    assert read(path).inputs.ravel().tolist() == [1.0, 2.0]
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode("utf-8"))
    assert read(path).inputs.ravel().tolist() == [1.0, 2.0]


def test_ts_gaps_are_interpolated(tmp_path: Path) -> None:
    data = read(
        ts(
            "@missing true",
            "@classLabel true a b",
            "@data",
            "?,1,?,?,4,NaN:0,nan,2, ? ,-2,?:a",
            folder=tmp_path,
        )
    )
    assert data.inputs[0].T.tolist() == [
        [1.0, 1.0, 2.0, 3.0, 4.0, 4.0],
        [0.0, 1.0, 2.0, 0.0, -2.0, -2.0],
    ]
    assert data.mask is None


def test_a_wholly_missing_feature_takes_the_mean(tmp_path: Path) -> None:
    path = ts(
        "@classLabel true a b",
        "@data",
        "1,2,3:4,4,6:a",
        "?,?:5,5:b",
        "6,6,6:?,?,?:b",
        folder=tmp_path,
    )
    own = read(path)
    assert own.inputs[1, :2].tolist() == [[4.0, 5.0], [4.0, 5.0]]
    assert own.inputs[2, :, 1].tolist() == [np.float32(24 / 5)] * 3
    assert own.inputs[1, 2].tolist() == [0.0, 0.0]
    given = read(path, fill=(7.0, 8.0))
    assert (given.inputs[1, 0, 0], given.inputs[2, 0, 1]) == (7.0, 8.0)
    with pytest.raises(
        ValueError, match=r"fill must hold 2 numbers, got \(1.0,\); give one per feature"
    ):
        read(path, fill=(1.0,))
    nothing = ts("@classLabel true a b", "@data", "?,?:a", "?,?:b", folder=tmp_path)
    assert (read(nothing).inputs == 0.0).all()


def test_load_fills_with_the_mean_of_the_training_part(tmp_path: Path) -> None:
    numbers = np.array([1, 2, 4, 8, 16, 32, 64, 128, np.nan, np.nan])
    rows = [f"{number},{number}:{label}" for number, label in zip(numbers, "ab" * 5, strict=True)]
    train, test = tmp_path / "X_TRAIN.ts", tmp_path / "X_TEST.ts"
    train.write_text("\n".join([*HEADER, *rows]))
    test.write_text("\n".join([*HEADER, "?,?:b", "1000,1000:a"]))
    dataset = load(train, test=test, seed=1)
    taken = permutation(derive(1, SPLIT), 10)[2:]
    assert np.isnan(numbers[taken]).any()
    mean = float(np.nanmean(numbers[taken]))
    fitted = Standardisation.fit(read(train, fill=(mean,)).take(taken))
    assert (dataset.name, dataset.standardisation) == ("X", fitted)
    assert dataset.test is not None
    assert np.array_equal(
        dataset.test.inputs, fitted.apply(read(test, ("a", "b"), fill=(mean,))).inputs
    )


def test_test_classes_follow_the_header_of_the_training_file(tmp_path: Path) -> None:
    train, test = tmp_path / "X_TRAIN.ts", tmp_path / "X_TEST.ts"
    train.write_text(
        "@classLabel true b a\n@equalLength true\n@seriesLength 2\n@data\n" + "1,2:a\n3,4:b\n" * 4
    )
    test.write_text("@classLabel true a b\n@data\n1,2,3:a\n4,5:b\n")
    dataset = load(str(train), test=str(test))
    assert dataset.test is not None
    assert dataset.test.labels is not None
    assert (dataset.class_names, dataset.test.labels.tolist(), dataset.test.lengths.tolist()) == (
        ("b", "a"),
        [1, 0],
        [3, 2],
    )
    test.write_text("@classLabel true a z\n@data\n1,2:a\n3,4:z\n")
    with pytest.raises(
        ValueError, match=r"X_TEST\.ts, line 4: label 'z' is not among the classes b, a; correct it"
    ):
        load(train, test=test)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["@timeStamps true", "@classLabel true a", "@data"],
            "data.ts, line 1: time stamps are not supported; write the values alone",
        ),
        (
            ["# x", "@targetLabel true", "@data", "1:2.0"],
            "data.ts, line 2: a regression target is not supported; use",
        ),
        (
            ["@univariate true", "@data", "1:a"],
            "data.ts: has no @classLabel line; add @classLabel true",
        ),
        (
            ["@classLabel true a", "1,2:a"],
            (
                "data.ts, line 2: expected a header line such as @classLabel, got '1,2:a'; put "
                "data "
                "after @data"
            ),
        ),
        (["@classLabel true a"], "data.ts: has no @data line; is it a .ts file"),
        ([""], "data.ts: has no @data line"),
        (["@", "@classLabel true a"], "data.ts: has no @data line"),
        (
            ["@classLabel true a", "@data 1,2:a"],
            "data.ts, line 2: @data must stand alone; start the data on the next line",
        ),
        (
            ["@classLabel true a", "@data", "", "# x"],
            "data.ts: no data after @data; add one line per example",
        ),
        (
            ["@classLabel", "@data", "1:a"],
            "data.ts, line 1: @classlabel must be true or false, got 'nothing'; correct",
        ),
        (
            ["@classLabel a b", "@data", "1:a"],
            "data.ts, line 1: @classlabel must be true or false, got 'a b'; correct",
        ),
        (
            ["@classLabel true a b a", "@data", "1:a"],
            "data.ts, line 1: @classLabel names a class twice, a b a; name each once",
        ),
        (
            ["@classLabel true a", "@classLabel true b", "@data"],
            "data.ts, line 2: @classLabel stands twice, with different values; keep one",
        ),
        (
            ["@equalLength maybe", "@classLabel true a", "@data"],
            "data.ts, line 1: @equallength must be true or false, got 'maybe'",
        ),
        (
            ["@dimensions two", "@classLabel true a", "@data"],
            "data.ts, line 1: @dimensions must be a whole number, got 'two'",
        ),
        (
            ["@seriesLength", "@classLabel true a", "@data"],
            "data.ts, line 1: @serieslength must be a whole number, got 'nothing'",
        ),
        (
            [*HEADER, "1,2:a", "1,2:c"],
            "data.ts, line 7: label 'c' is not among the classes a, b; correct it",
        ),
        ([*HEADER, "1,2:"], "data.ts, line 6: label '' is not among the classes a, b"),
        (
            [*HEADER, "1,2"],
            "data.ts, line 6: expected values, a colon and a class label; add the label",
        ),
        (
            [*HEADER, "1,2:3,4:a"],
            (
                "data.ts, line 6: 2 dimensions, but the header says @univariate true; correct "
                "one of "
                "them"
            ),
        ),
        (
            [*HEADER, "1,x:a"],
            "data.ts, line 6, dimension 1: 'x' is not a number; write \\? for a missing value",
        ),
        ([*HEADER, "1,,2:a"], "data.ts, line 6, dimension 1: '' is not a number"),
        ([*HEADER, "1,inf:a"], "data.ts, line 6, dimension 1: an infinite value; write"),
        ([*HEADER, "(2007-01-01,1):a"], "data.ts, line 6: |dimension 1: '.*' is not a number"),
        ([*HEADER, "1e39,1:a"], "data.ts: inputs hold 1e\\+39 in example 0, step 0, feature 0"),
        (
            ["@dimensions 2", "@classLabel true a", "@data", "1,2:a"],
            "data.ts, line 4: 1 dimensions, but the header says @dimensions 2",
        ),
        (
            ["@classLabel true a", "@data", "1,2:1,2:a", "1,2:a"],
            "data.ts, line 4: 1 dimensions, the first example has 2; give all examples",
        ),
        (
            ["@classLabel true a", "@data", "1,2:1,2,3:a"],
            (
                "data.ts, line 3: dimension 2 has 3 values, dimension 1 has 2; give all the same "
                "length"
            ),
        ),
        (
            ["@equalLength true", "@classLabel true a", "@data", "1,2:a", "1:a"],
            "data.ts, line 5: 1 values, the first example has 2; complete",
        ),
        (
            ["@equalLength true", "@seriesLength 3", "@classLabel true a", "@data", "1,2:a"],
            "data.ts, line 5: 2 values, but the header says @seriesLength 3; correct",
        ),
    ],
)
def test_ts_refuses(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(ts(*lines, folder=tmp_path))
    assert "\n" not in str(caught.value)


def test_many_classes_are_not_all_listed(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(100)]
    with pytest.raises(
        ValueError, match=r"label 'x' is not among the classes c0, .*, c19, \.\.\.; correct it"
    ):
        read(ts("@classLabel true " + " ".join(names), "@data", "1:x", folder=tmp_path))
