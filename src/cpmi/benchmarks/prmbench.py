"""PRMBench (arXiv 2501.03124; ssmisya/PRMBench, mr_eval/tasks/prmtest_classified/task.py).

Every step counts by its own label, also after the first error. Counts are pooled over all items of a class. PRMScore is
half F1 (of right steps), half negative F1 (of wrong steps); in ``multi_solutions``, where no step is wrong, it is F1
alone. A group's figure is the mean of its classes', the overall one comes from the counts of all items. An F1 of
nothing found is 0 here, where the official code has -1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cpmi.benchmarks.cases import Case, Figures, Rewarded, Settings, named, scored, total_cost
from cpmi.decisions import StepCounts, between, f1, negative_f1, prm_score
from cpmi.metrics import JudgedTrajectory, divide
from cpmi.protocols import FloatArray
from cpmi.records import Cost
from cpmi.results import EvalResult

NAME = "prmbench"
GROUPS = {
    "simplicity": ("redundency", "circular"),  # the data's own spelling
    "soundness": ("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    "sensitivity": ("missing_condition", "deception", "multi_solutions"),
}
CLASSES = tuple(name for names in GROUPS.values() for name in names)
_ALL_RIGHT = "multi_solutions"


def evaluate(rewarded: Rewarded, settings: Settings, dev: Sequence[Case] = ()) -> list[EvalResult]:
    """A result for each class, each group that is complete, and overall.

    Raises:
        InputError: a threshold that cannot be tuned.
    """
    classes = rewarded.subsets(CLASSES)
    threshold = settings.tuned(classes, dev, best_threshold)
    parts = {name: _pooled(cases, settings, threshold, name, n) for n, (name, cases) in enumerate(classes.items())}
    groups = {
        group: _mean([parts[name] for name in names])
        for group, names in GROUPS.items()
        if all(name in parts for name in names)
    }
    overall = _pooled(rewarded.cases, settings, threshold, "overall", len(parts), _slips(rewarded))
    described = settings.described(threshold)
    everything = {**parts, **groups, "overall": overall}
    return [figures.result(NAME, name, rewarded.source, described) for name, figures in everything.items()]


def best_threshold(judged: Sequence[JudgedTrajectory]) -> float | None:
    """A threshold of the highest PRMScore; None without right and wrong steps."""
    found = StepCounts(judged)
    curve = found.curve(np.ones(len(judged)))
    if not (curve[0, 0] and curve[1, 0]):  # at minus infinity all right steps and all wrong ones are called right
        return None
    return between(found.thresholds, int(prm_score(curve).argmax()))


def _slips(rewarded: Rewarded) -> list[str]:
    """Items that name an error step past their end: an annotation slip, which leaves them fewer wrong steps or none."""
    ids = [case.trajectory.id for case in rewarded.cases if "error_steps_past_end" in case.trajectory.tags]
    return [f"{len(ids)} items name an error step past their end, which counts nowhere: {named(ids)}"] if ids else []


def _pooled(
    cases: Sequence[Case],
    settings: Settings,
    threshold: float | None,
    name: str,
    number: int,
    notes: Sequence[str] = (),
) -> Figures:
    able = scored(cases)
    judged = [case.judged() for case in able]
    found = StepCounts(judged)
    weights = settings.weights(len(able), number)
    score = f1 if name == _ALL_RIGHT else prm_score
    if threshold is None:
        lines, counts = _best(found, weights, score)
    else:
        counts, lines = found.at(threshold, weights), np.full(len(weights), threshold)
    tp, fp, tn, fn = counts
    arrays = {
        "prm_score": score(counts),
        "f1": f1(counts),
        "negative_f1": negative_f1(counts),
        "right_step_accuracy": divide(tp, tp + fn),
        "wrong_step_accuracy": divide(tn, tn + fp),
        "first_error_accuracy": _first_error_accuracy(judged, weights, lines),
    }
    if not able:
        notes = (*notes, "no item has rewards")
    return Figures(arrays, len(able), len(cases) - len(able), total_cost(cases), tuple(notes))


def _best(
    found: StepCounts, weights: FloatArray, score: Callable[[FloatArray], FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """(r,) the best threshold for each row of weights, and the (4, r) counts there."""
    indices, columns = [], []
    for row in weights:
        curve = found.curve(row)
        scores = score(curve)
        at = 0 if np.isnan(scores[0]) else int(scores.argmax())
        indices.append(at)
        columns.append(curve[:, at])
    return found.thresholds[np.array(indices, dtype=np.int64)], np.array(columns).reshape(-1, 4).T


def _first_error_accuracy(judged: Sequence[JudgedTrajectory], weights: FloatArray, lines: FloatArray) -> FloatArray:
    """(r,) how often the first wrong step is called wrong (whatever is said of the steps before it)."""
    wrong = [(i, each.rewards[each.first_error]) for i, each in enumerate(judged) if each.first_error is not None]
    if not wrong:
        return np.full(len(weights), np.nan)
    owners, rewards = (np.array(column) for column in zip(*wrong, strict=True))
    drawn = weights[:, owners.astype(np.int64)]
    return divide((drawn * (rewards[None, :] <= lines[:, None])).sum(axis=1), drawn.sum(axis=1))


def _mean(parts: Sequence[Figures]) -> Figures:
    """A group: the mean of its classes; a figure that one of them does not have is not defined."""
    arrays = {name: np.mean([part.arrays[name] for part in parts], axis=0) for name in parts[0].arrays}
    return Figures(
        arrays,
        sum(part.scored for part in parts),
        sum(part.unscored for part in parts),
        sum((part.cost for part in parts), Cost()),
    )


def published_row(scores: Mapping[str, float | None]) -> list[float | None]:
    """In the order of the paper's table: overall, then each group's classes and their mean."""
    names = ["overall", *(name for group, classes in GROUPS.items() for name in (*classes, group))]
    return [scores.get(name) for name in names]
