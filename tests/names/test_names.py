"""Nobody is led to a stranger's package: on PyPI `ghee` and `cumin` are other people's, `swimmy` is anybody's to take."""

import re
import subprocess
import tempfile
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "swimmy": "swimmy",
    "ghee": "packages/ghee",
    "cumin": "packages/cumin",
    "ghee-models": "packages/ghee_models",
}
STRANGERS = {"ghee": "0.0.3", "cumin": "6.0.0"}
OURS = r"(?:ghee[-_]models|ghee|cumin|swimmy)"
BY_NAME = (
    re.compile(rf"\b(?:pip3? (?:install|download)|uv (?:pip install|add)|poetry add)\b[^#`\n(]*?[\s\"']{OURS}(?![\w/.-])"),
    re.compile(rf"(?<![\w./-]){OURS}\[[a-z0-9,-]+\]"),  # an extra without its folder
)


def project(name: str) -> dict[str, object]:
    text = (ROOT / PACKAGES[name] / "pyproject.toml").read_text()
    return tomllib.loads(text)["project"]  # type: ignore[no-any-return]


def requirements(name: str) -> list[Requirement]:
    found = project(name)
    extras = found.get("optional-dependencies", {}).values()  # type: ignore[attr-defined]
    return [Requirement(line) for lines in (found["dependencies"], *extras) for line in lines]  # type: ignore[has-type, misc]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_sibling_is_pinned_so_that_no_strangers_version_fits(name: str) -> None:
    for one in requirements(name):
        if one.name in PACKAGES:
            assert one.specifier.contains("0.1.0")
            assert {spec.operator for spec in one.specifier} == {">=", "<"}, one
            assert one.name not in STRANGERS or not one.specifier.contains(STRANGERS[one.name])


@pytest.mark.parametrize(
    "line",
    [
        "`pip install ghee`",
        "pip install 'ghee[kafka]'",
        "python -m pip install -U cumin[spark]",
        "uv add swimmy",
        "RUN pip install numpy ghee-models",
        "needs `ghee[s3]`",
    ],
)
def test_what_is_looked_for_is_found(line: str) -> None:
    assert any(pattern.search(line) for pattern in BY_NAME)


@pytest.mark.parametrize("line", ["python -m pip install ./swimmy './packages/ghee[kafka]'", "-e packages/ghee[hdfs]"])
def test_a_folder_of_the_repository_is_no_name(line: str) -> None:
    assert not any(pattern.search(line) for pattern in BY_NAME)


def test_no_page_file_or_message_installs_ours_by_name() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    wrong = []
    for name in listed:
        path = ROOT / name
        if path == Path(__file__) or name.endswith(("tox.ini", ".png", ".svg")) or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            wrong += [f"{name}:{number}: {line.strip()}" for pattern in BY_NAME if pattern.search(line)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("name", "folder"), [("ghee", "packages/ghee/src/ghee"), ("cumin", "packages/cumin/src/cumin")])
def test_messages_name_the_libraries_that_pyproject_has(name: str, folder: str) -> None:
    space: dict[str, object] = {}
    exec((ROOT / folder / "install.py").read_text(), space)
    said: dict[str, tuple[str, ...]] = space["_LIBRARIES"]  # type: ignore[assignment]
    extras: dict[str, list[str]] = project(name)["optional-dependencies"]  # type: ignore[assignment]
    for extra, libraries in extras.items():
        if Requirement(libraries[0]).name not in PACKAGES:
            assert list(said[extra]) == libraries
    assert set(said) - set(extras) <= {"mpi"}


def resolve(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as target:  # uv leaves a lock there
        command = ["uv", "pip", "install", "--dry-run", "--python-version", "3.11", "--target", target, *arguments]
        return subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True, timeout=540)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["swimmy", "ghee", "cumin"])
def test_a_package_alone_needs_no_sibling(name: str) -> None:
    done = resolve(f"./{PACKAGES[name]}")
    assert done.returncode == 0, done.stderr
    found = set(re.findall(r"^ \+ ([\w-]+)(?:==| @ )", done.stderr, re.MULTILINE))
    assert found & set(PACKAGES) == {name}


@pytest.mark.parametrize("what", ["./packages/ghee_models", "./packages/ghee[kubernetes]"])
def test_alone_with_a_sibling_missing_it_fails_rather_than_take_a_strangers(what: str) -> None:
    done = resolve(what)
    assert done.returncode != 0
    assert re.search(r"only ghee<=?0\.0|ghee|swimmy", done.stderr)
    assert "Would install" not in done.stderr


@pytest.mark.timeout(600)
def test_all_together_resolve_to_ours() -> None:
    done = resolve(*(f"./{folder}" for folder in PACKAGES.values()))
    assert done.returncode == 0, done.stderr
    assert all(
        re.search(rf"^ \+ {name}(==0\.1\.0 \(from file:| @ file:)", done.stderr, re.MULTILINE) for name in PACKAGES
    ), done.stderr


@pytest.mark.timeout(600)
def test_the_folder_of_wheels_is_an_index() -> None:
    wheels = ROOT / "dist/wheels"
    done = resolve("--find-links", str(wheels), "ghee-models", "cumin==0.1.0")
    assert done.returncode == 0, done.stderr
    assert all(re.search(rf"^ \+ {name}==0\.1\.0", done.stderr, re.MULTILINE) for name in ("ghee", "cumin", "ghee-models"))
