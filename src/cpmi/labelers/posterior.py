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
from cpmi.labelers.checks import why_not
from cpmi.labelers.evidence import evidence
from cpmi.labelers.first_error import FirstErrorModel, Outcome
from cpmi.labelers.levels import ScoredLevels, score_levels
from cpmi.labelers.negatives import FoundNegatives, NegativeSettings, SiblingAnswers, find_negatives
from cpmi.prompts import CUES, Template
from cpmi.protocols import Sampler, Scorer
from cpmi.records import JSON, Cost, StepRewards, Trajectory


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
        found = self._negatives(trajectories)
        usable = {i: wrong for i, wrong in found.items() if not isinstance(wrong, StepRewards)}
        levels = score_levels(
            self._scorer,
            [trajectories[i] for i in usable],
            [_answers(trajectories[i], wrong) for i, wrong in usable.items()],
            ("marginal", "cumulative"),
            self._settings.templates,
            steps_too=True,
        )
        scored = dict(zip(usable, levels, strict=True))
        return [
            self._reward(trajectories[i], wrong, scored[i]) if not isinstance(wrong, StepRewards) else wrong
            for i, wrong in found.items()
        ]

    def _negatives(self, trajectories: Sequence[Trajectory]) -> dict[int, FoundNegatives | StepRewards]:
        """The wrong answers for each; a trajectory that cannot be labeled, as the failure it is."""
        start = time.perf_counter()
        problems = [why_not(trajectory) for trajectory in trajectories]
        able = [each for each, problem in zip(trajectories, problems, strict=True) if problem is None]
        negatives = find_negatives(able, self._settings.negatives, self._grader, self._siblings, self._sampler)
        engine = sum(each.cost.seconds for each in negatives)
        own = Cost(seconds=max(0.0, time.perf_counter() - start - engine) / max(1, len(able)))
        drawn = iter(negatives)
        found: dict[int, FoundNegatives | StepRewards] = {}
        for i, (trajectory, problem) in enumerate(zip(trajectories, problems, strict=True)):
            if problem is not None:
                found[i] = self._failed(trajectory, problem)
                continue
            each = next(drawn)
            cost = each.cost + own
            found[i] = (
                FoundNegatives(each.negatives, cost)
                if each.error is None
                else self._failed(trajectory, f"no wrong answers sampled: {each.error}", cost)
            )
        return found

    def _reward(self, trajectory: Trajectory, wrong: FoundNegatives, scored: ScoredLevels) -> StepRewards:
        start = time.perf_counter()
        if scored.levels is None:
            return self._failed(trajectory, str(scored.error), scored.cost + wrong.cost)
        shown = evidence(trajectory, scored.levels)
        kind = _outcome(trajectory, self._grader)
        rewards = self._settings.model.rewards(shown, kind)
        terms = {name: tuple(values.tolist()) for name, values in shown.items()}
        details: dict[str, JSON] = {
            "outcome": kind,
            "answers": list(_answers(trajectory, wrong)),
            "kinds": ["gold", *(negative.kind for negative in wrong.negatives)],
        }
        cost = scored.cost + wrong.cost + Cost(seconds=time.perf_counter() - start)
        return StepRewards(trajectory.id, tuple(rewards.tolist()), self.name, terms, details, cost)

    def _failed(self, trajectory: Trajectory, error: str, cost: Cost = Cost()) -> StepRewards:
        return StepRewards(trajectory.id, (), self.name, cost=cost, error=error)


def _answers(trajectory: Trajectory, wrong: FoundNegatives) -> tuple[str, ...]:
    return ((trajectory.gold_answer or "").strip(), *(negative.text for negative in wrong.negatives))


def _outcome(trajectory: Trajectory, grader: Grader) -> Outcome:
    """What the grader cannot decide counts as not told."""
    verdict = outcome(trajectory, grader)
    if verdict is Verdict.SAME:
        return "right"
    return "wrong" if verdict is Verdict.DIFFERENT else "unanswered"
