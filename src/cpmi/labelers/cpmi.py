"""Contrastive pointwise mutual information (CPMI): how much a step raises the right answer over wrong ones.

For an answer a after a context c, under template k, with |a| target tokens:

    l_k(a | c) = (1/|a|) sum_j log p(a_j | template_k(question), c, a_<j)

and for step t, the gold answer A and the hard negatives B_1..B_M:

    r_t = mean over k of  [l_k(A|with) - l_k(A|without)] - w/M sum_m [l_k(B_m|with) - l_k(B_m|without)]

Lee, Hong, Lee: "Efficient Process Reward Modeling via Contrastive Mutual Information", arXiv 2604.10660.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cpmi.errors import InputError
from cpmi.grader import Grader
from cpmi.labelers.levels import Contrast, Normalization, ScoredLevels, score_levels
from cpmi.labelers.negatives import FoundNegatives, NegativeSettings, SiblingAnswers, draw_negatives
from cpmi.prompts import (
    INSTRUCTIONS,
    ContextKind,
    Span,
    Template,
)
from cpmi.protocols import Sampler, Scorer, Truncation
from cpmi.records import Cost, StepRewards, Trajectory


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
        self.negatives.require_kinds()


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
        own = self._settings
        found = draw_negatives(trajectories, own.negatives, self._grader, self._siblings, self._sampler)
        pairs = list(zip(trajectories, found, strict=True))
        usable = [(trajectory, wrong) for trajectory, wrong in pairs if wrong.error is None]
        levels = score_levels(
            self._scorer,
            [trajectory for trajectory, _ in usable],
            [wrong.answers(trajectory) for trajectory, wrong in usable],
            (own.context,),
            own.templates,
            span=own.span,
            truncation=own.truncation,
        )
        scored = iter(levels)
        return [
            self._failed(trajectory, wrong.error, wrong.cost)
            if wrong.error is not None
            else self._reward(trajectory, wrong, next(scored))
            for trajectory, wrong in pairs
        ]

    def _failed(self, trajectory: Trajectory, error: str, cost: Cost) -> StepRewards:
        return StepRewards(trajectory.id, (), self.name, cost=cost, error=error)

    def _reward(self, trajectory: Trajectory, wrong: FoundNegatives, scored: ScoredLevels) -> StepRewards:
        cost = scored.cost + wrong.cost
        if scored.levels is None:
            return self._failed(trajectory, str(scored.error), cost)
        own = self._settings
        gold, against = scored.levels.gains(own.context, len(trajectory.steps), own.normalization, own.contrast)
        rewards = gold - own.weight * against
        terms = {"gold": tuple(gold.tolist()), "wrong": tuple(against.tolist())}
        details = wrong.details(trajectory, own.negatives)
        return StepRewards(trajectory.id, tuple(rewards.tolist()), self.name, terms, details, cost)
