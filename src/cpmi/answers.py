r"""Answers in text: find the answer in a solution, and the numbers in a text.

Whether two answers are *the same* is the business of ``cpmi.grader``. Nothing here imports a computer algebra
system, so importing this module costs nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from cpmi.answer_forms import Number, box_content, normalize_answer, parse_number
from cpmi.records import Trajectory

__all__ = [
    "WORD_FAMILIES",
    "Number",
    "answer_in",
    "arrived_at",
    "choice_of",
    "extract_answer",
    "final_answer_of",
    "formulas_in",
    "last_number",
    "normalize_answer",
    "numbers_in",
    "parse_number",
    "results_in",
    "word_family",
]

# --- the answer in a solution ---------------------------------------------------------------------------------------

_HASHES = re.compile(r"####[ \t]*(\S.*)")
_JSON_ANSWER = re.compile(r"\"(?:final_)?answer\"\s*:\s*(\"(?:[^\"\\]|\\.)*\"|[^\s,}\]]+)", re.IGNORECASE)
_CUE = re.compile(
    r"(?:\b(?:answer|final\s+solution)\b(?:\s+(?:to|for)\b[^.:\n]{0,100}?)?)"
    r"[\s*_\")]*(?:\]|\b(?:is|are)\b|[:=])[\s*_:]*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\n|\.(?=\s|\*|$)|,?\s(?:because|since)\b|\s?I hope\b")
_DELIMITED = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]|\*\*(.+?)\*\*", re.DOTALL)


def extract_answer(text: str) -> str | None:
    r"""The answer that a solution states, as it is written there; None if it states none.

    Looked for in this order, the last occurrence of each: ``\boxed{...}`` (or ``\fbox``); a closing line ``#### x``;
    a JSON field ``"answer"``; ``the (final) answer is x``, ``Answer: x``, ``[Final solution] x``. No guess is made from
    the last number; see ``final_answer_of``.
    """
    if (boxed := box_content(text)) is not None:
        return boxed[0].strip()
    if match := _HASHES.search(text.rstrip().rpartition("\n")[2]):
        return match[1].strip()
    for match in reversed(list(_JSON_ANSWER.finditer(text))):
        return _json_text(match[1])
    for match in reversed(list(_CUE.finditer(text))):
        if stated := _statement(text[match.end() :]):
            return stated
    return None


def _json_text(value: str) -> str:
    try:
        decoded = str(json.loads(value))
    except ValueError:  # an unescaped LaTeX backslash, or a bare word
        decoded = ""
    return (decoded if decoded.isprintable() and decoded else value.strip('"')).strip()  # "\f" of \frac is a form feed


def _statement(rest: str) -> str | None:
    """The answer at the beginning of what follows "the answer is"."""
    if match := _DELIMITED.match(rest):
        return next(group for group in match.groups() if group is not None).strip()
    end = _SENTENCE_END.search(rest)
    return rest[: end.start() if end else len(rest)].strip(' \t*_`"').removesuffix(".").strip() or None


# Answers that are one word out of a few; the rules for wrong answers and the last resort below both go by them.
WORD_FAMILIES: tuple[tuple[str, ...], ...] = (
    ("yes", "no"),
    ("true", "false", "unknown", "uncertain", "undetermined"),
    ("entailment", "contradiction", "neutral", "self_contradiction"),
    ("even", "odd", "neither"),
    ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    ("circle", "ellipse", "parabola", "hyperbola", "line", "point"),
)


def word_family(answer: str) -> tuple[str, ...]:
    """The family that a one-word answer belongs to; empty if none."""
    word = normalize_answer(answer).lower().replace("-", "_").replace(" ", "_")
    return next((family for family in WORD_FAMILIES if word in family), ())


def final_answer_of(trajectory: Trajectory) -> str | None:
    """The answer a trajectory arrives at: ``trajectory.final_answer`` where it is set, else that of its last step
    (``arrived_at``). Of a question with choices it is one of them, as it is written there, or None. A solution that was
    cut at a limit of tokens (the tag ``finish_reason`` is ``length``) arrives at what it states, if anything."""
    choices = trajectory.choices
    if trajectory.final_answer is not None and trajectory.final_answer.strip():
        return trajectory.final_answer if choices is None else choice_of(trajectory.final_answer, choices)
    last = trajectory.steps[-1] if trajectory.steps else ""
    if trajectory.tags.get("finish_reason") == "length":
        return answer_in(last, choices)
    return arrived_at(last, trajectory.gold_answer or "", choices)


def arrived_at(text: str, gold: str = "", choices: Sequence[str] | None = None) -> str | None:
    """The answer at the end of a solution: what it states (``extract_answer``).

    Where it states nothing, or prose where the gold answer is a number, the gold answer's kind decides what is taken
    from the text: its last number for a number, its last option letter for a letter, its last word of the family for a
    word of a known family; None for anything else.

    Args:
        choices: the answers that the question offers. The one that is stated is taken, or the last one mentioned where
            nothing is stated; a statement that is none of them is no answer.
    """
    stated = extract_answer(text)
    if choices is not None:
        return choice_of(stated, choices) if stated is not None else _last_choice(text, choices)
    prose = stated is not None and len(re.findall(r"(?<!\\)\b[A-Za-z]{2,}", stated)) >= 3
    if stated is not None and not (prose and parse_number(gold) and not parse_number(stated)):
        return stated
    return _last_of_kind(gold, stated or text) or stated


def answer_in(text: str, choices: Sequence[str] | None = None) -> str | None:
    """The answer that a text states (``extract_answer``), where it is one of the choices, if there are any."""
    stated = extract_answer(text)
    return stated if stated is None or choices is None else choice_of(stated, choices)


_UNKNOWN = re.compile(r"\b(?:unknown|undetermined|cannot be determined)\b", re.IGNORECASE)


def choice_of(answer: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer names, as it is written in ``choices``; None if it names none of them, or several.

    ``B``, ``(B)``, ``B. Paris`` and ``option B`` are all the choice ``B``; words are told without regard to case,
    hyphens and underscores, also in a phrase of a few words; ``unknown`` is ``uncertain``.
    """
    plain = _folded(answer, choices)
    letters = re.fullmatch(r"(?:(?:option|choice)\s+)?\(?([a-z])(?:[.:)].*)?", plain, re.DOTALL)
    folded = {_folded(choice, choices): choice for choice in choices}
    if plain in folded:
        return folded[plain]
    if letters and letters[1] in folded:
        return folded[letters[1]]
    named = {match for match in _mentions(plain, choices) if len(match) > 1}
    negated = re.search(r"\b(?:not|neither|nor|isn't|cannot be)\b", plain)
    return folded[named.pop()] if len(named) == 1 and not negated and len(plain) <= 100 else None


def _folded(text: str, choices: Sequence[str]) -> str:
    text = re.sub(r"\\(?:text(?:bf|rm)?|mathrm|mathbf)\{|[{}$*]", "", text)
    text = " ".join(re.sub(r"\\?[_-]+", " ", text).split()).strip(" .").casefold()
    return _UNKNOWN.sub("uncertain", text) if any(choice.casefold() == "uncertain" for choice in choices) else text


def _mentions(folded: str, choices: Sequence[str]) -> list[str]:
    """The choices in a folded text, in order; where one is part of another (``contradiction``), the longer one."""
    names = sorted((_folded(choice, choices) for choice in choices), key=len, reverse=True)
    return re.findall(rf"\b(?:{'|'.join(map(re.escape, names))})\b", folded)


def _last_choice(text: str, choices: Sequence[str]) -> str | None:
    """The last choice mentioned; single letters count only as ``(B)`` or ``option B``."""
    folded = {_folded(choice, choices): choice for choice in choices}
    if all(len(choice) == 1 for choice in choices):
        found = re.findall(r"\(([A-Za-z])\)|\b(?:[Oo]ption|[Cc]hoice)\s+\(?([A-Za-z])\b", text)
        return folded.get("".join(found[-1]).casefold()) if found else None
    mentions = _mentions(_folded(text, choices), choices)
    return folded[mentions[-1]] if mentions else None


def _last_of_kind(gold: str, text: str) -> str | None:
    if parse_number(gold):
        return last_number(text)
    if re.fullmatch("[A-J]", normalize_answer(gold)):
        found = re.findall(r"\(([A-J])\)|\b(?:[Oo]ption|[Cc]hoice)\s+([A-J])\b", text)
        return "".join(found[-1]) if found else None
    found = re.findall(rf"\b(?:{'|'.join(word_family(gold)) or '(?!)'})\b", text, re.IGNORECASE)
    return found[-1] if found else None


# --- numbers in a text ----------------------------------------------------------------------------------------------

_LABEL = re.compile(
    r"^[ \t]*(?:[#*_]+[ \t]*)?[0-9]+[.)](?=\s)"
    r"|\b(?:step|case|part|question|problem|method|equation|option)\s+[0-9]+[.:)]?",
    re.IGNORECASE | re.MULTILINE,
)
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9_^.])(?<![\^_]\{)(?<!sqrt\{)"  # not an exponent, an index, a radicand
    r"(?P<sign>(?<![0-9)}\]%])(?<![0-9)}\]%]\s)-)?(?:\\?[$€£]\s?)?"  # a sign, where the minus is not a difference
    r"(?>(?P<fraction>[0-9]*\\[dtc]?frac\{-?[0-9]+\}\{-?[0-9]+\}|[0-9]+/[0-9]+)"
    r"|(?P<decimal>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]*\.[0-9]+|[0-9]+))"
    r"(?P<percent>\s?\\?%)?"
    r"(?![0-9]|[.,][0-9]{3}|\.[0-9]|\s*\^|_|\\(?:sqrt|pi|frac)|[A-Za-z](?![A-Za-z])|(?:st|nd|rd|th)\b)"
)
_RESULT_TUPLE = re.compile(r"(?:\\left)?[(\[][^()\[\]=\n]{1,40},[^()\[\]=\n]{1,40}[)\]]")
_RESULT_END = re.compile(r"=|\n|\\[)\]]|\\\\|\$(?![0-9])|[,.;](?![0-9])|\s(?=(?:and|or|so|which|where|for|is)\s)")


def numbers_in(text: str) -> list[str]:
    r"""The plain numbers of a text, in order: ``$14,000`` is ``14000``, ``50\%`` is ``50%``, ``\frac{1}{2}`` stays.

    Not the numbers of headings and lists (``Step 3:``, ``1.``), ordinals, exponents, indices, or coefficients
    (``3x``); a minus counts as a sign only where it is not a difference.
    """
    return [_token_text(match) for match in _TOKEN.finditer(_LABEL.sub(" ", text.replace("{,}", ",")))]


def _token_text(match: re.Match[str]) -> str:
    digits = match["fraction"] or match["decimal"].replace(",", "")
    return (match["sign"] or "") + digits + ("%" if match["percent"] else "")


def last_number(text: str) -> str | None:
    """The last plain number of a text."""
    numbers = numbers_in(text)
    return numbers[-1] if numbers else None


def results_in(text: str) -> list[str]:
    """The numbers a text computes: those right after an ``=``; where there is none, all its numbers."""
    found = [normal for normal in _after_equals(text) if parse_number(normal)]
    return found or numbers_in(text)


def formulas_in(text: str) -> list[str]:
    """Short formulas (no prose) right after an ``=``, plain numbers included, in order, normalized."""
    return [normal for normal in _after_equals(text) if _is_formula(normal)]


def _after_equals(text: str) -> Iterator[str]:
    for part in re.compile(r"(?<![<>!=])=(?!=)\s*").finditer(text):
        bracketed = _RESULT_TUPLE.match(text, part.end())
        end = _RESULT_END.search(text, part.end())
        segment = bracketed[0] if bracketed else text[part.end() : end.start() if end else len(text)]
        boxed = box_content(segment)
        if len(segment) <= 120 and (normal := normalize_answer(boxed[0] if boxed else segment)):
            yield normal


def _is_formula(text: str) -> bool:
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", text)
    return len(text) <= 60 and not words and text.count("{") == text.count("}") and text[-1] not in "+-*/^("
