"""The driver's side of a run on Ray: starts the actors, and takes what they have finished."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cpmi.errors import CpmiError, InputError, require
from cpmi.protocols import Sampled
from cpmi.ray_runs.cluster import answer, capacity, connected, listed, plain, plainly, wanted_by, why_silent
from cpmi.ray_runs.desk import Desk
from cpmi.ray_runs.plan import Plan
from cpmi.ray_runs.rows import FAILED, raise_row
from cpmi.ray_runs.settings import RaySettings
from cpmi.ray_runs.stream import stages
from cpmi.ray_runs.worker import Opener, Setup
from cpmi.records import StepRewards, from_json

logger = logging.getLogger("cpmi")

WAITING_SECONDS = 30.0
"""How long nothing happens before the log says what is waited for, and how long until it says so again."""

_LOOK_SECONDS = 0.5
_STOP_SECONDS = 30.0  # for Ray Data to end; without its cluster it may not

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
            closing.enter_context(connected(self._settings.address))
            with plainly():
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
        setup = Setup(self._open, ray.put(self._payload), self._desk, str(Path.cwd()))
        closing.callback(setattr, self, "_desk", None)
        dataset = stages(self._plan, setup, options, least, most, self._stopping)
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
        self._wanted = wanted_by(options)
        room = self._room()
        if not room and not self._settings.wait_seconds:
            raise InputError(
                f"no node of the Ray cluster can hold an actor, which wants {listed(self._wanted)}; {capacity()}. Ask "
                "for less with --ray-option; if the cluster brings such nodes when they are asked for, --ray-wait "
                "says how long to wait for them"
            )
        each = options["num_gpus"]
        least, most = self._settings.actors or (max(1, int(gpus // each)) if each else 1,) * 2
        least, most = min(least, max(1, self._plan.batches)), min(most, max(1, self._plan.batches))
        if room < least:
            logger.warning("Ray: %d actors are asked for, the cluster can hold %d now; %s", least, room, capacity())
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
            self._started, description, _ = answer(self._desk.news.remote())
            if description is not None:
                return dict(description)
            now = time.monotonic()
            if not self._started and now - warned >= WAITING_SECONDS:
                warned = now
                logger.warning("Ray: waiting for an actor, which wants %s; %s", listed(self._wanted), capacity())
            if not self._started and 0 < self._settings.wait_seconds < now - begun:
                raise CpmiError(
                    f"no actor came up within {self._settings.wait_seconds:g} s; each wants {listed(self._wanted)}; "
                    f"{capacity()}"
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
        answer(self._desk.begin.remote([(*key, sampled) for key, sampled in kept]))

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
            for rollouts in answer(self._desk.news.remote(finished))[2]:
                if self._on_rollouts is not None:
                    self._on_rollouts(*rollouts)
        if item is None:
            self._say_if_nothing_can_come()
            return None
        self._since = time.monotonic()
        if isinstance(item, Exception):
            raise plain(item)
        if item is _END:
            return _END
        kind, data = item
        if kind == FAILED:
            raise_row(data)
        return data

    def _say_if_nothing_can_come(self) -> None:
        """The nodes may be gone, and Ray waits for others as long as it takes."""
        if self._started and time.monotonic() - self._since >= WAITING_SECONDS:
            self._since = time.monotonic()
            if problem := why_silent(self._head):
                logger.warning(
                    "Ray: the head of the cluster, %s, does not answer (%s); unless it comes back soon, Ray ends this "
                    "process. What is labeled so far is kept: the same command goes on there",
                    self._head,
                    problem,
                )
            elif not self._room():
                wanted = listed(self._wanted)
                logger.warning("Ray: no node can hold an actor any more, which wants %s; %s", wanted, capacity())
