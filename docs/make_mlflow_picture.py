"""Makes docs/mlflow-run.png: the page of a run of ours, by MLflow's own server in headless Chromium.

python docs/make_mlflow_picture.py [--tab model-metrics] [OUT.png]

Needs ghee-models and Chromium. Trains FM on MovieLens-100K for 15 epochs in a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

TRAIN = ["experiment=ml100k-fm", "trainer.epochs=15", "tracking.register_as=clicks", "tracking.alias=candidate"]
CHROMIUM = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--window-size=1500,1400",
    "--virtual-time-budget=30000",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).with_name("mlflow-run.png"))
    parser.add_argument("--tab", default="", help="model-metrics, system-metrics, artifacts/plots/learning_curves.png")
    given = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome") or sys.exit("There is no Chromium.")
    out, tools = given.out.absolute(), Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as folder:
        call = [str(tools / "ghee-models"), "train", *TRAIN]
        subprocess.run(call, cwd=folder, env=environment, check=True, stdout=sys.stderr)
        run = next(path.name for path in Path(folder, "mlruns", "1").iterdir() if len(path.name) == 32)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        serve = [str(tools / "mlflow"), "server", "--backend-store-uri", "sqlite:///mlflow.db", "--workers", "1"]
        server = subprocess.Popen([*serve, "--host", "127.0.0.1", "--port", str(port)], cwd=folder, env=environment)
        try:
            wait_for(server, f"http://127.0.0.1:{port}/health")
            page = f"http://127.0.0.1:{port}/#/experiments/1/runs/{run}/{given.tab}".rstrip("/")
            profile = f"--user-data-dir={folder}/chromium"
            subprocess.run([browser, *CHROMIUM, profile, f"--screenshot={out}", page], check=True)
        finally:
            server.terminate()
            server.wait()


def wait_for(server: subprocess.Popen[bytes], address: str) -> None:
    while server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    sys.exit(f"The server ended with {server.returncode}.")


if __name__ == "__main__":
    main()
