"""``cpmi targets`` as a function: the rewards of runs as one file that holds all a trainer needs.

A map is fitted once on the training runs, saved beside the targets, and applied to other runs. Each source of rewards
has a map of its own, so that runs of several methods can be mixed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpmi.errors import InputError
from cpmi.export import labeled_trajectories, refuse_overwriting, trajectory_of
from cpmi.normalizers import FittedMap, Sample, TargetSettings, fit
from cpmi.records import (
    JSON,
    Column,
    StepRewards,
    Trajectory,
    read_trajectories,
    rewards_by_id,
    write_rows,
    write_whole,
)

_COLUMNS: dict[str, Column] = {
    "id": "text", "question": "text", "steps": "texts", "targets": "numbers", "weights": "numbers",
    "rewards": "numbers", "source": "text",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TargetReport:
    """What was written.

    Attributes:
        rows: trajectories with targets.
        failed: trajectories without rewards.
        dropped: trajectories with an outlier that was to be dropped.
        maps: fitted or applied, one for each source.
    """

    output: Path
    rows: int
    failed: int
    dropped: int
    maps: tuple[FittedMap, ...]


def write_targets(
    runs: Sequence[Path],
    output: Path,
    settings: TargetSettings,
    *,
    trajectories: Path | None = None,
    maps: Path | None = None,
) -> TargetReport:
    """Write the targets of runs to one file that holds all a trainer needs, and their maps beside it.

    A row: ``id``, ``question``, ``steps``, ``targets``, ``weights`` (null: all count alike) and ``rewards`` (a number
    per step each), ``source``. The maps go to ``maps_path(output)``.

    Args:
        trajectories: the labeled trajectories, if they are not where the runs found them.
        maps: apply the maps in this file instead of fitting any.

    Raises:
        InputError: runs that do not fit their trajectories, ids in two runs of one source, rewards that cannot be
            mapped, a source without a map.
        CpmiError: a file cannot be written.
    """
    refuse_overwriting(output, runs, trajectories, maps)
    refuse_overwriting(maps_path(output), runs, trajectories, maps)
    rewarded = [(record, trajectory) for run in runs for record, trajectory in _rewarded(run, trajectories)]
    able = [(record, trajectory) for record, trajectory in rewarded if record.error is None]
    if not able:
        raise InputError("there is no trajectory with rewards")
    _check_ids(able)
    sources = list(dict.fromkeys(record.source for record, _ in able))
    if maps is None:
        fitted = {source: fit(_sample(source, able), settings) for source in sources}
    else:
        known = read_maps(maps)
        fitted = {source: _known(known, source, maps) for source in sources}
    rows = list(_rows(able, fitted))
    if not rows:
        raise InputError("every trajectory has an outlier, so that none is left; use clip, or a larger bound")
    write_rows(output, rows, _COLUMNS)
    _write_maps(maps_path(output), list(fitted.values()))
    report_maps = tuple(fitted.values())
    return TargetReport(output, len(rows), len(rewarded) - len(able), len(able) - len(rows), report_maps)


HUMAN = "human"


def write_label_targets(files: Sequence[Path], output: Path) -> TargetReport:
    """Write human step labels as targets: 1 for a right step, 0 for a wrong one, null where nobody judged.

    Args:
        files: of trajectories; those without any label are left out, and counted as ``failed``.

    Raises:
        InputError: no trajectory with a label, or an id that occurs twice.
        CpmiError: the file cannot be written.
    """
    refuse_overwriting(output, (), *files)
    rows: dict[str, dict[str, JSON]] = {}
    without = 0
    for trajectory in (trajectory for file in files for trajectory in read_trajectories(file)):
        labels = trajectory.step_labels or ()
        if trajectory.id in rows:
            raise InputError(f"the id {trajectory.id!r} is in two of the files; name each once")
        if all(label is None for label in labels):
            without += 1
            continue
        numbers: list[JSON] = [None if label is None else float(label) for label in labels]
        rows[trajectory.id] = {
            "id": trajectory.id,
            "question": trajectory.question,
            "steps": list(trajectory.steps),
            "targets": numbers,
            "weights": None,
            "rewards": numbers,
            "source": HUMAN,
        }
    if not rows:
        raise InputError("there is no trajectory with step labels")
    write_rows(output, rows.values(), _COLUMNS)
    return TargetReport(output, len(rows), without, 0, ())


def _rewarded(run: Path, trajectories: Path | None) -> Iterator[tuple[StepRewards, Trajectory]]:
    by_id = labeled_trajectories(run, trajectories)
    for record in rewards_by_id(run).values():
        yield record, trajectory_of(by_id, record)


def _check_ids(able: Sequence[tuple[StepRewards, Trajectory]]) -> None:
    seen = set()
    for record, _ in able:
        key = (record.source, record.trajectory_id)
        if key in seen:
            raise InputError(
                f"the id {record.trajectory_id!r} has rewards of {record.source} twice; name each run once"
            )
        seen.add(key)


def _sample(source: str, able: Sequence[tuple[StepRewards, Trajectory]]) -> Sample:
    pairs = [
        (reward, label)
        for record, trajectory in able
        if record.source == source
        for reward, label in zip(record.rewards, trajectory.step_labels or (None,) * len(record.rewards), strict=True)
    ]
    judged = [(reward, float(label)) for reward, label in pairs if label is not None]
    labeled, labels = np.array(judged, dtype=np.float64).reshape(-1, 2).T
    return Sample(source, np.array([reward for reward, _ in pairs], dtype=np.float64), labeled, labels)


def _rows(able: Sequence[tuple[StepRewards, Trajectory]], fitted: Mapping[str, FittedMap]) -> Iterator[dict[str, JSON]]:
    for record, trajectory in able:
        rewards = np.array(record.rewards, dtype=np.float64)
        targets = fitted[record.source](rewards)
        if targets is not None:
            weights = fitted[record.source].weights(rewards)
            yield {
                "id": trajectory.id,
                "question": trajectory.question,
                "steps": list(trajectory.steps),
                "targets": [None if np.isnan(target) else target for target in targets.tolist()],
                "weights": None if weights is None else weights.tolist(),
                "rewards": list(record.rewards),
                "source": record.source,
            }


def maps_path(targets: Path) -> Path:
    """Where the maps of a file of targets are: ``targets.jsonl`` has ``targets.maps.json`` beside it."""
    name = targets.name
    for suffix in (".gz", ".jsonl", ".parquet"):
        name = name.removesuffix(suffix)
    return targets.with_name(f"{name}.maps.json")


def _write_maps(path: Path, maps: Sequence[FittedMap]) -> None:
    text = json.dumps([dataclasses.asdict(each) for each in maps], indent=1)
    write_whole(path, f"{text}\n".encode())


def read_maps(path: Path) -> dict[str, FittedMap]:
    """Fitted maps by source.

    Raises:
        InputError: no such file, or one that ``write_targets`` did not write.
    """
    try:
        rows: Any = json.loads(path.read_text(encoding="utf-8"))
        maps = [_map(row) for row in rows]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, InputError) as error:
        raise InputError(f"{path}: holds no maps of cpmi targets ({error})") from error
    return {each.source: each for each in maps}


def _map(row: dict[str, Any]) -> FittedMap:
    read = FittedMap(**(row | {name: tuple(row[name]) for name in ("x", "y")}))
    texts = (read.normalizer, read.source, read.squash)
    if not all(isinstance(text, str) for text in texts) or not isinstance(read.drop, bool) or type(read.n) is not int:
        raise TypeError("a field of another type")
    numbers = [read.slope, read.offset, *read.x, *read.y, *(each for each in (read.low, read.high) if each is not None)]
    if not all(type(each) in (int, float) and math.isfinite(each) for each in numbers):
        raise ValueError("what must be a finite number is none")
    return read


def _known(maps: Mapping[str, FittedMap], source: str, path: Path) -> FittedMap:
    if source not in maps:
        raise InputError(f"{path}: has no map for rewards of {source!r} (it has: {', '.join(maps)})")
    return maps[source]
