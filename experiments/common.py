"""What the tables on labels share: levels with their trajectories, outcomes, and what of them is judged by people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cpmi import Trajectory, read_trajectories
from cpmi.benchmarks.baselines import fold_of, known_outcome
from cpmi.decisions import FirstErrors
from cpmi.grader import Grader
from cpmi.labelers.evidence import evidence
from cpmi.labelers.first_error import JudgedEvidence, Outcome
from cpmi.labelers.levels import Levels
from cpmi.metrics import Estimate, JudgedTrajectory, PooledAUC, WithinAUC, estimate, resamples
from cpmi.protocols import FloatArray

DEFAULT = "own|choice|rule"


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A trajectory with the levels of its answers.

    Attributes:
        kinds: of each answer; the first is ``gold``.
        outcome: right, wrong or unanswered; as the grader or, where it has no verdict, the data say.
    """

    trajectory: Trajectory
    levels: Levels
    answers: tuple[str, ...]
    kinds: tuple[str, ...]
    outcome: Outcome
    seconds: float
    tokens: int

    def with_kinds(self, text: str, count: int = 4) -> Levels:
        """With the wrong answers that these kinds choose, as in ``--negative-kinds``; at most so many."""
        for choice in text.split("|"):
            chosen: list[int] = []
            for part in choice.split(","):
                kind, _, limit = part.partition(":")
                found = [i for i, each in enumerate(self.kinds) if each == kind]
                chosen += found[: int(limit)] if limit else found
            if chosen:
                return self.levels.choose([0, *chosen[:count]])
        return self.levels.choose([0])

    def judged_evidence(self, levels: Levels | None = None) -> JudgedEvidence:
        """For the first-error model."""
        shown = evidence(self.trajectory, levels or self.with_kinds(DEFAULT))
        return JudgedEvidence(shown, self.outcome, self.trajectory.first_error)

    @property
    def fold(self) -> int:
        return fold_of(self.trajectory.question)


def load(work: Path, name: str, model: str) -> list[Scored]:
    """What ``levels.py`` made, of the trajectories whose first wrong step (or that there is none) people told."""
    trajectories = {each.id: each for each in read_trajectories(work / "data" / f"{name}.jsonl")}
    outcomes = _outcomes(work, name, trajectories)
    scored = []
    for line in (work / "levels" / f"{name}-{model}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        trajectory = trajectories[row["id"]]
        if "levels" in row and _told(trajectory):
            answers, kinds = tuple(row["answers"]), tuple(row["kinds"])
            levels, outcome = Levels.from_json(row["levels"]), outcomes[trajectory.id]
            scored.append(Scored(trajectory, levels, answers, kinds, outcome, row["seconds"], row["tokens"]))
    return scored


def _told(trajectory: Trajectory) -> bool:
    labels, first = trajectory.step_labels or (), trajectory.first_error
    told = labels[: len(labels) if first is None else first]
    return bool(labels) and all(label is not None for label in told)


def _outcomes(work: Path, name: str, trajectories: dict[str, Trajectory]) -> dict[str, Outcome]:
    """Graded once and kept."""
    path = work / "outcomes" / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with Grader() as grader:
            known = {i: known_outcome(each, grader) for i, each in trajectories.items()}
        path.write_text(json.dumps(known))
    told: dict[str, Outcome] = {"right": "right", "wrong": "wrong"}
    return {i: told.get(value, "unanswered") for i, value in json.loads(path.read_text()).items()}


# --- figures --------------------------------------------------------------------------------------------------------


def figures(scored: Sequence[Scored], rewards: Sequence[FloatArray]) -> dict[str, Estimate]:
    """First-error F1 (at the best threshold, and at 0.5), areas, with bootstrap intervals over trajectories."""
    judged = []
    for each, own in zip(scored, rewards, strict=True):
        labels = [-1 if label is None else int(label) for label in each.trajectory.step_labels or ()]
        judged.append(JudgedTrajectory(np.asarray(own, dtype=np.float64), np.array(labels, dtype=np.int64)))
    weights = resamples(len(judged))
    errors = FirstErrors(judged)
    return {
        "f1": estimate(errors.best(weights)[:, 2]),
        "f1_at_half": estimate(errors.at(0.5, weights)[:, 2]),
        "auc": estimate(PooledAUC(judged)(weights)),
        "within": estimate(WithinAUC(judged)(weights)),
    }


@dataclass(slots=True)
class Table:
    """Rows of figures, printed as Markdown and kept as JSON."""

    name: str
    command: str
    rows: list[dict[str, str | float | None]]

    def add(self, label: str, found: dict[str, Estimate], **more: str | float) -> None:
        """One row."""
        row: dict[str, str | float | None] = {"row": label, **more}
        for name, value in found.items():
            row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        self.rows.append(row)
        texts = [f"{name} {value.text()}" for name, value in found.items()]
        print(f"{self.name}: {label}: " + ", ".join(texts), flush=True)

    def save(self, folder: Path) -> None:
        """``folder/NAME.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in self.rows]
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps({"command": self.command, "rows": rows}, indent=1) + "\n")


def limited(scored: Sequence[Scored], ids: set[str]) -> list[Scored]:
    """Those with these ids, so that models are compared on the same trajectories."""
    return [each for each in scored if each.trajectory.id in ids]


def with_templates(scored: Scored, templates: Sequence[int]) -> Scored:
    """With some of the templates."""
    return replace(scored, levels=scored.levels.choose(range(len(scored.kinds)), templates))
