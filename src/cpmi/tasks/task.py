"""What a task is: one row of a question set -> its questions, and the small helpers that its reader is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from cpmi.answers import choice_of
from cpmi.errors import InputError
from cpmi.gold import clean_answer
from cpmi.sources import Row, answer_text, leaves


@dataclass(frozen=True, slots=True)
class Question:
    """One question as a task reads it out of a row.

    Attributes:
        text: all there is to know for answering it.
        gold: the right answer; None: the row has none.
        choices: the answers to choose from, where it offers some.
        id: the row's own name, a text or a whole number; None: the row's number is used.
        part: which of the row's questions this is, where a row holds several.
        tags: what else is worth keeping; see ``tag_text``.
    """

    text: str
    gold: str | None
    choices: tuple[str, ...] | None = None
    id: object = None
    part: int | None = None
    tags: Mapping[str, object] = field(default_factory=dict)


Read = Callable[[Row], Iterable[Question]]


class NotInTaskError(Exception):
    """A row that is not for this task; its text says why, and such rows are counted."""


@dataclass(frozen=True, slots=True)
class Task:
    """A question set.

    Attributes:
        about: what it is, in one line.
        read: the questions of a row.
        own: these are our own records: their ids and tags stay, and each question is kept once.
    """

    about: str
    read: Read
    own: bool = False


def rows(
    question: Sequence[str],
    answer: Sequence[str],
    *,
    named: Sequence[str] = (),
    clean: Callable[[str], str] = str,
    **tags: Sequence[str],
) -> Read:
    """The reader of rows whose fields hold the question and the answer as they are.

    Args:
        question: the names that the question's field may have.
        answer: the same for the answer; the first that holds one counts.
        named: the same for the row's own name, a text or a whole number.
        clean: what else has to be done to an answer, after ``gold``.
        tags: tag -> the names that its field may have.
    """

    def read(row: Row) -> Iterator[Question]:
        found = gold(row, *answer)
        yield Question(
            text(row, *question),
            None if found is None else clean(found),
            id=first(row, *named),
            tags={tag: first(row, *names) for tag, names in tags.items()},
        )

    return read


def first(row: Row, *names: str) -> Any:
    """The value of the first of some fields that holds one; None if none does."""
    return next((value for name in names if (value := row.or_none(name)) is not None), None)


def text(row: Row, *names: str) -> str:
    """The text of the first of some fields that is there.

    Raises:
        InputError: there is none, or it is no text.
    """
    return row.text(_present(row, names)).strip()


def gold(row: Row, *names: str) -> str | None:
    r"""The bare answer in the first of some fields that holds one, see ``gold.clean_answer``; None if none does.

    Also without ``\(``, ``\[`` or ``$`` around it, or around each of several, and the full stop after that.

    Raises:
        InputError: there is no such field, or it holds something else.
    """
    _present(row, names)
    for name in names:
        if (answer := clean_answer(row.or_none(name), name)) is not None:
            return _bare(answer).strip()
    return None


def _present(row: Row, names: Sequence[str]) -> str:
    """The first of the names that the row has, with a value if there is one."""
    there = [name for name in names if name in row.values]
    if not there:
        row.get(names[0], f"is this a file of another task? ({' or '.join(map(repr, names))} is needed)")
    return next((name for name in there if row.values[name] is not None), there[0])


_FORMULA = r"\$((?:[^$\\]|\\.)+)\$"


def _bare(answer: str) -> str:
    if inside := re.fullmatch(r"\\\((.*)\\\)|\\\[(.*)\\\]", answer, re.DOTALL):
        alone = next(part for part in inside.groups() if part is not None).strip()
        return alone if r"\(" not in alone and r"\[" not in alone else answer
    if re.fullmatch(rf"{_FORMULA}(?:\s*,\s*{_FORMULA})*\.?", answer, re.DOTALL):
        return ", ".join(match.strip() for match in re.findall(_FORMULA, answer, re.DOTALL))
    return answer


def whole_number(answer: str) -> str:
    """``43.0`` as ``43``, ``025`` as ``25``; anything else as it is."""
    number = re.fullmatch(r"(-?)0*([0-9]+)(?:\.0+)?", answer)
    return number[1] + number[2] if number else answer


def sentences(*parts: str) -> str:
    """Some texts as one; a full stop is put after a part that ends without any mark."""
    kept = [part.strip() for part in parts if part.strip()]
    ended = [part if re.search(r"[^\w\s]$", part) else f"{part}." for part in kept[:-1]]
    return " ".join([*ended, *kept[-1:]])


def lines(value: object, name: str) -> list[str]:
    """The lines of a list of texts, or of one text; blank ones are left out.

    Raises:
        InputError: neither.
    """
    found = value.splitlines() if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(line, str) for line in found):
        raise InputError(f"field {name!r} must be a text or a list of texts")
    return [line.strip() for line in found if line.strip()]


def one_of(row: Row, name: str, choices: Sequence[str]) -> str | None:
    """The choice in a field, as it is written in ``choices``; None if the field holds nothing.

    Raises:
        InputError: there is no such field, or it holds something else.
    """
    label = row.text(name) if row.get(name) is not None else ""
    return choice(label, name, choices) if label.strip() else None


def choice(label: str, name: str, choices: Sequence[str]) -> str:
    """The choice that a label names, as it is written in ``choices``; see ``answers.choice_of``.

    Raises:
        InputError: it names none.
    """
    if (found := choice_of(label, choices)) is None:
        raise InputError(f"field {name!r} must be one of {', '.join(choices)}, found {label!r}")
    return found


def multiple_choice(row: Row, texts: Sequence[str], options: Sequence[str], answer: Sequence[str]) -> Question:
    """A question with lettered options: the texts, then a line for each option; the choices are the letters.

    Args:
        texts: what stands above the options, a paragraph each.
        options: the names that the field with the options may have.
        answer: the same for the answer: an index from 0, or a letter.

    Raises:
        InputError: fewer than two options, or an answer that is none of them.
    """
    offered = [option.strip() for option in row.texts(_present(row, options))]
    if not 2 <= len(offered) <= len(ascii_uppercase):
        raise InputError(f"a question with {len(offered)} options; 2 to {len(ascii_uppercase)} are possible")
    letters = tuple(ascii_uppercase[: len(offered)])
    listed = "\n".join(f"({letter}) {option}" for letter, option in zip(letters, offered, strict=True))
    name = _present(row, answer)
    return Question("\n\n".join([*filter(None, texts), listed]), _letter(row.get(name), name, letters), letters)


def _letter(value: object, name: str, letters: Sequence[str]) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str) and value.strip().upper() in letters:
        return value.strip().upper()
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(letters):
        return letters[value]
    raise InputError(f"field {name!r} is {value!r}, but the options are 0 to {len(letters) - 1}, or A to {letters[-1]}")


def tag_text(value: object, name: str) -> str | None:
    """A tag's value as text: the parts of a list joined by "; ", nothing as None.

    Raises:
        InputError: neither a text nor a number nor a list of them nor None.
    """
    if isinstance(value, list):
        return "; ".join(part for item in leaves(value) if (part := answer_text(item, name))) or None
    return answer_text(value, name)
