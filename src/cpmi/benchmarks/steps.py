"""Any steps that people judged: can rewards tell right steps from wrong ones, and find the first wrong one?

Over annotated steps only. Areas and shares need no threshold or take the best one; the threshold protocol is that of
first-error F1 (``error_accuracy``, ``correct_accuracy``, ``first_error_f1``), by ProcessBench's definition.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cpmi.benchmarks.calibration import Calibration, are_probabilities
from cpmi.benchmarks.cases import Case, Figures, Rewarded, Settings, scored, total_cost
from cpmi.decisions import FirstErrors, StepCounts, average_precision, balanced_accuracy
from cpmi.metrics import JudgedTrajectory, PooledAUC, WithinAUC, divide
from cpmi.protocols import FloatArray
from cpmi.results import EvalResult

NAME = "steps"
POSITIONS = 10  # steps from this one on are put together
_POINTS = 200  # of a curve


def evaluate(
    rewarded: Rewarded, settings: Settings, dev: Sequence[Case] = (), *, positions: bool = True
) -> list[EvalResult]:
    """A result for all trajectories, for each subset if there are several, and for each position of a step.

    Raises:
        InputError: a threshold that cannot be tuned.
    """
    subsets = rewarded.subsets()
    threshold = settings.tuned(subsets, dev, _best)
    described = settings.described(threshold)
    parts = {"all": _whole(rewarded.cases, settings, threshold, 0)}
    if len(subsets) > 1:
        parts |= {name: _whole(cases, settings, threshold, n) for n, (name, cases) in enumerate(subsets.items(), 1)}
    results = [figures.result(NAME, name, rewarded.source, described) for name, figures in parts.items()]
    if positions:
        by_position = _by_position(rewarded.cases, settings)
        results += [each.result(NAME, name, rewarded.source, described) for name, each in by_position.items()]
    return results


def _best(judged: Sequence[JudgedTrajectory]) -> float | None:
    return FirstErrors(judged).best_threshold()


def _whole(cases: Sequence[Case], settings: Settings, threshold: float | None, number: int) -> Figures:
    able = scored(cases)
    judged = [case.judged() for case in able]
    weights = settings.weights(len(able), number)
    errors, counts = FirstErrors(judged), StepCounts(judged)
    first = errors.best(weights) if threshold is None else errors.at(threshold, weights)
    arrays = {"roc_auc": PooledAUC(judged)(weights), "within_auc": WithinAUC(judged)(weights)}
    arrays |= _of_counts(counts, weights)
    names = ("error_accuracy", "correct_accuracy", "first_error_f1")
    arrays |= dict(zip(names, first.T, strict=True))
    curves = _curves(counts.curve(np.ones(len(able))))
    calibration, said = _calibration(judged)
    if calibration is not None:
        arrays |= {"brier": calibration.brier(weights), "ece": calibration.ece(weights)}
        curves["reliability"] = calibration.curve()
    notes = (*said, *_undefined(judged))
    return Figures(arrays, len(able), len(cases) - len(able), total_cost(cases), notes, (), curves)


def _of_counts(counts: StepCounts, weights: FloatArray) -> dict[str, FloatArray]:
    """Figures that look at every threshold: area under the precision-recall curve of wrong steps, best accuracy."""
    rows = [counts.curve(row) for row in weights]
    best = [_highest(balanced_accuracy(curve)) for curve in rows]
    wrong = [curve[1, 0] for curve in rows]  # at minus infinity every wrong step is a false positive
    right = [curve[0, 0] for curve in rows]
    return {
        "pr_auc": np.array([average_precision(curve) for curve in rows]),
        "wrong_share": divide(np.array(wrong), np.array(wrong) + np.array(right)),
        "best_balanced_accuracy": np.array(best),
    }


def _highest(values: FloatArray) -> float:
    return float("nan") if np.isnan(values).all() else float(np.nanmax(values))


def _calibration(judged: Sequence[JudgedTrajectory]) -> tuple[Calibration | None, tuple[str, ...]]:
    if not judged:
        return None, ()
    if not are_probabilities(judged):
        return None, ("no calibration: there are rewards below 0 or above 1, which are no probabilities",)
    return Calibration(judged), ()


def _undefined(judged: Sequence[JudgedTrajectory]) -> list[str]:
    """What a reader should know where a figure is missing or empty of meaning."""
    if not judged:
        return ["no trajectory has rewards"]
    notes = []
    labels = np.concatenate([each.labels for each in judged])
    kinds = {kind for kind in (0, 1) if (labels == kind).any()}
    if len(kinds) < 2:
        notes.append(f"areas are not defined: all annotated steps are {'right' if kinds == {1} else 'wrong'}")
    if len({each.first_error is None for each in judged}) < 2:
        notes.append("first-error F1 is not defined: it needs trajectories with an error and without one")
    rewards = np.concatenate([each.rewards for each in judged])
    if np.ptp(rewards) == 0:
        notes.append(f"all rewards are {rewards[0]:g}: they tell nothing apart; an area of 0.5 is made of ties alone")
    return notes


def _curves(counts: FloatArray) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """ROC (false and true positive rate of right steps) and precision-recall (recall and precision of wrong steps)."""
    tp, fp, tn, fn = counts
    right, wrong = tp[0], fp[0]
    if not (right and wrong):
        return {}
    called = tn + fn > 0
    lines = {"roc": (fp / wrong, tp / right), "pr": (tn[called] / wrong, (tn / np.maximum(tn + fn, 1))[called])}
    return {name: (_thin(x), _thin(y)) for name, (x, y) in lines.items()}


def _thin(values: FloatArray) -> tuple[float, ...]:
    """At most so many points, the first and the last among them."""
    places = np.unique(np.linspace(0, len(values) - 1, min(len(values), _POINTS)).round().astype(np.int64))
    return tuple(values[places].round(5).tolist())


def _by_position(cases: Sequence[Case], settings: Settings) -> dict[str, Figures]:
    """The area and the share of wrong steps at each position, counted from 1."""
    able = scored(cases)
    parts = {}
    for position in range(POSITIONS):
        some = [_at_position(case.judged(), position) for case in able]
        if not any((each.labels >= 0).any() for each in some):
            continue
        weights = settings.weights(len(able))
        curves = [StepCounts(some).curve(np.ones(len(able)))]
        right, wrong = curves[0][0, 0], curves[0][1, 0]
        name = f"step {position + 1}" + (" and later" if position == POSITIONS - 1 else "")
        counts = StepCounts(some).at(-np.inf, weights)
        arrays = {"roc_auc": PooledAUC(some)(weights), "wrong_share": divide(counts[1], counts[0] + counts[1])}
        note = () if right and wrong else (f"the area is not defined: all steps are {'right' if right else 'wrong'}",)
        reached = sum(bool((each.labels >= 0).any()) for each in some)
        parts[name] = Figures(arrays, reached, 0, total_cost(()), note)
    return parts


def _at_position(each: JudgedTrajectory, position: int) -> JudgedTrajectory:
    """The trajectory with all steps but those of a position taken to be not annotated."""
    places = np.minimum(np.arange(len(each.labels)), POSITIONS - 1)
    return JudgedTrajectory(each.rewards, np.where(places == position, each.labels, -1))
