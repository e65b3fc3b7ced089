"""Monte Carlo labels: a step is worth what rollouts from it are worth.

``search="all"`` rolls out from every step (Math-Shepherd, arXiv 2312.08935). ``search="binary"`` looks for the first
step after which no rollout reaches the right answer by halving, as OmegaPRM does (arXiv 2406.06592): about log2(T)
prefixes in place of T, for labels that are 1 before that step and 0 from it on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cpmi.errors import InputError
from cpmi.grader import Grader
from cpmi.labelers.checks import why_not
from cpmi.labelers.rollouts import Prefix, PrefixValue, Roller, RolloutSettings, RolloutStore, counts, own_seconds
from cpmi.protocols import Sampler
from cpmi.records import Cost, StepRewards, Trajectory

Value = Literal["soft", "hard"]
Search = Literal["all", "binary"]


@dataclass(frozen=True, slots=True)
class MonteCarloSettings:
    """Everything that decides a Monte Carlo label but the model.

    Attributes:
        value: ``soft``: the share of rollouts that reach the right answer; ``hard``: 1 if any does, else 0.
        search: ``all`` prefixes, or the ``binary`` search for the first error, whose labels are hard.

    Raises:
        InputError: soft values by binary search.
    """

    rollouts: RolloutSettings = field(default_factory=RolloutSettings)
    value: Value = "soft"
    search: Search = "all"

    def __post_init__(self) -> None:
        if self.search == "binary" and self.value == "soft":
            raise InputError("binary search gives hard labels; use --value hard with --rollout-search binary")


class MonteCarlo:
    """The ``StepRewarder`` of Monte Carlo values."""

    name = "mc"

    def __init__(
        self,
        sampler: Sampler,
        settings: MonteCarloSettings = MonteCarloSettings(),
        *,
        grader: Grader | None = None,
        store: RolloutStore | None = None,
    ) -> None:
        """Label with rollouts of ``sampler``; ``store`` keeps them."""
        self._settings = settings
        self._roller = Roller(sampler, settings.rollouts, grader=grader or Grader(), store=store)

    def describe(self) -> dict[str, Any]:
        return {"settings": asdict(self._settings), "engine": self._roller.describe()}

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        """Reward every step by its value; a trajectory that cannot be rolled out comes back with its ``error``.

        ``details`` hold the counts behind the values, a list entry per prefix that was looked at (``values_note``).
        """
        start, before = time.perf_counter(), self._roller.engine_seconds
        able = [trajectory for trajectory in trajectories if why_not(trajectory) is None]
        found = self._everywhere(able) if self._settings.search == "all" else self._bisect(able)
        own = own_seconds(start, self._roller.engine_seconds - before, len(able))
        values_of = {trajectory.id: values for trajectory, values in zip(able, found, strict=True)}
        return [
            self._refused(trajectory, error)
            if (error := why_not(trajectory)) is not None
            else self._label(trajectory, values_of[trajectory.id], own)
            for trajectory in trajectories
        ]

    def _refused(self, trajectory: Trajectory, error: str) -> StepRewards:
        return StepRewards(trajectory.id, (), self.name, error=error)

    # --- which prefixes ---------------------------------------------------------------------------------------------

    def _everywhere(self, trajectories: Sequence[Trajectory]) -> list[dict[int, PrefixValue]]:
        """The value of every prefix, by its length; all trajectories at once."""
        prefixes = [Prefix(t, length) for t in trajectories for length in range(1, len(t.steps) + 1)]
        values = iter(self._roller.values(prefixes))
        return [{length: next(values) for length in range(1, len(t.steps) + 1)} for t in trajectories]

    def _bisect(self, trajectories: Sequence[Trajectory]) -> list[dict[int, PrefixValue]]:
        """The values of the prefixes that a binary search looks at; a round is one for each trajectory, all at once."""
        searches = [_Bisection(trajectory) for trajectory in trajectories]
        while asking := [(search, length) for search in searches if (length := search.ask()) is not None]:
            values = self._roller.values([Prefix(search.trajectory, length) for search, length in asking])
            for (search, length), value in zip(asking, values, strict=True):
                search.take(length, value)
        return [search.values for search in searches]

    # --- labels -----------------------------------------------------------------------------------------------------

    def _label(self, trajectory: Trajectory, values: dict[int, PrefixValue], own: Cost) -> StepRewards:
        cost = sum((value.cost for value in values.values()), own)
        failed = [f"prefix of {length}: {value.error}" for length, value in values.items() if value.error is not None]
        if failed:
            return StepRewards(trajectory.id, (), self.name, cost=cost, error=f"rollouts failed, {failed[0]}")
        steps = range(1, len(trajectory.steps) + 1)
        if self._settings.search == "binary":
            dead = min((length for length, value in values.items() if not value.right), default=len(steps) + 1)
            rewards = tuple(float(step < dead) for step in steps)
        else:
            rewards = tuple(self._worth(values[step]) for step in steps)
        return StepRewards(trajectory.id, rewards, self.name, details=counts(values), cost=cost)

    def _worth(self, value: PrefixValue) -> float:
        return value.soft if self._settings.value == "soft" else value.hard


class _Bisection:
    """The search in one trajectory for the shortest prefix from which no rollout is right.

    Taken for granted: from a longer prefix there is none either. So where the whole solution is right, no prefix is
    dead, and nothing more is asked.
    """

    def __init__(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self.values: dict[int, PrefixValue] = {}
        self._alive, self._dead = 0, len(trajectory.steps) + 1
        self._failed = False

    def ask(self) -> int | None:
        """The prefix to look at next; None when the search is over. The whole solution comes first."""
        if self._failed or self._dead - self._alive <= 1:
            return None
        return len(self.trajectory.steps) if not self.values else (self._alive + self._dead) // 2

    def take(self, length: int, value: PrefixValue) -> None:
        self.values[length] = value
        self._failed |= value.error is not None
        if value.right:
            self._alive = length
        else:
            self._dead = length
