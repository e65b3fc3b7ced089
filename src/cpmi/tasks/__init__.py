"""Question sets -> questions: a ``Trajectory`` without steps each, for a model to solve.

The text of a question is all that is shown to a model, a labeler or a reward model, so it says everything there is to
know, the options included. What does not become a question, or only after a change, is counted in the ``Tally``. A row
that contradicts its own format stops the reading with its place.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cpmi.errors import InputError, unknown_name
from cpmi.records import Trajectory
from cpmi.sources import Row, Tally, at_place, read_any
from cpmi.sources.files import dataset_rows
from cpmi.tasks import logic, math, own
from cpmi.tasks.task import NotInTaskError, Question, Task, tag_text

__all__ = ["TASKS", "Question", "Task", "read_questions"]

TASKS: dict[str, Task] = {
    "questions": Task("your own questions, or the questions of a file of trajectories", own.questions, own=True),
    "gsm8k": Task("GSM8K: grade school word problems", math.gsm8k),
    "math": Task("MATH, MATH-500: high school competitions", math.math),
    "olympiadbench": Task("OlympiadBench: olympiads, without pictures", math.olympiadbench),
    "omni-math": Task("Omni-MATH, Omni-MATH-Rule: olympiads", math.omni_math),
    "svamp": Task("SVAMP: word problems with a twist", math.story),
    "asdiv": Task("ASDiv: word problems of elementary school", math.story),
    "mawps": Task("MAWPS: word problems of elementary school", math.mawps),
    "amc": Task("AMC: the American Mathematics Competitions, whole numbers as answers", math.amc),
    "aime": Task("AIME: the American Invitational Mathematics Examination", math.aime),
    "minerva": Task("Minerva: undergraduate courses of science", math.minerva),
    "gaokao": Task("Gaokao 2023 in English: university entrance", math.gaokao),
    "college-math": Task("College Math: exercises of textbooks", math.college_math),
    "mmlu-stem": Task("MMLU, science and mathematics: multiple choice", math.mmlu_stem),
    "folio": Task("FOLIO: does a conclusion follow from premises (True, False, Uncertain)", logic.folio),
    "logiqa2": Task("LogiQA 2.0: reading and reasoning, multiple choice", logic.logiqa2),
    "logicnli": Task("LogicNLI: does a statement follow from facts and rules (four answers)", logic.logicnli),
}


def read_questions(
    file: str | os.PathLike[str], task: str = "questions", *, split: str | None = None, tally: Tally | None = None
) -> Iterator[Trajectory]:
    """Stream the questions of a question set: trajectories without steps, each with a gold answer and an id of its own.

    Args:
        file: a path (``.jsonl``, ``.json``, ``.parquet``, each also ``.gz`` but for Parquet), a folder made by
            ``save_to_disk``, or ``hub:NAME`` of a Hugging Face data set, ``hub:NAME:CONFIGURATION`` where it has
            several.
        task: one of ``TASKS``.
        split: of a data set on the hub or in a folder.
        tally: filled while reading.

    Raises:
        InputError: an unknown name, a missing file, a row that does not fit (with its place).
    """
    if task not in TASKS:
        raise unknown_name("task", task, TASKS)
    values = _values(os.fspath(file), split)
    return _stream(TASKS[task], values, {"task": task, "subset": task, "split": split}, tally or Tally())


def _values(file: str, split: str | None) -> Iterator[tuple[str, Any]]:
    if file.startswith("hub:"):
        return dataset_rows(file.removeprefix("hub:"), split)
    if Path(file).is_dir():
        return dataset_rows(file, split)
    if split is not None:
        raise InputError(f"{file}: a split can be chosen for hub:NAME or a saved folder only, not for a file")
    return read_any(Path(file))


def _stream(
    task: Task, values: Iterable[tuple[str, Any]], tags: dict[str, str | None], tally: Tally
) -> Iterator[Trajectory]:
    """The questions of all rows, each checked, counted, and under an id of its own."""
    used: set[str] = set()
    asked: dict[str, str | None] = {}
    for number, (place, value) in enumerate(values):
        tally.read += 1
        with at_place(place):
            questions = _read(task, Row.of(place, value), tally)
            made = [_trajectory(task, question, number, tags) for question in questions]
        for trajectory in made:
            if task.own and not _is_new(trajectory, place, asked, tally):
                continue
            tally.made += 1
            yield _with_own_id(trajectory, place, used, tally)


def _read(task: Task, row: Row, tally: Tally) -> list[Question]:
    """The questions of a row that can be graded."""
    try:
        questions = list(task.read(row))
    except NotInTaskError as reason:
        tally.skip(str(reason), row.place)
        return []
    for question in questions:
        if question.gold is None:
            tally.skip("no gold answer", row.place)
    return [question for question in questions if question.gold is not None]


def _trajectory(task: Task, question: Question, number: int, tags: dict[str, str | None]) -> Trajectory:
    """The record of a question: its own name, or else the number of its row, follows the name of the task in its id."""
    name = number if question.id is None else question.id
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise InputError(f"the row's own id must be a text or a whole number, found {type(name).__name__}")
    parts = [name] if task.own and question.id is not None else [tags["task"], name, question.part]
    found = {name: tag_text(value, name) for name, value in question.tags.items()}
    return Trajectory(
        question=question.text,
        steps=(),
        gold_answer=question.gold,
        choices=question.choices,
        tags={name: value for name, value in (tags | found).items() if value is not None},
        id="-".join(str(part) for part in parts if part is not None),
    )


def _is_new(trajectory: Trajectory, place: str, asked: dict[str, str | None], tally: Tally) -> bool:
    """Whether the question is asked for the first time; a file of trajectories has many solutions of one question."""
    if trajectory.question not in asked:
        asked[trajectory.question] = trajectory.gold_answer
        return True
    same = asked[trajectory.question] == trajectory.gold_answer
    tally.skip("asked before" if same else "asked before, with another gold answer", place)
    return False


def _with_own_id(trajectory: Trajectory, place: str, used: set[str], tally: Tally) -> Trajectory:
    """The trajectory, under another id where a question before it has the same."""
    name, number = trajectory.id, 1
    while name in used:
        number += 1
        name = f"{trajectory.id}-{number}"
    used.add(name)
    if number > 1:
        tally.note("ids that came before, told apart by -2, -3... after them", place)
    return dataclasses.replace(trajectory, id=name)
