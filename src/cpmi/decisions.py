"""What a threshold makes of step rewards: which steps it calls wrong, and how often that is so.

One rule everywhere: a step is called right if its reward is above the threshold (ssmisya/PRMBench, prmtest_classified:
``score > threshold``), else wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cpmi.metrics import JudgedTrajectory, divide
from cpmi.protocols import FloatArray, IntArray


def predicted_first_error(rewards: FloatArray, threshold: float) -> int | None:
    """The first step that the threshold calls wrong; None if there is none."""
    wrong = np.flatnonzero(rewards <= threshold)
    return int(wrong[0]) if len(wrong) else None


def between(thresholds: FloatArray, at: int) -> float:
    """A threshold that decides as ``thresholds[at]`` does, halfway to the next one, so that it suits other data too.

    Args:
        thresholds: (t,) ascending, minus infinity (nothing is wrong) first.
    """
    if at + 1 == len(thresholds):
        return float(thresholds[at])
    if at == 0:
        return float(np.nextafter(thresholds[1], -np.inf))
    middle = (thresholds[at] + thresholds[at + 1]) / 2
    return float(middle if middle < thresholds[at + 1] else thresholds[at])


def _index(thresholds: FloatArray, threshold: float) -> int:
    """Which of the thresholds decides as this one does."""
    return int(np.searchsorted(thresholds, threshold, side="right")) - 1


class FirstErrors:
    """Is the first wrong step found: ProcessBench's metrics (QwenLM/ProcessBench, code/run_eval.py).

    error accuracy: the share of trajectories with an error whose first wrong step is found exactly; correct accuracy:
    the share of those without one in which none is found; F1: their harmonic mean. NaN where a kind is missing. Steps
    that nobody judged are left out of it.

    Attributes:
        thresholds: (t,) ascending; each decides as every number up to the next one does.
    """

    names = ("error_accuracy", "correct_accuracy", "f1")

    def __init__(self, judged: Sequence[JudgedTrajectory]) -> None:
        rewards = np.concatenate([np.zeros(0), *(each.rewards for each in judged)])
        self.thresholds: FloatArray = np.concatenate([[-np.inf], np.unique(rewards)])
        self._wrong = np.array([each.first_error is not None for each in judged], dtype=np.bool_)
        stretches = np.array([_hit(each) for each in judged], dtype=np.float64).reshape(-1, 2)
        # A trajectory is judged rightly from the threshold at ``start`` up to the one before ``end``.
        self._start: IntArray = np.searchsorted(self.thresholds, stretches[:, 0])
        self._end: IntArray = np.maximum(self._start, np.searchsorted(self.thresholds, stretches[:, 1]))

    def at(self, threshold: float, weights: FloatArray) -> FloatArray:
        """(r, 3) figures at one threshold, for (r, trajectories) weights."""
        index = _index(self.thresholds, threshold)
        hits = ((self._start <= index) & (index < self._end)).astype(np.float64)
        accuracies = [
            divide(weights[:, kind] @ hits[kind], weights[:, kind].sum(axis=1)) for kind in (self._wrong, ~self._wrong)
        ]
        return np.stack([*accuracies, harmonic_mean(*accuracies)], axis=-1)

    def best(self, weights: FloatArray) -> FloatArray:
        """(r, 3) figures, each row at the threshold that is best for its own weights: an upper bound (``oracle``)."""
        rows = np.full((len(weights), 3), np.nan)
        for row, some in zip(rows, weights, strict=True):
            curve = self._curve(some)
            if not np.isnan(curve[2]).any():
                row[:] = curve[:, curve[2].argmax()]
        return rows

    def best_threshold(self) -> float | None:
        """A threshold of the highest F1 on these trajectories; None where there is no F1."""
        f1 = self._curve(np.ones(len(self._wrong)))[2]
        return None if np.isnan(f1).any() else between(self.thresholds, int(f1.argmax()))

    def _curve(self, weights: FloatArray) -> FloatArray:
        """(3, t) figures at every threshold."""
        accuracies = []
        for kind in (self._wrong, ~self._wrong):
            begun = np.bincount(self._start[kind], weights=weights[kind], minlength=len(self.thresholds) + 1)
            ended = np.bincount(self._end[kind], weights=weights[kind], minlength=len(self.thresholds) + 1)
            hits = np.cumsum(begun - ended)[: len(self.thresholds)]
            accuracies.append(divide(hits, np.full(len(hits), weights[kind].sum())))
        return np.stack([*accuracies, harmonic_mean(*accuracies)])


def _hit(each: JudgedTrajectory) -> tuple[float, float]:
    """The thresholds at which the first error is found, from the first up to, not with, the second."""
    # What nobody judged cannot be a false alarm.
    lowest = np.minimum.accumulate(np.where(each.labels < 0, np.inf, each.rewards))
    first = each.first_error
    if first is None:
        return -np.inf, float(lowest[-1])
    return float(each.rewards[first]), np.inf if first == 0 else float(lowest[first - 1])


def harmonic_mean(a: FloatArray, b: FloatArray) -> FloatArray:
    """Of two shares; 0 where both are 0."""
    return np.where(a + b == 0, 0.0, divide(2 * a * b, a + b))


class StepCounts:
    """How many steps a threshold calls right and wrong, rightly and wrongly; a right step is the positive class.

    Attributes:
        thresholds: (t,) ascending; see ``FirstErrors``.
    """

    def __init__(self, judged: Sequence[JudgedTrajectory]) -> None:
        labels = np.concatenate([np.zeros(0, np.int64), *(each.labels for each in judged)])
        keep = labels >= 0
        owners = np.repeat(np.arange(len(judged)), [len(each.labels) for each in judged])[keep]
        rewards = np.concatenate([np.zeros(0), *(each.rewards for each in judged)])[keep]
        self.thresholds: FloatArray = np.concatenate([[-np.inf], np.unique(rewards)])
        level = np.searchsorted(self.thresholds, rewards)
        right = labels[keep] == 1
        self._owners = {True: owners[right], False: owners[~right]}
        self._levels = {True: level[right], False: level[~right]}
        self._trajectories = len(judged)

    def at(self, threshold: float, weights: FloatArray) -> FloatArray:
        """(4, r) true and false positives, true and false negatives, at a threshold, for (r, trajectories) weights."""
        index = _index(self.thresholds, threshold)
        called_wrong: dict[bool, FloatArray] = {}
        all_of: dict[bool, FloatArray] = {}
        for kind in (True, False):
            wrong = self._levels[kind] <= index
            called_wrong[kind] = weights @ np.bincount(self._owners[kind][wrong], minlength=self._trajectories)
            all_of[kind] = weights @ np.bincount(self._owners[kind], minlength=self._trajectories)
        return _counts(called_wrong, all_of)

    def curve(self, weights: FloatArray) -> FloatArray:
        """(4, t) the same at every threshold, for (trajectories,) weights."""
        called_wrong: dict[bool, FloatArray] = {
            kind: np.cumsum(
                np.bincount(self._levels[kind], weights=weights[self._owners[kind]], minlength=len(self.thresholds))
            )
            for kind in (True, False)
        }
        return _counts(called_wrong, {kind: np.full_like(sums, sums[-1]) for kind, sums in called_wrong.items()})


def _counts(called_wrong: dict[bool, FloatArray], all_of: dict[bool, FloatArray]) -> FloatArray:
    right, wrong = (all_of[kind] - called_wrong[kind] for kind in (True, False))
    return np.stack([right, wrong, called_wrong[False], called_wrong[True]])


# --- figures from (4, ...) counts -----------------------------------------------------------------------------------


def f1(counts: FloatArray) -> FloatArray:
    """F1 of right steps: 0 where none is found, NaN where there is nothing to find and nothing was called right."""
    tp, fp, _, fn = counts
    return divide(2 * tp, 2 * tp + fp + fn)


def negative_f1(counts: FloatArray) -> FloatArray:
    """F1 of wrong steps."""
    tp, fp, tn, fn = counts
    return f1(np.stack([tn, fn, tp, fp]))


def prm_score(counts: FloatArray) -> FloatArray:
    """PRMBench's score: half F1, half negative F1 (arXiv 2501.03124)."""
    return 0.5 * f1(counts) + 0.5 * negative_f1(counts)


def balanced_accuracy(counts: FloatArray) -> FloatArray:
    """The mean of the shares of right and of wrong steps that are called so; NaN where a kind is missing."""
    tp, fp, tn, fn = counts
    return 0.5 * (divide(tp, tp + fn) + divide(tn, tn + fp))


def average_precision(curve: FloatArray) -> float:
    """Area under the precision-recall curve of wrong steps, as scikit-learn's ``average_precision_score``.

    Args:
        curve: (4, t) counts at ascending thresholds.
    """
    _, _, found, alarms = curve
    if not found[-1]:
        return float("nan")
    return float((np.diff(found, prepend=0.0) / found[-1] * divide(found, found + alarms)).sum(where=found > 0))
