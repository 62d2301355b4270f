"""What is kept of a folder's listing never stands for another state of its files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cumin.errors import InputError
from cumin.inputs import listing
from cumin.place import LocalPlace


def take(folder: Path) -> listing.Listed:
    return listing.list_lines(LocalPlace(str(folder.parent)), folder.name, strength="stat")


def afresh(folder: Path) -> list[str]:
    """The lines by another way than the listing's."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return sorted(listing.file_lines(LocalPlace(str(folder)), names, strength="stat").lines)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "p=1"
    made.mkdir()
    for name in ("a", "b", "c"):
        (made / name).write_bytes(b"data")
    return made


def _times_put_back(folder: Path) -> None:
    before = (folder / "a").stat()
    (folder / "a").write_bytes(b"DATA")
    os.utime(folder / "a", ns=(before.st_atime_ns, before.st_mtime_ns))


def _replaced(folder: Path) -> None:
    before = (folder / "a").stat()
    (folder / "new").write_bytes(b"DATA")
    os.utime(folder / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    (folder / "new").replace(folder / "a")


CHANGES: dict[str, Callable[[Path], object]] = {
    "longer": lambda folder: (folder / "a").write_bytes(b"longer"),
    "as long, times put back": _times_put_back,
    "another file with its name": _replaced,
    "renamed": lambda folder: (folder / "a").rename(folder / "d"),
    "two swapped": lambda folder: [(folder / old).rename(folder / new) for old, new in (("a", "d"), ("b", "a"), ("d", "b"))],
    "one more": lambda folder: (folder / "d").write_bytes(b"data"),
    "one less": lambda folder: (folder / "c").unlink(),
    "a file in a folder": lambda folder: ((folder / "sub").mkdir(), (folder / "sub/a").write_bytes(b"data")),
    "a folder in place of a file": lambda folder: ((folder / "a").unlink(), (folder / "a").mkdir()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_kept_listing_is_for_the_same_files_only(change: str, folder: Path) -> None:
    before = take(folder)
    listing.settle(lambda: [take(folder)])  # else the change could fall into the same tick of the clock
    assert take(folder) is before
    assert before.lines == afresh(folder)
    token = before.token("stat")
    CHANGES[change](folder)
    after = take(folder)
    assert after.lines == afresh(folder)
    assert after.token("stat") != token
    assert before.token("stat") == token


def test_a_folder_in_the_folder_is_looked_into_each_time(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub/a").write_bytes(b"data")
    before = take(folder).lines
    listing.settle(lambda: [take(folder)])
    (folder / "sub/a").write_bytes(b"DATA")
    assert take(folder).lines == afresh(folder) != before


def test_a_bounded_number_of_files_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_KEPT_FILES", 5)
    kept = listing._Kept()
    monkeypatch.setattr(listing, "_kept", kept)
    for number in range(8):
        made = tmp_path / f"p={number}"
        made.mkdir()
        for name in range(2 if number else 9):
            (made / str(name)).touch()
        assert take(made).lines == take(made).lines == afresh(made)
        assert sum(len(names) for names, _, _ in kept._folders.values()) <= 5


def test_a_file_that_may_not_be_asked_for_is_named(folder: Path) -> None:
    (folder / "gone").symlink_to(folder / "nowhere")
    with pytest.raises(InputError, match=rf"{folder}/gone is not there\."):
        take(folder)
    with pytest.raises(InputError, match=rf"{folder}/none is not there\."):
        take(folder / "none")
    with pytest.raises(InputError, match=rf"{folder}/a may not be read: Not a directory\."):
        take(folder / "a")
