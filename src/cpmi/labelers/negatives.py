"""Hard negatives: wrong but plausible answers to set against the right one.

Which ones are used decides how good the labels are, more than anything else about them. The kinds:

* ``own``: the trajectory's own final answer, where it is wrong.
* ``sibling``: wrong final answers of other trajectories of the same question, the most frequent first.
* ``intermediate``: results of the trajectory's steps, the last first.
* ``rule``: the right answer with something changed (``cpmi.labelers.perturbations``).
* ``choice``: the other answers that the question offers, where it offers some.
* ``sampled``: wrong answers that the labeling model makes up; the only kind that costs generated tokens.
"""

from __future__ import annotations

import functools
import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from cpmi.answers import (
    extract_answer,
    final_answer_of,
    formulas_in,
    normalize_answer,
    numbers_in,
    parse_number,
    results_in,
)
from cpmi.errors import InputError
from cpmi.grader import Grader, Verdict
from cpmi.labelers.checks import why_not
from cpmi.labelers.perturbations import MAX_LENGTH, NumberFormat, perturb
from cpmi.protocols import Prompt, Sampled, Sampler, SamplingParams
from cpmi.records import JSON, Cost, Trajectory

KINDS = ("own", "sibling", "choice", "intermediate", "rule", "sampled")
SAMPLES = 8
SAMPLING = SamplingParams(max_tokens=24, temperature=1.05, top_p=0.9, stop=("\n",))
_PROMPT = """Teachers need wrong answers that tempt: the result of a slip, or of stopping one step too early.

Question: {question}
Right answer: {gold}
A wrong answer that many would give, in the same form:"""


@dataclass(frozen=True, slots=True)
class Negative:
    """A wrong answer and the kind it is of (one of ``KINDS``)."""

    text: str
    kind: str


@dataclass(frozen=True, slots=True)
class FoundNegatives:
    """The wrong answers found for a trajectory, in the order found, and what finding them cost.

    Attributes:
        error: the model could not be asked for wrong answers; what was found without it is not what was wanted.
    """

    negatives: tuple[Negative, ...]
    cost: Cost = Cost()
    error: str | None = None

    def answers(self, trajectory: Trajectory) -> tuple[str, ...]:
        """The right answer and then these: what is scored."""
        return ((trajectory.gold_answer or "").strip(), *(negative.text for negative in self.negatives))

    def details(self, trajectory: Trajectory, settings: NegativeSettings) -> dict[str, JSON]:
        """For a record: the answers, the kind of each, and whether there was anything to contrast with."""
        told: dict[str, JSON] = {
            "answers": list(self.answers(trajectory)),
            "kinds": ["gold", *(negative.kind for negative in self.negatives)],
        }
        if not self.negatives:
            told["contrast"] = f"none: no wrong answer was {'found' if settings.count else 'asked for'}"
        return told


Kinds = tuple[tuple[str, int | None], ...]


@dataclass(frozen=True, slots=True)
class NegativeSettings:
    """How many wrong answers to find, and of which kinds.

    Attributes:
        count: how many are wanted; fewer are found where there are fewer.
        choices: the first of these that finds any wrong answer is used, alone. Each names kinds in order of preference,
            with the most to take of it (None: no limit). Limits are lifted, in the same order, where its kinds
            together give fewer than ``count``.
        seed: decides which of the answers by rule come first, and the sampled ones.

    Raises:
        InputError: an unknown or repeated kind, or a number below the least that makes sense.
    """

    count: int = 4
    choices: tuple[Kinds, ...] = ((("own", None),), (("choice", None),), (("rule", None),))
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 0:
            raise InputError(f"the number of negatives must be 0 or more, not {self.count}")
        for kind, limit in self.all_kinds():
            if kind not in KINDS:
                raise InputError(f"unknown kind of negatives {kind!r}; the kinds are {', '.join(KINDS)}")
            if limit is not None and limit < 1:
                raise InputError(f"the limit of {kind!r} must be 1 or more; leave the kind out for none of it")
        for kinds in self.choices:
            if len({kind for kind, _ in kinds}) < len(kinds):
                raise InputError("a kind of negatives is named twice in one choice")

    def all_kinds(self) -> Iterator[tuple[str, int | None]]:
        """Every kind of every choice, with its limit."""
        for kinds in self.choices:
            yield from kinds

    def require_kinds(self) -> None:
        """Raises InputError where wrong answers are asked for of no kind."""
        if self.count and not self.choices:
            raise InputError("name a kind of wrong answers, or ask for 0 of them")

    def uses(self, kind: str) -> bool:
        """Whether a kind may be drawn on."""
        return any(each == kind for each, _ in self.all_kinds())

    @classmethod
    def parse(cls, text: str, count: int = 4, seed: int = 0) -> NegativeSettings:
        """Settings from text like ``own|sibling,intermediate:3,rule``: ``|`` between choices, ``:`` before a limit.

        Raises:
            InputError: a limit that is not a whole number, or anything the settings themselves refuse.
        """
        choices = tuple(_parse_kinds(choice) for choice in text.split("|"))
        return cls(count=count, choices=tuple(filter(None, choices)), seed=seed)


def _parse_kinds(text: str) -> Kinds:
    parsed: list[tuple[str, int | None]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, colon, limit = (piece.strip() for piece in part.partition(":"))
        if colon and not re.fullmatch("[0-9]+", limit):
            raise InputError(f"{part!r}: the limit after the colon must be a whole number, e.g. {kind}:3")
        parsed.append((kind, int(limit) if colon else None))
    return tuple(parsed)


_SIBLINGS_KEPT = 16


@dataclass(slots=True)
class SiblingAnswers:
    """The final answers given to each question, gathered in one pass and in bounded memory; picklable.

    At most 16 distinct answers of a question are kept, those with the smallest hash, so that neither they nor their
    counts depend on the order of the trajectories: an answer once pushed out could never come back.
    """

    _counts: dict[bytes, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def collect(cls, trajectories: Iterable[Trajectory]) -> SiblingAnswers:
        """Gather the final answers of a file's trajectories."""
        siblings = cls()
        for trajectory in trajectories:
            if answer := _sibling_answer(trajectory):
                siblings._add(_digest(trajectory.question.strip()), answer)
        return siblings

    def _add(self, question: bytes, answer: str) -> None:
        counts = self._counts.setdefault(question, {})
        counts[answer] = counts.get(answer, 0) + 1
        if len(counts) > _SIBLINGS_KEPT:
            del counts[max(counts, key=_digest)]

    def others(self, trajectory: Trajectory) -> list[str]:
        """Answers that *other* trajectories give to its question (normalized), the most frequent first.

        The trajectory itself is taken to be one of those collected.
        """
        counts = dict(self._counts.get(_digest(trajectory.question.strip()), {}))
        own = _sibling_answer(trajectory)
        if own in counts:
            counts[own] -= 1
        return sorted((answer for answer, count in counts.items() if count), key=lambda a: (-counts[a], a))


def _sibling_answer(trajectory: Trajectory) -> str:
    """The answer that a trajectory has for its siblings, normalized; empty if none."""
    answer = final_answer_of(trajectory) or ""
    return normalize_answer(answer) if len(answer) <= MAX_LENGTH else ""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:8]


def find_negatives(
    trajectories: Sequence[Trajectory],
    settings: NegativeSettings,
    grader: Grader,
    siblings: SiblingAnswers | None = None,
    sampler: Sampler | None = None,
) -> list[FoundNegatives]:
    """Wrong answers for each trajectory: each certainly different from the gold answer and from one another.

    Nothing but the trajectory, the settings, the siblings and the sampler's model decides what is found: neither the
    order of trajectories nor the shard or the machine. Where the grader cannot decide, the candidate is not used.

    Args:
        siblings: needed for the kind ``sibling`` to find anything.
        sampler: the labeling model, for the kind ``sampled``; it is asked once, for all trajectories that need it.

    Returns:
        At most ``settings.count`` negatives each; none at all without a gold answer, or where nothing fits.

    Raises:
        InputError: the kind ``sampled`` is asked for without a sampler.
    """
    if not settings.uses("sampled"):
        return [_search(trajectory, settings, grader, siblings, _never) for trajectory in trajectories]
    if sampler is None:
        raise InputError("negatives of the kind 'sampled' need a model that can generate text")
    prompts: dict[int, Prompt] = {}
    found = []
    for i, trajectory in enumerate(trajectories):
        found.append(_search(trajectory, settings, grader, siblings, functools.partial(_note, prompts, i)))
    if prompts:
        drawn = sampler.sample(list(prompts.values()), SAMPLES, SAMPLING)
        for i, sampled in zip(prompts, drawn, strict=True):
            found[i] = _search(trajectories[i], settings, grader, siblings, functools.partial(_same, sampled))
    return found


def draw_negatives(
    trajectories: Sequence[Trajectory],
    settings: NegativeSettings,
    grader: Grader,
    siblings: SiblingAnswers | None = None,
    sampler: Sampler | None = None,
) -> list[FoundNegatives]:
    """``find_negatives`` for a labeler: one for each trajectory, with what it cost, or the reason why there is none."""
    start = time.perf_counter()
    problems = [why_not(trajectory) for trajectory in trajectories]
    able = [each for each, problem in zip(trajectories, problems, strict=True) if problem is None]
    found = find_negatives(able, settings, grader, siblings, sampler)
    engine = sum(each.cost.seconds for each in found)
    own = Cost(seconds=max(0.0, time.perf_counter() - start - engine) / max(1, len(able)))
    drawn = iter(found)
    return [
        FoundNegatives((), error=problem) if problem is not None else _paid(next(drawn), own) for problem in problems
    ]


def _paid(found: FoundNegatives, own: Cost) -> FoundNegatives:
    error = None if found.error is None else f"no wrong answers sampled: {found.error}"
    return FoundNegatives(found.negatives, found.cost + own, error)


_Ask = Callable[[Prompt], Sampled]


def _note(prompts: dict[int, Prompt], index: int, prompt: Prompt) -> Sampled:
    """What to ask later, all at once."""
    prompts[index] = prompt
    return Sampled(())


def _same(sampled: Sampled, prompt: Prompt) -> Sampled:
    del prompt
    return sampled


def _never(prompt: Prompt) -> Sampled:
    raise AssertionError(f"nobody asked for sampled answers: {prompt}")


def _search(
    trajectory: Trajectory, settings: NegativeSettings, grader: Grader, siblings: SiblingAnswers | None, ask: _Ask
) -> FoundNegatives:
    """Go through the kinds of one trajectory; ``ask`` is called only if sampled answers are needed."""
    gold = (trajectory.gold_answer or "").strip()
    if not gold:
        return FoundNegatives(())
    search = _Search(trajectory, gold, settings, grader, siblings, ask)
    for kinds in settings.choices:
        for lifted in (False, True):
            for kind, limit in kinds:
                search.take(kind, None if lifted else limit)
        if search.found:
            break
    return FoundNegatives(tuple(search.found), search.cost, search.error)


class _Search:
    """The candidates of one trajectory, kind by kind, and the ones chosen so far."""

    def __init__(
        self,
        trajectory: Trajectory,
        gold: str,
        settings: NegativeSettings,
        grader: Grader,
        siblings: SiblingAnswers | None,
        ask: _Ask,
    ) -> None:
        self.trajectory, self.gold, self.settings, self.grader = trajectory, gold, settings, grader
        self.found: list[Negative] = []
        self.cost = Cost()
        self.error: str | None = None
        self._siblings, self._ask = siblings, ask
        self._format = NumberFormat.of(gold)
        sources: dict[str, Callable[[], Iterator[str]]] = {
            "own": self._own,
            "sibling": self._sibling,
            "choice": self._choice,
            "intermediate": self._intermediate,
            "rule": self._rule,
            "sampled": self._sampled,
        }
        self._candidates = {kind: source() for kind, source in sources.items()}

    def take(self, kind: str, limit: int | None) -> None:
        """Choose from one kind, going on where the last call stopped."""
        wanted = self.settings.count - len(self.found)
        wanted = wanted if limit is None else min(wanted, limit)
        while wanted > 0 and (candidate := next(self._candidates[kind], None)) is not None:
            plain = " ".join(candidate.split())
            if not plain or len(plain) > MAX_LENGTH or not self._fits(plain, ()):
                continue  # judged as it stands: in the gold answer's format, a right answer may read like a wrong one
            text = self._dress(plain)
            if self._fits(text, self.found):
                self.found.append(Negative(text, kind))
                wanted -= 1

    def _fits(self, text: str, others: Iterable[Negative]) -> bool:
        rivals = (self.gold, *(negative.text for negative in others))
        return all(self.grader.compare(text, rival) is Verdict.DIFFERENT for rival in rivals)

    def _dress(self, text: str) -> str:
        """The answer in the gold answer's format, so that its form does not give it away."""
        if text in (self.trajectory.choices or ()):
            return text
        number = parse_number(text)
        dressed = None if self._format is None or number is None else self._format.dress(number)
        return dressed if dressed is not None and len(dressed) <= MAX_LENGTH else text

    # Each yields candidate texts, best first.

    def _own(self) -> Iterator[str]:
        if (answer := final_answer_of(self.trajectory)) is not None:
            yield answer

    def _sibling(self) -> Iterator[str]:
        if self._siblings is not None:
            yield from self._siblings.others(self.trajectory)

    def _choice(self) -> Iterator[str]:
        yield from self.trajectory.choices or ()

    def _intermediate(self) -> Iterator[str]:
        """Numbers for a number; formulas of its shape for a formula; nothing for a word or a letter."""
        numeric = parse_number(self.gold) is not None
        gold = normalize_answer(self.gold)
        if not numeric and not re.search(r"[0-9\\]", gold):
            return
        for step in reversed(self.trajectory.steps):
            if numeric:
                yield from reversed(results_in(step))
            else:
                yield from (text for text in reversed(formulas_in(step)) if _same_shape(text, gold))

    def _rule(self) -> Iterator[str]:
        """In an order of the trajectory's own: hashes are the same everywhere, and shuffle fairly."""
        salt = f"{self.settings.seed}:{self.trajectory.id}:"
        yield from sorted(perturb(self.gold, self.trajectory.question), key=lambda text: _digest(salt + text))

    def _sampled(self) -> Iterator[str]:
        drawn = self._ask(sampling_prompt(self.trajectory, self.settings.seed))
        self.cost += drawn.cost
        self.error = drawn.error
        clean = functools.partial(clean_sample, numeric=parse_number(self.gold) is not None)
        yield from filter(None, map(clean, (completion.text for completion in drawn.completions)))


_NAME = re.compile(r"\\[A-Za-z]+|[A-Za-z]")
_ARITHMETIC = frozenset((r"\frac", r"\sqrt", r"\pi"))


def _same_shape(formula: str, gold: str) -> bool:
    """Whether a formula on the way could pass for the result: a list for a list, its variables, not much longer."""
    lists = [bool(re.search(r"^[(\[].*[)\]]$|,|\\begin|\\cup|\\\{", text)) for text in (formula, gold)]
    known = {*_NAME.findall(gold), *_ARITHMETIC}
    familiar = known.issuperset(_NAME.findall(formula)) and "*" not in formula
    return lists[0] == lists[1] and familiar and "=" not in gold and len(formula) <= 2 * len(gold) + 6


def sampling_prompt(trajectory: Trajectory, seed: int = 0) -> Prompt:
    """The prompt that asks the labeling model for wrong answers."""
    text = _PROMPT.format(question=trajectory.question.strip(), gold=(trajectory.gold_answer or "").strip())
    return Prompt(text, seed=int.from_bytes(_digest(f"{seed}:{trajectory.id}")[:4]))


def clean_sample(text: str, *, numeric: bool) -> str:
    """The answer in a sampled completion's first line; where the right answer is a number, the first number there."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    line = (extract_answer(line) or line).strip(" \t\"'`*")
    if numeric:
        return next(iter(numbers_in(line)), "")
    return re.split(r"\s\(|\.\s", line)[0].strip(" \t\"'`*.")
