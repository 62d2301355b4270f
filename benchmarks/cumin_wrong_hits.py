"""Wrong hits: five ways in which a dataset could be taken for another. Each must be a miss, or be refused.

    python benchmarks/cumin_wrong_hits.py

The one documented miss at `stat`: a file system that keeps no ctime (HDFS) and a rewrite that puts back size and mtime.
"""

import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import cumin
from cumin.store import Store


def nested(value: int) -> object:
    """`value` eleven levels deep."""
    deep: object = value
    for _ in range(11):
        deep = {"v": deep}
    return deep


def main() -> None:
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)

        def build(sql: str, store: object = None, **inputs: Path) -> cumin.Dataset:
            tables = {table: cumin.files(path) for table, path in inputs.items()}
            return cumin.build("x", sql=sql, inputs=tables, store=store or root / "store")

        def report(what: str, is_wrong: bool) -> None:
            nonlocal wrong
            wrong += is_wrong
            print(f"| {what} | {'WRONG HIT' if is_wrong else 'no wrong hit'} |")

        print("| case | |\n|---|---|")
        a = root / "a.parquet"
        pq.write_table(pa.table({"n": [1, 2, 3]}), a, use_dictionary=False, compression="none")
        build("SELECT sum(n) AS n FROM a", a=a)
        stat, data = a.stat(), a.read_bytes()
        at = data.index((2).to_bytes(8, "little"))
        a.write_bytes(data[:at] + (7).to_bytes(8, "little") + data[at + 8 :])
        os.utime(a, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        again = build("SELECT sum(n) AS n FROM a", a=a)
        report("same-size rewrite with preserved mtime", again.hit or again.to_table()["n"].to_pylist() != [11])

        def rewrite(point: str) -> None:
            if point == "written":
                pq.write_table(pa.table({"n": [5]}), a)

        try:
            build("SELECT sum(n) + 0 AS n FROM a", Store(root / "store", reach=rewrite), a=a)
            report("write during the build", True)
        except cumin.InputMovedError:
            report("write during the build", build("SELECT sum(n) + 0 AS n FROM a", a=a).hit)
        upper, lower = build("SELECT n AS Foo FROM a", a=a), build("SELECT n AS foo FROM a", a=a)
        report("alias case change", lower.hit or upper.content_id == lower.content_id)
        b = root / "b.parquet"
        pq.write_table(pa.table({"n": [6]}), b)
        one, other = build("SELECT n FROM a", a=a), build("SELECT n FROM b", b=b)
        report("two tables of the same shape", other.hit or one.content_id == other.content_id)
        pq.write_table(pa.table({"n": [nested(1)]}), a)
        first = build("SELECT n FROM a", a=a)
        pq.write_table(pa.table({"n": [nested(2)]}), a)
        second = build("SELECT n FROM a", a=a)
        report("a change eleven levels deep", second.hit or first.content_id == second.content_id)
    print(f"wrong hits: {wrong}")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
