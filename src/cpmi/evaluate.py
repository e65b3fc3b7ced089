"""``cpmi evaluate`` as a function: any source of step rewards against human judgment, trivial baselines beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from cpmi.benchmarks import prmbench, processbench, steps
from cpmi.benchmarks.baselines import baselines
from cpmi.benchmarks.cases import Case, Rewarded, Settings, join
from cpmi.benchmarks.thresholds import Protocol
from cpmi.errors import InputError
from cpmi.export import labeled_trajectories
from cpmi.grader import Grader
from cpmi.records import StepRewards, read_trajectories, rewards_by_id
from cpmi.results import EvalResult

Benchmark = Literal["steps", "processbench", "prmbench"]

_EVALUATE: dict[str, Callable[[Rewarded, Settings, Sequence[Case]], list[EvalResult]]] = {
    steps.NAME: steps.evaluate,
    processbench.NAME: processbench.evaluate,
    prmbench.NAME: prmbench.evaluate,
}


def evaluate(
    benchmark: Benchmark,
    rewards: Path,
    trajectories: Path | None,
    settings: Settings,
    *,
    grader: Grader,
) -> list[EvalResult]:
    """Evaluate a run directory or a file of step rewards.

    The trivial baselines come after the source, except for PRMBench: its questions have no known answer. What a reader
    must know of all results is in the notes of the first.

    Args:
        trajectories: the labeled trajectories, if they are not where the run found them.

    Raises:
        InputError: rewards and trajectories that do not fit, or a threshold that cannot be tuned.
    """
    records = rewards_by_id(rewards)
    rewarded = join(rewards.resolve().name, records, labeled_trajectories(rewards, trajectories))
    dev = _dev(settings.threshold.dev, records)
    if dev is not None:
        rewarded = _without(rewarded, dev)
    results = _EVALUATE[benchmark](rewarded, settings, dev.cases if dev else ())
    notes = [*rewarded.notes, *_warnings(rewarded, settings)]
    if benchmark != prmbench.NAME:
        others, said = _baselines(benchmark, rewarded, dev, settings, grader)
        results += others
        notes += said
    first, *rest = results
    return [dataclasses.replace(first, notes=tuple(dict.fromkeys([*notes, *first.notes]))), *rest]


def _baselines(
    benchmark: Benchmark, rewarded: Rewarded, dev: Rewarded | None, settings: Settings, grader: Grader
) -> tuple[list[EvalResult], list[str]]:
    """Under the protocol of the source; they are probabilities, so that a fixed threshold is 0.5 for them."""
    made, notes = baselines(rewarded, grader)
    if settings.threshold.value not in (None, _HALF.value):
        settings = dataclasses.replace(settings, threshold=_HALF)
        notes = [*notes, f"the baselines are judged at {_HALF.name}, since they are probabilities"]
    tuned_on = {each.source: each.cases for each in baselines(dev, grader)[0]} if dev else {}
    results = []
    for each in made:
        if dev is not None and each.source not in tuned_on:
            notes = [*notes, f"no baseline {each.source}: it is not known on {dev.source}, where it would be tuned"]
        elif benchmark == steps.NAME:
            results += steps.evaluate(each, settings, tuned_on.get(each.source, ()), positions=False)
        else:
            results += processbench.evaluate(each, settings, tuned_on.get(each.source, ()))
    return results, notes


_HALF = Protocol.parse("fixed-0.5")


def _dev(source: str | None, records: Mapping[str, StepRewards]) -> Rewarded | None:
    """What a ``dev`` protocol is tuned on: a run with rewards of its own, or trajectories that the rewards cover.

    Raises:
        InputError: nothing there, or nothing that has rewards.
    """
    if source is None:
        return None
    path = Path(source)
    if path.is_dir():
        return join(f"dev:{source}", rewards_by_id(path), labeled_trajectories(path))
    return join(f"dev:{source}", records, {trajectory.id: trajectory for trajectory in read_trajectories(path)})


def _without(rewarded: Rewarded, dev: Rewarded) -> Rewarded:
    """What a threshold is tuned on is not reported, or the figure would be an upper bound.

    Raises:
        InputError: nothing is left.
    """
    tuned_on = {case.trajectory.id for case in dev.cases}
    cases = tuple(case for case in rewarded.cases if case.trajectory.id not in tuned_on)
    if not cases:
        raise InputError(
            f"{dev.source}: these are the trajectories to report; tune on other ones, or say --threshold oracle"
        )
    left = len(rewarded.cases) - len(cases)
    notes = (f"{left} trajectories that the threshold is tuned on are left out",) if left else ()
    return Rewarded(rewarded.source, cases, (*rewarded.notes, *notes))


def _warnings(rewarded: Rewarded, settings: Settings) -> list[str]:
    value = settings.threshold.value
    scored = [case.rewards for case in rewarded.cases if case.rewards is not None]
    if value is None or not 0 < value < 1:
        return []
    if any((rewards < 0).any() or (rewards > 1).any() for rewards in scored):
        return [
            f"a threshold of {value:g} means little here: there are rewards below 0 or above 1, which are no "
            "probabilities; use --threshold gsm8k-tuned or dev:FILE"
        ]
    return []


# --- tables ---------------------------------------------------------------------------------------------------------

_COLUMNS = {
    steps.NAME: ("roc_auc", "within_auc", "pr_auc", "wrong_share", "best_balanced_accuracy", "first_error_f1"),
    processbench.NAME: ("error_accuracy", "correct_accuracy", "f1"),
    prmbench.NAME: ("prm_score", "f1", "negative_f1", "first_error_accuracy"),
}
_CALIBRATION = ("brier", "ece")


def table(results: Sequence[EvalResult]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of text: a row per source and subset, figures with their intervals."""
    names = list(_COLUMNS[results[0].benchmark])
    names += [name for name in _CALIBRATION if any(name in result.metrics for result in results)]
    rows = [
        [
            result.source,
            result.subset,
            str(result.n),
            str(result.n_unscored),
            *(result.metrics[name].text(3) if name in result.metrics else "-" for name in names),
        ]
        for result in results
    ]
    return ["rewards", "subset", "n", "unscored", *names], rows


def published_table(results: Sequence[EvalResult]) -> tuple[list[str], list[list[str]]] | None:
    """The table as the benchmark's paper prints it, in percent with one decimal; None for ``steps``, which has none."""
    benchmark = results[0].benchmark
    if benchmark == steps.NAME:
        return None
    metric, columns = ("f1", _PROCESSBENCH) if benchmark == processbench.NAME else ("prm_score", _PRMBENCH)
    rows = []
    for source in dict.fromkeys(result.source for result in results):
        values = {each.subset: each.metrics[metric].value for each in results if each.source == source}
        rows.append([source, *(_percent(values.get(subset)) for subset in columns)])
    return ["rewards", *columns.values()], rows


_PROCESSBENCH = {
    "gsm8k": "GSM8K",
    "math": "MATH",
    "olympiadbench": "OlympiadBench",
    "omnimath": "Omni-MATH",
    "average": "Avg.",
}
_PRMBENCH = {
    "overall": "Overall",
    "redundency": "NR.",
    "circular": "NCL.",
    "simplicity": "Simplicity Avg.",
    "counterfactual": "ES.",
    "step_contradiction": "SC.",
    "domain_inconsistency": "DC.",
    "confidence": "CI.",
    "soundness": "Soundness Avg.",
    "missing_condition": "PS.",
    "deception": "DR.",
    "multi_solutions": "MS.",
    "sensitivity": "Sensitivity Avg.",
}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def threshold_line(result: EvalResult) -> str:
    """The protocol in words, for beside the numbers."""
    name = str(result.settings["threshold"])
    if result.settings.get("upper_bound"):
        return f"threshold: {name}, tuned on the very labels that are reported: an upper bound"
    value = result.settings.get("threshold_value")
    if not isinstance(value, float):
        raise InputError("a result without its threshold")
    return f"threshold: {name} ({value:.4g}); a step is called right above it"
