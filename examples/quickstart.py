"""A pipeline from a file to a trained model, with nothing but numpy: linear regression on waves.

    ghee run examples/quickstart.py:make --set preprocess.replicas=2
    ghee explain examples/quickstart.py:make --set epochs=5

The data are made on the first call (a sum of four sines with noise of variance 0.01), so the mean squared error that can
be reached is known: 0.01.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import ghee

FOLDER = Path.home() / ".cache" / "ghee" / "quickstart"
WAVES = 64
ROWS = 400_000


def preprocess(batch):
    """Columns t and y of a record batch to waves: the features of a linear model."""
    t = batch["t"].to_numpy()
    angles = np.outer(t, np.arange(1, WAVES + 1))
    return {"x": np.hstack([np.sin(angles), np.cos(angles)]), "y": batch["y"].to_numpy()}


def train(batches):
    """Stochastic gradient descent; returns the mean squared error of each epoch."""
    weights = np.zeros(2 * WAVES)
    errors = []
    for epoch in batches.epochs():
        squares = []
        for batch in epoch:
            error = batch["x"] @ weights - batch["y"]
            weights -= 0.5 * batch["x"].T @ error / len(error)
            squares.append(np.mean(error**2))
        errors.append(round(float(np.mean(squares)), 4))
    return errors


def make_data(folder: Path) -> Path:
    """`waves.parquet` in `folder`, the same in every call; appears whole or not at all."""
    file = folder / "waves.parquet"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(1)
        t = random.uniform(0, 2 * np.pi, ROWS)
        y = sum(np.sin(k * t) / k for k in (1, 3, 5, 7)) + random.normal(scale=0.1, size=ROWS)
        beside = file.with_name(f"waves-{os.getpid()}.tmp")
        pq.write_table(pa.table({"t": t, "y": y}), beside, row_group_size=20_000)
        beside.rename(file)
    return file


def make(folder: Path = FOLDER, epochs: int = 3) -> ghee.Pipeline:
    """The pipeline: what is read, two functions, and what each is given to run on."""
    waves = ghee.read(str(make_data(folder)), batch_size=4096, epochs=epochs, shuffle=7)
    return waves.map(preprocess, cpus=1).loop(train)


if __name__ == "__main__":
    run = ghee.run(make())
    print(run.report)
    print("mean squared error by epoch:", *run.result)
