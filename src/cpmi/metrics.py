"""How well numbers agree with labels, and with one another: arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cpmi.protocols import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its bootstrap interval; the figure is None where it is not defined (one class only).

    Attributes:
        value: on the data as they are.
        low, high: 2.5 % and 97.5 % quantiles over resamples of trajectories.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def text(self, digits: int = 2) -> str:
        """For a table: the figure with its interval, a dash where it is not defined."""
        if self.value is None:
            return "-"
        interval = "" if self.low is None else f" ({self.low:.{digits}f}-{self.high:.{digits}f})"
        return f"{self.value:.{digits}f}{interval}"


@dataclass(frozen=True, slots=True, eq=False)
class JudgedTrajectory:
    """The rewards of a trajectory's steps, and what people said of them.

    Attributes:
        rewards: (steps,).
        labels: (steps,) 1: right, 0: wrong, -1: not annotated.
    """

    rewards: FloatArray
    labels: IntArray

    @property
    def first_error(self) -> int | None:
        """Index of the first wrong step, None if there is none."""
        wrong = np.flatnonzero(self.labels == 0)
        return int(wrong[0]) if len(wrong) else None


class Metric(Protocol):
    """A figure over trajectories that can be had for many weightings of them at once."""

    def __call__(self, weights: FloatArray) -> FloatArray:
        """(r, trajectories) weights to (r,) figures, NaN where one is not defined."""
        ...


# --- rank statistics ------------------------------------------------------------------------------------------------


def average_ranks(values: FloatArray) -> FloatArray:
    """(n,) ranks from 1; equal values share the mean of their ranks."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[index], dtype=np.float64)


def spearman(a: FloatArray, b: FloatArray) -> float | None:
    """Rank correlation of two (n,) arrays: Pearson's of the ranks; None where one of them is constant."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(average_ranks(a), average_ranks(b))[0, 1])


def roc_auc(right: FloatArray, wrong: FloatArray) -> float | None:
    """The share of (right, wrong) pairs in which the right one is higher, ties half; None if a kind is missing."""
    if not (len(right) and len(wrong)):
        return None
    ranks = average_ranks(np.concatenate([right, wrong]))[: len(right)]
    return float((ranks.sum() - len(right) * (len(right) + 1) / 2) / (len(right) * len(wrong)))


class PooledAUC:
    """ROC-AUC of all annotated steps of all trajectories."""

    def __init__(self, judged: Sequence[JudgedTrajectory]) -> None:
        labels = np.concatenate([np.zeros(0, np.int64), *(each.labels for each in judged)])
        owners = np.repeat(np.arange(len(judged)), [len(each.labels) for each in judged])
        rewards = np.concatenate([np.zeros(0), *(each.rewards for each in judged)])
        keep = labels >= 0
        _, level = np.unique(rewards[keep], return_inverse=True)
        levels = int(level.max(initial=-1)) + 1
        self._right = _incidence(owners[keep], level, labels[keep] == 1, (len(judged), levels))
        self._wrong = _incidence(owners[keep], level, labels[keep] == 0, (len(judged), levels))

    def __call__(self, weights: FloatArray) -> FloatArray:
        figures = [self._one(row) for row in weights]
        return np.array(figures, dtype=np.float64)

    def _one(self, weights: FloatArray) -> float:
        right, wrong = self._right.weigh(weights), self._wrong.weigh(weights)
        pairs = right.sum() * wrong.sum()
        below = np.cumsum(wrong) - wrong
        return float((right * (below + wrong / 2)).sum() / pairs) if pairs else np.nan


@dataclass(frozen=True, slots=True, eq=False)
class _Incidence:
    """Which trajectory has a step at which level of reward, sparse."""

    owners: IntArray
    levels: IntArray
    count: int

    def weigh(self, weights: FloatArray) -> FloatArray:
        """(trajectories,) weights to the (levels,) weight of steps at each level."""
        summed = np.bincount(self.levels, weights=weights[self.owners], minlength=self.count)
        return np.asarray(summed, dtype=np.float64)


def _incidence(owners: IntArray, levels: IntArray, chosen: BoolArray, shape: tuple[int, int]) -> _Incidence:
    return _Incidence(owners[chosen], levels[chosen], shape[1])


class WithinAUC:
    """The mean over trajectories of the AUC of the right steps before the first wrong one, against that one."""

    def __init__(self, judged: Sequence[JudgedTrajectory]) -> None:
        self._values = np.array([self._within(each) for each in judged], dtype=np.float64)

    @staticmethod
    def _within(each: JudgedTrajectory) -> float:
        first = each.first_error
        if first is None:
            return np.nan
        before = each.rewards[:first][each.labels[:first] == 1]
        value = roc_auc(before, each.rewards[first : first + 1])
        return np.nan if value is None else value

    def __call__(self, weights: FloatArray) -> FloatArray:
        known = ~np.isnan(self._values)
        total = weights[:, known].sum(axis=1)
        return divide(weights[:, known] @ self._values[known], total)


def divide(a: FloatArray, b: FloatArray) -> FloatArray:
    """Quotients, NaN where there is nothing to divide by."""
    b = np.broadcast_to(b, a.shape)
    quotient: FloatArray = np.full(a.shape, np.nan)
    np.divide(a, b, out=quotient, where=b != 0)
    return quotient


# --- intervals ------------------------------------------------------------------------------------------------------


def resamples(trajectories: int, count: int = 1000, seed: int = 0) -> FloatArray:
    """(count + 1, trajectories) how often each is drawn; the first row is the data as they are."""
    if not trajectories:
        return np.ones((count + 1, 0))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(trajectories, np.full(trajectories, 1 / trajectories), size=count)
    return np.concatenate([np.ones((1, trajectories)), drawn.astype(np.float64)])


def estimate(figures: FloatArray) -> Estimate:
    """From a metric's figures over ``resamples``: the first is the value, the others give the interval."""
    if np.isnan(figures[0]):
        return Estimate(None)
    defined = figures[1:][~np.isnan(figures[1:])]
    if not len(defined):
        return Estimate(float(figures[0]))
    low, high = np.quantile(defined, [0.025, 0.975])
    return Estimate(float(figures[0]), float(low), float(high))
