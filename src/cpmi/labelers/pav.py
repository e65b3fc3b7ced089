"""Process advantage labels (PAV): the value of a step under the policy, and its progress under a prover.

    reward_t = Q_policy(t) + alpha * (Q_prover(t) - Q_prover(t-1))

Setlur et al., "Rewarding Progress", arXiv 2410.08146. A prover that is the policy itself tells little: a good one is
complementary to it, such as Best-of-k of the policy, or another model.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from cpmi.errors import InputError
from cpmi.grader import Grader
from cpmi.labelers.checks import why_not
from cpmi.labelers.rollouts import Prefix, PrefixValue, Roller, RolloutSettings, RolloutStore, counts, own_seconds
from cpmi.protocols import Sampler
from cpmi.records import Cost, StepRewards, Trajectory

logger = logging.getLogger("cpmi")


@dataclass(frozen=True, slots=True)
class PAVSettings:
    """Everything that decides a process advantage label but the models.

    Attributes:
        rollouts: of the policy.
        alpha: weight of the advantage; the paper uses 0.5 in search and 3 to 5 in RL, the official CPMI code 1.
        best_of: the prover is the policy's Best-of-k, read off the policy's own rollouts; None: another model.
        prover_rollouts: of that other model; the official CPMI code takes 4.

    Raises:
        InputError: a number outside its range.
    """

    rollouts: RolloutSettings = field(default_factory=RolloutSettings)
    alpha: float = 1.0
    best_of: int | None = 4
    prover_rollouts: RolloutSettings = field(default_factory=lambda: RolloutSettings(n=4))

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise InputError(f"alpha must be a finite number, not {self.alpha}")
        if self.best_of is not None and not 1 <= self.best_of <= self.rollouts.n:
            raise InputError(
                f"the prover is Best-of-{self.best_of} of {self.rollouts.n} rollouts; k must be from 1 to their number"
            )


@dataclass(frozen=True, slots=True)
class _Values:
    """Of one trajectory: the policy's by prefix length, and the prover's; the same where it is Best-of-k."""

    policy: dict[int, PrefixValue]
    prover: dict[int, PrefixValue]

    def spent(self) -> list[Cost]:
        both = {id(value): value for values in (self.policy, self.prover) for value in values.values()}
        return [value.cost for value in both.values()]

    def error(self) -> str | None:
        for who, values in (("policy", self.policy), ("prover", self.prover)):
            for length, value in values.items():
                if value.error is not None:
                    return f"rollouts of the {who} failed, prefix of {length}: {value.error}"
        return None


class PAV:
    """The ``StepRewarder`` of process advantages."""

    name = "pav"

    def __init__(
        self,
        policy: Sampler,
        settings: PAVSettings = PAVSettings(),
        *,
        prover: Sampler | None = None,
        grader: Grader | None = None,
        store: RolloutStore | None = None,
    ) -> None:
        """Label with rollouts of ``policy``.

        Args:
            prover: another model; None: the policy's Best-of-k.

        Raises:
            InputError: a prover missing, or one too many.
        """
        if (prover is None) != (settings.best_of is not None):
            raise InputError("a prover is either Best-of-k of the policy or another model; name one of them")
        grader = grader or Grader()
        self._settings = settings
        self._policy = Roller(policy, settings.rollouts, grader=grader, store=store)
        self._prover = None
        if prover is not None:
            self._prover = Roller(prover, settings.prover_rollouts, grader=grader, role="prover", store=store)
        if settings.best_of == 1 or (prover is not None and prover.describe() == policy.describe()):
            logger.warning("the prover is the policy itself: its advantage tells little that the value does not")

    def describe(self) -> dict[str, Any]:
        described = {"settings": asdict(self._settings), "engine": self._policy.describe()}
        return described | ({"prover": self._prover.describe()} if self._prover else {})

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        """Reward every step; ``terms``: ``policy`` (its value) and ``advantage`` (the prover's, before alpha).

        ``details`` hold the counts behind both, and the prover's value of the empty prefix.
        """
        start, before = time.perf_counter(), self._engine_seconds()
        able = [trajectory for trajectory in trajectories if why_not(trajectory) is None]
        found = self._values(able)
        own = own_seconds(start, self._engine_seconds() - before, len(able))
        values_of = {trajectory.id: values for trajectory, values in zip(able, found, strict=True)}
        return [
            StepRewards(trajectory.id, (), self.name, error=error)
            if (error := why_not(trajectory)) is not None
            else self._label(trajectory, values_of[trajectory.id], own)
            for trajectory in trajectories
        ]

    def _engine_seconds(self) -> float:
        return self._policy.engine_seconds + (self._prover.engine_seconds if self._prover else 0.0)

    def _values(self, trajectories: Sequence[Trajectory]) -> list[_Values]:
        """Both values of every prefix; the empty one, where the prover's first advantage starts, for it alone."""
        if self._prover is None:
            policy = self._rolled(self._policy, trajectories, 0)
            return [_Values(values, values) for values in policy]
        policy = self._rolled(self._policy, trajectories, 1)
        prover = self._rolled(self._prover, trajectories, 0)
        return [_Values(*both) for both in zip(policy, prover, strict=True)]

    def _rolled(self, roller: Roller, trajectories: Sequence[Trajectory], first: int) -> list[dict[int, PrefixValue]]:
        prefixes = [Prefix(t, length) for t in trajectories for length in range(first, len(t.steps) + 1)]
        values = iter(roller.values(prefixes))
        return [{length: next(values) for length in range(first, len(t.steps) + 1)} for t in trajectories]

    def _label(self, trajectory: Trajectory, values: _Values, own: Cost) -> StepRewards:
        cost = sum(values.spent(), own)
        if (error := values.error()) is not None:
            return StepRewards(trajectory.id, (), self.name, cost=cost, error=error)
        prover = [self._prover_value(values.prover[length]) for length in range(len(trajectory.steps) + 1)]
        advantage = tuple(after - before for before, after in pairwise(prover))
        policy = tuple(values.policy[length].soft for length in range(1, len(trajectory.steps) + 1))
        rewards = tuple(q + self._settings.alpha * a for q, a in zip(policy, advantage, strict=True))
        details = counts(values.policy) | {"prover_at_start": prover[0]}
        if self._prover is not None:
            details["prover"] = counts(values.prover)
        terms = {"policy": policy, "advantage": advantage}
        return StepRewards(trajectory.id, rewards, self.name, terms, details, cost)

    def _prover_value(self, value: PrefixValue) -> float:
        return value.soft if self._settings.best_of is None else best_of(value, self._settings.best_of)


def best_of(value: PrefixValue, k: int) -> float:
    """The chance that any of k rollouts is right: 1 - C(n - right, k) / C(n, k), without bias (pass@k).

    Chen et al., "Evaluating Large Language Models Trained on Code", arXiv 2107.03374. A complete solution (n is 1) is
    right or wrong, whatever k is.
    """
    if value.n < k:
        return value.soft
    return 1.0 - math.comb(value.n - value.right, k) / math.comb(value.n, k)
