r"""Answers as text: find the answer in a solution, bring answers to one form, read them as numbers.

Whether two answers are *the same* is the business of ``cpmi.grader``. Nothing here imports a computer algebra
system, so importing this module costs nothing.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from cpmi.records import Trajectory

# --- one form for the same answer -----------------------------------------------------------------------------------

_UNICODE = str.maketrans(
    {"−": "-", "–": "-", "‐": "-", "‑": "-", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot "}
    | {"π": r"\pi ", "∞": r"\infty ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "±": r"\pm ", "∪": r"\cup "}
    | {"≈": r"\approx ", "°": " ", "²": "^2", "³": "^3", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "’": "'"}
    | {
        "¾": r"\frac{3}{4}",
        "％": "%",
        "，": ",",
        "（": "(",
        "）": ")",
        "€": "",
        "£": "",
        "¥": "",
        "₹": "",
        "√": r"\sqrt ",
    }
)

_MULTIPLIERS = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_NOT_UNITS = {*_MULTIPLIERS, "dozen", "and", "or", "to", "from", "more", "less", "times", "plus", "minus", "over"}
_NOT_UNITS |= {
    "if",
    "for",
    "with",
    "where",
    "base",
    "mod",
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "log",
    "ln",
    "exp",
}
_NOT_UNITS |= {"am", "pm", "pi", "sqrt", "inf", "percent", "choose"}
# Two letters after a number may be a product of two variables; these are not.
_SHORT_UNITS = {
    "cm",
    "mm",
    "km",
    "kg",
    "mg",
    "ml",
    "ft",
    "in",
    "yd",
    "mi",
    "lb",
    "oz",
    "hr",
    "kb",
    "gb",
    "mb",
    "th",
    "st",
}
_SHORT_UNITS |= {"nd", "rd", "mph", "kph", "lbs", "hrs", "min", "sec"}

_TEXT_COMMAND = r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathit|mathsf|mbox|hbox|rm|bf)"
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # How it is laid out.
        (r"(?<=\d)(?:,\\!\s*|\{,\}|\\[,;:]\s*|\\ )(?=\d{3}(?!\d))", ""),
        (r"(?<=[\w)])\*\*(?=[\w(-])", "^"),
        (r"\\_", "_"),
        (r"\\?\$|(?<!\\)\\[()\[\]]|[`\"]|\*\*|^[\s*_]+|[\s*_]+$", ""),
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![A-Za-z])\s*", ""),
        (r"(?<!\\)\\[,;:!]|(?<!\\)\\ |\\q?quad(?![A-Za-z])|~", " "),
        (r"\s+", " "),
        # Percent, degrees, units in a text command at the end.
        (rf"\s*(?:{_TEXT_COMMAND}\s*\{{\s*)?(?:\\?%|\bper ?cent(?:age)?\b)(?:\s*\}}(?=\s*$))?", "%"),
        (r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degrees?(?![A-Za-z])", ""),
        (
            r"(?<=[0-9A-Za-z})%\]])\s*" + _TEXT_COMMAND + r"\s*\{\s*(?!(?:million|billion|thousand|hundred|dozen)\b)"
            r"(?:[mgshLJNWVKCF]|[A-Za-z][^{}]*[A-Za-z.][^{}]*)\s*\}(?:\s*\^\s*(?:\{[0-9]\}|[0-9]))?$",
            "",
        ),
        (_TEXT_COMMAND + r"\s*\{([^{}]*)\}", r"\1"),
        # Fractions, roots and constants in one spelling.
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"),
        (r"\\frac\s*([0-9A-Za-z])\s*(?=\{)", r"\\frac{\1}"),
        (r"\\frac\s*(\{[^{}]*\})\s*([0-9A-Za-z])", r"\\frac\1{\2}"),
        (r"(?<![\\A-Za-z])sqrt(?![A-Za-z])", r"\\sqrt"),
        (r"\\sqrt\s*([0-9]+|[A-Za-z])", r"\\sqrt{\1}"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi"),
        (r"(?<![\\A-Za-z])inf(?:inity|ty)?(?![A-Za-z])", r"\\infty"),
        # Words around it.
        (r"^(?:[=:]|\\approx(?![A-Za-z])|(?i:approximately|approx\.|about|exactly|roughly|option|choice)\b\s?)\s*", ""),
        (r"^[A-Za-z]\s*\\in(?![A-Za-z])\s*", ""),
        (r"(?<=[0-9})\]])\s*,?\s+(?:and|or)\s+(?=[0-9\\(\[A-Za-z-])", ","),
        (r"[\s.,;:]+$|^\s+|\\+\s*$", ""),
        # Spaces that separate nothing ("100, 200" would turn into a thousand), signs and zeros that say nothing.
        (
            r"(?<![A-Za-z0-9])(?<![0-9],)\s+|(?<=[0-9],)\s+(?![0-9]{3}(?![0-9]))|\s+(?![A-Za-z0-9])|(?<=[0-9])\s+(?=[A-Za-z])|(?<=[A-Za-z])\s+(?=[0-9])",
            "",
        ),
        (r"^\+(?=[0-9.\\])", ""),
        (r"(?<![0-9A-Za-z.])\.(?=[0-9])", "0."),
        (r"(?<![0-9.])([0-9]+)\.0+(?![0-9.])", r"\1"),
        (r"(?<![0-9.])([0-9]+\.[0-9]*[1-9])0+(?![0-9.])", r"\1"),
        (r"^\(([^(),]*)\)$", r"\1"),
    )
)
_SPACED_UNIT = re.compile(r"(.*[0-9}%]|.*\\pi)( ?)-?((?:[A-Za-z]{2,}[.']?(?:\^\{?[0-9]\}?)?[ /-]{0,3})+)")
_THOUSANDS = re.compile(r"([^,\[\](){}0-9]*)([1-9][0-9]{0,2}(?:,[0-9]{3})+)((?:\.[0-9]+)?(?![0-9])[^,\[\](){}]*)")


@functools.lru_cache(maxsize=65536)
def normalize_answer(text: str) -> str:
    r"""The canonical text of an answer; normalizing again changes nothing.

    Gone are layout (``$``, ``\left``, ``\,``, ``\text{}``, markdown), units and currency after or before a number,
    degree signs, thousands separators, trailing periods and zeros; ``\dfrac12`` is ``\frac{1}{2}``, ``\$1,000.00`` is
    ``1000``, ``20\%`` is ``20%``, ``(A)`` is ``A``. Case is kept: letters may be variables.
    """
    while (simpler := _simplify(text)) != text:
        text = simpler
    return text


def _simplify(text: str) -> str:
    text = text.translate(_UNICODE).strip()
    if (boxed := _box_content(text)) is not None and boxed[1] == len(text) and _BOX.match(text):
        text = boxed[0]
    for pattern, replacement in _RULES[:-6]:
        text = pattern.sub(replacement, text)
    text = _strip_unit(text)
    for pattern, replacement in _RULES[-6:]:
        text = pattern.sub(replacement, text)
    if match := _THOUSANDS.fullmatch(text):
        text = match[1] + match[2].replace(",", "") + match[3]
    return text


def _strip_unit(text: str) -> str:
    """``5 apples`` -> ``5``, ``20 cm^2`` -> ``20``; not ``2ab``, ``3 million`` or ``1 or more``."""
    match = _SPACED_UNIT.fullmatch(text)
    if match is None:
        return text
    words = re.findall(r"[A-Za-z]+", match[3].lower())
    unit = all(
        len(w) == 1 or w in _SHORT_UNITS or (match[2] and len(w) > 2) for w in words
    ) and not _NOT_UNITS.intersection(words)
    return match[1] if unit else text


class Number(NamedTuple):
    """A plain number: its exact value as written, whether a percent sign follows, and its decimals (None: a fraction)."""

    value: Fraction
    percent: bool
    decimals: int | None


_NUMBER = re.compile(
    r"(?P<sign>-?)(?:(?P<whole>[0-9]*)\\frac\{(?P<top>-?[0-9]+)\}\{(?P<bottom>-?[0-9]+)\}"
    r"|(?:(?P<whole2>[0-9]+) )?(?P<top2>[0-9]+)/(?P<bottom2>[0-9]+)"
    r"|(?P<decimal>[0-9]+(?:\.[0-9]+)?)(?:(?:[eE]|\\(?:times|cdot)10\^)\{?(?P<exponent>[-+]?[0-9]{1,3})\}?)?"
    r"(?P<multiplier>hundred|thousand|million|billion)?)(?P<percent>%?)"
)


@functools.lru_cache(maxsize=65536)
def parse_number(text: str) -> Number | None:
    r"""The value of an answer that is a plain number (``1,000``, ``-\frac12``, ``2 1/2``, ``$5``, ``20%``, ``1e3``)."""
    normal = normalize_answer(text)
    match = _NUMBER.fullmatch(normal) if len(normal) <= 400 else None
    if match is None:
        return None
    decimals: int | None = None
    if decimal := match["decimal"]:
        value = Fraction(decimal) * Fraction(10) ** int(match["exponent"] or 0)
        value *= _MULTIPLIERS.get(match["multiplier"], 1)
        decimals = len(decimal.partition(".")[2])
    else:
        bottom = int(match["bottom"] or match["bottom2"])
        if bottom == 0:
            return None
        value = Fraction(int(match["top"] or match["top2"]), bottom) + int(match["whole"] or match["whole2"] or 0)
    return Number(-value if match["sign"] else value, bool(match["percent"]), decimals)


# --- the answer in a solution ---------------------------------------------------------------------------------------

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
_HASHES = re.compile(r"####[ \t]*(\S[^\n]*?)\s*\Z")
_JSON_ANSWER = re.compile(r"\"(?:final_)?answer\"\s*:\s*(\"(?:[^\"\\]|\\.)*\"|[^\s,}\]]+)", re.IGNORECASE)
_CUE = re.compile(
    r"(?:\b(?:answer|final\s+solution)\b(?:\s+(?:to|for)\b[^.:\n]{0,100}?)?)"
    r"[\s*_\")]*(?:\]|\b(?:is|are)\b|[:=])[\s*_:]*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\n|\.(?=\s|\*|$)|,?\s(?:because|since)\b|\s*I hope\b")
_DELIMITED = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]|\*\*(.+?)\*\*", re.DOTALL)


def extract_answer(text: str) -> str | None:
    r"""The answer that a solution states, as it is written there; None if it states none.

    Looked for in this order, the last occurrence of each: ``\boxed{...}`` (or ``\fbox``); a closing line ``#### x``;
    a JSON field ``"answer"``; ``the (final) answer is x``, ``Answer: x``, ``[Final solution] x``. No guess is made from
    the last number; see ``final_answer_of``.
    """
    if (boxed := _box_content(text)) is not None:
        return boxed[0].strip()
    if match := _HASHES.search(text):
        return match[1].strip()
    for match in reversed(list(_JSON_ANSWER.finditer(text))):
        return _json_text(match[1])
    for match in reversed(list(_CUE.finditer(text))):
        if stated := _statement(text[match.end() :]):
            return stated
    return None


def _box_content(text: str) -> tuple[str, int] | None:
    """Content of the last whole box that is not empty, and where the box ends."""
    for match in reversed(list(_BOX.finditer(text))):
        end = _closing_brace(text, match.end())
        if end is not None and text[match.end() : end].strip():
            return text[match.end() : end], end + 1
    return None


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return None


def _json_text(value: str) -> str:
    try:
        return str(json.loads(value)).strip()
    except ValueError:  # an unescaped LaTeX backslash, or a bare word
        return value.strip('"').strip()


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
    """The answer a trajectory arrives at.

    ``trajectory.final_answer`` where it is set, else what the last step states (``extract_answer``). Where it states
    nothing, or prose where the gold answer is a number, the gold answer's kind decides what is taken from the last
    step: its last number for a number, its last option letter for a letter, its last word of the family for a word of
    a known family; None for anything else.
    """
    if trajectory.final_answer is not None and trajectory.final_answer.strip():
        return trajectory.final_answer
    last = trajectory.steps[-1] if trajectory.steps else ""
    stated = extract_answer(last)
    gold = trajectory.gold_answer or ""
    prose = stated is not None and len(re.findall(r"(?<!\\)\b[A-Za-z]{2,}", stated)) >= 3
    if stated is not None and not (prose and parse_number(gold) and not parse_number(stated)):
        return stated
    return _last_of_kind(gold, stated or last) or stated


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
    r"^[ \t]*[#*_]*[ \t]*[0-9]+[.)](?=\s)|\b(?:step|case|part|question|problem|method|equation|option)\s+[0-9]+[.:)]?",
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
        end = _RESULT_END.search(text, part.end())
        segment = text[part.end() : end.start() if end else len(text)]
        boxed = _box_content(segment)
        if len(segment) <= 120 and (normal := normalize_answer(boxed[0] if boxed else segment)):
            yield normal


def _is_formula(text: str) -> bool:
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", text)
    return len(text) <= 60 and not words and text.count("{") == text.count("}") and text[-1] not in "+-*/^("
