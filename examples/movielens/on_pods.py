"""The demo's training by two ranks that share one model (DistributedDataParallel), on this machine or on Pods.

    python on_pods.py                                        on this machine
    python on_pods.py --image registry/team/train:1.2        on Pods, where a claim holds the data (`--claim`)

Nothing differs between the two but `on=`. The image needs Python of the same minor version, torch, ghee, swimmy, mpich; the
claim is mounted at the folder that `data.py` prints, so copy what lies there onto it. Ends with 1 if the RMSE differs from
the plain loop's by more than chance explains.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import data
import plain
import torch
from demo import check_agreement
from features import preprocess
from torch.nn.parallel import DistributedDataParallel
from training import BATCH, EPOCHS, SEED, Training

import ghee
import ghee.torch

RANKS = 2


def train(batches):
    torch.set_num_threads(1)
    ghee.torch.init_process_group()
    training = Training(wrap=DistributedDataParallel)
    for epoch in batches.epochs():
        for batch in epoch:
            training.step(batch)
        training.end_epoch()
    return training.model


def training_pipeline(folder):
    # The ranks' gradients are averaged: together they make the step of one batch of the demo.
    ratings = ghee.read(folder / "train", batch_size=BATCH // RANKS, epochs=EPOCHS, shuffle=SEED)
    return ratings.map(preprocess, replicas=2).loop(train, replicas=RANKS)


def test_rmse(folder: Path, model: torch.nn.Module) -> float:
    """The RMSE of a trained model on the test rows."""
    training = Training()
    training.model.load_state_dict(model.state_dict())
    return plain.rmse(training, plain.rows_of(folder / "test"))


def main() -> None:
    """See the module's docstring."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--image", help="run on Pods of this image")
    options.add_argument("--namespace", help="default: the one of kubectl")
    options.add_argument("--claim", help="a PersistentVolumeClaim with the data")
    options.add_argument("--memory", default="2Gi", help="of each Pod; default: %(default)s")
    chosen = options.parse_args()
    folder, on = data.prepare(), "local"
    if chosen.image:
        import swimmy

        pods = {"memory": chosen.memory, "volumes": [swimmy.claim(chosen.claim, str(folder))] if chosen.claim else []}
        on = ghee.Kubernetes(image=chosen.image, namespace=chosen.namespace, pods=pods)
    run = ghee.run(training_pipeline(folder), on=on)
    print(run.report)
    torch.set_num_threads(1)
    found = test_rmse(folder, run.result)
    expected = plain.rmse(plain.train(plain.rows_of(folder / "train")), plain.rows_of(folder / "test"))
    print(f"test RMSE: {found:.4f} with {RANKS} ranks, {expected:.4f} with a plain loop in one process")
    check_agreement(found, expected)


if __name__ == "__main__":
    main()
