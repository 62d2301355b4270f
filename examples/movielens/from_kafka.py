"""The demo's job with a broker in the place of files: ratings out of a topic, predictions into another.

    python from_kafka.py localhost:9092

The topics are made if they are not there: `NAME-train` and `NAME-test` are filled with JSON, one message a rating, keyed
by the user; `NAME-predictions` holds what was predicted. Then the test RMSE is that of the messages in it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import data
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from confluent_kafka.admin import AdminClient, NewTopic
from features import preprocess
from pipeline import train
from training import BATCH, EPOCHS, SEED, predict

import ghee

PARTITIONS = 2


def make_topics(broker: str, name: str) -> dict[str, str]:
    """The URL of each topic; raises KafkaException where one is there already."""
    admin = AdminClient({"bootstrap.servers": broker})
    wanted = {part: f"{name}-{part}" for part in ("train", "test", "predictions")}
    for future in admin.create_topics([NewTopic(topic, PARTITIONS) for topic in wanted.values()]).values():
        future.result(30)
    return {part: f"kafka://{broker}/{topic}" for part, topic in wanted.items()}


def fill(folder: Path, topics: dict[str, str]) -> None:
    """Ratings as messages, those of the training in a random order, as they would come."""
    for part, shuffle in (("train", SEED), ("test", None)):
        ghee.run(ghee.read(folder / part, shuffle=shuffle).write(topics[part], encode="json", key="user_id"))


def run(topics: dict[str, str], schema: pa.Schema) -> None:
    """Train on what is in the topic now, predict, write."""
    how = {"until": "latest", "decode": "json", "schema": schema, "columns": schema.names}
    ratings = ghee.read(topics["train"], batch_size=BATCH, epochs=EPOCHS, **how)
    trained = ghee.run(ratings.map(preprocess, replicas=2).loop(train))
    print(trained.report, flush=True)
    model = trained.result

    def add_prediction(batch):
        ids = {name: batch[name] for name in ("user_id", "item_id", "rating")}
        return {**ids, "prediction": predict(model, batch).numpy()}

    test = ghee.read(topics["test"], **how).map(preprocess).map(add_prediction)
    ghee.run(test.write(topics["predictions"], encode="json", key="user_id"))


def rmse(topic: str) -> tuple[int, float]:
    """How many predictions are in the topic, and their error."""
    found: list[pa.RecordBatch] = []
    ghee.run(ghee.read(topic, until="latest", decode="json").write(found.append), on="inline", progress=False)
    table = pa.Table.from_batches([batch.select(["rating", "prediction"]) for batch in found])
    error = table["prediction"].to_numpy() - table["rating"].to_numpy()
    return table.num_rows, float(np.sqrt(np.mean(error**2)))


def main() -> None:
    """See the module's docstring."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("broker", help="such as localhost:9092")
    options.add_argument("--name", default="movielens", help="what the topics' names begin with")
    chosen = options.parse_args()
    folder = data.prepare()
    topics = make_topics(chosen.broker, chosen.name)
    fill(folder, topics)
    run(topics, ds.dataset(folder / "train").schema)
    count, error = rmse(topics["predictions"])
    print(f"test RMSE: {error:.4f} over {count:,} predictions in {topics['predictions']}")


if __name__ == "__main__":
    main()
