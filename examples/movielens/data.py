"""MovieLens-100K as Parquet: fetched once, checked, joined, split into train and test by a fixed seed.

The data set (Harper and Konstan, "The MovieLens Datasets", ACM TiiS 2015: 100,000 ratings by 943 users of 1,682 films)
is not ours to ship. The wheel `recbole` on PyPI carries it; the wheel is unpacked, not installed.

    python data.py          prints the folder, after making it if it is not there

What is made, below `$GHEE_DATA` (default `~/.cache/ghee/ml-100k`):

    raw/                    ml-100k.inter, .user, .item as they stand in the wheel
    parquet-1/train/        90,000 ratings in two files of nine row groups each
    parquet-1/test/         10,000 ratings in two files of two row groups each

Every folder appears whole or not at all, so two processes may call this at the same time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

WHEEL = "recbole==1.2.1"
SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}
MADE = "parquet-1"  # a new number whenever what stands in the files changes
SEED = 100
TEST_ROWS = 10_000


class DataError(Exception):
    """MovieLens-100K is not here and cannot be fetched, or is not what it should be; the message says what to do."""


def cache_folder() -> Path:
    """`$GHEE_DATA`, or `~/.cache/ghee/ml-100k`."""
    return Path(os.environ.get("GHEE_DATA") or Path.home() / ".cache" / "ghee" / "ml-100k").expanduser()


def prepare(root: Path | None = None) -> Path:
    """The folder that holds `train/` and `test/`; makes it on the first call.

    Raises DataError without a network, or if a file differs from the one that was published.
    """
    root = root or cache_folder()
    made = root / MADE
    if not made.is_dir():
        raw = root / "raw"
        if not raw.is_dir():
            _appear_whole(raw, lambda folder: _download(folder, raw))
        tables = {name: _checked(raw / name) for name in SHA256}
        _appear_whole(made, lambda folder: _convert(tables, folder))
    return made


def _appear_whole(folder: Path, make: Callable[[Path], None]) -> None:
    """Makes `folder` beside its place and renames it; if another process was faster, its folder stands."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch) / folder.name
        new.mkdir()
        make(new)
        try:
            new.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def _download(folder: Path, raw: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run([*command, scratch, WHEEL], capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip() or done.stdout.strip() or "pip printed nothing").splitlines()[-1]
            raise DataError(
                f"MovieLens-100K could not be fetched: pip download {WHEEL} ended with {done.returncode} ({reason}). "
                f"With pip and a network, run this again; without them, put {', '.join(SHA256)} into {raw} "
                "or set GHEE_DATA to a folder whose raw/ holds them."
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            for name in SHA256:
                with wheel.open(f"recbole/dataset_example/ml-100k/{name}") as source, open(folder / name, "wb") as sink:
                    shutil.copyfileobj(source, sink)


def _checked(path: Path) -> pa.Table:
    """The tab-separated file as a table of strings, after a comparison of its SHA-256 with the published one."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} is missing: delete {path.parent} and run this again.") from None
    got, wanted = hashlib.sha256(content).hexdigest(), SHA256[path.name]
    if got != wanted:
        raise DataError(
            f"{path} is not the published file: its SHA-256 is {got}, expected {wanted}. "
            f"Delete {path.parent} and run this again."
        )
    names = [field.split(":")[0] for field in content.split(b"\n", 1)[0].decode().split("\t")]
    return pa.csv.read_csv(
        pa.BufferReader(content),
        read_options=pa.csv.ReadOptions(column_names=names, skip_rows=1),
        parse_options=pa.csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )


def _convert(tables: dict[str, pa.Table], folder: Path) -> None:
    rows = _joined(*tables.values())
    order = np.random.default_rng(SEED).permutation(rows.num_rows)
    _write(rows.take(order[TEST_ROWS:]), folder / "train", files=2, row_group_size=5_000)
    _write(rows.take(order[:TEST_ROWS]), folder / "test", files=2, row_group_size=2_500)


def _joined(ratings: pa.Table, users: pa.Table, items: pa.Table) -> pa.Table:
    """One row per rating, with what is known of its user and film; years that are no years are null."""
    year = items["release_year"]
    items = pa.table(
        {
            "item_id": items["item_id"],
            "genres": pc.split_pattern(items["class"], " "),
            "year": pc.if_else(pc.match_substring_regex(year, r"^\d{4}$"), year, None).cast(pa.int16()),
        }
    )
    users = users.set_column(users.schema.get_field_index("age"), "age", users["age"].cast(pa.int16()))
    # A join gives rows in no fixed order and takes no list columns, so each rating looks up its user and film.
    user = users.take(pc.index_in(ratings["user_id"], value_set=users["user_id"]))
    item = items.take(pc.index_in(ratings["item_id"], value_set=items["item_id"]))
    return pa.table(
        {
            "user_id": ratings["user_id"].cast(pa.int32()),
            "item_id": ratings["item_id"].cast(pa.int32()),
            "rating": ratings["rating"].cast(pa.float32()),
            "time": ratings["timestamp"].cast(pa.int64()).cast(pa.timestamp("s")).cast(pa.timestamp("ms")),
            **{name: user[name] for name in ("age", "gender", "occupation")},
            **{name: item[name] for name in ("genres", "year")},
        }
    )


def _write(rows: pa.Table, folder: Path, *, files: int, row_group_size: int) -> None:
    folder.mkdir()
    each = -(-rows.num_rows // files)
    for number in range(files):
        part = rows.slice(number * each, each)
        pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=row_group_size)


if __name__ == "__main__":
    try:
        print(prepare())
    except DataError as error:
        sys.exit(str(error))
