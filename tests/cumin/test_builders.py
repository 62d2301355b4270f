"""Several builders of one dataset, and builders that die."""

import json
import subprocess
import sys
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

import cumin
from cumin.store import POINTS, Store
from cumin.verify import verify

FIRST_DAY = date(2026, 1, 1)
pytestmark = pytest.mark.timeout(400)  # nine builders, each a process, take long where others run beside them


def build(recipe: dict[str, Any], **more: Any) -> cumin.Dataset:
    return cumin.build("clicks", **{**recipe, **more})


PREAMBLE = """
import json, os, signal, sys
import cumin
import cumin.engines.duckdb_session, cumin.study, cumin.units  # or each forked child imports them
from cumin.store import Store
lake, store, day = sys.argv[1], sys.argv[2], sys.argv[3]
from datetime import date
def build(reach=lambda point: None, **more):
    return cumin.build("clicks", sql="SELECT dt, user_id, count(*) AS n FROM lake.events WHERE dt >= :since GROUP BY dt, user_id",
        params={"since": date.fromisoformat(day)}, inputs={"lake.events": cumin.hive(lake + "/events", partition="dt")},
        partition_by="dt", order_key=["user_id"], store=Store(store, reach=reach), **more)
"""  # noqa: E501
EIGHT = """
import fcntl
def broken(*arguments): raise OSError("no locks here")
if sys.argv[4] == "no locks": fcntl.flock = fcntl.lockf = broken
log = os.open(store + ".log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
gate_out, gate_in = os.pipe()
children = []
for number in range(8):
    child = os.fork()
    if child == 0:
        os.close(gate_in)
        os.read(gate_out, 1)  # until every child is there
        ds = build(lambda point: os.write(log, (point + "\\n").encode()))
        os.write(log, f"id {ds.build_id} {ds.content_id}\\n".encode())
        os._exit(0)
    children.append(child)
os.close(gate_out)
os.close(gate_in)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""
CRASH = """
def die(point):
    if point == sys.argv[4]: os.kill(os.getpid(), signal.SIGKILL)
for point in sys.argv[5:]:
    child = os.fork()
    if child == 0:
        sys.argv[4] = point
        build(die, salt=point)
        os._exit(0)
    print(point, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run(script: str, *arguments: object) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PREAMBLE + script, *map(str, arguments)],
                          capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_eight_builders_run_the_query_once(lake: Path, tmp_path: Path, locks: str) -> None:
    store = tmp_path / "store"
    assert json.loads(run(EIGHT, lake, store, FIRST_DAY, locks)) == [0] * 8
    lines = Path(f"{store}.log").read_text().splitlines()
    assert lines.count("written") == 1
    assert len({line for line in lines if line.startswith("id")}) == 1
    assert len([line for line in lines if line.startswith("id")]) == 8
    assert verify(Store(store), None, level="bytes") == []
    assert [each["version"] for each in Store(store).versions("clicks")] == [1]


def test_a_crash_at_any_point_leaves_no_half_dataset(lake: Path, tmp_path: Path, recipe: dict[str, Any]) -> None:
    store = tmp_path / "store"
    report = run(CRASH, lake, store, FIRST_DAY + timedelta(3), "", *POINTS)
    assert report.splitlines() == [f"{point} -9" for point in POINTS]
    wanted = cumin.build("clicks", **{**recipe, "store": tmp_path / "other"}).content_id
    for left in (store / "staging").iterdir():
        left.rename(left.with_name(f"left-by-a-crash-{left.name}"))
    for point in POINTS:
        # There is either no dataset or a whole one, and the dead builder's lease keeps nobody waiting.
        published = point in ("entry-put", "named")
        assert verify(Store(store), None, level="bytes") == []
        started = time.monotonic()
        ds = build(recipe, salt=point)
        assert ds.hit is published
        assert time.monotonic() - started < 60
        assert ds.content_id == wanted
    assert verify(Store(store), None, level="bytes") == []


def test_a_lease_whose_holder_is_elsewhere_is_taken_after_its_heart_stops(recipe: dict[str, Any], tmp_path: Path) -> None:
    from cumin import lease

    store = Store(tmp_path / "store")
    store.put_record("leases/x/000001.json", {"host": "another", "pid": 1, "born": "", "token": "t"})
    waited: list[Any] = []
    held = lease.acquire(store, "b1:x", done=lambda: False, waiting=waited.append, beat=0.05, patience=0.3)
    assert held is not None
    held.release()
    assert len(waited) > 1
