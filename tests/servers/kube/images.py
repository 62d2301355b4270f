"""Container images written by hand as docker archives: no registry and no image builder is needed.

``python_image`` packs the interpreter, the shared libraries it needs, an environment's packages and the sources of
editable installs, at the paths they have on this machine, so an image holds exactly what the tests run with.
"""

from __future__ import annotations

import compileall
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

PAUSE = "localhost/swimmy/pause:1"
_LEFT_OUT = re.compile(r"/(test|tests|idlelib|ensurepip|turtledemo|config-3[^/]*)(/|$)|\.a$")


def _blank(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = kind, mode
    return info


def layered_image(target: Path, tag: str, extra: dict[str, Path], base: Path) -> Path:
    """An image like that of the archive ``base``, with folders added in a second layer."""
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        folder = Path(name)
        with tarfile.open(base) as archive:
            # An attribute, since the argument for it is newer than some Python 3.11.
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # type: ignore[assignment]
            archive.extractall(folder)
        manifest = json.loads((folder / "manifest.json").read_text())[0]
        settings = json.loads((folder / manifest["Config"]).read_text())
        with tarfile.open(folder / "added.tar", "w") as layer:
            for path, source in extra.items():
                layer.add(source, path.lstrip("/"))
        with open(folder / "added.tar", "rb") as added:
            settings["rootfs"]["diff_ids"].append(f"sha256:{hashlib.file_digest(added, 'sha256').hexdigest()}")
        (folder / "config.json").write_text(json.dumps(settings))
        described = [{"Config": "config.json", "RepoTags": [tag], "Layers": [*manifest["Layers"], "added.tar"]}]
        (folder / "manifest.json").write_text(json.dumps(described))
        with tarfile.open(target, "w") as archive:
            for each in ("config.json", "manifest.json", *manifest["Layers"], "added.tar"):
                archive.add(folder / each, each)
    return target


def _archive(target: Path, tag: str, layer: Path, settings: dict[str, object]) -> Path:
    """Writes the docker archive of one layer."""
    with open(layer, "rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    described = json.dumps({
        "architecture": "amd64", "os": "linux", "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }).encode()  # fmt: skip
    name = hashlib.sha256(described).hexdigest() + ".json"
    manifest = json.dumps([{"Config": name, "RepoTags": [tag], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(target, "w") as archive:
        for path, data in ((name, described), ("manifest.json", manifest)):
            info = _blank(path, tarfile.REGTYPE, 0o644)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        archive.add(layer, "layer.tar")
    layer.unlink()
    return target


def pause_image(target: Path, program: Path) -> Path:
    layer = target.with_suffix(".layer")
    with tarfile.open(layer, "w") as archive:
        archive.add(program, "pause")
    return _archive(target, PAUSE, layer, {"Entrypoint": ["/pause"]})


def _libraries(files: Iterable[Path]) -> set[Path]:
    """The shared libraries that these files are linked against, as ldd finds them, and the loader."""
    found: set[Path] = set()
    known = [str(file) for file in files]
    for start in range(0, len(known), 200):
        done = subprocess.run(["ldd", *known[start : start + 200]], capture_output=True, text=True, check=False)
        found |= {Path(each) for each in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", done.stdout, re.M)}
    return found


def _link_targets(path: Path) -> Iterable[Path]:
    """What a link leads to, step by step: a link whose target is missing in the image is no program there."""
    while path.is_symlink():
        path = Path(os.path.normpath(path.parent / path.readlink()))
        if path.is_file():
            yield path


def _editable_sources() -> list[Path]:
    """The folders that the environment's .pth files put on the path: the sources of editable installs."""
    lines = [line for file in Path(sysconfig.get_path("purelib")).glob("*.pth") for line in file.read_text().splitlines()]
    return [Path(line) for line in lines if line.startswith("/") and Path(line).is_dir()]


def _trees() -> list[Path]:
    base = Path(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    trees = [Path(sysconfig.get_path("stdlib")), Path(sys.prefix)]
    if base == Path("/usr"):
        trees.append(Path("/usr/bin") / version)
    else:
        trees.append(base / "bin" / version)
        trees += list(base.glob("lib/libpython*"))
    return [*trees, *_editable_sources()]


def _files(tree: Path, leave_out: frozenset[str]) -> Iterable[Path]:
    if not tree.is_dir() or tree.is_symlink():
        yield tree
        return
    for folder, names, files in os.walk(tree):
        names[:] = [each for each in names if not _LEFT_OUT.search(f"{folder}/{each}/") and each not in leave_out]
        if Path(folder).name in ("dist-packages", "site-packages") and not Path(folder).is_relative_to(sys.prefix):
            names[:], files = [], []  # what the machine's Python has installed is not the environment's
        for link in [each for each in names if Path(folder, each).is_symlink()]:
            yield Path(folder, link)
        for file in files:
            if not _LEFT_OUT.search(f"{folder}/{file}"):
                yield Path(folder, file)


def _compile(left: frozenset[str]) -> None:
    """Bytecode beside the environment's sources, as docs/cluster.md tells to build an image: a Pod's root file system is
    read-only, and without it every agent and rank compiles whatever it imports.
    """
    for tree in [Path(sysconfig.get_path("purelib")), *_editable_sources()]:
        for file in _files(tree, left):
            if file.suffix == ".py":
                compileall.compile_file(file, quiet=2)


def check_place(folders: Iterable[Path]) -> None:
    """Raises RuntimeError where a Pod would not see one of these folders of its image: each Pod has a /tmp of its own."""
    hidden = [each for each in folders if each.is_relative_to("/tmp")]
    if hidden:
        raise RuntimeError(
            f"{hidden[0]} is in /tmp: in its image it has the same path, and a Pod has a /tmp of its own over it. "
            "Clone the repository, and make its environment, elsewhere (in /var/tmp, say)."
        )


def environment() -> list[Path]:
    """Where this environment lies: the interpreter, its packages and the sources of editable installs."""
    return [Path(sys.prefix), Path(sys.base_prefix), *_editable_sources()]


def python_image(target: Path, tag: str, *, leave_out: Iterable[str] = (), needed_by: Iterable[Path] = ()) -> Path:
    """The image of this interpreter and environment; ``leave_out`` names package folders. ``needed_by`` are libraries that
    a Pod mounts: what they want of the machine is in the image.
    """
    left = frozenset(leave_out)
    _compile(left)
    paths = {Path(os.path.normpath(file)) for tree in _trees() for file in _files(tree, left)}
    shells = {Path("/bin/sh").resolve(), Path("/bin/cat").resolve(), Path("/bin/sleep").resolve()}
    linked = [each for each in paths if (".so" in each.name or os.access(each, os.X_OK)) and each.is_file()]
    paths |= {Path(os.path.normpath(each)) for each in _libraries([*linked, *shells])} | shells
    own = Path(sys.prefix)
    paths |= {each for each in _libraries(needed_by) if not Path(os.path.normpath(each)).is_relative_to(own)}
    paths |= {step for path in paths if path.is_symlink() for step in _link_targets(path)}
    layer = target.with_suffix(".layer")
    with tarfile.open(layer, "w") as archive:
        for name in ("etc", "tmp", "proc", "sys", "dev", "run", "usr", "usr/bin", "usr/lib", "usr/lib64"):
            archive.addfile(_blank(name, tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755))
        for name in ("bin", "lib", "lib64"):
            link = _blank(name, tarfile.SYMTYPE, 0o777)
            link.linkname = f"usr/{name}"
            archive.addfile(link)
        sh = _blank("usr/bin/sh", tarfile.SYMTYPE, 0o777)
        sh.linkname = "dash"
        archive.addfile(sh)
        known = b"root:x:0:0:root:/:/bin/sh\nuser:x:10001:10001:user:/tmp:/bin/sh\n"
        passwd = _blank("etc/passwd", tarfile.REGTYPE, 0o644)
        passwd.size = len(known)
        archive.addfile(passwd, io.BytesIO(known))
        for path in sorted(paths):
            name = str(path).lstrip("/")
            if re.match(r"(bin|lib|lib64)/", name):  # a merged /usr: these are links
                name = f"usr/{name}"
            archive.add(path, name, recursive=False)
    return _archive(target, tag, layer, {"User": "10001", "Env": [f"PATH={sys.prefix}/bin:/usr/bin:/bin"]})
