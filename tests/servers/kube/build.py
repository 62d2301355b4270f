"""Builds the cluster's program with Go, once: later runs find it in the cache folder.

``python build.py`` prints where it lies. The folder is $GHEE_CACHE, else ~/.cache/ghee-suite.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

# 1.35 refuses cgroup v1 by default and 1.36 no longer speaks to Debian 12's containerd 1.6.
VERSION = "1.34.4"
SOURCE = Path(__file__).parent / "program"


def cache_folder() -> Path:
    folder = Path(os.environ.get("GHEE_CACHE") or Path.home() / ".cache" / "ghee-suite")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _go(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
    done = subprocess.run(["go", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"go {' '.join(arguments)} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def _go_mod(folder: Path) -> str:
    """k8s.io/kubernetes requires its staging modules at v0.0.0: each is replaced by the release that belongs to it."""
    described = json.loads(_go(folder, "mod", "download", "-json", f"k8s.io/kubernetes@v{VERSION}"))
    text = Path(described["GoMod"]).read_text()
    language = re.search(r"^go (\S+)$", text, re.M)
    assert language
    staging = sorted(set(re.findall(r"^\s*(k8s\.io/[\w-]+) v0\.0\.0(?=\s)", text, re.M)))
    replaced = "\n".join(f"replace {name} => {name} v0{VERSION[1:]}" for name in staging)
    return f"module cluster\n\ngo {language[1]}\n\nrequire k8s.io/kubernetes v{VERSION}\n\n{replaced}\n"


def cluster_program() -> Path:
    """The path of the program; about ten minutes of two cores when nothing is cached, else nothing."""
    target = cache_folder() / f"kubernetes-{VERSION}"
    if target.exists():
        return target
    version = "k8s.io/component-base/version"
    major, minor, _ = VERSION.split(".")
    flags = f"-s -w -X {version}.gitVersion=v{VERSION} -X {version}.gitMajor={major} -X {version}.gitMinor={minor}"
    with tempfile.TemporaryDirectory(prefix="cluster-build-") as name:
        folder = Path(name)
        shutil.copy(SOURCE / "main.go", folder)
        (folder / "go.mod").write_text("module cluster\n")
        (folder / "go.mod").write_text(_go_mod(folder))
        _go(folder, "mod", "tidy")
        _go(folder, "build", "-ldflags", flags, "-o", "cluster", ".")
        # Beside, then renamed: a build that is cut off leaves nothing that looks whole.
        beside = target.with_suffix(f".{os.getpid()}")
        shutil.move(folder / "cluster", beside)
        beside.rename(target)
    return target


def pause_program() -> Path:
    target = cache_folder() / "pause"
    if not target.exists():
        beside = target.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", "-static", "-Os", "-o", beside, SOURCE / "pause.c"], check=True)
        beside.rename(target)
    return target


if __name__ == "__main__":
    if shutil.which("go") is None and not os.environ.get("CI"):
        print("go is missing: the tests on a cluster of this machine will be skipped (install Go 1.25 or newer)")
    else:
        print(cluster_program())
