"""The errors a user sees: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class CpmiError(Exception):
    """Something that stops the command; its text is the one line shown to the user (exit status 1)."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # it may quote what a file holds, line breaks included


class InputError(CpmiError):
    """The user's mistake: a file, an option or a record that cannot be used (exit status 2)."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is none of the known ones, with the nearest of them first."""
    known = tuple(known)
    near = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"unknown {what} {name!r}; {guess}(known: {', '.join(known)})")


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which line installs it.

    Raises:
        InputError: the module, or one that it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"this needs the Python package {error.name!r}, which is not installed; run: pip install 'cpmi[{extra}]'"
        ) from error
