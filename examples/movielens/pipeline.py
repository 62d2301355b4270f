"""The demo's job on ghee: train a Factorization Machine on one stream, predict and write with another.

The same job on Dask is `benchmarks/dask_movielens.py`; `benchmarks/lines_of_code.py` counts the lines of both.

    python pipeline.py FOLDER TARGET     each a path or a URL, hdfs://… or s3://…
"""

import sys

import torch
from features import preprocess
from training import BATCH, EPOCHS, SEED, Training, predict

import ghee


def train(batches):
    torch.set_num_threads(1)
    training = Training()
    for epoch in batches.epochs():
        for batch in epoch:
            training.step(batch)
        training.end_epoch()
    return training.model


def training_pipeline(folder):
    ratings = ghee.read(f"{folder}/train", batch_size=BATCH, epochs=EPOCHS, shuffle=SEED)
    return ratings.map(preprocess, replicas=2).loop(train)


def prediction_pipeline(folder, model, target):
    def add_prediction(batch):
        ids = {name: batch[name] for name in ("user_id", "item_id", "rating")}
        return {**ids, "prediction": predict(model, batch).numpy()}

    return ghee.read(f"{folder}/test").map(preprocess).map(add_prediction).write(target, mode="overwrite")


def run(folder, target):
    model = ghee.run(training_pipeline(folder)).result
    ghee.run(prediction_pipeline(folder, model, target))


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2])
