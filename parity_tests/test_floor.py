"""The noise floor: its curves, the noise of the calibration, and the commands that write both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import pe_flax.engine
import pe_torch.engine
from parity_tests.cases import ENGINES, small_config
from pe_cli.evidence import floor_settings
from pe_cli.main import main
from pe_core import Features, ModelConfig, TrainConfig
from pe_core.data import dummy
from pe_core.errors import UserError
from pe_core.model.initial import initial_arrays
from pe_core.training.backends import backends
from pe_parity.budgets import AIM, BUDGETS, FAIR, SETTLED
from pe_parity.calibrate import CASES, calibrate, random_case
from pe_parity.evidence import NAMES, Section, read_sections, with_tables, write_sections
from pe_parity.floor import Curves, Floor, moved_by_one_ulp, noise_floor
from pe_parity.report import TITLES

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ModelConfig(
    inputs=Features(16),
    num_classes=2,
    d_model=12,
    num_heads=3,
    num_layers=1,
    d_ff=20,
    attention_bias=True,
)
RUN = TrainConfig(batch_size=50, learning_rate=1e-3)
LENGTH, ULPS = 24, 4


@pytest.fixture(scope="module")
def floor() -> Floor:
    changes = {"at the start": [0], "once": [7], "often": range(3, LENGTH, 5)}
    return noise_floor(
        ENGINES, CONFIG, dummy(0).train, RUN, steps=LENGTH, ulps=ULPS, changes=changes
    )


@pytest.fixture(scope="module")
def curves(floor: Floor) -> Curves:
    return floor.compared


@pytest.mark.parametrize("kind", ["compared", "all_weights"])
def test_curves_of_both_backends(floor: Floor, kind: str) -> None:
    curves = getattr(floor, kind)
    assert len(floor.left_out) == len(curves.steps)
    assert curves.steps[0] == 1
    assert curves.steps[-1] == LENGTH
    assert set(curves.exact) == set(ENGINES)
    assert len(curves.one_ulp) == ULPS
    for curve in (curves.between, curves.floor, curves.moved, *curves.exact.values()):
        assert len(curve) == len(curves.steps)
        assert all(np.isfinite(curve))
        assert all(value > 0.0 for value in curve)
    json.dumps(floor.to_json(), allow_nan=False)


def test_a_run_that_is_handed_over_stays_within_the_floor(curves: Curves) -> None:
    """It is the run of the first backend up to there, bit for bit, and afterwards no further from
    it than one ulp drives it.
    """
    assert curves.chaos is None
    once = dict(zip(curves.steps, curves.handed_over["once"], strict=True))
    assert all(once[step] == 0.0 for step in curves.steps if step <= 7)
    assert once[LENGTH] > 0.0
    assert set(curves.worst_ratio_handed_over) == {"at the start", "once", "often"}
    assert max(curves.worst_ratio_handed_over.values()) <= AIM


def test_a_run_that_loses_its_moments_leaves_the_floor() -> None:
    class Forgetful(pe_flax.engine.Engine):
        def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
            super().restore(
                {
                    name: np.zeros_like(array) if "adam/m/" in name else array
                    for name, array in arrays.items()
                }
            )

    engines = {"torch": ENGINES["torch"], "flax": Forgetful}
    found = noise_floor(
        engines, CONFIG, dummy(0).train, RUN, steps=10, ulps=2, changes={"once": [7]}
    )
    assert found.compared.worst_ratio_handed_over["once"] > AIM


def test_a_weight_that_ever_was_without_a_gradient_is_left_out() -> None:
    """Its gradient is negligible at the first step alone, and the second backend moves it
    elsewhere.
    """

    class Noisy(pe_torch.engine.Engine):
        asked = 0

        def state(self) -> dict[str, np.ndarray]:
            found = super().state()
            if self.asked == 0:
                found["adam/v/head.bias"] = found["adam/v/head.bias"] * [
                    np.finfo(np.float32).tiny,
                    1.0,
                ]
            self.asked += 1
            return found

    class Elsewhere(pe_torch.engine.Engine):
        def weights(self) -> dict[str, np.ndarray]:
            found = super().weights()
            return found | {"head.bias": found["head.bias"] + np.array([1.0, 0.0], np.float32)}

    found = noise_floor(
        {"torch": Noisy, "flax": Elsewhere}, CONFIG, dummy(0).train, RUN, steps=3, ulps=1
    )
    assert found.left_out == [1, 1, 1]
    assert found.compared.between == [0.0, 0.0, 0.0]
    assert all(share > 1.0 for share in found.all_weights.between)


def test_one_ulp_is_one_ulp_of_one_weight() -> None:
    arrays = initial_arrays(small_config(), 0)
    places = set()
    for number in range(20):
        moved = moved_by_one_ulp(arrays, 0, number)
        different = {name: np.flatnonzero(moved[name] != arrays[name]) for name in arrays}
        ((name, place),) = [(name, int(at)) for name, found in different.items() for at in found]
        before, after = arrays[name].flat[place], moved[name].flat[place]
        assert abs(after) == np.nextafter(abs(before), np.float32(np.inf))
        places.add((name, place))
    assert len(places) > 1


def test_chaos_is_where_one_ulp_has_grown_tenfold() -> None:
    ulps = [[2.0, 1.0, 9.0, 11.0], [1.0, 1.0, 1.0, 1.0]]
    tame = Curves([1, 2, 4, 8], [3.0, 3.0, 3.0, 900.0], {}, ulps, {}, [], [])
    assert tame.floor == [2.0, 1.0, 9.0, 11.0]
    assert tame.chaos == 8
    assert tame.worst_ratio == 3.0
    assert tame.settled == 4
    assert Curves([1, 2], [1.0, 1.0], {}, [[1.0, 5.0]], {}, [], []).chaos is None


def test_random_cases_are_drawn_over_all_options() -> None:
    cases = [random_case(number, 1) for number in range(CASES)]
    fields = "norm activation attention_bias pooling dropout num_layers num_heads"
    for field in fields.split():
        assert len({getattr(case.config, field) for case in cases}) > 1, field
    assert {case.config.pooling for case in cases} == {"mean", "max", "cls", "last", "attention"}
    assert {len(case.config.encodings) for case in cases} == {0, 1, 2}
    assert {case.batches[0].mask is None for case in cases} == {False, True}
    assert len({case.config for case in cases}) == CASES
    assert sum(case.depth == "run" for case in cases) >= 100
    again = random_case(3, 1)
    assert again.config == cases[3].config
    assert all(np.array_equal(again.arrays[name], array) for name, array in cases[3].arrays.items())


def test_noise_is_the_largest_of_all_distances() -> None:
    torch = {"torch": ENGINES["torch"]}
    found = calibrate(torch, 2, ("float32",), steps=3)
    fewer = calibrate(torch, 1, ("float32",), steps=3)
    for key, noise in fewer.noise.items():
        assert found.noise[key].largest >= noise.largest
        assert found.noise[key].count >= noise.count
    assert found.noise["tap", "float32"].count > fewer.noise["tap", "float32"].count


def section(name: str, **changes: Any) -> Section:
    options: dict[str, Any] = {"command": "c", "columns": ["a", "b"], "rows": [[1234, 1.23456e-9]]}
    return Section(name, versions={"torch": "1", "cores": 2}, **(options | changes))


def test_sections_are_tables_between_the_prose_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "parity.md"
    page.write_text("Prose.\n<!-- table: faults -->\nold\n<!-- end -->\nMore.\n")
    write_sections(tmp_path, [section("faults")], {"faults": [1.23456e-9]})
    assert page.read_text() == (
        "Prose.\n<!-- table: faults -->\n| a | b |\n| --- | --- |\n| 1,234 | 1.2e-09 |\n\n"
        "Measured by `c` with torch 1 on 2 cores of None.\n<!-- end -->\nMore.\n"
    )
    assert read_sections(tmp_path)[0].rows == [[1234, 1.23e-9]]
    assert "1.23456e-09" in (tmp_path / "evidence" / "raw" / "faults.json").read_text()
    write_sections(tmp_path, [section("floor")])
    assert "More.\n\n## Floor\n\n<!-- table: floor -->\n| a | b |" in page.read_text()
    page.write_text("<!-- table: floor -->\n")
    with pytest.raises(UserError, match=r"no line <!-- end --> after <!-- table: floor -->"):
        write_sections(tmp_path, [section("floor")])
    (tmp_path / "evidence" / "floor.json").write_text('{"name": "floor"}')
    with pytest.raises(UserError, match=r"floor\.json is not a section of the report"):
        read_sections(tmp_path)


def test_the_evidence_in_the_docs_holds_what_it_should() -> None:
    """The page has the tables of its sections; there is no false alarm, every bound is near its
    noise and measured as it stands, and runs that are handed over stay within the floor.
    """
    docs = ROOT / "docs"
    page, sections = (docs / "parity.md").read_text(encoding="utf-8"), read_sections(docs)
    assert with_tables(page, sections) == page
    files = [docs / "noise_floor.svg", *(docs / "evidence").glob("*.json")]
    assert sum(file.stat().st_size for file in files) < 50_000
    found = {one.name: [dict(zip(one.columns, row, strict=True)) for row in one.rows]
             for one in sections}  # fmt: skip
    assert list(found) == list(NAMES)
    for row in found["floor"]:
        assert row["steps measured"] >= 1000, row
        assert row["handed over later / one ulp"] <= AIM, row
        if row["parameters"] != "all":
            assert row[f"within {AIM:g} from step"] <= SETTLED, row
    assert [(row["clean runs"], row["alarms"]) for row in found["false_alarms"]] == [(100, 0)] * 2
    assert len({(row["area"], row["fault"]) for row in found["faults"]}) >= 30
    assert all(row["ratio"] <= FAIR for row in found["fairness"])
    # A bound that changes has to be measured against again.
    kinds = {title: kind for kind, title in TITLES.items()}
    for row in found["agreement"]:
        entry = BUDGETS[kinds[row["compared"]], row["precision"]]  # type: ignore[index]
        assert row["torch to baseline"] <= row["bound"] == entry.bound
    for row in found["calibration"]:
        entry = BUDGETS[kinds[row["quantity"]], row["precision"]]  # type: ignore[index]
        measured = (row["in the table"], row["fault"], row["bound"], row[""])
        assert measured == (entry.noise, entry.fault, entry.bound, "ok")


def test_the_commands_write_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = {"torch": backends()["torch"]}
    monkeypatch.setattr("pe_cli.engines.backends", lambda: torch)
    small = {"dummy data": (CONFIG, floor_settings()["dummy data"][1], RUN)}
    monkeypatch.setattr("pe_cli.evidence.floor_settings", lambda: small)
    assert main(["parity", "--report", str(tmp_path), "--steps=3"]) == 0
    said = capsys.readouterr().out
    assert "dummy data: after 3 steps float32 from float64 by " in said
    picture = ElementTree.fromstring((tmp_path / "noise_floor.svg").read_text())
    assert "torch to float64" in [element.text for element in picture.iter()]
    monkeypatch.setattr("pe_parity.calibrate.STEPS", 2)
    main(["parity", "--calibrate=1", f"--report={tmp_path}"])
    assert [one.name for one in read_sections(tmp_path)] == ["agreement", "floor", "calibration"]
