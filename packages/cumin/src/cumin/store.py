"""The store: builds, manifests and data that never change, and the few names that do.

```
cumin.json                           the format of the store
builds/bb/<build id>.json            create-only, written last: there is a dataset if and only if this is there
manifests/mm/<hash>.json             everything about a build; its name is its own BLAKE3
data/dd/<unit>/<blake3>.parquet      the rows of a partition, shared by all builds that have them; a file is named by its
                                     bytes, so to build again puts back what was lost
data/dd/<unit>/unit.json             the files of the unit, written last: the next build of these rows takes them
listings/<token>.json                the files of an input as a build saw them
refs/<name>/v000001.json             the versions of a name      labels/<name>@<label>.json   a label on a version
pins/<pin>.json  conflicts/<build>/  leases/  sweeps/  tombstones/  marks/   see pin, verify, building, needs, gc, mlflow
staging/<uuid>/                      one per builder, on this machine
```

Safety rests on create-only writes alone; no file lock is taken. `reach` is called at the named points of a build,
where tests stop or kill it.
"""

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cumin.errors import CorruptError, NotFoundError, StoreError, StoreFormatError
from cumin.place import Place, place

if TYPE_CHECKING:
    from cumin.layout import Target
    from cumin.units import Unit

FORMAT = 1
POINTS = ("leased", "planned", "written", "file-put", "unit-put", "units-put", "manifest-put", "entry-put", "named")


def to_json(value: Any) -> bytes:
    """The one form in which the store writes JSON."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def sealed(value: Mapping[str, Any]) -> bytes:
    """A JSON object with the BLAKE3 of the rest of it, so that a flipped bit is seen."""
    return to_json({**value, "seal": blake3(to_json(dict(value))).hexdigest()})


def _pass(point: str) -> None:
    """The `reach` of a store that nobody watches. A function with a name, so that a store can be pickled."""


def entry_path(build_id: str) -> str:
    """Where a build's entry lies."""
    return f"builds/{build_id[3:5]}/{build_id[3:]}.json"


def manifest_path(digest: str) -> str:
    """Where the manifest with this BLAKE3 lies."""
    return f"manifests/{digest[:2]}/{digest}.json"


def unit_folder(key: str) -> str:
    """The folder of a unit's files, with a slash at its end."""
    return f"data/{key[:2]}/{key}/"


class Store:
    """A store at a path or URL. Nothing is written before the first build."""

    def __init__(
        self,
        url: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None = None,
        *,
        reach: Callable[[str], None] = _pass,
    ) -> None:
        self.place: Place = place(url, storage_options)
        self.reach = reach
        try:
            found = json.loads(self.place.read("cumin.json"))
            newer = int(found["format"]) > FORMAT
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"The store {self.place.url} cannot be read: {error}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(f"{self.place.full('cumin.json')} is not what cumin wrote; nothing was touched.") from error
        if newer:
            raise StoreFormatError(
                f"The store {self.place.url} has format {found['format']}; this cumin reads up to {FORMAT}. Update cumin."
            )

    # -- builds and manifests ----------------------------------------------------------------------

    def entry(self, build_id: str) -> dict[str, Any] | None:
        """The build entry, or None: then there is no such dataset."""
        return self._sealed(entry_path(build_id))

    def manifest(self, digest: str) -> dict[str, Any]:
        """The manifest of this BLAKE3. Raises CorruptError if its bytes are others, NotFoundError if it is gone."""
        path = manifest_path(digest)
        try:
            data = self.place.read(path)
        except FileNotFoundError as error:
            raise NotFoundError(f"The manifest {self.place.full(path)} is not there.") from error
        if blake3(data).hexdigest() != digest:
            raise CorruptError(f"The manifest {self.place.full(path)} is not what its name says: it was changed.")
        found: dict[str, Any] = json.loads(data)
        return found

    def builds(self) -> Iterator[str]:
        """Every build id in the store."""
        for folder in self.place.names("builds"):
            for name in self.place.names(f"builds/{folder}"):
                yield "b1:" + name.removesuffix(".json")

    def put_manifest(self, manifest: Mapping[str, Any]) -> str:
        """Write a manifest; its BLAKE3."""
        data = to_json(manifest)
        digest = blake3(data).hexdigest()
        self._create(manifest_path(digest), data)
        return digest

    def put_entry(self, build_id: str, entry: Mapping[str, Any], *, replace: bool = False) -> dict[str, Any]:
        """Write the build entry if there is none; the one that is there afterwards. `replace`: over one of the same content
        whose files are lost."""
        path = entry_path(build_id)
        if replace:
            self.place.replace(path, sealed(entry))
            return dict(entry)
        if self._create(path, sealed(entry)):
            return dict(entry)
        found = self._sealed(path)
        if found is None:
            raise StoreError(f"{self.place.full(path)} was there and is gone; build again.")
        return found

    def delete_build(self, build_id: str) -> None:
        """Take a build out. Its data stays until gc finds that nothing else names it."""
        self.place.delete(entry_path(build_id))

    # -- data --------------------------------------------------------------------------------------

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder of this builder's own on this machine, removed afterwards; on the store's disk if it is here."""
        if self.place.local:
            folder = Path(self.place.full(f"staging/{uuid.uuid4().hex}"))
            folder.mkdir(parents=True)
        else:
            folder = Path(tempfile.mkdtemp(prefix="cumin-staging-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put_unit(self, unit: "Unit", target: "Target") -> dict[str, Any]:
        """Publish a unit's files, or take those of the same rows that are there and whole. What a manifest says of it."""
        folder = unit_folder(unit.key(target))
        found = self._sealed(f"{folder}unit.json")
        if found is None or self.damaged(found["files"]):
            found = self._put_files(unit, folder, lost=found)
            self.reach("unit-put")
        return {
            "partition": unit.partition,
            "unit": unit.key(target),
            "content_id": unit.content_id,
            **unit.sum.to_json(),
            "files": found["files"],
        }

    def _put_files(self, unit: "Unit", folder: str, *, lost: dict[str, Any] | None) -> dict[str, Any]:
        mine = []
        for file in unit.files:
            path = f"{folder}{file.blake3}.parquet"
            if self.place.size(path) != file.size:
                self.place.put(file.path, path)
            self.reach("file-put")
            mine.append({**file.to_json(), "path": path})
        described: dict[str, Any] = {"format": FORMAT, "content_id": unit.content_id, "files": mine}
        if lost is not None:
            if (
                lost["files"] != mine
            ):  # the same rows in other bytes: what was lost cannot be put back, but these can be taken
                self.place.replace(f"{folder}unit.json", sealed(described))
        elif not self._create(f"{folder}unit.json", sealed(described)):
            # Another builder had the same rows. Ours are left to gc where they are other files: a third may lean on them.
            theirs = self._sealed(f"{folder}unit.json")
            if theirs is not None and not self.damaged(theirs["files"]):
                return theirs
        return described

    def damaged(self, files: Sequence[Mapping[str, Any]]) -> list[str]:
        """Which of a manifest's files are missing or short, one sentence each. Looks at sizes only."""
        paths = [str(file["path"]) for file in files]
        if self.place.local or len(paths) < 2:
            sizes = [self.place.size(path) for path in paths]
        else:
            with ThreadPoolExecutor(8, thread_name_prefix="cumin-sizes") as pool:
                sizes = list(pool.map(self.place.size, paths))
        problems = []
        for path, size, file in zip(paths, sizes, files, strict=True):
            if size != file["size"]:
                found = "is missing" if size is None else f"has {size} bytes, not {file['size']}"
                problems.append(f"{self.place.full(path)} {found}.")
        return problems

    # -- names -------------------------------------------------------------------------------------

    def versions(self, name: str) -> list[dict[str, Any]]:
        """The versions of a name, oldest first."""
        found = []
        for file in self.place.names(f"refs/{name}"):
            version = self._sealed(f"refs/{name}/{file}")
            if version is not None:
                found.append(version)
        return found

    def names(self) -> list[str]:
        """Every name with versions."""
        return self.place.names("refs")

    def newest(self, name: str) -> dict[str, Any] | None:
        """The newest version of a name: one listing, one file."""
        for file in reversed(self.place.names(f"refs/{name}")):
            version = self._sealed(f"refs/{name}/{file}")
            if version is not None:
                return version
        return None

    def version_of(self, name: str, build_id: str) -> int | None:
        """The number of the newest version of `name` that is this build; the newest of all is looked at first."""
        for file in reversed(self.place.names(f"refs/{name}")):
            version = self._sealed(f"refs/{name}/{file}")
            if version is not None and version["build_id"] == build_id:
                return int(version["version"])
        return None

    def add_version(self, name: str, build_id: str, content_id: str, created: str) -> int:
        """The number of the version of `name` that is this build: the newest if it is that already, else a new one."""
        while True:
            newest = self.newest(name)
            if newest is not None and newest["build_id"] == build_id:
                return int(newest["version"])
            number = int(newest["version"]) + 1 if newest is not None else 1
            version = {"version": number, "build_id": build_id, "content_id": content_id, "created": created}
            if self._create(f"refs/{name}/v{number:06}.json", sealed(version)):
                return number

    def delete_version(self, name: str, number: int) -> None:
        """Take a version's name away."""
        self.place.delete(f"refs/{name}/v{number:06}.json")

    def resolve(self, spec: str) -> str:
        """The build id that `spec` names: a build id or its beginning, a content id, ``name``, ``name@v3``, ``name@label``.

        Raises NotFoundError, saying what there is.
        """
        if spec.startswith("b1:"):
            found = [each for each in self.builds() if each.startswith(spec)] if len(spec) < 67 else [spec]
            found = [each for each in found if self.entry(each) is not None]
        elif spec.startswith(("c1:", "c1~")):
            found = [each for each in self.builds() if (self.entry(each) or {}).get("content_id", "").startswith(spec)]
            found = found[:1]
        else:
            found = self._resolve_name(spec)
        if len(found) != 1:
            raise NotFoundError(
                f"{spec!r} names {len(found)} builds in {self.place.url}. Names there: {', '.join(self.names()) or 'none'}."
            )
        return found[0]

    def _resolve_name(self, spec: str) -> list[str]:
        name, _, label = spec.partition("@")
        if not label:
            found = self.newest(name)
        elif label[:1] == "v" and label[1:].isdigit():
            found = self._sealed(f"refs/{name}/v{int(label[1:]):06}.json")
        else:
            found = self._sealed(f"pins/{name}@{label}.json")
        return [found["build_id"]] if found is not None else []

    # -- small records: pins, conflicts, tombstones, marks, listings -------------------------------

    def record(self, path: str) -> dict[str, Any] | None:
        """A sealed record, or None."""
        return self._sealed(path)

    def put_record(self, path: str, value: Mapping[str, Any], *, replace: bool = False) -> bool:
        """Write a sealed record: create-only, or over one that is there."""
        if replace:
            self._ensure()
            self.place.replace(path, sealed(value))
            return True
        return self._create(path, sealed(value))

    # -- bytes -------------------------------------------------------------------------------------

    def _ensure(self) -> None:
        if self.place.size("cumin.json") is None:
            self.place.create("cumin.json", to_json({"format": FORMAT}))

    def _create(self, path: str, data: bytes) -> bool:
        self._ensure()
        return self.place.create(path, data)

    def _sealed(self, path: str) -> dict[str, Any] | None:
        try:
            data = self.place.read(path)
        except FileNotFoundError:
            return None
        try:
            value: dict[str, Any] = json.loads(data)
            seal = value.pop("seal")
            whole = seal == blake3(to_json(value)).hexdigest() and data == sealed(value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptError(f"{self.place.full(path)} is not what cumin wrote.") from error
        if not whole:
            raise CorruptError(f"{self.place.full(path)} was changed: its seal does not fit.")
        if value.get("format", FORMAT) > FORMAT:
            raise StoreFormatError(f"{self.place.full(path)} has a newer format; update cumin.")
        return value


StoreLike = Store | str | os.PathLike[str] | None


def open_store(store: StoreLike = None, storage_options: Mapping[str, Any] | None = None) -> Store:
    """A store by path or URL; without one, `CUMIN_STORE`, else the folder ``.cumin`` here."""
    if isinstance(store, Store):
        return store
    return Store(store or os.environ.get("CUMIN_STORE") or ".cumin", storage_options)
