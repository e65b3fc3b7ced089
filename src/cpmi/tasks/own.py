"""Our own trajectories, or plain rows, as questions."""

from __future__ import annotations

from collections.abc import Iterator

from cpmi.answers import choice_of
from cpmi.errors import InputError
from cpmi.sources import Row
from cpmi.tasks.task import Question, first, gold, text


def questions(row: Row) -> Iterator[Question]:
    """A trajectory without its steps, or a plain row: a question, an answer, and choices if there are any.

    ``final_answer`` is never taken for the right one: in a trajectory it is the solution's.
    """
    solved = "steps" in row.values  # a trajectory, whose gold answer may be missing altogether
    answer = row.answer("gold_answer") if solved else gold(row, "gold_answer", "answer", "target", "solution")
    choices = None if first(row, "choices") is None else row.texts("choices")
    tags = first(row, "tags")
    if not isinstance(tags, dict | None):
        raise InputError("field 'tags' must be an object of texts")
    yield Question(
        text(row, "question", "problem"),
        answer if answer is None or choices is None else choice_of(answer, choices) or answer,
        choices=choices,
        id=first(row, "id"),
        tags=tags or {},
    )
