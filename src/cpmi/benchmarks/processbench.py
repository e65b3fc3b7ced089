"""ProcessBench (arXiv 2412.06559; QwenLM/ProcessBench, code/run_eval.py): is the first wrong step found?

Per subset error accuracy, correct accuracy and their harmonic mean F1; the average is the plain mean of the subsets.
The official code counts a reply that cannot be read as a miss. Here a trajectory without rewards is in no metric, and
``n_unscored`` counts it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cpmi.benchmarks.cases import Case, Figures, Rewarded, Settings, scored, total_cost
from cpmi.decisions import FirstErrors, predicted_first_error
from cpmi.metrics import JudgedTrajectory
from cpmi.records import JSON, Cost
from cpmi.results import EvalResult

NAME = "processbench"
SUBSETS = ("gsm8k", "math", "olympiadbench", "omnimath")


def evaluate(rewarded: Rewarded, settings: Settings, dev: Sequence[Case] = ()) -> list[EvalResult]:
    """A result for each subset, and their average.

    Raises:
        InputError: a threshold that cannot be tuned.
    """
    subsets = rewarded.subsets(SUBSETS)
    threshold = settings.tuned(subsets, dev, _best)
    parts = {name: _subset(cases, settings, threshold, number) for number, (name, cases) in enumerate(subsets.items())}
    described = settings.described(threshold)
    results = [figures.result(NAME, name, rewarded.source, described) for name, figures in parts.items()]
    if len(parts) > 1:
        results.append(_average(parts).result(NAME, "average", rewarded.source, described))
    return results


def _best(judged: Sequence[JudgedTrajectory]) -> float | None:
    return FirstErrors(judged).best_threshold()


def _subset(cases: Sequence[Case], settings: Settings, threshold: float | None, number: int) -> Figures:
    able = scored(cases)
    found = FirstErrors([case.judged() for case in able])
    weights = settings.weights(len(able), number)
    figures = found.best(weights) if threshold is None else found.at(threshold, weights)
    line = found.best_threshold() if threshold is None else threshold
    notes = []
    if len(kinds := {case.trajectory.first_error is None for case in able}) < 2:
        has = "no trajectory with rewards" if not kinds else f"only trajectories with{'out' * (True in kinds)} an error"
        notes.append(f"F1 is not defined: {has}")
    return Figures(
        dict(zip(FirstErrors.names, figures.T, strict=True)),
        len(able),
        len(cases) - len(able),
        total_cost(cases),
        tuple(notes),
        tuple(_case(case, line) for case in able),
    )


def _case(case: Case, threshold: float | None) -> dict[str, JSON]:
    """In ProcessBench's own terms: the index of the first wrong step, -1 for none."""
    label = case.trajectory.first_error
    described: dict[str, JSON] = {"id": case.trajectory.id, "label": -1 if label is None else label}
    if threshold is not None and case.rewards is not None:
        predicted = predicted_first_error(case.rewards, threshold)
        described["prediction"] = -1 if predicted is None else predicted
    return described


def _average(parts: dict[str, Figures]) -> Figures:
    arrays = {name: np.mean([figures.arrays[name] for figures in parts.values()], axis=0) for name in FirstErrors.names}
    notes: tuple[str, ...] = ()
    if parts.keys() != {*SUBSETS}:
        notes = (f"the average is over {', '.join(parts)}, not over ProcessBench's four subsets",)
    return Figures(
        arrays,
        sum(figures.scored for figures in parts.values()),
        sum(figures.unscored for figures in parts.values()),
        sum((figures.cost for figures in parts.values()), Cost()),
        notes,
    )
