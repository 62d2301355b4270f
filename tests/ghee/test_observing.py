"""Timelines in Chrome's trace format and figures in Prometheus' format, of real runs."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from pathlib import Path

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

import ghee
import ghee.observe.trace
from ghee.errors import PipelineError
from ghee.observe.metrics import render
from ghee.observe.report import RECENT_SECONDS, RankReport, Recent, Report, StageReport

BATCHES = 24


cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks do not find the tests


def numbers():
    return [{"n": [number] * 10} for number in range(BATCHES)]


def same(batch):
    return batch


def train(batches):
    return sum(len(batch["n"]) for batch in batches)


# ── timelines ────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_trace(path: Path) -> list[dict]:
    """The events, after what every viewer relies on was checked: fields, times, nesting, arrows."""
    events = json.loads(path.read_text())["traceEvents"]
    named = {event["pid"] for event in events if event["name"] == "process_name"}
    tracks = defaultdict(list)
    for event in events:
        assert event["ph"] in "MXsfi"
        assert event["pid"] in named
        assert isinstance(event["tid"], int)
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            tracks[event["pid"], event["tid"]].append((event["ts"], -event["dur"]))
    for spans in tracks.values():
        open_until: list[float] = []
        for began, minus in sorted(spans):
            while open_until and open_until[-1] <= began + 0.01:
                open_until.pop()
            assert not open_until or began - minus <= open_until[-1] + 0.01, "spans of a thread overlap without nesting"
            open_until.append(began - minus)
    return events


def of_process(events: list[dict]) -> dict[str, Counter]:
    """How many spans of which name each process has."""
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    found: dict[str, Counter] = {name: Counter() for name in names.values()}
    for event in events:
        if event["ph"] == "X":
            found[names[event["pid"]]][event["name"]] += 1
    return found


@pytest.mark.parametrize("on", ["local", "inline"])
def test_a_timeline_shows_every_batch_at_every_rank(on, tmp_path):
    path, kept = tmp_path / "run.trace.json", []
    ready = ghee.read(numbers()).map(same, replicas=2)
    pipeline = ghee.branches(ready.loop(train, replicas=2), ready.write(kept, name="keep"))
    handle = ghee.run(pipeline, on=on, progress=False, trace=path)
    events = read_trace(path)
    spans = of_process(events)
    assert set(spans) == {"read-0", "same-0", "same-1", "train-0", "train-1", "keep-0"}
    assert spans["read-0"]["reads"] == spans["read-0"]["packs"] == BATCHES
    assert sum(spans[f"same-{rank}"]["same"] for rank in (0, 1)) == BATCHES
    assert [spans[f"train-{rank}"]["train"] for rank in (0, 1)] == [BATCHES // 2] * 2
    assert spans["keep-0"]["keep"] == BATCHES
    assert all(spans[name]["sends"] for name in ("read-0", "same-0", "same-1"))
    assert sum(spans[name]["takes in"] for name in ("same-0", "same-1")) == BATCHES
    assert [spans[name]["takes in"] for name in ("train-0", "train-1", "keep-0")] == [BATCHES // 2, BATCHES // 2, BATCHES]
    starts = {event["id"]: event for event in events if event["ph"] == "s"}
    ends = [event for event in events if event["ph"] == "f"]
    assert len(ends) == 3 * BATCHES
    assert all(starts[event["id"]]["ts"] < event["ts"] and event["bp"] == "e" for event in ends)
    assert not (handle.folder / "trace").exists()
    assert handle.report.notes == []


def test_a_timeline_is_cut_off_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(ghee.observe.trace, "MOST_EVENTS", 60)
    handle = ghee.run(ghee.read(numbers()).loop(train), on="inline", progress=False, trace=tmp_path / "t.json")
    events = read_trace(tmp_path / "t.json")
    for pid in {event["pid"] for event in events}:
        assert sum(event["ph"] in "Xsf" for event in events if event["pid"] == pid) <= 30
    assert handle.report.notes[0].startswith("the trace of read-0 was cut off: of ")
    assert handle.report.notes[0] in str(handle.report)


def test_a_timeline_of_a_run_that_fails(tmp_path):
    def break_at_the_third(batch):
        if int(batch["n"][0]) == 2:
            raise ValueError("the third")
        return batch

    with pytest.raises(ValueError, match="the third"):
        ghee.run(ghee.read(numbers()).map(break_at_the_third).loop(train), progress=False, trace=tmp_path / "t.json")
    assert of_process(read_trace(tmp_path / "t.json"))["break_at_the_third-0"]["break_at_the_third"] == 2


def test_a_timeline_with_a_killed_rank(tmp_path):
    def die_once(batch):
        if int(batch["n"][0]) == BATCHES // 2:
            try:
                (tmp_path / "died").touch(exist_ok=False)
            except FileExistsError:
                return batch
            os.kill(os.getpid(), signal.SIGKILL)
        return batch

    handle = ghee.run(ghee.read(numbers()).map(die_once).loop(train), progress=False, trace=tmp_path / "t.json")
    assert handle.result == 10 * BATCHES
    assert of_process(read_trace(tmp_path / "t.json"))["train-0"]["train"] == BATCHES


def test_half_a_line_is_left_out(tmp_path):
    """What a rank was writing when it was killed."""
    folder = tmp_path / "trace"
    settings = ghee.observe.trace.TraceSettings.begin(folder, 1)
    trace = ghee.observe.trace.Trace(settings, ghee.protocol.messages.RankId(0, 0), "read", "here")
    trace.close()
    with (folder / "0-0-0.jsonl").open("a") as file:
        file.write('{"ph":"X","name":"re')
    ghee.observe.trace.merge(folder, tmp_path / "t.json", "run")
    assert of_process(read_trace(tmp_path / "t.json")) == {"read-0": {"starts": 1}}


def test_without_being_asked_nothing_is_written():
    handle = ghee.run(ghee.read(numbers()).loop(train), on="inline", progress=False)
    assert not (handle.folder / "trace").exists()
    assert handle.metrics is None


@pytest.mark.parametrize("option", ["trace", "metrics"])
def test_a_file_in_a_folder_that_is_not_there(option, tmp_path):
    with pytest.raises(PipelineError, match=f"{option}=.*folder"):
        ghee.run(ghee.read(numbers()).loop(train), progress=False, **{option: str(tmp_path / "no" / "file")})


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def parse(text: str) -> dict[tuple[str, ...], float]:
    """Every sample by its name and its labels but the run's, as Prometheus' own parser reads it."""
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "run")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return answer.read().decode()


@pytest.mark.parametrize("on", ["local", "inline"])
def test_figures_over_http_while_a_run_goes_on(on, tmp_path):
    """The loop goes on when the test has fetched the figures."""
    go, there = tmp_path / "go", tmp_path / "there"
    os.mkfifo(go)
    os.mkfifo(there)

    def wait(batches):
        rows = train(batches)
        there.write_text("all rows are here")
        go.read_text()
        return rows

    handle = ghee.run(ghee.read(numbers()).loop(wait, name="train"), on=on, wait=False, progress=False, metrics=0)
    there.read_text()
    assert handle.metrics.startswith("http://127.0.0.1:")
    seen = parse(fetch(handle.metrics))
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(handle.metrics.replace("/metrics", "/"))
    go.write_text("go")
    assert handle.result == 10 * BATCHES
    assert seen["ghee_stage_ranks", "loop", "train"] == 1
    assert seen["ghee_stage_batches_total", "read", "read"] <= BATCHES
    with pytest.raises(urllib.error.URLError):
        fetch(handle.metrics)


def test_figures_in_a_file(tmp_path):
    path = tmp_path / "ghee.prom"
    handle = ghee.run(ghee.read(numbers()).loop(train, replicas=2), on="inline", progress=False, metrics=path)
    seen = parse(path.read_text())
    assert seen["ghee_rows_read_total",] == 10 * BATCHES
    assert seen["ghee_stage_rows_total", "loop", "train"] == 10 * BATCHES
    assert seen["ghee_rank_batches_total", "1", "train"] == BATCHES / 2
    assert seen["ghee_ledger_balanced",] == 1
    assert seen["ghee_stage_dropped_rows_total", "tail", "loop", "train"] == 0
    assert {key[1] for key in seen if key[0] == "ghee_rank_seconds_total"} == {"work", "wait_input", "wait_room"}
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["ghee.prom"]
    assert handle.metrics == str(path)


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PipelineError, match=f"metrics: 127.0.0.1:{port} cannot be listened on"):
            ghee.run(ghee.read(numbers()).loop(train), progress=False, metrics=port)


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(names, names, st.floats(0, 1e12), st.integers(0, 2**53))
def test_whatever_a_stage_is_called_prometheus_reads_it(run, name, seconds, rows):
    stages = [StageReport(name, "loop", 1, rows, by_rank=[RankReport(0, seconds)])]
    seen = {
        sample.name: sample
        for family in text_string_to_metric_families(render(Report(run, seconds, stages=stages)))
        for sample in family.samples
    }
    assert seen["ghee_stage_rows_total"].labels == {"run": run, "stage": name, "kind": "loop"}
    assert seen["ghee_stage_rows_total"].value == float(rows)
    assert seen["ghee_run_seconds"].value == seconds


# ── rows per second of late ──────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.tuples(st.floats(0.4, 3), st.integers(0, 100)), min_size=40, max_size=60))
def test_rows_of_late_are_those_of_the_last_seconds(steps):
    """What was slow or fast before does not count, but for the step in which the time begins."""
    recent, now, count = Recent(), 0.0, 0
    recent.add(now, count)
    for seconds, rows in steps:
        now, count = now + seconds, count + rows
        recent.add(now, count)
    times = [0.0]
    for seconds, _ in steps:
        times.append(times[-1] + seconds)
    first = max(number for number, time in enumerate(times) if time <= times[-1] - RECENT_SECONDS)
    rows = sum(rows for _, rows in steps[first:])
    assert recent.rate == pytest.approx(rows / (times[-1] - times[first]))


def test_rows_of_late_before_there_are_any():
    assert Recent().rate == 0
