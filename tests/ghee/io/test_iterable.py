from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ghee.errors import PipelineError
from ghee.io.opening import open_source


def read(source: Any, epoch: int = 0) -> list[Any]:
    return [item for split in source.order(source.splits(), epoch) for item in source.read(split, epoch=epoch)]


def test_a_list_is_read_in_every_epoch_and_its_items_are_the_batches() -> None:
    items = [{"x": np.arange(3)}, "anything", 0]
    source = open_source(items)
    assert source.hosted
    source.check_epochs(3)
    for epoch in range(3):
        assert all(a is b for a, b in zip(read(source, epoch), items, strict=True))


def test_a_function_is_called_once_per_epoch() -> None:
    calls: list[int] = []

    def make() -> Iterator[int]:
        calls.append(1)
        yield from (1, 2)

    source = open_source(make)
    source.check_epochs(2)
    assert not calls
    assert [read(source, 0), read(source, 1)] == [[1, 2], [1, 2]]
    assert len(calls) == 2


def test_a_generator_is_read_once_and_lazily() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(3):
            taken.append(i)
            yield i

    source = open_source(numbers())
    source.check_epochs(1)
    with pytest.raises(PipelineError, match=r"generator .*numbers can be read once, and epochs=2"):
        source.check_epochs(2)
    (split,) = source.splits()
    items = source.read(split, epoch=0)
    assert next(items) == 0
    assert taken == [0]
    assert list(items) == [1, 2]
    with pytest.raises(PipelineError, match="nothing for epoch 1"):
        read(source, 1)


def test_what_the_iterable_raises_arrives_as_it_is() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        read(open_source(broken))
    with pytest.raises(PipelineError, match="returned int"):
        read(open_source(lambda: 3))


def test_what_is_no_source_is_refused_with_advice() -> None:
    for wrong, word in [
        (3, "int is no source"),
        (b"path", "bytes is no source"),
        ({"x": [1]}, "dict is no source"),
        (np.arange(3), "Give {name: array}"),
    ]:
        with pytest.raises(PipelineError, match=word):
            open_source(wrong)
    with pytest.raises(PipelineError, match="columns, limit: a Python iterable"):
        open_source([1], columns=["x"], limit=3)
