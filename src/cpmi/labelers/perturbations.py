r"""Wrong answers made from the right one by rule, each in the right one's own format.

The rule goes by the form of the answer: a plain number (``$5.00`` gives ``$7.00``), a fraction, a number in a base, an
option letter, a word out of a known family, or any formula, in which one number, sign, bracket or coordinate is
changed. A text that is none of these (a name) has no wrong answers by rule.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from cpmi.answers import Number, normalize_answer, parse_number, word_family

MAX_LENGTH = 120
"""A longer text is no answer to set against another, and none to make others from."""

_SEPARATOR = r"(?:,\\!\s*|\{,\}|\\,|,)"
_PLAIN = re.compile(
    rf"(?P<prefix>[^0-9.]*?)(?P<number>-?(?:[0-9]+(?:{_SEPARATOR}[0-9]{{3}})*(?:\.[0-9]+)?|\.[0-9]+))"
    r"(?P<suffix>[^0-9]*(?:\^\{?[0-9]\}?)?[^0-9]*)",
    re.DOTALL,
)
_SIGNED = re.compile(r"([^-−–‐‑]*)([-−–‐‑])([^-−–‐‑]*)")


@dataclass(frozen=True, slots=True)
class NumberFormat:
    r"""How an answer writes its number: ``\$1,000.00`` is a prefix, a separator of thousands and two decimals.

    A minus stands between prefix and unit: ``-\$5`` has the unit ``\$``.
    """

    prefix: str
    minus: str
    unit: str
    suffix: str
    separator: str
    decimals: int
    value: Fraction
    percent: bool

    @classmethod
    def of(cls, answer: str) -> NumberFormat | None:
        """The format of an answer that is one plain number, all of it in its digits; None for any other."""
        number = parse_number(answer)
        match = _PLAIN.fullmatch(answer.strip()) if number is not None and number.decimals is not None else None
        if number is None or match is None:
            return None
        separator = re.search(_SEPARATOR, match["number"])
        digits = re.sub(_SEPARATOR, "", match["number"])
        decimals = len(digits.partition(".")[2])
        value = Fraction(digits)
        prefix, minus, unit = match["prefix"], "-", ""
        if value == -number.value and (signed := _SIGNED.fullmatch(prefix)):
            value, (prefix, minus, unit) = -value, signed.groups()
        if value != number.value:  # more than the digits makes the value: 5 million
            return None
        mark = separator[0] if separator else ""
        return cls(prefix, minus, unit, match["suffix"], mark, decimals, value, number.percent)

    def dress(self, number: Number) -> str | None:
        """A wrong answer's number in this format; None where it takes many more decimals.

        With a percent sign on one side only there are two readings: beside ``20%``, 0.25 and 25 both become ``25%``;
        beside ``0.2``, ``25%`` becomes 0.25. A number that is wrong in both readings stays wrong in either.
        """
        value = number.value
        if self.percent and not number.percent and abs(value) <= 1 < abs(self.value):
            value *= 100
        elif number.percent and not self.percent and 0 < abs(self.value) <= 1:
            value /= 100
        return self.render(value)

    def render(self, value: Fraction) -> str | None:
        """Another number in this format; None where it takes many more decimals."""
        decimals = next(
            (d for d in range(self.decimals, max(7, self.decimals + 2)) if (value * 10**d).denominator == 1), None
        )
        if decimals is None:
            return None
        digits = f"{abs(value * 10**decimals).numerator:0{decimals + 1}d}"
        whole, part = (digits[:-decimals], "." + digits[-decimals:]) if decimals else (digits, "")
        whole = f"{int(whole):,}".replace(",", self.separator)
        return f"{self.prefix}{self.minus if value < 0 else ''}{self.unit}{whole}{part}{self.suffix}"


def perturb(gold: str, question: str = "") -> list[str]:
    """Wrong answers by rule, without repeats, none of them the gold answer's own text; perhaps none at all."""
    gold = gold.strip()
    if len(gold) > MAX_LENGTH:
        return []
    form = NumberFormat.of(gold)
    if form is not None:
        candidates: Iterator[str] = _numbers(form)
    elif options := _options(gold, question):
        candidates = iter(options)
    elif family := word_family(gold):
        candidates = _family_words(gold, family, question)
    elif match := _BASE.fullmatch(gold):
        candidates = _in_base(match)
    elif _is_text(gold):
        candidates = iter(())
    else:
        candidates = _formulas(gold)
    return [text for text in dict.fromkeys(candidates) if text not in ("", gold)]


# --- plain numbers --------------------------------------------------------------------------------------------------


def _numbers(form: NumberFormat) -> Iterator[str]:
    """The perturbations of the paper's code (x-10, x-2, x+2, x+10, 0.9x, 1.1x, floor, ceil), more for small numbers.

    Round numbers and small decimals move in steps of their own size, and no count turns negative.
    """
    x = form.value
    grid = _grid(x)
    units = {grid, Fraction(1)} if grid < 1 <= abs(x) else {grid}
    share = "%" in form.suffix and 0 <= x <= 100
    steps = (1, 2, 5, 10) if share else (1, 2, 10) if abs(x) < 20 else (2, 10)
    values = [x + sign * step * unit for unit in sorted(units) for step in steps for sign in (-1, 1)]
    values += [round(x * factor / grid) * grid for factor in (Fraction(9, 10), Fraction(11, 10))]
    values += [Fraction(math.floor(x)), Fraction(math.ceil(x))]
    if abs(x) < 20:
        values.append(2 * x)
    for value in values:
        if (value >= 0 or x <= 0) and not (share and value > 100) and (value != 0 or x.denominator == 1):
            yield form.render(value) or ""


def _grid(x: Fraction) -> Fraction:
    """The step in which a number like this moves: 0.1 for 3.5, 1 for 5.00 and 17, 10 for 5600, 1000 for 320000."""
    places = next((p for p in range(13) if (x * 10**p).denominator == 1), 12)
    if places or abs(x) < 1000:
        return Fraction(1, 10**places)
    zeros = len(str(x)) - len(str(x).rstrip("0"))
    return Fraction(10 ** max(0, zeros - 1))


_BASE = re.compile(r"(?P<digits>[0-9]+)(?P<tail>_\{?(?P<base>[2-9])\}?)")


def _in_base(match: re.Match[str]) -> Iterator[str]:
    base = int(match["base"])
    if any(int(digit) >= base for digit in match["digits"]):
        return
    value = int(match["digits"], base)
    for other in (value - base, value - 2, value - 1, value + 1, value + 2, value + base, value + base * base):
        if other > 0:
            digits = ""
            while other:
                digits, other = str(other % base) + digits, other // base
            yield digits + match["tail"]


# --- letters and words ----------------------------------------------------------------------------------------------

_LETTER = re.compile(
    r"(?P<before>(?:\\(?:text|textbf|mathrm|mbox|mathbf)\{|[\s($*])*)(?P<letter>[A-Z])(?P<after>[\s)}$*.]*)"
)
_OFFERED = re.compile(r"\(([A-Z])\)|(?:^|\s)\(?([A-Z])[.):]\s|\\text(?:bf)?\{\(?([A-Z])[).}]")


def _options(gold: str, question: str) -> list[str]:
    """The other options, in the gold answer's dress: those of the question, else A to D."""
    match = _LETTER.fullmatch(gold)
    if match is None:
        return []
    offered = {"".join(groups) for groups in _OFFERED.findall(question)}
    letters = [letter for letter in map(chr, range(65, 91)) if letter in offered]
    if match["letter"] not in letters or len(letters) < 2:
        letters = [letter for letter in "ABCDEFGHIJ" if letter <= max("D", match["letter"])]
    if match["letter"] not in letters:
        return []
    return [match["before"] + letter + match["after"] for letter in letters if letter != match["letter"]]


_THIRD = re.compile(r"\b(unknown|uncertain|undetermined)\b", re.IGNORECASE)


def _family_words(gold: str, family: tuple[str, ...], question: str) -> Iterator[str]:
    """The other words of the family, in the gold answer's case; a third possibility only where there is one."""
    word = normalize_answer(gold)
    thirds = ("unknown", "uncertain", "undetermined")
    others = [other for other in family if other not in thirds]
    if family[0] == "true":
        others += [match[1].lower() for match in [_THIRD.search(question)] if match]
    if family[0] == "entailment" and not re.search(r"self.?contradict", word + question, re.IGNORECASE):
        others.remove("self_contradiction")
    for other in others:
        if other != word.lower() and not (other in thirds and word.lower() in thirds):
            cased = other.upper() if word.isupper() else other.title() if word[0].isupper() else other
            yield gold.replace(word, cased) if word in gold else cased


def _is_text(gold: str) -> bool:
    """No number, no operator, no LaTeX but ``\text``: a name or a phrase, or a list of letters."""
    bare = normalize_answer(gold)
    return not re.search(r"[0-9\\^=+*/<>|_]", bare) and not re.fullmatch(r"-?[a-z](-?[a-z])*", bare[:8])


# --- formulas: one thing changed ------------------------------------------------------------------------------------

_FRACTION = re.compile(
    r"(?P<before>[^0-9]*?)(?P<sign>-?)(?:(?P<frac>\\[dtc]?frac)\s*(?:\{(?P<top>[0-9]+)\}|(?P<top1>[0-9]))\s*"
    r"(?:\{(?P<bottom>[0-9]+)\}|(?P<bottom1>[0-9]))|(?P<top2>[0-9]+)/(?P<bottom2>[0-9]+))(?P<after>.*)",
    re.DOTALL,
)
_INTEGER = re.compile(r"(?<![0-9.])[0-9]+(?![0-9.])")
_DECIMAL = re.compile(r"[0-9]*\.[0-9]++(?!_)")  # not in a base
_OPERATOR = re.compile(r"(?<=[0-9A-Za-z)}])(\s*)([-+])(?=\s*[0-9A-Za-z\\(])")


def _formulas(gold: str) -> Iterator[str]:
    single = _FRACTION.fullmatch(gold)
    if single is not None and parse_number(gold) is not None:
        yield from _fractions(single)
        return
    yield from (text for text in _formula_changes(gold) if _looks_simplified(text))


def _looks_simplified(text: str) -> bool:
    """Nothing that no answer would show: 2/4, 3/1, -0."""
    fractions = [(int(a), int(b)) for a, b in re.findall(r"frac\s*\{([0-9]+)\}\s*\{([0-9]+)\}", text)]
    return not re.search(r"-\s*0(?![0-9.])", text) and all(b > 1 and math.gcd(a, b) == 1 for a, b in fractions)


def _formula_changes(gold: str) -> Iterator[str]:
    gold = re.sub(r"(\\[dtc]?frac)\s*([0-9])\s*([0-9])", r"\1{\2}{\3}", gold)
    gold = re.sub(r"(\\[dtc]?frac)\s*(\{[0-9]+\})\s*([0-9])", r"\1\2{\3}", gold)
    gold = re.sub(r"(\\[dtc]?frac)\s*([0-9])\s*\{", r"\1{\2}{", re.sub(r"\\sqrt\s*([0-9]+)", r"\\sqrt{\1}", gold))
    for match in _INTEGER.finditer(gold):
        yield from _integer_changes(gold, match)
    for match in _DECIMAL.finditer(gold):
        unit = Fraction(1, 10 ** len(match[0].partition(".")[2]))
        for move in (-2, -1, 1, 2):
            changed = Fraction(match[0]) + move * unit
            if changed > 0:
                yield _put(gold, match, f"{float(changed):.{len(match[0].partition('.')[2])}f}")
    for match in _OPERATOR.finditer(gold):
        yield _put(gold, match, match[1] + ("+" if match[2] == "-" else "-"))
    yield from _list_changes(gold)
    yield from _whole_changes(gold)


def _put(text: str, match: re.Match[str], new: str) -> str:
    return text[: match.start()] + new + text[match.end() :]


def _fractions(match: re.Match[str]) -> Iterator[str]:
    r"""A plain fraction: numerator or denominator +-1, +-2, inverted, negated; in lowest terms, like any answer."""
    top = int(match["top"] or match["top1"] or match["top2"])
    bottom = int(match["bottom"] or match["bottom1"] or match["bottom2"])
    near = [(top + move, bottom) for move in (-2, -1, 1, 2)] + [(top, bottom + move) for move in (-2, -1, 1, 2)]
    sign, opposite = match["sign"], "" if match["sign"] else "-"
    for before, (a, b) in [*((sign, pair) for pair in (*near, (bottom, top))), (opposite, (top, bottom))]:
        if a <= 0 or b <= 0 or a % b == 0:
            continue
        shared = math.gcd(a, b)
        a, b = a // shared, b // shared
        text = f"{match['frac']}{{{a}}}{{{b}}}" if match["frac"] else f"{a}/{b}"
        yield match["before"] + before + text + match["after"]


_SCALE = re.compile(r"(?:\\text\{|[\s\\])*(?:hundred|thousand|million|billion)")


def _integer_changes(gold: str, match: re.Match[str]) -> Iterator[str]:
    """One whole number of the formula moved a little, where that leaves something an answer would look like."""
    before, after = gold[: match.start()].rstrip(), gold[match.end() :].lstrip()
    number = int(match[0])
    if before.endswith(("_", "_{")):
        return
    if number == 10 and after.startswith("^") and re.search(r"\\(?:times|cdot)$", before):  # scientific notation
        return
    radicand = before.endswith(r"\sqrt{")
    ratio = before.endswith(":") or after.startswith(":")
    below = ratio or bool(re.search(r"\}\s*\{$|/\s*\{?$|\^\s*\{?$", before))
    scaled = bool(_SCALE.match(after))
    factor = not scaled and bool(re.match(r"[A-Za-z(^]|\\(?:sqrt|pi|frac|cdot|sin|cos|tan|cot|sec|csc|ln|log)", after))
    unary = before.endswith("-") and not re.search(r"[0-9A-Za-z)}]\s*-$", before)
    unsigned = gold[: gold.rindex("-", 0, match.start())] if unary else ""
    for move in (-1, 1, -2, 2, -4, 4) if radicand or scaled else (-1, 1, -2, 2):
        changed = number + move
        if changed == 0 and unary and not factor and not below:
            yield unsigned + "0" + gold[match.end() :]
        if changed == 1 and factor and not below and re.match(r"[A-Za-z]|\\(?:sqrt|pi)", after):
            yield gold[: match.start()] + after  # 2x -> x
        if changed < (2 if radicand or below or factor else 0) or (radicand and math.isqrt(changed) ** 2 == changed):
            continue
        yield _put(gold, match, str(changed))
    if ratio:
        return
    if not re.search(r"[-+0-9A-Za-z)}^{/]$", before) and not scaled and number != 0:
        yield _put(gold, match, f"-{number}")
    elif unary:
        yield unsigned + gold[match.start() :]
    if number == 0 and re.search(r"(?:^|[=,(\[{&]|\\\\)$", before):
        yield from (_put(gold, match, "-1"), _put(gold, match, "-2"))


_TUPLE = re.compile(r"(?P<open>(?:\\left)?\s*[(\[])(?P<items>[^()\[\]]*?)(?P<close>(?:\\right)?\s*[)\]])", re.DOTALL)


def _list_changes(gold: str) -> Iterator[str]:
    """A pair: swapped; an interval: an end opened or closed."""
    match = _TUPLE.fullmatch(gold)
    if match is None or match["items"].count(",") != 1:
        return
    left, right = match["items"].split(",")
    if "infty" not in match["items"] and "(" in match["open"] and ")" in match["close"]:
        pad = " " if right.startswith(" ") else ""
        yield f"{match['open']}{right.strip()},{pad}{left.strip()}{match['close']}"
    if "[" in match["open"] or "]" in match["close"] or "infty" in match["items"]:
        if "infty" not in left:
            flipped = match["open"].translate(str.maketrans("([", "[("))
            yield f"{flipped}{match['items']}{match['close']}"
        if "infty" not in right:
            flipped = match["close"].translate(str.maketrans(")]", "])"))
            yield f"{match['open']}{match['items']}{flipped}"


_TRIG = ("sin", "cos", "tan", "cot", "sec", "csc")


def _whole_changes(gold: str) -> Iterator[str]:
    """The formula negated, doubled, halved, or with another trigonometric function; behind its ``y =``."""
    head, equals, formula = gold.rpartition("=")
    head, formula = head + equals + (" " if formula.startswith(" ") else ""), formula.strip()
    if re.search(r"\\begin|[,<>:]|\\[lg]e|\\cup|\\text|\\mbox|(?<![\\A-Za-z])[A-Za-z]{3}|^$|^[(\[{]", formula):
        return
    sign, bare = ("-", formula[1:].lstrip()) if formula.startswith("-") else ("", formula)
    yield head + ("" if sign else "-") + bare
    if last := re.fullmatch(r"(.*[0-9A-Za-z)}])\s*[-+][^-+(){}]+", formula):  # several terms: without the last
        yield head + last[1]
        return
    if inverse := re.fullmatch(r"(\\[dtc]?frac)\{(?!1\})([^{}]*)\}\{([^{}]*)\}", bare):
        yield f"{head}{sign}{inverse[1]}{{{inverse[3]}}}{{{inverse[2]}}}"
    if not re.match(r"[0-9]|\\[dtc]?frac", bare):
        yield from (f"{head}{sign}{factor}{bare}" for factor in (2, 3, 4))
        yield f"{head}{sign}\\frac{{{bare}}}{{2}}"
    for name, other in itertools.permutations(_TRIG, 2):
        if f"\\{name}" in formula:
            yield head + formula.replace(f"\\{name}", f"\\{other}")
