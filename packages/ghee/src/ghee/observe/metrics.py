"""A run's figures for Prometheus: served over HTTP on this machine, or written to a file for a collector of text files."""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from ghee.errors import PipelineError
from ghee.observe.report import Report

LOOPBACK = "127.0.0.1"

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

WRITE_EVERY = 1.0
"""Seconds between two writes of a file."""

CLIENT_SECONDS = 5.0
"""How long a client may take to ask."""

_PORT = re.compile(r"(?:(?P<host>[A-Za-z0-9.\-]*|\[[0-9A-Fa-f:]+\]):)?(?P<port>[0-9]{1,5})")


class _Family(NamedTuple):
    name: str
    kind: str
    help: str
    samples: list[tuple[Mapping[str, object], float]]


def render(report: Report) -> str:
    """The report in Prometheus' text format."""
    lines = []
    for family in _families(report):
        lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
        for labels, value in family.samples:
            inner = ",".join(f'{name}="{_escape(str(text))}"' for name, text in {"run": report.run, **labels}.items())
            lines.append(f"{family.name}{{{inner}}} {value!r}")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _families(report: Report) -> Iterable[_Family]:
    def of_run(name: str, kind: str, about: str, value: float) -> _Family:
        return _Family(f"ghee_{name}", kind, about, [({}, value)])

    def of_stages(name: str, kind: str, about: str, value: Callable[[Any], float]) -> _Family:
        return _Family(
            f"ghee_stage_{name}", kind, about, [({"stage": s.name, "kind": s.kind}, value(s)) for s in report.stages]
        )

    def of_ranks(name: str, about: str, values: Mapping[str, Callable[[Any], float]], label: str = "") -> _Family:
        return _Family(f"ghee_rank_{name}", "counter", about, [
            ({"stage": stage.name, "rank": rank.rank, **({label: key} if label else {})}, value(rank))
            for stage in report.stages for rank in stage.by_rank for key, value in values.items()
        ])  # fmt: skip

    yield of_run("run_seconds", "gauge", "Seconds since the run was started.", report.seconds)
    if report.first_batch is not None:
        yield of_run("first_batch_seconds", "gauge", "Seconds from the start to the first delivery.", report.first_batch)
    yield of_run("rows_read_total", "counter", "Rows read from the source, all epochs.", report.rows_read)
    yield of_run("restarts_total", "counter", "Worlds, and the run itself, that were started again.", len(report.restarts))
    yield of_run("branch_failures_total", "counter", "Branches that have failed.", len(report.failures))
    yield of_run("ledger_balanced", "gauge", "1 when every row is accounted for in every epoch.", float(report.balanced))
    if report.lag:
        lag = [({"partition": name}, float(behind)) for name, behind in report.lag.items()]
        yield _Family("ghee_lag_offsets", "gauge", "Offsets of a stream's partition that are not acknowledged.", list(lag))
    if report.oldest is not None:
        about = "How old the oldest row of a stream is that is not acknowledged."
        yield of_run("oldest_row_seconds", "gauge", about, report.oldest)
    yield of_stages("ranks", "gauge", "Ranks of the stage.", lambda s: s.ranks)
    yield of_stages("rows_total", "counter", "Rows that the stage was given.", lambda s: s.rows)
    yield of_stages("batches_total", "counter", "Batches that the stage was given.", lambda s: s.batches)
    yield of_stages("bytes_out_total", "counter", "Bytes of the batches that the stage has made.", lambda s: s.bytes_out)
    yield of_stages("repeated_rows_total", "counter", 'Rows given twice by tail="repeat".', lambda s: s.repeated)
    yield of_stages(
        "capacity_rows_per_second", "gauge", "Rows per second that the stage could do without waiting.", lambda s: s.capacity
    )
    yield of_stages("limits", "gauge", "1 for the stage that limits the run.", lambda s: float(s.name == report.limiting))
    yield _Family("ghee_stage_dropped_rows_total", "counter", "Rows that were not delivered, by what dropped them.", [
        ({"stage": stage.name, "kind": stage.kind, "by": by}, rows)
        for stage in report.stages
        for by, rows in (("function", stage.dropped), ("tail", stage.tail_dropped), ("skipped", stage.skipped))
    ])  # fmt: skip
    doing = {"work": lambda r: r.worked, "wait_input": lambda r: r.waited_input, "wait_room": lambda r: r.waited_room}
    yield of_ranks("seconds_total", "What the rank did with its time.", doing, "doing")
    yield of_ranks("cpu_seconds_total", "Seconds that the rank has computed.", {"": lambda r: r.cpu})
    yield of_ranks("batches_total", "Batches that the rank was given.", {"": lambda r: r.batches})


class Metrics:
    """Where the figures of one run can be had: `address` is a URL or a path.

    Made before the run, so that a port that is taken is known before anything starts.
    """

    def __init__(self, where: int | str | Path) -> None:
        """`where`: a port of the loopback interface (0: any that is free), "HOST:PORT", or the path of a file."""
        self._report: Callable[[], Report] | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._server: ThreadingHTTPServer | None = None
        port = None if isinstance(where, Path) else _PORT.fullmatch(str(where))
        if port is None:
            self._path = Path(where)  # type: ignore[arg-type]  # a number is a port
            if not self._path.absolute().parent.is_dir():
                raise PipelineError(
                    f"metrics={str(where)!r}: the folder {self._path.absolute().parent} does not exist; "
                    "give a port (9100), HOST:PORT, or a file in a folder that is there"
                )
            self.address = str(self._path)
        else:
            self._server = self._bind(port["host"] or LOOPBACK, int(port["port"]))

    def _bind(self, host: str, port: int) -> ThreadingHTTPServer:
        ours = self

        class Handler(BaseHTTPRequestHandler):
            timeout = CLIENT_SECONDS

            def do_GET(self) -> None:
                ours._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: a run prints its own output only."""

        try:
            server = ThreadingHTTPServer((host.strip("[]"), port), Handler)
        except (OSError, OverflowError) as error:
            raise PipelineError(
                f"metrics: {host}:{port} cannot be listened on: {error}; give another port, or 0 for any"
            ) from error
        server.daemon_threads = True
        self.address = f"http://{host}:{server.server_address[1]}/metrics"
        return server

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        if request.path.partition("?")[0] != "/metrics":
            request.send_error(404, "the figures are at /metrics")
            return
        body = render(self._report()).encode() if self._report is not None else b""
        request.send_response(200)
        request.send_header("Content-Type", CONTENT_TYPE)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def begin(self, report: Callable[[], Report]) -> None:
        """Give out what `report` returns from now on; it is called from another thread."""
        self._report = report
        target = self._write_files if self._server is None else self._server.serve_forever
        self._thread = threading.Thread(target=target, name="ghee metrics", daemon=True)
        self._thread.start()

    def _write_files(self) -> None:
        while not self._over.wait(WRITE_EVERY):
            self._write()

    def _write(self) -> None:
        assert self._report is not None
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            beside.write_text(render(self._report()))
            beside.replace(self._path)
        except OSError as error:  # a full disk is no reason to end a run
            warnings.warn(f"the metrics could not be written to {self._path}: {error}", RuntimeWarning, stacklevel=2)

    def close(self) -> None:
        """Stop; a file keeps the last figures."""
        self._over.set()
        if self._server is not None:
            if self._thread is not None:
                self._server.shutdown()
            self._server.server_close()
        if self._thread is not None:
            self._thread.join()
            if self._server is None:
                self._write()
