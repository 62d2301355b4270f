"""Where the time of one hop goes: what each thread of sender, receiver and driver does, and what a copy alone costs.

    python benchmarks/transport_profile.py
    python benchmarks/transport_profile.py --size 64M --seconds 10
    python benchmarks/transport_profile.py --choices

The first table is one memcpy into slots of shared memory in turns, from four arrays: the more slots, the less of them is in
the processor's cache. The others show, for each process, how much of the time its threads computed, and in which
functions they were found by looking at them every 4 ms. `--choices` compares instead what ghee was set to: how much may be
under way (credit), and whether large copies go past the cache; medians of GB/s, by turns.

Needs what `requirements/ghee.txt` lists.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import mmap
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from hop import POOL, receive, send
from transport import SIZES

import ghee
from ghee.launch.local import COPY_PAST_CACHE

INTERVAL = 0.004


def copy_speed(size: int, slots: int) -> float:
    """GB/s of copying arrays of `size` bytes into so many slots of one shared memory in turns."""
    descriptor = os.memfd_create("slots")
    os.ftruncate(descriptor, size * slots)
    memory = mmap.mmap(descriptor, size * slots)
    os.close(descriptor)
    places = [np.frombuffer(memory, np.uint8, size, size * number) for number in range(slots)]
    arrays = list(send(size, POOL))
    rounds = max(2 * slots, (1 << 30) // size)
    for place in places:
        place[:] = 0
    began = time.perf_counter()
    for number in range(rounds):
        np.copyto(places[number % slots], arrays[number % POOL])
    return size * rounds / (time.perf_counter() - began) / 1e9


def computed() -> dict[int, float]:
    """Seconds of processor time of each thread of this process, by its kernel's number."""
    spent = {}
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        spent[int(task.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


@contextlib.contextmanager
def watch(name: str, folder: str, seconds: float) -> Iterator[None]:
    """Look at the threads of this process for so long, in a thread of its own, and write down what was seen.

    A machine may be done with the work sooner than that: what was seen until then is written when the context is left.
    """
    done = threading.Event()

    def look() -> None:
        seen, looks, before, began = Counter[tuple[str, str]](), 0, computed(), time.monotonic()
        while not looks or (time.monotonic() - began < seconds and not done.wait(INTERVAL)):
            names = {thread.ident: thread.name for thread in threading.enumerate()}
            for number, frame in sys._current_frames().items():
                if number != threading.get_ident():
                    code = frame.f_code
                    where = f"{Path(code.co_filename).name}:{code.co_qualname}"
                    seen[names.get(number, "another").split(" ")[0], where] += 1
            looks += 1
        passed, after = time.monotonic() - began, computed()
        busy = Counter[str]()
        for thread in threading.enumerate():
            busy[thread.name.split(" ")[0]] += (after[thread.native_id] - before.get(thread.native_id, 0)) / passed
        figures = {"busy": busy, "seen": [[*key, count / looks] for key, count in seen.most_common(40)]}
        (Path(folder) / name).write_text(json.dumps(figures))

    looking = threading.Thread(target=look, name="profile", daemon=True)
    looking.start()
    try:
        yield
    finally:
        done.set()
        looking.join()


def make(count: int, size: int, folder: str, seconds: float):
    """The sender."""
    with watch("sender", folder, seconds):
        yield from send(size, count)


def take(batches, size: int, count: int, root: int, folder: str, seconds: float):
    """The receiver."""
    with watch("receiver", folder, seconds):
        return receive(batches, size, count, root)


def show(folder: Path) -> None:
    """Print what the processes have written down."""
    for name in ("sender", "receiver", "driver"):
        figures = json.loads((folder / name).read_text())
        for thread, share in figures["busy"].items():
            if share < 0.01 or thread == "profile":
                continue
            print(f"{name}, thread {thread}: computed {share:.0%} of the time")
            for of, where, found in figures["seen"]:
                if of == thread and found >= 0.02:
                    print(f"    {found:6.1%}  {where}")


def speed(size: int, count: int, credit: str, past_cache: bool) -> float:
    """GB/s from a map rank to a loop rank."""
    if not past_cache:  # what the user's environment says goes before ghee's own
        os.environ["GLIBC_TUNABLES"] = f"{COPY_PAST_CACHE}={1 << 40:#x}"
    try:
        sent = ghee.read([count]).map(functools.partial(send_all, size=size))
        taking = functools.partial(receive, size=size, count=count, root=os.getpid())
        result = ghee.run(sent.loop(taking, credit=credit), progress=False).result
    finally:
        os.environ.pop("GLIBC_TUNABLES", None)
    return result["bytes"] / result["seconds"] / 1e9


def send_all(count: int, size: int):
    """The sender that is not looked at."""
    yield from send(size, count)


def compare(repeats: int) -> None:
    """Print what each choice brings, for batches of 1 MB and of 64 MB."""
    for size, count, credits in (("1M", 2_560, ("64Mi", "96Mi", "128Mi", "256Mi")), ("64M", 80, ("96Mi", "256Mi"))):
        choices = [(credit, past_cache) for past_cache in (True, False) for credit in credits]
        found: dict[tuple[str, bool], list[float]] = {choice: [] for choice in choices}
        for _ in range(repeats):
            for choice in choices:
                found[choice].append(speed(SIZES[size], count, *choice))
        for (credit, past_cache), figures in found.items():
            copies = "past the cache" if past_cache else "as glibc chooses"
            print(f"{size}, credit {credit}, large copies {copies}: {statistics.median(figures):.2f} GB/s")


def main() -> None:
    """See the module's docstring."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", choices=SIZES, default="1M")
    options.add_argument("--seconds", type=float, default=5.0)
    options.add_argument("--count", type=int, help="batches; default: some --seconds of them")
    options.add_argument("--choices", action="store_true", help="compare settings instead")
    options.add_argument("--repeats", type=int, default=5, help="of each choice")
    chosen = options.parse_args()
    if chosen.choices:
        compare(chosen.repeats)
        return
    size = SIZES[chosen.size]
    count = chosen.count or int(chosen.seconds * min(30_000, 8 * (1 << 30) // size))
    for slots in (2, 8, 16, 32, 64):
        if slots * size <= 1 << 32:
            print(f"one copy of {chosen.size} into {slots} slots in turns: {copy_speed(size, slots):.2f} GB/s")
    with tempfile.TemporaryDirectory() as folder:
        common = {"size": size, "folder": folder, "seconds": chosen.seconds}
        taking = functools.partial(take, count=count, root=os.getpid(), **common)
        with watch("driver", folder, chosen.seconds):
            run = ghee.run(ghee.read([count]).map(functools.partial(make, **common)).loop(taking), progress=False)
        result = run.result
        print(
            f"{result['batches'] / result['seconds']:,.0f} batches/s, {result['bytes'] / result['seconds'] / 1e9:.2f} GB/s"
        )
        show(Path(folder))


if __name__ == "__main__":
    main()
