"""Decides what the leader does next. Pure: entries of the agents' journals in, actions out; no socket, no process, no clock.

A run has one group (one world over all Pods) or a group per Pod (``world="pod"``). A group goes through::

    waiting ──all agents answer, same versions──► launching ──every rank joined, world as asked──► running ──every rank
    done──► done └───────────────────────────────┴──────────────── the first failure ─────────────────┴──► failed
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from swimmy.protocol import differences

Entry = dict[str, Any]

# What is a cause comes before what is more likely its consequence, when several arrive together; of equals the first counts.
_WEIGHT = {
    "import": 0,
    "exception": 0,
    "memory": 0,
    "version": 0,
    "world": 1,
    "signal": 2,
    "exit": 3,
    "killed": 3,
    "launch": 3,
    "silent": 4,
}


@dataclass(frozen=True)
class Asked:
    """The run that was asked for. ``mpi``: "none", "mpich" or "openmpi"; ``per_pod``: a world for each Pod."""

    replicas: int
    ranks_per_pod: int
    mpi: str
    per_pod: bool
    facts: dict[str, str]

    @property
    def size(self) -> int:
        """The ranks of one world."""
        return self.ranks_per_pod * (1 if self.per_pod else self.replicas)


@dataclass(frozen=True)
class Tell:
    """Send this to the agent of that index."""

    index: int
    message: dict[str, Any]


@dataclass(frozen=True)
class Record:
    """Write this into the run's journal, for the client."""

    entry: Entry


@dataclass(frozen=True)
class Failure:
    """Why a group failed. ``cause`` is one of the keys of the weights above."""

    group: int
    index: int
    rank: int | None
    cause: str
    detail: Entry

    def entry(self) -> Entry:
        return {"kind": "cause", "index": self.index, "rank": self.rank, "cause": self.cause, **self.detail}


Action = Tell | Record | Failure


@dataclass
class Group:
    """One world: its agents and what its ranks have said."""

    number: int
    members: tuple[int, ...]
    state: str = "waiting"
    ready: set[int] = field(default_factory=set)
    joined: dict[int, Entry] = field(default_factory=dict)
    done: dict[int, Entry] = field(default_factory=dict)
    proxies: int = 0


class World:
    """The state of a run. ``addresses`` maps an agent's index to its IP address."""

    def __init__(self, asked: Asked, addresses: dict[int, str]) -> None:
        self.asked = asked
        self.addresses = dict(addresses)
        if asked.per_pod:
            self.groups = {index: Group(index, (index,)) for index in range(asked.replicas)}
        else:
            self.groups = {0: Group(0, tuple(range(asked.replicas)))}

    def group_of(self, index: int) -> Group:
        return self.groups[index if self.asked.per_pod else 0]

    def number_of(self, index: int, rank: int) -> int:
        """A rank's number in the whole run, by which its result and its log lines are known to the client."""
        return index * self.asked.ranks_per_pod + rank if self.asked.per_pod else rank

    @property
    def state(self) -> str:
        states = [group.state for group in self.groups.values()]
        for state in ("failed", "waiting", "launching", "running"):
            if state in states:
                return state
        return "done"

    def replace(self, index: int, address: str) -> None:
        """The Pod of that index is a new one (``world="pod"`` only): its group begins again."""
        self.addresses[index] = address
        self.groups[index] = Group(index, (index,))

    # -- what happened --------------------------------------------------------------------------------------------

    def ready(self, index: int, facts: dict[str, str]) -> list[Action]:
        """The agent of that index answers and holds the payload."""
        group = self.group_of(index)
        different = differences(self.asked.facts, facts)
        if different:
            return self._fail(group, index, None, "version", {"text": "; ".join(different)})
        group.ready.add(index)
        actions: list[Action] = [Record({"kind": "agent", "index": index})]
        if group.state == "waiting" and len(group.ready) == len(group.members):
            group.state = "launching"
            actions += self._launch(group)
        return actions

    def _launch(self, group: Group) -> list[Action]:
        per_pod = self.asked.ranks_per_pod
        if self.asked.mpi != "none":
            hosts = [self.addresses[index] for index in group.members]
            message = {"op": "launch", "mpi": self.asked.mpi, "hosts": hosts, "ranks_per_host": per_pod}
            return [Tell(group.members[0], message)]
        return [
            Tell(index, {"op": "launch", "mpi": "none", "size": self.asked.size, "ranks_per_host": per_pod,
                         "first": place * per_pod})
            for place, index in enumerate(group.members)
        ]  # fmt: skip

    def entry(self, index: int, entry: Entry) -> list[Action]:
        """An entry of the journal of the agent of that index."""
        group = self.group_of(index)
        handler = getattr(self, f"_on_{entry['kind']}", None)
        if handler is None:
            raise ValueError(f"an agent's journal has no entries of kind {entry['kind']!r}")
        actions: list[Action] = handler(group, index, entry)
        return actions

    def silent(self, index: int, seconds: float) -> list[Action]:
        """The agent of that index has not answered for so long."""
        return self._fail(self.group_of(index), index, None, "silent", {"seconds": round(seconds, 1)})

    # -- entries of the agents' journals --------------------------------------------------------------------------

    def _on_log(self, group: Group, index: int, entry: Entry) -> list[Action]:
        return [Record({"kind": "log", "index": index, "rank": self.number_of(index, entry["rank"]), "text": entry["text"]})]

    def _on_output(self, group: Group, index: int, entry: Entry) -> list[Action]:
        return [Record({"kind": "log", "index": index, "rank": None, "text": entry["text"]})]

    def _on_proxy(self, group: Group, index: int, entry: Entry) -> list[Action]:
        """MPICH names no host: its lines come in the order of the hosts it was given. Open MPI names each."""
        place = group.proxies
        group.proxies += 1
        if "host" in entry:
            places = [each for each, member in enumerate(group.members) if self.addresses[member] == entry["host"]]
            place = places[0] if places else len(group.members)
        if place >= len(group.members):
            where = entry.get("host", f"{place + 1} hosts, {len(group.members)} were given")
            return self._fail(group, index, None, "world", {"text": f"the launcher wants a proxy on {where}"})
        message = {"op": "proxy", "argv": entry["argv"], "variables": entry.get("variables", {})}
        return [Tell(group.members[place], message)]

    def _on_join(self, group: Group, index: int, entry: Entry) -> list[Action]:
        group.joined[entry["rank"]] = {**entry, "index": index}
        if entry["size"] != self.asked.size:
            text = f"rank {entry['rank']} came up in a world of {entry['size']}, {self.asked.size} were asked for"
            return self._fail(group, index, entry["rank"], "world", {"text": text})
        if group.state != "launching" or len(group.joined) < self.asked.size:
            return []
        placed = {each: sum(join["index"] == each for join in group.joined.values()) for each in group.members}
        if set(placed.values()) != {self.asked.ranks_per_pod}:
            where = ", ".join(f"{count} on Pod {each}" for each, count in placed.items())
            text = f"{self.asked.ranks_per_pod} ranks on each Pod were asked for, there are {where}"
            return self._fail(group, index, None, "world", {"text": text})
        group.state = "running"
        actions: list[Action] = [Tell(each, {"op": "go"}) for each in group.members]
        return [*actions, Record({"kind": "world", "group": group.number, "size": self.asked.size})]

    def _on_done(self, group: Group, index: int, entry: Entry) -> list[Action]:
        number = self.number_of(index, entry["rank"])
        group.done[entry["rank"]] = entry
        actions: list[Action] = [Record({"kind": "done", "rank": number, "index": index, "bytes": entry["bytes"]})]
        if group.state == "running" and len(group.done) == self.asked.size:
            group.state = "done"
        return actions

    def _on_failed(self, group: Group, index: int, entry: Entry) -> list[Action]:
        cause = "import" if entry["module"] else "exception"
        detail = {key: entry[key] for key in ("type", "text", "module", "traceback", "pickled")}
        return self._fail(group, index, entry["rank"], cause, detail)

    def _on_exit(self, group: Group, index: int, entry: Entry) -> list[Action]:
        rank, code = entry["rank"], entry["code"]
        if "memory" in entry:
            return self._fail(group, index, rank, "memory", {"code": code, **entry["memory"]})
        if code == 0 and rank in group.done:
            return []
        if code < 0:
            # 9 and 15 are also what MPI sends to the others when one rank has failed.
            return self._fail(group, index, rank, "killed" if code in (-9, -15) else "signal", {"code": code})
        return self._fail(group, index, rank, "exit", {"code": code})

    def _on_gone(self, group: Group, index: int, entry: Entry) -> list[Action]:
        return []  # said again, with its code, by the entry "exit", or by the launcher's end

    def _on_launcher(self, group: Group, index: int, entry: Entry) -> list[Action]:
        if entry["code"] == 0 and len(group.done) == self.asked.size:
            return []
        detail = {"code": entry["code"], "text": entry["text"], "joined": len(group.joined)}
        if entry["code"] == 0:
            detail["text"] = f"mpiexec ended with 0, but {len(group.done)} of {self.asked.size} ranks finished"
            return self._fail(group, index, None, "world", detail)
        return self._fail(group, index, None, "launch", detail)

    def _fail(self, group: Group, index: int, rank: int | None, cause: str, detail: Entry) -> list[Action]:
        if rank is not None:
            rank = self.number_of(index, rank)
        if group.state == "done":
            return []
        group.state = "failed"
        return [Failure(group.number, index, rank, cause, detail)]


def first_cause(failures: list[Failure]) -> Failure:
    """Of failures in the order of their arrival, the one that explains the others."""
    return min(failures, key=lambda each: _WEIGHT[each.cause])
