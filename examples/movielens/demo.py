"""The main job, start to end: `tox run -e demo`, or `python examples/movielens/demo.py`.

Fetches MovieLens-100K, trains with ghee (`pipeline.py`) and the plain way (`plain.py`), evaluates both on the held-out
tenth, writes the predictions to Parquet and prints what the runs measured. Ends with 1 if the two RMSEs differ by more
than chance explains. With `--ratings` ghee reads the rows from there, a copy of the folder that `python data.py` prints:

    hdfs dfs -put "$(python examples/movielens/data.py)" /ml-100k
    python examples/movielens/demo.py --ratings hdfs://namenode:8020/ml-100k --predictions hdfs://namenode:8020/predicted
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import data
import numpy as np
import plain
import pyarrow as pa
import pyarrow.dataset as ds
import torch
from pipeline import prediction_pipeline, training_pipeline

import ghee

# The plain loop's RMSE has a standard deviation of 0.0008 over seeds (`python plain.py --seeds 5`), the difference of
# two trainings 0.0011; four times that comes by chance in one of ten thousand runs.
NOISE = 0.005


def run_ghee(folder: Path | str, predictions: Path | str, wanted: int) -> float:
    """Trains, predicts the `wanted` test rows, writes them; the RMSE of what stands in the files."""
    training = ghee.run(training_pipeline(folder), progress=True)
    print(training.report, flush=True)
    trainer = training.report.stage("train")
    seconds = trainer.waited_input * trainer.rows / trainer.rows_per_second
    print(f"the trainer waited {seconds:.1f} s for batches, {100 * trainer.waited_input:.0f} % of its time\n", flush=True)
    prediction = ghee.run(prediction_pipeline(folder, training.result, predictions), progress=True)
    print(prediction.report, flush=True)
    batches: list[pa.RecordBatch] = []
    ghee.run(ghee.read(predictions).write(batches), progress=False)
    written = pa.Table.from_batches(batches)
    if written.num_rows != wanted:
        sys.exit(f"{written.num_rows} predictions in {predictions}, but {wanted} test rows")
    error = written["prediction"].to_numpy() - written["rating"].to_numpy()
    return float(np.sqrt(np.mean(error**2)))


def check_agreement(streamed: float, expected: float) -> None:
    """Ends the program with 1 if the two RMSEs differ by more than chance explains."""
    if abs(streamed - expected) > NOISE:
        sys.exit(f"the two differ by {abs(streamed - expected):.4f}, more than chance explains ({NOISE})")


def main() -> None:
    """See the module's docstring."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--ratings", metavar="URL", help="folder with train/ and test/; default: what data.py has fetched")
    options.add_argument("--predictions", metavar="FOLDER", help="path or URL to write; default: beside the data")
    chosen = options.parse_args()
    start = time.perf_counter()
    try:
        folder = data.prepare()
    except data.DataError as error:
        sys.exit(str(error))
    print(f"MovieLens-100K: {chosen.ratings or folder}", flush=True)
    predictions = chosen.predictions or data.cache_folder() / "predictions"
    wanted = ds.dataset(folder / "test").count_rows()
    streamed = run_ghee(chosen.ratings or folder, predictions, wanted)
    torch.set_num_threads(1)
    between = time.perf_counter()
    expected = plain.rmse(plain.train(plain.rows_of(folder / "train")), plain.rows_of(folder / "test"))
    end = time.perf_counter()
    print(f"\npredictions: {predictions}")
    print(f"test RMSE: {streamed:.4f} with ghee, {expected:.4f} with a plain loop in one process ({end - between:.1f} s)")
    print(f"the whole demo took {end - start:.1f} s")
    check_agreement(streamed, expected)


if __name__ == "__main__":
    main()
