"""Ids over three DuckDB, three pyarrow and three sqlglot versions, each in an environment of its own (needs uv).

    python benchmarks/cumin_versions.py

The build id takes DuckDB's version in by policy: `minor` (the default) lets patch releases share an id, `ignore` all. So
content ids are compared over all versions, build ids at `ignore` over all, and at `minor` within one minor release.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

DUCKDB, PYARROW, SQLGLOT = ("1.5.4", "1.5.6", "2.0.0"), ("24.0.0", "25.0.1", "26.0.1"), ("28.6.0", "29.0.1", "30.30.0")
SCRIPT = """
import json, sys
from datetime import date
from decimal import Decimal
import cumin, duckdb, pyarrow, sqlglot
root = sys.argv[1]
sql = '''WITH c AS (SELECT dt, u.country, user_id, count(*) AS n, sum(amount::DECIMAL(18, 4)) AS a, list(DISTINCT item_id ORDER BY item_id) AS items
  FROM lake.events e JOIN lake.users u USING (user_id) WHERE dt BETWEEN :day - INTERVAL 3 DAY AND :day AND amount > :low GROUP BY ALL)
  SELECT *, row_number() OVER (PARTITION BY dt, country ORDER BY n DESC, user_id) AS rank, {'user': user_id} AS s, now_ AS t
  FROM c, (SELECT TIMESTAMPTZ '2026-01-01 00:00:00+00' AS now_)'''
out = []
for policy in ("ignore", "minor"):
    ds = cumin.build("x", sql=sql, params={"day": date(2026, 1, 6), "low": Decimal("0.10")}, partition_by="dt",
        inputs={"lake.events": cumin.hive(root + "/events", partition="dt"), "lake.users": cumin.files(root + "/users.parquet", key="user_id")},
        order_key=["country", "user_id"], engine=cumin.duckdb(version_policy=policy), determinism=cumin.Determinism(allow=("row_number",)),
        store=sys.argv[2])
    out.append(ds.build_id)
print(json.dumps([duckdb.__version__, pyarrow.__version__, sqlglot.__version__, *out, ds.content_id]))
"""  # noqa: E501
LAKE = """
import sys, os, numpy as np, pyarrow as pa, pyarrow.parquet as pq
rng = np.random.default_rng(0)
for day in range(1, 9):
    os.makedirs(f"{sys.argv[1]}/events/dt=2026-01-0{day}")
    pq.write_table(pa.table({"user_id": rng.integers(0, 50, 500), "item_id": rng.integers(0, 9, 500), "amount": rng.random(500)}),
                   f"{sys.argv[1]}/events/dt=2026-01-0{day}/p.parquet")
pq.write_table(pa.table({"user_id": np.arange(50), "country": ["jp", "kr"] * 25}), f"{sys.argv[1]}/users.parquet")
"""  # noqa: E501


def main() -> None:
    package = Path(__file__).parents[1] / "packages/cumin"
    rows = []
    with tempfile.TemporaryDirectory() as name:
        subprocess.run([sys.executable, "-c", LAKE, f"{name}/lake"], check=True)
        for index in range(3):
            for duck, arrow, glot in {(DUCKDB[index], PYARROW[2], SQLGLOT[2]), (DUCKDB[2], PYARROW[index], SQLGLOT[2]),
                                      (DUCKDB[2], PYARROW[2], SQLGLOT[index])}:  # fmt: skip
                command = ["uv", "run", "-q", "--no-project", "--python", sys.executable, "--with", str(package)]
                for pin in (f"duckdb=={duck}", f"pyarrow=={arrow}", f"sqlglot=={glot}"):
                    command += ["--with", pin]
                store = tempfile.mkdtemp(dir=name)
                env = {key: value for key, value in os.environ.items() if key not in ("UV_CONSTRAINT", "PIP_CONSTRAINT")}
                done = subprocess.run([*command, "python", "-W", "ignore", "-c", SCRIPT, f"{name}/lake", store], env=env,
                                      capture_output=True, text=True, check=False)  # fmt: skip
                if done.returncode:
                    print(f"duckdb {duck}, pyarrow {arrow}, sqlglot {glot}: {done.stderr.strip().splitlines()[-1]}")
                    rows.append([duck, arrow, glot, "failed", "failed", "failed"])
                    continue
                rows.append(json.loads(done.stdout))
                print(*rows[-1][:3], *(each[:15] for each in rows[-1][3:]), flush=True)
    builds, contents = len({row[3] for row in rows}), len({row[5] for row in rows})
    print(f"{len(rows)} environments: {builds} build id at ignore, {contents} content id")
    minors = {row[0].rpartition(".")[0] for row in rows}
    print(f"at minor: {len({row[4] for row in rows})} build ids over {len(minors)} minor releases of DuckDB")
    raise SystemExit(builds > 1 or contents > 1)


if __name__ == "__main__":
    main()
