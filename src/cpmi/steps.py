"""Split one solution text into steps.

Every way only chooses where to cut: the pieces joined are the text again, but for white space at the cuts. No cut
falls inside a code fence or a display formula, so neither is torn apart.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator

from cpmi.errors import unknown_name

Spans = list[tuple[int, int]]

# What must stay whole begins so: fenced code, \[ ... \], $$ ... $$, and any LaTeX environment. Here and below what is
# repeated is possessive where nothing else may follow it: text of strangers must not take more than linear time.
_OPENING = re.compile(
    r"^[ \t]*+(?P<fence>`{3,}+|~{3,}+)"
    r"|(?P<display>(?<!\\)\\\[|(?<!\\)\$\$)"
    r"|\\begin\{(?P<name>[A-Za-z]+\*?)\}",
    re.MULTILINE,
)
_FENCE = re.compile(r"^[ \t]*+(?P<fence>`{3,}+|~{3,}+)", re.MULTILINE)
_END = re.compile(r"\\end\{(?P<name>[A-Za-z]+\*?)\}")
_CLOSING = {r"\[": r"\]", r"\(": r"\)", "$$": "$$"}
# "Step 1:", "**Step 1**", "### Step 1. Title", "- Step 1)": the number must be followed by a mark or the line's end,
# so that a sentence such as "Step 2 shows that" opens no step.
_STEP_K = re.compile(
    r"^[ \t]*+(?:>[ \t]*+|[-*+][ \t]++)?+(?:#{1,6}+[ \t]*+)?+(?:\*\*|__)?+[ \t]*+"
    r"step[ \t]++\d++[ \t]*+(?:[:.()\]*_\-\u2013\u2014]|$)",
    re.MULTILINE | re.IGNORECASE,
)
_NUMBERED = re.compile(
    r"^(?P<indent>[ \t]*)(?:#{1,6}[ \t]*)?(?:\*\*|__)?(?P<number>\d{1,4})[.)](?:\*\*|__)?[ \t]+\S", re.MULTILINE
)
_BLANK_LINES = re.compile(r"\n\s*\n")
_LINE_END = re.compile(r"\n+")
# A sentence ends with its mark, closing quotes and brackets, and white space, before what may open the next one. Only
# what is sure counts: not an ellipsis, not a lower-case letter behind the mark.
_SENTENCE_END = re.compile(
    r"(?:(?<!\.)\.|(?<![!?])[!?]+)[\"'\u201d\u2019)\]*_]*\s+(?=[^\W_a-z]|[$\\\"'\u201c\u2018(\[*])"
)
# What no sentence may be cut in. A dollar sign opens a formula where no space follows it, and closes one where no space
# stands before it and no digit behind it: so "$5. Then $7" is money.
_OPENING_IN_LINE = re.compile(
    _OPENING.pattern.replace(r"(?P<display>", r"(?P<display>(?<!\\)\\\(|")
    + r"|(?P<whole>(?<![\\$])\$(?![\s$])(?:\\.|[^$\\\n])++(?<!\s)\$(?![0-9$])|`[^`\n]++`)",
    re.MULTILINE,
)
# Behind these a full stop ends no sentence; nor behind a capital letter alone (an initial), or the number of a list.
_ABBREVIATION = re.compile(
    r"(?<![A-Za-z])(?:[A-Z]|(?i:e\.g|i\.e|a\.m|p\.m|u\.s|etc|vs|cf|resp|approx|ca|mr|mrs|ms|dr|prof|st|nos?|fig|eqs?"
    r"|in|ft|lbs?|oz|hrs?|mins?))\Z"
)
_LONGEST_ABBREVIATION = 6
_NUMBER_OF_A_LIST = re.compile(r"(?:\A|\n)\W*(?i:step\s+)?\d{1,3}\Z")
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
        whole = _whole(text)
        for way in ("step-k", "blank-lines", "numbered", "lines"):
            steps = _pieces(text, WAYS[way](text, whole))
            if len(steps) > 1:
                return steps
        return _pieces(text, ())
    if how not in WAYS:
        raise unknown_name("way to split steps", how, ("auto", *WAYS))
    return _pieces(text, WAYS[how](text, _whole(text, _OPENING_IN_LINE if how == "sentences" else _OPENING)))


def _pieces(text: str, cuts: Iterable[int]) -> tuple[str, ...]:
    edges = (0, *cuts, len(text))
    pieces = (text[start:end].strip() for start, end in itertools.pairwise(edges))
    return tuple(piece for piece in pieces if piece)


def _whole(text: str, opening: re.Pattern[str] = _OPENING) -> Spans:
    """The parts that must stay whole. An opening without its closing opens none, so that a slip in the text cannot
    glue the rest of it together."""
    closings = _Closings(text)
    found: Spans = []
    at = 0
    while match := opening.search(text, at):
        end = closings.end_of(match)
        if end is not None:
            found.append((match.start(), end))
        at = match.start() + 1 if end is None else end
    return found


class _Closings:
    """Finds the closing of each opening in a text; the openings come in order. None is looked for again and again."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._absent: set[str] = set()  # there are no more of these
        self._fences: dict[int, int] | None = None
        self._ends: dict[str, list[int]] | None = None

    def end_of(self, opening: re.Match[str]) -> int | None:
        """Where the part ends that begins here."""
        kind = opening.lastgroup
        if kind == "whole":
            return opening.end()
        if kind == "fence":
            if self._fences is None:
                self._fences = _fences(self._text)
            return self._fences.get(opening.start())
        return self._environment(opening) if kind == "name" else self._display(opening)

    def _display(self, opening: re.Match[str]) -> int | None:
        closing = _CLOSING[opening[0]]
        if closing in self._absent:
            return None
        start = self._text.find(closing, opening.end())
        if start < 0:
            self._absent.add(closing)
            return None
        return start + len(closing)

    def _environment(self, opening: re.Match[str]) -> int | None:
        if self._ends is None:
            self._ends = {}
            for match in _END.finditer(self._text):
                self._ends.setdefault(match["name"], []).append(match.end())
        ends = self._ends.get(opening["name"], ())
        after = bisect.bisect(ends, opening.end())
        return ends[after] if after < len(ends) else None


def _fences(text: str) -> dict[int, int]:
    """Where fenced code begins that has an end, and the end.

    A fence is closed by the next line that opens with as many of its marks, or more. Where all that follow are shorter
    it is taken to be as long as the longest of these.
    """
    found: dict[int, int] = {}
    lines = [(match.start(), *match.span("fence")) for match in _FENCE.finditer(text)]
    later: dict[str, list[tuple[int, int]]] = {"`": [], "~": []}  # by mark: start and length, the nearest on top
    longest: dict[str, tuple[int, int]] = {}  # of these the first
    for start, fence, end in reversed(lines):
        mark, length = text[fence], end - fence
        stack = later[mark]
        while stack and stack[-1][1] < length:  # whatever it closes, this line closes before it
            stack.pop()
        if stack:
            found[start] = stack[-1][0] + length
        elif mark in longest:
            found[start] = sum(longest[mark])
        if not stack or length == longest[mark][1]:
            longest[mark] = (fence, length)
        stack.append((fence, length))
    return found


def _outside(pattern: re.Pattern[str], text: str, whole: Spans) -> Iterator[re.Match[str]]:
    """The matches that do not touch a part that must stay whole."""
    at = 0
    for match in pattern.finditer(text):
        while at < len(whole) and whole[at][1] <= match.start():
            at += 1
        if at == len(whole) or match.end() <= whole[at][0]:
            yield match


def _step_k(text: str, whole: Spans) -> list[int]:
    return [match.start() for match in _outside(_STEP_K, text, whole)][1:]


def _numbered(text: str, whole: Spans) -> list[int]:
    cuts: list[int] = []
    indent = ""
    for match in _outside(_NUMBERED, text, whole):
        if int(match["number"]) != len(cuts) + 1 or (cuts and match["indent"] != indent):
            continue  # a list inside a step, or a number that happens to open a line
        indent = match["indent"]
        cuts.append(match.start())
    return cuts[1:]


def _blank_lines(text: str, whole: Spans) -> list[int]:
    return [match.end() for match in _outside(_BLANK_LINES, text, whole)]


def _lines(text: str, whole: Spans) -> list[int]:
    return [match.end() for match in _outside(_LINE_END, text, whole)]


def _sentences(text: str, whole: Spans) -> list[int]:
    cuts: list[int] = []
    for match in _outside(_SENTENCE_END, text, whole):
        end = match.start()
        if match[0][0] != "." or not _is_no_sentence_end(text, max(cuts[-1] if cuts else 0, end - _ENOUGH_BEFORE), end):
            cuts.append(match.end())
    return cuts


def _is_no_sentence_end(text: str, start: int, end: int) -> bool:
    """Whether the full stop at ``end`` ends no sentence, by what stands before it."""
    last = text[end - 1 : end]
    if last.isdecimal():
        return _NUMBER_OF_A_LIST.search(text[start:end]) is not None
    return _ABBREVIATION.search(text, max(start, end - _LONGEST_ABBREVIATION), end) is not None


WAYS: dict[str, Callable[[str, Spans], list[int]]] = {
    "step-k": _step_k,
    "blank-lines": _blank_lines,
    "numbered": _numbered,
    "lines": _lines,
    "sentences": _sentences,
}
