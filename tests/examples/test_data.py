"""The data set: whole or not at all, checked, the same split every time."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import data
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def root(movielens: Path, tmp_path: Path) -> Path:
    """A new cache folder that holds the fetched files and nothing made of them."""
    shutil.copytree(movielens.parent / "raw", tmp_path / "raw")
    return tmp_path


def rows(folder: Path) -> list[tuple[int, int]]:
    table = ds.dataset(folder).to_table(columns=["user_id", "item_id"])
    return list(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))


def test_every_rating_stands_once_in_train_or_test(movielens: Path) -> None:
    train, test = rows(movielens / "train"), rows(movielens / "test")
    assert (len(train), len(test)) == (90_000, 10_000)
    assert len({*train, *test}) == 100_000  # nobody rated a film twice


def test_two_ranks_can_share_each_file(movielens: Path) -> None:
    for file in movielens.rglob("*.parquet"):
        assert pq.ParquetFile(file).num_row_groups >= 2


def test_users_and_films_stand_beside_their_ratings(movielens: Path) -> None:
    table = ds.dataset(movielens / "train").to_table(filter=(ds.field("user_id") == 565) & (ds.field("item_id") == 207))
    (row,) = table.to_pylist()
    assert row["age"] == 40
    assert (row["gender"], row["occupation"]) == ("M", "student")
    assert (row["genres"], row["year"]) == (["Action", "Drama", "Romance"], 1990)
    assert (row["rating"], row["time"].isoformat()) == (4.0, "1998-03-27T22:23:13")


def test_the_split_is_the_same_every_time(movielens: Path, root: Path) -> None:
    again = data.prepare(root)
    assert rows(again / "test") == rows(movielens / "test")


def test_a_changed_file_is_refused_and_nothing_is_made(root: Path) -> None:
    with open(root / "raw" / "ml-100k.user", "ab") as file:
        file.write(b"944\t24\tM\twriter\t85711\n")
    got = hashlib.sha256((root / "raw" / "ml-100k.user").read_bytes()).hexdigest()
    with pytest.raises(data.DataError, match=rf"ml-100k\.user.*{got}.*{data.SHA256['ml-100k.user']}.*Delete"):
        data.prepare(root)
    assert [path.name for path in root.iterdir()] == ["raw"]


def test_a_missing_file_is_named(root: Path) -> None:
    (root / "raw" / "ml-100k.item").unlink()
    with pytest.raises(data.DataError, match=r"ml-100k\.item is missing"):
        data.prepare(root)


def test_offline_says_where_the_files_may_be_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    with pytest.raises(data.DataError, match=r"recbole==1\.2\.1.*No matching distribution") as caught:
        data.prepare(tmp_path / "cache")
    assert str(tmp_path / "cache" / "raw") in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_processes_at_once_make_it_once(root: Path) -> None:
    command = [sys.executable, data.__file__]
    environment = {**os.environ, "GHEE_DATA": str(root)}
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert printed == [str(root / data.MADE)] * 2
    assert sorted(path.name for path in root.iterdir()) == sorted([data.MADE, "raw"])


def test_who_comes_second_takes_what_the_first_one_made(tmp_path: Path) -> None:
    made = tmp_path / "made"

    def overtaken(folder: Path) -> None:
        (folder / "late").touch()
        made.mkdir()
        (made / "early").touch()

    data._appear_whole(made, overtaken)
    assert [path.name for path in made.iterdir()] == ["early"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
