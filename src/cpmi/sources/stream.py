"""From files to trajectories: run a reader over its rows, and see to it that all ids differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cpmi.errors import InputError
from cpmi.records import Trajectory
from cpmi.sources.files import dataset_rows, read_any
from cpmi.sources.reader import Context, Source, Tally
from cpmi.sources.rows import Row, at_place


def stream(source: Source, files: Sequence[str], context: Context) -> Iterator[Trajectory]:
    """The trajectories of all files, each checked, counted, and under an id of its own."""
    seen: dict[str, str] = {}
    repeats: dict[str, int] = {}
    for file in files:
        here = dataclasses.replace(context, file=file)
        values = dataset_rows(file, context.split) if context.source == "datasets" else read_any(Path(file))
        for place, trajectory in source.read(_rows(values, context.tally), here):
            if not trajectory.steps:
                context.tally.skip("no steps", place)
                continue
            with at_place(place):
                trajectory = _with_own_id(trajectory, place, seen, repeats, context.tally)
            context.tally.made += 1
            yield trajectory


def _with_own_id(
    trajectory: Trajectory, place: str, seen: dict[str, str], repeats: dict[str, int], tally: Tally
) -> Trajectory:
    """The trajectory, under another id where an identical one without a name of its own came before."""
    if trajectory.id in seen:
        if trajectory.id != dataclasses.replace(trajectory, id="").id:
            raise InputError(
                f"the id {trajectory.id!r} was already used at {seen[trajectory.id]}; give each row its own id"
            )
        tally.note("identical trajectories, told apart by -2, -3... after their id", place)
        repeats[trajectory.id] = repeats.get(trajectory.id, 1) + 1
        renamed = dataclasses.replace(trajectory, id=f"{trajectory.id}-{repeats[trajectory.id]}")
        return _with_own_id(renamed, place, seen, repeats, tally)
    seen[trajectory.id] = place
    return trajectory


def _rows(values: Iterable[tuple[str, Any]], tally: Tally) -> Iterator[Row]:
    for place, value in values:
        tally.read += 1
        with at_place(place):
            row = Row.of(place, value)
        yield row
