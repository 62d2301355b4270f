"""For tests of models, ours and yours: a stream without an engine, and the checks that every model must pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ghee_models.contract import Batch


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



