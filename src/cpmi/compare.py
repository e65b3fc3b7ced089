"""``cpmi compare`` as a function: what the labels of several runs cost, and how well they agree with people.

Runs are compared on the same trajectories: costs over those that every run attempted, quality over those that every run
rewarded (and that people annotated). How many those are is part of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from cpmi.benchmarks.baselines import baselines
from cpmi.benchmarks.cases import Case, Rewarded
from cpmi.decisions import FirstErrors
from cpmi.errors import InputError, unknown_name
from cpmi.export import trajectories_of
from cpmi.grader import Grader
from cpmi.metrics import (
    Estimate,
    JudgedTrajectory,
    PooledAUC,
    WithinAUC,
    estimate,
    resamples,
    spearman,
)
from cpmi.protocols import FloatArray, IntArray
from cpmi.records import Cost, StepRewards, Trajectory, rewards_by_id

Rewards = Mapping[str, FloatArray]  # by trajectory id


@dataclass(frozen=True, slots=True)
class Quality:
    """Agreement with human step labels.

    Attributes:
        roc_auc: of all annotated steps.
        within_auc: within trajectories: the first wrong step against the right ones before it.
        first_error_f1: ProcessBench's metric at the oracle threshold, an upper bound.
        f1_gain: its difference to the baseline run, over the same resamples.
    """

    roc_auc: Estimate
    within_auc: Estimate
    first_error_f1: Estimate
    f1_gain: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One source of rewards.

    Attributes:
        name: the run's folder or file.
        source: the method that made its rewards; ``baseline`` for those that know nothing of steps.
        rewarded, failed, missing: of all trajectories compared: with rewards, with an error, without a line.
        cost: over the trajectories that every run attempted; None for a baseline, which costs nothing.
        seconds_saved, tokens_saved: percent of the baseline run's seconds and generated tokens; None where that is 0.
    """

    name: str
    source: str
    rewarded: int
    failed: int
    missing: int
    cost: Cost | None
    seconds_saved: float | None = None
    tokens_saved: float | None = None
    quality: Quality | None = None


@dataclass(frozen=True, slots=True)
class Correlation:
    """Spearman's rank correlation of two runs, over the steps that every run rewarded; None where one is constant."""

    first: str
    second: str
    value: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of ``compare``.

    Attributes:
        trajectories: on how many costs are compared (attempted by every run).
        judged: on how many quality is compared (rewarded by every run, annotated by people).
        baseline: the run that percentages refer to.
        threshold_protocol: how first-error F1 gets its threshold.
        resamples: of the bootstrap, by trajectory; intervals are 95 %.
    """

    rows: tuple[Row, ...]
    correlations: tuple[Correlation, ...]
    trajectories: int
    judged: int
    baseline: str
    notes: tuple[str, ...] = ()
    threshold_protocol: str = "oracle"
    resamples: int = 1000


Records = Mapping[str, StepRewards]


def compare(
    runs: Sequence[Path],
    trajectories: Path | None = None,
    baseline: str | None = None,
    *,
    grader: Grader,
    count: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Put runs side by side.

    Args:
        runs: run directories, or files of step rewards, over the same trajectories.
        trajectories: the labeled trajectories, if they are not where the first run found them.
        baseline: name of the run to refer to; by default the first Monte Carlo one, else the first PAV one, else
            the one that took the longest.
        count: resamples of the bootstrap.

    Raises:
        InputError: a run that is none or is empty, repeated ids, lengths that do not fit, nothing in common.
    """
    loaded = {name: rewards_by_id(path) for name, path in _names(runs).items()}
    notes: list[str] = []
    by_id = _trajectories(runs, trajectories, notes)
    _check_lengths(loaded, by_id)
    attempted = _common(loaded.values(), lambda _: True)
    if not attempted:
        raise InputError("the runs have no trajectory in common; compare runs over the same file")
    base = _baseline(loaded, baseline)
    rewarded = _common(loaded.values(), lambda record: record.error is None)
    judged = [i for i in rewarded if i in by_id and any(v is not None for v in by_id[i].step_labels or ())]
    notes += _left_out(loaded, by_id, judged)
    if by_id and not judged:
        notes.append("no trajectory that every run rewarded has human step labels, so quality is not compared")
    if judged and len({by_id[i].first_error is None for i in judged}) == 1:
        notes.append("no first-error F1: it needs trajectories with an error and trajectories without one")
    trivial = _baselines(by_id, judged, grader, notes)
    qualities = _qualities(loaded, trivial, by_id, judged, base, count, seed)
    everything = len({i for records in loaded.values() for i in records})
    rows = [
        _row(name, records, attempted, loaded[base], everything, qualities.get(name))
        for name, records in loaded.items()
    ]
    rows += [Row(name, "baseline", len(judged), 0, 0, None, quality=qualities[name]) for name in trivial]
    return Comparison(
        tuple(rows),
        tuple(_correlations(loaded, rewarded)),
        len(attempted),
        len(judged),
        base,
        tuple(notes),
        resamples=count,
    )


# --- reading --------------------------------------------------------------------------------------------------------


def _names(runs: Sequence[Path]) -> dict[str, Path]:
    """A short name for each: its last part, with as many folders before it as tell it from the others."""
    if not runs:
        raise InputError("name at least one run")
    paths = [path.resolve() for path in runs]
    if len(set(paths)) < len(paths):
        raise InputError("a run is named twice")
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, runs, strict=True))


def _trajectories(runs: Sequence[Path], given: Path | None, notes: list[str]) -> dict[str, Trajectory]:
    """From the file given, else from where the run directories found them."""
    if given is None and not any(run.is_dir() for run in runs):
        notes.append(
            "quality is not compared: files of rewards do not say where their trajectories are (--trajectories)"
        )
        return {}
    try:
        return trajectories_of(runs, given)
    except InputError as error:
        if given is not None:
            raise
        notes.append(f"quality is not compared: {error}")
        return {}


def _common(runs: Iterable[Records], wanted: Callable[[StepRewards], bool]) -> list[str]:
    """The ids of which every run has a record that is wanted, sorted."""
    sets = [{i for i, record in records.items() if wanted(record)} for records in runs]
    first, *others = sets
    return sorted(first.intersection(*others))


def _left_out(loaded: Mapping[str, Records], by_id: Mapping[str, Trajectory], judged: Sequence[str]) -> list[str]:
    """What is not compared, since it is not in every run."""
    attempted = {i for records in loaded.values() for i in records}
    notes = [
        f"{name} has no line for {missing} of the {len(attempted)} trajectories"
        for name, records in loaded.items()
        if (missing := len(attempted - records.keys()))
    ]
    annotated = {i for i in attempted & by_id.keys() if any(v is not None for v in by_id[i].step_labels or ())}
    if judged and (lost := len(annotated) - len(judged)):
        notes.append(f"quality leaves out {lost} annotated trajectories that some run did not reward")
    return notes


def _check_lengths(loaded: Mapping[str, Records], by_id: Mapping[str, Trajectory]) -> None:
    """A trajectory has as many rewards in one run as in another, and as it has steps.

    Raises:
        InputError: with the id and both numbers.
    """
    lengths: dict[str, tuple[str, int]] = {i: ("its trajectory", len(t.steps)) for i, t in by_id.items()}
    for name, records in loaded.items():
        for i, record in records.items():
            if by_id and i not in by_id:
                raise InputError(f"{name}: no trajectory has the id {i!r}; name the file of its trajectories")
            if record.error is None:
                other, length = lengths.setdefault(i, (name, len(record.rewards)))
                if length != len(record.rewards):
                    raise InputError(f"{i!r}: {len(record.rewards)} rewards in {name}, {length} steps in {other}")


def _baseline(loaded: Mapping[str, Records], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in loaded:
            raise unknown_name("baseline", wanted, loaded)
        return wanted
    for source in ("mc", "pav"):
        if found := next((name for name, records in loaded.items() if _source(records) == source), None):
            return found
    return max(loaded, key=lambda name: _total(loaded[name].values()).seconds)


def _source(records: Records) -> str:
    return next(iter(records.values())).source


def _total(records: Iterable[StepRewards]) -> Cost:
    return sum((record.cost for record in records), Cost())


# --- costs ----------------------------------------------------------------------------------------------------------


def _row(
    name: str, records: Records, attempted: Sequence[str], base: Records, everything: int, quality: Quality | None
) -> Row:
    cost, reference = _total(records[i] for i in attempted), _total(base[i] for i in attempted)
    failed = sum(record.error is not None for record in records.values())
    return Row(
        name,
        _source(records),
        rewarded=len(records) - failed,
        failed=failed,
        missing=everything - len(records),
        cost=cost,
        seconds_saved=_saved(cost.seconds, reference.seconds),
        tokens_saved=_saved(cost.tokens_generated, reference.tokens_generated),
        quality=quality,
    )


def _saved(cost: float, reference: float) -> float | None:
    return 100 * (1 - cost / reference) if reference else None


def _correlations(loaded: Mapping[str, Records], rewarded: Sequence[str]) -> Iterator[Correlation]:
    for first, second in combinations(loaded, 2):
        a, b = (np.array([r for i in rewarded for r in loaded[name][i].rewards]) for name in (first, second))
        yield Correlation(first, second, spearman(a, b))


# --- quality --------------------------------------------------------------------------------------------------------


def _baselines(
    by_id: Mapping[str, Trajectory], judged: Sequence[str], grader: Grader, notes: list[str]
) -> dict[str, Rewards]:
    """Rewards that know nothing of steps, by name; see ``benchmarks.baselines``."""
    if not judged:
        return {}
    cases = tuple(Case(by_id[i], np.zeros(len(by_id[i].steps))) for i in judged)
    made, said = baselines(Rewarded("", cases), grader)
    notes += said
    return {
        each.source: {case.trajectory.id: case.rewards for case in each.cases if case.rewards is not None}
        for each in made
    }


def _qualities(
    loaded: Mapping[str, Records],
    trivial: Mapping[str, Rewards],
    by_id: Mapping[str, Trajectory],
    judged: Sequence[str],
    base: str,
    count: int,
    seed: int,
) -> dict[str, Quality]:
    if not judged:
        return {}
    sources: dict[str, Rewards] = {
        name: {i: np.array(records[i].rewards) for i in judged} for name, records in loaded.items()
    }
    sources |= trivial
    labels = {i: _labels(by_id[i]) for i in judged}
    weights = resamples(len(judged), count, seed)
    figures = {}
    for name, rewards in sources.items():
        cases = [JudgedTrajectory(rewards[i], labels[i]) for i in judged]
        first_error_f1 = FirstErrors(cases).best(weights)[:, 2]
        figures[name] = [PooledAUC(cases)(weights), WithinAUC(cases)(weights), first_error_f1]
    return {name: _quality(each, None if name == base else figures[base]) for name, each in figures.items()}


def _quality(figures: Sequence[FloatArray], base: Sequence[FloatArray] | None) -> Quality:
    auc, within, f1 = figures
    gain = None if base is None else estimate(f1 - base[2])
    return Quality(estimate(auc), estimate(within), estimate(f1), gain)


def _labels(trajectory: Trajectory) -> IntArray:
    return np.array([-1 if label is None else int(label) for label in trajectory.step_labels or ()], dtype=np.int64)


# --- as a table -----------------------------------------------------------------------------------------------------

COLUMNS = (
    "run", "method", "rewarded", "failed", "s each", "s total", "time saved", "generated each", "scored each",
    "tokens saved", "step AUC", "within AUC", "first-error F1",
)  # fmt: skip


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of text; what is not known is a dash."""
    judged = any(row.quality for row in comparison.rows)
    columns = COLUMNS if judged else COLUMNS[:10]
    return list(columns), [_cells(row, comparison)[: len(columns)] for row in comparison.rows]


def _cells(row: Row, comparison: Comparison) -> list[str]:
    costs = ["-"] * 6
    if row.cost is not None:
        n, cost = comparison.trajectories, row.cost
        costs = [
            f"{cost.seconds / n:.3g}",
            f"{cost.seconds:,.0f}",
            _percent(row.seconds_saved),
            f"{cost.tokens_generated / n:,.0f}",
            f"{cost.tokens_scored / n:,.0f}",
            _percent(row.tokens_saved),
        ]
    quality = row.quality
    figures = (quality.roc_auc, quality.within_auc, quality.first_error_f1) if quality else ()
    texts = [figure.text() for figure in figures] or ["-"] * 3
    return [row.name, row.source, str(row.rewarded), str(row.failed), *costs, *texts]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} %"


def correlation_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of text: the rank correlation of every two runs; none for a single run."""
    known = {(each.first, each.second): each.value for each in comparison.correlations}
    names = list(dict.fromkeys(name for pair in known for name in pair))
    columns = ["rank correlation", *names[1:]]
    rows = [
        [first, *(_signed(known[first, second]) if (first, second) in known else "" for second in names[1:])]
        for first in names[:-1]
    ]
    return columns, rows


def notes(comparison: Comparison) -> list[str]:
    """What a reader of the table must know."""
    lines = [
        f"costs over the {comparison.trajectories} trajectories that every run attempted, against {comparison.baseline}"
    ]
    if comparison.judged:
        lines.append(
            f"quality over the {comparison.judged} of them that every run rewarded and people annotated, with 95 % "
            f"intervals from {comparison.resamples} resamples of trajectories; first-error F1 at the "
            f"{comparison.threshold_protocol} threshold, an upper bound"
        )
    if comparison.correlations:
        lines.append("rank correlation: Spearman's, over all steps of the trajectories that every run rewarded")
    return [*lines, *comparison.notes]


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"
