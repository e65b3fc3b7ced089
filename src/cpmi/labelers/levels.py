"""How likely every answer is after every context: what CPMI and its relatives are computed from.

The engine is asked once; which answers, templates, contexts and means make a reward is arithmetic on the result.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cpmi.errors import InputError
from cpmi.prompts import Context, ContextKind, ScoringPlan, Span, Template, plan_scoring, step_contexts
from cpmi.protocols import FloatArray, ScoredTree, Scorer, Truncation
from cpmi.records import JSON, Cost, Trajectory

Normalization = Literal["mean", "sum"]
Contrast = Literal["mean", "hardest"]


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """The log-probabilities of one trajectory's answers.

    Attributes:
        contexts: which steps were shown.
        sums: (templates, contexts, answers) log p(answer's tokens | template, context), in nats; the first answer is
            the right one.
        tokens: (templates, answers) how many tokens each sum is over.
        steps: per step (tokens,) log-probabilities behind all steps before it, under the first template; empty where
            they were not asked for.
    """

    contexts: tuple[Context, ...]
    sums: FloatArray
    tokens: FloatArray
    steps: tuple[FloatArray, ...] = ()

    @classmethod
    def read(cls, plans: Sequence[ScoringPlan], logprobs: Sequence[FloatArray]) -> Levels:
        """From the log-probabilities (nodes,) of each plan's tree."""
        spans = [(each, values) for plan, values in zip(plans, logprobs, strict=True) for each in plan.spans]
        contexts = tuple(spans[0][0])
        sums = [[[values[nodes].sum() for nodes in each[context]] for context in contexts] for each, values in spans]
        tokens = [[len(nodes) for nodes in each[contexts[0]]] for each, _ in spans]
        steps = tuple(logprobs[0][nodes] for nodes in plans[0].steps)
        return cls(contexts, np.array(sums, dtype=np.float64), np.array(tokens, dtype=np.float64), steps)

    def choose(self, answers: Sequence[int], templates: Sequence[int] | None = None) -> Levels:
        """With some of the answers (0, the right one, among them as the first), and some of the templates."""
        kept = list(range(len(self.sums))) if templates is None else list(templates)
        sums = self.sums[kept][:, :, list(answers)]
        return Levels(self.contexts, sums, self.tokens[kept][:, list(answers)], self.steps)

    def at(self, contexts: Sequence[Context], normalization: Normalization = "mean") -> FloatArray:
        """(templates, contexts, answers) of some contexts, in that order; ``mean``: per token.

        Raises:
            InputError: one of them was not scored.
        """
        index = {context: i for i, context in enumerate(self.contexts)}
        if missing := [context for context in contexts if context not in index]:
            raise InputError(f"the context {missing[0]} was not scored")
        sums = self.sums[:, [index[context] for context in contexts]]
        return sums / self.tokens[:, None, :] if normalization == "mean" else sums

    def gains(
        self, kind: ContextKind, steps: int, normalization: Normalization = "mean", contrast: Contrast = "mean"
    ) -> tuple[FloatArray, FloatArray]:
        """(steps,) how much each step raises the right answer, and the wrong ones; each a mean over templates.

        Args:
            contrast: the ``mean`` of the wrong answers, or the ``hardest``: the one that is likeliest, found anew with
                and without the step.
        """
        pairs = step_contexts(kind, steps)
        with_ = self.at([pair[0] for pair in pairs], normalization)
        without = self.at([pair[1] for pair in pairs], normalization)
        wrong = _wrong(with_, contrast) - _wrong(without, contrast)
        return (with_[:, :, 0] - without[:, :, 0]).mean(axis=0), wrong.mean(axis=0)

    def to_json(self) -> dict[str, JSON]:
        """For ``details`` of a record, or a file."""
        return {
            "contexts": [list(context) for context in self.contexts],
            "sums": np.round(self.sums, 5).tolist(),
            "tokens": self.tokens.astype(int).tolist(),
            "steps": [np.round(each, 4).tolist() for each in self.steps],
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Levels:
        """What ``to_json`` gave."""
        sums, tokens = (np.array(row[name], dtype=np.float64) for name in ("sums", "tokens"))
        contexts = tuple(tuple(int(step) for step in context) for context in row["contexts"])
        return cls(contexts, sums, tokens, tuple(np.array(each, dtype=np.float64) for each in row["steps"]))


def _wrong(levels: FloatArray, contrast: Contrast) -> FloatArray:
    """(templates, contexts) of (templates, contexts, answers); 0 where there is no wrong answer."""
    wrong = levels[:, :, 1:]
    if not wrong.shape[2]:
        return np.zeros(wrong.shape[:2])
    reduced: FloatArray = wrong.mean(axis=2) if contrast == "mean" else wrong.max(axis=2)
    return reduced


@dataclass(frozen=True, slots=True, eq=False)
class ScoredLevels:
    """Levels of one trajectory, or the reason why there are none, and what they cost."""

    levels: Levels | None
    cost: Cost = Cost()
    error: str | None = None


def score_levels(
    scorer: Scorer,
    trajectories: Sequence[Trajectory],
    answers: Sequence[Sequence[str]],
    kinds: Sequence[ContextKind],
    templates: Sequence[Template],
    *,
    span: Span = "target",
    truncation: Truncation = Truncation(),
    steps_too: bool = False,
) -> list[ScoredLevels]:
    """Ask the engine for everything that some kinds of contexts need, each context once.

    Args:
        answers: of each trajectory; the right one first.
        steps_too: score the steps as well, each behind all before it.
    """
    plans, planning = [], []
    for trajectory, own in zip(trajectories, answers, strict=True):
        start = time.perf_counter()
        pairs = [pair for kind in kinds for pair in step_contexts(kind, len(trajectory.steps))]
        contexts = list(dict.fromkeys(context for pair in pairs for context in pair))
        asked = (trajectory.question, trajectory.steps, own, contexts, templates, scorer, span)
        plans.append(plan_scoring(*asked, steps_too=steps_too))
        planning.append(Cost(seconds=time.perf_counter() - start))
    scored = iter(scorer.logprobs([plan.tree for each in plans for plan in each], truncation))
    return [_levels(each, [next(scored) for _ in each], spent) for each, spent in zip(plans, planning, strict=True)]


def _levels(plans: Sequence[ScoringPlan], results: Sequence[ScoredTree], spent: Cost) -> ScoredLevels:
    cost = sum((result.cost for result in results), spent)
    if error := next((result.error for result in results if result.error), None):
        return ScoredLevels(None, cost, error)
    levels = Levels.read(plans, [result.logprobs for result in results if result.logprobs is not None])
    if not (np.isfinite(levels.sums).all() and all(np.isfinite(step).all() for step in levels.steps)):
        return ScoredLevels(None, cost, "the model gave log-probabilities that are not finite")
    return ScoredLevels(levels, cost)
