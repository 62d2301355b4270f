"""Online training: everything is killed at once, again and again, and the model and the offsets agree. And the examples."""

from __future__ import annotations

import os
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ghee.driver.journal import parse
from ghee.launch.local import remove_left
from ghee.ranks.checkpoints import Checkpoints
from servers.kafka import Kafka
from servers.killed import Killed
from servers.topics import committed, make_topic, numbers, produce

pytestmark = pytest.mark.server

EXAMPLES = Path(__file__).parents[3] / "examples" / "movielens"

PROGRAM = """
import os, pathlib, pickle, sys, threading
import ghee

address, first, _, folder = sys.argv[1:]


def train(batches):
    from collections import Counter

    model, steps = ghee.restored() or Counter(), 0  # of what a row says: how often it was learned
    for epoch in batches.epochs():
        for batch in epoch:
            model.update(batch["value"].to_pylist())
            steps += 1
            if steps % 7 == 0:  # in the middle of a cut
                ghee.checkpoint(model)
        ghee.checkpoint(model)
    return model


began = pathlib.Path(folder, "run")
if began.exists():
    run = ghee.resume(began.read_text(), wait=False)
else:
    url = f"kafka://{address}/{first}?group={first}&session.timeout.ms=6000"
    source = ghee.read(url, batch_size=50, decode=lambda value: {"value": value})
    run = ghee.run(source.map(lambda batch: batch).loop(train), wait=False)
    began.write_text(run.id)
threading.Thread(target=lambda: sys.stdin.readline() and run.stop(), daemon=True).start()
pathlib.Path(folder, "model").write_bytes(pickle.dumps(run.result))
"""


def model_of(folder: Path) -> Counter[bytes]:
    """What the last checkpoint holds, as the journal on disk has it."""
    (run,) = (folder / "runs").iterdir()
    records, _ = parse((run / "journal").read_bytes())
    last = [record for record in records if record["kind"] == "checkpoint"][-1:]
    if not last:
        return Counter()
    model: Counter[bytes] = Checkpoints(run, 1, "train", last[0]["number"]).load(0)
    return model


@pytest.mark.timeout(300)
def test_model_and_offsets_agree_whenever_everything_is_killed(kafka: Kafka, tmp_path: Path) -> None:
    dice, rows = random.Random(7), 0
    stream = Killed(kafka, tmp_path, program=PROGRAM)
    clock = threading.Event()  # never set
    try:
        for _ in range(6):
            produce(kafka.address, stream.first, numbers(2_000, 2, first=rows))
            rows += 2_000
            while not model_of_run(tmp_path) > rows - 2_000:  # it learns from the new rows
                stream.bring_back()
                clock.wait(0.05)
            clock.wait(dice.uniform(0, 1))
            assert stream.kill_everything() > 2
            model, offsets = model_of(tmp_path), committed(kafka.address, stream.first, stream.first, 2)
            assert set(model.values()) <= {1}
            for partition, offset in enumerate(offsets):  # what is committed is in the model
                assert all(b"%d" % number in model for number in range(partition, 2 * offset, 2)), (partition, offset)
        stream.wait_for(rows)
        stream.stop()
    finally:
        stream.kill_everything()
        stream.close()
        remove_left()  # as the user's next run does: one that began while its forerunner still died left its folder
    assert pickle.loads((tmp_path / "model").read_bytes()) == Counter(b"%d" % number for number in range(rows))


def model_of_run(folder: Path) -> int:
    return sum(model_of(folder).values()) if (folder / "run").exists() else 0


# ── the examples, as a user runs them ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.timeout(400)
def test_movielens_through_a_broker_has_the_rmse_of_the_files(kafka: Kafka, tmp_path: Path) -> None:
    name = make_topic(kafka.address)
    command = [sys.executable, str(EXAMPLES / "from_kafka.py"), kafka.address, "--name", name]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "GHEE_HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"test RMSE: (\S+) over 10,000 predictions", done.stdout)
    assert found, done.stdout
    assert abs(float(found[1]) - 0.890) < 0.005  # of the plain loop over files, and the demo's NOISE


@pytest.fixture
def online(kafka: Kafka, tmp_path: Path) -> Iterator[Any]:
    """Starts the example; whatever is left of it is gone at the end."""
    made: list[subprocess.Popen[str]] = []

    def make(topic: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(EXAMPLES / "online.py"), kafka.address, topic, "--group", topic, "--session", "6000"]
        env = {**os.environ, "GHEE_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
        made.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=env))
        return made[-1]

    yield make
    for process in made:
        process.kill()
        if process.stdout is not None and not process.stdout.closed:
            process.communicate()


@pytest.mark.timeout(300)
def test_the_example_of_online_training_goes_on_by_the_same_command(kafka: Kafka, online: Any, tmp_path: Path) -> None:
    topic = make_topic(kafka.address, 2)
    rating = (
        b'{"user_id": %d, "item_id": 5, "rating": 3, "time": "1997-12-04T15:55:49", "age": 24, "gender": "M", '
        b'"occupation": "technician", "year": 1995, "genres": ["Comedy"]}'
    )
    ratings = [{"value": rating % (number % 900), "partition": number % 2} for number in range(4_000)]
    produce(kafka.address, topic, ratings[:2_000])
    process = online(topic)
    learned = next(line for line in process.stdout if "ratings learned" in line)
    process.send_signal(signal.SIGKILL)  # the ranks end with it
    process.communicate()
    produce(kafka.address, topic, ratings[2_000:])
    again = online(topic)
    clock = threading.Event()  # the broker tells nobody of a commit
    while committed(kafka.address, topic, topic, 2) != [2_000, 2_000]:
        assert again.poll() is None
        clock.wait(0.2)
    again.send_signal(signal.SIGINT)
    out, _ = again.communicate(timeout=60)
    assert again.returncode == 0
    assert 0 < int(learned.rpartition("]")[2].split()[0].replace(",", "")) <= 2_000
    assert out.splitlines()[-1] == "4,000 ratings learned; the model is in online.pt"
    assert not (tmp_path / "online.run").exists()
