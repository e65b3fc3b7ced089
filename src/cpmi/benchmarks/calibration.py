"""Are rewards probabilities: calibration over annotated steps. Only rewards from 0 to 1 can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cpmi.metrics import JudgedTrajectory, divide
from cpmi.protocols import FloatArray

BINS = 10


def are_probabilities(judged: Sequence[JudgedTrajectory]) -> bool:
    """Whether all rewards lie in [0, 1]."""
    return all(bool(((each.rewards >= 0) & (each.rewards <= 1)).all()) for each in judged)


class Calibration:
    """Brier score, expected calibration error and the reliability curve.

    Brier: the mean squared difference of reward and label. ECE: over ten bins of equal width, the mean difference of
    mean reward and share of right steps, weighted by their steps (Guo et al., arXiv 1706.04599).
    """

    def __init__(self, judged: Sequence[JudgedTrajectory]) -> None:
        self._squares = np.zeros(len(judged))
        self._rewards, self._right, self._steps = (np.zeros((len(judged), BINS)) for _ in range(3))
        for i, each in enumerate(judged):
            keep = each.labels >= 0
            rewards, labels = each.rewards[keep], (each.labels[keep] == 1).astype(np.float64)
            bins = np.minimum((rewards * BINS).astype(np.int64), BINS - 1)
            self._squares[i] = ((rewards - labels) ** 2).sum()
            for sums, values in ((self._rewards, rewards), (self._right, labels), (self._steps, np.ones(len(bins)))):
                sums[i] = np.bincount(bins, weights=values, minlength=BINS)

    def brier(self, weights: FloatArray) -> FloatArray:
        """(r,) for (r, trajectories) weights."""
        return divide(weights @ self._squares, (weights @ self._steps).sum(axis=1))

    def ece(self, weights: FloatArray) -> FloatArray:
        """(r,) for (r, trajectories) weights."""
        gaps = np.abs(weights @ self._rewards - weights @ self._right).sum(axis=1)
        return divide(gaps, (weights @ self._steps).sum(axis=1))

    def curve(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean reward and share of right steps, of each bin that has steps."""
        steps = self._steps.sum(axis=0)
        some = steps > 0
        sums = (self._rewards.sum(axis=0), self._right.sum(axis=0))
        rewards, right = (tuple((each[some] / steps[some]).tolist()) for each in sums)
        return rewards, right
