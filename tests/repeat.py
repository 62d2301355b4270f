"""Repeat tests, alone or beside busy loops, and say how often each failed, with the first log of each kind of failure.

    python tests/repeat.py 50 tests/ghee/test_resume.py --busy 4 -k ordered

Exits with 1 if any test failed, or if no test ran.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from collections import Counter
from pathlib import Path

KINDS = ("failure", "error")


def main() -> int:
    """Run, count, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("times", type=int, help="how often each test runs")
    parser.add_argument("tests", nargs="+", help="files, folders or ids of tests, as pytest takes them")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="busy loops that run beside them (default: none)")
    parser.add_argument("-k", dest="keyword", default="", metavar="EXPR", help="only tests that match, as pytest's -k")
    given = parser.parse_args()
    if given.times < 1 or given.busy < 0:
        parser.error(f"got {given.times} times and {given.busy} busy loops; at least 1 and 0 are allowed")
    ran, failed, logs = Counter[str](), Counter[str](), dict[str, str]()
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(given.busy)]
    try:
        for number in range(given.times):
            _once(given.tests, given.keyword, ran, failed, logs)
            print(f"{number + 1} of {given.times}: {sum(failed.values())} failures so far", flush=True)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    for kind, log in logs.items():
        print(f"\n════ first of its kind: {kind}\n{log}")
    print()
    for test, times in sorted(ran.items()):
        print(f"{failed[test]:5} of {times} failed  {test}")
    return 1 if failed or not ran else 0


def _once(tests: list[str], keyword: str, ran: Counter[str], failed: Counter[str], logs: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        chosen = ["-k", keyword] if keyword else []
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}", *chosen, *tests]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
        )
        if not report.exists():  # pytest itself has ended
            ran["pytest"] += 1
            failed["pytest"] += 1
            logs.setdefault(f"pytest ended with {done.returncode}", done.stdout)
            return
        broken = set()
        for case in xml.parse(report).iter("testcase"):
            test = f"{case.get('classname')}::{case.get('name')}"
            ran[test] += test not in broken and case.find("skipped") is None
            for bad in [found for kind in KINDS if (found := case.find(kind)) is not None]:
                failed[test] += test not in broken
                broken.add(test)
                kind = f"{test}: {(bad.get('message') or '').partition(chr(10))[0][:200]}"
                logs.setdefault(kind, bad.text or "")


if __name__ == "__main__":
    sys.exit(main())
