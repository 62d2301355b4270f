"""`.rebatch(rows)` in real runs: exact batches whatever came before, through deaths, checkpoints and a change of ranks."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ghee
from ghee.errors import BatchError, CheckpointError, PipelineError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import a test module

pytestmark = pytest.mark.usefixtures("own_home")

ROWS, BATCH = 6000, 64
KEPT = [i for i in range(ROWS) if i % 7 < 3]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """Three files in row groups of other sizes than a batch."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for number in range(3):
        ids = np.arange(number * ROWS // 3, (number + 1) * ROWS // 3)
        pq.write_table(pa.table({"id": ids, "more": ids * 0.5}), folder / f"{number}.parquet", row_group_size=450)
    return str(folder)


def thinned(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A filter: three rows of seven."""
    return batch.filter(pa.array(np.asarray(batch["id"]) % 7 < 3))


def collect(batches: ghee.Batches) -> list[list[list[int]]]:
    """By epoch and batch the ids."""
    return [[[int(i) for i in batch["id"]] for batch in epoch] for epoch in batches.epochs()]


def check(results: list[list[list[list[int]]]], wanted: list[int], rows: int = BATCH) -> None:
    """Of each epoch every row once, every batch full but one, and ranks that differ by a batch at most."""
    for epoch in range(len(results[0])):
        given = [[batch for batch in of_rank[epoch] if batch] for of_rank in results]
        assert Counter(i for batches in given for batch in batches for i in batch) == Counter(wanted)
        sizes = [len(batch) for batches in given for batch in batches]
        assert [size for size in sizes if size != rows] == [len(wanted) % rows] * bool(len(wanted) % rows)
        assert len({len(of_rank[epoch]) for of_rank in results}) == 1
        totals = [sum(len(batch) for batch in batches) for batches in given]
        assert max(totals) - min(totals) <= 2 * rows


@pytest.mark.parametrize("on", ["inline", "local"])
@pytest.mark.parametrize("rows_of_a_batch", [7, BATCH, 5000])
def test_batches_after_a_filter_are_exact(rows: str, on: str, rows_of_a_batch: int) -> None:
    source = ghee.read(rows, batch_size=500, epochs=2).map(thinned, replicas=2).rebatch(rows_of_a_batch)
    run = ghee.run(source.loop(collect, name="train", replicas=2, tail="pad"), on=on, progress=False)
    check(run.results["train"], KEPT, rows_of_a_batch)
    assert run.report.balanced
    assert not run.report.stage("train").is_uneven(2)


def as_dict(batch: Any) -> dict[str, Any]:
    return {"id": np.asarray(batch["id"]), "name": "all", "square": np.asarray(batch["id"]).reshape(-1, 1) ** 2}


def as_table(batch: Any) -> pa.Table:
    return pa.Table.from_batches([batch])


def as_pandas(batch: Any) -> Any:
    return batch.to_pandas()


def as_torch(batch: Any) -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    return {"id": torch.from_numpy(np.array(batch["id"])), "k": 3}


def as_lists(batch: Any) -> dict[str, Any]:
    return {"id": [int(i) for i in batch["id"].to_pylist()]}


@pytest.mark.parametrize("change", [as_dict, as_table, as_pandas, as_torch, as_lists], ids=lambda f: f.__name__[3:])
def test_every_kind_of_batch_with_rows_is_cut(rows: str, change: Any) -> None:
    pytest.importorskip({as_torch: "torch", as_pandas: "pandas"}.get(change, "numpy"))
    source = ghee.read(rows, batch_size=450).map(change).rebatch(BATCH)
    ordered, paired = (source.loop(collect, name=str(n), replicas=n, ordered=n == 1, tail="pad") for n in (1, 2))
    run = ghee.run(ghee.branches(ordered, paired), on="inline", progress=False)
    (batches,) = run.results["1"][0]
    assert batches == [list(range(at, min(at + BATCH, ROWS))) for at in range(0, ROWS, BATCH)]
    check(run.results["2"], list(range(ROWS)))


def plain(batch: Any) -> object:
    return frozenset(batch["id"].to_pylist())


def ragged(batch: Any) -> dict[str, Any]:
    return {"a": np.arange(3), "b": np.arange(4)}


def other_columns(batch: Any) -> Any:
    return batch.select(["id"] if batch["id"][0].as_py() % 1000 else ["more"])


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (plain, "got a frozenset, which .rebatch.. cannot cut by rows; it cuts an Arrow record batch"),
        (ragged, "got a dict with columns of 3 and 4 rows, which .rebatch.. cannot cut"),
        (other_columns, "RecordBatch. could not be put together by .rebatch.."),
    ],
)
def test_what_cannot_be_cut_is_an_error_that_names_it(rows: str, function: Any, said: str) -> None:
    pipeline = ghee.read(rows, batch_size=500).map(function).rebatch(800).loop(collect)
    with pytest.raises(BatchError, match=said):
        ghee.run(pipeline, on="inline", progress=False)


def test_a_source_that_cannot_be_counted_is_cut_too() -> None:
    batches = [{"id": np.arange(at, at + at % 90)} for at in range(0, 4000, 100)]
    wanted = [int(i) for batch in batches for i in batch["id"]]
    source = ghee.read(batches, epochs=2).rebatch(BATCH)
    run = ghee.run(source.loop(collect, replicas=3, tail="pad"), on="inline", progress=False)
    check(run.results["collect"], wanted)
    out: list[Any] = []
    ghee.run(ghee.read(batches).rebatch(BATCH).write(out), on="inline", progress=False)
    assert sorted(len(batch["id"]) for batch in out) == [len(wanted) % BATCH] + [BATCH] * (len(wanted) // BATCH)
    assert Counter(int(i) for batch in out for i in batch["id"]) == Counter(wanted)


def test_branches_have_sizes_of_their_own(rows: str) -> None:
    made = ghee.read(rows, batch_size=500).map(thinned)
    loops = [made.rebatch(n).loop(collect, name=f"of {n}", ordered=True) for n in (10, BATCH, 1000)]
    run = ghee.run(ghee.branches(*loops, made.loop(collect, name="as it is")), on="inline", progress=False)
    for n in (10, BATCH, 1000):
        (batches,) = run.results[f"of {n}"][0]
        assert batches == [KEPT[at : at + n] for at in range(0, len(KEPT), n)]
    assert Counter(i for batch in run.results["as it is"][0][0] for i in batch) == Counter(KEPT)


def broad(batch: Any) -> dict[str, Any]:
    """Some 400 kB: what is shared between ranks by its place in memory, and not sent."""
    ids = np.asarray(batch["id"])
    return {"id": ids, "wide": np.repeat(ids, 100).reshape(-1, 100)}


def spoil(batches: ghee.Batches) -> list[list[list[int]]]:
    """Writes into its batches when it has looked at them."""
    epochs: list[list[list[int]]] = []
    for epoch in batches.epochs():
        epochs.append([])
        for batch in epoch:
            assert (batch["wide"] == batch["id"][:, None]).all()
            epochs[-1].append(batch["id"].tolist())
            batch["wide"][:] = batch["id"][:] = -1
    return epochs


def test_ranks_that_write_into_parts_of_one_batch_do_not_see_each_other(rows: str) -> None:
    source = ghee.read(rows, batch_size=500, epochs=2).map(broad, replicas=2).rebatch(300)
    run = ghee.run(source.loop(spoil, name="train", replicas=2, tail="pad"), on="local", progress=False)
    check(run.results["train"], list(range(ROWS)), 300)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("tail", ["drop", "pad", "repeat"])
def test_drop_last_leaves_the_short_batch_out(rows: str, ranks: int, tail: str) -> None:
    source = ghee.read(rows, batch_size=500, epochs=2).map(thinned).rebatch(BATCH, drop_last=True)
    run = ghee.run(source.loop(collect, name="train", replicas=ranks, tail=tail), on="inline", progress=False)
    full = len(KEPT) // BATCH
    steps = full // ranks if tail == "drop" else -(-full // ranks)
    for of_rank in run.results["train"]:
        for epoch in of_rank:
            assert len(epoch) == steps
            assert {len(batch) for batch in epoch} <= {BATCH, 0}
    stage = run.report.stage("train")
    lost = len(KEPT) % BATCH + (full - steps * ranks) * BATCH * (tail == "drop")
    assert stage.tail_dropped == 2 * lost
    assert run.report.balanced


class Dies:
    """A filter whose rank is killed once, when it has made half of what it makes of a batch."""

    def __init__(self, mark: Path) -> None:
        self.mark, self.calls = mark, 0

    def __call__(self, batch: Any) -> Iterator[Any]:
        self.calls += 1
        kept = thinned(batch)
        yield kept.slice(0, 100)
        if self.calls == 3 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield kept.slice(100)


@pytest.mark.parametrize("own", [False, True], ids=["reading", "a stage of its own"])
@pytest.mark.parametrize("ordered", [False, True], ids=["first ready", "ordered"])
def test_a_killed_map_loses_no_row(rows: str, tmp_path: Path, own: bool, ordered: bool) -> None:
    mark = tmp_path / "died"
    source = ghee.read(rows, batch_size=500, epochs=2, replicas=1 if own else None)
    loop = source.map(Dies(mark), replicas=2).rebatch(BATCH).loop(collect, replicas=2, tail="pad", ordered=ordered)
    run = ghee.run(loop, on="local", progress=False)
    assert mark.exists()
    assert run.report.restarts
    assert run.report.balanced
    check(run.results["collect"], KEPT)
    if ordered:
        first, second = (of_rank[0] for of_rank in run.results["collect"])
        wanted = [KEPT[at : at + BATCH] for at in range(0, len(KEPT), BATCH)]
        assert first == wanted[::2]
        assert [batch for batch in second if batch] == wanted[1::2]


@pytest.mark.parametrize("ordered", [False, True], ids=["first ready", "ordered"])
@pytest.mark.parametrize("after", [1, 3])
def test_going_on_with_other_ranks_gives_every_row_once(rows: str, ordered: bool, after: int) -> None:
    def pipeline(ranks: int, train: Any) -> ghee.Pipeline:
        source = ghee.read(rows, batch_size=500).map(thinned, replicas=2).rebatch(BATCH)
        return source.loop(train, name="train", replicas=ranks, tail="pad", ordered=ordered)

    def keep(batches: ghee.Batches) -> tuple[list[list[int]], dict[str, Any]]:
        seen, place = [], {}
        for batch in batches:
            seen.append([int(i) for i in batch["id"]])
            if len(seen) in (5, 10):
                place = batches.state()
        return seen, place

    first = ghee.run(pipeline(2, keep), on="inline", progress=False)
    place = first.results["train"][0][1]
    assert place["step"] == 10
    early = [batch for seen, _ in first.results["train"] for batch in seen[:10]]
    second = ghee.run(pipeline(after, collect), on="local", progress=False, resume=place)
    late = [batch for of_rank in second.results["train"] for epoch in of_rank for batch in epoch if batch]
    assert Counter(i for batch in early + late for i in batch) == Counter(KEPT)
    assert [len(batch) for batch in early] == [BATCH] * 20
    assert sorted(len(batch) for batch in late)[1:] == [BATCH] * ((len(KEPT) - 20 * BATCH) // BATCH)
    assert second.report.balanced
    if ordered:
        assert sorted(late) == [KEPT[at : at + BATCH] for at in range(20 * BATCH, len(KEPT), BATCH)]


def test_a_killed_loop_goes_on_with_the_next_row(rows: str, tmp_path: Path) -> None:
    mark = tmp_path / "died"

    def train(batches: ghee.Batches) -> list[list[int]]:
        seen: list[list[int]] = ghee.restored() or []
        for batch in batches:
            seen.append([int(i) for i in batch["id"]])
            if len(seen) % 5 == 0:
                ghee.checkpoint(seen)
            if len(seen) == 12 and ghee.rank() == 1 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return seen

    source = ghee.read(rows, batch_size=500).map(thinned, replicas=2).rebatch(BATCH)
    run = ghee.run(source.loop(train, replicas=2, tail="pad"), on="local", progress=False)
    assert mark.exists()
    check([[of_rank] for of_rank in run.results["train"]], KEPT)


class Unsteady:
    """Makes other rows the second time."""

    def __init__(self, mark: Path) -> None:
        self.mark, self.calls = mark, 0

    def __call__(self, batch: Any) -> Any:
        self.calls += 1
        if self.calls == 5 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return batch.slice(0, 10 if self.mark.exists() else 11)


def test_an_unsteady_function_costs_a_beginning_and_no_row(rows: str, tmp_path: Path) -> None:
    """What was given away does not fit what comes out the second time: the run begins again, if something of it was lost."""
    source = ghee.read(rows, batch_size=50).map(Unsteady(tmp_path / "died")).rebatch(7)
    run = ghee.run(source.loop(collect), on="local", progress=False)
    assert run.report.restarts
    assert run.report.balanced
    (epoch,) = run.result
    assert all(len(batch) == 7 for batch in epoch[:-1])


def test_what_files_a_sink_gets(rows: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ghee.run(ghee.read(rows, batch_size=500).map(thinned).rebatch(100).write(str(out), replicas=2), progress=False)
    assert Counter(pq.read_table(out)["id"].to_pylist()) == Counter(KEPT)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p.rebatch(0), "rebatch.0.: expected a whole number of rows, at least 1"),
        (lambda p: p.rebatch(True), "rebatch.True.: expected a whole number"),
        (lambda p: p.rebatch(2.5), "rebatch.2.5.: expected a whole number"),
        (lambda p: p.rebatch(5, drop_last=1), "drop_last=1.: allowed are True and False"),
        (lambda p: p.rebatch(5).rebatch(6), "leave one of them out"),
        (lambda p: p.rebatch(5).map(thinned), "comes before the map 'thinned', and can only come before a loop or a sink"),
        (lambda p: p.write([]).rebatch(5), "put .rebatch.. before .write"),
        (lambda p: ghee.run(p.rebatch(5)), "the pipeline ends in .rebatch.5., which is for the loop or sink after it"),
        (lambda p: ghee.branches(p.rebatch(5), p.loop(collect)), "is for the loop or sink after it: put one there"),
        (
            lambda p: ghee.run(ghee.branches(p.loop(collect), p.rebatch(5).loop(collect, when_slow="skip"))),
            "when_slow='skip', which passes over whole batches, and .rebatch.. cuts them",
        ),
    ],
)  # fmt: skip
def test_wrong_uses_say_what_to_do(rows: str, make: Any, said: str) -> None:
    with pytest.raises(PipelineError, match=said):
        make(ghee.read(rows))


def test_explain_and_set_keep_it(rows: str) -> None:
    pipeline = ghee.read(rows).rebatch(5, drop_last=True).loop(collect)
    assert "rebatch=5, drop_last" in str(pipeline)
    from ghee.pipeline import override

    assert "rebatch=5, drop_last" in str(override(pipeline, {"collect": {"replicas": 2}}))


def test_a_place_fits_the_same_rows_only(rows: str) -> None:
    def keep(batches: ghee.Batches) -> dict[str, Any]:
        next(iter(batches))
        return batches.state()

    source = ghee.read(rows)
    place = ghee.run(source.rebatch(5).loop(keep, name="train"), on="inline", progress=False).result
    with pytest.raises(
        CheckpointError, match=r"train after .rebatch\(5\); this pipeline has read, train after .rebatch\(6\)"
    ):
        ghee.run(source.rebatch(6).loop(collect, name="train"), on="inline", progress=False, resume=place)
