"""What every labeling method needs of a trajectory."""

from __future__ import annotations

from cpmi.records import Trajectory


def why_not(trajectory: Trajectory) -> str | None:
    """Why a trajectory cannot be labeled with the right answer's help; None if it can."""
    if (problem := why_no_steps(trajectory)) is not None:
        return problem
    if trajectory.gold_answer is None or not trajectory.gold_answer.strip():
        return "no gold answer; cpmi prepare --gold FILE joins gold answers"
    return None


def why_no_steps(trajectory: Trajectory) -> str | None:
    """Why the steps of a trajectory cannot be labeled, whatever is known of the right answer; None if they can."""
    if not trajectory.steps:
        return "no steps"
    if (empty := next((i for i, step in enumerate(trajectory.steps) if not step.strip()), None)) is not None:
        return f"step {empty} (from 0) is empty"
    return None
