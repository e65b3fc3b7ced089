"""Guided search: a language model proposes steps, step rewards say with which to go on.

Three methods, one loop. Every question has one or several *trees*; in each round every *beam* of a tree (a solution in
the making) is continued by ``width`` sampled steps, all new beginnings are rewarded, and the tree goes on with the
``keep`` best.

| method             | trees     | keep      | width |                                                                |
|--------------------|-----------|-----------|-------|----------------------------------------------------------------|
| ``beam``           | 1         | n / width | width | step-level beam search                                         |
| ``step-best-of-n`` | 1         | 1         | n     | n continuations of each step, the best one stays               |
| ``dvts``           | n / width | 1         | width | diverse verifier tree search: trees that do not see each other |

Names and defaults follow huggingface/search-and-learn. What differs: a finished solution takes the place of the beam
that it is among the best of its round, for good; so a search ends as soon as what is best is finished. All finished
solutions that come up are kept, also those that were not among the best: they are paid for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

from cpmi.aggregation import Aggregation, aggregate
from cpmi.answer_forms import box_content
from cpmi.asking import STEP_BY_STEP, Asking, prompt
from cpmi.errors import InputError
from cpmi.prompts import STEP_SEPARATOR
from cpmi.protocols import Completion, Sampler, SamplingParams, StepRewarder
from cpmi.records import Cost, Trajectory

SearchMethod = Literal["beam", "step-best-of-n", "dvts"]
STEP_SAMPLING = SamplingParams(max_tokens=512, temperature=0.8)


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How to search.

    Attributes:
        n: steps sampled for a question in a round; also its number of beams times their width.
        width: continuations of a beam (``beam`` and ``dvts``).
        aggregation: of a beginning's step rewards into the number that beginnings are ranked by.
        max_steps: the most steps of a solution.
        budget: a question's search ends before the round in which it would have generated so many tokens already;
            None: no limit.
        sampling: of one step; its ``max_tokens`` is the most of a step. Stop texts are the search's own business.
        seed: decides the steps, on engines that take a seed per request.

    Raises:
        InputError: numbers that do not fit together, or that buy nothing.
    """

    method: SearchMethod = "beam"
    n: int = 8
    width: int = 4
    aggregation: Aggregation = "last"
    max_steps: int = 40
    budget: int | None = None
    asking: Asking = STEP_BY_STEP
    sampling: SamplingParams = STEP_SAMPLING
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("n", self.n), ("width", self.width), ("max_steps", self.max_steps)):
            if value < 1:
                raise InputError(f"search: {name} must be 1 or more, not {value}")
        if self.budget is not None and self.budget < 1:
            raise InputError(f"search: a budget of {self.budget} tokens buys nothing; leave it out for no limit")
        if self.method != "step-best-of-n" and self.n % self.width:
            raise InputError(f"search: {self.n} samples cannot be shared out among beams of width {self.width}")
        if self.sampling.temperature == 0 and self.n > 1:
            raise InputError("search: at temperature 0 all continuations of a beam are the same one")

    def step_sampling(self) -> SamplingParams:
        """The parameters for one step: it ends at a blank line, or where the style of asking wants it."""
        others = self.asking.sampling(replace(self.sampling, stop=())).stop
        return replace(self.sampling, stop=(STEP_SEPARATOR, *others))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Trees, beams that each keeps, and continuations of a beam."""
        match self.method:
            case "beam":
                return 1, self.n // self.width, self.width
            case "step-best-of-n":
                return 1, 1, self.n
            case "dvts":
                return self.n // self.width, 1, self.width


@dataclass(frozen=True, slots=True)
class Beam:
    """A solution, or its beginning.

    Attributes:
        rewards: a number per step; empty where the rewarder could not say.
        end: why there is no going on: ``finished``, ``cut`` (a step that ran into its limit of tokens), ``steps`` (as
            many as allowed), ``budget``, ``unscored`` (no rewards); empty: there is, or nothing came of it.
    """

    steps: tuple[str, ...] = ()
    rewards: tuple[float, ...] = ()
    end: str = ""


@dataclass(frozen=True, slots=True)
class Searched:
    """What came of one question.

    Attributes:
        beams: the finished solutions, the best first; where none was finished, what there is.
        sampling, rewarding: what was spent on steps, and on their rewards.
        rounds: how many.
        error: the first thing that went wrong, if there are no beams.
    """

    beams: tuple[Beam, ...]
    sampling: Cost
    rewarding: Cost
    rounds: int
    error: str | None = None

    @property
    def is_finished(self) -> bool:
        return any(beam.end == "finished" for beam in self.beams)


@dataclass(slots=True)
class _Tree:
    """Beams that compete; ``places`` is how many go on."""

    places: int
    beams: list[Beam]


@dataclass(slots=True)
class _Question:
    """A question under way; ``given_up`` are beams that ended without being finished."""

    index: int
    trajectory: Trajectory
    trees: list[_Tree]
    finished: list[Beam] = field(default_factory=list)
    given_up: list[Beam] = field(default_factory=list)
    sampling: Cost = Cost()
    rewarding: Cost = Cost()
    rounds: int = 0
    error: str | None = None

    @property
    def goes_on(self) -> bool:
        return any(tree.beams for tree in self.trees)

    def note(self, error: str | None) -> None:
        self.error = self.error or error


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a beam stands."""

    question: _Question
    tree: _Tree
    beam: Beam


class Search:
    """Searches for solutions of many questions at once: a round is one call of the sampler and one of the rewarder."""

    def __init__(self, sampler: Sampler, rewarder: StepRewarder, settings: SearchSettings) -> None:
        """``rewarder``: a process reward model, or whatever rewards steps without knowing the right answer."""
        self._sampler = sampler
        self._rewarder = rewarder
        self._settings = settings
        self._sampling = settings.step_sampling()
        settings.asking.text(sampler, Trajectory("?", ()))  # says at once that there is no chat template

    def run(
        self,
        questions: Iterable[Trajectory],
        *,
        at_once: int = 32,
        on_done: Callable[[Trajectory, Searched], None] = lambda *_: None,
    ) -> list[Searched]:
        """Search for solutions of each question, in order.

        Args:
            at_once: how many questions are under way; when one is done the next one begins, so that an engine which
                batches stays full.
            on_done: called with a question and what came of it as soon as it is there.

        Raises:
            InputError: the engine does not say what ended a completion, so that nobody knows when a solution is done.
            CpmiError: the engine is gone.
        """
        done: dict[int, Searched] = {}
        waiting = enumerate(questions)
        active: list[_Question] = []
        while True:
            active += [self._begun(*each) for each in islice(waiting, at_once - len(active))]
            if not active:
                return [done[index] for index in range(len(done))]
            self._round(active)
            for question in active:
                if not question.goes_on:
                    done[question.index] = self._result(question)
                    on_done(question.trajectory, done[question.index])
            active = [question for question in active if question.goes_on]

    def _begun(self, index: int, trajectory: Trajectory) -> _Question:
        trees, keep, _ = self._settings.shape
        return _Question(index, trajectory, [_Tree(keep, [Beam()]) for _ in range(trees)])

    # --- a round ----------------------------------------------------------------------------------------------------

    def _round(self, active: Sequence[_Question]) -> None:
        grown = self._rewarded(self._sampled(active))
        for question in active:
            question.rounds += 1
            for tree in question.trees:
                self._select(question, tree, [place.beam for place in grown if place.tree is tree])
            self._stop_at_limits(question)

    def _sampled(self, active: Sequence[_Question]) -> list[_Place]:
        """The new beams, each of a tree once."""
        asked: list[_Place] = []
        prompts = []
        for question in active:
            for number, tree in enumerate(question.trees):
                # At first a tree is but its root, which then begins as many steps as all its beams will.
                beams = tree.beams if question.rounds else tree.beams * tree.places
                for rank, beam in enumerate(beams):
                    asked.append(_Place(question, tree, beam))
                    text = self._settings.asking.text(self._sampler, question.trajectory, beam.steps)
                    key = (self._settings.seed, question.trajectory.id, question.rounds, number, rank)
                    prompts.append(prompt(text, *key))
        completions = self._sampler.sample(prompts, self._settings.shape[2], self._sampling)
        grown: dict[tuple[int, tuple[str, ...], str], _Place] = {}
        for place, sampled in zip(asked, completions, strict=True):
            place.question.sampling += sampled.cost
            place.question.note(sampled.error)
            for completion in sampled.completions:
                if (new := _next(place.beam, completion)) is not None:
                    grown.setdefault((id(place.tree), new.steps, new.end), replace(place, beam=new))
        return list(grown.values())

    def _rewarded(self, grown: Sequence[_Place]) -> list[_Place]:
        """The same, with rewards; a beam that the rewarder cannot take is given up."""
        # Without its gold answer: nothing that knows it may lead a search.
        beginnings = [
            Trajectory(place.question.trajectory.question, place.beam.steps, id=f"{place.question.trajectory.id}/{i}")
            for i, place in enumerate(grown)
        ]
        rewarded = []
        for place, record in zip(grown, self._rewarder.rewards(beginnings), strict=True):
            place.question.rewarding += record.cost
            place.question.note(record.error)
            end = place.beam.end if record.error is None else "unscored"
            rewarded.append(replace(place, beam=replace(place.beam, rewards=record.rewards, end=end)))
        return rewarded

    def _select(self, question: _Question, tree: _Tree, beams: Sequence[Beam]) -> None:
        """Go on with the best; one that is finished keeps its place, and so takes it from those that go on."""
        able = self._ranked(beam for beam in beams if beam.end in ("", "finished"))
        best = able[: tree.places]
        if tree.beams and not able:
            question.given_up += [beam for beam in (*tree.beams, *beams) if beam.steps]
        tree.beams = [beam for beam in best if not beam.end]
        tree.places -= len(best) - len(tree.beams)
        question.finished += [beam for beam in able if beam.end]

    def _stop_at_limits(self, question: _Question) -> None:
        budget = self._settings.budget
        spent = budget is not None and question.sampling.tokens_generated >= budget
        for tree in question.trees:
            end = "budget" if spent else "steps" if question.rounds >= self._settings.max_steps else ""
            if end:
                question.given_up += [replace(beam, end=end) for beam in tree.beams]
                tree.beams = []

    def _ranked(self, beams: Iterable[Beam]) -> list[Beam]:
        """The best first; of equals the one sampled first. What has no rewards comes last."""
        how = self._settings.aggregation
        return sorted(beams, key=lambda beam: -aggregate(beam.rewards, how) if beam.rewards else math.inf)

    def _result(self, question: _Question) -> Searched:
        beams = tuple(self._ranked(question.finished or question.given_up))
        error = None if beams else question.error or "the model gave no step"
        return Searched(beams, question.sampling, question.rewarding, question.rounds, error)


def _next(beam: Beam, completion: Completion) -> Beam | None:
    """The beam with the sampled step; None where there is nothing in it.

    A solution is finished where the model ends its text, or has put an answer into a box.
    """
    if completion.stop_text is None and completion.finish_reason != "length":
        raise InputError(
            "this server does not say whether a stop text or the model itself ended a completion, so that a search "
            "cannot know when a solution is finished; use a vLLM or SGLang server, hf:MODEL or vllm:MODEL"
        )
    step = completion.text.strip()
    ended = completion.finish_reason == "stop" and completion.stop_text != STEP_SEPARATOR
    if not step:
        return replace(beam, end="finished") if ended and beam.steps else None
    if completion.finish_reason == "length":
        return Beam((*beam.steps, step), end="cut")
    return Beam((*beam.steps, step), end="finished" if ended or box_content(step) else "")
