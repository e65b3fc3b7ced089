"""Contrastive pointwise mutual information (CPMI): how much a step raises the right answer over wrong ones.

For an answer a after a context c, under template k, with |a| target tokens:

    l_k(a | c) = (1/|a|) sum_j log p(a_j | template_k(question), c, a_<j)

and for step t, the gold answer A and the hard negatives B_1..B_M:

    r_t = mean over k of  [l_k(A|with) - l_k(A|without)] - w/M sum_m [l_k(B_m|with) - l_k(B_m|without)]

Lee, Hong, Lee: "Efficient Process Reward Modeling via Contrastive Mutual Information", arXiv 2604.10660.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cpmi.errors import InputError
from cpmi.grader import Grader
from cpmi.labelers.checks import why_not
from cpmi.labelers.levels import Contrast, Levels, Normalization
from cpmi.labelers.negatives import FoundNegatives, NegativeSettings, SiblingAnswers, find_negatives
from cpmi.prompts import (
    INSTRUCTIONS,
    ContextKind,
    ScoringPlan,
    Span,
    Template,
    plan_scoring,
    step_contexts,
)
from cpmi.protocols import Sampler, ScoredTree, Scorer, Truncation
from cpmi.records import JSON, Cost, StepRewards, Trajectory


@dataclass(frozen=True, slots=True)
class CPMISettings:
    """Everything that decides a CPMI reward but the model.

    Attributes:
        context: what "with" and "without" the step show (``prompts.step_contexts``); ``marginal`` is the paper's.
        normalization: ``mean`` over the target's tokens, as in the paper, or their ``sum``.
        span: the tokens scored: the cue with the answer (``target``, the paper's), or the ``answer`` alone.
        contrast: against the ``mean`` of the wrong answers, as in the paper, or the ``hardest``: the one that is
            likeliest, found anew with and without the step.
        weight: w, the weight of the wrong answers.
        truncation: renormalize each distribution over its likeliest tokens.

    Raises:
        InputError: no template, a weight that is not finite, or wrong answers asked for of no kind.
    """

    context: ContextKind = "marginal"
    normalization: Normalization = "mean"
    span: Span = "target"
    contrast: Contrast = "mean"
    weight: float = 1.0
    templates: tuple[Template, ...] = INSTRUCTIONS
    negatives: NegativeSettings = field(default_factory=NegativeSettings)
    truncation: Truncation = Truncation()

    def __post_init__(self) -> None:
        if not self.templates:
            raise InputError("at least one template is needed")
        if not math.isfinite(self.weight):
            raise InputError(f"the weight must be a finite number, not {self.weight}")
        if self.negatives.count and not self.negatives.choices:
            raise InputError("name a kind of wrong answers, or ask for 0 of them")


@dataclass(frozen=True, slots=True, eq=False)
class _Planned:
    """A trajectory ready to be scored."""

    plans: list[ScoringPlan]
    details: dict[str, JSON]
    cost: Cost


class CPMI:
    """The ``StepRewarder`` of CPMI."""

    name = "cpmi"

    def __init__(
        self,
        scorer: Scorer,
        settings: CPMISettings = CPMISettings(),
        *,
        grader: Grader | None = None,
        siblings: SiblingAnswers | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        """Label with ``scorer``.

        Args:
            siblings: wrong final answers of other trajectories of the same questions (``SiblingAnswers.collect``).
            sampler: where negatives of the kind ``sampled`` come from; usually the scorer itself.
        """
        self._scorer = scorer
        self._settings = settings
        self._grader = grader or Grader()
        self._siblings = siblings or SiblingAnswers()
        self._sampler = sampler

    def describe(self) -> dict[str, Any]:
        return {"settings": asdict(self._settings), "engine": self._scorer.describe()}

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        """Reward every step; a trajectory that cannot be rewarded comes back with its ``error``.

        ``terms`` hold the two parts, ``gold`` and ``wrong`` (reward = gold - weight * wrong); ``details`` the answers
        scored, the gold one first, and the kinds of the others.
        """
        planned = self._planned(trajectories)
        trees = [plan.tree for each in planned if isinstance(each, _Planned) for plan in each.plans]
        scored = iter(self._scorer.logprobs(trees, self._settings.truncation))
        return [
            each if isinstance(each, StepRewards) else self._reward(trajectory, each, scored)
            for trajectory, each in zip(trajectories, planned, strict=True)
        ]

    def _failed(self, trajectory: Trajectory, error: str, cost: Cost = Cost()) -> StepRewards:
        return StepRewards(trajectory.id, (), self.name, cost=cost, error=error)

    def _planned(self, trajectories: Sequence[Trajectory]) -> list[_Planned | StepRewards]:
        """What is to be scored of each; a trajectory that cannot be, as the failure it is."""
        start = time.perf_counter()
        able = [trajectory for trajectory in trajectories if why_not(trajectory) is None]
        found = find_negatives(able, self._settings.negatives, self._grader, self._siblings, self._sampler)
        engine = sum(each.cost.seconds for each in found)
        own = Cost(seconds=max(0.0, time.perf_counter() - start - engine) / max(1, len(able)))
        negatives = iter(found)
        planned: list[_Planned | StepRewards] = []
        for trajectory in trajectories:
            if (error := why_not(trajectory)) is not None:
                planned.append(self._failed(trajectory, error))
            elif (each := next(negatives)).error is not None:
                planned.append(self._failed(trajectory, f"no wrong answers sampled: {each.error}", each.cost + own))
            else:
                planned.append(self._plan(trajectory, each, own))
        return planned

    def _plan(self, trajectory: Trajectory, found: FoundNegatives, spent: Cost) -> _Planned:
        """``spent``: by this labeler on finding the wrong answers, beside what the engine took."""
        start = time.perf_counter()
        gold = (trajectory.gold_answer or "").strip()
        pairs = step_contexts(self._settings.context, len(trajectory.steps))
        plans = plan_scoring(
            trajectory.question,
            trajectory.steps,
            [gold, *(negative.text for negative in found.negatives)],
            list(dict.fromkeys(context for pair in pairs for context in pair)),
            self._settings.templates,
            self._scorer,
            self._settings.span,
        )
        details: dict[str, JSON] = {
            "answers": [gold, *(negative.text for negative in found.negatives)],
            "kinds": ["gold", *(negative.kind for negative in found.negatives)],
        }
        if not found.negatives:
            wanted = "found" if self._settings.negatives.count else "asked for"
            details["contrast"] = f"none: no wrong answer was {wanted}"
        own = Cost(seconds=time.perf_counter() - start)
        return _Planned(plans, details, found.cost + spent + own)

    def _reward(self, trajectory: Trajectory, planned: _Planned, scored: Iterator[ScoredTree]) -> StepRewards:
        results = [next(scored) for _ in planned.plans]
        cost = sum((result.cost for result in results), planned.cost)
        if error := next((result.error for result in results if result.error), None):
            return self._failed(trajectory, error, cost)
        levels = Levels.read(planned.plans, [result.logprobs for result in results if result.logprobs is not None])
        own = self._settings
        gold, wrong = levels.gains(own.context, len(trajectory.steps), own.normalization, own.contrast)
        rewards = gold - own.weight * wrong
        if not np.isfinite(rewards).all():
            return self._failed(trajectory, "the model gave log-probabilities that are not finite", cost)
        terms = {"gold": tuple(gold.tolist()), "wrong": tuple(wrong.tolist())}
        return StepRewards(trajectory.id, tuple(rewards.tolist()), self.name, terms, planned.details, cost)
