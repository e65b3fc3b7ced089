"""Batches of a run computed by actors on a Ray cluster; whoever started the run stays the only one who writes it.

    the file -> slices -> read tasks -> batches -> actors -> finished batches -> the driver -> part file
                driver    workers                  workers                       here

Ray Data streams them: a row between its stages is one batch as JSON lines, in a block of its own, so that what a batch
costs is lost with an actor and nothing else. Beside it stands the desk, a small actor on the driver's node. Actors tell
it what they have opened and bring it each finished rollout at once; they begin when the driver has compared what they
have opened with the run's manifest.

Errors that are meant for the user travel as rows. An exception in an actor is a bug, and a dead actor is Ray's to
restart.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import queue
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from cpmi.errors import CpmiError, InputError, require, unknown_name
from cpmi.labelers.rollouts import RolloutStore
from cpmi.protocols import Sampled
from cpmi.records import (
    JSON,
    StepRewards,
    Trajectory,
    dump_line,
    first_line,
    from_json,
    open_bytes,
    parse_line,
    read_trajectories,
)
from cpmi.runs import as_json, check_answers
from cpmi.storage import is_remote

if TYPE_CHECKING:
    import pyarrow as pa

    from cpmi.protocols import StepRewarder

logger = logging.getLogger("cpmi")

OPTIONS = ("num_cpus", "num_gpus", "memory", "resources", "accelerator_type", "label_selector", "runtime_env")

SLICE_BATCHES = 64
"""Batches in a slice of the input: what a read task reads, and reads again when its node is lost."""

WAITING_SECONDS = 30.0
"""How long nothing happens before the log says what is waited for, and how long until it says so again."""

_MEMORY = 512 * 2**20  # bytes of batches under way, read or finished, all over the cluster
_CONNECT_SECONDS = 5.0
_LOOK_SECONDS = 0.5
_STOP_SECONDS = 30.0  # for Ray Data to end; without its cluster it may not
_ATTEMPTS = 4  # at a batch: one that kills its actor every time would be tried for ever


@dataclass(frozen=True, slots=True)
class RaySettings:
    """Where and on what a run's actors live. It changes no reward, so it is not in the manifest.

    Attributes:
        address: ``local``: a cluster of this machine alone, started for the run and ended with it; ``auto``: the one
            that this machine belongs to; else its ``HOST:PORT``.
        actors: the least and the most of them; each opens an engine of its own. None: one for each GPU of the cluster
            (or for each ``num_gpus`` of them); one where there is none.
        options: of each actor, by Ray's names (``OPTIONS``). ``num_cpus`` is 1 by default, ``num_gpus`` 1 where the
            cluster has GPUs and the engine computes by itself, else 0.
        wait_seconds: for a cluster that grows when it is asked to: how long to wait for a node that can hold an actor.
            0: what no node of the cluster can hold now is refused.

    Raises:
        InputError: an address, a number or an option that cannot be.
    """

    address: str = "local"
    actors: tuple[int, int] | None = None
    options: Mapping[str, JSON] = field(default_factory=dict)
    wait_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.address.startswith("ray://"):
            raise InputError(
                f"{self.address}: Ray Data cannot be driven through a Ray client; run this command on a node of the "
                "cluster with --ray auto (`ray job submit` does that), or name its HOST:PORT"
            )
        if self.actors is not None and not 1 <= self.actors[0] <= self.actors[1]:
            raise InputError(f"actors must be N, or MIN:MAX with 1 <= MIN <= MAX, not {self.actors}")
        if self.wait_seconds < 0:
            raise InputError("the time to wait must be 0 or more")
        for name in self.options:
            if name not in OPTIONS:
                raise unknown_name("Ray option", name, OPTIONS)
        for name in ("num_cpus", "num_gpus", "memory"):
            amount = self.options.get(name, 0)
            if isinstance(amount, bool) or not isinstance(amount, int | float) or amount < 0:
                raise InputError(f"Ray option {name} must be a number of 0 or more, not {amount!r}")
        resources = self.options.get("resources", {})
        if not isinstance(resources, dict) or not all(isinstance(n, int | float) for n in resources.values()):
            raise InputError(f'Ray option resources must be an object of numbers like {{"TPU": 1}}, not {resources!r}')

    @staticmethod
    def parse_actors(text: str | None) -> tuple[int, int] | None:
        """From ``N`` or ``MIN:MAX``.

        Raises:
            InputError: anything else.
        """
        if text is None:
            return None
        least, colon, most = text.partition(":")
        if not (least.isdecimal() and (most.isdecimal() or not colon)):
            raise InputError(f"actors {text!r}: write N, or MIN:MAX")
        return int(least), int(most or least)


# --- the input in slices --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of the input file, as a read task gets it.

    Attributes:
        start: the byte where its first line begins; 0 for a file that is only to be read from its beginning.
        wanted: a bit for each of its rows.
        digests: of each batch of rows that are wanted, so that a stale copy of the file on another node is found out.
    """

    path: Path
    start: int
    wanted: bytes
    batch_size: int
    digests: tuple[bytes, ...]

    def batches(self) -> Iterator[bytes]:
        """Its batches, as JSON lines.

        Raises:
            InputError: no such file on this machine, or another one.
        """
        if not self.path.exists():
            raise InputError(
                f"{self.path}: no such file on the node {socket.gethostname()}; put the input where every node of the "
                "Ray cluster reads it under the same path"
            )
        bits = np.unpackbits(np.frombuffer(self.wanted, dtype=np.uint8)).tolist()
        rows = (t for (_, t), bit in zip(_rows(self.path, self.start), bits, strict=False) if bit)
        for digest in self.digests:
            batch = _encoded(islice(rows, self.batch_size))
            if _digest(batch) != digest:
                raise InputError(
                    f"{self.path}: the node {socket.gethostname()} has another file of this name; give every node of "
                    "the Ray cluster the same one"
                )
            yield batch


@dataclass(slots=True)
class Plan:
    """What a run is to do.

    Attributes:
        pieces: with whatever is wanted of the file.
        batches, trajectories: how many there are in them.
        before, failed_before: how many of the shard's trajectories are there already, and failed.
    """

    pieces: list[Slice] = field(default_factory=list)
    batches: int = 0
    trajectories: int = 0
    before: int = 0
    failed_before: int = 0

    @classmethod
    def of(
        cls,
        path: Path,
        batch_size: int,
        *,
        holds: Callable[[str], bool],
        limit: int | None,
        labeled: Collection[str] = (),
        failed: Collection[str] = (),
    ) -> Plan:
        """Cut the file into slices.

        Args:
            holds: whether an id is in the shard.
            limit: the rows after so many are not wanted.
            labeled: ids that are there already.
            failed: of these, the ones that ended in an error.
        """
        plan = cls()
        path = path if is_remote(path) else path.resolve()
        cut_at = None if path.suffix in (".gz", ".parquet") else SLICE_BATCHES * batch_size
        cut = _Cut(path, batch_size)
        for start, trajectory in islice(_rows(path), limit):
            held = holds(trajectory.id)
            done = held and trajectory.id in labeled
            plan.before += done
            plan.failed_before += done and trajectory.id in failed
            cut.add(start, trajectory, wanted=held and not done)
            if len(cut) == cut_at:
                plan._take(cut)
                cut = _Cut(path, batch_size)
        plan._take(cut)
        return plan

    def _take(self, cut: _Cut) -> None:
        if len(cut):
            piece = cut.finished()
            self.pieces.append(piece)
            self.batches += len(piece.digests)
            self.trajectories += len(cut)


class _Cut:
    """A slice in the making; rows before the first one wanted are left out where the file can be read from there."""

    def __init__(self, path: Path, batch_size: int) -> None:
        self._path, self._batch_size = path, batch_size
        self._start = 0
        self._wanted: list[bool] = []
        self._count = 0
        self._batch: list[Trajectory] = []
        self._digests: list[bytes] = []

    def __len__(self) -> int:
        return self._count

    def add(self, start: int | None, trajectory: Trajectory, *, wanted: bool) -> None:
        if start is not None and not self._count:
            if not wanted:
                return
            self._start = start
        self._wanted.append(wanted)
        if wanted:
            self._count += 1
            self._batch.append(trajectory)
            if len(self._batch) == self._batch_size:
                self._close_batch()

    def _close_batch(self) -> None:
        self._digests.append(_digest(_encoded(self._batch)))
        self._batch.clear()

    def finished(self) -> Slice:
        if self._batch:
            self._close_batch()
        wanted = np.packbits(np.array(self._wanted, dtype=np.bool_)).tobytes()
        return Slice(self._path, self._start, wanted, self._batch_size, tuple(self._digests))


def _rows(path: Path, start: int = 0) -> Iterator[tuple[int | None, Trajectory]]:
    """Trajectories and the byte where each begins; None in files that cannot be read from there."""
    if path.suffix in (".gz", ".parquet"):
        yield from ((None, trajectory) for trajectory in read_trajectories(path))
        return
    with open_bytes(path) as lines:
        lines.seek(start)
        for line in lines:
            if line.strip():
                yield start, from_json(Trajectory, parse_line(line, str(path)))
            start += len(line)


def _encoded(records: Iterable[Trajectory | StepRewards]) -> bytes:
    return "".join(map(dump_line, records)).encode()


def _digest(batch: bytes) -> bytes:
    return hashlib.sha256(batch).digest()[:8]


# --- rows between the stages of Ray Data ----------------------------------------------------------------------------

_BATCH, _FAILED = "batch", "failed"


def _row(kind: str, data: bytes) -> pa.Table:
    import pyarrow as pa

    return pa.table({"kind": [kind], "data": pa.array([data], pa.large_binary())})


def _error_row(error: CpmiError) -> pa.Table:
    return _row(_FAILED, json.dumps([isinstance(error, InputError), str(error)]).encode())


def _raise_row(data: bytes) -> None:
    is_input, text = json.loads(data)
    raise (InputError if is_input else CpmiError)(text)


def _read(piece: Slice) -> Iterator[pa.Table]:
    """What a read task does."""
    try:
        for batch in piece.batches():
            yield _row(_BATCH, batch)
    except CpmiError as error:
        yield _error_row(error)


def _reader(piece: Slice) -> Callable[[], Iterator[pa.Table]]:
    def read() -> Iterator[pa.Table]:  # Ray asks functions for their name
        return _read(piece)

    return read


def _nothing() -> Iterator[pa.Table]:
    yield _row(_BATCH, b"")


# --- on the workers -------------------------------------------------------------------------------------------------

Opener = Callable[[Any, RolloutStore, ExitStack], "StepRewarder"]
"""Opens the method and its engine, from an object of the driver's (a reference to it travels); picklable."""


@dataclass(frozen=True, eq=False, slots=True)
class _Setup:
    """What an actor is made of: small, picklable."""

    open: Opener
    payload: Any  # a reference
    desk: Any  # a handle
    folder: str


class Desk:
    """What the actors and the driver tell each other; in a process of its own, called by one at a time."""

    def __init__(self) -> None:
        self._started = 0
        self._description: dict[str, Any] | None = None
        self._begun = False
        self._stopped: str | None = None
        self._attempts: dict[str, int] = {}
        self._kept: dict[str, list[_Rollouts]] = {}
        self._new: list[_Rollouts] = []

    # by actors

    def start(self) -> None:
        """An actor's process is there; it goes on to open its engine."""
        self._started += 1

    def describe(self, description: dict[str, Any], node: str) -> str | None:
        """What an actor has opened; the answer is what is wrong with it."""
        if self._description is None:
            self._description = description
        first = self._description
        names = [name for name in sorted({*first, *description}) if first.get(name) != description.get(name)]
        if not names:
            return None
        listed = "; ".join(f"{name}: {first.get(name)!r} there, {description.get(name)!r} here" for name in names)
        return f"the actor on the node {node} has opened something else than the first one ({listed})"

    def may_begin(self) -> tuple[bool, str | None]:
        """Whether the driver has seen what there is, and why all is over, if it is."""
        return self._begun, self._stopped

    def take(self, ids: Sequence[str]) -> tuple[int, list[_Rollouts]]:
        """An actor begins with these trajectories: how many did before, and their finished rollouts."""
        before = self._attempts.get(ids[0], 0)
        self._attempts[ids[0]] = before + 1
        return before, [rollouts for name in ids for rollouts in self._kept.get(name, ())]

    def put(self, rollouts: _Rollouts) -> str | None:
        """Keep finished rollouts; the answer is why all is over, if it is."""
        self._kept.setdefault(rollouts[1], []).append(rollouts)
        self._new.append(rollouts)
        return self._stopped

    # by the driver

    def begin(self, kept: Iterable[_Rollouts]) -> None:
        """Let the actors begin, with what earlier attempts have kept."""
        for rollouts in kept:
            self._kept.setdefault(rollouts[1], []).append(rollouts)
        self._begun = True

    def news(self, finished: Collection[str] = ()) -> tuple[int, dict[str, Any] | None, list[_Rollouts]]:
        """How many actors have started so far, what the first one opened, and rollouts since the last time.

        Args:
            finished: trajectories that nobody will take again.
        """
        for name in finished:
            self._kept.pop(name, None)
            self._attempts.pop(name, None)
        new, self._new = self._new, []
        return self._started, self._description, new

    def stop(self, reason: str) -> None:
        self._stopped = reason


_Rollouts = tuple[str, str, int, Sampled]


class _KeptAtDesk:
    """A ``RolloutStore`` of an actor: what it keeps is with the driver at once."""

    def __init__(self, desk: Any) -> None:
        self._desk = desk
        self._known: dict[tuple[str, str, int], Sampled] = {}

    def fill(self, kept: Iterable[_Rollouts]) -> None:
        self._known = {rollouts[:3]: rollouts[3] for rollouts in kept}

    def get(self, role: str, trajectory_id: str, prefix: int) -> Sampled | None:
        return self._known.get((role, trajectory_id, prefix))

    def put(self, role: str, trajectory_id: str, prefix: int, sampled: Sampled) -> None:
        stopped = _get(self._desk.put.remote((role, trajectory_id, prefix, sampled)))
        if stopped is not None:
            raise CpmiError(stopped)


class Worker:
    """What Ray Data makes an actor of: one engine, open as long as it lives."""

    def __init__(self, setup: _Setup) -> None:
        self._desk = setup.desk
        self._store = _KeptAtDesk(setup.desk)
        self._opened = ExitStack()
        self._begun = False
        self._failure: CpmiError | None = None
        try:
            self._rewarder = self._open(setup)
        except CpmiError as error:
            self._failure = error

    def _open(self, setup: _Setup) -> StepRewarder:
        if Path(setup.folder).is_dir():
            os.chdir(setup.folder)  # so that a relative path is the same here and there
        _get(self._desk.start.remote())
        rewarder = setup.open(_get(setup.payload), self._store, self._opened)
        description = as_json(rewarder.describe())
        problem = _get(self._desk.describe.remote(description, socket.gethostname()))
        if problem is not None:
            raise CpmiError(problem)
        return rewarder

    def __call__(self, table: pa.Table) -> pa.Table:
        """A finished batch for each batch; what went wrong before it passes through."""
        kind, data = table["kind"][0].as_py(), table["data"][0].as_py()
        if kind == _FAILED:
            return table
        try:
            if self._failure is not None:
                return _error_row(self._failure)
            self._wait()
            batch = [from_json(Trajectory, json.loads(line)) for line in data.splitlines()]
            return _row(_BATCH, _encoded(self._rewards(batch) if batch else ()))
        except CpmiError as error:
            return _error_row(error)

    def _wait(self) -> None:
        while not self._begun:
            self._begun, stopped = _get(self._desk.may_begin.remote())
            if stopped is not None:
                raise CpmiError(stopped)
            if not self._begun:
                time.sleep(0.1)

    def _rewards(self, batch: list[Trajectory]) -> list[StepRewards]:
        before, kept = _get(self._desk.take.remote([trajectory.id for trajectory in batch]))
        if before >= _ATTEMPTS:
            raise CpmiError(
                f"the batch that begins with the trajectory {batch[0].id!r} has ended {before} actors; Ray's logs say "
                "of what (often memory: ask for more of it, or for a smaller --batch-size)"
            )
        self._store.fill(kept)
        records = self._rewarder.rewards(batch)
        check_answers(self._rewarder, batch, records)
        return records


def _get(reference: Any) -> Any:
    """The answer of another process.

    Raises:
        CpmiError: it is gone.
    """
    import ray

    with _plainly():
        return ray.get(reference)


# --- the driver -----------------------------------------------------------------------------------------------------

_END = object()


class RayRun:
    """Actors that compute what a plan says, and their results one batch after the other; a context manager."""

    def __init__(self, settings: RaySettings, plan: Plan, open_: Opener, payload: Any, *, computes: bool) -> None:
        """Nothing happens yet.

        Args:
            open_: called in each actor, with the payload.
            computes: the engine would use a GPU if it had one.

        Raises:
            InputError: Ray is not installed.
        """
        require("ray.data", "ray")
        self._settings, self._plan, self._open, self._payload = settings, plan, open_, payload
        self._computes = computes
        self._stopping = threading.Event()
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=8)
        self._closing = ExitStack()
        self._on_rollouts: Callable[[str, str, int, Sampled], None] | None = None
        self._desk: Any = None
        self._wanted: dict[str, float] = {}
        self._head = ""
        self._started = 0
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        """Join the cluster and have the actors open their engines.

        Raises:
            InputError: no such cluster, or none of its nodes can hold an actor.
        """
        with ExitStack() as closing:
            closing.enter_context(_connected(self._settings.address))
            with _plainly():
                self._start(closing)
            self._closing = closing.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray.exceptions

        self._stopping.set()
        if error is not None:
            with contextlib.suppress(ray.exceptions.RayError):  # what ended the run may have ended the desk
                self._desk.stop.remote("the run has ended")  # actors end at their next rollout or batch
        self._closing.close()

    def _start(self, closing: ExitStack) -> None:
        import ray

        self._head = ray.get_runtime_context().gcs_address
        options, (least, most) = self._resolved()
        pinned = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._desk = ray.remote(num_cpus=0, scheduling_strategy=pinned)(Desk).remote()
        setup = _Setup(self._open, ray.put(self._payload), self._desk, str(Path.cwd()))
        closing.callback(setattr, self, "_desk", None)
        dataset = _dataset(self._plan, setup, options, least, most, self._stopping)
        feeder = threading.Thread(target=self._feed, args=(dataset,), name="cpmi-ray", daemon=True)
        # It has to end first: Ray Data's own thread would join the cluster again, and count on actors of the old one.
        closing.callback(feeder.join, timeout=_STOP_SECONDS)
        closing.callback(self._stopping.set)
        feeder.start()

    def _feed(self, dataset: Any) -> None:
        """Take what Ray Data gives; in a thread, since it waits without end, and the driver has other things to do."""
        try:
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for row in zip(table["kind"].to_pylist(), table["data"].to_pylist(), strict=True):
                    self._hand_over(row)
                if self._stopping.is_set():
                    return
            self._hand_over(_END)
        except Exception as error:  # noqa: BLE001 - raised again by the driver's thread
            self._hand_over(error)

    def _hand_over(self, item: Any) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=_LOOK_SECONDS)
                return

    def _resolved(self) -> tuple[dict[str, Any], tuple[int, int]]:
        """The actors' options and how many of them there are to be.

        Raises:
            InputError: no node can hold one.
        """
        import ray

        gpus = ray.cluster_resources().get("GPU", 0.0)
        options: dict[str, Any] = {"num_cpus": 1, **self._settings.options}
        options["num_cpus"] = max(0.001, options["num_cpus"])  # with none, actors and read tasks would become one stage
        options.setdefault("num_gpus", 1 if gpus and self._computes else 0)
        self._wanted = _amounts(options)
        room = self._room()
        if not room and not self._settings.wait_seconds:
            raise InputError(
                f"no node of the Ray cluster can hold an actor, which wants {_listed(self._wanted)}; {_nodes()}. Ask "
                "for less with --ray-option; if the cluster brings such nodes when they are asked for, --ray-wait "
                "says how long to wait for them"
            )
        each = options["num_gpus"]
        least, most = self._settings.actors or (max(1, int(gpus // each)) if each else 1,) * 2
        least, most = min(least, max(1, self._plan.batches)), min(most, max(1, self._plan.batches))
        if room < least:
            logger.warning("Ray: %d actors are asked for, the cluster can hold %d now; %s", least, room, _nodes())
        return options, (least, most)

    def _room(self) -> int:
        """How many actors the cluster's nodes could hold if nothing else were on them."""
        import ray

        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        counts = ([there.get(name, 0.0) / amount for name, amount in self._wanted.items()] for there in alive)
        return sum(int(min(shares, default=1e6) + 1e-9) for shares in counts)

    # --- what comes -------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What the first actor opened; waits until it has.

        Raises:
            CpmiError: it cannot be opened, or no actor came up within ``wait_seconds``.
        """
        begun = warned = time.monotonic()
        while True:
            self._next(())  # nothing but an error can come before begin()
            self._started, description, _ = _get(self._desk.news.remote())
            if description is not None:
                return dict(description)
            now = time.monotonic()
            if not self._started and now - warned >= WAITING_SECONDS:
                warned = now
                logger.warning("Ray: waiting for an actor, which wants %s; %s", _listed(self._wanted), _nodes())
            if not self._started and 0 < self._settings.wait_seconds < now - begun:
                raise CpmiError(
                    f"no actor came up within {self._settings.wait_seconds:g} s; each wants {_listed(self._wanted)}; "
                    f"{_nodes()}"
                )

    def begin(
        self,
        kept: Iterable[tuple[tuple[str, str, int], Sampled]] = (),
        on_rollouts: Callable[[str, str, int, Sampled], None] | None = None,
    ) -> None:
        """Let the actors begin.

        Args:
            kept: finished rollouts of earlier attempts, by role, trajectory and prefix.
            on_rollouts: called from ``batches`` with rollouts as they are finished; None: there are none.
        """
        self._on_rollouts = on_rollouts
        _get(self._desk.begin.remote([(*key, sampled) for key, sampled in kept]))

    def batches(self) -> Iterator[list[StepRewards]]:
        """Finished batches, in any order, each trajectory once.

        Raises:
            InputError: a worker cannot read the input.
            CpmiError: the run cannot go on; what came before is good.
        """
        seen = 0
        finished: list[str] = []
        self._since = time.monotonic()
        while True:
            item = self._next(finished)
            finished = []
            if item is None:
                continue
            if item is _END:
                break
            records = [from_json(StepRewards, json.loads(line)) for line in item.splitlines()]
            seen += len(records)
            finished = [record.trajectory_id for record in records]
            if records:
                yield records
        if seen != self._plan.trajectories:
            raise CpmiError(f"Ray gave {seen} of {self._plan.trajectories} trajectories; run the same command again")

    def _next(self, finished: Collection[str]) -> Any:
        """The next finished batch, ``_END``, or None if there was none in half a second; rollouts go their way."""
        try:
            item = self._queue.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            item = None
        if finished or self._on_rollouts is not None:
            for rollouts in _get(self._desk.news.remote(finished))[2]:
                if self._on_rollouts is not None:
                    self._on_rollouts(*rollouts)
        if item is None:
            self._say_if_nothing_can_come()
            return None
        self._since = time.monotonic()
        if isinstance(item, Exception):
            raise _plain(item)
        if item is _END:
            return _END
        kind, data = item
        if kind == _FAILED:
            _raise_row(data)
        return data

    def _say_if_nothing_can_come(self) -> None:
        """The nodes may be gone, and Ray waits for others as long as it takes."""
        if self._started and time.monotonic() - self._since >= WAITING_SECONDS:
            self._since = time.monotonic()
            if problem := _why_silent(self._head):
                logger.warning(
                    "Ray: the head of the cluster, %s, does not answer (%s); unless it comes back soon, Ray ends this "
                    "process. What is labeled so far is kept: the same command goes on there",
                    self._head,
                    problem,
                )
            elif not self._room():
                wanted = _listed(self._wanted)
                logger.warning("Ray: no node can hold an actor any more, which wants %s; %s", wanted, _nodes())


class _Stop:
    """Makes Ray Data's execution end when the event is set: a callback, and the class that Ray makes it of.

    Nothing that ``iter_batches`` gives does: while no batch comes, whoever waits for one cannot close it.
    """

    def __init__(self, stopping: threading.Event | None = None) -> None:
        self._stopping = stopping

    def __call__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self  # Ray copies its settings, and the event must stay the same one

    def __reduce__(self) -> tuple[type[_Stop], tuple[()]]:
        return _Stop, ()  # settings travel to the workers, where nobody asks for this one

    def before_execution_starts(self, executor: Any) -> None: ...

    def on_execution_step(self, executor: Any) -> None:
        del executor
        if self._stopping is not None and self._stopping.is_set():
            raise _StoppedError

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...


class _StoppedError(Exception):
    """Nobody wants what would come."""


def _dataset(
    plan: Plan, setup: _Setup, options: dict[str, Any], least: int, most: int, stopping: threading.Event
) -> Any:
    """The stages: read tasks that take no CPU from the actors, and the actors."""
    import ray.data
    from ray.data.datasource import ReadTask

    # Where nothing is left an actor opens its engine all the same: what it is goes into the manifest.
    functions: list[Callable[[], Iterator[pa.Table]]] = [_reader(piece) for piece in plan.pieces]
    functions = functions or [_nothing]

    class Pieces(ray.data.Datasource):  # type: ignore[misc]  # the base is untyped
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, *_: Any, **__: Any) -> list[Any]:
            unknown = ray.data.block.BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(function, unknown) for function in functions]

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.target_max_block_size = 1  # a row a block, and a block a task: no actor holds finished batches back
    context.max_consecutive_actor_init_deaths = _ATTEMPTS
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _Stop(stopping)]
    context.execution_options.resource_limits = ray.data.ExecutionResources(object_store_memory=_MEMORY)
    with ray.data.DataContext.current(context):
        rows = ray.data.read_datasource(
            Pieces(),
            override_num_blocks=len(functions),
            concurrency=min(2, len(functions)),
            num_cpus=0,  # the actors may have all that there are
        )
        return rows.map_batches(
            Worker,
            fn_constructor_args=(setup,),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most, max_tasks_in_flight_per_actor=2),
            **options,
        )


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """Join a cluster, or start one; a connection that is there already is used, and left as it is.

    Raises:
        InputError: there is no such cluster.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    _refuse_dead(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its core writes warnings into our progress line
    starting: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    # Ray replaces this handler, and would end the process without closing anything.
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # on what later versions will do with visible devices
            with _silenced():
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **starting)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"no Ray cluster at {address} ({first_line(error)})") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs each exception that we are to raise
    try:
        yield
    finally:
        ray.shutdown()


def _refuse_dead(address: str) -> None:
    """Where nobody answers Ray would try for minutes, and then end the process without a word.

    Raises:
        InputError: nobody answers.
    """
    named = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if problem := _why_silent(named):
        raise InputError(f"no Ray cluster at {named} ({problem})")


def _why_silent(address: str) -> str:
    """Why nobody answers at HOST:PORT; empty if somebody does, or if it is no such address."""
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdecimal() and int(port) < 2**16):
        return ""
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Nothing reaches standard error: Ray's core writes there that it is told to be quiet."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123 - a device
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Errors of Ray's are one line.

    Raises:
        CpmiError: what ``_plain`` makes of them.
    """
    import ray.exceptions

    try:
        yield
    except ray.exceptions.RayError as error:
        raise _plain(error) from error


def _plain(error: Exception) -> Exception:
    """One line for what befell the cluster; an exception in the code of an actor is a bug, and stays as it is."""
    import ray.exceptions

    if isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError):
        return CpmiError(f"Ray: {first_line(error)} What is labeled so far is kept: the same command goes on there")
    return error


def _amounts(options: Mapping[str, Any]) -> dict[str, float]:
    """What an actor takes, by the names of a node's resources."""
    amounts = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options.get("memory") or 0}
    amounts |= options.get("resources") or {}
    if kind := options.get("accelerator_type"):
        amounts[f"accelerator_type:{kind}"] = 0.001
    return {name: float(amount) for name, amount in amounts.items() if amount}


def _listed(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in amounts.items()) or "nothing"


def _nodes() -> str:
    """What the nodes have, in a few words."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    hidden = ("node:", "object_store_memory")
    shown = [_listed({n: a for n, a in sorted(there.items()) if not n.startswith(hidden)}) for there in alive]
    counted = [f"{shown.count(text)} x ({text})" for text in dict.fromkeys(shown)]
    return f"its nodes have {'; '.join(counted) or 'nothing'}"
