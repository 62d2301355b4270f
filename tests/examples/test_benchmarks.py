"""The benchmarks measure what they say: lost, repeated or spoiled batches are found out, lines are counted right."""

import json
import os
import re
from pathlib import Path

import hop
import job
import lines_of_code
import numpy as np
import pytest


def test_what_a_transport_loses_repeats_or_spoils_is_found_out() -> None:
    size, count = 3 * hop.PAGE, 9
    sent = list(hop.send(size, count))
    measured = hop.receive(reversed(sent), size, count, os.getpid())
    assert (measured["bytes"], measured["batches"]) == (8 * size, 8)
    spoiled = sent[3].copy()
    spoiled[hop.PAGE] ^= 1
    for wrong in (sent[:-1], [*sent, sent[0]], [*sent[:3], spoiled, *sent[4:]], [*sent[:3], sent[3][1:], *sent[4:]]):
        with pytest.raises(ValueError, match=r"arrived|expected"):
            hop.receive(wrong, size, count, os.getpid())


def test_the_job_sees_every_row_once_and_does_the_work_it_is_told(movielens: Path, tmp_path: Path) -> None:
    job.make_input(movielens / "test", tmp_path / "input", 2 * job.GROUP)
    wanted = json.loads((tmp_path / "input" / "checksum.json").read_text())
    files = job.Job(tmp_path / "input", weight=1, workers=1).files()
    batches = [batch for file in files for batch in job.read(file)]
    assert len(files) == 2
    assert {batch.num_rows for batch in batches} == {job.BATCH}
    assert wanted == {"rows": 2 * job.GROUP, "checksum": sum(map(job.checksum, batches))}
    once, twice = (job.prepare(batches[0], weight)["mixed"] for weight in (1, 2))
    assert not np.array_equal(once, twice)
    trained = job.Trainer().train(job.prepare(batch, 1) for batch in batches)
    assert {key: trained[key] for key in wanted} == wanted


def test_no_module_of_ours_stands_before_a_package_of_a_peer() -> None:
    """The benchmarks import the examples' modules by name: one called `distributed` would take the place of Dask's."""
    root = Path(job.__file__).parent
    folders = [root, root / "systems", root.parent / "examples/movielens"]
    ours = {path.stem for folder in folders for path in folder.glob("*.py")}
    words = [line for path in (root / "requirements").glob("*.txt") for line in path.read_text().splitlines()]
    theirs = {re.split(r"[^a-z0-9_-]", word.lower())[0].replace("-", "_") for word in words if word[:1].isalpha()}
    assert {"dask", "distributed", "ray"} <= theirs
    assert not ours & theirs


def test_imports_docstrings_and_comments_are_no_lines_of_code() -> None:
    text = '"""Doc\n\nstring."""\nimport os\nfrom a import (\n    b,\n    c,\n)\n\n\n# why\ndef f(x):\n    """Doc."""\n'
    text += '    y = """a\n    b"""\n    return (\n        x\n    )\n'
    assert lines_of_code.code_lines(text) == 6


def test_ghee_needs_at_most_half_of_dasks_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines_of_code.main()
    assert "ratio" in capsys.readouterr().out
