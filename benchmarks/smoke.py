"""Start every benchmark with the smallest size that shows that it runs and checks its result. Measures nothing.

    python benchmarks/smoke.py                      those that need Python alone
    python benchmarks/smoke.py kafka kubernetes     those on real servers of that kind
    python benchmarks/smoke.py --only soak          those with that in their command

Each benchmark checks what came out by itself (rows, bytes, ids) and ends with another code than 0 where it is wrong.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LIMIT_S = 300

SMOKE = {
    "python": [
        "lines_of_code.py",
        "models_lines.py",
        "movielens_peers.py --rows 32768 --repeats 1 --cold",
        "transport.py --sizes 4k --repeats 1 --systems ghee dataloader zmq memcpy",
        "transport_profile.py --size 1M --seconds 0.5",
        "startup.py --repeats 1",
        "shared_memory.py --ranks 1",
        "shuffle.py --rows 2000 --group 1000",
        "trainer_wait.py --batches 50 --repeats 1",
        "memory.py --size 1M --credit 8M --batches 40 --step 0.01",
        "ranks.py --ranks 10 --real 2",
        "soak.py 2 --each 2 --seed 1",
        "models_predict.py --rows 2000 --replicas 1 --repeat 1 --width 16",
        "cumin_nothing_changed.py 100 --no-peers",
        "cumin_fingerprint.py --gigabytes 0.05",
        "cumin_content_id.py --rows 100000",
        "cumin_partitions.py --rows 200",
        "cumin_determinism.py --builds 2 --rows 20000 --refused-builds 1",
        "cumin_wrong_hits.py",
    ],
    "kafka": ["kafka.py --share 0.01 --repeats 1", "kafka_soak.py 2 --each 2"],
    "storage": ["storage.py --stores local s3 hdfs --systems ghee pyarrow --megabytes 20 --files 2 --passes 1 --repeats 1"],
    "kubernetes": [
        "between_hosts.py --sizes 64k --repeats 1",
        "kubernetes_startup.py --runs 1 --maps 1",
        "soak_pods.py 1 --each 1 --folder {folder}",
        "swimmy_startup.py --runs 1 --payload-mb 1",
        "swimmy_ssh.py --runs 1 --shapes 1x2",
    ],
    # Minutes of downloads (RecBole; three releases of DuckDB each), so by hand: see README.md.
    "downloads": ["cumin_versions.py", "models_recbole.py --epochs 2", "table.py --only movielens --rows 32768 --repeats 1"],
}
"""By what they need: the smallest useful command of each benchmark."""


def run(command: str, folder: str) -> str | None:
    """What is wrong, with the end of what it printed; None where it ended well."""
    words = [sys.executable, str(HERE / command.split()[0]), *command.format(folder=folder).split()[1:]]
    path = os.pathsep.join(map(str, (ROOT / "tests", HERE)))
    began = time.monotonic()
    try:
        ended = subprocess.run(
            words,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired as late:
        return f"did not end within {LIMIT_S} s:\n{(late.stdout or b'')[-3000:]!r}"
    print(f"{time.monotonic() - began:6.1f} s  {command}", flush=True)
    return f"ended with {ended.returncode}:\n{(ended.stdout + ended.stderr)[-3000:]}" if ended.returncode else None


def main() -> int:
    """The exit code: 1 where a benchmark failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=f"{', '.join(SMOKE)}; default: python")
    parser.add_argument("--only", default="", help="those whose command contains this")
    options = parser.parse_args()
    unknown = set(options.kinds) - set(SMOKE)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SMOKE)}")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds or ["python"]:
            for command in SMOKE[kind]:
                if options.only in command and (wrong := run(command, folder)):
                    failed += 1
                    print(f"FAILED {command} {wrong}", flush=True)
    print(f"{failed} benchmarks failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
