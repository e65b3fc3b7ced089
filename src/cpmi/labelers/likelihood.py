"""Likelihood: how likely a step is to the model itself, after the question and the steps before it.

    r_t = (1/|s_t|) sum_j log p(s_tj | template(question), s_1 ... s_t-1, s_t,<j)

over the tokens of step t and of the blank line that ends it (``sum``: without 1/|s_t|). It knows nothing of the right
answer: the baseline of choosing the likeliest of several solutions, which a learned or computed reward must beat.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from cpmi.errors import InputError
from cpmi.labelers.checks import why_no_steps
from cpmi.prompts import INSTRUCTIONS, StepsPlan, Template, plan_steps
from cpmi.protocols import FloatArray, IntArray, Scorer
from cpmi.records import Cost, StepRewards, Trajectory

Normalization = Literal["mean", "sum"]


@dataclass(frozen=True, slots=True)
class LikelihoodSettings:
    """Everything that decides a likelihood but the model.

    Attributes:
        normalization: ``mean`` over the step's tokens, or their ``sum``, which adds up to the solution's
            log-probability.
        template: how the question is put; its cue is not used.
    """

    normalization: Normalization = "mean"
    template: Template = INSTRUCTIONS[0]

    def __post_init__(self) -> None:
        if self.normalization not in ("mean", "sum"):
            raise InputError(f"normalization must be mean or sum, not {self.normalization!r}")


@dataclass(frozen=True, slots=True, eq=False)
class _Planned:
    """A tree, and which trajectory of the request each of its solutions is."""

    plan: StepsPlan
    owners: dict[int, int]


@dataclass(slots=True)
class _Scored:
    """What is known of one trajectory by now.

    Attributes:
        sums: (steps,) sum of the log-probabilities of each step's tokens.
        tokens: (steps,) how many they are.
        shared: whether others were in its tree.
        error: of the tree.
        cost: of all trees it was in.
    """

    sums: FloatArray
    tokens: IntArray
    shared: bool
    error: str | None
    cost: Cost


class Likelihood:
    """The ``StepRewarder`` of likelihoods. Trajectories of a question that come together share its tokens."""

    name = "likelihood"

    def __init__(self, scorer: Scorer, settings: LikelihoodSettings = LikelihoodSettings()) -> None:
        self._scorer = scorer
        self._settings = settings

    def describe(self) -> dict[str, Any]:
        return {"settings": asdict(self._settings), "engine": self._scorer.describe()}

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        """Reward every step; a trajectory that cannot be rewarded comes back with its ``error``.

        ``terms`` hold each step's ``sum`` of log-probabilities and its number of ``tokens``, so that either
        normalization can be had from both.
        """
        problems = [why_no_steps(trajectory) for trajectory in trajectories]
        able = [i for i, problem in enumerate(problems) if problem is None]
        scored = self._scored(trajectories, able)
        # A tree fails with all that are in it, though one alone may be too long: so each gets a tree of its own.
        failed = [i for i in able if scored[i].error is not None and scored[i].shared]
        for i, again in self._scored(trajectories, failed, alone=True).items():
            again.cost += scored[i].cost
            scored[i] = again
        return [
            self._record(trajectory, scored[i]) if problem is None else self._failed(trajectory, problem)
            for i, (trajectory, problem) in enumerate(zip(trajectories, problems, strict=True))
        ]

    def _failed(self, trajectory: Trajectory, error: str, cost: Cost = Cost()) -> StepRewards:
        return StepRewards(trajectory.id, (), self.name, cost=cost, error=error)

    def _scored(
        self, trajectories: Sequence[Trajectory], which: Sequence[int], *, alone: bool = False
    ) -> dict[int, _Scored]:
        """The trajectories named by their index, each scored or with an error."""
        start = time.perf_counter()
        planned = self._planned(trajectories, which, alone=alone)
        own = Cost(seconds=(time.perf_counter() - start) / max(1, len(which)))
        found: dict[int, _Scored] = {}
        results = self._scorer.logprobs([each.plan.tree for each in planned]) if planned else []
        for each, result in zip(planned, results, strict=True):
            costs = _split(result.cost, each.plan)
            for solution, i in each.owners.items():
                found[i] = _Scored(
                    *_sums(each.plan.spans[solution], result.logprobs),
                    shared=len(each.owners) > 1,
                    error=result.error,
                    cost=costs[solution] + own,
                )
        return found

    def _planned(self, trajectories: Sequence[Trajectory], which: Sequence[int], *, alone: bool) -> list[_Planned]:
        groups: dict[tuple[str, int], list[int]] = {}
        for i in which:
            groups.setdefault((trajectories[i].question, i if alone else -1), []).append(i)
        planned = []
        for (question, _), group in groups.items():
            solutions = [trajectories[i].steps for i in group]
            plans = plan_steps(question, solutions, self._settings.template, self._scorer)
            planned += [_Planned(plan, {solution: group[solution] for solution in plan.spans}) for plan in plans]
        return planned

    def _record(self, trajectory: Trajectory, scored: _Scored) -> StepRewards:
        if scored.error is not None:
            return self._failed(trajectory, scored.error, scored.cost)
        if not scored.tokens.all():
            empty = int(np.argmin(scored.tokens))
            return self._failed(trajectory, f"the tokenizer has no token for step {empty} (from 0)", scored.cost)
        if not np.isfinite(scored.sums).all():
            problem = "the model gave log-probabilities that are not finite"
            return self._failed(trajectory, problem, scored.cost)
        mean = self._settings.normalization == "mean"
        rewards = scored.sums / scored.tokens if mean else scored.sums
        terms = {"sum": tuple(scored.sums.tolist()), "tokens": tuple(scored.tokens.astype(np.float64).tolist())}
        return StepRewards(trajectory.id, tuple(rewards.tolist()), self.name, terms, cost=scored.cost)


def _sums(spans: Sequence[IntArray], logprobs: FloatArray | None) -> tuple[FloatArray, IntArray]:
    """(steps,) the sum over each step's nodes, and their number."""
    sums = [0.0 if logprobs is None else float(logprobs[nodes].sum()) for nodes in spans]
    return np.array(sums), np.array([len(nodes) for nodes in spans], dtype=np.int64)


def _split(cost: Cost, plan: StepsPlan) -> dict[int, Cost]:
    """What each solution pays of its tree: of each node an equal part with all that have it. The tokens add up."""
    users = Counter(node for spans in plan.spans.values() for nodes in spans for node in nodes.tolist())
    opening = (len(plan.tree) - len(users)) / len(plan.spans)
    costs: dict[int, Cost] = {}
    paid, spent = 0.0, 0
    for solution, spans in plan.spans.items():
        part = (opening + sum(1 / users[node] for nodes in spans for node in nodes.tolist())) / len(plan.tree)
        paid += part
        tokens = round(cost.tokens_scored * paid) - spent
        spent += tokens
        costs[solution] = Cost(tokens_scored=tokens, seconds=cost.seconds * part)
    return costs
