"""The demo's job (`examples/movielens/pipeline.py`) on Dask, as Dask's documentation would have it written.

Training: futures in a bounded window, taken with as_completed (its page on queues and its page on futures advise it),
one task per row group, results straight from the workers. Predicting: dask.dataframe with map_partitions.

    python benchmarks/dask_movielens.py FOLDER TARGET       in the environment of requirements/dask.txt
"""

import sys
from itertools import islice
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from dask.distributed import Client, LocalCluster, as_completed
from features import preprocess
from training import BATCH, EPOCHS, SEED, Training, predict

WORKERS = 2


def row_groups(folder):
    files = sorted(folder.glob("*.parquet"))
    return [(file, number) for file in files for number in range(pq.ParquetFile(file).num_row_groups)]


def load(file, row_group, seed):
    rows = pq.ParquetFile(file).read_row_group(row_group)
    rows = rows.take(np.random.default_rng(seed).permutation(rows.num_rows)).combine_chunks()
    return [preprocess(batch) for batch in rows.to_batches(BATCH)]


def prepared(client, tasks):
    tasks = iter(tasks)
    first = [client.submit(load, *task, pure=False) for task in islice(tasks, 2 * WORKERS)]
    completed = as_completed(first, with_results=True)
    for _, batches in completed:
        for task in islice(tasks, 1):
            completed.add(client.submit(load, *task, pure=False))
        yield from batches


def train(client, folder):
    torch.set_num_threads(1)
    training, groups = Training(), row_groups(folder / "train")
    for epoch in range(EPOCHS):
        order = np.random.default_rng([SEED, epoch]).permutation(len(groups))
        tasks = ((*groups[number], [SEED, epoch, number]) for number in order)
        for batch in prepared(client, tasks):
            training.step(batch)
        training.end_epoch()
    return training.model


def write_predictions(folder, model, target):
    def add_prediction(frame):
        batch = preprocess(pa.RecordBatch.from_pandas(frame))
        return frame[["user_id", "item_id", "rating"]].assign(prediction=predict(model, batch).numpy())

    ratings = dd.read_parquet(folder / "test")
    kinds = {"user_id": "int32", "item_id": "int32", "rating": "float32", "prediction": "float32"}
    ratings.map_partitions(add_prediction, meta=kinds).to_parquet(target, write_index=False)


def run(folder, target):
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, direct_to_workers=True) as client,
    ):
        write_predictions(folder, train(client, folder), target)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
