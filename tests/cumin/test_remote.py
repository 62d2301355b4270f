"""Inputs and stores on a real S3 server and a real HDFS."""

import importlib.util
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cumin
from cumin.gc import collect, pin
from cumin.place import RemotePlace, place
from cumin.store import Store
from cumin.verify import doctor, verify

SPEC = importlib.util.spec_from_file_location("cumin_test_servers", Path(__file__).with_name("servers.py"))
assert SPEC is not None
assert SPEC.loader is not None
servers = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(servers)

pytestmark = [
    pytest.mark.server,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module", params=["s3", "hdfs"])
def remote(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "s3":
        with servers.s3(folder) as (url, options):
            yield url, options
    else:
        with servers.hdfs(folder) as url:
            yield url, {}


def upload(source: Path, target: str, options: dict[str, Any]) -> None:
    there = place(target, options)
    assert isinstance(there, RemotePlace)
    for path in sorted(source.rglob("*.parquet")):
        name = there.full(str(path.relative_to(source)))
        there.fs.makedirs(name.rpartition("/")[0], exist_ok=True)
        there.fs.pipe_file(name, path.read_bytes())


def test_inputs_and_store_elsewhere(
    remote: tuple[str, dict[str, Any]], lake: Path, recipe: dict[str, Any], write_day: Callable[..., Path]
) -> None:
    url, options = remote
    wanted = cumin.build("clicks", **recipe)
    upload(lake, f"{url}/lake", options)
    source = cumin.hive(f"{url}/lake/events", partition="dt", storage_options=options)
    values = {**recipe, "inputs": {"lake.events": source}, "store": f"{url}/store", "storage_options": options}
    first = cumin.build("clicks", **values)
    assert first.content_id == wanted.content_id
    assert cumin.content_id(first.to_table()) == wanted.content_id
    assert first.manifest["inputs"][0]["strength"] == ("etag" if url.startswith("s3") else "stat")
    assert "testing-secret" not in str(first.manifest)
    assert cumin.build("clicks", **values).hit
    # A day that is written again is another state; the rest of the lake is not.
    write_day(lake / "events", 5, seed=9)
    upload(lake / "events/dt=2026-01-06", f"{url}/lake/events/dt=2026-01-06", options)
    second = cumin.build("clicks", **values)
    assert not second.hit
    assert len(set(first.files()) & set(second.files())) == 6
    by_bytes = cumin.hive(f"{url}/lake/events", partition="dt", strength="bytes", storage_options=options)
    third = cumin.build("clicks", **{**values, "inputs": {"lake.events": by_bytes}})
    assert third.content_id == second.content_id
    files = cumin.files(f"{url}/lake/events/*/*.parquet", storage_options=options)
    plan = cumin.plan("x", sql="SELECT count(*) AS n FROM t", inputs={"t": files})
    assert len(plan.state["t"][""].lines) == 10
    store = Store(f"{url}/store", options)
    assert verify(store, None, level="bytes") == []
    assert verify(store, "clicks", level="rows") == []
    assert all(well for _, well, _ in doctor(store))
    pin(store, "clicks@v1", label="prod")
    assert cumin.load("clicks@prod", store=f"{url}/store", storage_options=options).build_id == first.build_id
    assert collect(store, dry_run=True, clock=1e11).deleted == []


def test_create_only_has_one_winner(remote: tuple[str, dict[str, Any]]) -> None:
    url, options = remote
    there = place(f"{url}/race", options)
    won: list[int] = []
    gate = threading.Barrier(6)

    def create(number: int) -> None:
        gate.wait()
        if there.create("one.json", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert there.read("one.json") == str(won[0]).encode()
    there.replace("one.json", b"new")
    assert there.read("one.json") == b"new"
    assert there.names("") == ["one.json"]
    there.delete("one.json")
    there.delete("one.json")
    assert there.size("one.json") is None


def test_an_input_that_moves_is_named(
    remote: tuple[str, dict[str, Any]], lake: Path, recipe: dict[str, Any], write_day: Any
) -> None:
    url, options = remote
    upload(lake, f"{url}/moving", options)
    source = cumin.hive(f"{url}/moving/events", partition="dt", storage_options=options)

    def move(point: str) -> None:
        if point == "written":
            write_day(lake / "events", 6, rows=41)
            upload(lake / "events/dt=2026-01-07", f"{url}/moving/events/dt=2026-01-07", options)

    values = {**recipe, "inputs": {"lake.events": source}, "store": Store(f"{url}/moved", options, reach=move)}
    with pytest.raises(cumin.InputMovedError, match=r"dt=2026-01-07/part-0.parquet"):
        cumin.build("clicks", **values)
