r"""A quick, one-sided look at two formulas: are they certainly different?

Formulas that are equal are equal at every point, so two that differ at one (generic) point are different, and no
computer algebra is needed to say so. What cannot be read here, or comes out equal, is left to ``cpmi.grader``.
"""

from __future__ import annotations

import cmath
import functools
import math
import re

MAX_LENGTH = 200
_TOKEN = re.compile(r"\s*(\\[A-Za-z]+|[0-9]+(?:\.[0-9]+)?|[A-Za-z]|[-+*/^(){}])\s*")
_SEPARATOR = re.compile(r"(\\begin\{\w+\}|\\end\{\w+\}|\\\\|\\\{|\\\}|[&,]|^[(\[]|[)\]]$)")
_MAYBE_UNIT = re.compile(r"[0-9)}\]][A-Za-z]{1,3}(?:\^\{?[0-9]\}?)?$")
_EQUATION = re.compile(r"([A-Za-z](?:\([A-Za-z]\))?)=([^=]+)")


def clearly_different(a: str, b: str) -> bool:
    """Whether two normalized answers are formulas, or lists of them, with different values; False means nothing."""
    if max(len(a), len(b)) > MAX_LENGTH:
        return False
    if _letters(a) != _letters(b) and (_MAYBE_UNIT.search(a) or _MAYBE_UNIT.search(b)):
        return False  # 10m may be 10
    first, second = _EQUATION.fullmatch(a), _EQUATION.fullmatch(b)
    if first and second and first[1] == second[1]:
        return _apart(first[2], second[2])
    if value_of(a) is not None and value_of(b) is not None:
        return _apart(a, b)
    return _lists_differ(_SEPARATOR.split(a), _SEPARATOR.split(b))


def _lists_differ(a: list[str], b: list[str]) -> bool:
    """Whether lists with the same separators differ in an item; each has its separators at the odd places."""
    if len(a) == 1 or a[1::2] != b[1::2]:
        return False
    pairs = [(x, y) for x, y in zip(a[::2], b[::2], strict=True) if x or y]
    if any(x != y and (value_of(x) is None or value_of(y) is None) for x, y in pairs):
        return False
    if a[1][0] in "([" or a[1].startswith(r"\begin"):  # order counts
        return any(_apart(x, y) for x, y in pairs)
    return any(all(_apart(x, y) for _, y in pairs) for x, _ in pairs)


def _apart(a: str, b: str) -> bool:
    x, y = value_of(a), value_of(b)
    if x is None or y is None:
        return False
    return abs(x - y) > 1e-5 + 1e-4 * max(abs(x), abs(y))  # wide: Math-Verify takes 3.141593 for pi


def _letters(text: str) -> set[str]:
    return set(re.sub(r"\\[A-Za-z]+(?:\{[a-z]*matrix\})?", "", text)) & set(map(chr, (*range(65, 91), *range(97, 123))))


@functools.lru_cache(maxsize=16384)
def value_of(text: str) -> complex | None:
    """The formula's value with a fixed number for each variable; None where it cannot be read."""
    tokens, end = [], 0
    while match := _TOKEN.match(text, end):
        tokens.append(match[1])
        end = match.end()
    if end < len(text) or not tokens or re.search(r"[0-9]\s+[0-9]|\^[0-9]{2}|[0-9]\\frac", text):
        return None  # also what people read in two ways: 2 1/2, x^12, 2\frac{1}{2}
    reader = _Reader(tokens)
    try:
        value = reader.sum()
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
    return value if not reader.tokens and cmath.isfinite(value) else None


class _Reader:
    """A recursive descent over the tokens (kept in reverse), computing as it goes."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens[::-1]

    def _next(self) -> str:
        return self.tokens[-1] if self.tokens else ""

    def _expect(self, token: str) -> None:
        if self._next() != token:
            raise ValueError(token)
        self.tokens.pop()

    def sum(self) -> complex:
        total = 0j
        while True:
            sign = -1 if self._next() == "-" else 1
            if self._next() in ("+", "-"):
                self.tokens.pop()
            total += sign * self._product()
            if self._next() not in ("+", "-"):
                return total

    def _product(self) -> complex:
        value, divided = self._power(), False
        while (symbol := self._next()) and symbol not in ("+", "-", ")", "}"):
            if symbol == "/":
                self.tokens.pop()
                value, divided = value / self._power(), True
                continue
            if symbol in ("*", r"\cdot", r"\times"):
                self.tokens.pop()
            elif divided:
                raise ValueError("1/2x")  # is read in two ways
            value *= self._power()
        return value

    def _power(self) -> complex:
        value = self._atom()
        if self._next() != "^":
            return value
        self.tokens.pop()
        exponent = self._atom()
        return value**exponent

    def _atom(self) -> complex:
        symbol = self._next()
        if symbol:
            self.tokens.pop()
        if symbol in ("(", "{"):
            value = self.sum()
            self._expect(")" if symbol == "(" else "}")
            return value
        if symbol == r"\frac":
            return self._braced() / self._braced()
        if symbol == r"\sqrt":
            root: complex = self._braced() ** 0.5
            return root
        return _constant(symbol)

    def _braced(self) -> complex:
        self._expect("{")
        value = self.sum()
        self._expect("}")
        return value


def _constant(token: str) -> complex:
    known = {r"\pi": math.pi, "e": math.e, "i": 1j}
    if token in known:
        return known[token]
    if token.isalpha():
        return 1 + ord(token) * 0.6180339887498949 % 1
    return complex(float(token))  # ValueError: a command or a sign that does not belong here
