"""Step rewards of completions, as TRL's GRPO and RLOO trainers call them.

    reward = outcome_weight * outcome + step_weight * aggregate(rewards of the steps that count) - step_cost * steps

TRL 1.16 (``trl/trainer/grpo_trainer.py``, ``_calculate_rewards``) calls a reward function by keyword with ``prompts``,
``completions``, ``completion_ids``, every other column of the data, ``trainer_state``, ``log_extra`` and
``log_metric``, and takes a list of one float or None for each completion. A completion that gets None from every
reward function has no advantage: it moves the policy neither way.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cpmi.aggregation import AGGREGATIONS, Aggregation, aggregate
from cpmi.errors import InputError, unknown_name
from cpmi.grader import Grader, Verdict, outcome
from cpmi.labelers.cpmi import CPMI, CPMISettings
from cpmi.labelers.negatives import SiblingAnswers
from cpmi.models import ModelSettings, open_model
from cpmi.prm import open_prm
from cpmi.prompts import CUES
from cpmi.protocols import Scorer, StepRewarder
from cpmi.records import StepRewards, Trajectory
from cpmi.rl.completions import Attempt, completion_text, find_steps, gold_answer, question_text
from cpmi.rl.guards import Guards, hedges, says_nothing
from cpmi.steps import WAYS

ANSWER_COLUMNS = ("gold_answer", "ground_truth", "answer", "solution")


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """The shape of a reward.

    Attributes:
        aggregation: one number of the step rewards, see ``cpmi.aggregation``.
        outcome_weight: of 1 for a right final answer, 0 for any other.
        step_weight: of the aggregated step reward.
        split: how a completion is split into steps, see ``cpmi.steps.split_steps``.
        question_column: a column with the question alone; where the data has none, the prompt is the question.
        answer_columns: the first of these that the data has holds the right answer, or a solution that ends in it.
        guards: see ``Guards``.

    Raises:
        InputError: an unknown aggregation or way to split, or a weight that is not finite.
    """

    aggregation: Aggregation = "mean"
    outcome_weight: float = 1.0
    step_weight: float = 0.5
    split: str = "auto"
    question_column: str = "question"
    answer_columns: tuple[str, ...] = ANSWER_COLUMNS
    guards: Guards = field(default_factory=Guards)

    def __post_init__(self) -> None:
        if self.aggregation not in AGGREGATIONS:
            raise unknown_name("aggregation", self.aggregation, AGGREGATIONS)
        if self.split not in ("auto", *WAYS):
            raise unknown_name("way to split steps", self.split, ("auto", *WAYS))
        if not (math.isfinite(self.outcome_weight) and math.isfinite(self.step_weight)):
            raise InputError("the weights of a reward must be finite numbers")


@dataclass(frozen=True, slots=True)
class Judged:
    """What a completion earns, and for what.

    Attributes:
        reward: the whole; None where ``error`` is set.
        outcome: 1.0 for a right final answer, 0.0 for any other; None where the right one is not known.
        step_reward: the aggregated reward of the steps that count; None where steps were not asked for.
        step_rewards: what each step got from the rewarder, before any guard.
        withheld: why each step does not count; None where it does.
        shares: what each step brings to ``reward``, weights and costs included.
        rest: what no step brings: the outcome, and the price of silence. ``reward`` is the sum of this and ``shares``.
        ends: where each step ends in the completion, in characters.
        error: why the completion cannot be judged, in one line.
    """

    reward: float | None
    outcome: float | None = None
    step_reward: float | None = None
    step_rewards: tuple[float, ...] = ()
    withheld: tuple[str | None, ...] = ()
    shares: tuple[float, ...] = ()
    rest: float = 0.0
    ends: tuple[int, ...] = ()
    error: str | None = None


class StepReward:
    """Any ``StepRewarder`` as a reward function of TRL; calls may come from several threads.

    A completion cannot be judged, and gets None, where the data has no right answer for it although the reward needs
    one, and where the rewarder fails on it (too long for its model). One that says nothing *is* judged.
    """

    def __init__(
        self,
        rewarder: StepRewarder | None,
        settings: RewardSettings = RewardSettings(),
        *,
        grader: Grader | None = None,
    ) -> None:
        """Reward with ``rewarder``; None: by the outcome alone.

        Raises:
            InputError: steps have a weight, and there is nothing to reward them.
        """
        if rewarder is None and settings.step_weight:
            raise InputError("without a rewarder of steps, step_weight must be 0")
        self.settings = settings
        self._rewarder = rewarder
        self._grader = grader or Grader()
        self._lock = threading.Lock()  # one model, and callers that may work side by side (verl's do)
        self.__name__ = "outcome" if rewarder is None else rewarder.name  # TRL's name of it in its logs

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The reward of each completion, in order.

        Args:
            prompts: texts or chat messages, one for each completion.
            completions: texts or chat messages.
            completion_ids: not used; steps are found in the text.
            log_metric: is told means over the batch: ``step_reward``, ``outcome``, ``steps``, and the shares of steps
                ``withheld`` and of completions ``unjudged``, each behind the reward's name and a slash.
            log_extra: is given a column of the step rewards of each completion, as text.
            columns: of the data, and whatever else the trainer passes.

        Raises:
            InputError: prompts or completions of another form, or columns of another length.
        """
        del completion_ids
        judged = self.judge(self.attempts(prompts, completions, columns))
        if log_metric is not None:
            for name, value in summary(judged).items():
                log_metric(f"{self.__name__}/{name}", value)
        if log_extra is not None:
            log_extra(f"{self.__name__}_steps", [describe(each) for each in judged])
        return [each.reward for each in judged]

    def asynchronous(self) -> AsyncReward:
        """The same as an ``async`` reward function."""
        return AsyncReward(self)

    def attempts(self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]) -> list[Attempt]:
        """What a trainer hands over, as attempts.

        Raises:
            InputError: prompts or completions of another form, or columns of another length.
        """
        count = len(completions)
        questions = columns.get(self.settings.question_column)
        if questions is None:
            questions = [question_text(prompt) for prompt in prompts]
        golds = next((columns[name] for name in self.settings.answer_columns if columns.get(name) is not None), None)
        choices = columns.get("choices")
        for name, column in (("prompts", prompts), ("questions", questions), ("answers", golds), ("choices", choices)):
            if column is not None and len(column) != count:
                raise InputError(f"{len(column)} {name} for {count} completions")
        return [
            self.attempt(
                str(questions[i]),
                completion_text(completion),
                None if golds is None else gold_answer(golds[i]),
                None if choices is None or choices[i] is None else tuple(choices[i]),
            )
            for i, completion in enumerate(completions)
        ]

    def attempt(self, question: str, text: str, gold: str | None, choices: tuple[str, ...] | None = None) -> Attempt:
        """A completion, split into steps."""
        guards = self.settings.guards
        intervals = find_steps(text, self.settings.split, join_fragments=guards.join_fragments)
        return Attempt(question, text, gold, intervals, choices)

    def judge(self, attempts: Sequence[Attempt]) -> list[Judged]:
        """Judge each attempt, in order."""
        with self._lock:
            errors = [self._why_not(attempt) for attempt in attempts]
            able = [i for i, error in enumerate(errors) if error is None]
            asked = [i for i in able if self.settings.step_weight and attempts[i].steps]
            given = dict(zip(asked, self._rewards([attempts[i].trajectory() for i in asked]), strict=True))
            return [
                Judged(None, error=error) if error is not None else self._judged(attempt, given.get(i))
                for i, (attempt, error) in enumerate(zip(attempts, errors, strict=True))
            ]

    def _why_not(self, attempt: Attempt) -> str | None:
        needed = self.settings.outcome_weight or self._needs_gold
        return "no gold answer" if needed and attempt.gold_answer is None else None

    @property
    def _needs_gold(self) -> bool:
        return False

    def _rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        if self._rewarder is None or not trajectories:
            return []
        return self._rewarder.rewards(trajectories)

    def _judged(self, attempt: Attempt, given: StepRewards | None) -> Judged:
        right = self._outcome(attempt)
        if given is not None and given.error is not None:
            return Judged(None, right, ends=attempt.ends, error=given.error)
        rest = self.settings.outcome_weight * (right or 0.0)
        if not self.settings.step_weight:
            return Judged(rest, right, ends=attempt.ends, rest=rest, shares=(0.0,) * len(attempt.steps))
        return self._of_steps(attempt, right, rest, given.rewards if given is not None else ())

    def _of_steps(self, attempt: Attempt, right: float | None, rest: float, rewards: tuple[float, ...]) -> Judged:
        guards, weight = self.settings.guards, self.settings.step_weight
        withheld = guards.withheld(attempt, self._grader)
        values = [guards.clipped(reward) for reward in rewards]
        counted = [i for i, reason in enumerate(withheld) if reason is None]
        shares = [0.0] * len(values)
        if counted:
            step_reward = aggregate([values[i] for i in counted], self.settings.aggregation)
            for i, share in zip(counted, _shares([values[i] for i in counted], self.settings.aggregation), strict=True):
                shares[i] = weight * share
        else:
            silent = all(says_nothing(step) for step in attempt.steps)
            step_reward = guards.silence if silent else 0.0
            rest += weight * step_reward
        shares = [share - guards.step_cost for share in shares]
        return Judged(
            rest + math.fsum(shares),
            right,
            step_reward,
            tuple(rewards),
            tuple(withheld),
            tuple(shares),
            rest,
            attempt.ends,
        )

    def _outcome(self, attempt: Attempt) -> float | None:
        if attempt.gold_answer is None:
            return None
        if self.settings.guards.one_answer and hedges(attempt, self._grader):
            return 0.0
        # Only what is certainly right counts as right; the whole text is asked, not its last step alone.
        whole = replace(attempt, intervals=((0, len(attempt.text)),)) if attempt.steps else attempt
        return float(outcome(whole.trajectory(), self._grader) is Verdict.SAME)


def _shares(values: Sequence[float], how: Aggregation) -> list[float]:
    """What each step brings to the aggregated reward: they add up to it."""
    count = len(values)
    match how:
        case "sum":
            return list(values)
        case "mean":
            return [value / count for value in values]
        case "min":
            place = min(range(count), key=values.__getitem__)
            return [value if i == place else 0.0 for i, value in enumerate(values)]
        case "last" | "prod":  # a product is nobody's in particular
            return [*[0.0] * (count - 1), aggregate(values, how)]


class AsyncReward:
    """A reward as an ``async`` function: TRL awaits all of these together, so that one whose model is behind a server
    does not hold up another. A model in this process gains nothing by it."""

    def __init__(self, reward: StepReward) -> None:
        self._reward = reward
        self.__name__ = reward.__name__

    async def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **others: Any) -> list[float | None]:
        """See ``StepReward.__call__``."""
        return await asyncio.to_thread(self._reward, prompts, completions, **others)


class OutcomeReward(StepReward):
    """1 for a right final answer, else 0: what step rewards must be compared with, under the same guards."""

    def __init__(self, settings: RewardSettings = RewardSettings(), *, grader: Grader | None = None) -> None:
        super().__init__(None, replace(settings, step_weight=0.0), grader=grader)


CPMI_FOR_RL = CPMISettings(context="cumulative", templates=CUES)
"""What a step adds to those before it, with four cues on one instruction, which cost little more than one."""


class CPMIReward(StepReward):
    """CPMI as a reward: needs the right answer, and neither rollouts nor a trained reward model."""

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        cpmi: CPMISettings = CPMI_FOR_RL,
        settings: RewardSettings = RewardSettings(),
        dtype: str = "auto",
        device: str = "auto",
        grader: Grader | None = None,
    ) -> None:
        """Reward with a labeling model.

        Args:
            model: the name of one (``hf:PATH``, ``openai:URL#MODEL``...: a frozen one), an engine that is open
                (``cpmi.protocols.Scorer``), or a model of Transformers in memory: the policy in training itself, also
                behind PEFT or a wrapper of data parallelism, which is read without gradients and left as it was.
            tokenizer: of a model in memory.
            dtype: of a model opened by its name; see ``ModelSettings``.
            device: the same.

        Raises:
            InputError: a model in memory without its tokenizer, a model that cannot be opened, or a product of rewards.
        """
        if settings.aggregation == "prod":
            raise InputError("the product of step rewards needs rewards in [0, 1], which CPMI's are not")
        self._scorer = _scorer(
            model, tokenizer, ModelSettings(model, dtype, device) if isinstance(model, str) else None
        )
        self._cpmi = cpmi
        grader = grader or Grader()
        super().__init__(self._labeler(grader, ()), settings, grader=grader)

    @property
    def _needs_gold(self) -> bool:
        return bool(self.settings.step_weight)

    def _labeler(self, grader: Grader, trajectories: Sequence[Trajectory]) -> CPMI:
        sampler: Any = self._scorer if hasattr(self._scorer, "sample") else None
        siblings = SiblingAnswers.collect(trajectories)
        return CPMI(self._scorer, self._cpmi, grader=grader, siblings=siblings, sampler=sampler)

    def _rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        """Siblings are the other completions of the batch."""
        if self._cpmi.negatives.uses("sibling"):
            return self._labeler(self._grader, trajectories).rewards(trajectories)
        return super()._rewards(trajectories)


def _scorer(model: Any, tokenizer: Any, settings: ModelSettings | None) -> Scorer:
    if settings is not None:
        return open_model(settings)
    if hasattr(model, "logprobs"):
        scorer: Scorer = model
        return scorer
    if tokenizer is None:
        raise InputError("a model in memory needs its tokenizer: CPMIReward(model, tokenizer=tokenizer)")
    from cpmi.models.policy import PolicyScorer

    return PolicyScorer(model, tokenizer)


PRM_FOR_RL = RewardSettings(aggregation="min", guards=Guards(clip=None, silence=0.0))
"""The worst step decides; probabilities need no bounds, and 0 is the worst of them."""


class PRMReward(StepReward):
    """A trained process reward model as a reward; needs no right answer where the outcome has no weight."""

    def __init__(
        self,
        model: str | StepRewarder,
        *,
        family: str | None = None,
        settings: RewardSettings = PRM_FOR_RL,
        dtype: str = "auto",
        device: str = "auto",
        grader: Grader | None = None,
    ) -> None:
        """Reward with a reward model.

        Args:
            model: a folder or a hub id, or one that is open (``cpmi.PRM``).
            family: how one that was trained elsewhere is read, see ``cpmi.prm.families``.

        Raises:
            InputError: nothing there, or no reward model.
        """
        rewarder = open_prm(ModelSettings(model, dtype, device), family) if isinstance(model, str) else model
        super().__init__(rewarder, settings, grader=grader)


# --- what is logged -------------------------------------------------------------------------------------------------


def summary(judged: Sequence[Judged]) -> dict[str, float]:
    """Means over a batch; what no completion has is left out."""
    steps = [len(each.ends) for each in judged if each.error is None]
    reasons = [reason is not None for each in judged for reason in each.withheld]
    columns: dict[str, list[float]] = {
        "step_reward": [each.step_reward for each in judged if each.step_reward is not None],
        "outcome": [each.outcome for each in judged if each.outcome is not None],
        "steps": [float(count) for count in steps],
        "withheld": [float(reason) for reason in reasons],
        "unjudged": [float(each.error is not None) for each in judged],
    }
    return {name: math.fsum(values) / len(values) for name, values in columns.items() if values}


def describe(judged: Judged) -> str:
    """The step rewards of a completion in a line; a word stands for a step that does not count."""
    if judged.error is not None:
        return judged.error
    if not judged.step_rewards:
        return ""
    return " ".join(
        reason or f"{reward:+.3f}" for reward, reason in zip(judged.step_rewards, judged.withheld, strict=True)
    )


def as_json(judged: Judged) -> str:
    """``[[end, share], ...]`` of the steps, as text: for whoever places rewards at steps himself."""
    return json.dumps([[end, round(share, 6)] for end, share in zip(judged.ends, judged.shares, strict=True)])
