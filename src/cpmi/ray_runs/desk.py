"""The desk: what the actors and the driver of a run tell each other, and what has to outlive an actor."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from cpmi.errors import CpmiError
from cpmi.protocols import Sampled
from cpmi.ray_runs.cluster import answer

Rollouts = tuple[str, str, int, Sampled]


class Desk:
    """What the actors and the driver tell each other; in a process of its own, called by one at a time."""

    def __init__(self) -> None:
        self._started = 0
        self._description: dict[str, Any] | None = None
        self._begun = False
        self._stopped: str | None = None
        self._attempts: dict[str, int] = {}
        self._kept: dict[str, list[Rollouts]] = {}
        self._new: list[Rollouts] = []

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

    def take(self, ids: Sequence[str]) -> tuple[int, list[Rollouts]]:
        """An actor begins with these trajectories: how many did before, and their finished rollouts."""
        before = self._attempts.get(ids[0], 0)
        self._attempts[ids[0]] = before + 1
        return before, [rollouts for name in ids for rollouts in self._kept.get(name, ())]

    def put(self, rollouts: Rollouts) -> str | None:
        """Keep finished rollouts; the answer is why all is over, if it is."""
        self._kept.setdefault(rollouts[1], []).append(rollouts)
        self._new.append(rollouts)
        return self._stopped

    # by the driver

    def begin(self, kept: Iterable[Rollouts]) -> None:
        """Let the actors begin, with what earlier attempts have kept."""
        for rollouts in kept:
            self._kept.setdefault(rollouts[1], []).append(rollouts)
        self._begun = True

    def news(self, finished: Collection[str] = ()) -> tuple[int, dict[str, Any] | None, list[Rollouts]]:
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


class KeptAtDesk:
    """A ``RolloutStore`` of an actor: what it keeps is with the driver at once."""

    def __init__(self, desk: Any) -> None:
        self._desk = desk
        self._known: dict[tuple[str, str, int], Sampled] = {}

    def fill(self, kept: Iterable[Rollouts]) -> None:
        self._known = {rollouts[:3]: rollouts[3] for rollouts in kept}

    def get(self, role: str, trajectory_id: str, prefix: int) -> Sampled | None:
        return self._known.get((role, trajectory_id, prefix))

    def put(self, role: str, trajectory_id: str, prefix: int, sampled: Sampled) -> None:
        stopped = answer(self._desk.put.remote((role, trajectory_id, prefix, sampled)))
        if stopped is not None:
            raise CpmiError(stopped)
