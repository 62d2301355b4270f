"""The plain way: one process, one loop, every row in memory. Its RMSE is the figure that `pipeline.py` must reach.

python plain.py                 the test rows' RMSE
python plain.py --validate      of the last tenth of the training rows, which are left out of the training then
python plain.py --seeds 5       and again with other seeds: how far the figure moves by chance
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import data
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import torch
from features import preprocess
from training import BATCH, EPOCHS, SEED, Batch, Training, predict


def rows_of(folder: Path) -> pa.RecordBatch:
    """All rows of a folder of Parquet files."""
    (rows,) = ds.dataset(folder).to_table().combine_chunks().to_batches()
    return rows


def batches_of(rows: pa.RecordBatch, order: np.ndarray) -> Iterator[Batch]:
    """The rows in the given order, preprocessed in batches."""
    for start in range(0, len(order), BATCH):
        yield preprocess(rows.take(pa.array(order[start : start + BATCH])))


def train(rows: pa.RecordBatch, seed: int = SEED) -> Training:
    """A training over all rows, in a new seeded order in each epoch."""
    training, random = Training(seed), np.random.default_rng(seed)
    for _ in range(EPOCHS):
        for batch in batches_of(rows, random.permutation(rows.num_rows)):
            training.step(batch)
        training.end_epoch()
    return training


def rmse(training: Training, rows: pa.RecordBatch) -> float:
    """The root mean squared error of the predictions, in stars."""
    batch = preprocess(rows)
    return float(torch.nn.functional.mse_loss(predict(training.model, batch), torch.as_tensor(batch["rating"])).sqrt())


def main() -> None:
    """See the module's docstring."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--validate", action="store_true")
    options.add_argument("--seeds", type=int, default=1)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    folder = data.prepare()
    rows, held_out = rows_of(folder / "train"), rows_of(folder / "test")
    if chosen.validate:
        cut = rows.num_rows - rows.num_rows // 10
        rows, held_out = rows.slice(0, cut), rows.slice(cut)
    figures = []
    for seed in range(SEED, SEED + chosen.seeds):
        start = time.perf_counter()
        figures.append(rmse(train(rows, seed), held_out))
        print(f"seed {seed}: RMSE {figures[-1]:.4f} on {held_out.num_rows} rows, {time.perf_counter() - start:.1f} s")
    if len(figures) > 1:
        print(f"mean {statistics.mean(figures):.4f}, standard deviation {statistics.stdev(figures):.4f}")


if __name__ == "__main__":
    main()
