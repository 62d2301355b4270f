"""Kills random processes around a real Kafka broker and counts rows that were lost or seen twice: `python kafka_soak.py 50`.

    python benchmarks/kafka_soak.py 30 --into topic   # an endless stream with transactions; needs Java, confluent-kafka
    python benchmarks/kafka_soak.py 30 --into files   # a topic with an end, written to Parquet; goes on by `ghee.resume`

Victims: the rank that reads, a map's, the sink's, the driver, and now and then the broker, each with SIGKILL at a random
moment; into a topic every second kill waits for one of the named points of a transaction (tests/servers/killed.py). Rows
come in while the kills go on. What was killed is begun again only as a user would: the broker, and the driver.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

import pyarrow.parquet as pq
import soak

from servers.kafka import Kafka
from servers.killed import POINTS, Killed
from servers.topics import numbers, produce, read_all

STAGES = {"reader": "remember", "map": "forward", "sink": "write"}
VICTIMS = ("reader", "map", "sink", "driver") * 3 + ("broker",)
ROWS = 400
"""That come in with each kill."""

FILES_ROWS = 60_000
"""Of a topic that is written to files, before the first kill; as many come in behind its end while it is read."""

TO_FILES = """
import os, pathlib, sys, time
import ghee

address, first, _, folder = sys.argv[1:]


def make():
    import time

    def remember(batch):
        return batch

    def forward(batch):
        time.sleep(0.05)  # so that kills find it at work
        return batch

    return remember, forward


remember, forward = make()
pathlib.Path(folder, "driver").write_text(str(os.getpid()))
began = pathlib.Path(folder, "run")
if began.exists():
    run = ghee.resume(began.read_text(), wait=False, retries=1000)
else:
    source = ghee.read(f"kafka://{address}/{first}", until="latest", batch_size=200, columns=["value"])
    write = source.map(remember).map(forward).write(f"{folder}/out", rows_per_file=3_000, mode="error")
    run = ghee.run(write, wait=False, retries=1000)
    began.write_text(run.id)
run.result
"""


def kill(who: str, stream: Killed, kafka: Kafka) -> bool:
    """Kill one process of this kind; False where there is none at this moment."""
    if who == "broker":
        kafka.kill()
        return True
    if who == "driver":
        stream.kill_driver()
        return True
    for victim in soak.ranks_of((STAGES[who],))[:1]:
        try:
            os.kill(victim, signal.SIGKILL)
            return True
        except ProcessLookupError:
            pass
    return False


def kills_at_moments(stream: Killed, kafka: Kafka, dice: random.Random, count: int) -> Iterator[str]:
    """One kill after another, at random moments while ranks are there; who it was. What was killed is begun again."""
    while count:
        until = time.monotonic() + dice.uniform(0.2, 4.0)
        while time.monotonic() < until or not soak.ranks_of(("write",)):
            if stream.is_over:
                return
            time.sleep(0.05)
            stream.bring_back()
        who = dice.choice(VICTIMS)
        if kill(who, stream, kafka):
            count -= 1
            yield who


def into_topic(kafka: Kafka, folder: Path, dice: random.Random, count: int) -> tuple[Counter[str], int, int, int]:
    """Kills over one stream: who, rows in, rows lost, rows twice."""
    stream = Killed(kafka, folder)
    rows, who = 0, Counter[str]()
    moments = kills_at_moments(stream, kafka, dice, count)
    try:
        while sum(who.values()) < count:
            produce(kafka.address, stream.first, numbers(ROWS, 2, first=rows), **{"enable.idempotence": True})
            rows += ROWS
            if dice.random() < 0.5:
                victim, point = dice.choice([one for one in VICTIMS if one != "map"]), dice.choice(POINTS)
                stream.add_kill(victim, point)
                stream.wait_for(rows)
                who[f"{victim} {point}"] += 1
            else:
                victim = next(moments)
                who[f"{victim} at a moment"] += 1
                stream.bring_back()
        stream.wait_for(rows)
        stream.stop()
    finally:
        stream.close()
    found = Counter(int(message.value()) for message in read_all(kafka.address, stream.second))
    return who, rows, *difference(found, rows)


def into_files(kafka: Kafka, folder: Path, dice: random.Random, count: int) -> tuple[Counter[str], int, int, int]:
    """Kills over one topic that is written to Parquet."""
    stream = Killed(kafka, folder, program=TO_FILES, rows=FILES_ROWS)
    who = Counter[str]()
    try:
        for victim in kills_at_moments(stream, kafka, dice, count):
            who[f"{victim} at a moment"] += 1
            stream.bring_back()
            produce(kafka.address, stream.first, numbers(ROWS, 2, first=FILES_ROWS))
        stream.wait_for_end()
    finally:
        stream.close()
    found = Counter(map(int, pq.read_table(folder / "out")["value"].to_pylist()))
    return who, FILES_ROWS, *difference(found, FILES_ROWS)


def difference(found: Counter[int], rows: int) -> tuple[int, int]:
    """Rows that are not there, and rows that are there too often."""
    lost = sum(number not in found for number in range(rows))
    return lost, sum(times - (number < rows) for number, times in found.items() if times > (number < rows))


def main() -> int:
    """Run until as many kills were made as were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, nargs="?", default=50)
    parser.add_argument("--into", choices=("topic", "files"), default="topic")
    parser.add_argument("--each", type=int, default=15, help="kills over one stream, at most")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["GHEE_SOAK"] = str(os.getpid())
    one_run = into_topic if arguments.into == "topic" else into_files
    kills, lost, twice, runs = Counter[str](), 0, 0, 0
    while kills.total() < arguments.kills:
        with tempfile.TemporaryDirectory() as name:
            folder, state = Path(name, "run"), Path(name, "broker")
            folder.mkdir()
            state.mkdir()
            kafka = Kafka(state)
            kafka.fetch()
            kafka.start()
            try:
                dice = random.Random(arguments.seed + runs)
                made = one_run(kafka, folder, dice, min(arguments.each, arguments.kills - kills.total()))
            finally:
                kafka.stop()
        runs += 1
        kills, lost, twice = kills + made[0], lost + made[2], twice + made[3]
        print(f"run {runs} (seed {arguments.seed + runs - 1}): {made[0].total()} kills, {made[1]:,} rows in, "
              f"{made[2]} lost, {made[3]} twice", flush=True)  # fmt: skip
    print(f"into {arguments.into}: {runs} runs, {kills.total()} kills: {lost} rows lost, {twice} seen twice")
    print(dict(sorted(kills.items())))
    return 1 if lost or twice else 0


if __name__ == "__main__":
    sys.exit(main())
