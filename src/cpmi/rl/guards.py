"""What keeps a policy from earning step rewards without reasoning.

A guard decides which steps count. A step that does not count is as if it were not there: it neither pays nor costs,
whichever way rewards are summed up, so that withholding cannot become a weapon of its own.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cpmi.answer_forms import Number
from cpmi.answers import extract_answer, normalize_answer, numbers_in, parse_number, results_in, word_family
from cpmi.errors import InputError
from cpmi.grader import Grader, Verdict
from cpmi.rl.completions import Attempt


@dataclass(frozen=True, slots=True)
class Guards:
    """Which steps count, and for how much. Each guard can be turned off.

    Attributes:
        clip: a step's reward is cut to [-clip, clip]; None: as it is.
        max_steps: steps behind so many do not count; None: all do.
        step_cost: taken off the reward for every step, whether it counts or not.
        near_repeat: a step does not count if it names no number that is new and shares so much (0 to 1) of its word
            pairs with an earlier step; None: repeats count.
        filler: whether a step that says nothing ("Let's think.", "---") does not count.
        after_answer: whether steps do not count from the one on that first gives the right answer, nor behind one
            that states any final answer: the answer is the outcome's to pay.
        one_answer: whether a completion that states different final answers is wrong, whatever the last one is.
        join_fragments: whether pieces of one sentence are one step.
        silence: the step reward of a completion in which no step says anything.

    Raises:
        InputError: a number outside its range.
    """

    clip: float | None = 1.0
    max_steps: int | None = 32
    step_cost: float = 0.0
    near_repeat: float | None = 0.8
    filler: bool = True
    after_answer: bool = True
    one_answer: bool = True
    join_fragments: bool = True
    silence: float = -1.0

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip must be above 0, not {self.clip}; None turns it off")
        if self.max_steps is not None and self.max_steps < 1:
            raise InputError(f"max_steps must be 1 or more, not {self.max_steps}; None turns it off")
        if self.near_repeat is not None and not 0 < self.near_repeat <= 1:
            raise InputError(f"near_repeat must be above 0 and at most 1, not {self.near_repeat}; None turns it off")
        if not (math.isfinite(self.step_cost) and self.step_cost >= 0 and math.isfinite(self.silence)):
            raise InputError("step_cost must be 0 or more, and silence a number")

    @classmethod
    def off(cls) -> Guards:
        """No guard at all, to see what a policy makes of that."""
        return cls(
            clip=None,
            max_steps=None,
            near_repeat=None,
            filler=False,
            after_answer=False,
            one_answer=False,
            join_fragments=False,
            silence=0.0,
        )

    def clipped(self, reward: float) -> float:
        """The reward within the bounds."""
        return reward if self.clip is None else min(max(reward, -self.clip), self.clip)

    def withheld(self, attempt: Attempt, grader: Grader) -> list[str | None]:
        """Why each step does not count (``filler``, ``answered``, ``repeat`` or ``beyond``); None where it does."""
        found: list[str | None] = []
        earlier: list[_Shape] = []
        answered = False
        for index, step in enumerate(attempt.steps):
            shape = _Shape.of(step)
            answered = answered or (self.after_answer and gives_answer(step, attempt, grader))
            if self.filler and says_nothing(step):
                found.append("filler")
            elif answered:
                found.append("answered")
            elif self.near_repeat is not None and any(shape.repeats(each, self.near_repeat) for each in earlier):
                found.append("repeat")
            else:
                found.append("beyond" if self.max_steps is not None and index >= self.max_steps else None)
            earlier.append(shape)
            answered = answered or (self.after_answer and final_statement(step) is not None)
        return found


# --- a step that says nothing ---------------------------------------------------------------------------------------

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?|\d+(?:[.,]\d+)*")
# Words that announce reasoning and do none; "yes", "no", "not", "one", "all" can be the whole of a conclusion.
_ANNOUNCING = """
a about again alright am an and answer answers are as at be because been begin break by calculate can careful carefully
check compute consider could detail details determine do does done down easy final finally find first following follows
for found from further get given go going good great have hello help here hmm how however i if in information into is it
it's its itself just know last let let's lets like look make me method moment more must my need next now of oh okay on
ok or order our out over problem problems process question reason reasoning right same see should simple simply so
proceed solution solve solved solving start step steps sure take task tell than that that's the their them then there
some therefore these they thing think thinking this through thus time to together try understand up us use using very
wait want was way we we'll we're we've well were what when where which will with work working would you your
"""
_EMPTY_WORDS = frozenset(_ANNOUNCING.split())


def says_nothing(step: str) -> bool:
    """Whether a step has neither a number nor a word beyond those that announce reasoning without doing any."""
    return all(word.lower().replace("\u2019", "'") in _EMPTY_WORDS for word in _WORD.findall(step))


# --- a step that was there before -----------------------------------------------------------------------------------

_TOKEN = re.compile(_WORD.pattern + r"|[-+*/=<>]")


@dataclass(frozen=True, slots=True)
class _Shape:
    """A step's word pairs (its words, where it has one alone) and numbers."""

    pairs: frozenset[tuple[str, ...]]
    numbers: frozenset[str]

    @classmethod
    def of(cls, step: str) -> _Shape:
        words = [word.lower() for word in _TOKEN.findall(step)]
        pairs: set[tuple[str, ...]] = set(itertools.pairwise(words)) or {(word,) for word in words}
        return cls(frozenset(pairs), frozenset(word for word in words if word[0].isdigit()))

    def repeats(self, earlier: _Shape, share: float) -> bool:
        """Whether it names no new number, and shares that much of the smaller one's pairs."""
        smaller = min(len(self.pairs), len(earlier.pairs))
        return self.numbers <= earlier.numbers and len(self.pairs & earlier.pairs) >= share * max(smaller, 1)


# --- a step that gives the answer -----------------------------------------------------------------------------------

_FINAL = re.compile(r"\banswer\s*(?:is\b|:|=)|####|\\f?box(?:ed)?\s*\{", re.IGNORECASE)
_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
_NUMBER_WORDS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty
"""
_SPELLED = _NUMBER_WORDS.split()


def final_statement(step: str) -> str | None:
    """The final answer that a step states (``the answer is x``, a box, ``#### x``); None if it states none.

    ``The answer to the first part is x`` is no final answer.
    """
    return extract_answer(step) if _FINAL.search(step) else None


def gives_answer(step: str, attempt: Attempt, grader: Grader) -> bool:
    """Whether a step states or computes the right answer, or, where the question does not name it, mentions it."""
    gold = (attempt.gold_answer or "").strip()
    if not gold:
        return False
    stated = extract_answer(step)
    if stated is not None and grader.compare(stated, gold) is Verdict.SAME:
        return True
    if (number := parse_number(gold)) is not None:
        return _mentions_number(step, attempt.question, number)
    plain = normalize_answer(gold).lower()
    if len(plain) < 2 or attempt.choices or word_family(gold) or plain in normalize_answer(attempt.question).lower():
        return False  # words like these stand everywhere
    return re.search(rf"(?<!\w){re.escape(plain)}(?!\w)", normalize_answer(step).lower()) is not None


def _mentions_number(step: str, question: str, number: Number) -> bool:
    if any(_is(text, number) for text in numbers_in(question)):
        return "=" in step and any(_is(text, number) for text in results_in(step))
    if any(_is(text, number) for text in numbers_in(step)):
        return True
    spelled = _SPELLED[int(number.value)] if number.value in range(len(_SPELLED)) else None
    return spelled is not None and re.search(rf"\b{spelled}\b", step, re.IGNORECASE) is not None


def _is(text: str, number: Number) -> bool:
    found = parse_number(text)
    return found is not None and found.value == number.value


def hedges(attempt: Attempt, grader: Grader) -> bool:
    """Whether a completion states final answers that certainly differ."""
    stated = [answer for step in attempt.steps for answer in _statements(step)]
    return any(grader.compare(one, other) is Verdict.DIFFERENT for one, other in itertools.pairwise(stated))


def _statements(step: str) -> Sequence[str]:
    boxed = [_braced(step, match.end()) for match in _BOX.finditer(step)]
    if boxed:
        return boxed
    answer = final_statement(step)
    return [] if answer is None else [answer]


def _braced(text: str, start: int) -> str:
    """What stands from ``start`` to the brace that closes it."""
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            return text[start:end].strip()
    return text[start:].strip()
