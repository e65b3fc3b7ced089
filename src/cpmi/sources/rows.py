"""One row and its place: asking for a field of a given type, and saying where it is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import UnionType
from typing import Any

from cpmi.errors import InputError

NO_VALUE = object()
"""What ``Row.find`` gives for a field that is not there, since null is a value."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source and where it stands; the readers' way to ask for a field of a given type."""

    place: str
    values: Mapping[str, Any]

    @classmethod
    def of(cls, place: str, value: Any) -> Row:
        """The row, if the value is an object."""
        if not isinstance(value, Mapping):
            raise InputError(f"expected a JSON object, found {type(value).__name__}")
        return cls(place, value)

    def find(self, path: str) -> Any:
        """The value at a name or a dotted path; ``NO_VALUE`` if there is none."""
        if path in self.values:
            return self.values[path]
        value: Any = self.values
        for part in path.split("."):
            if isinstance(value, Mapping) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                return NO_VALUE
        return value

    def get(self, path: str, hint: str = "is this a file of another source?") -> Any:
        """The value of a field that must be there."""
        if (value := self.find(path)) is NO_VALUE:
            raise InputError(f"field {path!r} is missing; the fields here are: {', '.join(self.values)}; {hint}")
        return value

    def text(self, path: str, hint: str = "is this a file of another source?") -> str:
        """A text that must be there."""
        return str(typed(self.get(path, hint), str, path, "a text"))

    def texts(self, path: str) -> tuple[str, ...]:
        """A list of texts that must be there."""
        return texts_of(self.get(path), path)

    def answer(self, path: str) -> str | None:
        """An answer, if there is one: see ``answer_text``."""
        value = self.find(path)
        return None if value is NO_VALUE else answer_text(value, path)

    def or_none(self, path: str) -> Any:
        """The value of a field that need not be there."""
        value = self.find(path)
        return None if value is NO_VALUE else value


def typed(value: Any, kind: type | UnionType, name: str, expected: str) -> Any:
    """``value`` if it is of the kind; a bool is no number."""
    if isinstance(value, bool) or not isinstance(value, kind):
        raise InputError(f"field {name!r} must be {expected}, found {type(value).__name__}")
    return value


def float_of(value: Any, name: str, expected: str) -> float:
    """``value`` if it is a number that fits into a float."""
    try:
        return float(typed(value, int | float, name, expected))
    except OverflowError as error:  # a whole number of hundreds of digits
        raise InputError(f"field {name!r} must be {expected}, found one too large") from error


def leaves(value: Any) -> Iterator[Any]:
    """What a list holds, and the lists in it, in order; without recursion, since a file may nest them deep."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += reversed(value)
        else:
            yield value


def texts_of(value: Any, name: str) -> tuple[str, ...]:
    """``value`` if it is a list of texts."""
    return tuple(typed(text, str, name, "a list of texts") for text in typed(value, list, name, "a list of texts"))


def answer_text(value: Any, name: str) -> str | None:
    """An answer as text: a whole number without its ".0", a blank text as None.

    Raises:
        InputError: neither a text nor a number nor None.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"field {name!r} must be a text or a number, found {type(value).__name__}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


@contextmanager
def at_place(place: str) -> Iterator[None]:
    """Put the place before what is wrong there."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
