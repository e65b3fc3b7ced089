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
# A sentence ends with its mark, closing quotes and brackets, and white space, before what may open the next one. Only
# what is sure counts: not an ellipsis, not a lower-case letter behind the mark.
_SENTENCE_END = re.compile(
    r"(?:(?<!\.)\.|(?<![!?])[!?]+)[\"'\u201d\u2019)\]*_]*\s+(?=[^\W_a-z]|[$\\\"'\u201c\u2018(\[*])"
)
# What no sentence may be cut in. A dollar sign opens a formula where no space follows it, and closes one where no space
# stands before it and no digit behind it: so "$5. Then $7" is money.
_WHOLE_IN_LINE = re.compile(
    _WHOLE.pattern + r"|(?<!\\)\\\((?s:.*?)\\\)|(?<![\\$])\$(?![\s$])(?:\\.|[^$\\\n])+(?<!\s)\$(?![0-9$])|`[^`\n]+`",
    re.MULTILINE,
)
# Behind these a full stop ends no sentence; nor behind a capital letter alone (an initial), or the number of a list.
_NO_SENTENCE_END = re.compile(
    r"(?<![A-Za-z])(?:[A-Z]|(?i:e\.g|i\.e|a\.m|p\.m|u\.s|etc|vs|cf|resp|approx|ca|mr|mrs|ms|dr|prof|st|nos?|fig|eqs?"
    r"|in|ft|lbs?|oz|hrs?|mins?))\Z"
    r"|(?:\A|\n)\W*(?i:step\s+)?\d{1,3}\Z",
)
_ENOUGH_BEFORE = 60  # characters to look at for it


def split_steps(text: str, how: str = "auto") -> tuple[str, ...]:
    """The steps of a solution, without white space at their ends; none for a blank text.

    A text before the first header (``step-k``, ``numbered``) belongs to the first step: it is seldom reasoning of its
    own ("Let's go step by step:"), and so "Step 3" stays the third step.

    Args:
        text: the solution.
        how: ``blank-lines``: at each blank line; ``lines``: at each line end; ``step-k``: before each line that opens
            with ``Step 1:`` and the like; ``numbered``: before lines that open with ``1.`` or ``1)``, counting up by
            one from 1, all indented alike; ``sentences``: behind each sentence, where its end is sure (not in a
            formula or a decimal number, not behind an abbreviation); ``auto``: the first of ``step-k``,
            ``blank-lines``, ``numbered``, ``lines`` that finds two steps or more.

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


def _outside(pattern: re.Pattern[str], text: str, must_stay: re.Pattern[str] = _WHOLE) -> Iterator[re.Match[str]]:
    """The matches that do not touch a part that must stay whole."""
    whole = [match.span() for match in must_stay.finditer(text)]
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


def _sentences(text: str) -> list[int]:
    cuts: list[int] = []
    for match in _outside(_SENTENCE_END, text, _WHOLE_IN_LINE):
        before = text[max(cuts[-1] if cuts else 0, match.start() - _ENOUGH_BEFORE) : match.start()]
        if match[0][0] != "." or not _NO_SENTENCE_END.search(before):
            cuts.append(match.end())
    return cuts


WAYS: dict[str, Callable[[str], list[int]]] = {
    "step-k": _step_k,
    "blank-lines": _blank_lines,
    "numbered": _numbered,
    "lines": _lines,
    "sentences": _sentences,
}
