"""Splitting by itself: for any layout every row is in exactly one split, and orders depend on their key alone."""

from __future__ import annotations

import pickle

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


def _parts(layout: list[list[int]], *, width: int = 8, filtered: bool = False) -> list[plan.Part]:
    return plan.parts_of(_files(layout, width=width), filtered=filtered)


def _even(
    layout: list[list[int]], batch_size: int, *, width: int = 8, split_rows: int | None = None, limit: int | None = None
) -> list[Split]:
    parts = _parts(layout, width=width)
    if limit is not None:
        parts = plan.limited(parts, limit)
    size = plan.target(parts, batch_size=batch_size, split_rows=split_rows)
    return plan.even(parts, size, batch_size=batch_size)


def _are_even(splits: list[Split], total: int, batch_size: int) -> bool:
    """Whether batches that are made of each split are full, but for the last of all."""
    counts = [split.rows or 0 for split in splits]
    whole = all(count % batch_size == 0 for count in counts[:-1])
    return whole and all(counts) and sum(counts) == total and [split.index for split in splits] == [*range(len(splits))]


@given(
    LAYOUTS,
    st.integers(1, 700),
    st.none() | st.integers(1, 3000),
    st.none() | st.integers(1, 8000),
    st.sampled_from([1, 8, 100_000]),
)
def test_every_row_is_in_exactly_one_split_and_every_batch_is_full(
    layout: list[list[int]], batch_size: int, split_rows: int | None, limit: int | None, width: int
) -> None:
    splits = _even(layout, batch_size, width=width, split_rows=split_rows, limit=limit)
    wanted = _all(layout)[:limit]
    assert _rows(splits, layout) == wanted
    assert all((piece.rows or 0) > 0 for split in splits for piece in split.pieces)
    assert _are_even(splits, len(wanted), batch_size)
    assert splits == _even(layout, batch_size, width=width, split_rows=split_rows, limit=limit)
    if split_rows is not None:
        assert all((split.rows or 0) <= -(-split_rows // batch_size) * batch_size for split in splits)


@given(LAYOUTS, st.integers(1, 300), st.integers(1, 3000), st.integers(0, 3), st.none() | st.integers(1, 8000))
def test_mixed_splits_have_every_row_once_and_the_same_sizes_in_every_epoch(
    layout: list[list[int]], batch_size: int, buffer: int, seed: int, limit: int | None
) -> None:
    parts = _parts(layout) if limit is None else plan.limited(_parts(layout), limit)
    splits = plan.unmixed(parts, buffer=buffer, batch_size=batch_size)
    wanted = _all(layout)[:limit]
    assert _are_even(splits, len(wanted), batch_size)
    assert _rows(splits, layout) == wanted
    for epoch in range(2):
        order = plan.mixed(splits, seed, epoch, buffer=buffer)
        assert [split.rows for split in order] == [split.rows for split in splits]
        assert [split.index for split in order] == [split.index for split in splits]
        assert sorted(_rows(order, layout)) == wanted
        assert all(split.rows == sum(piece.rows or 0 for piece in split.pieces) for split in order)
        assert order == plan.mixed(splits[::-1], seed, epoch, buffer=buffer)


@given(LAYOUTS, st.integers(1, 300), st.integers(0, 3))
def test_units_of_unknown_rows_stay_whole(layout: list[list[int]], batch_size: int, seed: int) -> None:
    parts = _parts(layout, filtered=True)
    size = plan.target(parts, batch_size=batch_size, split_rows=None)
    packed = plan.packed(parts, size)
    assert all(split.rows is None or not split.pieces for split in packed)
    assert _rows(packed, layout) == _all(layout)
    if parts:
        splits = plan.unmixed(parts, buffer=64, batch_size=batch_size)
        order = plan.mixed(splits, seed, 0, buffer=64)
        assert [len(split.pieces) for split in order] == [len(split.pieces) for split in splits]
        assert sorted(_rows(order, layout)) == _all(layout)


@given(st.integers(2, 40), st.integers(1, 5), st.integers(0, 5))
def test_a_mixed_split_has_pieces_of_many_files(files: int, per_file: int, seed: int) -> None:
    """Files of one class each, however large they are beside the buffer."""
    layout = [[5000] * per_file] * files
    splits = plan.unmixed(_parts(layout), buffer=4096, batch_size=512)
    for split in plan.mixed(splits, seed, 0, buffer=4096)[:-1]:
        assert len({piece.file for piece in split.pieces}) >= min(files, plan.MIXED) / 3


def test_pieces_that_fit_the_buffer_are_read_in_order_and_as_one() -> None:
    layout = [[1000] * 3] * 4
    splits = plan.unmixed(_parts(layout), buffer=20_000, batch_size=64)
    (split,) = plan.mixed(splits, 1, 0, buffer=20_000)
    assert [(piece.file.path, piece.start, piece.stop, piece.skip, piece.take) for piece in split.pieces] == [
        (f"f{n}", 0, 3, 0, None) for n in range(4)
    ]


def test_small_files_are_packed_and_a_large_one_is_shared() -> None:
    small = plan.even(_parts([[10]] * 1000), plan.Target(4096, 1 << 20), batch_size=64)
    assert len(small) == 3
    assert max(len(split.pieces) for split in small) > 300
    large = _even([[100_000]], 4096)
    assert len(large) == plan.MAX_CUTS_PER_GROUP - 1  # 8 parts rounded up to whole batches
    assert all((split.rows or 0) % 4096 == 0 for split in large[:-1])


def test_splits_end_close_behind_the_edges_of_units() -> None:
    """What a split leaves out at its beginning is decoded for nothing: less than a batch, where units are that large."""
    splits = _even([[1_000_000] * 40], 4096)
    assert all(split.pieces[0].skip < 4096 for split in splits)
    assert len(splits) == 40


def test_a_wide_table_is_cut_by_bytes() -> None:
    assert len(_even([[100] * 40], 64, width=10 << 20)) >= 40


def test_the_buffer_is_bounded_by_bytes() -> None:
    assert plan.buffer_of(_parts([[10_000]], width=8), batch_size=100) == plan.DEFAULT_BUFFER
    assert plan.buffer_of(_parts([[10_000]], width=1 << 20), batch_size=100) == plan.MAX_BUFFER_BYTES >> 20
    assert plan.buffer_of(_parts([[10_000]], width=16 << 20), batch_size=100) == 100


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


def test_order_does_not_depend_on_the_order_given() -> None:
    splits = [Split(i, (), 1) for i in range(50)]
    assert plan.ordered(splits[::-1]) == splits


def test_a_split_is_small_when_it_travels() -> None:
    (split,) = plan.even(_parts([[1000] * 200]), plan.Target(1 << 20, 1 << 30), batch_size=64)
    assert len(split.pieces) == 1  # neighbouring row groups are one range
    assert len(pickle.dumps(split)) < 500
