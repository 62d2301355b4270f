"""Models of interactions: items for a user. A subclass gives a score for every item, and its training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ghee_models.card import DataFormat
from ghee_models.contract import Batch, Epochs, Model, Predictions, column, concatenate
from ghee_models.errors import ConfigError, DataError, TrainingError
from ghee_models.metrics import RankingTotals, top_k
from ghee_models.run import TrainingRun, World
from ghee_models.schema import Schema
from ghee_models.settings import DataConfig, interactions_schema
from ghee_models.state import Pairs, Vocabulary

C = TypeVar("C")
Indices = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


class Recommender(Model[C]):
    """Ranks all items for a user. User and item 0 are the unknown ones: never recommended, never trained.

    Result columns: the user column, `items` (list of item ids, best first), `scores` (list of float32), `known` (whether
    training had seen the user); or the user column and `vector`, with PredictOptions.output = "vectors".
    A user that training has not seen gets, by `data.unknown`, the most popular items (fallback), empty lists, or an error.
    """

    data_format = DataFormat.INTERACTIONS

    @staticmethod
    def make_schema(data: DataConfig) -> Schema:
        return interactions_schema(data)

    @abstractmethod
    def scores(self, users: Indices) -> Scores:
        """(users, items) scores for known users; the larger, the better."""

    def item_vectors(self) -> Scores | None:
        """(items, dimensions), where the model has such vectors; they also measure diversity."""
        return None

    def user_vectors(self, users: Indices) -> Scores:
        """(users, dimensions). Raises ConfigError for a model without vectors."""
        raise ConfigError(f"The model {self.card.id!r} has no user vectors; ask for items, or use bpr-mf or lightgcn.")

    @property
    def predict_schema(self) -> Schema:
        return Schema((self.schema.one("user"),))

    @property
    def users(self) -> Vocabulary:
        return self.state.vocabularies[self.schema.one("user").name]

    @property
    def items(self) -> Vocabulary:
        return self.state.vocabularies[self.schema.one("item").name]

    @property
    def pairs(self) -> Pairs:
        assert self.state.pairs is not None, "a scan of interactions always gathers pairs"
        return self.state.pairs

    @property
    def popularity(self) -> Scores:
        """Rows per item in training; -1 for the unknown item."""
        assert self.state.item_counts is not None, "a scan of interactions always counts items"
        counts = self.state.item_counts.astype(np.float32)
        counts[0] = -1
        return counts

    def train_preprocess(self, rows: pa.RecordBatch) -> Batch | None:
        """Indices of user and item; unknown items stay (they are misses in an evaluation), unknown users go."""
        users = self.users.encode(column(rows, self.schema.one("user").name))
        items = self.items.encode(column(rows, self.schema.one("item").name))
        known = users > 0
        return {"user": users[known], "item": items[known]} if known.any() else None

    def predict_preprocess(self, rows: pa.RecordBatch) -> Batch:
        """`user`: an index per row, 0 where training has not seen the user.

        Raises DataError for such a user where `data.unknown` is "error".
        """
        users = self.users.encode(column(rows, self.schema.one("user").name))
        if self.data.unknown == "error" and not users.all():
            from ghee_models.checker import Report, Violation

            unknown = int((users == 0).sum())
            fix = "Train with these users, or set data.unknown to fallback or empty."
            name = self.schema.one("user").name
            row = int(np.argmin(users))
            raise DataError(Report([Violation(name, "unknown user", unknown, row=row, fix=fix)], rows=rows.num_rows))
        return {"user": users}

    def rank(self, users: Indices, k: int, exclude: Iterable[Pairs] = ()) -> tuple[Indices, Scores]:
        """(items, scores), k per user, best first, -1 where there are no more; unknown users get popular items."""
        scores = np.empty((len(users), self.items.size), dtype=np.float32)
        known = users > 0
        if known.any():
            scores[known] = self.scores(users[known])
        scores[~known] = self.popularity
        scores[:, 0] = -np.inf
        for pairs in exclude:
            row, item = pairs.of_users(users)
            scores[row, item] = -np.inf
        best = top_k(scores, k)
        return best, np.take_along_axis(scores, np.maximum(best, 0), axis=1)

    def predict(self, batch: Batch) -> Predictions:
        """`items` and `scores`, (rows, k), -1 where there are no more; or `vector`, (rows, dimensions); and `user`."""
        users = batch["user"]
        if self.options.output == "vectors":
            return {"user": users, "vector": self.user_vectors(users)}
        items, scores = self.rank(users, self.options.k, [self.pairs] if self.options.exclude_seen else [])
        if self.data.unknown == "empty":
            items[users == 0] = -1
        return {"user": users, "items": items, "scores": scores}

    def postprocess(self, predictions: Predictions, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The result columns of this class, with the caller's own ids; a row of nulls for the vector of an unknown user."""
        name = self.schema.one("user").name
        columns = {name: column(rows, name)}
        known = predictions["user"] > 0
        if "vector" in predictions:
            vectors = predictions["vector"]
            size = vectors.shape[1]
            flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
            columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, size, mask=pa.array(~known))
        else:
            given = predictions["items"] > 0
            offsets = pa.array(np.concatenate([[0], np.cumsum(given.sum(1))]), pa.int32())
            columns["items"] = pa.ListArray.from_arrays(offsets, self.items.decode(predictions["items"][given]))
            shown = pa.array(predictions["scores"][given], pa.float32())
            columns["scores"] = pa.ListArray.from_arrays(offsets, shown)
            columns["known"] = pa.array(known)
        return pa.record_batch(columns)

    @property
    def monitor(self) -> str:
        return "ndcg@10"

    def evaluate(
        self,
        batches: Iterable[Batch],
        world: World,
        *,
        exclude: Iterable[Pairs] = (),
        ks: Iterable[int] = (10,),
        block: int = 1024,
        **known: Any,
    ) -> dict[str, float]:
        """Ranking metrics of full lists: every item but the excluded pairs competes. `batches` are this rank's share.

        Exact whatever the number of ranks: a user's rows are brought together first, then totals are added.
        """
        mine = concatenate(batches)
        parts = [part for part in world.gather(mine) if part]
        if not parts:
            return {}
        users, items = (np.concatenate([part[name] for part in parts]) for name in ("user", "item"))
        own = users % world.size == world.rank
        users, items = users[own], items[own]
        totals = RankingTotals(self.items.size, tuple(ks))
        exclude, vectors = list(exclude), self.item_vectors()
        present, row = np.unique(users, return_inverse=True)
        order = np.argsort(row, kind="stable")
        row, items = row[order], items[order]
        for start in range(0, len(present), block):
            some = present[start : start + block]
            first, last = np.searchsorted(row, [start, start + len(some)])
            best, _ = self.rank(some, max(ks), exclude)
            totals.add(best, row[first:last] - start, items[first:last], vectors)
        gathered = world.gather(totals)
        for other in gathered[1:]:
            gathered[0].merge(other)
        result: dict[str, float] = gathered[0].result()
        return result


class ClosedFormRecommender(Recommender[C]):
    """A model that follows from the distinct interactions at once. A subclass gives `fit`, `weights`, `load_weights`."""

    @abstractmethod
    def fit(self) -> None:
        """Computes the weights from `self.pairs` and `self.popularity`."""

    def train(self, batches: Epochs, run: TrainingRun) -> None:
        """The interactions are in the state already; the stream is read to its end, so that its rows are accounted for."""
        rows = sum(len(batch["user"]) for epoch in batches.epochs() for batch in epoch)
        if not len(self.pairs.users):
            raise TrainingError(f"There is no usable interaction among the {rows} training rows.")
        self.fit()
        run.end_epoch(self, 0, 0.0)
