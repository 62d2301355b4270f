"""`ghee.torch` with real ranks: DistributedDataParallel over gloo, and the stream in a DataLoader."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import ghee
import ghee.torch

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import a test module

BATCHES, ROWS, FEATURES = 12, 16, 5
RATE = 0.05


@pytest.fixture(autouse=True)
def ghee_home(tmp_path, monkeypatch):
    monkeypatch.setenv("GHEE_HOME", str(tmp_path / "ghee"))


def make_batches():
    random = np.random.default_rng(7)
    truth = random.normal(size=FEATURES).astype(np.float32)
    batches = []
    for _ in range(BATCHES):
        x = random.normal(size=(ROWS, FEATURES)).astype(np.float32)
        batches.append({"x": x, "y": x @ truth})
    return batches


def make_model():
    torch.manual_seed(11)
    return torch.nn.Sequential(torch.nn.Linear(FEATURES, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def step(model, optimizer, batch):
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(batch["x"]).squeeze(1), batch["y"]).backward()
    optimizer.step()


def weights_of(model):
    return [parameter.detach().numpy().copy() for parameter in model.parameters()]


def listening_sockets():
    """(address, inode) of the sockets on which this process listens for TCP, the address as the kernel writes it."""
    mine = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            mine.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:
            pass  # the listing's own
    found = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in mine:
                found.add((local.split(":")[0], inode))
    return found


def train_in_parallel(batches):
    before = listening_sockets()
    device = ghee.torch.init_process_group()
    model = DistributedDataParallel(make_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    kinds = set()
    for epoch in batches.epochs():
        for batch in DataLoader(ghee.torch.dataset(epoch), batch_size=None):
            kinds.add(type(batch["x"]).__name__)
            step(model, optimizer, batch)
    world = (torch.distributed.get_rank(), torch.distributed.get_world_size(), torch.distributed.get_backend(), str(device))
    opened = {address for address, _ in listening_sockets() - before}
    return weights_of(model), world, kinds, opened


def train_alone(epochs):
    """What two ranks do together: each step takes two batches as one of twice the size."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    batches = make_batches()
    for _ in range(epochs):
        for first, second in zip(batches[::2], batches[1::2], strict=True):
            step(model, optimizer, {k: torch.from_numpy(np.concatenate([first[k], second[k]])) for k in first})
    return weights_of(model)


@pytest.mark.slow
@pytest.mark.timeout(400)  # two processes that import torch at the same time
def test_two_ranks_train_as_one_process_with_twice_the_batch():
    pipeline = ghee.read(make_batches(), epochs=2).loop(train_in_parallel, replicas=2, ordered=True)
    handle = ghee.run(pipeline, progress=False)
    (weights, world, kinds, opened), (weights_1, world_1, _, opened_1) = handle.results["train_in_parallel"]

    assert world == (0, 2, "gloo", "cpu")
    assert world_1 == (1, 2, "gloo", "cpu")
    assert kinds == {"Tensor"}
    assert opened | opened_1 <= {"0100007F", "0" * 24 + "01000000"}, "a rank listens wider than loopback"
    for here, there in zip(weights, weights_1, strict=True):
        np.testing.assert_array_equal(here, there)
    for together, alone, start in zip(weights, train_alone(2), weights_of(make_model()), strict=True):
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
        assert not np.allclose(alone, start, rtol=1e-3), "nothing was learnt, so the comparison says nothing"
    assert set(handle.logs().values()) == {""}, "a warning at the end of a rank"
    assert handle.report.balanced


def test_inline_with_one_rank_leaves_nothing_behind(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)

    def total(batches):
        ghee.torch.init_process_group()
        rows = torch.tensor([sum(len(batch["x"]) for batch in DataLoader(ghee.torch.dataset(batches), batch_size=None))])
        torch.distributed.all_reduce(rows)
        return int(rows), os.environ["GLOO_SOCKET_IFNAME"]

    handle = ghee.run(ghee.read(make_batches()).loop(total), on="inline")
    assert handle.result == (BATCHES * ROWS, "lo")
    assert not torch.distributed.is_initialized()
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_inline_with_several_ranks_says_what_to_do():
    def train(batches):
        ghee.torch.init_process_group()

    with pytest.raises(ghee.errors.GheeError, match='has 2 ranks, which on="inline" are threads') as caught:
        ghee.run(ghee.read(make_batches()).loop(train, replicas=2), on="inline")
    assert 'use on="local"' in str(caught.value)


def test_a_second_call_in_one_process_is_refused():
    def train(batches):
        ghee.torch.init_process_group()
        ghee.torch.init_process_group()

    with pytest.raises(ghee.errors.GheeError, match="set up already in this process"):
        ghee.run(ghee.read(make_batches()).loop(train), on="inline")
    assert not torch.distributed.is_initialized()


def test_outside_of_a_run():
    with pytest.raises(ghee.errors.GheeError, match=r"outside of a run: call it in the function of a \.loop"):
        ghee.torch.init_process_group()


def test_workers_of_a_data_loader_are_refused():
    loader = DataLoader(ghee.torch.dataset(make_batches()), batch_size=None, num_workers=1)
    with pytest.raises(ghee.errors.GheeError, match="leave num_workers=0"):
        next(iter(loader))
