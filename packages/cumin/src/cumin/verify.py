"""Whether a dataset still is what its ids say: sizes, bytes, rows, or the whole build again."""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from cumin.content import RowSum
from cumin.errors import CorruptError, NotFoundError
from cumin.store import Store, unit_folder

_BUFFER = 1 << 20


def verify(
    store: Store, spec: str | None, *, level: str = "stat", progress: Callable[[str], None] = lambda m: None
) -> list[str]:
    """What is wrong with a build (or, without `spec`, with every build and name): one sentence each; none if whole.

    `level`: ``stat`` compares sizes, ``bytes`` the BLAKE3 of every file, ``rows`` the content id of the rows read.
    """
    problems: list[str] = []
    if spec is None:
        builds = list(store.builds())
        problems += _names_whole(store)
        problems += _records_whole(store)
    else:
        builds = [store.resolve(spec)]
    for number, build_id in enumerate(builds, 1):
        progress(f"verifying {number} of {len(builds)}: {build_id[:15]}…")
        try:
            problems += _build(store, build_id, level)
        except (CorruptError, NotFoundError) as error:
            problems.append(str(error))
    return problems


def _names_whole(store: Store) -> list[str]:
    problems = []
    for name in store.names():
        try:
            versions = store.versions(name)
        except CorruptError as error:
            problems.append(str(error))
            continue
        known = set(store.builds())
        problems += [f"{name}@v{each['version']} names {each['build_id']}, which is not there."
                     for each in versions if each["build_id"] not in known]  # fmt: skip
    return problems


def _records_whole(store: Store) -> list[str]:
    """Every small record of the store is read, and its seal checked."""
    problems = []
    for folder in ("partitions", "pins", "conflicts", "tombstones", "marks", "listings"):
        for path in store.place.walk(folder):
            try:
                store.record(path)
            except CorruptError as error:
                problems.append(str(error))
    return problems


def _build(store: Store, build_id: str, level: str) -> list[str]:
    entry = store.entry(build_id)
    if entry is None:
        raise NotFoundError(f"The build {build_id} is not in {store.place.url}.")
    if entry["build_id"] != build_id:
        raise CorruptError(f"The entry of {build_id} speaks of {entry['build_id']}.")
    manifest = store.manifest(entry["manifest"])
    files = [file for unit in manifest["output"]["units"] for file in unit["files"]]
    problems = store.damaged(files)
    if level == "bytes":
        with ThreadPoolExecutor(2, thread_name_prefix="cumin-verify") as pool:
            problems += [each for each in pool.map(lambda file: _bytes(store, file), files) if each]
        for unit in manifest["output"]["units"]:
            if store.record(f"{unit_folder(unit['unit'])}unit.json") is None:
                problems.append(f"unit.json of {unit['unit']} is missing.")
        for each in manifest["inputs"]:
            if store.record(f"listings/{each['listing'][:2]}/{each['listing']}.json") is None:
                problems.append(f"The listing {each['listing']} of the input {each['name']} is missing.")
    if level == "rows" and not problems:
        problems += _rows(store, manifest, entry["content_id"])
    return problems


def _bytes(store: Store, file: dict[str, Any]) -> str | None:
    hasher = blake3()
    try:
        with store.place.open(file["path"]) as opened:
            while data := opened.read(_BUFFER):
                hasher.update(data)
    except OSError as error:
        return f"{store.place.full(file['path'])} cannot be read: {error}."
    if hasher.hexdigest() != file["blake3"]:
        return f"{store.place.full(file['path'])} was changed: its BLAKE3 is not the manifest's."
    return None


def _rows(store: Store, manifest: dict[str, Any], content_id: str) -> list[str]:
    digits = int(content_id[3 : content_id.index(":")]) if content_id.startswith("c1~") else None
    problems, total, schema = [], RowSum(digits), None
    system = store.place.arrow()
    for unit in manifest["output"]["units"]:
        mine = RowSum(digits)
        for file in unit["files"]:
            try:
                with pq.ParquetFile(
                    store.place.full(file["path"]), filesystem=system, page_checksum_verification=True
                ) as opened:
                    schema = opened.schema_arrow
                    for batch in opened.iter_batches():
                        mine.update(batch)
            except (pa.ArrowException, OSError) as error:
                problems.append(f"{store.place.full(file['path'])} cannot be read: {str(error).splitlines()[0]}")
        if not problems and schema is not None and mine.content_id(schema) != unit["content_id"]:
            problems.append(f"The rows of {unit['partition'] or 'the dataset'} are not those of {unit['content_id']}.")
        total.merge(mine)
    if not problems and schema is not None and total.content_id(schema) != content_id:
        problems.append(f"The rows are not those of {content_id}.")
    return problems


def doctor(store: Store) -> list[tuple[str, bool, str]]:
    """What the store's file system can do: (what, whether it is well, what was seen)."""
    found: list[tuple[str, bool, str]] = []
    probe = f"staging/doctor-{uuid.uuid4().hex}"
    try:
        first, second = store.place.create(probe, b"a"), store.place.create(probe, b"b")
        kept = store.place.read(probe) == b"a"
        found.append(
            (
                "create-only writes",
                first and not second and kept,
                "the second writer of a file is told so" if first and not second else "two writers both succeed: unsafe",
            )
        )
        store.place.replace(probe, b"c")
        found.append(("replace", store.place.read(probe) == b"c", "a file can be written over whole"))
    except OSError as error:
        found.append(("writes", False, str(error)))
    finally:
        store.place.delete(probe)
    leases = [name for name in store.place.names("leases") if store.place.names(f"leases/{name}")]
    found.append(("leases", True, f"{len(leases)} held or left behind"))
    staging = store.place.names("staging")
    found.append(("staging", True, f"{len(staging)} folders of running or ended builders (gc removes old ones)"))
    conflicts = store.place.names("conflicts")
    found.append(("quarantine", not conflicts, f"{len(conflicts)} build ids with two contents"))
    return found
