"""What is pickled keeps the name of its file, whichever cloudpickle is installed (3.1.3 drops it)."""

import pickle
import subprocess
import sys
from pathlib import Path

from ghee import pickling

SCRIPT = """
import ghee

def half(batch):
    def wrong():
        return {"y": batch["x"] + None}
    return wrong()

def train(batches):
    for batch in batches:
        pass

ghee.run(ghee.read([{"x": 1.5}]).map(half).loop(train))
"""


def test_a_function_its_inner_functions_and_its_class_keep_their_file(tmp_path: Path) -> None:
    space: dict[str, object] = {"__name__": "__main__"}
    exec(compile("class A:\n    def f(self):\n        return lambda: 1 / 0\n", "/home/me/mine.py", "exec"), space)
    kind = pickle.loads(pickling.dumps(space["A"]))
    assert kind.f.__code__.co_filename == "/home/me/mine.py"
    assert kind().f().__code__.co_filename == "/home/me/mine.py"
    with (tmp_path / "kept").open("wb") as file:
        pickling.dump(space["A"], file)
    assert pickle.loads((tmp_path / "kept").read_bytes()).f.__code__ == kind.f.__code__


def test_an_error_in_a_rank_names_the_users_line(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script], check=False, capture_output=True, text=True, timeout=100)
    assert f'{script}:6 in wrong: return {{"y": batch["x"] + None}}' in done.stderr
