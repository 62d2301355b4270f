"""Constructs that vary in DuckDB, by the notes and by an attack, 20 builds each: refused, identical, silently different.

    python benchmarks/cumin_determinism.py --builds 20 --rows 1000000

Those that pass are built with one, two and four threads in turn, with and without insertion order. The last column counts
the contents that the refused ones would have had, with the check taken out of the way (`allow`).
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import cumin
from cumin.building import build_recipe
from cumin.engines.duckdb_engine import DuckDB
from cumin.store import Store

RULES = ("float-sum", "order-sensitive", "numbering", "limit", "distinct-on", "sample", "volatile", "clock", "approximate",
         "engine-hash", "asof-join", "unknown-aggregate", "not-understood",
         "collation", "signed-zero", "using-key", "undeclared")  # fmt: skip
# The same text in two cases, and the same number with two signs, by row.
CASES, ZEROS = "(CASE WHEN k % 2 = 0 THEN 'a' ELSE 'A' END)", "(CASE WHEN k % 2 = 0 THEN 0.0 ELSE -0.0 END)::DOUBLE"
CONSTRUCTS = {
    "sum(double)": "SELECT g, sum(x) AS v FROM t GROUP BY g",
    "ungrouped sum(double)": "SELECT sum(x) AS v FROM t",
    "avg(double)": "SELECT g, avg(x) AS v FROM t GROUP BY g",
    "stddev": "SELECT g, stddev(x) AS v FROM t GROUP BY g",
    "fsum(double)": "SELECT g, fsum(x) AS v FROM t GROUP BY g",
    "approx_quantile": "SELECT g, approx_quantile(x, 0.5) AS v FROM t GROUP BY g",
    "approx_count_distinct": "SELECT g, approx_count_distinct(k) AS v FROM t GROUP BY g",
    "list()": "SELECT g, list(k) AS v FROM t GROUP BY g",
    "string_agg()": "SELECT g, string_agg(s, ',') AS v FROM t GROUP BY g",
    "mode()": "SELECT g, mode(s) AS v FROM t GROUP BY g",
    "first()": "SELECT g, first(k) AS v FROM t GROUP BY g",
    "any_value()": "SELECT g, any_value(k) AS v FROM t GROUP BY g",
    "arg_max": "SELECT g, arg_max(k, s) AS v FROM t GROUP BY g",
    "row_number() without order": "SELECT k, row_number() OVER () AS v FROM t",
    "row_number, ties": "SELECT k, row_number() OVER (ORDER BY g) AS v FROM t",
    "row_number, total order": "SELECT k, row_number() OVER (PARTITION BY g ORDER BY k) AS v FROM t",
    "ORDER BY ties + LIMIT": "SELECT k, g FROM t ORDER BY g LIMIT 1000",
    "LIMIT after GROUP BY": "SELECT s, count(*) AS v FROM t GROUP BY s LIMIT 100",
    "LIMIT on plain scan": "SELECT k FROM t LIMIT 1000",
    "DISTINCT ON without order": "SELECT DISTINCT ON (g) g, k FROM t",
    "random()": "SELECT k, random() AS v FROM t",
    "now()": "SELECT g, now() AS v FROM t GROUP BY g",
    "sum(decimal)": "SELECT g, sum(x::DECIMAL(18, 4)) AS v FROM t GROUP BY g",
    "avg(int)": "SELECT g, avg(k) AS v FROM t GROUP BY g",
    "median": "SELECT g, median(x) AS v FROM t GROUP BY g",
    "list(x ORDER BY unique)": "SELECT g, list(x ORDER BY k) AS v FROM t GROUP BY g",
    "seeded bernoulli sample": "SELECT k FROM t TABLESAMPLE bernoulli(10%) REPEATABLE (7)",
    "seeded system sample": "SELECT k FROM t TABLESAMPLE system(10%) REPEATABLE (7)",
    "seeded reservoir sample": "SELECT k FROM t TABLESAMPLE reservoir(1000) REPEATABLE (7)",
    "hash(uid) % 10 = 0": "SELECT k FROM t WHERE hash(k) % 10 = 0",
    "sum(COLUMNS(*))": "SELECT sum(COLUMNS(*)) FROM (SELECT k, x FROM t)",
    "avg(COLUMNS(* EXCLUDE g))": "SELECT avg(COLUMNS(* EXCLUDE (g, s))) FROM t",
    "alias hides the key, LIMIT": "SELECT k % 7 AS k, x FROM t ORDER BY k LIMIT 5",
    "alias hides the key, DISTINCT ON": "SELECT DISTINCT ON (k) k % 7 AS k, x FROM t ORDER BY k",
    "alias hides the key, GROUP BY": "SELECT k % 7 AS k, min(x) AS x FROM t GROUP BY k ORDER BY k LIMIT 5",
    "ARRAY(SELECT)": "SELECT ARRAY(SELECT k FROM t) AS a",
    "GROUP BY under COLLATE NOCASE": f"SELECT c, count(*) AS n FROM (SELECT {CASES} COLLATE NOCASE AS c FROM t) GROUP BY c",
    "DISTINCT under COLLATE NOCASE": f"SELECT DISTINCT {CASES} COLLATE NOCASE AS c FROM t",
    "UNION under COLLATE NOCASE": f"SELECT {CASES} COLLATE NOCASE AS c FROM t UNION SELECT 'a' FROM t",
    "GROUP BY -0.0, then 1 / z": f"SELECT z, 1 / z AS v FROM (SELECT {ZEROS} AS z FROM t) GROUP BY z",
    "GROUP BY -0.0, then text": f"SELECT z::VARCHAR AS v FROM (SELECT {ZEROS} AS z FROM t GROUP BY z)",
    "DISTINCT -0.0, then text": f"SELECT z::VARCHAR AS v FROM (SELECT DISTINCT {ZEROS} AS z FROM t)",
    "GROUP BY -0.0": f"SELECT z, count(*) AS n FROM (SELECT {ZEROS} AS z FROM t) GROUP BY z",
    "SUMMARIZE": "FROM (SUMMARIZE t)",
    "USING KEY": "WITH RECURSIVE r(a, b) USING KEY (a) AS (SELECT g, k FROM t UNION SELECT a, b FROM r WHERE b < 0) FROM r",
    "json_execute_serialized_sql": "SELECT k, j.* FROM t, json_execute_serialized_sql(json_serialize_sql('SELECT 1')) j",
    "CTE, its input's name": "WITH t AS (SELECT * FROM t WHERE g > 1) SELECT k, s FROM t ORDER BY k LIMIT 5",
    "hash_mod(uid, 10, 7) = 0": "SELECT k FROM t WHERE hash_mod(k, 10, 7) = 0",
}


def contents(root: Path, sql: str, builds: int, how: Any) -> set[str]:
    found = set()
    for number in range(builds):
        engine = DuckDB(threads=(1, 2, 4)[number % 3], preserve_insertion_order=number % 2 == 0)
        inputs = {"t": cumin.files(root / "*.parquet", key="k")}
        recipe = cumin.make_recipe("x", sql=sql, inputs=inputs, determinism=how, engine=engine)
        with tempfile.TemporaryDirectory() as store:
            found.add(build_recipe(recipe, Store(store)).content_id)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--builds", type=int, default=20)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--refused-builds", type=int, default=3)
    arguments = parser.parse_args()
    silently = 0
    with tempfile.TemporaryDirectory() as name:
        root, rng = Path(name), np.random.default_rng(0)
        for number in range(8):
            rows = arguments.rows // 8
            columns = {"k": np.arange(rows) + number * rows, "g": rng.integers(0, 200, rows), "x": rng.random(rows)}
            names = pa.array([f"s{each}" for each in range(500)])
            table = pa.table({**columns, "s": names.take(pa.array(rng.integers(0, 500, rows)))})
            pq.write_table(table, root / f"{number}.parquet", row_group_size=20_000)
        print("| construct | verdict | contents in the builds let pass | contents if it were let pass |\n|---|---|---|---|")
        for label, sql in CONSTRUCTS.items():
            try:
                found = contents(root, sql, arguments.builds, "strict")
            except cumin.DeterminismError:
                free = contents(root, sql, arguments.refused_builds, cumin.Determinism(allow=RULES))
                print(f"| {label} | refused | | {len(free)} of {arguments.refused_builds} |", flush=True)
                continue
            silently += len(found) > 1
            verdict = "identical" if len(found) == 1 else "DIFFERENT"
            print(f"| {label} | {verdict} | {len(found)} of {arguments.builds} | |", flush=True)
    print(f"{len(CONSTRUCTS)} constructs, silently different: {silently}")
    raise SystemExit(silently > 0)


if __name__ == "__main__":
    main()
