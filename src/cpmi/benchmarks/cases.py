"""Rewards joined with the trajectories that people judged, and what all benchmarks have in common."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cpmi import __version__
from cpmi.benchmarks.thresholds import TUNED_ON, Protocol
from cpmi.errors import InputError
from cpmi.export import trajectory_of
from cpmi.metrics import JudgedTrajectory, estimate, resamples
from cpmi.protocols import FloatArray
from cpmi.records import JSON, Cost, StepRewards, Trajectory
from cpmi.results import EvalResult

_NAMED = 5  # ids in a note
_SUMS = ("all", "average", "overall")  # what results over several subsets are called


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A trajectory that people judged, and its rewards; None where it has none."""

    trajectory: Trajectory
    rewards: FloatArray | None
    cost: Cost = Cost()

    @property
    def subset(self) -> str:
        return self.trajectory.tags.get("subset", "")

    def judged(self) -> JudgedTrajectory:
        """For the metrics; only a case with rewards has it."""
        assert self.rewards is not None  # noqa: S101 - callers take the scored ones
        labels = [-1 if label is None else int(label) for label in self.trajectory.step_labels or ()]
        return JudgedTrajectory(self.rewards, np.array(labels, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Rewarded:
    """A source of rewards over the cases of a benchmark.

    Attributes:
        source: its name.
        notes: what a reader must know of how they were joined.
    """

    source: str
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()

    def subsets(self, order: Sequence[str] = ()) -> dict[str, list[Case]]:
        """The cases by subset: the known ones first, in their order, then the others by name."""
        found: dict[str, list[Case]] = {}
        for case in self.cases:
            found.setdefault(case.subset, []).append(case)
        names = [*(name for name in order if name in found), *sorted(found.keys() - {*order})]
        return {f"subset {name}" if name in _SUMS else name: found[name] for name in names}


def join(source: str, records: Mapping[str, StepRewards], trajectories: Mapping[str, Trajectory]) -> Rewarded:
    """Put rewards and judgments together by id.

    Trajectories without any judged step are left out, and counted in the notes; so are rewards of other trajectories.

    Raises:
        InputError: nothing is judged, nothing fits together, or a number of rewards that is not that of the steps.
    """
    judged = {i: t for i, t in trajectories.items() if any(label is not None for label in t.step_labels or ())}
    if not judged:
        raise InputError("none of the trajectories has human step labels; there is nothing to judge rewards by")
    common = [i for i in judged if i in records]
    if not common:
        raise InputError(f"{source}: none of its {len(records)} ids is one of the {len(judged)} judged trajectories")
    cases, failed = [], 0
    for i, trajectory in judged.items():
        record = records.get(i)
        if record is None or record.error is not None:
            failed += record is not None
            cases.append(Case(trajectory, None, Cost() if record is None else record.cost))
        else:
            trajectory_of({i: trajectory}, record)
            cases.append(Case(trajectory, np.array(record.rewards, dtype=np.float64), record.cost))
    notes = []
    if strangers := len(records.keys() - trajectories.keys()):
        notes.append(f"{strangers} of the rewards belong to no trajectory here, and are left out")
    if unjudged := len(trajectories) - len(judged):
        notes.append(f"{unjudged} trajectories without human step labels are left out")
    if unscored := sum(case.rewards is None for case in cases):
        notes.append(f"{unscored} judged trajectories have no rewards ({failed} failed), and are in no metric")
    return Rewarded(source, tuple(cases), tuple(notes))


@dataclass(frozen=True, slots=True)
class Settings:
    """How to evaluate.

    Attributes:
        threshold: the protocol by which steps are called right or wrong.
        resamples: of the bootstrap, by trajectory; intervals are 95 %.
    """

    threshold: Protocol
    resamples: int = 1000
    seed: int = 0

    def weights(self, trajectories: int, number: int = 0) -> FloatArray:
        """(resamples + 1, trajectories); ``number`` tells samples apart that must not move together."""
        return resamples(trajectories, self.resamples, self.seed + number)

    def tuned(
        self,
        subsets: Mapping[str, Sequence[Case]],
        dev: Sequence[Case],
        best: Callable[[Sequence[JudgedTrajectory]], float | None],
    ) -> float | None:
        """The threshold by the protocol; None for the oracle.

        Args:
            subsets: the benchmark's own cases, one subset of which a protocol may be tuned on.
            dev: the cases of a ``dev`` protocol.
            best: finds the best threshold, by the benchmark's own metric.

        Raises:
            InputError: there is nothing to tune on.
        """
        tuning = dev if self.threshold.dev else subsets.get(TUNED_ON, ())
        return self.threshold.threshold([case.judged() for case in scored(tuning)], best)

    def described(self, threshold: float | None) -> dict[str, JSON]:
        """For ``EvalResult.settings``."""
        described: dict[str, JSON] = {"threshold": self.threshold.name, "resamples": self.resamples, "seed": self.seed}
        if self.threshold.is_oracle:
            described["upper_bound"] = True
        return described if threshold is None else described | {"threshold_value": threshold}


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one subset, before they become an ``EvalResult``.

    Attributes:
        arrays: by metric, (resamples + 1,) figures; the first is that of the data as they are.
        scored, unscored: how many cases have rewards, and how many have none.
        cost: of the rewards.
    """

    arrays: dict[str, FloatArray]
    scored: int
    unscored: int
    cost: Cost
    notes: tuple[str, ...] = ()
    cases: tuple[dict[str, JSON], ...] = ()
    curves: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)

    def result(self, benchmark: str, subset: str, source: str, settings: dict[str, JSON]) -> EvalResult:
        return EvalResult(
            benchmark,
            subset,
            source,
            {name: estimate(array) for name, array in self.arrays.items()},
            n=self.scored,
            n_unscored=self.unscored,
            settings=settings,
            curves=self.curves,
            cases=self.cases,
            notes=self.notes,
            cost=self.cost,
            versions=versions(),
        )


def scored(cases: Iterable[Case]) -> list[Case]:
    """Those that have rewards."""
    return [case for case in cases if case.rewards is not None]


def total_cost(cases: Iterable[Case]) -> Cost:
    return sum((case.cost for case in cases), Cost())


def named(ids: Sequence[str]) -> str:
    """The first few ids, for a note."""
    return ", ".join(ids[:_NAMED]) + (", ..." if len(ids) > _NAMED else "")


def versions() -> dict[str, str]:
    """Of what computes."""
    return {"cpmi": __version__, "numpy": importlib.metadata.version("numpy"), "python": platform.python_version()}
