"""Seconds per epoch of FM and LightGCN on MovieLens-100K: ours beside RecBole 1.2.1's, same split, machine and settings.

python benchmarks/models_recbole.py --recbole-python RECBOLE_ENVIRONMENT/bin/python [--epochs 5]

RecBole runs in an environment of its own (`benchmarks/requirements/recbole.txt`), for it does not work with NumPy 2. Both
train on one thread, with 4,096 rows per step and vectors of 64 (LightGCN, 2 layers) and 16 (FM). An epoch is the
training over all training rows: negatives, reading and shuffling count, validation does not. CPU seconds are of the
whole process; they tell more than the clock on a machine that does other things as well. The first epoch is left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

MODELS = ("FM", "LightGCN")


def timed(times: list[tuple[float, float]], function: Any) -> Any:
    def call(*arguments: Any, **named: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = function(*arguments, **named)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
        return result

    return call


def recbole(model: str, epochs: int) -> list[tuple[float, float]]:
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.trainer import Trainer
    from recbole.utils import get_model, init_seed

    torch.set_num_threads(1)
    given: dict[str, Any] = {
        "epochs": epochs, "train_batch_size": 4096, "seed": 2020, "use_gpu": False, "worker": 0, "show_progress": False,
        "learning_rate": 2e-3, "stopping_step": 1000,
    }  # fmt: skip
    if model == "FM":
        fields = {"inter": ["user_id", "item_id", "rating"], "user": ["user_id", "age", "gender", "occupation"]}
        fields["item"] = ["item_id", "release_year", "class"]
        split = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": None, "mode": "labeled"}
        given |= {"load_col": fields, "threshold": {"rating": 4}, "embedding_size": 16, "eval_args": split}
        given |= {"metrics": ["AUC", "LogLoss"], "valid_metric": "AUC", "train_neg_sample_args": None}
    else:
        given |= {"embedding_size": 64, "n_layers": 2}
    config = Config(model=model, dataset="ml-100k", config_dict=given)
    init_seed(2020, True)
    dataset = create_dataset(config)
    train, _, _ = data_preparation(config, dataset)
    trainer = Trainer(config, get_model(model)(config, train.dataset).to("cpu"))
    times: list[tuple[float, float]] = []
    trainer._train_epoch = timed(times, trainer._train_epoch)
    trainer.fit(train, None, saved=False, verbose=False)
    return times


def ours(model: str, epochs: int) -> list[tuple[float, float]]:
    from ghee_models.composition import compose
    from ghee_models.run import TrainingRun
    from ghee_models.training import train_configured

    sizes = ["model.dim=16", "model.lr=2e-3"] if model == "FM" else ["model.dim=64", "model.layers=2"]
    overrides = [f"experiment=ml100k-{model.lower()}", f"trainer.epochs={epochs}", "trainer.patience=0", *sizes]
    made = compose([*overrides, "tracking.enabled=false"])
    marks: list[tuple[float, float, float, float]] = []
    original = TrainingRun.end_epoch

    def end_epoch(self: TrainingRun, *arguments: Any) -> bool:
        entered = time.perf_counter(), time.process_time()
        stop = original(self, *arguments)
        marks.append((*entered, time.perf_counter(), time.process_time()))
        return stop

    TrainingRun.end_epoch = end_epoch  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        train_configured(made.model, made.config, made.settings, save_to=f"{folder}/model", on="inline")
    return [(b[0] - a[2], b[1] - a[3]) for a, b in itertools.pairwise(marks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recbole-python", default="")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "MODEL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        side, model = given.one
        times = (ours if side == "ours" else recbole)(model, given.epochs)
        print("TIMES " + json.dumps(times))
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    print(f"{'model':10} {'side':9} {'clock s/epoch':>14} {'CPU s/epoch':>12}")
    for model in MODELS:
        found = {}
        for side, python in (("ours", sys.executable), ("RecBole", given.recbole_python)):
            call = [python, "-W", "ignore", __file__, "--one", side.lower(), model, "--epochs", str(given.epochs)]
            with tempfile.TemporaryDirectory() as folder:  # RecBole writes logs and checkpoints where it stands
                done = subprocess.run(
                    [call[0], *call[1:3], os.path.abspath(__file__), *call[4:]],
                    cwd=folder, env=environment, capture_output=True, text=True, check=False,
                )  # fmt: skip
            lines = [line for line in done.stdout.splitlines() if line.startswith("TIMES ")]
            if not lines:
                sys.exit(f"{side} {model} failed:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
            times = json.loads(lines[0][6:])
            times = times if side == "ours" else times[1:]
            found[side] = [statistics.median(column) for column in zip(*times, strict=True)]
            print(f"{model:10} {side:9} {found[side][0]:14.3f} {found[side][1]:12.3f}", flush=True)
        ratio = [a / b for a, b in zip(found["ours"], found["RecBole"], strict=True)]
        print(f"{model:10} {'ratio':9} {ratio[0]:14.2f} {ratio[1]:12.2f}", flush=True)


if __name__ == "__main__":
    main()
