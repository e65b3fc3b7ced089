"""Split one solution text into steps.

Every way only chooses where to cut: the pieces joined are the text again, but for white space at the cuts. No cut
falls inside a code fence or a display formula, so neither is torn apart.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator

from cpmi.errors import unknown_name

# What must stay whole: fenced code, \[ ... \], $$ ... $$, and any LaTeX environment. An opening without its closing
# matches nothing, so a slip in the text cannot glue the rest of it together.
_WHOLE = re.compile(
    r"^[ \t]*(?P<fence>`{3,}|~{3,})(?s:.*?)^[ \t]*(?P=fence)"
    r"|(?<!\\)\\\[(?s:.*?)\\\]"
    r"|(?<!\\)\$\$(?s:.*?)\$\$"
    r"|\\begin\{(?P<name>[A-Za-z]+\*?)\}(?s:.*?)\\end\{(?P=name)\}",
    re.MULTILINE,
)
# "Step 1:", "**Step 1**", "### Step 1. Title", "- Step 1)": the number must be followed by a mark or the line's end,
# so that a sentence such as "Step 2 shows that" opens no step.
_STEP_K = re.compile(
    r"^[ \t]*(?:>[ \t]*|[-*+][ \t]+)?(?:#{1,6}[ \t]*)?(?:\*\*|__)?[ \t]*"
    r"step[ \t]+\d+[ \t]*(?:[:.()\]*_\-\u2013\u2014]|$)",
    re.MULTILINE | re.IGNORECASE,
)
_NUMBERED = re.compile(
    r"^(?P<indent>[ \t]*)(?:#{1,6}[ \t]*)?(?:\*\*|__)?(?P<number>\d{1,4})[.)](?:\*\*|__)?[ \t]+\S", re.MULTILINE
)
_BLANK_LINES = re.compile(r"\n\s*\n")
_LINE_END = re.compile(r"\n")


def split_steps(text: str, how: str = "auto") -> tuple[str, ...]:
    """The steps of a solution, without white space at their ends; none for a blank text.

    A text before the first header (``step-k``, ``numbered``) belongs to the first step: it is seldom reasoning of its
    own ("Let's go step by step:"), and so "Step 3" stays the third step.

    Args:
        text: the solution.
        how: ``blank-lines``: at each blank line; ``lines``: at each line end; ``step-k``: before each line that opens
            with ``Step 1:`` and the like; ``numbered``: before lines that open with ``1.`` or ``1)``, counting up by
            one from 1, all indented alike; ``auto``: the first of ``step-k``, ``blank-lines``, ``numbered``,
            ``lines`` that finds two steps or more.

    Raises:
        InputError: an unknown way.
    """
    if how == "auto":
        ways = ("step-k", "blank-lines", "numbered", "lines")
        found = (split_steps(text, way) for way in ways)
        return next((steps for steps in found if len(steps) > 1), _pieces(text, ()))
    if how not in WAYS:
        raise unknown_name("way to split steps", how, ("auto", *WAYS))
    return _pieces(text, WAYS[how](text))


def _pieces(text: str, cuts: Iterable[int]) -> tuple[str, ...]:
    edges = (0, *cuts, len(text))
    pieces = (text[start:end].strip() for start, end in itertools.pairwise(edges))
    return tuple(piece for piece in pieces if piece)


def _outside(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """The matches that do not touch a part that must stay whole."""
    whole = [match.span() for match in _WHOLE.finditer(text)]
    at = 0
    for match in pattern.finditer(text):
        while at < len(whole) and whole[at][1] <= match.start():
            at += 1
        if at == len(whole) or match.end() <= whole[at][0]:
            yield match


def _step_k(text: str) -> list[int]:
    return [match.start() for match in _outside(_STEP_K, text)][1:]


def _numbered(text: str) -> list[int]:
    cuts: list[int] = []
    indent = ""
    for match in _outside(_NUMBERED, text):
        if int(match["number"]) != len(cuts) + 1 or (cuts and match["indent"] != indent):
            continue  # a list inside a step, or a number that happens to open a line
        indent = match["indent"]
        cuts.append(match.start())
    return cuts[1:]


def _blank_lines(text: str) -> list[int]:
    return [match.end() for match in _outside(_BLANK_LINES, text)]


def _lines(text: str) -> list[int]:
    return [match.end() for match in _outside(_LINE_END, text)]


WAYS: dict[str, Callable[[str], list[int]]] = {
    "step-k": _step_k,
    "blank-lines": _blank_lines,
    "numbered": _numbered,
    "lines": _lines,
}
