"""The points of the lines and bars in the figures: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cpmi.benchmarks.calibration import BINS, Calibration
from cpmi.decisions import StepCounts
from cpmi.metrics import JudgedTrajectory
from cpmi.protocols import FloatArray, IntArray

LAST_POSITION = 20
_BARS = 20


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """Steps of many trajectories in a row.

    Attributes:
        rewards: (n,).
        labels: (n,) 1: right, 0: wrong, -1: not annotated.
        positions: (n,) in their trajectories, from 1.
    """

    rewards: FloatArray
    labels: IntArray
    positions: IntArray


def steps_of(cases: Sequence[JudgedTrajectory]) -> Steps:
    """All steps of these trajectories."""
    return Steps(
        np.concatenate([np.zeros(0), *(each.rewards for each in cases)]),
        np.concatenate([np.zeros(0, np.int64), *(each.labels for each in cases)]),
        np.concatenate([np.zeros(0, np.int64), *(np.arange(1, len(each.rewards) + 1) for each in cases)]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Thresholds:
    """What each threshold from low to high finds; there must be steps of both kinds.

    Attributes:
        found: (t,) share of the wrong steps that are called wrong: recall, the true positive rate.
        alarms: (t,) share of the right steps that are called wrong: the false positive rate.
        precision: (t,) share of the steps called wrong that are wrong; NaN at the first, which calls none wrong.
    """

    found: FloatArray
    alarms: FloatArray
    precision: FloatArray


def by_threshold(cases: Sequence[JudgedTrajectory]) -> Thresholds:
    """The ROC and precision-recall curves; a wrong step is the positive class, a low reward means wrong."""
    _, _, found, alarms = StepCounts(cases).curve(np.ones(len(cases)))
    called = np.where(found + alarms > 0, found + alarms, np.nan)
    return Thresholds(found / found[-1], alarms / alarms[-1], found / called)


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Rewards against the share of right steps, in bins of equal width; see ``Calibration``.

    Attributes:
        predicted: (b,) mean reward of each bin that is not empty.
        observed: (b,) share of its steps that people call right.
        counts: (b,) its annotated steps.
    """

    predicted: FloatArray
    observed: FloatArray
    counts: IntArray


def reliability(cases: Sequence[JudgedTrajectory]) -> Reliability:
    """Of annotated steps whose rewards lie in [0, 1]; at least one."""
    predicted, observed = Calibration(cases).curve()
    steps = steps_of(cases)
    bins = np.minimum((steps.rewards[steps.labels >= 0] * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    return Reliability(np.array(predicted), np.array(observed), counts[counts > 0])


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """Mean rewards by position.

    Attributes:
        positions: (p,) that have steps, from 1, at most ``LAST_POSITION``.
        means: (p,).
        errors: (p,) standard error of each mean; 0 where there is one step.
    """

    positions: IntArray
    means: FloatArray
    errors: FloatArray


def by_position(steps: Steps, label: int) -> Positions:
    """Of the steps with this label (1: right, 0: wrong, -1: not annotated)."""
    groups = []
    for position in range(1, LAST_POSITION + 1):
        rewards = steps.rewards[(steps.labels == label) & (steps.positions == position)]
        if n := len(rewards):
            groups.append((position, rewards.mean(), rewards.std(ddof=1) / np.sqrt(n) if n > 1 else 0.0))
    positions, means, errors = zip(*groups, strict=True) if groups else ((), (), ())
    return Positions(np.array(positions, np.int64), np.array(means, np.float64), np.array(errors, np.float64))


def histogram(steps: Steps) -> tuple[FloatArray, dict[int, FloatArray]]:
    """Edges of the bins, and by label (of those that occur) the share of its steps in each.

    One step in a hundred at either end goes into the outermost bins, so that one outlier does not flatten the rest.
    """
    low, high = steps.rewards.min(), steps.rewards.max()
    if not (low >= 0 and high <= 1):
        low, high = np.quantile(steps.rewards, [0.01, 0.99])
    else:
        low, high = 0.0, 1.0
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _BARS + 1)
    inside = np.clip(steps.rewards, low, high)
    shares = {}
    for label in (1, 0, -1):
        kind = inside[steps.labels == label]
        if len(kind):
            shares[label] = np.histogram(kind, edges)[0] / len(kind)
    return edges, shares
