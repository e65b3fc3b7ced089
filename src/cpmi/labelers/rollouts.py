"""Rollouts: how often a model, going on from some of a trajectory's steps, arrives at the right answer.

The value of a prefix s_1..s_t under a policy is the share of N sampled completions that reach the gold answer
(Math-Shepherd, arXiv 2312.08935). Monte Carlo labels and process advantages are made of such values.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from cpmi.answers import answer_in, arrived_at, final_answer_of
from cpmi.asking import Asking, PromptStyle, prompt
from cpmi.errors import InputError
from cpmi.grader import Grader, Verdict, outcome
from cpmi.protocols import Completion, Prompt, Sampled, Sampler, SamplingParams
from cpmi.records import JSON, Cost, Trajectory

GRADING_THREADS = 4


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """How to roll out.

    Attributes:
        n: completions of each prefix.
        style: ``chat``: the question as a user's message and the steps as the model's reply, begun; ``plain``: one
            text, for models without a chat template.
        sampling: the defaults are those of the official CPMI code for its Monte Carlo labels.
        seed: decides the completions, on engines that take a seed per request.

    Raises:
        InputError: a number outside its range.
    """

    n: int = 8
    style: PromptStyle = "chat"
    sampling: SamplingParams = SamplingParams(
        max_tokens=2048, temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.05
    )
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"the number of rollouts must be 1 or more, not {self.n}")


@dataclass(frozen=True, slots=True)
class PrefixValue:
    """What became of the rollouts from one prefix.

    A rollout counts as right only where the grader says so; one without an answer, one that the grader could not
    decide within its limit, and one cut at the token limit before it stated an answer are not right.

    Attributes:
        n: how many there were.
        right: how many of them reached the gold answer.
        unanswered: how many stated no answer.
        undecided: how many answers the grader could not decide on (it ran into its limit).
        cut: how many were ended by the token limit.
        cost: of sampling them; grading is not in it.
        error: why there are none.
    """

    n: int = 0
    right: int = 0
    unanswered: int = 0
    undecided: int = 0
    cut: int = 0
    cost: Cost = Cost()
    error: str | None = None

    @property
    def soft(self) -> float:
        """The share of rollouts that reached the gold answer."""
        return self.right / self.n

    @property
    def hard(self) -> float:
        """1.0 if any rollout reached the gold answer, else 0.0."""
        return float(self.right > 0)


class RolloutStore(Protocol):
    """Where finished rollouts are kept, so that none is paid for twice."""

    def get(self, role: str, trajectory_id: str, prefix: int) -> Sampled | None:
        """The rollouts of a prefix, if they are there."""
        ...

    def put(self, role: str, trajectory_id: str, prefix: int, sampled: Sampled) -> None:
        """Keep the rollouts of a prefix."""
        ...


class KeepNothing:
    """A ``RolloutStore`` that forgets."""

    def get(self, role: str, trajectory_id: str, prefix: int) -> Sampled | None:
        del role, trajectory_id, prefix
        return None

    def put(self, role: str, trajectory_id: str, prefix: int, sampled: Sampled) -> None:
        del role, trajectory_id, prefix, sampled


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first ``length`` steps of a trajectory."""

    trajectory: Trajectory
    length: int


class Roller:
    """Gives prefixes their values, under one policy."""

    def __init__(
        self,
        sampler: Sampler,
        settings: RolloutSettings,
        *,
        grader: Grader,
        role: str = "policy",
        store: RolloutStore | None = None,
    ) -> None:
        """Roll out with ``sampler``.

        Args:
            role: tells the rollouts of several policies apart in the store.
        """
        self._sampler = sampler
        self._settings = settings
        self._asking = Asking(settings.style)
        self._grader = grader
        self._role = role
        self._store: RolloutStore = store or KeepNothing()
        self.engine_seconds = 0.0  # spent by the engine so far
        if settings.style == "chat":
            sampler.dialog("", "")  # says at once that there is no chat template

    def describe(self) -> dict[str, JSON]:
        return self._sampler.describe()

    def values(self, prefixes: Sequence[Prefix]) -> list[PrefixValue]:
        """The value of each prefix, in order; all that are not in the store are sampled in one go.

        Rollouts are graded while others are still being sampled. A prefix that is the whole of a solution with a final
        answer needs no rollout: its value is whether that answer is right (n is 1).
        """
        with self._grading() as grade:
            graded: list[Callable[[], PrefixValue]] = [functools.partial(PrefixValue)] * len(prefixes)
            missing = []
            for i, prefix in enumerate(prefixes):
                if is_complete(prefix):
                    graded[i] = functools.partial(self._outcome, prefix.trajectory)
                elif (known := self._stored(prefix)) is not None:
                    graded[i] = grade(prefix, known)
                else:
                    missing.append(i)

            def take(number: int, sampled: Sampled) -> None:
                prefix = prefixes[missing[number]]
                self.engine_seconds += sampled.cost.seconds
                if sampled.error is None:
                    self._store.put(self._role, prefix.trajectory.id, prefix.length, sampled)
                graded[missing[number]] = grade(prefix, sampled)

            if missing:
                prompts = [self._prompt(prefixes[i]) for i in missing]
                sampling = self._asking.sampling(self._settings.sampling)
                self._sampler.sample(prompts, self._settings.n, sampling, take)
            return [value() for value in graded]

    @contextmanager
    def _grading(self) -> Iterator[Callable[[Prefix, Sampled], Callable[[], PrefixValue]]]:
        """Grade in threads; what is queued is dropped when the sampler fails."""
        pool = ThreadPoolExecutor(GRADING_THREADS, thread_name_prefix="grading")

        def grade(prefix: Prefix, sampled: Sampled) -> Callable[[], PrefixValue]:
            future: Future[PrefixValue] = pool.submit(self._grade, prefix, sampled)
            return future.result

        try:
            yield grade
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _stored(self, prefix: Prefix) -> Sampled | None:
        return self._store.get(self._role, prefix.trajectory.id, prefix.length)

    def _prompt(self, prefix: Prefix) -> Prompt:
        trajectory, length = prefix.trajectory, prefix.length
        text = self._asking.text(self._sampler, trajectory, trajectory.steps[:length])
        return prompt(text, self._settings.seed, self._role, trajectory.id, length)

    # --- grading ----------------------------------------------------------------------------------------------------

    def _grade(self, prefix: Prefix, sampled: Sampled) -> PrefixValue:
        if sampled.error is not None:
            return PrefixValue(cost=sampled.cost, error=sampled.error)
        if len(sampled.completions) != self._settings.n:
            found = f"the engine gave {len(sampled.completions)} completions, {self._settings.n} were asked for"
            return PrefixValue(cost=sampled.cost, error=found)
        verdicts = [self._verdict(prefix, completion) for completion in sampled.completions]
        return PrefixValue(
            n=len(verdicts),
            right=verdicts.count(Verdict.SAME),
            unanswered=verdicts.count(None),
            undecided=verdicts.count(Verdict.UNDECIDED),
            cut=sum(completion.finish_reason == "length" for completion in sampled.completions),
            cost=sampled.cost,
        )

    def _verdict(self, prefix: Prefix, completion: Completion) -> Verdict | None:
        """Whether a rollout reached the gold answer; None where it states no answer."""
        gold = prefix.trajectory.gold_answer or ""
        answer = rollout_answer(prefix, completion)
        return None if answer is None else self._grader.compare(answer, gold)

    def _outcome(self, trajectory: Trajectory) -> PrefixValue:
        verdict = outcome(trajectory, self._grader)
        return PrefixValue(
            n=1,
            right=int(verdict is Verdict.SAME),
            undecided=int(verdict is Verdict.UNDECIDED),
        )


def is_complete(prefix: Prefix) -> bool:
    """Whether a prefix is a whole solution that arrives at an answer."""
    trajectory = prefix.trajectory
    return prefix.length == len(trajectory.steps) > 0 and final_answer_of(trajectory) is not None


def rollout_answer(prefix: Prefix, completion: Completion) -> str | None:
    """The answer that a rollout arrives at.

    That of the completion's text (``answers.arrived_at``); where it has none and ended by itself, that of the step it
    went on from, which may have said it all. A text cut at the token limit arrived nowhere, unless it states an answer.
    """
    gold, choices = prefix.trajectory.gold_answer or "", prefix.trajectory.choices
    if completion.finish_reason == "length":
        return answer_in(completion.text, choices)
    answer = arrived_at(completion.text, gold, choices)
    if answer is None and prefix.length:
        answer = answer_in(prefix.trajectory.steps[prefix.length - 1], choices)
    return answer


def counts(values: dict[int, PrefixValue]) -> dict[str, JSON]:
    """What became of the rollouts, prefix by prefix, for ``StepRewards.details``."""
    lengths = sorted(values)
    details: dict[str, JSON] = {"prefixes": list(lengths)}
    for name in ("n", "right", "unanswered", "undecided", "cut"):
        details[name] = [getattr(values[length], name) for length in lengths]
    return details


def own_seconds(start: float, engine_seconds: float, labels: int) -> Cost:
    """A label's share of the labeler's own time since ``start``: what passed, less what engines needed of it."""
    return Cost(seconds=max(0.0, time.perf_counter() - start - engine_seconds) / max(1, labels))
