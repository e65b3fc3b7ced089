"""Outcome labels: is the final answer right, copied to every step.

The trivial baseline that every step metric must be read against: it knows nothing of steps, and buys a high AUC.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from cpmi.grader import Grader, Verdict, outcome
from cpmi.labelers.checks import why_not
from cpmi.records import Cost, StepRewards, Trajectory


class Outcome:
    """The ``StepRewarder`` of outcomes: 1.0 at every step where the final answer is right, else 0.0."""

    name = "outcome"

    def __init__(self, *, grader: Grader | None = None) -> None:
        self._grader = grader or Grader()

    def describe(self) -> dict[str, Any]:
        return {"settings": {}}

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        """Reward every step; a solution without an answer is wrong, one that the grader cannot decide is an error."""
        return [self._reward(trajectory) for trajectory in trajectories]

    def _reward(self, trajectory: Trajectory) -> StepRewards:
        start = time.perf_counter()
        if (error := why_not(trajectory)) is not None:
            return StepRewards(trajectory.id, (), self.name, error=error)
        verdict = outcome(trajectory, self._grader)
        cost = Cost(seconds=time.perf_counter() - start)
        if verdict is Verdict.UNDECIDED:
            undecided = "the grader could not decide within its limit whether the final answer is right"
            return StepRewards(trajectory.id, (), self.name, cost=cost, error=undecided)
        rewards = (float(verdict is Verdict.SAME),) * len(trajectory.steps)
        return StepRewards(trajectory.id, rewards, self.name, cost=cost)
