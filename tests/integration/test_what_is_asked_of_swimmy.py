"""What a run on Pods asks of swimmy, and what is said before anything is created: without a cluster."""

from __future__ import annotations

from typing import Any

import pytest

import ghee
from ghee.errors import MachineError
from ghee.launch.kubernetes import driver_pods, stage_pods
from ghee.resources import Resources


def test_what_a_stage_asks_for_goes_before_what_is_set_for_all_pods() -> None:
    on = ghee.Kubernetes(image="i", pods={"cpus": "50m", "memory": "1Gi", "gpus": 1})
    own = stage_pods(Resources(cpus=4.0, memory=16 << 30, gpus=2), 1, on)
    assert (own.cpus, own.memory, own.gpus) == (4.0, 16 << 30, 2)
    none = stage_pods(Resources(), 3, on)
    assert (none.cpus, none.memory, none.gpus, none.replicas) == ("50m", "1Gi", 1, 3)


@pytest.mark.parametrize(
    ("name", "words"),
    [("memry", "'memry' is no option of swimmy.Pods.*did you mean 'memory'"), ("xyz", "there are: image,")],
)
def test_an_option_that_pods_do_not_have_is_named(name: str, words: str) -> None:
    asked: dict[str, Any] = {name: 1}
    with pytest.raises(MachineError, match=words):
        driver_pods(ghee.Kubernetes(image="i", driver=asked))
