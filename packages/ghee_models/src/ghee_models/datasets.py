"""Public data sets that the published protocols use: fetched, verified, cached; never part of this repository.

MovieLens-100K (Harper and Konstan 2015, doi:10.1145/2827872) may not be redistributed, so it is read from the PyPI
package `recbole`, which carries it: the package is downloaded with pip, unpacked, and not installed.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ghee_models.errors import DatasetError

_PACKAGE = "recbole==1.2.1"
_INSIDE = "recbole/dataset_example/ml-100k/"
_SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}
_LAYOUT = 1  # raised when the columns below change, so that an older cache is made anew


def cache_folder() -> Path:
    """Where data sets are kept: `$GHEE_DATA`, or `~/.cache/ghee`."""
    return Path(os.environ.get("GHEE_DATA") or Path.home() / ".cache" / "ghee")


def movielens_100k() -> Path:
    """The Parquet file of MovieLens-100K: one row per rating, in the original order, with its user's and item's fields.

    Columns: user_id, item_id (int64), rating (float32), timestamp (int64, seconds), age, gender, occupation,
    zip_code, release_year (string), genres (list of string). 100,000 rows.

    Raises DatasetError when the package cannot be downloaded or a file's SHA-256 is not the known one.
    """
    target = cache_folder() / f"ml-100k-{_LAYOUT}" / "ratings.parquet"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        files = _download(Path(scratch))
        made = Path(scratch) / "ratings.parquet"
        pq.write_table(_join(files), made, row_group_size=10_000)
        os.replace(made, target)  # another process may have made the same bytes meanwhile
    return target


def movielens_100k_users() -> Path:
    """The Parquet file of MovieLens-100K's users: one row per user, in the order of their ids.

    Columns: user_id (int64), age, gender, occupation, zip_code (string), male (int8: 1 or 0), items (list of int64: what
    the user has rated, in order of item_id). 943 rows. Raises DatasetError as `movielens_100k` does.
    """
    ratings = movielens_100k()
    target = ratings.with_name("users.parquet")
    if not target.exists():
        table = pq.read_table(ratings).sort_by([("user_id", "ascending"), ("item_id", "ascending")])
        keys = ["user_id", "age", "gender", "occupation", "zip_code"]
        users = table.group_by(keys, use_threads=False).aggregate([("item_id", "list")])
        male = pc.equal(users["gender"], "M").cast(pa.int8())
        users = users.rename_columns([*keys, "items"]).append_column("male", male)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            made = Path(scratch) / "users.parquet"
            pq.write_table(users, made)
            os.replace(made, target)
    return target


def _download(scratch: Path) -> dict[str, Path]:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), _PACKAGE]
    # No constraint of the caller's environment concerns a package that is only unpacked.
    environment = {k: v for k, v in os.environ.items() if k != "PIP_CONSTRAINT"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise DatasetError(
            f"MovieLens-100K could not be downloaded: `pip download {_PACKAGE}` ended with {done.returncode}: "
            f"{done.stderr.strip()[-500:] or 'no message'}. It needs the Python package index once; afterwards the "
            f"data is cached in {cache_folder()} (set GHEE_DATA to choose another folder)."
        )
    found = {}
    with zipfile.ZipFile(wheels[0]) as wheel:
        for name, expected in _SHA256.items():
            out = scratch / name
            with wheel.open(_INSIDE + name) as packed, open(out, "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
            verify(out, expected)
            found[name] = out
    return found


def verify(path: Path, expected: str) -> None:
    """Raises DatasetError unless the file's SHA-256 is `expected`."""
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected:
        raise DatasetError(
            f"{path.name} is not the published file: SHA-256 is {actual}, expected {expected}. "
            "Delete the cached copy and fetch it again; if that does not help, the package has changed."
        )


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as lines:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        names = [cell.partition(":")[0] for cell in next(reader)]
        return [dict(zip(names, row, strict=True)) for row in reader]


def _join(files: dict[str, Path]) -> pa.Table:
    users = {row["user_id"]: row for row in _rows(files["ml-100k.user"])}
    items = {row["item_id"]: row for row in _rows(files["ml-100k.item"])}
    ratings = _rows(files["ml-100k.inter"])
    columns: dict[str, pa.Array] = {
        "user_id": pa.array([int(r["user_id"]) for r in ratings], pa.int64()),
        "item_id": pa.array([int(r["item_id"]) for r in ratings], pa.int64()),
        "rating": pa.array([float(r["rating"]) for r in ratings], pa.float32()),
        "timestamp": pa.array([int(float(r["timestamp"])) for r in ratings], pa.int64()),
    }
    for name in ("age", "gender", "occupation", "zip_code"):
        columns[name] = pa.array([users[r["user_id"]][name] for r in ratings], pa.string())
    columns["release_year"] = pa.array([items[r["item_id"]]["release_year"] for r in ratings], pa.string())
    genres = [items[r["item_id"]]["class"].split() for r in ratings]
    columns["genres"] = pa.array(genres, pa.list_(pa.string()))
    return pa.table(columns)
