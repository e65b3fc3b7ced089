"""What every reader is given, and what it gives: the one interface of this package."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cpmi.errors import InputError
from cpmi.records import Trajectory
from cpmi.sources.rows import Row, at_place


@dataclass(frozen=True, slots=True)
class Fields:
    """Which field of a plain row holds what; a dotted path (``meta.question``, ``choices.0.text``) reaches inside.

    Attributes:
        question: the problem statement.
        steps: the solution: a list of texts, or one text, which is split into steps.
        gold_answer: the right answer; None: ``gold_answer``, in the rows that have it. The same holds for those below.
        final_answer: the solution's own answer.
        labels: one label per step: true, false, 0, 1, or null; any decimal number (0.5, also 1.0) makes them soft.
        id: a name of its own for each row.
        tags: fields to keep as tags.
        label_kind: who made the labels, kept as a tag: ``human`` or ``automatic``; None: not known.
    """

    question: str = "question"
    steps: str = "steps"
    gold_answer: str | None = None
    final_answer: str | None = None
    labels: str | None = None
    id: str | None = None
    tags: tuple[str, ...] = ()
    label_kind: str | None = None


@dataclass(slots=True)
class Tally:
    """What was read, and everything that did not go straight through.

    Attributes:
        read: rows read.
        made: trajectories made.
        skipped: reason -> (how many, the first place).
        notes: what was changed or set aside in a row that was kept -> (how many, the first place).
    """

    read: int = 0
    made: int = 0
    skipped: dict[str, tuple[int, str]] = field(default_factory=dict)
    notes: dict[str, tuple[int, str]] = field(default_factory=dict)

    def skip(self, reason: str, place: str) -> None:
        """Count something that made no trajectory."""
        _count(self.skipped, reason, place)

    def note(self, what: str, place: str) -> None:
        """Count something that was kept, but not as it stood."""
        _count(self.notes, what, place)

    def lines(self) -> list[str]:
        """The summary, ready to print."""
        skipped = [f"skipped, {reason}: {n} (first: {place})" for reason, (n, place) in self.skipped.items()]
        notes = [f"{what}: {n} (first: {place})" for what, (n, place) in self.notes.items()]
        return [f"rows read: {self.read}, trajectories made: {self.made}", *skipped, *notes]

    def summary(self) -> dict[str, Any]:
        """The same as a JSON object."""
        skipped, notes = (
            {what: {"count": n, "first": place} for what, (n, place) in counts.items()}
            for counts in (self.skipped, self.notes)
        )
        return {"read": self.read, "made": self.made, "skipped": skipped, "notes": notes}


def _count(counts: dict[str, tuple[int, str]], key: str, place: str) -> None:
    number, first = counts.get(key, (0, place))
    counts[key] = (number + 1, first)


@dataclass(frozen=True, slots=True)
class Context:
    """What a reader knows besides the rows."""

    source: str
    file: str
    fields: Fields
    tally: Tally
    how: str
    split: str | None

    @property
    def stem(self) -> str:
        """The name of the file, or of the folder or hub data set, without ``.jsonl.gz`` and the like."""
        return re.sub(r"(\.(jsonl?|parquet|ndjson|gz))+$", "", Path(self.file).name)

    def tags(self, **values: Any) -> dict[str, str]:
        """Tags from values, as text: true and false as JSON has them, None left out."""
        return {"source": self.source} | {
            name: value if isinstance(value, str) else _compact(value, name)
            for name, value in values.items()
            if value is not None
        }


def _compact(value: Any, name: str) -> str:
    """JSON text; a value that JSON does not know (a date from Parquet) as its own text."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    except RecursionError as error:
        raise InputError(f"field {name!r} is nested too deep") from error


Made = Iterator[tuple[str, Trajectory]]
Reader = Callable[[Iterator[Row], Context], Made]


class Source(NamedTuple):
    """A format: what it is, in one line, and how it is read."""

    about: str
    read: Reader


def row_by_row(read: Callable[[Row, Context], Iterable[Trajectory]]) -> Reader:
    """The reader for a format where each row stands for itself."""

    def reader(rows: Iterator[Row], context: Context) -> Made:
        for row in rows:
            with at_place(row.place):
                made = list(read(row, context))
            yield from ((row.place, trajectory) for trajectory in made)

    return reader
