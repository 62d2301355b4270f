"""Rows per second of `ghee_models.predict` with one and with two replicas of the predicting stage, side by side.

python benchmarks/models_predict.py [--rows 400000] [--replicas 1,2] [--repeat 2] [--width 512]

A deep network (three layers of 512) over the fields of MovieLens-100K, whose rows are repeated; one thread of torch in each
replica. `seconds` are of the whole call, as a user waits for it; `starting` are those of a call with 100 rows: loading
the model and starting processes. Rows per second are of what is between.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import ghee_models as gm
from ghee_models.composition import compose
from ghee_models.datasets import movielens_100k
from ghee_models.training import train_configured

MODEL = ["experiment=ml100k-mlp", "trainer.epochs=1", "tracking.enabled=false"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--replicas", default="1,2")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--width", type=int, default=512, help="of each of the network's three layers")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = compose([*MODEL, f"model.hidden={[given.width] * 3}".replace(" ", "")])
        train_configured(made.model, made.config, made.settings, save_to=f"{folder}/model", on="inline")
        ratings = pq.read_table(movielens_100k())
        table = pa.concat_tables([ratings] * -(-given.rows // ratings.num_rows)).slice(0, given.rows)
        Path(folder, "rows").mkdir()
        for number in range(8):
            part = table.slice(number * given.rows // 8, given.rows // 8)
            pq.write_table(part, f"{folder}/rows/{number}.parquet", row_group_size=16_384)
        few = f"{folder}/few.parquet"
        pq.write_table(table.slice(0, 100), few)

        def seconds(replicas: int, data: str) -> float:
            began = time.perf_counter()
            gm.predict(f"{folder}/model", data, out=f"{folder}/out", replicas=replicas, overwrite=True)
            return time.perf_counter() - began

        print(f"{'replicas':>8} {'seconds':>9} {'starting':>9} {'rows/s':>9} {'faster':>7}", flush=True)
        first = 0.0
        for replicas in map(int, given.replicas.split(",")):
            starting = seconds(replicas, few)
            whole = statistics.median(seconds(replicas, f"{folder}/rows") for _ in range(given.repeat))
            pace = given.rows / (whole - starting)
            first = first or pace
            print(f"{replicas:8} {whole:9.1f} {starting:9.1f} {pace:9.0f} {pace / first:7.2f}", flush=True)


if __name__ == "__main__":
    main()
