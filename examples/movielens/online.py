"""Online training: a Factorization Machine that learns from every rating of a topic as it comes, and survives `kill -9`.

    python online.py localhost:9092 ratings

Ratings are JSON as `from_kafka.py` writes them. The model is kept at the end of every cut with its place in the topic, only
then are offsets committed, so model and offsets agree whatever is killed: begun again by the same command, it goes on with
the model of the last checkpoint and exactly the ratings that this has not seen. Ctrl-C (or `ghee cancel RUN`) ends it in
order; then the same command begins a new run with the model that was left.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import data
import pyarrow.dataset as ds
import torch
from features import preprocess
from training import Training

import ghee
from ghee.errors import CheckpointError


def learn(kept: Path):
    """The loop: one step for each batch; a checkpoint at the end of each cut of the topic, which is when offsets follow."""

    def train(batches):
        torch.set_num_threads(1)
        training, state = Training(), ghee.restored()
        if state is None:  # a new run: from here on it has a checkpoint, so that what it leaves in `kept` is not begun from
            state = torch.load(kept) if kept.exists() else {"training": training.state(), "ratings": 0}
            ghee.checkpoint(state)
        training.load(state["training"])
        ratings, error = state["ratings"], 0.0
        for epoch in batches.epochs():
            for batch in epoch:
                error += 0.05 * (training.step(batch) - error)
                ratings += len(batch["rating"])
            ghee.checkpoint({"training": training.state(), "ratings": ratings})
            print(f"{ratings:,} ratings learned, mean squared error of late {error:.3f}", flush=True)
        torch.save({"training": training.state(), "ratings": ratings}, kept.with_suffix(".new"))
        kept.with_suffix(".new").replace(kept)
        return ratings

    return train


def begin(chosen: argparse.Namespace, run_id: Path) -> ghee.Run:
    """Go on with the run that was killed, if one was, else begin a new one."""
    if run_id.exists():
        try:
            return ghee.resume(run_id.read_text(), wait=False)
        except CheckpointError as error:
            if "has finished" not in str(error):  # it was killed after its end
                raise
    schema = ds.dataset(data.prepare() / "train").schema
    url = f"kafka://{chosen.broker}/{chosen.topic}?group={chosen.group}&session.timeout.ms={chosen.session}"
    ratings = ghee.read(url, decode="json", schema=schema, columns=schema.names, batch_size=200)
    run = ghee.run(ratings.map(preprocess).loop(learn(chosen.model.absolute())), wait=False)
    run_id.write_text(run.id)
    return run


def main() -> None:
    """See the module's docstring."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("broker", help="such as localhost:9092")
    options.add_argument("topic")
    options.add_argument("--group", default="online")
    options.add_argument("--session", type=int, default=45_000, help="milliseconds until the group gives a killed run up")
    options.add_argument("--model", type=Path, default=Path("online.pt"), help="where the model is left at the end")
    chosen = options.parse_args()
    run_id = chosen.model.with_suffix(".run")
    run = begin(chosen, run_id)
    print(f"run {run.id}", flush=True)
    try:
        while not run.wait(3600):
            pass
    except KeyboardInterrupt:
        run.stop()
        run.wait()
    print(f"{run.result:,} ratings learned; the model is in {chosen.model}")
    run_id.unlink()


if __name__ == "__main__":
    main()
