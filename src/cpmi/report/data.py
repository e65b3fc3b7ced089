"""What the list of trajectories shows, as plain JSON; everything that needs a definition is computed here."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from statistics import median

from cpmi.answers import final_answer_of
from cpmi.records import JSON, StepRewards, Trajectory
from cpmi.report.material import Material, Run

_DIGITS = 6


def page_data(material: Material) -> dict[str, JSON]:
    """Runs and trajectories; the script of the page reads nothing else."""
    return {
        "runs": [_run_data(run) for run in material.runs],
        "trajectories": [_trajectory_data(material, each) for each in material.trajectories],
    }


def embedded(data: JSON) -> str:
    """JSON that may stand in a script element: nothing in it can end the element or the line."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate({ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"})


def _run_data(run: Run) -> JSON:
    return {
        "name": run.name,
        "source": run.source,
        "center": _rounded(run.center),
        "scale": _rounded(run.scale),
        "decimals": _decimals(run.scale),
        "signed": run.low < 0,
    }


def _decimals(scale: float) -> int:
    """So many that a hundredth of the scale can be seen."""
    return min(6, max(0, 2 - math.floor(math.log10(scale)))) if scale > 0 else 2


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _trajectory_data(material: Material, trajectory: Trajectory) -> JSON:
    labels = trajectory.step_labels
    records = [run.records.get(trajectory.id) for run in material.runs]
    entries: list[JSON] = [
        None if record is None else _entry(run, record, trajectory)
        for run, record in zip(material.runs, records, strict=True)
    ]
    return {
        "id": trajectory.id,
        "question": trajectory.question.strip(),
        "steps": [step.strip("\n") for step in trajectory.steps],
        "labels": None if not any(v is not None for v in labels or ()) else list(labels or ()),
        "firstError": trajectory.first_error,
        "gold": trajectory.gold_answer,
        "final": final_answer_of(trajectory),
        "outcome": (material.outcomes or {}).get(trajectory.id, "unknown"),
        "tags": dict(trajectory.tags),
        "differ": runs_differ(records),
        "runs": entries,
    }


def _entry(run: Run, record: StepRewards, trajectory: Trajectory) -> dict[str, JSON]:
    entry: dict[str, JSON] = {"seconds": _rounded(record.cost.seconds)}
    if record.error is not None:
        return entry | {"error": record.error}
    surprise = surprise_of(run, record.rewards, trajectory)
    entry |= {
        "rewards": [_rounded(reward) for reward in record.rewards],
        "lowest": list(lowest_steps(record.rewards)),
        "surprise": None if surprise is None else _rounded(surprise),
        "against": _against(record),
    }
    return entry | ({"contrast": str(record.details["contrast"])} if "contrast" in record.details else {})


def _against(record: StepRewards) -> list[JSON]:
    """The wrong answers that the steps were measured against, each with its kind."""
    answers, kinds = record.details.get("answers"), record.details.get("kinds")
    if not isinstance(answers, list):
        return []
    kinds = kinds if isinstance(kinds, list) and len(kinds) == len(answers) else [""] * len(answers)
    return [[str(answer), str(kind)] for answer, kind in zip(answers[1:], kinds[1:], strict=True)]


# --- what to look at first ------------------------------------------------------------------------------------------


def lowest_steps(rewards: Sequence[float]) -> tuple[int, ...]:
    """Indices of the steps with the lowest reward; none where several steps all have the same one."""
    if len(rewards) > 1 and min(rewards) == max(rewards):
        return ()
    return tuple(i for i, reward in enumerate(rewards) if reward == min(rewards))


def runs_differ(records: Sequence[StepRewards | None]) -> bool:
    """Whether two runs have no lowest step in common; a run without one has no say."""
    lowest = [set(lowest_steps(record.rewards)) for record in records if record is not None]
    lowest = [steps for steps in lowest if steps]
    return any(not (a & b) for i, a in enumerate(lowest) for b in lowest[:i])


def surprise_of(run: Run, rewards: Sequence[float], trajectory: Trajectory) -> float | None:
    """How far the rewards are from what people say, in units of the run's scale; None where people say nothing.

    A solution with an error: how far the reward of its first wrong step is above the median of its right steps (the
    run's center, if it has none). A right solution: how far its lowest reward is below the run's center.
    """
    labels = trajectory.step_labels or ()
    if run.scale == 0 or not rewards or all(label is None for label in labels):
        return None
    first = trajectory.first_error
    if first is None:
        return (run.center - min(rewards)) / run.scale
    right = [reward for reward, label in zip(rewards, labels, strict=True) if label]
    return (rewards[first] - (median(right) if right else run.center)) / run.scale
