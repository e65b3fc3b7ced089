"""First-error posterior: how likely there is no error up to a step, given the outcome and what every step shows.

One pass of the labeling model, as for CPMI: the answers after every step (``cpmi.labelers.levels``) and the steps
themselves. What they show (``cpmi.labelers.evidence``) and whether the final answer is right decide where the first
error is (``cpmi.labelers.first_error``). No text is generated.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cpmi.errors import InputError
from cpmi.grader import Grader, Verdict, outcome
from cpmi.labelers.evidence import evidence
from cpmi.labelers.first_error import FirstErrorModel, Outcome
from cpmi.labelers.levels import ScoredLevels, score_levels
from cpmi.labelers.negatives import FoundNegatives, NegativeSettings, SiblingAnswers, draw_negatives
from cpmi.prompts import CUES, Template
from cpmi.protocols import Sampler, Scorer
from cpmi.records import Cost, StepRewards, Trajectory


@dataclass(frozen=True, slots=True)
class PosteriorSettings:
    """Everything that decides a posterior but the labeling model.

    Attributes:
        templates: for the answers; a mean over them. The steps are read under the first.
        model: what the evidence means; the one of the package, or one that ``cpmi fit`` made.

    Raises:
        InputError: no template.
    """

    templates: tuple[Template, ...] = CUES
    negatives: NegativeSettings = field(default_factory=NegativeSettings)
    model: FirstErrorModel = field(default_factory=FirstErrorModel.built_in)

    def __post_init__(self) -> None:
        if not self.templates:
            raise InputError("at least one template is needed")
        self.negatives.require_kinds()


class FirstErrorPosterior:
    """The ``StepRewarder`` of the posterior. Rewards are probabilities, and never rise from a step to the next."""

    name = "posterior"

    def __init__(
        self,
        scorer: Scorer,
        settings: PosteriorSettings | None = None,
        *,
        grader: Grader | None = None,
        siblings: SiblingAnswers | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        """See ``CPMI``."""
        self._scorer = scorer
        self._settings = settings or PosteriorSettings()
        self._grader = grader or Grader()
        self._siblings = siblings or SiblingAnswers()
        self._sampler = sampler

    def describe(self) -> dict[str, Any]:
        return {"settings": asdict(self._settings), "engine": self._scorer.describe()}

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        """Reward every step; a trajectory that cannot be rewarded comes back with its ``error``.

        ``terms`` hold the evidence, one feature each, so that other weights need no engine; ``details`` the outcome,
        and the answers as for CPMI.
        """
        own = self._settings
        found = draw_negatives(trajectories, own.negatives, self._grader, self._siblings, self._sampler)
        pairs = list(zip(trajectories, found, strict=True))
        usable = [(trajectory, wrong) for trajectory, wrong in pairs if wrong.error is None]
        levels = score_levels(
            self._scorer,
            [trajectory for trajectory, _ in usable],
            [wrong.answers(trajectory) for trajectory, wrong in usable],
            ("marginal", "cumulative"),
            own.templates,
            steps_too=True,
        )
        scored = iter(levels)
        return [
            self._failed(trajectory, wrong.error, wrong.cost)
            if wrong.error is not None
            else self._reward(trajectory, wrong, next(scored))
            for trajectory, wrong in pairs
        ]

    def _reward(self, trajectory: Trajectory, wrong: FoundNegatives, scored: ScoredLevels) -> StepRewards:
        start = time.perf_counter()
        cost = scored.cost + wrong.cost
        if scored.levels is None:
            return self._failed(trajectory, str(scored.error), cost)
        shown = evidence(trajectory, scored.levels)
        kind = _outcome(trajectory, self._grader)
        rewards = self._settings.model.rewards(shown, kind)
        terms = {name: tuple(values.tolist()) for name, values in shown.items()}
        details = wrong.details(trajectory, self._settings.negatives) | {"outcome": kind}
        cost += Cost(seconds=time.perf_counter() - start)
        return StepRewards(trajectory.id, tuple(rewards.tolist()), self.name, terms, details, cost)

    def _failed(self, trajectory: Trajectory, error: str, cost: Cost) -> StepRewards:
        return StepRewards(trajectory.id, (), self.name, cost=cost, error=error)


def _outcome(trajectory: Trajectory, grader: Grader) -> Outcome:
    """What the grader cannot decide counts as not told."""
    verdict = outcome(trajectory, grader)
    if verdict is Verdict.SAME:
        return "right"
    return "wrong" if verdict is Verdict.DIFFERENT else "unanswered"
