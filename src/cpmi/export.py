"""A run in the formats that others read."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from cpmi.errors import InputError
from cpmi.records import (
    Column,
    StepRewards,
    Trajectory,
    read_rewards,
    read_trajectories,
    write_records,
    write_rows,
)
from cpmi.runs import RunDirectory
from cpmi.storage import is_file, noted

logger = logging.getLogger("cpmi")

Format = Literal["jsonl", "parquet", "stepwise"]


def export(run: Path, to: Format, output: Path, trajectories: Path | None = None) -> tuple[int, int]:
    """Write a run as one file; return how many lines were written and how many attempts had failed.

    ``jsonl`` and ``parquet`` hold every ``StepRewards``, failures too; ``stepwise`` holds TRL's rows ``{"prompt",
    "completions", "labels"}`` of the trajectories that have rewards, the rewards as they are (floats).

    Args:
        trajectories: the labeled trajectories, if they are no longer where the run found them.

    Raises:
        InputError: no run there, a suffix that does not fit, or trajectories that cannot be found.
    """
    suffixes = {"jsonl": (".jsonl", ".gz"), "parquet": (".parquet",), "stepwise": (".jsonl", ".gz", ".parquet")}[to]
    if output.suffix not in suffixes:
        raise InputError(f"{output}: --to {to} writes {' or '.join(suffixes)}; name the output so")
    refuse_overwriting(output, [run], trajectories)
    failed = 0

    def records() -> Iterator[StepRewards]:
        nonlocal failed
        for record in read_rewards(run):
            failed += record.error is not None
            yield record

    if to != "stepwise":
        return write_records(output, records()), failed
    by_id = labeled_trajectories(run, trajectories)
    rows = (stepwise_row(by_id, record) for record in records() if record.error is None)
    columns: dict[str, Column] = {"prompt": "text", "completions": "texts", "labels": "numbers"}
    return write_rows(output, rows, columns), failed


def refuse_overwriting(output: Path, runs: Sequence[Path], *files: Path | None) -> None:
    """Refuse an output that is one of the files that would be read, or lies among those of a run.

    Raises:
        InputError: choose another output.
    """
    if output.is_dir():
        raise InputError(f"{output} is a folder; --output names a file")
    place = output.resolve()
    folders = [run.resolve() for run in runs if run.is_dir()]
    read = [path.resolve() for path in (*runs, *files) if path is not None]
    read += [noted(labeled_input(folder).get("path", "")) for folder in folders]
    if place in read or place.parent in folders:
        raise InputError(f"{output} is one of the files that would be read; choose another --output")


def labeled_input(run: Path) -> dict[str, Any]:
    """What the manifest of a run directory says of its input: ``path``, ``sha256``; empty where it says nothing."""
    said = RunDirectory.open(run).manifest.get("input")
    return said if isinstance(said, dict) else {}


def labeled_trajectories(run: Path, path: Path | None = None) -> dict[str, Trajectory]:
    """The trajectories that a run labeled, by id: from ``path``, or from where the run's manifest says they were.

    Raises:
        InputError: the file is gone.
    """
    if not run.exists():
        raise InputError(f"{run}: no such file or run")
    if path is None:
        if not run.is_dir():
            raise InputError(f"{run} is a file, so its trajectories must be named: --trajectories FILE")
        path = noted(labeled_input(run).get("path", ""))
        if not is_file(path):
            raise InputError(f"{run}: its trajectories are no longer at {path}; name them with --trajectories FILE")
        _warn_of_change(run, path)
    return {trajectory.id: trajectory for trajectory in read_trajectories(path)}


def trajectories_of(runs: Sequence[Path], path: Path | None = None) -> dict[str, Trajectory]:
    """The trajectories of several runs, by id: from ``path``, or from where the run directories found them.

    Raises:
        InputError: a file is gone, or there is no run directory among files of rewards.
    """
    folders = [run for run in runs if run.is_dir()]
    if path is not None or not folders:
        return labeled_trajectories(runs[0], path)
    found: dict[str, Trajectory] = {}
    for folder in folders:
        found = labeled_trajectories(folder) | found  # the first run's come first, and count
    return found


def _warn_of_change(run: Path, path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != labeled_input(run).get("sha256", digest):
        logger.warning("%s has changed since %s labeled it; are these the same trajectories?", path, run)


def trajectory_of(by_id: dict[str, Trajectory], record: StepRewards) -> Trajectory:
    """The trajectory that a record belongs to.

    Raises:
        InputError: there is none of that id, or one of another length.
    """
    trajectory = by_id.get(record.trajectory_id)
    if trajectory is None:
        raise InputError(f"no trajectory has the id {record.trajectory_id!r}; are these the trajectories of this run?")
    if record.error is None and len(record.rewards) != len(trajectory.steps):
        raise InputError(
            f"{record.trajectory_id!r}: {len(record.rewards)} rewards for {len(trajectory.steps)} steps; "
            "are these the trajectories of this run?"
        )
    return trajectory


def stepwise_row(by_id: dict[str, Trajectory], record: StepRewards) -> dict[str, Any]:
    """TRL's stepwise supervision row; its labels are soft, which TRL's own trainer cut to 0 and 1."""
    trajectory = trajectory_of(by_id, record)
    return {
        "prompt": trajectory.question,
        "completions": list(trajectory.steps),
        "labels": list(record.rewards),
    }
