"""Every model keeps the contract; the parts they are made of do what their papers say."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ghee_models as gm
from ghee_models import registry
from ghee_models.card import DataFormat
from ghee_models.cli import import_plugin
from ghee_models.embeddings import KINDS, make_embedding
from ghee_models.errors import ConfigError, TrainingError
from ghee_models.models.lightgcn.network import SymmetricProduct, normalized_adjacency
from ghee_models.run import EarlyStopping, TrainingRun
from ghee_models.samplers import Known, make_sampler
from ghee_models.settings import SAMPLERS, DataConfig, SamplerConfig, TrainerConfig
from ghee_models.sparse import pairwise
from ghee_models.state import scan
from ghee_models.testing import Replay, check_model, fitted, predicted, sample

HERE = Path(__file__).parent
IDS = ["bpr-mf", "deepfm", "ease", "fm", "itemknn", "lightgcn", "logreg", "mlp", "popularity"]
SMALL = {"deepfm": {"hidden": [8], "dim": 4}, "mlp": {"hidden": [8], "dim": 4}, "bpr-mf": {"dim": 8}, "lightgcn": {"dim": 8}}


def small(id: str) -> Any:
    return registry.card(id).config(**SMALL.get(id, {}))


@pytest.mark.parametrize("id", IDS)
def test_every_model_keeps_the_contract(id: str) -> None:
    check_model(registry.load_class(id), small(id))


def test_a_new_model_in_a_file_of_its_own_keeps_the_contract() -> None:
    """The plug-in has about 20 lines, is no part of our package, and is known by its id once it is imported."""
    path = HERE / "plugin_fwfm.py"
    code = [line for line in path.read_text().split('"""', 2)[2].splitlines() if line.strip()]
    assert len(code) <= 25
    import_plugin(str(path))
    check_model(registry.load_class("fwfm"))
    assert "fwfm" in gm.list_models(task="ctr")


def test_check_model_finds_a_model_whose_results_depend_on_the_batch() -> None:
    cls = registry.load_class("fm")

    class Broken(cls):  # type: ignore[misc,valid-type]
        def predict(self, batch: Any) -> Any:
            found = super().predict(batch)
            return {**found, "score": found["score"] * (1 + len(found["score"]) / 100)}

    with pytest.raises(AssertionError, match="depends on the other rows"):
        check_model(Broken)


@pytest.mark.parametrize("id", ["logreg", "fm", "deepfm", "mlp"])
def test_click_models_learn(id: str) -> None:
    cls = registry.load_class(id)
    config = registry.card(id).config(**{**SMALL.get(id, {}), "lr": 0.03})
    model, rows = fitted(cls, config, epochs=25)
    batch = model.train_preprocess(rows)
    from ghee_models.run import World

    assert model.evaluate([batch], World())["auc"] > 0.9  # type: ignore[list-item]


@pytest.mark.parametrize("id", ["logreg", "mlp"])
def test_several_classes(id: str) -> None:
    config = registry.card(id).config(**{**SMALL.get(id, {}), "lr": 0.03})
    model, rows = fitted(registry.load_class(id), config, data=sample(DataFormat.SPARSE_ROWS, "class"), epochs=25)
    found = predicted(model, rows)
    right = np.mean([a == b for a, b in zip(found["class"].to_pylist(), rows["label"].to_pylist(), strict=True)])
    assert right > 0.75
    assert set(found["class"].to_pylist()) == {"c0", "c1", "c2"}


def test_fm_predicts_ratings_better_than_the_mean() -> None:
    config = registry.card("fm").config(lr=0.03)
    model, rows = fitted(registry.load_class("fm"), config, data=sample(DataFormat.SPARSE_ROWS, "rating"), epochs=25)
    truth = rows["label"].to_numpy()
    found = predicted(model, rows)["rating"].to_numpy()
    assert np.sqrt(np.mean((truth - found) ** 2)) < 0.7 * truth.std()


def test_fm_refuses_several_classes() -> None:
    with pytest.raises(ConfigError, match="use mlp or logreg"):
        fitted(registry.load_class("fm"), data=sample(DataFormat.SPARSE_ROWS, "class"))


def test_one_class_only_and_a_loss_that_is_not_finite_give_no_model() -> None:
    described, rows = sample(DataFormat.SPARSE_ROWS)
    ones = rows.set_column(4, "label", pa.array([1] * rows.num_rows))
    with pytest.raises(TrainingError, match="one label"):
        fitted(registry.load_class("fm"), data=(described, ones))
    with pytest.raises(TrainingError, match="not finite"):
        fitted(registry.load_class("fm"), registry.card("fm").config(lr=1e30), epochs=3)


@pytest.mark.parametrize("id", ["bpr-mf", "lightgcn", "ease", "itemknn"])
def test_recommenders_learn_the_two_tastes(id: str) -> None:
    config = registry.card(id).config(**({**SMALL[id], "lr": 0.05} if id in SMALL else {}))
    model, _ = fitted(registry.load_class(id), config, epochs=30)
    model.options.exclude_seen = False
    found = predicted(model, pa.record_batch({"user": list(range(40))})).to_pylist()
    own = [int(item[1:]) // 15 == row["user"] % 2 for row in found for item in row["items"][:5]]
    assert np.mean(own) > 0.9


def test_what_the_user_had_is_left_out_unless_asked_for() -> None:
    model, rows = fitted(registry.load_class("ease"))
    had = {(u, i) for u, i in zip(rows["user"].to_pylist(), rows["item"].to_pylist(), strict=True)}
    users = pa.record_batch({"user": list(range(40))})
    model.options.k = 30
    for row in predicted(model, users).to_pylist():
        assert not {(row["user"], item) for item in row["items"]} & had
        assert len(row["items"]) == 30 - sum(u == row["user"] for u, _ in had)


def test_vectors_are_given_for_known_users_and_their_products_are_the_scores() -> None:
    model, _ = fitted(registry.load_class("lightgcn"), small("lightgcn"))
    model.options.output = "vectors"
    found = predicted(model, pa.record_batch({"user": [3, 999]})).to_pylist()
    assert found[1]["vector"] is None
    index = model.users.encode(pa.array([3]))  # type: ignore[attr-defined]
    scores = np.array(found[0]["vector"], np.float32) @ model.item_vectors().T  # type: ignore[attr-defined]
    assert scores == pytest.approx(model.scores(index)[0], abs=1e-5)  # type: ignore[attr-defined]
    other, _ = fitted(registry.load_class("ease"))
    other.options.output = "vectors"
    with pytest.raises(ConfigError, match="no user vectors"):
        predicted(other, pa.record_batch({"user": [3]}))


@pytest.mark.parametrize("id", ["deepfm", "lightgcn"])
@pytest.mark.parametrize("kept", [4, 6])  # between epochs; within one
def test_a_training_that_goes_on_from_a_checkpoint_ends_as_if_nothing_had_happened(id: str, kept: int) -> None:
    """Optimiser, drawn negatives, dropout, early stopping and the best weights all go on where they were."""
    cls = registry.load_class(id)
    described, rows = sample(cls.card.data)
    schema = cls.make_schema(described)
    state = scan(schema, [rows])
    batches = [cls(small(id), schema, state, described).train_preprocess(rows.slice(n, 150)) for n in (0, 150, 300, 450)]
    trainer = TrainerConfig(checkpoint_seconds=0.0, checkpoint_steps=2)

    def validate(current: Any) -> dict[str, float]:
        return {"x": float(sum(tensor.double().sum() for tensor in current.weights().values()))}

    saved: list[bytes] = []

    def save(checkpoint: Any) -> None:
        saved.append(pickle.dumps(checkpoint))

    def train(stream: Any, **more: Any) -> Any:
        model = cls(small(id), schema, state, described)
        run = TrainingRun(trainer, SamplerConfig(), monitor="x", validate=validate, save=save, **more)
        model.train(stream, run)
        return model.weights(), run.history, run.best_epoch

    whole = train(Replay(batches, 3))  # type: ignore[arg-type]
    at = [pickle.loads(one) for one in saved]
    place = next(
        one for one in at if one["training"]["at"].steps == kept and (kept != 4 or one["training"]["at"].epoch == 1)
    )

    class Rest:
        """What is left of the stream after the checkpoint, as ghee gives it."""

        def epochs(self) -> Any:
            done, within = divmod(kept, 4)
            for number in range(done, 3):
                yield batches[within if number == done else 0 :]

    again = train(Rest(), restored=place)
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in again[1]] == [
        {k: v for k, v in row.items() if k != "seconds"} for row in whole[1]
    ]
    assert again[2] == whole[2]
    for name, tensor in whole[0].items():
        assert torch.equal(again[0][name], tensor), name


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10_000))
def test_the_adjacency_is_its_own_backward(n_users: int, n_items: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pairs = (torch.rand(n_users, n_items, generator=generator) < 0.5).nonzero()
    sparse = normalized_adjacency(pairs[:, 0], pairs[:, 1], n_users, n_items)
    n = n_users + n_items
    r = torch.zeros(n_users, n_items)
    r[pairs[:, 0], pairs[:, 1]] = 1
    dense = torch.zeros(n, n)
    dense[:n_users, n_users:], dense[n_users:, :n_users] = r, r.T
    degree = dense.sum(1).clamp(min=1)
    dense = dense / (degree[:, None] * degree[None]).sqrt()
    assert torch.allclose(sparse.to_dense(), dense, atol=1e-6)
    x = torch.randn(n, 3, generator=generator, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weight = torch.randn(n, 3, generator=generator)
    (SymmetricProduct.apply(sparse, x) * weight).sum().backward()
    ((dense @ y) * weight).sum().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-5)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 999))
def test_the_fast_sum_over_pairs_is_the_sum_over_pairs(rows: int, fields: int, seed: int) -> None:
    v = torch.randn(rows, fields, 4, generator=torch.Generator().manual_seed(seed))
    slow = sum((v[:, i] * v[:, j]).sum(-1, keepdim=True) for i in range(fields) for j in range(i)) + torch.zeros(rows, 1)
    assert torch.allclose(pairwise(v), slow, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_negatives_are_no_positives_of_the_user_and_never_the_unknown_item(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    users = torch.arange(20).repeat_interleave(6)
    items = torch.stack([torch.randperm(29, generator=generator)[:6] + 1 for _ in range(20)]).reshape(-1)
    known = Known(users, items, 30)
    counts = torch.bincount(items, minlength=30)
    sampler = make_sampler(SamplerConfig(name=name, negatives=5), known, counts, first=1)
    drawn = sampler.sample(users, items, generator)
    assert drawn.shape == (120, 5)
    assert not known.contains(users[:, None].expand_as(drawn), drawn).any()
    assert (drawn > 0).all()


def test_the_popularity_sampler_draws_by_count_to_the_power_alpha() -> None:
    counts = torch.tensor([0, 1, 16, 81])
    known = Known(torch.tensor([0]), torch.tensor([0]), 4)
    sampler = make_sampler(SamplerConfig("popularity", 30_000, alpha=0.5), known, counts, first=1)
    drawn = sampler.sample(torch.tensor([1]), torch.tensor([1]), torch.Generator().manual_seed(1))
    shares = torch.bincount(drawn.flatten(), minlength=4).double() / drawn.numel()
    assert shares.tolist() == pytest.approx([0, 1 / 14, 4 / 14, 9 / 14], abs=0.01)


def test_mixed_negatives_come_in_their_shares() -> None:
    counts = torch.ones(1001)
    known = Known(torch.tensor([0]), torch.tensor([0]), 1001)
    sampler = make_sampler(SamplerConfig("mixed", 4000, mix=0.25), known, counts, first=1)
    drawn = sampler.sample(torch.tensor([1]), torch.tensor([7]), torch.Generator().manual_seed(1))
    assert float((drawn == 7).double().mean()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_composite_embeddings_are_small_and_part_the_ids(kind: str) -> None:
    torch.manual_seed(0)
    table = make_embedding(kind, 1000, 8, 64, 0.1)
    size = sum(p.numel() for p in table.parameters())
    assert size == 8000 if kind == "full" else size < 8 * 200
    vectors = table(torch.arange(1000).reshape(10, 100)).reshape(1000, 8).detach()
    distinct = len(torch.unique(vectors, dim=0))
    assert distinct >= {"full": 1000, "hash": 700, "quotient-remainder": 60}[kind]
    with pytest.raises(ValueError, match="allowed"):
        make_embedding("magic", 10, 2, 2, 0.1)


@pytest.mark.parametrize("kind", ["hash", "quotient-remainder"])
def test_fm_trains_on_composite_embeddings(kind: str) -> None:
    check_model(registry.load_class("fm"), registry.card("fm").config(embedding=kind, buckets=16))


def test_early_stopping_counts_from_min_epochs_on_and_keeps_the_best() -> None:
    stopping = EarlyStopping(patience=1, min_epochs=4, larger_is_better=True)
    seen = [stopping.see(n, v) for n, v in enumerate([0.3, 0.2, 0.1, 0.1, 0.2, 0.25])]
    assert [stop for _, stop in seen] == [False, False, False, False, False, True]
    assert (stopping.best_epoch, stopping.best) == (0, 0.3)
    smaller = EarlyStopping(patience=0, min_epochs=0, larger_is_better=False)
    assert [smaller.see(n, v)[0] for n, v in enumerate([float("nan"), 0.5, 0.6, 0.4])] == [False, True, False, True]


def test_the_best_epochs_weights_are_put_back() -> None:
    described, rows = sample(DataFormat.SPARSE_ROWS)
    cls = registry.load_class("logreg")
    schema = cls.make_schema(described)
    model = cls(registry.card("logreg").config(), schema, scan(schema, [rows]), described)
    values = iter([{"auc": 0.6}, {"auc": 0.9}, {"auc": 0.7}])
    kept: list[Any] = []

    def validate(current: Any) -> dict[str, float]:
        kept.append(current.snapshot())
        return next(values)

    run = TrainingRun(TrainerConfig(), SamplerConfig(), monitor="auc", validate=validate)
    model.train(Replay([model.train_preprocess(rows)], epochs=3), run)  # type: ignore[list-item]
    assert run.best_epoch == 1
    for name, tensor in model.weights().items():
        assert torch.equal(tensor, kept[1][name])
        assert not torch.equal(tensor, kept[2][name])


def test_a_state_of_nothing_gives_no_recommender() -> None:
    cls = registry.load_class("ease")
    described = DataConfig(user="user", item="item")
    schema = cls.make_schema(described)
    model = cls(registry.card("ease").config(), schema, scan(schema, []), described)
    with pytest.raises(TrainingError, match="no usable interaction"):
        model.train(Replay([], 1), TrainingRun(TrainerConfig(), SamplerConfig()))
