"""Question sets of mathematics and science."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from cpmi.sources import Row, typed
from cpmi.tasks.task import NotInTaskError, Question, first, gold, multiple_choice, rows, sentences, text, whole_number

gsm8k = rows(["question"], ["answer"])
omni_math = rows(
    ["problem"], ["answer", "solution"], difficulty=["difficulty"], domain=["domain"], competition=["source"]
)
mawps = rows(
    ["input", "question"],
    ["target", "answer", "result_float"],
    named=["idx", "id"],
    clean=whole_number,
    type=["type"],
)
amc = rows(["problem", "question"], ["answer"], named=["id"], clean=whole_number, url=["url"])
aime = rows(
    ["problem", "question", "Problem"],
    ["answer", "Answer", "solution"],
    named=["id", "ID"],
    clean=whole_number,
    url=["url"],
)
minerva = rows(["problem", "question"], ["answer", "solution"], named=["idx"], subject=["type"])
college_math = rows(["question"], ["answer"], subject=["data_topic"], book=["data_source"], number=["question_number"])


def math(row: Row) -> Iterator[Question]:
    """MATH and MATH-500: the answer has a field of its own, or is in the last box of the solution."""
    level = first(row, "level")
    yield Question(
        text(row, "problem"),
        gold(row, "answer", "solution"),
        id=first(row, "unique_id"),
        tags={
            "level": level.removeprefix("Level ") if isinstance(level, str) else level,
            "subject": first(row, "subject", "type"),
        },
    )


def olympiadbench(row: Row) -> Iterator[Question]:
    """OlympiadBench: what the question builds on may be in ``context``; pictures cannot be read here."""
    if first(row, "image_1", "images") is not None:
        raise NotInTaskError("a question with a picture")
    context = "" if first(row, "context") is None else text(row, "context")
    yield Question(
        "\n\n".join(filter(None, [context, text(row, "question")])),
        gold(row, "final_answer"),
        id=first(row, "id"),
        tags={"subject": first(row, "subfield"), "type": first(row, "answer_type")},
    )


def story(row: Row) -> Iterator[Question]:
    """SVAMP and ASDiv: the story and its question are two fields; ASDiv puts the unit after the answer."""
    answer = gold(row, "Answer", "answer")
    yield Question(
        sentences(text(row, "Body", "body"), text(row, "Question", "question")),
        None if answer is None else whole_number(re.sub(r"\s+\([^()]*\)$", "", answer)),
        id=first(row, "ID", "id", "idx"),
        tags={"type": first(row, "Type", "type", "solution_type")},
    )


def gaokao(row: Row) -> Iterator[Question]:
    """Gaokao 2023 in English: some questions list lettered options, and their answer is a letter."""
    question, answer = text(row, "question"), gold(row, "answer")
    letters = tuple(dict.fromkeys(re.findall(r"\(([A-K])\)", question)))
    yield Question(
        question,
        answer,
        choices=letters if len(letters) >= 4 and answer in letters else None,
        tags={"exam": first(row, "source")},
    )


_STEM = frozenset(
    (
        *("abstract_algebra", "astronomy", "college_biology", "college_chemistry", "college_computer_science"),
        *("college_mathematics", "college_physics", "computer_security", "conceptual_physics"),
        *("electrical_engineering", "elementary_mathematics", "high_school_biology", "high_school_chemistry"),
        *("high_school_computer_science", "high_school_mathematics", "high_school_physics"),
        *("high_school_statistics", "machine_learning"),
    )
)


def mmlu_stem(row: Row) -> Iterator[Question]:
    """MMLU, the 18 subjects of science, technology, engineering and mathematics; of all of MMLU, the others go."""
    subject = first(row, "subject", "type")
    if subject is not None and typed(subject, str, "subject", "a text") not in _STEM:
        raise NotInTaskError("a subject that is not STEM")
    question = multiple_choice(row, [text(row, "question")], ["choices"], ["answer"])
    yield dataclasses.replace(question, tags={"subject": subject})
