"""``cpmi combine`` as a function: one set of rewards from two, by trajectory id and step.

Rewards of different methods live on different scales (a Monte Carlo value is a share, CPMI has no bounds), so both are
put on one scale first, which is fitted over all steps of the trajectories that both rewarded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cpmi.errors import InputError
from cpmi.export import refuse_overwriting
from cpmi.metrics import average_ranks
from cpmi.protocols import FloatArray
from cpmi.records import JSON, StepRewards, rewards_by_id, write_records

Scale = Literal["zscore", "rank", "none"]


@dataclass(frozen=True, slots=True)
class Rule:
    """How two rewards of a step become one; exactly one of the two is set.

    Attributes:
        first_steps: so many first steps have the first run's rewards, the others the second's.
        weights: of the two in a weighted sum.

    Raises:
        InputError: both, or neither; a number that makes no sense.
    """

    first_steps: int | None = None
    weights: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if (self.first_steps is None) == (self.weights is None):
            raise InputError("name one way of combining: --first-steps K, or --weights W1,W2")
        if self.first_steps is not None and self.first_steps < 1:
            raise InputError(f"the number of first steps must be 1 or more, not {self.first_steps}")
        if self.weights is not None and not np.isfinite(self.weights).all():
            raise InputError("the weights must be finite numbers")

    def apply(self, first: Sequence[float], second: Sequence[float]) -> tuple[float, ...]:
        if self.first_steps is not None:
            return (*first[: self.first_steps], *second[self.first_steps :])
        w1, w2 = self.weights or (0.0, 0.0)
        return tuple(w1 * a + w2 * b for a, b in zip(first, second, strict=True))


@dataclass(frozen=True, slots=True)
class CombineReport:
    """What became of the trajectories.

    Attributes:
        combined: have rewards.
        failed: have a line with an error, since a run has none of them, or none with rewards.
    """

    combined: int
    failed: int


def combine(first: Path, second: Path, output: Path, rule: Rule, scale: Scale = "zscore") -> CombineReport:
    """Combine two runs, or files of step rewards, into a file.

    A line has the terms ``first`` and ``second`` (what was combined, on the common scale), and the cost of both. The
    first run's trajectories come first, in its order.

    Raises:
        InputError: nothing in common, lengths that differ, repeated ids, rewards that are all the same (z-score).
    """
    refuse_overwriting(output, [first, second])
    one, two = rewards_by_id(first), rewards_by_id(second)
    common = [i for i, record in one.items() if _rewarded(record) and _rewarded(two.get(i))]
    if not common:
        raise InputError(f"{first} and {second} have no trajectory with rewards in common")
    for i in common:
        if len(one[i].rewards) != len(two[i].rewards):
            numbers = f"{len(one[i].rewards)} rewards in {first}, {len(two[i].rewards)} in {second}"
            raise InputError(f"{i!r}: {numbers}; combine runs over the same trajectories")
    scales = [
        _fitted(scale, np.concatenate([run[i].rewards for i in common]), path)
        for run, path in ((one, first), (two, second))
    ]
    details: dict[str, JSON] = {"runs": [first.name, second.name], "scale": scale}
    details |= {"first_steps": rule.first_steps} if rule.weights is None else {"weights": list(rule.weights)}
    records = list(_combined(one, two, (first, second), scales, rule, details))
    write_records(output, records)
    failed = sum(record.error is not None for record in records)
    return CombineReport(len(records) - failed, failed)


def _rewarded(record: StepRewards | None) -> bool:
    return record is not None and record.error is None


_ScaleMap = Callable[[FloatArray], FloatArray]


def _fitted(scale: Scale, rewards: FloatArray, path: Path) -> _ScaleMap:
    """The map to the common scale. ``zscore``: mean 0, deviation 1; ``rank``: the share of rewards below."""
    if scale == "none":
        return lambda values: values
    if scale == "rank":
        order = np.sort(rewards)
        ranks = average_ranks(order)
        return lambda values: (ranks[np.searchsorted(order, values)] - 0.5) / len(order)
    mean, deviation = float(rewards.mean()), float(rewards.std())
    if np.ptp(rewards) == 0:  # the deviation of equal numbers may be a rounding error above 0
        raise InputError(f"{path}: all its rewards are {mean:g}, which cannot be scaled; use --scale none or rank")
    return lambda values: (values - mean) / deviation


def _combined(
    one: Mapping[str, StepRewards],
    two: Mapping[str, StepRewards],
    paths: tuple[Path, Path],
    scales: Sequence[_ScaleMap],
    rule: Rule,
    details: dict[str, JSON],
) -> Iterator[StepRewards]:
    for i in (*one, *(other for other in two if other not in one)):
        pair = one.get(i), two.get(i)
        known = [record for record in pair if record is not None]
        source = "+".join(dict.fromkeys(record.source for record in known))
        cost = sum((record.cost for record in known[1:]), known[0].cost)
        if error := next(filter(None, map(_why_not, pair, paths)), None):
            yield StepRewards(i, (), source, cost=cost, error=error)
            continue
        scaled = [tuple(map_(np.array(record.rewards)).tolist()) for map_, record in zip(scales, known, strict=True)]
        terms = {"first": scaled[0], "second": scaled[1]}
        yield StepRewards(i, rule.apply(*scaled), source, terms, dict(details), cost)


def _why_not(record: StepRewards | None, path: Path) -> str | None:
    if record is None:
        return f"not in {path.name}"
    return None if record.error is None else f"failed in {path.name}: {record.error}"
