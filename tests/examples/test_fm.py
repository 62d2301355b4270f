"""The model is Rendle's, and it learns."""

import numpy as np
import torch
from fm import FactorizationMachine
from training import Training, predict


def test_the_linear_time_formula_is_the_double_sum() -> None:
    torch.manual_seed(0)
    model = FactorizationMachine(20, 3, bias=0.7).double()
    with torch.no_grad():
        model.table.normal_()
    index = torch.stack([torch.randperm(20)[:5] for _ in range(4)])
    value = torch.randn(4, 5, dtype=torch.float64)
    weight, factors = model.table[:, 0], model.table[:, 1:]
    for row, got in enumerate(model(index, value)):
        wanted = model.bias + sum(weight[i] * x for i, x in zip(index[row], value[row], strict=True))
        for one in range(5):
            for other in range(one + 1, 5):
                product = factors[index[row, one]] @ factors[index[row, other]]
                wanted = wanted + product * value[row, one] * value[row, other]
        assert torch.isclose(got, wanted)


def test_what_only_a_pair_tells_is_learnt() -> None:
    """Exclusive or of two features: no sum of weights can say it, a product of factors can."""
    index = np.array([[a, 2 + b, 4, 4] for a in (0, 1) for b in (0, 1)] * 64, np.int32)
    value = np.ones(index.shape, np.float32)
    value[:, 2:] = 0
    rating = np.where(index[:, 0] == index[:, 1] - 2, 4.5, 2.5).astype(np.float32)
    training = Training(seed=0, epochs=100)
    batch = {"index": index, "value": value, "rating": rating}
    first = training.step(batch)
    for _ in range(400):
        last = training.step(batch)
    assert last < 0.25 * first


def test_predictions_stay_on_the_scale() -> None:
    training = Training(seed=0)
    with torch.no_grad():
        training.model.bias.fill_(9.0)
    batch = {"index": np.zeros((2, 3), np.int32), "value": np.ones((2, 3), np.float32)}
    assert predict(training.model, batch).tolist() == [5.0, 5.0]


def test_a_seed_gives_the_same_parameters() -> None:
    one, same, other = (Training(seed).model.table for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
