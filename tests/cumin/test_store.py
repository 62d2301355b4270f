"""The store over time: what is lost comes back, gc takes nothing that is being published, a hit only reads."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blake3 import blake3

import cumin
from cumin.gc import collect
from cumin.needs import announced, wait_for_sweeps
from cumin.place import LocalPlace
from cumin.store import Store, entry_path
from cumin.verify import verify

DAY = 86_400.0


@pytest.fixture
def numbers(tmp_path: Path) -> Callable[..., cumin.Dataset]:
    """Builds of a table of three numbers: the query, then the arguments of `cumin.build`."""
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"v": [1, 2, 3]}), path)

    def build(sql: str, name: str = "x", **more: Any) -> cumin.Dataset:
        values = {"store": tmp_path / "store", "inputs": {"t": cumin.files(path)}, **more}
        return cumin.build(name, sql=sql, **values)

    return build


def _values(dataset: cumin.Dataset) -> list[int]:
    return sorted(dataset.to_table()["v"].to_pylist())


def test_files_are_named_by_their_bytes(numbers: Callable[..., cumin.Dataset]) -> None:
    for file in map(Path, numbers("SELECT v FROM t").files()):
        assert file.stem == blake3(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("order", [{}, {"order_key": "v"}], ids=["free", "ordered"])
@pytest.mark.parametrize("lost", ["file", "unit"])
def test_what_is_lost_comes_back(numbers: Callable[..., cumin.Dataset], order: dict[str, Any], lost: str) -> None:
    first = numbers("SELECT v FROM t", **order)
    file = Path(first.files()[0])
    shutil.rmtree(file.parent) if lost == "unit" else file.unlink()
    again = numbers("SELECT v FROM t", **order)
    assert (again.build_id, again.content_id, again.hit) == (first.build_id, first.content_id, False)
    assert _values(again) == _values(first) == [1, 2, 3]  # the old handle too: its files have their names again
    assert numbers("SELECT v FROM t", **order).hit
    assert verify(again.store, None, level="bytes") == []


def test_the_same_rows_in_other_bytes_take_the_place_of_what_is_lost(
    numbers: Callable[..., cumin.Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = numbers("SELECT v FROM t")
    other = numbers("SELECT v + 0 AS v FROM t", "other")
    assert other.files() == first.files()  # the same rows are kept once
    os.unlink(first.files()[0])
    writer = pq.ParquetWriter
    monkeypatch.setattr(pq, "ParquetWriter", lambda *a, **kw: writer(*a, **kw, use_dictionary=False))  # a newer pyarrow, say
    again = numbers("SELECT v FROM t")
    assert again.content_id == first.content_id
    assert again.files() != first.files()
    assert _values(again) == [1, 2, 3]
    assert numbers("SELECT v FROM t").hit
    repaired = numbers("SELECT v + 0 AS v FROM t", "other")  # its manifest names what is lost: it is built again too
    assert (repaired.hit, repaired.files()) == (False, again.files())
    assert verify(again.store, None, level="rows") == []


def test_a_lost_partition_comes_back(recipe: dict[str, Any]) -> None:
    values = {**recipe, "lookback": {"lake.events": 0}}
    first = cumin.build("days", **values)
    shutil.rmtree(Path(first.files()[0]).parent)
    again = cumin.build("days", **values)
    assert (again.content_id, again.manifest["stats"]["partitions_built"]) == (first.content_id, 7)
    assert again.to_table().num_rows == first.rows
    assert cumin.build("days", **values).hit


# -- gc beside builders ---------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["leased", "written", "units-put", "manifest-put", "entry-put", "named"])
def test_gc_takes_nothing_that_is_being_published(numbers: Callable[..., cumin.Dataset], tmp_path: Path, point: str) -> None:
    """A builder takes the unit of a build that was dropped long ago; gc comes at every point of it."""
    numbers("SELECT v FROM t", "old")
    numbers("SELECT v + 1 AS v FROM t", "old")
    store, now = Store(tmp_path / "store"), time.time()
    for _ in range(2):  # the name goes, then its tombstone comes
        collect(store, dry_run=False, keep=1, clock=now + 8 * DAY)
    done = []

    def reach(here: str) -> None:
        if here == point:
            done.append(collect(Store(tmp_path / "store"), dry_run=False, keep=1, clock=now + 17 * DAY))

    new = numbers("SELECT v AS v FROM t", "new", store=Store(tmp_path / "store", reach=reach))
    assert len(done) == 1
    assert _values(new) == [1, 2, 3]
    assert verify(store, None, level="bytes") == []


@pytest.mark.parametrize("point", ["leased", "written", "file-put", "unit-put", "units-put", "manifest-put", "entry-put"])
def test_gc_without_grace_takes_nothing_that_is_being_published(recipe: dict[str, Any], point: str) -> None:
    where = recipe["store"]

    def reach(here: str) -> None:
        if here == point:
            collect(Store(where), dry_run=False, grace_days=0.0)

    values = {**recipe, "lookback": {"lake.events": 0}, "store": Store(where, reach=reach)}
    assert cumin.build("days", **values).to_table().num_rows
    assert verify(Store(where), None, level="bytes") == []


def test_gc_takes_what_a_builder_that_was_killed_needed(numbers: Callable[..., cumin.Dataset], tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def reach(here: str) -> None:
        if here == "manifest-put":
            raise Killed

    with pytest.raises(Killed):
        numbers("SELECT v FROM t", store=Store(tmp_path / "store", reach=reach))
    done = collect(Store(tmp_path / "store"), dry_run=False, grace_days=0.0)
    assert len([each for each in done.files if each.endswith(".parquet")]) == 1


def test_a_builder_waits_for_the_gc_that_deletes_what_it_needs(tmp_path: Path) -> None:
    store, order = Store(tmp_path / "store"), []

    def build() -> None:
        wait_for_sweeps(store, ["data/aa/bb/", "builds/x.json"])
        order.append("built")

    builder = threading.Thread(target=build)
    with announced(store, ["data/aa/bb/file.parquet"]) as sweep:
        builder.start()
        builder.join(0.3)
        assert builder.is_alive()
        assert sweep.alive()
        order.append("deleted")
        wait_for_sweeps(store, ["data/aa/other/", "builds/x.json"])  # what is not deleted waits for nobody
    builder.join()
    assert order == ["deleted", "built"]
    assert store.place.names("sweeps") == []


def test_a_gc_that_was_killed_keeps_nobody_waiting_and_deletes_no_more(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with announced(store, ["data/aa/bb/file.parquet"]) as sweep:
        wait_for_sweeps(store, ["data/aa/bb/"], patience=0.2)  # its heart has not beaten yet
        assert not sweep.alive()


def test_a_name_that_comes_while_gc_looks_keeps_the_build(
    numbers: Callable[..., cumin.Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gc has found a build without a name; before it says so, a hit gives the build one."""
    numbers("SELECT v FROM t", "x")
    numbers("SELECT v + 1 AS v FROM t", "x")
    now = time.time()
    for _ in range(2):
        collect(Store(tmp_path / "store"), dry_run=False, keep=1, clock=now + 8 * DAY)
    put = Store.put_record
    named = []

    def put_record(self: Store, path: str, *arguments: Any, **more: Any) -> bool:
        if path.startswith("sweeps/"):
            monkeypatch.undo()
            named.append(numbers("SELECT v FROM t", "y"))
        return put(self, path, *arguments, **more)

    monkeypatch.setattr(Store, "put_record", put_record)
    done = collect(Store(tmp_path / "store"), dry_run=False, keep=1, clock=now + 17 * DAY)
    assert [each.hit for each in named] == [True]
    assert done.deleted == []
    assert _values(cumin.load("y", store=tmp_path / "store")) == [1, 2, 3]


# -- hits -----------------------------------------------------------------------------------------


def _state(root: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path), path.stat().st_mtime_ns, path.stat().st_ino) for path in root.rglob("*"))


def test_a_hit_writes_nothing_and_reads_one_version(
    numbers: Callable[..., cumin.Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        last = numbers("SELECT v FROM t WHERE v < :n", params={"n": number})
    before = _state(tmp_path / "store")
    read, real = [], LocalPlace.read

    def counted(self: LocalPlace, path: str) -> bytes:
        read.append(path)
        return real(self, path)

    monkeypatch.setattr(LocalPlace, "read", counted)
    hit = numbers("SELECT v FROM t WHERE v < :n", params={"n": 5})
    assert (hit.hit, hit.version) == (True, 6)
    assert [path for path in read if path.startswith("refs/")] == ["refs/x/v000006.json"]
    assert len(read) == 4  # the store's format, the entry, the manifest, the version
    assert _state(tmp_path / "store") == before
    read.clear()
    assert cumin.load("x@v2", store=tmp_path / "store").version == 2
    assert cumin.load("x", store=tmp_path / "store").build_id == last.build_id
    assert cumin.load(last.build_id, store=tmp_path / "store").version == 6


def test_a_store_that_can_only_be_read_serves_hits(
    numbers: Callable[..., cumin.Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = numbers("SELECT v FROM t")
    new = numbers("SELECT v + 1 AS v FROM t")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("create", "replace", "put", "delete"):
        monkeypatch.setattr(LocalPlace, name, refuse)
    assert (cumin.load("x", store=tmp_path / "store").build_id) == new.build_id
    found = {
        "the newest": numbers("SELECT v + 1 AS v FROM t"),
        "an older one": numbers("SELECT v FROM t"),
        "under another name": numbers("SELECT v FROM t", "y"),
    }
    assert {what: (each.hit, each.version) for what, each in found.items()} == {
        "the newest": (True, 2),
        "an older one": (True, 1),
        "under another name": (True, None),
    }
    assert found["an older one"].build_id == old.build_id
    with pytest.raises(cumin.StoreError, match="cannot be written"):
        numbers("SELECT v + 2 AS v FROM t")


def test_a_hit_under_another_name_names_it(numbers: Callable[..., cumin.Dataset], tmp_path: Path) -> None:
    first = numbers("SELECT v FROM t")
    assert numbers("SELECT v FROM t", "y").version == 1
    assert cumin.load("y", store=tmp_path / "store").build_id == first.build_id
    assert Store(tmp_path / "store").entry(first.build_id) is not None
    assert entry_path(first.build_id).startswith("builds/")
