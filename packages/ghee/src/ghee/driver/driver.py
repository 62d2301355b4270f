"""The driver: starts a run, feeds the rules with what the ranks say, carries out what they answer, ends the run."""

from __future__ import annotations

import contextlib
import functools
import pickle
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cloudpickle

from ghee import failure, pickling, stopping
from ghee.driver.feed import Feed
from ghee.driver.journal import Journal
from ghee.driver.plan import Plan, PlannedStage
from ghee.driver.resume import Start, check_fits, describe_run
from ghee.driver.scaling import Scaling, advise, numbers_of
from ghee.errors import (
    CancelledError,
    CheckpointError,
    GheeError,
    LedgerError,
    RankError,
    RankKilledError,
    RankStartError,
    SourceError,
)
from ghee.io.contract import PartFile
from ghee.io.stores.patience import say
from ghee.launch.contract import Death, Launcher, World
from ghee.observe.limit import find_limit
from ghee.observe.report import Recent, Report, StageReport, summarize_stage
from ghee.observe.times import Times
from ghee.observe.trace import TraceSettings
from ghee.pipeline import UNTIL_RETURN
from ghee.protocol import messages as m
from ghee.protocol.coordinator import RETRIES, Coordinator
from ghee.protocol.edge import SourceRules
from ghee.protocol.messages import Action, Cause, Event, RankId
from ghee.protocol.position import Position
from ghee.ranks.checkpoints import Checkpoints
from ghee.ranks.runner import run_rank
from ghee.ranks.task import RankTask
from ghee.transfer.contract import Message
from ghee.transfer.member import Member
from ghee.transfer.reading import Numbers, read
from ghee.transfer.wire import Instructions, Settings, Welcome
from ghee.transfer.wire import Report as RankReport
from ghee.waiting import CHECKPOINT_SECONDS, START_SECONDS, Wait, checkpoint_said, missing_said

STOP_SECONDS = 5.0
"""How long ranks that were told to stop may take before they are killed."""

FIRST_CAUSE_SECONDS = 0.3
"""When a rank of a world fails, another one's death may be why: how long to wait for the news of it."""

_NOTHING = "there is nothing to read, and epochs=None would read it for ever: give a number"

_ERRORS: dict[Cause, type[GheeError]] = {
    Cause.CHECKPOINT: CheckpointError,
    Cause.LEDGER: LedgerError,
    Cause.TAIL: GheeError,
    Cause.KILLED: RankKilledError,
    Cause.EXITED: RankError,
    Cause.KILLED_AT_START: RankStartError,
    Cause.EXITED_AT_START: RankStartError,
}


class Driver:
    """One run, from start to end, in one thread.

    `run` returns each stage's results by stage index and rank, or raises what the run ended with. `observe` is called
    with a fresh report every now and then.
    """

    def __init__(
        self,
        plan: Plan,
        launcher: Launcher,
        run_id: str,
        folder: Path,
        *,
        retries: int = RETRIES,
        observe: Callable[[Report], None] | None = None,
        start: Start | None = None,
        journal: Journal | None = None,
        restarts: Sequence[str] = (),
        trace: TraceSettings | None = None,
    ) -> None:
        """`restarts` says why the run was started again before; `trace`: what ranks do is to be written down."""
        self.plan, self.launcher, self.run_id, self.folder = plan, launcher, run_id, folder
        self.results: dict[RankId, bytes] = {}
        self.failures: dict[int, BaseException] = {}
        self._retries, self._trace = retries, trace
        self._start = start or Start()
        self._journal = journal
        self._restarts: list[str] = list(restarts)
        self.changes: list[str] = []
        self._replicas = numbers_of(plan, journal.of_kind("scale") if journal is not None else ())
        self._left: list[tuple[float, str]] = []
        self._observe = observe
        self._observed = 0.0
        self._began = time.time()
        self._ended: float | None = None
        self._addresses: dict[RankId, str] = {}
        self._told: dict[RankId, set[RankId]] = defaultdict(set)
        self._waiting: dict[RankId, list[Action]] = defaultdict(list)
        self._times: dict[RankId, Times] = {}
        self._times_of_dead: list[tuple[RankId, Times]] = []
        self._balanced: Counter[int] = Counter()
        """How many epochs have balanced, by stage."""
        self._hosted: list[tuple[Member, threading.Thread]] = []
        self._cancelled = threading.Event()
        self._outcome: m.Finish | m.Fail | None = None
        self._tasks: dict[int, bytes] = {}
        self._splits: list[Any] = []
        self._parts: dict[int, list[PartFile]] = {}
        self._draining = threading.Event()
        self._feed: Feed | None = None
        self._recent = Recent()
        self._counted = 0.0
        self._unread: list[Message] = []
        self._missing: dict[RankId, tuple[str, float]] = {}
        self._joined_at = 0.0
        self._waits: dict[str, Wait] = {"start": Wait(START_SECONDS)}
        self._numbers = Numbers([stage.size for stage in plan.stages])

    # ── from outside ─────────────────────────────────────────────────────────────────────────────────────────────

    def cancel(self) -> None:
        """End the run soon. From any thread."""
        self._cancelled.set()
        if hasattr(self, "_endpoint"):
            self._endpoint.wake()

    def drain(self) -> None:
        """End a stream in order: nothing more is taken of it, and what was is brought to its end. From any thread."""
        self._draining.set()
        if hasattr(self, "_endpoint"):
            self._endpoint.wake()

    def run(self) -> None:
        """Run to the end. Raises the user's own exception, or a GheeError."""
        sinks = [stage for stage in self.plan.stages if stage.kind == "write"]
        prepared: list[PlannedStage] = []
        try:
            if not self.plan.endless:
                self._fix_source()
                self._splits = self.plan.source.splits()
                if hasattr(self.plan.source, "lay_down") and self.launcher.cores is not None:  # all ranks see the folder
                    self.plan.source.lay_down(self.folder)
                if not self._splits and self.plan.epochs >= UNTIL_RETURN:
                    raise SourceError(_NOTHING)
            self._write_beginning()
            self.launcher.check(self._worlds(at_most=True))
            positions = dict(self._start.positions)
            for stage in sinks:
                self._prepare(stage, positions)
                prepared.append(stage)
            self._endpoint = self.launcher.endpoint()
            rules = [replace(stage.rules, begin=self._replicas.get(stage.index)) for stage in self.plan.stages]
            if self.plan.endless:
                positions = self._open_feed()
            self._coordinator = Coordinator(rules, self._source_rules(), self._retries, positions)
            self._scaling = Scaling(self.plan, self._coordinator, self.launcher.cores)
            edges = self._coordinator.edges
            self._balanced.update({edge.rules.index: edges[0].first for edge in edges})
            self._start_worlds(self._worlds())
            self._start_hosted()
            self._carry_out(self._coordinator.start())
            self._follow()
            self._stop_ranks()
            self.launcher.close()  # its folder too: a driver that is killed while it publishes leaves nothing of a run
            if self._feed is not None:
                self._feed.finished()
            for stage in sinks:
                parts = [cloudpickle.loads(self.results[RankId(stage.index, rank)]) for rank in range(stage.size)]
                stage.payload.publish([*self._parts[stage.index], *(part for of_rank in parts for part in of_rank or ())])
        except BaseException:
            self._abort(prepared)
            raise
        finally:
            self._ended = time.time()
            with contextlib.ExitStack() as ending:  # last first, and all of it
                if hasattr(self, "_endpoint"):
                    ending.callback(self._endpoint.close)
                ending.callback(self.launcher.close)
                if hasattr(self.plan.source, "pick_up"):
                    ending.callback(self.plan.source.pick_up)
                if self._feed is not None:
                    ending.callback(self._feed.close)

    def _prepare(self, stage: PlannedStage, positions: dict[int, Position]) -> None:
        """Make a sink ready: what it has stored before is taken over if it is still there, else it begins anew."""
        self._parts[stage.index] = []
        kept = self._start.kept.get(stage.index)
        if kept is not None:
            if stage.payload.adopt(kept.token, kept.parts):
                self._parts[stage.index] += kept.parts
                return
            del positions[stage.index]
            say(f"what run {self.run_id} had stored of {stage.name!r} is not there any more; it is written anew")
        stage.payload.prepare()

    def _keep(self, action: m.Keep) -> None:
        """Parts of a sink are closed: from here on they are not written again."""
        self._parts[action.stage] += action.parts
        if self._journal is not None and action.position is not None:
            stage = self.plan.stages[action.stage]
            self._journal.append(
                kind="stored", stage=stage.name, sink=stage.payload.described, staging=stage.payload.token,
                parts=[asdict(part) for part in action.parts], position=action.position.to_json(),
            )  # fmt: skip

    def _open_feed(self) -> dict[int, Position]:
        """Join the stream. Returns where each end begins: a sink with the first epoch that was not acknowledged."""
        positions = dict(self._start.positions)
        stream = self.plan.source.stream(self._endpoint.wake)
        self._feed = Feed(self.plan, stream, self._journal, positions)
        for stage in self.plan.stages:
            if stage.kind == "write":
                positions[stage.index] = Position(self._feed.first)
        self._feed.begin()
        return positions

    def _cut(self) -> None:
        """Take the next epoch of a stream, or end it."""
        if self._feed is None or self._coordinator.source.ended:
            return
        if self._draining.is_set():
            self._carry_out(self._coordinator.end_source())
            return
        owners = self._feed.next(self._coordinator.splits.are_handed_out)
        if owners is not None:
            self._carry_out(self._coordinator.cut(len(owners), owners))

    def _fix_source(self) -> None:
        """Where input grows while it is read (a topic), its end is what it was when the run first began."""
        for before in [] if self._journal is None else self._journal.of_kind("run")[:1]:
            if "fixed" in before:
                self.plan.source.fix(before["fixed"])

    def _write_beginning(self) -> None:
        if self._journal is not None:
            record = describe_run(self.plan, self._splits)
            check_fits(self._journal, record, self.run_id)
            self._journal.append(**record, start=str(self._start))

    def _record(self, action: m.Record) -> None:
        """A checkpoint is whole: from here on it is where the run goes on."""
        if self._journal is None:
            return
        name = self.plan.stages[action.stage].name
        self._journal.append(
            kind="checkpoint", stage=name, number=action.number, steps=action.steps, value=action.value,
            position=action.position.to_json(),
        )  # fmt: skip
        if action.value:
            Checkpoints(self.folder, action.stage, name).forget_old(action.number)

    def _abort(self, prepared: list[PlannedStage]) -> None:
        try:
            if hasattr(self, "_endpoint"):
                self._tell_stop()
                self.launcher.close()
                self._join_hosted()
        finally:
            for stage in prepared:
                if self._parts[stage.index] and self._journal is not None and not stage.loops_before:
                    stage.payload.release()
                else:
                    stage.payload.abort()

    # ── starting ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _source_rules(self) -> SourceRules:
        if self._feed is not None:
            return SourceRules(self._feed.first, lambda epoch: (), [], {}, ended=False)
        numbers = {split.index: number for number, split in enumerate(self._splits)}

        @functools.lru_cache(maxsize=3)  # an epoch and the next one overlap; all of many would fill the memory
        def order(epoch: int) -> Sequence[int]:
            return [numbers[split.index] for split in self.plan.source.order(self._splits, epoch)]

        return SourceRules(self.plan.epochs, order, [split.rows for split in self._splits])

    def _worlds(self, at_most: bool = False) -> list[World]:
        """The worlds that the run begins with, or all that there may ever be."""
        worlds = []
        for stage in self.plan.stages:
            if stage.hosted:
                continue
            if stage.one_world:
                worlds.append(World(stage.index, stage.name, 0, 0, stage.size))
            else:
                size = stage.resources.ranks
                worlds += [
                    World(stage.index, stage.name, replica, replica * size, size)
                    for replica in range(stage.resources.replicas if at_most else self._replicas_of(stage))
                ]
        return worlds

    def _replicas_of(self, stage: PlannedStage) -> int:
        return self._replicas.get(stage.index, stage.resources.replicas)

    def _start_hosted(self) -> None:
        for stage in self.plan.stages:
            if stage.hosted:
                rank = RankId(stage.index, 0)
                member = Member(rank, stage.name, *self.launcher.member(), self._endpoint.address)
                thread = threading.Thread(
                    target=self._run_hosted, args=(member, stage), name=f"ghee {stage.name}", daemon=True
                )
                self._hosted.append((member, thread))
                thread.start()

    def _run_hosted(self, member: Member, stage: PlannedStage) -> None:
        try:
            run_rank(member, 0, 1, inline=True, task=self._task_of(stage))
        finally:
            member.close()

    def _settings_of(self, stage: PlannedStage, rank: RankId) -> Settings:
        return Settings(
            receivers=stage.children,
            room=self.plan.room(stage),
            credit=self.plan.credit_after(stage),
            gated=stage.kind == "loop" and stage.size > 1,
            ordered=stage.ordered,
            cuts=self.plan.cuts(stage),
            rebatch=stage.rebatch,
            drop_last=stage.drop_last,
            epoch=self._coordinator.edges[stage.index].begins_with(rank),
            number=self._start.numbers.get(stage.index, 0),
            step=self._start.steps.get(stage.index, 0),
            trace=self._trace,
        )

    def _task_of(self, stage: PlannedStage) -> RankTask:
        size = stage.size if stage.one_world else stage.resources.ranks
        splits = self._splits if stage.kind == "read" else []
        return RankTask(
            stage.kind, stage.name, size, stage.function, stage.payload, splits,  # type: ignore[arg-type]
            self.plan.epochs, str(self.folder), stage.resources.gpus,
        )  # fmt: skip

    def _welcome(self, event: m.Joined) -> None:
        """Send a rank how it takes part and its task, then what was decided for it before it was there."""
        rank, stage = event.rank, self.plan.stages[event.rank.stage]
        self._addresses[rank] = event.address
        self._missing.pop(rank, None)
        self._joined_at = time.monotonic()
        self.launcher.joined(rank, event.pid)
        if stage.hosted:
            task = b""
        else:
            if rank.stage not in self._tasks:
                self._tasks[rank.stage] = pickling.dumps(self._task_of(stage))
            task = self._tasks[rank.stage]
        self._endpoint.send(event.address, [pickle.dumps(Welcome(self._settings_of(stage, rank))), task])
        for other in [rank, *self._waiting]:
            self._instruct(other, self._waiting.pop(other, []))

    # ── following ────────────────────────────────────────────────────────────────────────────────────────────────

    def _follow(self) -> None:
        while self._outcome is None:
            messages, self._unread = self._unread + self._endpoint.receive(0.0 if self._unread else 0.1), []
            if self._cancelled.is_set():
                raise CancelledError("the run was cancelled")
            if time.monotonic() - self._counted > stopping.LOOK_SECONDS:
                self._look_around()
            self._carry_out(self._coordinator.on(*[_died(death) for death in self.launcher.deaths()]))
            events: list[Event] = []
            for frames in messages:
                report = read(frames, RankReport)
                self._numbers.check(report.rank, report.number)
                events += report.events
                if report.times is not None:
                    self._times[report.rank] = report.times
            for event in events:
                if isinstance(event, m.Joined):
                    self._welcome(event)
                elif isinstance(event, m.Returned):
                    self.results[event.rank] = event.result
                elif isinstance(event, m.Failed):
                    self._look_for_first_cause(event)
            self._carry_out(self._coordinator.on(*events))
            self._cut()
            self._scale()
            self._show()
        if isinstance(self._outcome, m.Fail):
            raise self._error_of(self._outcome)

    def _look_around(self) -> None:
        """Now and then: how many rows were read, and whether another process has asked the run to end."""
        self._counted = time.monotonic()
        self._recent.add(self._counted, self._rows_read())
        self._look_at_waits(self._counted)
        second = self._coordinator.edges[0].first + 1  # all of the first may have been taken in an earlier run
        if self.plan.epochs >= UNTIL_RETURN and not self._rows_read() and self._coordinator.splits.is_over(second):
            raise SourceError(_NOTHING)
        asked = stopping.asked(self.folder)
        if asked is not None and self._feed is not None and asked == stopping.IN_ORDER:
            self._draining.set()
        elif asked is not None:
            raise CancelledError("the run was cancelled (ghee cancel)")

    def _look_at_waits(self, now: float) -> None:
        """Find what would wait for ever, and say what waits for long: no run hangs without a word."""
        began = min((since for _, since in self._missing.values()), default=None)
        if self._waits["start"].is_due(None if began is None else max(began, self._joined_at), now):
            ranks = sum(world.size for world in self._worlds())
            say(missing_said(self._missing, ranks, now, self.folder))
        for index, tracker in self._coordinator.trackers.items():
            for rank in tracker.waiting[1]:
                if rank in self._times and self._outcome is None:
                    self._carry_out(self._coordinator.given(rank, self._start.steps.get(index, 0) + self._times[rank].given))
            name, (waiting, others) = self.plan.stages[index].name, tracker.waiting
            wait = self._waits.setdefault(f"checkpoint {index}", Wait(CHECKPOINT_SECONDS))
            if wait.is_due(wait.since(bool(waiting), now), now) and self._outcome is None:
                say(checkpoint_said(name, waiting, others, wait.seconds(now)))

    def _rows_read(self) -> int:
        return sum(e.read_rows for (index, _), e in list(self._coordinator.ledger.entries.items()) if index == 0)

    def _look_for_first_cause(self, failed: m.Failed) -> None:
        """A rank of a world of several may fail because another one was killed: then the death is the cause."""
        if self.plan.stages[failed.rank.stage].size == 1 or self._outcome is not None:
            return
        deadline = time.monotonic() + FIRST_CAUSE_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            deaths = self.launcher.deaths()
            if deaths:
                self._carry_out(self._coordinator.on(*[_died(death) for death in deaths]))
                return
            self._unread += self._endpoint.receive(left)

    def _carry_out(self, actions: Sequence[Action]) -> None:
        by_rank: dict[RankId, list[Action]] = defaultdict(list)
        for action in actions:
            if isinstance(action, m.Read) and self._feed is not None:
                action = self._feed.with_split(action)
            if isinstance(action, m.EpochEnd) and self._feed is not None:
                action = self._feed.with_commit(action)
            if isinstance(action, m.EpochBalanced):
                self._balanced[action.stage] += 1
                if self._feed is not None:
                    self._feed.balanced(action)
            elif isinstance(action, m.Finish | m.Fail):
                self._outcome = action
            elif isinstance(action, m.Restart):
                self._restart(action)
            elif isinstance(action, m.Start):
                self._start_world(action.ranks)
            elif isinstance(action, m.Left):
                self._stop_world(action.ranks)
            elif isinstance(action, m.Record):
                self._record(action)
                if self._feed is not None:
                    self._feed.recorded_at(action)
            elif isinstance(action, m.Keep):
                self._keep(action)
            elif isinstance(action, m.GaveUp):
                self._give_up(action)
            else:
                by_rank[action.rank].append(action)
        for rank, of_rank in by_rank.items():
            self._instruct(rank, of_rank)

    def _restart(self, action: m.Restart) -> None:
        """Start a world again that has died, and have the others forget the old one."""
        gone = self._forget([rank._replace(life=rank.life - 1) for rank in action.ranks])
        for address in gone:
            self._endpoint.forget(address)
        self._restarts.append(action.reason.splitlines()[0])
        self._start_world(action.ranks)
        self._say_gone(gone)

    def _start_world(self, ranks: Sequence[RankId]) -> None:
        first, size = ranks[0], len(ranks)
        name = self.plan.stages[first.stage].name
        self._start_worlds([World(first.stage, name, first.index // size, first.index, size, first.life)])

    def _start_worlds(self, worlds: Sequence[World]) -> None:
        self._missing.update({rank: (world.name, time.monotonic()) for world in worlds for rank in world.ranks})
        self.launcher.start(worlds)

    def _stop_world(self, ranks: Sequence[RankId]) -> None:
        """A world has left in order: its processes end by themselves, and that is no death."""
        gone = self._forget(ranks)
        for address in gone:
            self._endpoint.send(address, [pickle.dumps(Instructions([], {}, stop=True))])
            self._left.append((time.monotonic() + STOP_SECONDS, address))
        self._say_gone(gone)

    def _forget(self, ranks: Sequence[RankId]) -> list[str]:
        """Strike ranks off; returns the addresses of those that had joined."""
        gone = []
        for other, actions in list(self._waiting.items()):
            # What waits for a rank that will never join would keep all behind it waiting; it is decided anew.
            self._waiting[other] = [each for each in actions if not (isinstance(each, m.Send) and each.to in ranks)]
        for rank in ranks:
            self._waiting.pop(rank, None)
            self._missing.pop(rank, None)
            self._times_of_dead.append((rank, self._times.pop(rank, Times())))
            address = self._addresses.pop(rank, None)
            if address is not None:
                gone.append(address)
        return gone

    def _say_gone(self, gone: Sequence[str]) -> None:
        for address in self._addresses.values():
            self._endpoint.send(address, [pickle.dumps(Instructions([], {}, gone=tuple(gone)))])
        for rank in list(self._waiting):
            self._instruct(rank, [])

    def _scale(self) -> None:
        """Start and end replicas where the numbers that were measured ask for it."""
        now = time.monotonic()
        while self._left and self._left[0][0] < now:
            self._endpoint.forget(self._left.pop(0)[1])
        for change in self._scaling.decide(now, self._times, self._addresses.__contains__):
            self.changes.append(f"after {time.time() - self._began:.1f} s: {change.reason}")
            if change.after == change.before:
                continue
            self._replicas[change.stage] = change.after
            if self._journal is not None:
                name = self.plan.stages[change.stage].name
                self._journal.append(kind="scale", stage=name, replicas=change.after, reason=change.reason)
            self._carry_out(self._coordinator.scale(change.stage, change.after))

    def _give_up(self, action: m.GaveUp) -> None:
        """A branch has failed: stop its ranks and go on without them."""
        self.failures[action.stage] = self._error_of(action.cause)
        gone = []
        for rank in [rank for rank in self._missing if rank.stage == action.stage]:
            del self._missing[rank]
        for rank in [rank for rank in self._addresses if rank.stage == action.stage]:
            address = self._addresses.pop(rank)
            self._endpoint.send(address, [pickle.dumps(Instructions([], {}, stop=True))])
            gone.append(address)
        for address in self._addresses.values():
            self._endpoint.send(address, [pickle.dumps(Instructions([], {}, gone=tuple(gone)))])

    def _instruct(self, rank: RankId, actions: list[Action]) -> None:
        """Send actions in their order; they wait while the rank, or one that it is to send to, has not joined."""
        if rank.stage in self.failures:
            return
        actions = [kept for action in self._waiting.pop(rank, []) + actions if (kept := self._unless_gone(action))]
        ready = len(actions)
        if rank not in self._addresses:
            ready = 0
        for number, action in enumerate(actions):
            if isinstance(action, m.Send) and action.to not in self._addresses:
                ready = min(ready, number)
                break
        if ready < len(actions):
            self._waiting[rank] = actions[ready:]
        if ready:
            new = {a.to for a in actions[:ready] if isinstance(a, m.Send)} - self._told[rank]
            self._told[rank] |= new
            addresses = {other: self._addresses[other] for other in new}
            self._endpoint.send(self._addresses[rank], [pickle.dumps(Instructions(actions[:ready], addresses))])

    def _unless_gone(self, action: Action) -> Action | None:
        """What was to go to a branch that has failed since is thrown away, by a sender that was to keep it no longer."""
        if isinstance(action, m.Send) and action.to.stage in self.failures:
            return m.Discard(action.rank, action.id) if action.last else None
        return action

    @property
    def got_on(self) -> bool:
        """Whether something of a stream was acknowledged."""
        return self._feed is not None and self._feed.got_on

    @property
    def may_begin_again(self) -> bool:
        """Whether the run failed with the death of a rank that could not be started again alone."""
        return isinstance(self._outcome, m.Fail) and self._outcome.again

    def _error_of(self, fail: m.Fail) -> BaseException:
        if fail.cause is Cause.USER:
            assert fail.error is not None
            return failure.restore(pickle.loads(fail.error))
        return _ERRORS[fail.cause](fail.message)

    # ── ending ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _tell_stop(self) -> None:
        for address in self._addresses.values():
            self._endpoint.send(address, [pickle.dumps(Instructions([], {}, stop=True))])

    def _stop_ranks(self) -> None:
        self._tell_stop()
        self.launcher.stop(STOP_SECONDS)
        self._join_hosted()

    def _join_hosted(self) -> None:
        for member, _ in self._hosted:
            member.stop()
        for _, thread in self._hosted:
            thread.join(STOP_SECONDS)

    # ── telling ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _show(self) -> None:
        now = time.monotonic()
        if self._observe is not None and now - self._observed > 0.2:
            self._observed = now
            self._observe(self.report())

    def _most_replicas(self, stage: PlannedStage) -> int | None:
        """How many replicas of a stage could have something to do."""
        if stage.hosted:
            return 1
        return -(-len(self._splits) // stage.ranks_of_world) if stage.kind == "read" else None

    def report(self) -> Report:
        """What was measured so far."""
        ended = self._ended or time.time()
        if not hasattr(self, "_coordinator"):
            return Report(self.run_id, ended - self._began, epochs=self.plan.epochs)
        ledger = self._coordinator.ledger
        stages: list[StageReport] = []
        for stage in self.plan.stages:
            times = [(rank.index, self._times[rank]) for rank in list(self._times) if rank.stage == stage.index]
            times += [(rank.index, dead) for rank, dead in self._times_of_dead if rank.stage == stage.index]
            entries = [entry for (index, _), entry in list(ledger.entries.items()) if index == stage.index]
            there = self._replicas_of(stage) * stage.ranks_of_world if stage.elastic else stage.size
            stages.append(summarize_stage(stage.name, stage.kind, there, times, entries))
            stages[-1].replicas, stages[-1].hosted = there // stage.ranks_of_world or 1, stage.hosted
            stages[-1].most_replicas = self._most_replicas(stage)
        ends = [s.index for s in self.plan.stages if not self._coordinator.children[s.index]]
        firsts = [t.first_batch for r, t in list(self._times.items()) if r.stage in ends and t.first_batch]
        edges = self._coordinator.edges
        expected = sum(edge.epochs for edge in edges if not edge.failed)
        balanced = sum(self._balanced[edge.rules.index] for edge in edges if not edge.failed)
        failures = [
            f"{self.plan.stages[stage].name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            for stage, error in list(self.failures.items())
        ]
        limit = find_limit(stages, [stage.parent for stage in self.plan.stages], self.launcher.cores)
        elastic = self.plan.stages[limit.stage].elastic if limit.stage is not None else None
        advice = advise(limit.advice, elastic, stages[limit.stage or 0].replicas)
        return Report(
            self.run_id, ended - self._began, min(firsts) - self._began if firsts else None, self.plan.epochs,
            self._rows_read(),
            balanced == expected, stages, limit.said, advice,
            list(self._restarts), failures, "" if limit.stage is None else stages[limit.stage].name,
            changes=list(self.changes), lag={} if self._feed is None else self._feed.lag(),
            oldest=None if self._feed is None else self._feed.oldest(), recent=self._recent.rate,
        )  # fmt: skip


def _died(death: Death) -> m.Died:
    return m.Died(death.rank, death.reason, death.cause)
