"""What a report is about, read and joined: runs, their trajectories, and results of evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cpmi.benchmarks.baselines import BASELINES, OUTCOME, known_outcome
from cpmi.compare import Comparison, Quality, compare
from cpmi.errors import InputError
from cpmi.export import trajectories_of
from cpmi.grader import Grader
from cpmi.metrics import Estimate, JudgedTrajectory
from cpmi.protocols import FloatArray
from cpmi.records import StepRewards, Trajectory, rewards_by_id
from cpmi.results import EvalResult, read_results
from cpmi.runs import RunDirectory

Outcome = Literal["right", "wrong", "unknown"]


@dataclass(frozen=True, slots=True)
class Run:
    """The rewards of one run, and the scale they are shown on.

    Attributes:
        name: as ``compare`` calls it.
        source: the method.
        records: by trajectory id, failures too.
        center: the reward that is neither good nor bad: 0.5 if all rewards lie in [0, 1], 0 if they have both signs,
            else their median.
        scale: nine in ten rewards are no farther from the center; 0 if there are none, or all are at it.
        low, high: the smallest and the largest reward; 0 if there are none.
    """

    name: str
    source: str
    records: Mapping[str, StepRewards]
    center: float
    scale: float
    low: float
    high: float

    @property
    def constant(self) -> bool:
        """Whether every step has the same reward."""
        return self.low == self.high

    @property
    def flat(self) -> bool:
        """Whether all steps of a trajectory have the same reward, in every trajectory of several steps."""
        several = [record.rewards for record in self.records.values() if len(record.rewards) > 1]
        return bool(several) and all(min(rewards) == max(rewards) for rewards in several)

    def rewards(self, trajectory_id: str) -> FloatArray | None:
        """(steps,) rewards; None where there is no line, or one with an error."""
        record = self.records.get(trajectory_id)
        return None if record is None or record.error is not None else np.array(record.rewards, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Material:
    """Everything a report shows.

    Attributes:
        runs: in the order they were named.
        trajectories: those that a run has a line for, in the order of their file.
        outcomes: is the final answer right, by trajectory id.
        judged: ids of the trajectories that every run rewarded and people annotated: what quality is measured on.
        comparison: of the runs; None if there are none.
        results: of evaluations.
        notes: what is not as it should be, a sentence each.
    """

    runs: tuple[Run, ...] = ()
    trajectories: tuple[Trajectory, ...] = ()
    outcomes: Mapping[str, Outcome] | None = None
    judged: tuple[str, ...] = ()
    comparison: Comparison | None = None
    results: tuple[EvalResult, ...] = ()
    notes: tuple[str, ...] = ()

    def quality(self, name: str) -> Quality | None:
        """A run's, or a baseline's, agreement with people."""
        rows = self.comparison.rows if self.comparison else ()
        return next((row.quality for row in rows if row.name == name), None)

    def cases(self, run: Run | None) -> list[JudgedTrajectory]:
        """Rewards and human labels of the judged trajectories; of the outcome baseline for None."""
        judged = frozenset(self.judged)
        return [self._case(run, each) for each in self.trajectories if each.id in judged]

    def _case(self, run: Run | None, trajectory: Trajectory) -> JudgedTrajectory:
        right = float((self.outcomes or {}).get(trajectory.id) == "right")
        rewards = run.rewards(trajectory.id) if run else np.full(len(trajectory.steps), right)
        labels = [-1 if label is None else int(label) for label in trajectory.step_labels or ()]
        return JudgedTrajectory(np.zeros(0) if rewards is None else rewards, np.array(labels, dtype=np.int64))

    def hurdle(self) -> Estimate:
        """First-error F1 of the better of the baselines, which know nothing of steps; undefined if there is none."""
        figures = [quality.first_error_f1 for name in BASELINES if (quality := self.quality(name)) is not None]
        return max(figures, key=lambda figure: -1.0 if figure.value is None else figure.value, default=Estimate(None))

    @property
    def has_outcome_baseline(self) -> bool:
        return self.quality(OUTCOME) is not None


def load(
    arguments: Sequence[Path], trajectories: Path | None, *, grader: Grader, count: int = 1000, seed: int = 0
) -> Material:
    """Read runs, files of step rewards and results of evaluations.

    Args:
        trajectories: the labeled trajectories, if they are not where the run directories found them.
        count: resamples of the bootstrap.

    Raises:
        InputError: nothing named, a file that cannot be read, runs that do not fit together or to the trajectories.
    """
    paths, results = _split(arguments)
    if not paths:
        return Material(results=results)
    by_id = trajectories_of(paths, trajectories)
    comparison = compare(paths, trajectories, grader=grader, count=count, seed=seed)
    rows = [row for row in comparison.rows if row.name not in BASELINES]
    runs = tuple(_run(row.name, row.source, path) for row, path in zip(rows, paths, strict=True))
    attempted = {i for run in runs for i in run.records}
    shown = tuple(trajectory for i, trajectory in by_id.items() if i in attempted)
    judged = [t.id for t in shown if _annotated(t) and all(run.rewards(t.id) is not None for run in runs)]
    return Material(
        runs,
        shown,
        {trajectory.id: _outcome(trajectory, grader) for trajectory in shown},
        tuple(judged),
        comparison,
        results,
        tuple(_unfinished(paths)),
    )


def _split(arguments: Sequence[Path]) -> tuple[list[Path], tuple[EvalResult, ...]]:
    """Runs and files of step rewards; what is in the result files."""
    if not arguments:
        raise InputError("name at least one run or result")
    paths: list[Path] = []
    results: list[EvalResult] = []
    for path in arguments:
        if not path.exists():
            raise InputError(f"{path}: no such file or run")
        if path.suffix == ".json" and path.is_file():
            results += read_results(path)
        else:
            paths.append(path)
    return paths, tuple(results)


def _run(name: str, source: str, path: Path) -> Run:
    records = rewards_by_id(path)
    rewards = np.array([reward for record in records.values() for reward in record.rewards], dtype=np.float64)
    if not len(rewards):
        return Run(name, source, records, 0.0, 0.0, 0.0, 0.0)
    low, high = float(rewards.min()), float(rewards.max())
    center = 0.5 if low >= 0 and high <= 1 else 0.0 if low < 0 < high else float(np.median(rewards))
    return Run(name, source, records, center, float(np.quantile(np.abs(rewards - center), 0.9)), low, high)


def _annotated(trajectory: Trajectory) -> bool:
    return any(label is not None for label in trajectory.step_labels or ())


def _outcome(trajectory: Trajectory, grader: Grader) -> Outcome:
    """As the baselines have it (no answer is wrong), but what the grader cannot decide is unknown."""
    known = known_outcome(trajectory, grader)
    if known in ("undecided", "unknown"):
        return "unknown"
    return "right" if known == "right" else "wrong"


def _unfinished(paths: Sequence[Path]) -> list[str]:
    notes = []
    for path in filter(Path.is_dir, paths):
        done, parts = RunDirectory.open(path).parts_done()
        if done < parts:
            notes.append(f"{path} is not finished: {done} of {parts} parts are complete")
    return notes
