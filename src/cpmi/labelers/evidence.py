r"""What a step shows of whether it is the first wrong one: one number per step and feature.

From the log-probabilities of answers (CPMI, in both contexts, and the level), from those of the step itself (how much
it surprises the model), from its arithmetic, and from where it stands. All of it is there after one pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from cpmi.answers import final_answer_of, normalize_answer, numbers_in
from cpmi.formulas import value_of
from cpmi.labelers.levels import Levels
from cpmi.prompts import ContextKind
from cpmi.protocols import FloatArray
from cpmi.records import Trajectory

_LOWEST = 3  # tokens of a step, the least likely
_ENDING = 6  # tokens at the end of a step, its separator's included
_UNLIKELY = -2.0  # nats
_FAR = 8  # a step from this one on is "late"

FEATURES = (
    "gain", "gain_low", "lift", "lift_low", "level_before", "level", "drop",
    "likelihood", "likelihood_min", "likelihood_low", "length", "surprise", "unlikely", "ending",
    "arithmetic_wrong", "arithmetic_right",
    "own_first", "own_before", "last", "first", "position", "late",
)  # fmt: skip
"""In this order:

* ``gain``, ``lift``: the step's CPMI, marginal and cumulative, summed over the answer's tokens, a mean over templates;
  ``_low``: where it is below 0.
* ``level_before``, ``level``: the right answer over the wrong ones, before and after the step; ``drop``: below the
  highest level so far.
* ``likelihood``: of the step's tokens, mean; ``_min``: the least likely token; ``_low``: the mean of three;
  ``ending``: the mean of its last tokens, where results stand. ``length``, ``surprise``, ``unlikely``: logs of how
  many tokens there are, of the sum of -log p, and of how many tokens are less likely than exp(-2).
* ``arithmetic_wrong``, ``arithmetic_right``: whether it holds an equation of numbers that is wrong, or right.
* ``own_first``, ``own_before``: whether the solution's final answer stands here for the first time, or stood before.
* ``last``, ``first``, ``position`` (share of the steps before), ``late``: where it stands.
"""


def evidence(trajectory: Trajectory, levels: Levels) -> dict[str, FloatArray]:
    """Per feature (steps,) numbers.

    Args:
        levels: of the right answer and then the wrong ones, in the contexts ``marginal`` and ``cumulative``, with the
            steps themselves.
    """
    n = len(trajectory.steps)
    gain, lift = _contrast(levels, "marginal", n), _contrast(levels, "cumulative", n)
    prefixes = levels.at([tuple(range(length)) for length in range(n + 1)], "sum")
    wrong = prefixes[:, :, 1:].mean(axis=2) if prefixes.shape[2] > 1 else 0.0
    level = (prefixes[:, :, 0] - wrong).mean(axis=0)
    at = np.arange(n)
    said = _own_answer_at(trajectory)
    sums = [arithmetic_in(step) for step in trajectory.steps]
    return {
        "gain": gain,
        "gain_low": np.minimum(gain, 0.0),
        "lift": lift,
        "lift_low": np.minimum(lift, 0.0),
        "level_before": level[:-1],
        "level": level[1:],
        "drop": level[1:] - np.maximum.accumulate(level)[1:],
        **_likelihood(levels.steps),
        "arithmetic_wrong": np.array([float(wrong > 0) for _, wrong in sums]),
        "arithmetic_right": np.array([float(right > 0) for right, _ in sums]),
        "own_first": (at == said).astype(np.float64),
        "own_before": (at > said).astype(np.float64),
        "last": (at == n - 1).astype(np.float64),
        "first": (at == 0).astype(np.float64),
        "position": at / max(1, n),
        "late": np.minimum(at, _FAR) / _FAR,
    }


def _contrast(levels: Levels, kind: ContextKind, steps: int) -> FloatArray:
    right, wrong = levels.gains(kind, steps, "sum")
    return right - wrong


def _likelihood(steps: Sequence[FloatArray]) -> dict[str, FloatArray]:
    known = [np.sort(step) if len(step) else np.zeros(1) for step in steps]
    return {
        "likelihood": np.array([step.mean() for step in known]),
        "likelihood_min": np.array([step[0] for step in known]),
        "likelihood_low": np.array([step[:_LOWEST].mean() for step in known]),
        "length": np.array([math.log1p(len(step)) for step in steps]),
        "surprise": np.array([math.log1p(-float(step.sum())) for step in known]),
        "unlikely": np.array([math.log1p(float((step < _UNLIKELY).sum())) for step in known]),
        "ending": np.array([step[-_ENDING:].mean() if len(step) else 0.0 for step in steps]),
    }


def _own_answer_at(trajectory: Trajectory) -> int:
    """The first step in which the solution's own final answer stands; the last one, where it stands in none."""
    own = normalize_answer(final_answer_of(trajectory) or "")
    for i, step in enumerate(trajectory.steps):
        if own and own in {normalize_answer(number) for number in numbers_in(step)}:
            return i
    return len(trajectory.steps) - 1


# --- arithmetic -----------------------------------------------------------------------------------------------------

_LATEX = (
    (r"\\(?:times|cdot)|[×·∗]", "*"), (r"\\div|÷", "/"), (r"\\(?:text|mathrm|mbox)\{[^{}]*\}", " "),
    (r"\\(?:left|right|,|;|!|quad|\$)", ""), (r"\\?%", "/100 "), (r"\\[dt]frac", r"\\frac"),
    (r"(?<=[0-9]),(?=[0-9]{3})|\{,\}|[$]", ""), (r"\b[A-Za-z]{2,}\b(?<!frac)", " "), (r"[−–]", "-"),
)  # fmt: skip
_SUM = r"((?:[0-9.()+\-*/^ ]|\\frac\{[0-9. ]+\}\{[0-9. ]+\})+)"
_GOES_ON = r"[0-9.]*(?:[0-9]| *[+\-*/^(\\{]|[A-Za-z])"  # so that what was read is not the whole result
_EQUATION = re.compile(rf"{_SUM}=\s*(-?[0-9]+(?:\.[0-9]+)?)(?!{_GOES_ON})")
_LONGEST = 2000  # characters of a step that are looked at


def arithmetic_in(step: str) -> tuple[int, int]:
    """How many equations of plain numbers in a text are right and how many are wrong: ``3 * 4 = 12`` is one.

    A result may be rounded or cut to the digits it has. What cannot be read surely is left out.
    """
    text = step[:_LONGEST]
    for pattern, plain in _LATEX:
        text = re.sub(pattern, plain, text)
    right = wrong = 0
    for match in _EQUATION.finditer(text):
        left = match[1].strip()
        if not re.search(r"[0-9)}]\s*[+\-*/^]|\\frac", left) or re.search(r"[0-9)]\s+[0-9(]", left):
            continue
        computed, stated = value_of(left), value_of(match[2])
        if computed is None or stated is None:
            continue
        digits = len(match[2].partition(".")[2])
        if abs(computed - stated) <= (1.001 * 10.0**-digits if digits else 1e-6):
            right += 1
        else:
            wrong += 1
    return right, wrong
