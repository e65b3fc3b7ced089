r"""One form for the same answer: canonical text, and plain numbers by value."""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import NamedTuple

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")

_COMMANDS = zip(
    "×÷·⋅π∞≤≥≠±∪≈", re.findall(r"\w+", "times div cdot cdot pi infty leq geq neq pm cup approx"), strict=True
)
_UNICODE = str.maketrans(
    {symbol: rf"\{name} " for symbol, name in _COMMANDS}
    | {"−": "-", "–": "-", "‐": "-", "‑": "-", "’": "'", "％": "%", "，": ",", "（": "(", "）": ")", "°": " "}
    | {"√": r"\sqrt ", "²": "^2", "³": "^3", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"}
    | dict.fromkeys("€£¥₹", "")
)

_MULTIPLIERS = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_NOT_UNITS = re.compile(
    r"hundred|thousand|million|billion|dozen|and|or|to|from|more|less|times|plus|minus|over|if|for|with|where|base|mod"
    r"|sin|cos|tan|cot|sec|csc|log|ln|exp|am|pm|pi|sqrt|inf|percent|choose"
)
# Two letters after a number may be a product of two variables; these are not.
_SHORT_UNITS = re.compile(
    r"cm|mm|km|kg|mg|ml|ft|in|yd|mi|lb|oz|hr|kb|gb|mb|th|st|nd|rd|mph|kph|lbs|hrs|min|[a-z]"  # one letter: of m/s
)

_TEXT_COMMAND = r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathit|mathsf|mbox|hbox|rm|bf)"
_REWRITE, _TIDY = (
    [(re.compile(pattern), replacement) for pattern, replacement in rules]
    for rules in (
        (
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
                r"(?<=[0-9A-Za-z})%\]])\s*"
                + _TEXT_COMMAND
                + r"\s*\{\s*(?!(?:million|billion|thousand|hundred|dozen)\b)"
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
            (
                r"^(?:(?:[=:]|\\approx(?![A-Za-z])|"
                r"(?i:approximately|approx\.|about|exactly|roughly|option|choice)\b\s?)\s*)+",
                "",
            ),
            (r"^[A-Za-z]\s*\\in(?![A-Za-z])\s*", ""),
            (r"(?<=[0-9})\]])\s*,?\s+(?:and|or)\s+(?=[0-9\\(\[A-Za-z-])", ","),
            (r"[\s.,;:]+$|^\s+|\\+\s*$", ""),
        ),
        (
            # Spaces that separate nothing ("100, 200" would turn into a thousand), signs and zeros that say nothing.
            (
                r"(?<![A-Za-z0-9])(?<![0-9],)\s+|(?<=[0-9],)\s+(?![0-9]{3}(?![0-9]))|\s+(?![A-Za-z0-9])"
                r"|(?<=[0-9])\s+(?=[A-Za-z])|(?<=[A-Za-z])\s+(?=[0-9])",
                "",
            ),
            (r"^\+(?=[0-9.\\])", ""),
            (r"(?<![0-9A-Za-z.])\.(?=[0-9])", "0."),
            (r"(?<![0-9.])([0-9]+)\.0+(?![0-9.])", r"\1"),
            (r"(?<![0-9.])([0-9]+\.[0-9]*[1-9])0+(?![0-9.])", r"\1"),
            (r"^\(([^(),]*)\)$", r"\1"),
        ),
    )
)
_UNIT_WORD = r"(?:[A-Za-z]{2,}+[.']?|[mgs](?=[/^])|(?<=/)[smhg])"
_UNIT = re.compile(rf"(.*[0-9}}%]|.*\\pi)( ?)-?((?:{_UNIT_WORD}(?:\^\{{?[0-9]\}}?)?[ /-]{{0,3}})+)")
_THOUSANDS = re.compile(r"([^,\[\](){}0-9]*)([1-9][0-9]{0,2}(?:,[0-9]{3})+)((?:\.[0-9]+)?(?![0-9])[^,\[\](){}]*)")


MAX_LENGTH = 2000
"""A longer text is no answer: it is left as it is but for its white space, since some rules take quadratic time."""


def normalize_answer(text: str) -> str:
    r"""The canonical text of an answer; normalizing again changes nothing.

    Gone are layout (``$``, ``\left``, ``\,``, ``\text{}``, markdown), units and currency after or before a number,
    degree signs, thousands separators, trailing periods and zeros; ``\dfrac12`` is ``\frac{1}{2}``, ``\$1,000.00`` is
    ``1000``, ``20\%`` is ``20%``, ``(A)`` is ``A``. Case is kept: letters may be variables.
    """
    if len(text) > MAX_LENGTH:
        text = " ".join(text.split())
    return _normalize(text) if len(text) <= MAX_LENGTH else text


@functools.lru_cache(maxsize=65536)
def _normalize(text: str) -> str:
    while (simpler := _simplify(text)) != text:
        text = simpler
    return text


def _simplify(text: str) -> str:
    text = text.translate(_UNICODE).strip()
    if (boxed := box_content(text)) is not None and boxed[1] == len(text) and _BOX.match(text):
        text = boxed[0]
    for pattern, replacement in _REWRITE:
        text = pattern.sub(replacement, text)
    text = _strip_unit(text)
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    if match := _THOUSANDS.fullmatch(text):
        text = match[1] + match[2].replace(",", "") + match[3]
    return text


def _strip_unit(text: str) -> str:
    """``5 apples`` -> ``5``, ``20 cm^2`` -> ``20``; not ``2ab``, ``3 million`` or ``1 or more``."""
    match = _UNIT.fullmatch(text)
    if match is None:
        return text
    words = re.findall(r"[A-Za-z]+", match[3].lower())
    if any(_NOT_UNITS.fullmatch(word) for word in words):
        return text
    spelled = all(_SHORT_UNITS.fullmatch(word) or (match[2] and len(word) > 2) for word in words)
    return match[1] if spelled else text


class Number(NamedTuple):
    """A plain number: its value as written, whether a percent sign follows, how many decimals (None: a fraction)."""

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


def box_content(text: str) -> tuple[str, int] | None:
    """Content of the last whole box that is not empty, and where the box ends."""
    starts = [match.end() for match in _BOX.finditer(text)]
    ends = _closing_braces(text, starts[0]) if starts else {}
    for start in reversed(starts):
        end = ends.get(start)
        if end is not None and text[start:end].strip():
            return text[start:end], end + 1
    return None


def _closing_braces(text: str, start: int) -> dict[int, int]:
    """What each opening brace holds, from the one just before ``start`` on: where it begins -> where it ends."""
    opened, ends = [start], {}
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        if match[0] == "{":
            opened.append(match.end())
        elif match[0] == "}" and opened:
            ends[opened.pop()] = match.start()
    return ends
