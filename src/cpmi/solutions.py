"""A file of candidate solutions that is written question by question, and goes on after a kill.

    candidates.jsonl              the solutions, a ``Trajectory`` each; those of a question carry its ``question_id``
    candidates.jsonl.run/         what is known of how they came about:
        manifest.json                 the model and every setting; others are refused
        questions.jsonl               a line per question attempted: what it cost, or why there is nothing
        rewards.jsonl                 of a guided search: the step rewards of the solutions
        attempts.jsonl, lock

A question is done when its line in ``questions.jsonl`` is there, which is written last: what a kill left of an
unfinished question is dropped, and a question whose candidates are not all there any more is asked again. In the end
the candidates are put in the order of their questions.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from cpmi.errors import InputError
from cpmi.records import (
    Cost,
    StepRewards,
    Trajectory,
    dump_line,
    from_json,
    parse_line,
    write_whole,
)
from cpmi.runs import RunDirectory, lock_file, writing

QUESTION_ID = "question_id"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one question.

    Attributes:
        id: of the question.
        candidates: how many solutions.
        finished: how many of them the model brought to an end by itself.
        sampling: what solutions cost; ``rewarding``: what a search spent on their rewards.
        rounds: of a search.
        error: why there is nothing.
    """

    id: str
    candidates: int = 0
    finished: int = 0
    sampling: Cost = Cost()
    rewarding: Cost = Cost()
    rounds: int = 0
    error: str | None = None


def attempt_from_json(row: Any) -> Attempt:
    """An attempt from its JSON object.

    Raises:
        InputError: it is none.
    """
    try:
        costs = {name: Cost(**row[name]) for name in ("sampling", "rewarding")}
        attempt = Attempt(**{**row, **costs})
    except (TypeError, KeyError) as error:
        raise InputError(f"no record of a question ({error})") from error
    counts = (attempt.candidates, attempt.finished, attempt.rounds)
    spent = [number for cost in costs.values() for number in astuple(cost)]
    ok = isinstance(attempt.id, str) and isinstance(attempt.error, str | None)
    if not (ok and all(type(count) is int for count in counts) and all(type(each) in (int, float) for each in spent)):
        raise InputError("no record of a question (a field of another type)")
    return attempt


class SolutionFile:
    """Candidates on disk, open for going on; one process at a time."""

    def __init__(self, path: Path, run: RunDirectory) -> None:
        """Use ``opened``."""
        self.path = path
        self.run = run
        self.attempts: dict[str, Attempt] = {}
        self._questions, self._rewards = run.path / "questions.jsonl", run.path / "rewards.jsonl"

    @classmethod
    @contextmanager
    def opened(cls, path: Path, settings: dict[str, Any], *, retry_errors: bool = False) -> Iterator[SolutionFile]:
        """The file, with what earlier attempts left of it.

        Args:
            settings: for the manifest.
            retry_errors: forget the questions that ended in an error.

        Raises:
            InputError: another process writes it, it was made by other settings or by something else, or a line is
                broken.
        """
        refuse_foreign(path)
        folder = run_folder(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        run = RunDirectory.create_or_resume(folder, settings)
        with (folder / "lock").open("w") as lock:
            lock_file(lock, path)
            file = cls(path, run)
            file._take_up(retry_errors=retry_errors)
            yield file

    def add(self, attempt: Attempt, candidates: Sequence[Trajectory], rewards: Sequence[StepRewards] = ()) -> None:
        """Write what came of a question, and return when it is on the disk.

        Raises:
            CpmiError: the disk is full or cannot be written.
        """
        _append(self.path, [dump_line(each) for each in candidates])
        if rewards:
            _append(self._rewards, [dump_line(each) for each in rewards])
        _append(self._questions, [json.dumps(asdict(attempt)) + "\n"])
        self.attempts[attempt.id] = attempt

    def put_in_order(self, question_ids: Iterable[str]) -> None:
        """Candidates and rewards in the order of these questions, those of one question as they were."""
        order = {name: number for number, name in enumerate(question_ids)}
        candidates = _lines(self.path, Trajectory)
        places = {each.id: order[each.tags[QUESTION_ID]] for each, _ in candidates}
        _rewrite(self.path, sorted(candidates, key=lambda line: places[line[0].id]))
        _rewrite(
            self._rewards, sorted(_lines(self._rewards, StepRewards), key=lambda line: places[line[0].trajectory_id])
        )

    def _take_up(self, *, retry_errors: bool) -> None:
        """Read what is there; what belongs to no finished question is cut off."""
        self.attempts = done_before(self.path, retry_errors=retry_errors)
        _rewrite(self._questions, [line for line in _attempts(self._questions) if line[0].id in self.attempts])
        lines = _lines(self.path, Trajectory)
        candidates = [line for line in lines if line[0].tags.get(QUESTION_ID) in self.attempts]
        _rewrite(self.path, candidates)
        known = {each.id for each, _ in candidates}
        _rewrite(self._rewards, [line for line in _lines(self._rewards, StepRewards) if line[0].trajectory_id in known])


def run_folder(path: Path) -> Path:
    """Where a file of candidates keeps what is known of it."""
    return path.with_name(f"{path.name}.run")


def refuse_foreign(path: Path) -> None:
    """Refuse a place where candidates cannot go.

    Raises:
        InputError: another suffix, or a file that is something else.
    """
    if path.suffix != ".jsonl":
        raise InputError(f"{path}: the name of a file of candidates must end in .jsonl")
    if path.exists() and not run_folder(path).exists():
        raise InputError(f"{path} is there, and not from cpmi solve; choose another --output")


def read_attempts(path: Path) -> list[Attempt]:
    """What is known of the questions of a file of candidates; empty where ``cpmi solve`` did not make it."""
    return [each for each, _ in _attempts(run_folder(path) / "questions.jsonl")]


def done_before(path: Path, *, retry_errors: bool) -> dict[str, Attempt]:
    """The questions that need not be asked again: their record is there, and so are all their candidates.

    Args:
        retry_errors: those that ended in an error are asked again.
    """
    there = Counter(each.tags.get(QUESTION_ID) for each, _ in _lines(path, Trajectory))
    return {
        each.id: each
        for each in read_attempts(path)
        if there[each.id] == each.candidates and (each.error is None or not retry_errors)
    }


def _attempts(path: Path) -> list[tuple[Attempt, bytes]]:
    return _parsed(path, attempt_from_json)


def _whole_lines(path: Path) -> list[tuple[bytes, str]]:
    """The lines and their places; without a last one that has no end."""
    if not path.exists():
        return []
    with path.open("rb") as lines:
        return [(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.endswith(b"\n")]


def _lines(path: Path, kind: Any) -> list[tuple[Any, bytes]]:
    return _parsed(path, lambda row: from_json(kind, row))


def _parsed(path: Path, parse: Callable[[Any], Any]) -> list[tuple[Any, bytes]]:
    records = []
    for line, place in _whole_lines(path):
        try:
            records.append((parse(parse_line(line, place)), line))
        except InputError as error:
            text = str(error).removeprefix(f"{place}: ")
            raise InputError(f"{place}: {text}; restore this file from a copy, or remove the line") from error
    return records


def _rewrite(path: Path, lines: Iterable[tuple[Any, bytes]]) -> None:
    """Make this the content of a file, if it is not already."""
    content = b"".join(line for _, line in lines)
    if (path.read_bytes() if path.exists() else b"") != content:
        write_whole(path, content)


def _append(path: Path, lines: Sequence[str]) -> None:
    data = "".join(lines).encode()
    with writing(path), contextlib.closing(path.open("ab", buffering=0)) as file:
        while data:
            data = data[file.write(data) :]
        os.fsync(file.fileno())
