"""``cpmi fit`` as a function: what a posterior's evidence means, learned from trajectories that people judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from cpmi.benchmarks.baselines import fold_of
from cpmi.decisions import FirstErrors
from cpmi.errors import InputError
from cpmi.export import labeled_trajectories, refuse_overwriting, trajectory_of
from cpmi.labelers.evidence import FEATURES
from cpmi.labelers.first_error import JudgedEvidence, Outcome, fit
from cpmi.labelers.posterior import FirstErrorPosterior
from cpmi.metrics import Estimate, JudgedTrajectory, estimate, resamples
from cpmi.protocols import FloatArray
from cpmi.records import StepRewards, Trajectory, rewards_by_id


@dataclass(frozen=True, slots=True)
class FitReport:
    """What was fitted, and what it is worth on questions that it was not fitted to.

    Attributes:
        n: trajectories with human labels.
        first_error_f1: by ten folds of questions, at 0.5 (ProcessBench's F1), with an interval.
        left_out: trajectories without judgments, or whose first wrong step cannot be told.
    """

    output: Path
    n: int
    first_error_f1: Estimate
    left_out: int


def fit_first_error(
    runs: Sequence[Path],
    output: Path,
    *,
    trajectories: Path | None = None,
    features: Sequence[str] = FEATURES,
    ridge: float = 3.0,
) -> FitReport:
    """Fit a first-error model to runs of ``--method posterior`` and write it.

    Args:
        trajectories: the labeled trajectories, if they are no longer where the runs found them.

    Raises:
        InputError: runs of another method, an unknown feature, or too little to fit to.
    """
    refuse_overwriting(output, runs, trajectories)
    if unknown := [name for name in features if name not in FEATURES]:
        raise InputError(f"unknown evidence {unknown[0]!r}; there is {', '.join(FEATURES)}")
    judged: list[JudgedEvidence] = []
    labels: list[JudgedTrajectory] = []
    folds: list[int] = []
    left_out = 0
    for record, trajectory in _records(runs, trajectories):
        each = judge(record, trajectory)
        if each is None:
            left_out += 1
            continue
        judged.append(each)
        labels.append(_labels(trajectory))
        folds.append(fold_of(trajectory.question))
    fitted_to = ", ".join(run.name for run in runs)
    model = fit(judged, features, ridge=ridge, fitted_to=fitted_to)
    f1 = Estimate(None)  # with very few questions a fold may leave nothing to fit to
    if all(_both_kinds(judged, folds, fold) for fold in set(folds)):
        rewards = cross_validated(judged, folds, features, ridge=ridge)
        found = FirstErrors([JudgedTrajectory(own, each.labels) for own, each in zip(rewards, labels, strict=True)])
        f1 = estimate(found.at(0.5, resamples(len(judged)))[:, 2])
    model.save(output)
    return FitReport(output, len(judged), f1, left_out)


def _both_kinds(judged: Sequence[JudgedEvidence], folds: Sequence[int], without: int) -> bool:
    rest = {each.first_error is None for each, fold in zip(judged, folds, strict=True) if fold != without}
    return rest == {True, False}


def _records(runs: Sequence[Path], trajectories: Path | None) -> Iterator[tuple[StepRewards, Trajectory]]:
    for run in runs:
        by_id = labeled_trajectories(run, trajectories)
        for record in rewards_by_id(run).values():
            if record.source != FirstErrorPosterior.name:
                raise InputError(f"{run}: has rewards of {record.source}; fit takes runs of --method posterior")
            if record.error is None:
                yield record, trajectory_of(by_id, record)


def judge(record: StepRewards, trajectory: Trajectory) -> JudgedEvidence | None:
    """Evidence with its judgment; None where nobody told the first wrong step, or that there is none.

    Raises:
        InputError: the record does not tell the outcome.
    """
    judged = trajectory.step_labels or ()
    first = trajectory.first_error
    told = judged[: len(judged) if first is None else first]
    if not judged or any(label is None for label in told):
        return None
    outcome: Outcome | None = next((each for each in get_args(Outcome) if each == record.details.get("outcome")), None)
    if outcome is None:
        raise InputError(f"{record.trajectory_id}: its rewards do not say how the solution ended; label it again")
    return JudgedEvidence({name: np.array(values) for name, values in record.terms.items()}, outcome, first)


def _labels(trajectory: Trajectory) -> JudgedTrajectory:
    labels = np.array([-1 if label is None else int(label) for label in trajectory.step_labels or ()], dtype=np.int64)
    return JudgedTrajectory(np.zeros(len(labels)), labels)


def cross_validated(
    judged: Sequence[JudgedEvidence], folds: Sequence[int], features: Sequence[str], *, ridge: float = 3.0
) -> list[FloatArray]:
    """Rewards of each trajectory by a model that was fitted to the other folds."""
    rewards: dict[int, FloatArray] = {}
    for fold in sorted(set(folds)):
        model = fit([each for each, at in zip(judged, folds, strict=True) if at != fold], features, ridge=ridge)
        for i, (each, at) in enumerate(zip(judged, folds, strict=True)):
            if at == fold:
                rewards[i] = model.rewards(each.evidence, each.outcome)
    return [rewards[i] for i in range(len(judged))]
