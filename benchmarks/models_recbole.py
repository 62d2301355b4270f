"""Seconds per epoch, and test AUC and NDCG@10, of FM and LightGCN on MovieLens-100K: ours beside RecBole 1.2.1's.

python benchmarks/models_recbole.py --recbole-python RECBOLE_ENVIRONMENT/bin/python [--epochs 5] [--quality]

RecBole runs in an environment of its own (`benchmarks/requirements/recbole.txt`), for it does not work with NumPy 2. Both
train on one thread, with 4,096 rows per step and vectors of 64 (LightGCN, 2 layers) and 16 (FM), on the split whose digest
is printed. An epoch is the training over all training rows: negatives, reading and shuffling count, validation does not. The
first epoch is left out. Ours run as they do for a user, reading and preprocessing in processes of their own
(`clock`), and once more in one process, whose CPU seconds therefore hold everything (`CPU`).

--quality: trains to early stopping instead, RecBole with its defaults but for FM's learning rate, size and L2 (ours), the
batch of 4,096 and at most 300 epochs.
"""

from __future__ import annotations

import argparse
import hashlib
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


def recbole(model: str, epochs: int, quality: bool) -> dict[str, Any]:
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.trainer import Trainer
    from recbole.utils import get_model, init_seed

    torch.set_num_threads(1)
    given: dict[str, Any] = {
        "epochs": 300 if quality else epochs, "train_batch_size": 4096, "seed": 2020, "use_gpu": False, "worker": 0,
        "show_progress": False, "stopping_step": 10 if quality else 1000,
    }  # fmt: skip
    if model == "FM":
        fields = {"inter": ["user_id", "item_id", "rating"], "user": ["user_id", "age", "gender", "occupation"]}
        fields["item"] = ["item_id", "release_year", "class"]
        split = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": None, "mode": "labeled"}
        given |= {"load_col": fields, "threshold": {"rating": 4}, "embedding_size": 16, "eval_args": split}
        given |= {"learning_rate": 2e-3, "weight_decay": 3e-5}
        given |= {"metrics": ["AUC", "LogLoss"], "valid_metric": "AUC", "train_neg_sample_args": None}
    else:
        given |= {"embedding_size": 64, "n_layers": 2}
    config = Config(model=model, dataset="ml-100k", config_dict=given)
    init_seed(2020, True)
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    trainer = Trainer(config, get_model(model)(config, train.dataset).to("cpu"))
    times: list[tuple[float, float]] = []
    trainer._train_epoch = timed(times, trainer._train_epoch)
    trainer.fit(train, valid if quality else None, saved=quality, verbose=False)
    found: dict[str, Any] = {"times": times[1:], "digest": digest_of(test.dataset)}
    if quality:
        measured = trainer.evaluate(test, load_best_model=True, show_progress=False)
        found["test"] = float(measured["auc" if model == "FM" else "ndcg@10"])
    return found


def digest_of(part: Any) -> str:
    """The digest of the part's (user, item) lines, as `ghee_models.splits.digest` computes it."""
    names = [part.id2token(name, part.inter_feat[name].numpy()) for name in ("user_id", "item_id")]
    lines = sorted(f"{user} {item}" for user, item in zip(*names, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def ours(model: str, epochs: int, quality: bool) -> dict[str, Any]:
    from ghee_models.composition import compose
    from ghee_models.run import TrainingRun
    from ghee_models.training import train_configured

    sizes = ["model.dim=16", "model.lr=2e-3"] if model == "FM" else ["model.dim=64", "model.layers=2"]
    length = [] if quality else [f"trainer.epochs={epochs}", "trainer.patience=0"]
    made = compose([f"experiment=ml100k-{model.lower()}", *length, *sizes, "tracking.enabled=false"])
    marks: list[tuple[float, float]] = []
    original = TrainingRun.end_epoch

    def end_epoch(self: TrainingRun, *arguments: Any) -> bool:
        entered = time.process_time()
        stop = original(self, *arguments)
        marks.append((entered, time.process_time()))
        return stop

    with tempfile.TemporaryDirectory() as folder:
        result = train_configured(made.model, made.config, made.settings, save_to=f"{folder}/local", on="local")
        clock = [row["seconds"] for row in result.history][1:]
        cpu = clock
        if not quality:
            TrainingRun.end_epoch = end_epoch  # type: ignore[method-assign]
            train_configured(made.model, made.config, made.settings, save_to=f"{folder}/inline", on="inline")
            cpu = [b[0] - a[1] for a, b in itertools.pairwise(marks)]
    test = result.metrics.get("auc", result.metrics.get("ndcg@10"))
    return {"times": list(zip(clock, cpu, strict=True)), "digest": result.digests["test"], "test": test}


def measure(side: str, python: str, model: str, given: argparse.Namespace) -> dict[str, Any]:
    """What one side says of one model, in a process of its own."""
    call = [python, "-W", "ignore", os.path.abspath(__file__), "--one", side, model, "--epochs", str(given.epochs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # RecBole loads its own checkpoints in the old way
    with tempfile.TemporaryDirectory() as folder:  # RecBole writes logs and checkpoints where it stands
        done = subprocess.run(
            [*call, *(["--quality"] if given.quality else [])],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if not lines:
        sys.exit(f"{side} {model} failed:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(lines[0][6:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recbole-python", default="")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "MODEL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        side, model = given.one
        print("FOUND " + json.dumps((ours if side == "ours" else recbole)(model, given.epochs, given.quality)))
        return
    print(f"{'model':10} {'side':9} {'clock s/epoch':>14} {'CPU s/epoch':>12} {'test split':>17} {'AUC or NDCG@10':>15}")
    for model in given.models.split(","):
        pace = {}
        for side, python in (("ours", sys.executable), ("recbole", given.recbole_python)):
            found = measure(side, python, model, given)
            pace[side] = [statistics.median(column) for column in zip(*found["times"], strict=True)]
            test = f"{found['test']:15.4f}" if given.quality else ""
            print(
                f"{model:10} {side:9} {pace[side][0]:14.3f} {pace[side][1]:12.3f} {found['digest']:>17} {test}", flush=True
            )
        ratio = [a / b for a, b in zip(pace["ours"], pace["recbole"], strict=True)]
        print(f"{model:10} {'ratio':9} {ratio[0]:14.2f} {ratio[1]:12.2f}", flush=True)


if __name__ == "__main__":
    main()
