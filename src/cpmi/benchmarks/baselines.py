"""What every figure must be read against: rewards that know no step.

``outcome``: is the final answer right, copied to every step. It has a high pooled area, since wrong steps stand in
wrong solutions. ``outcome + position``: how likely there is no error up to a step, from the outcome and the step's
position alone; any score that falls with position has a high area within trajectories, since the first error comes
last among annotated steps. A source of rewards that does not beat both knows nothing about steps.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from cpmi.benchmarks.cases import Case, Rewarded
from cpmi.errors import require
from cpmi.grader import Grader, Verdict, outcome
from cpmi.protocols import FloatArray
from cpmi.records import Cost, Trajectory

FOLDS = 10
OUTCOME, OUTCOME_AND_POSITION = "outcome (baseline)", "outcome + position (baseline)"
BASELINES = (OUTCOME, OUTCOME_AND_POSITION)

Known = Literal["right", "wrong", "unanswered", "undecided", "unknown"]
_TOLD: dict[str, Known] = {"true": "right", "false": "wrong"}


def baselines(rewarded: Rewarded, grader: Grader) -> tuple[list[Rewarded], list[str]]:
    """Both baselines over the very trajectories that have rewards, and what a reader must know of them.

    A solution whose outcome nobody can tell (it states no answer, or the grader cannot decide) counts as wrong.
    """
    found = [known_outcome(case.trajectory, grader) for case in rewarded.cases]
    if unknown := found.count("unknown"):
        return [], [f"no baselines: whether the final answer is right is not known for {unknown} trajectories"]
    notes = []
    unanswered, undecided = found.count("unanswered"), found.count("undecided")
    if unanswered or undecided:
        notes.append(f"outcome baseline: {unanswered} without an answer and {undecided} undecided count as wrong")
    outcomes = np.array([float(verdict == "right") for verdict in found])
    copied = [np.full(len(case.trajectory.steps), value) for case, value in zip(rewarded.cases, outcomes, strict=True)]
    made = [_rewarded(OUTCOME, rewarded, copied)]
    if {case.trajectory.first_error is None for case in rewarded.cases} != {True, False}:
        notes.append("no baseline outcome + position: it is fitted to trajectories with an error and without one")
    elif importlib.util.find_spec("sklearn") is None:
        notes.append("no baseline outcome + position: it needs scikit-learn; run: pip install 'cpmi[eval]'")
    else:
        made.append(_rewarded(OUTCOME_AND_POSITION, rewarded, survival(rewarded.cases, outcomes)))
    return made, notes


def known_outcome(trajectory: Trajectory, grader: Grader) -> Known:
    """By the grader, where it has a verdict; else what the data say."""
    verdict = None
    if trajectory.gold_answer is not None:
        verdict = outcome(trajectory, grader)
        if verdict in (Verdict.SAME, Verdict.DIFFERENT):
            return "right" if verdict is Verdict.SAME else "wrong"
    told: Known | None = _TOLD.get(trajectory.tags.get("final_answer_correct", "").lower())
    if told is not None or trajectory.gold_answer is None:
        return told or "unknown"
    return "unanswered" if verdict is None else "undecided"


def _rewarded(name: str, like: Rewarded, rewards: Sequence[FloatArray]) -> Rewarded:
    cases = (
        dataclasses.replace(case, rewards=None if case.rewards is None else own, cost=Cost())
        for case, own in zip(like.cases, rewards, strict=True)
    )
    return Rewarded(name, tuple(cases))


def survival(cases: Sequence[Case], outcomes: FloatArray) -> list[FloatArray]:
    """For each case (steps,) the chance that there is no error up to each step.

    A logistic hazard (the chance that a step is the first wrong one) on outcome and position, fitted to the human
    labels in ten folds by question, so that no case is judged by a model that has seen it.
    """
    linear: Any = require("sklearn.linear_model", "eval")
    folds = np.array([fold_of(case.trajectory.question) for case in cases])
    rows = [_features(len(case.trajectory.steps), value) for case, value in zip(cases, outcomes, strict=True)]
    curves: list[FloatArray] = [np.ones(len(each)) for each in rows]
    for fold in np.unique(folds):
        seen = [_seen(case, row) for case, row, at in zip(cases, rows, folds, strict=True) if at != fold]
        x = np.concatenate([np.zeros((0, 2)), *(features for features, _ in seen)])
        y = np.concatenate([np.zeros(0), *(labels for _, labels in seen)])
        if len(np.unique(y)) < 2:
            continue  # with few questions a fold may leave nothing to learn from; then every step survives
        model = linear.LogisticRegression(max_iter=1000).fit(x, y)
        for i in np.flatnonzero(folds == fold):
            curves[i] = np.cumprod(1 - model.predict_proba(rows[i])[:, 1])
    return curves


def fold_of(question: str) -> int:
    """The fold of a question, so that no trajectory is judged by a model that has seen its question."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:4]) % FOLDS


def _features(steps: int, right: float) -> FloatArray:
    return np.stack([np.full(steps, right), np.arange(steps, dtype=np.float64)], axis=1)


def _seen(case: Case, features: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The steps up to the first error, and whether each is the first error."""
    first = case.trajectory.first_error
    upto = len(features) if first is None else first + 1
    labels = np.zeros(upto)
    if first is not None:
        labels[first] = 1.0
    return features[:upto], labels
