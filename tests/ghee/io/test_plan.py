"""Splitting by itself: for any layout every row is in exactly one split, and orders depend on their key alone."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghee.io import plan
from ghee.io.contract import Split

LAYOUTS = st.lists(st.lists(st.integers(0, 600), max_size=6), min_size=1, max_size=8)


def _files(layout: list[list[int]], *, width: int = 8) -> list[tuple[plan.FileRef, list[plan.Unit]]]:
    return [
        (
            plan.FileRef(f"f{n}", None, None),
            [plan.Unit(i, i + 1, rows, rows * width, cuttable=True) for i, rows in enumerate(groups)],
        )
        for n, groups in enumerate(layout)
    ]


def _rows(splits: list[Split], layout: list[list[int]]) -> list[tuple[str, int, int]]:
    """Every row as (file, row group, row), as a reader would come across them."""
    found = []
    for split in splits:
        for piece in split.pieces:
            groups = range(piece.start, piece.stop)
            rows = [(piece.file.path, g, row) for g in groups for row in range(layout[int(piece.file.path[1:])][g])]
            rows = rows[piece.skip :]
            found += rows if piece.take is None else rows[: piece.take]
    return found


def _all(layout: list[list[int]]) -> list[tuple[str, int, int]]:
    return [(f"f{n}", g, row) for n, groups in enumerate(layout) for g, rows in enumerate(groups) for row in range(rows)]


@given(LAYOUTS, st.integers(1, 700), st.none() | st.integers(1, 3000), st.sampled_from([1, 8, 100_000]))
def test_every_row_is_in_exactly_one_split(
    layout: list[list[int]], batch_size: int, split_rows: int | None, width: int
) -> None:
    files = _files(layout, width=width)
    size = plan.target([units for _, units in files], batch_size=batch_size, split_rows=split_rows)
    splits = plan.cut(files, size, batch_size=batch_size)
    assert _rows(splits, layout) == _all(layout)
    assert [split.index for split in splits] == list(range(len(splits)))
    assert sum(split.rows or 0 for split in splits) == len(_all(layout))
    if split_rows is not None:
        assert all((split.rows or 0) <= split_rows for split in splits)


@given(LAYOUTS, st.integers(1, 700), st.integers(1, 8000))
def test_a_limit_takes_the_first_rows(layout: list[list[int]], batch_size: int, limit: int) -> None:
    files = _files(layout)
    size = plan.target([units for _, units in files], batch_size=batch_size, split_rows=None)
    splits = plan.limited(plan.cut(files, size, batch_size=batch_size), limit)
    assert _rows(splits, layout) == _all(layout)[:limit]
    assert sum(split.rows or 0 for split in splits) == min(limit, len(_all(layout)))


def test_small_files_are_packed_and_a_large_one_is_shared() -> None:
    small = plan.cut(_files([[10]] * 1000), plan.Target(4096, 1 << 20), batch_size=64)
    assert len(small) == 3
    assert max(len(split.pieces) for split in small) > 300
    layout = [[100_000]]
    size = plan.target([u for _, u in _files(layout)], batch_size=4096, split_rows=None)
    large = plan.cut(_files(layout), size, batch_size=4096)
    assert len(large) == plan.MAX_CUTS_PER_GROUP - 1  # 8 parts rounded up to whole batches
    assert all((split.rows or 0) % 4096 == 0 for split in large[:-1])


def test_a_wide_table_is_cut_by_bytes() -> None:
    files = _files([[100] * 40], width=10 << 20)
    size = plan.target([units for _, units in files], batch_size=64, split_rows=None)
    assert len(plan.cut(files, size, batch_size=64)) >= 40


@given(st.integers(0, 300), st.integers(-(2**40), 2**80), st.integers(0, 5))
def test_a_permutation_is_one_and_depends_on_its_key(n: int, seed: int, epoch: int) -> None:
    order = plan.permutation(n, (seed, epoch)).tolist()
    assert sorted(order) == list(range(n))
    assert order == plan.permutation(n, (seed, epoch)).tolist()
    if n > 20:
        assert order != plan.permutation(n, (seed + 1, epoch)).tolist()
        assert order != plan.permutation(n, (seed, epoch + 1)).tolist()


def test_the_permutation_of_a_key_is_pinned() -> None:
    """A run that is resumed with another version of ghee or numpy must go on in the same order."""
    assert plan.permutation(10, (7, 0, 3)).tolist() == [3, 8, 7, 4, 9, 5, 0, 6, 2, 1]


@pytest.mark.parametrize("seed", [None, 5])
def test_order_does_not_depend_on_the_order_given(seed: int | None) -> None:
    splits = [Split(i, (), 1) for i in range(50)]
    order = plan.ordered(splits, seed, 2)
    assert order == plan.ordered(splits[::-1], seed, 2)
    assert sorted(split.index for split in order) == list(range(50))
    assert (order == splits) is (seed is None)
    assert (order == plan.ordered(splits, seed, 3)) is (seed is None)


def test_a_split_is_small_when_it_travels() -> None:
    (split,) = plan.cut(_files([[1000] * 200]), plan.Target(1 << 20, 1 << 30), batch_size=64)
    assert len(split.pieces) == 1  # neighbouring row groups are one range
    assert len(pickle.dumps(split)) < 500
