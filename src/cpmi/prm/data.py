"""Training rows: read from a file of targets, split by question, and how much each step counts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cpmi.errors import InputError
from cpmi.protocols import FloatArray
from cpmi.records import StepRewards, Trajectory, read_rows


@dataclass(frozen=True, slots=True)
class TargetRow:
    """A trajectory and a target for each of its steps, as ``cpmi targets`` writes them.

    Attributes:
        targets: a finite number per step; None where a step is not annotated.
        rewards: what the targets were made of; None where there is nothing.
        source: what made the rewards.
        weights: how much each step counts, at least 0; None: all alike.
    """

    id: str
    question: str
    steps: tuple[str, ...]
    targets: tuple[float | None, ...]
    rewards: tuple[float | None, ...]
    source: str
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("targets", "rewards"):
            values = getattr(self, name)
            if len(values) != len(self.steps):
                raise InputError(f"{len(values)} {name} for {len(self.steps)} steps")
            for value in values:
                if value is not None and not _is_number(value):
                    raise InputError(f"{name} must be finite numbers or null, not {value!r:.40}")
        if self.weights is not None:
            if len(self.weights) != len(self.steps):
                raise InputError(f"{len(self.weights)} weights for {len(self.steps)} steps")
            for value in self.weights:
                if not _is_number(value) or value < 0:
                    raise InputError(f"weights must be finite numbers of at least 0, not {value!r:.40}")

    @property
    def trajectory(self) -> Trajectory:
        return Trajectory(self.question, self.steps, id=self.id)

    def first_steps(self, count: int) -> TargetRow:
        """Without the steps behind so many."""
        weights = None if self.weights is None else self.weights[:count]
        return replace(
            self,
            steps=self.steps[:count],
            targets=self.targets[:count],
            rewards=self.rewards[:count],
            weights=weights,
        )

    def array(self, name: Literal["targets", "rewards"]) -> FloatArray:
        """(steps,) with NaN for None."""
        values: tuple[float | None, ...] = getattr(self, name)
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def read_targets(path: Path) -> list[TargetRow]:
    """Every row of a file of targets; ``rewards``, ``weights`` and ``source`` may be missing.

    Raises:
        InputError: a missing or empty file, a row that is none (with its place), no annotated step at all.
    """
    rows = []
    for place, row in read_rows(path):
        try:
            rows.append(_row(row))
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
    if not rows:
        raise InputError(f"{path}: holds no trajectory")
    if all(target is None for row in rows for target in row.targets):
        raise InputError(f"{path}: no step has a target")
    return rows


def _row(row: Any) -> TargetRow:
    needed = ("id", "question", "steps", "targets")
    if not isinstance(row, dict) or (missing := [name for name in needed if name not in row]):
        what = f"missing field {missing[0]!r}" if isinstance(row, dict) else "no JSON object"
        raise InputError(f"{what}; a row of targets has {', '.join(needed)} (cpmi targets writes them)")
    for name in ("steps", "targets", "rewards", "weights"):
        if not isinstance(row.get(name, []), list) and not (name in ("rewards", "weights") and row[name] is None):
            raise InputError(f"field {name!r} must be a list")
    trajectory = Trajectory(row["question"], tuple(row["steps"]), id=row["id"])  # checks itself
    rewards, weights = row.get("rewards"), row.get("weights")
    rewards = [None] * len(trajectory.steps) if rewards is None else rewards
    source = row.get("source") or "unknown"
    StepRewards(trajectory.id, (), source)  # checks the source
    return TargetRow(
        trajectory.id,
        trajectory.question,
        trajectory.steps,
        tuple(row["targets"]),
        tuple(rewards),
        source,
        None if weights is None else tuple(weights),
    )


def check_targets(rows: Sequence[TargetRow], *, probabilities: bool) -> None:
    """Refuse what nothing, or nonsense, would be learned from.

    Args:
        probabilities: the objective needs targets in [0, 1].

    Raises:
        InputError: a target outside [0, 1] (with its trajectory), or targets that are all equal.
    """
    known = [(row.id, target) for row in rows for target in row.targets if target is not None]
    if probabilities:
        outside = [(name, target) for name, target in known if not 0 <= target <= 1]
        if outside:
            name, target = outside[0]
            raise InputError(
                f"targets must lie in [0, 1]: {len(outside)} do not (first: {target:g} of {name!r}); this "
                "objective needs probabilities: make them with another --normalizer, or take --objective mse-logit"
            )
    if not known:
        raise InputError("no step has a target")
    if len({target for _, target in known}) < 2:
        raise InputError(f"all targets are {known[0][1]:g}, so that there is nothing to learn")


def split_by_question(rows: Sequence[TargetRow], share: float, seed: int) -> tuple[list[TargetRow], list[TargetRow]]:
    """Rows to train on, and rows held out: all trajectories of a question are on one side.

    The side of a question depends on its text and the seed alone, so that it stays when data is added. Questions that
    differ in white space or case are one question.

    Args:
        share: of the questions that are held out; 0: none.
    """
    held: list[TargetRow] = []
    kept: list[TargetRow] = []
    for row in rows:
        (held if _place(row.question, seed) < share else kept).append(row)
    return kept, held


def share_that_holds(rows: Sequence[TargetRow], share: float, seed: int) -> float:
    """The share, or as much more as holds at least one question out of two or more; 0 stays 0."""
    places = sorted({_place(row.question, seed) for row in rows})
    return max(share, math.nextafter(places[0], 1)) if share and len(places) > 1 else share


def _place(question: str, seed: int) -> float:
    """A number in [0, 1) that a question has for good."""
    key = f"{seed} {' '.join(question.lower().split())}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big") / 2**56


@dataclass(frozen=True, slots=True)
class WeightSettings:
    """How much a step counts: what weak labels need.

    Attributes:
        by: ``none``: all alike; ``reward``: by |reward|, at most 3 times the mean (rewards whose zero says nothing,
            as those of CPMI); ``target``: by |2 target - 1| (probabilities, whose 1/2 says nothing).
        ambiguous: steps with a target strictly between these two are not learned from; None: learn from all.
        positive: what a step with target 1 counts in units of one with target 0, linear in between; None: so that
            both sides count alike in sum (balanced).

    Raises:
        InputError: a number out of its range.
    """

    by: Literal["none", "reward", "target"] = "none"
    ambiguous: tuple[float, float] | None = None
    positive: float | None = 1.0

    def __post_init__(self) -> None:
        if self.ambiguous is not None and not self.ambiguous[0] < self.ambiguous[1]:
            raise InputError(
                f"the ambiguous range {self.ambiguous[0]:g},{self.ambiguous[1]:g} is empty; write LOW,HIGH"
            )
        if self.positive is not None and not (math.isfinite(self.positive) and self.positive > 0):
            raise InputError(f"the weight of right steps must be a number above 0, not {self.positive}")


_MOST = 3.0  # of a confidence, in units of the mean: one far outlier must not outweigh the rest


def step_weights(rows: Sequence[TargetRow], settings: WeightSettings) -> list[FloatArray]:
    """(steps,) for each row: 0 where a step is not learned from; the mean over all others is 1.

    A row's own ``weights`` count beside what the settings say.

    Raises:
        InputError: no step is left, or only one side where both shall count alike.
    """
    if not rows:
        return []
    lengths = [len(row.steps) for row in rows]
    targets = np.concatenate([row.array("targets") for row in rows])
    own = np.concatenate([np.ones(len(row.steps)) if row.weights is None else row.weights for row in rows])
    weights = np.where(np.isnan(targets), 0.0, own)
    if settings.ambiguous is not None:
        low, high = settings.ambiguous
        weights[(targets > low) & (targets < high)] = 0.0
    if settings.by == "reward":
        weights *= _confidence(np.abs(np.concatenate([row.array("rewards") for row in rows])), weights)
    elif settings.by == "target":
        weights *= _confidence(np.abs(2 * targets - 1), weights)
    used = weights > 0
    if not used.any():
        raise InputError("no step is left to learn from: all are ambiguous, or count nothing")
    if settings.positive != 1.0:
        share = targets[used].clip(0, 1)
        positive = settings.positive
        if positive is None:
            right, wrong = float(weights[used] @ share), float(weights[used] @ (1 - share))
            if not (right and wrong):
                raise InputError("the targets have one side only, so that both cannot count alike")
            positive = wrong / right
        weights[used] *= share * positive + (1 - share)
    weights /= weights[weights > 0].mean()
    return np.split(weights, np.cumsum(lengths)[:-1])


def _confidence(sizes: FloatArray, weights: FloatArray) -> FloatArray:
    if not (weights > 0).any():
        return weights
    mean = sizes[weights > 0].mean()
    if np.isnan(mean):
        raise InputError("steps without a reward cannot count by it; use --weight-by target, or none")
    return np.nan_to_num(np.minimum(sizes / mean, _MOST) if mean > 0 else sizes)
