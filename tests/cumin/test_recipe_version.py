"""The version of the rules enters every build id; the form of a recipe does not change without it."""

import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import cumin
from cumin import planning
from cumin.encoding import digest
from cumin.recipe import RECIPE_VERSION

# Per version: of each recipe its build id, and the digest of the text that runs. Where this fails, either the change was
# not meant, or RECIPE_VERSION (cumin/recipe.py) is to be bumped, its comment to say why, and these to be written anew.
GOLDEN: dict[int, dict[str, tuple[str, str]]] = {
    3: {
        "whole": (
            "b1:8b35893c828c91cc33f228cb2b326b794e6153bf56f94167a7afeadc67ffd5ee",
            "89e5e48c7854aaa6",
        ),
        "every kind of parameter": (
            "b1:10573b17041aaea19255d0d3a5de30793c1db4ac9aff58b7692bbc1a9d244f68",
            "8a56a7a45246f09d",
        ),
        "sums over decimals": (
            "b1:49292c6d6c88200f5ee40b68c525e811457e67e5b73e9e29a859615b98d300f4",
            "e2155062720ba37b",
        ),
        "partition by partition": (
            "b1:c6d1e5271fdaf4a9270c13e9f14841d7ed7470313d528269f1002214d3a78c73",
            "7d9c0082139c88c1",
        ),
        "partitions by a condition": (
            "b1:23532cdfb9b469163c0c5b6062b17690303ffb0c1dfd2c76ad9333809461324b",
            "319ab696fabebef4",
        ),
    },
}

RECIPES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "whole": lambda lake: {
        "sql": "SELECT k, s FROM t WHERE k >= :least ORDER BY k",
        "params": {"least": 2},
        "inputs": {"t": cumin.files(lake / "one.csv", strength="bytes")},
        "order_key": "k",
    },
    "every kind of parameter": lambda lake: {
        "sql": "SELECT {{ column }} FROM t WHERE s IN :names AND x < :most AND DATE '2026-01-01' < :day",
        "params": {"column": "k", "names": ["a", "b"], "most": 1.5, "day": date(2026, 1, 2)},
        "inputs": {"t": cumin.files(lake / "one.csv", strength="bytes")},
        "salt": "pepper",
    },
    "sums over decimals": lambda lake: {
        "sql": "SELECT s, sum(x) AS a, avg(x) AS b, avg(DISTINCT x) AS c FROM t GROUP BY s",
        "inputs": {"t": cumin.files(lake / "one.csv", strength="bytes", key="k")},
        "determinism": "decimal",
    },
    "partition by partition": lambda lake: {
        "sql": "SELECT dt, count(*) AS n FROM t GROUP BY dt",
        "inputs": {"t": cumin.hive(lake / "days", partition="dt", format="csv", strength="bytes")},
        "partition_by": "dt",
        "lookback": {"t": 1},
    },
    "partitions by a condition": lambda lake: {
        "sql": "SELECT k FROM t WHERE dt > :day",
        "params": {"day": date(2026, 1, 1)},
        "inputs": {"t": cumin.hive(lake / "days", partition="dt", format="csv", strength="bytes")},
    },
}  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A lake whose bytes are the same for ever."""
    lake = tmp_path / "lake"
    lake.mkdir()
    (lake / "one.csv").write_text("k,s,x\n1,a,0.5\n2,b,1.25\n3,a,2.0\n")
    for day in (1, 2, 3):
        folder = lake / f"days/dt=2026-01-0{day}"
        folder.mkdir(parents=True)
        (folder / "part.csv").write_text(f"k,v\n{day},7\n")
    return lake


def _made(lake: Path, what: str) -> planning.Plan:
    # DuckDB's version would change the ids, and is no part of the form.
    return cumin.plan("golden", engine=cumin.duckdb(threads=1, version_policy="ignore"), **RECIPES[what](lake))


@pytest.mark.parametrize("what", RECIPES)
def test_the_form_changes_only_with_the_version(small: Path, what: str) -> None:
    plan = _made(small, what)
    found = (plan.build_id, digest("executed", plan.executed)[:16])
    pinned = GOLDEN.get(RECIPE_VERSION, {}).get(what)
    assert found == pinned, f"the form of a recipe is another than version {RECIPE_VERSION} of it: see GOLDEN"


@pytest.mark.parametrize("what", RECIPES)
def test_other_rules_are_another_build(small: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = _made(small, what)
    monkeypatch.setattr(planning, "RECIPE_VERSION", RECIPE_VERSION + 1)
    there = _made(small, what)
    assert here.build_id != there.build_id
    ids = {each.build_id for each in here.subplans}
    assert ids.isdisjoint(each.build_id for each in there.subplans)


def test_what_was_stored_under_other_rules_is_no_hit(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {**RECIPES["partition by partition"](small), "store": tmp_path / "store"}
    monkeypatch.setattr(planning, "RECIPE_VERSION", RECIPE_VERSION - 1)
    assert not cumin.build("days", **values).hit
    monkeypatch.undo()
    anew = cumin.build("days", **values)
    assert not anew.hit
    assert anew.manifest["stats"]["partitions_reused"] == 0
    assert cumin.build("days", **values).hit


def test_there_is_one_place_for_the_version() -> None:
    source = Path(planning.__file__).parent
    places = [path.name for path in source.rglob("*.py") if re.search(r"^RECIPE_VERSION\b", path.read_text(), re.MULTILINE)]
    assert places == ["recipe.py"]
