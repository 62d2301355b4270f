"""For tests of models, ours and yours: small data, a stream without an engine, and `check_model`.

Example:
    from ghee_models.testing import check_model

    def test_my_model():
        check_model(MyModel)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ghee_models import artifact, registry
from ghee_models import settings as st
from ghee_models.card import DataFormat, Task
from ghee_models.contract import Batch, Model
from ghee_models.errors import ConfigError, DataError
from ghee_models.run import TrainingRun
from ghee_models.state import scan


class Replay:
    """Batches as a stream of epochs, in this process: the same order in every run of one seed.

    Example: `model.train(Replay(batches, epochs=3), run)`.
    """

    def __init__(self, batches: Iterable[Batch], epochs: int, *, seed: int | None = None) -> None:
        self.batches, self.count, self.seed = list(batches), epochs, seed

    def epochs(self) -> Iterator[Iterable[Batch]]:
        """Every epoch in turn; with a seed the rows are shuffled over all batches, which keep their sizes."""
        for number in range(self.count):
            yield self.batches if self.seed is None else list(self._shuffled(self.seed + number))

    def _shuffled(self, seed: int) -> Iterator[Batch]:
        names = list(self.batches[0]) if self.batches else []
        whole = {name: np.concatenate([batch[name] for batch in self.batches]) for name in names}
        order = np.random.default_rng(seed).permutation(len(whole[names[0]]) if names else 0)
        start = 0
        for batch in self.batches:
            size = len(batch[names[0]])
            yield {name: values[order[start : start + size]] for name, values in whole.items()}
            start += size


def sample(data: DataFormat, label_kind: str = "binary", rows: int = 600) -> tuple[st.DataConfig, pa.RecordBatch]:
    """Small data with a pattern to learn, and the settings that describe it. Always the same.

    interactions: 40 users of two tastes, 30 items; sparse rows: a user, an item, tags (a list) and an amount.
    """
    random = np.random.default_rng(7)
    user = random.integers(0, 40, rows)
    if data is DataFormat.INTERACTIONS:
        item = (user % 2) * 15 + np.minimum(random.geometric(0.15, rows) - 1, 14)
        item = np.where(random.random(rows) < 0.1, random.integers(0, 30, rows), item)
        names = [f"i{value:02d}" for value in item]
        return st.DataConfig(user="user", item="item"), pa.record_batch({"user": user, "item": names})
    item = random.integers(0, 25, rows)
    tags = [[f"t{(value + n) % 6}" for n in range(value % 4)] for value in item]
    amount = random.normal(3.0, 2.0, rows)
    logit = (user % 2) * 2.0 - (item % 3) + 0.4 * (amount - 3) + random.normal(0, 0.5, rows)
    labels: dict[str, Any] = {
        "binary": (logit > 0).astype(np.int64),
        "class": [f"c{value}" for value in np.digitize(logit, [-1.0, 1.0])],
        "rating": logit,
    }
    described = st.DataConfig(
        fields={"user": "categorical", "item": "categorical", "tags": "categories", "amount": "numeric"},
        label="label",
        label_kind=label_kind,
    )
    columns = {"user": user, "item": [f"i{v}" for v in item], "tags": tags, "amount": amount, "label": labels[label_kind]}
    return described, pa.record_batch(columns)


def fitted(
    cls: type[Model[Any]],
    config: Any = None,
    *,
    data: tuple[st.DataConfig, pa.RecordBatch] | None = None,
    epochs: int = 2,
    batch_size: int = 128,
) -> tuple[Model[Any], pa.RecordBatch]:
    """A model trained on `sample` data (or the given) on one rank, without validation, and the rows."""
    described, rows = data or sample(cls.card.data, label_kind_of(cls))
    schema = cls.make_schema(described)
    state = scan(schema, [rows])
    model = cls(config or cls.card.config(), schema.with_types(dict(state.types)), state, described)
    batches = [model.train_preprocess(rows.slice(n, batch_size)) for n in range(0, rows.num_rows, batch_size)]
    stream = Replay([batch for batch in batches if batch is not None], epochs)
    model.train(stream, TrainingRun(st.TrainerConfig(), st.SamplerConfig()))
    return model, rows


def label_kind_of(cls: type[Model[Any]]) -> str:
    """The label that `sample` data needs for a model's first task."""
    return {Task.CLASSIFICATION: "class", Task.RATING: "rating"}.get(cls.card.tasks[0], "binary")


def predicted(model: Model[Any], rows: pa.RecordBatch) -> pa.RecordBatch:
    """The result rows for rows."""
    return model.postprocess(model.predict(model.predict_preprocess(rows)), rows)


def check_model(cls: type[Model[Any]], config: Any = None) -> None:
    """Raises AssertionError that lists every promise of the contract which a registered model breaks.

    It is trained on small data, then: saved and loaded it predicts the same; no rows, one row and a ragged batch give as
    many results; results do not depend on the batching; unknown ids follow `data.unknown`; training twice gives equal
    weights; an unknown setting is refused; the model can be looked up by its id.
    """
    model, rows = fitted(cls, config)
    checks: list[Callable[[Model[Any], pa.RecordBatch], None]] = [
        _known_by_id, _refuses_unknown_settings, _survives_saving, _handles_sizes, _ignores_batching, _handles_unknown,
    ]  # fmt: skip
    broken = []
    for check in checks:
        try:
            check(model, rows)
        except Exception as error:
            broken.append(f"{check.__name__.strip('_').replace('_', ' ')}: {type(error).__name__}: {error}")
    again, _ = fitted(cls, config)
    for name, weights in model.weights().items():
        if not np.allclose(weights.numpy(), again.weights()[name].numpy(), atol=1e-6):
            broken.append(f"training is not repeatable: {name} differs between two trainings of one seed")
    if broken:
        raise AssertionError("\n".join([f"The model {cls.card.id!r} breaks its contract:", *(f"  {b}" for b in broken)]))


def _known_by_id(model: Model[Any], rows: pa.RecordBatch) -> None:
    assert registry.load_class(model.card.id) is type(model), "its id leads to another class"


def _refuses_unknown_settings(model: Model[Any], rows: pa.RecordBatch) -> None:
    try:
        st.build(model.card.config, {"no_such_setting": 1}, where="model")
    except ConfigError:
        return
    raise AssertionError("an unknown setting was accepted")


def _survives_saving(model: Model[Any], rows: pa.RecordBatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        saved = artifact.save(model, st.Settings(data=model.data), {}, Path(folder) / "model")
        again = artifact.load(saved)
    before, after = predicted(model, rows), predicted(again, rows)
    assert before.equals(after), "it predicts otherwise after saving and loading"


def _handles_sizes(model: Model[Any], rows: pa.RecordBatch) -> None:
    for size in (0, 1, 7):
        found = predicted(model, rows.slice(0, size)).num_rows
        assert found == size, f"{size} rows gave {found} results"


def _ignores_batching(model: Model[Any], rows: pa.RecordBatch) -> None:
    whole = predicted(model, rows.slice(0, 10)).to_pylist()
    parts = [row for n in range(10) for row in predicted(model, rows.slice(n, 1)).to_pylist()]
    for one, other in zip(whole, parts, strict=True):
        for name, value in one.items():
            same = np.allclose(value, other[name], atol=1e-5) if _is_float(value) else value == other[name]
            assert same, f"{name} depends on the other rows of the batch: {value} and {other[name]}"


def _is_float(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, list) and bool(value) and isinstance(value[0], float))


def _handles_unknown(model: Model[Any], rows: pa.RecordBatch) -> None:
    names = [f.name for f in model.predict_schema.fields]
    columns = {name: rows.column(rows.schema.get_field_index(name)).slice(0, 1) for name in names}
    key = next(f for f in model.predict_schema.fields if f.kind in ("user", "categorical"))
    columns[key.name] = pa.array([987_654_321], columns[key.name].type)
    unseen = pa.record_batch(columns)
    before = model.data.unknown
    try:
        for policy in ("fallback", "empty", "error"):
            model.data.unknown = policy
            try:
                found = predicted(model, unseen).to_pylist()[0]
            except DataError:
                assert policy == "error", f"data.unknown={policy} raised DataError"
                continue
            assert policy != "error", "data.unknown=error gave a result for an unknown id"
            last = found.get("items", found.get("probability", found.get("rating")))
            assert bool(last) == (policy == "fallback"), f"data.unknown={policy} gave {last!r}"
    finally:
        model.data.unknown = before
