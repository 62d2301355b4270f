"""The receiving end where batches are cut anew: the parts of each place are put together before they are delivered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ghee.protocol.delivery import Deliver, Delivery, End, Once, StreamEnded

Item = TypeVar("Item")


@dataclass
class _Place(Generic[Item]):
    parts: dict[int, Item] = field(default_factory=dict)
    rows: int = 0


class Joining(Delivery[Item]):
    """A Delivery of batches that come in parts.

    A batch is complete when it has all its rows; one that has fewer, the last of an epoch, when everything has come that
    was sent. `join` makes one item of the parts of a place, in their order.
    """

    def __init__(
        self,
        gated: bool,
        ordered: bool,
        epoch: int,
        *,
        rows: int,
        drop_last: bool,
        join: Callable[[list[Item]], Item],
    ) -> None:
        """`rows` are those of a batch; with `drop_last` one that has fewer is not delivered."""
        super().__init__(gated, ordered, epoch)
        self._rows, self._drop_last, self._join = rows, drop_last, join
        self._begun: dict[int, dict[tuple[int, bool], _Place[Item]]] = {}
        self._come: dict[int, int] = {}
        self._parts: dict[int, int] = {}
        self._dropped: dict[int, list[object]] = {}
        self._whole: dict[tuple[int, bool], Once] = {}

    def part_arrived(self, epoch: int, place: int, index: int, rows: int, item: Item, *, fill: bool) -> bool:
        """A part has arrived, of `rows` rows. `fill`: of a batch that stands in for one. False if it had come before."""
        if epoch < self.epoch or self._whole.setdefault((epoch, fill), Once()).has(place):
            return False
        at = self._begun.setdefault(epoch, {}).setdefault((place, fill), _Place())
        if index in at.parts:
            return False
        at.parts[index] = item
        at.rows += rows
        self._come[epoch] = self._come.get(epoch, 0) + 1
        if at.rows == self._rows:
            self._is_complete(epoch, place, fill)
        self._end_if_all(epoch)
        return True

    def parts_ended(self, epoch: int, total: int, sent: int, parts: int, commit: object = None) -> None:
        """As `ended`; and that many parts were sent."""
        self._parts[epoch] = parts
        self.ended(epoch, total, sent, commit)
        self._end_if_all(epoch)

    def _is_complete(self, epoch: int, place: int, fill: bool) -> None:
        at = self._begun[epoch].pop((place, fill))
        self._whole[epoch, fill].is_new(place)
        joined = self._join([at.parts[index] for index in sorted(at.parts)])
        if self._drop_last and at.rows < self._rows and not fill:
            self._dropped.setdefault(epoch, []).append(joined)
        else:
            self.arrived(epoch, place, joined)

    def _end_if_all(self, epoch: int) -> None:
        if self._come.get(epoch, 0) == self._parts.get(epoch):
            for place, fill in sorted(self._begun.get(epoch, {})):
                self._is_complete(epoch, place, fill)

    @property
    def _is_whole(self) -> bool:
        """Whether everything has come of an epoch that is known to have ended."""
        return self._come.get(self.epoch, 0) == self._parts.get(self.epoch)

    def next(self) -> Deliver | End | StreamEnded | None:
        """As of every delivery; what is left of an epoch has what was too short."""
        if self._total.get(self.epoch) == self.delivered and not self._is_whole:
            return None
        step = super().next()
        if isinstance(step, End):
            step.left.extend(self._dropped.pop(step.epoch, ()))
            for memory in (self._begun, self._come, self._parts):
                memory.pop(step.epoch, None)
            for fill in (False, True):
                self._whole.pop((step.epoch, fill), None)
        return step
