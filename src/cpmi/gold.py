"""Join gold answers from another file to trajectories, by the text of the question."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, assert_never

from cpmi.answer_forms import box_content
from cpmi.errors import InputError
from cpmi.records import Trajectory
from cpmi.sources import Row, answer_text, at_place, leaves, read_any

_QUESTION_FIELDS = ("question", "problem", "prompt", "input")
_ANSWER_FIELDS = ("gold_answer", "answer", "final_answer", "ground_truth_answer", "target", "solution")


def _spacing(question: str) -> str:
    return "".join(question.split())


def _letters(question: str) -> str:
    """Letters and digits, lower-case, and the signs of arithmetic: "3 + 4" and "3 - 4" stay two questions."""
    return "".join(c for c in question.lower() if c.isalnum() or c in "+-*/^=<>!%|")


Level = Literal["exact", "spacing", "letters"]
Outcome = Literal[Level, "unmatched", "ambiguous", "already", "conflicting"]

# How two question texts are compared, the strictest way first.
_LEVELS: dict[Level, Callable[[str], str]] = {"exact": str, "spacing": _spacing, "letters": _letters}


@dataclass(slots=True)
class GoldAnswers:
    """Answers by question text.

    Attributes:
        keys: for each way to compare, the answer of each question; None where one text has two different answers.
        without_answer: how many rows had no answer, and so are not here.
    """

    keys: dict[Level, dict[str, str | None]] = field(default_factory=lambda: {level: {} for level in _LEVELS})
    without_answer: int = 0

    def add(self, question: str, answer: str) -> None:
        """Add a question and its answer."""
        for level, key_of in _LEVELS.items():
            key = key_of(question)
            known = self.keys[level].setdefault(key, answer)
            if known != answer:
                self.keys[level][key] = None

    def find(self, question: str) -> tuple[Outcome, str | None]:
        """How the question was found (``exact``, ``spacing``, ``letters``), and its answer.

        The first way that knows the question decides; ``ambiguous`` if it knows two answers, ``unmatched`` if none
        knows the question.
        """
        for level, key_of in _LEVELS.items():
            key = key_of(question)
            if key and key in self.keys[level]:
                answer = self.keys[level][key]
                return ("ambiguous", None) if answer is None else (level, answer)
        return "unmatched", None


@dataclass(slots=True)
class JoinReport:
    """How many trajectories got a gold answer, and why the others did not.

    Attributes:
        exact: joined, the question text is the same.
        spacing: joined, the same but for white space.
        letters: joined, the same letters, digits and signs of arithmetic.
        unmatched: the question is not in the file.
        ambiguous: the question is there with different answers; not joined.
        already: had a gold answer, and the file has the same or none for it.
        conflicting: had a gold answer, and the file has another: kept, or replaced where that was asked for.
    """

    exact: int = 0
    spacing: int = 0
    letters: int = 0
    unmatched: int = 0
    ambiguous: int = 0
    already: int = 0
    conflicting: int = 0

    def count(self, outcome: Outcome) -> None:
        """Count one trajectory under what came of it."""
        match outcome:
            case "exact":
                self.exact += 1
            case "spacing":
                self.spacing += 1
            case "letters":
                self.letters += 1
            case "unmatched":
                self.unmatched += 1
            case "ambiguous":
                self.ambiguous += 1
            case "already":
                self.already += 1
            case "conflicting":
                self.conflicting += 1
            case _:
                assert_never(outcome)

    @property
    def normalized(self) -> int:
        """Joined, though the texts differ."""
        return self.spacing + self.letters

    @property
    def joined(self) -> int:
        """All that were joined."""
        return self.exact + self.normalized

    def lines(self) -> list[str]:
        """The summary, ready to print."""
        how = f"{self.exact} by the same text, {self.spacing} but for spacing, {self.letters} but for punctuation"
        first = f"gold answers joined: {self.joined} ({how})"
        rest = {
            "question not in the gold file": self.unmatched,
            "question there with different answers, not joined": self.ambiguous,
            "had a gold answer already": self.already,
            "had a gold answer that differs": self.conflicting,
        }
        return [first, *(f"{what}: {number}" for what, number in rest.items() if number)]


def load_gold(path: Path, question_field: str | None = None, answer_field: str | None = None) -> GoldAnswers:
    """Read gold answers from a file of questions (JSON lines, JSON or Parquet, see ``sources.read_any``).

    Without names, the question is the first field there is of ``question``, ``problem``, ``prompt``, ``input``; the
    answer the first that holds one of ``gold_answer``, ``answer``, ``final_answer``, ``ground_truth_answer``,
    ``target``, ``solution``. Whatever the field, the answer in it is taken so:

    * GSM8K: what follows the last ``####``, without the commas in its numbers;
    * OlympiadBench: a list, joined by ", ", each without the ``$`` around it;
    * MATH: the content of the last ``\\boxed{}``; a ``solution`` without one holds no answer;
    * else the text or the number as it is.

    Raises:
        InputError: a row without the field, or with one of another type, with its place; no answer in any row.
    """
    gold = GoldAnswers()
    for place, value in read_any(Path(path)):
        with at_place(place):
            row = Row.of(place, value)
            question = row.text(_question_field(row, question_field), "name it with --gold-question-field")
            answer = _row_answer(row, answer_field)
        if answer is None:
            gold.without_answer += 1
        else:
            gold.add(question, answer)
    if not gold.keys["exact"]:
        raise InputError(
            f"{path}: no gold answer in {gold.without_answer} rows; name its field with --gold-answer-field"
        )
    return gold


def _question_field(row: Row, named: str | None) -> str:
    return named or next((name for name in _QUESTION_FIELDS if row.or_none(name) is not None), _QUESTION_FIELDS[0])


def _row_answer(row: Row, named: str | None) -> str | None:
    hint = "name it with --gold-answer-field"
    if named is not None:
        return clean_answer(row.get(named, hint), named)
    there = [name for name in _ANSWER_FIELDS if name in row.values]
    if not there:
        row.get("answer", hint)
    answers = (clean_answer(row.values[name], name) for name in there)
    return next((answer for answer in answers if answer is not None), None)


def clean_answer(value: Any, name: str) -> str | None:
    """The bare answer in the value of a field, see ``load_gold``; None if there is none.

    Raises:
        InputError: neither a text nor a number nor a list of them nor None.
    """
    if isinstance(value, list):
        parts = [part for part in (clean_answer(item, name) for item in leaves(value)) if part is not None]
        return ", ".join(parts) or None
    text = answer_text(value, name)
    if text is None:
        return None
    _, mark, last = text.rpartition("####")
    if mark:
        return re.sub(r"(?<=\d),(?=\d)", "", last).strip() or None
    if name.rpartition(".")[2] == "solution" or "\\boxed" in text:
        return last_boxed(text)
    return re.sub(r"^\$(?P<inside>[^$]+)\$$", r"\g<inside>", text.strip())


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{}``, ``\fbox{}`` or ``\boxed 2``; None if there is nothing, or no end of it.

    An earlier box is never taken in its place (as ``answers.extract_answer`` does): it may hold something else.
    """
    last = text[max(text.rfind(r"\boxed"), text.rfind(r"\fbox"), 0) :]
    if boxed := box_content(last):
        return boxed[0].strip()
    bare = re.match(r"\\(?:boxed|fbox)\s+(?P<content>[^\s${]+)", last)
    return bare["content"] if bare else None


def join_gold(
    trajectories: Iterable[Trajectory], gold: GoldAnswers, report: JoinReport | None = None, *, replace: bool = False
) -> Iterator[Trajectory]:
    """Every trajectory, in order, with the gold answer of its question where there is one; ids stay as they are.

    Args:
        trajectories: what to join to.
        gold: the answers.
        report: counts how it went.
        replace: also where a trajectory has another gold answer.
    """
    report = report or JoinReport()
    for trajectory in trajectories:
        outcome, answer = gold.find(trajectory.question)
        if answer is not None and trajectory.gold_answer is not None:
            outcome = "already" if answer == trajectory.gold_answer else "conflicting"
        elif trajectory.gold_answer is not None:
            outcome = "already"
        report.count(outcome)
        wanted = answer is not None and (trajectory.gold_answer is None or replace)
        yield dataclasses.replace(trajectory, gold_answer=answer) if wanted else trajectory
