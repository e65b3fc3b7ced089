"""Guided search: which beams go on, when it ends, what it costs; the sampler and the rewarder say what a test wants."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpmi.asking import Asking
from cpmi.errors import InputError
from cpmi.protocols import Completion, SamplingParams
from cpmi.records import Cost, StepRewards, Trajectory
from cpmi.search import Search, Searched, SearchMethod, SearchSettings
from scripted import ScriptedSampler

QUESTION = Trajectory("How many?", (), gold_answer="4", id="q")


def step(text: str) -> Completion:
    """A step that ends at a blank line."""
    return Completion(text, "stop", "\n\n")


def last_step(text: str) -> Completion:
    """A step behind which the model ended its text."""
    return Completion(text, "stop", "")


class ByText:
    """Rewards each step with ``value(step)``; a step is 3 tokens and 0.1 s. Notes what it was shown."""

    name = "by text"

    def __init__(self, value: Callable[[str], float]) -> None:
        self._value = value
        self.seen: list[Trajectory] = []

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        self.seen += trajectories
        return [self._one(each) for each in trajectories]

    def _one(self, each: Trajectory) -> StepRewards:
        cost = Cost(tokens_scored=3 * len(each.steps), seconds=0.1)
        if any("unreadable" in step for step in each.steps):
            return StepRewards(each.id, (), self.name, cost=cost, error="too long")
        return StepRewards(each.id, tuple(map(self._value, each.steps)), self.name, cost=cost)

    def describe(self) -> dict[str, object]:
        return {}


def number(text: str) -> float:
    """A step's first number is its reward: "0.7 and so on"."""
    return float(text.split()[0])


def steps_in(prompt: str) -> tuple[str, ...]:
    return tuple(prompt.partition("<model>")[2].split("\n\n")[:-1])


def _say(said: list[Completion], text: str) -> list[Completion]:
    return said


def search(
    script: Callable[[tuple[str, ...]], Sequence[Completion] | str],
    settings: SearchSettings,
    questions: Sequence[Trajectory] = (QUESTION,),
    value: Callable[[str], float] = number,
    at_once: int = 32,
) -> tuple[list[Searched], ScriptedSampler, ByText]:
    sampler, rewarder = ScriptedSampler(lambda text: script(steps_in(text))), ByText(value)
    return Search(sampler, rewarder, settings).run(questions, at_once=at_once), sampler, rewarder


def test_beam_search_goes_on_with_the_best_and_ends_where_the_best_are_finished() -> None:
    tree: dict[tuple[str, ...], list[Completion]] = {
        (): [step("0.9 a"), step("0.2 b"), step("0.6 c"), step("0.1 d")],  # two beams of width two begin with four
        ("0.9 a",): [step("0.3 e"), step("0.5 f")],
        ("0.6 c",): [last_step("0.8 g"), step("0.4 h")],  # best: g, which is finished and keeps its place, and f
        ("0.9 a", "0.5 f"): [last_step("0.7 i"), last_step("0.1 j")],  # i takes the last place
    }
    taken: dict[tuple[str, ...], itertools.count[int]] = {}

    def script(steps: tuple[str, ...]) -> list[Completion]:
        """The root is asked once for each of its beams."""
        at = next(taken.setdefault(steps, itertools.count()))
        return tree[steps][2 * at : 2 * at + 2]

    (found,), sampler, rewarder = search(script, SearchSettings("beam", n=4, width=2))
    assert [beam.steps for beam in found.beams] == [
        ("0.6 c", "0.8 g"),
        ("0.9 a", "0.5 f", "0.7 i"),
        ("0.9 a", "0.5 f", "0.1 j"),  # not among the best, but finished and paid for
    ]
    assert [beam.rewards for beam in found.beams] == [(0.6, 0.8), (0.9, 0.5, 0.7), (0.9, 0.5, 0.1)]
    assert sampler.calls == [2, 2, 1]
    assert found.rounds == 3
    assert found.sampling == Cost(tokens_generated=5 * 2 * 10, tokens_scored=5 * 5, seconds=5 * 0.5)
    assert found.rewarding.tokens_scored == 3 * (4 * 1 + 4 * 2 + 2 * 3)
    assert {each.gold_answer for each in rewarder.seen} == {None}  # what leads a search must not know the answer


def test_step_best_of_n_is_greedy() -> None:
    def script(steps: tuple[str, ...]) -> list[Completion]:
        if len(steps) == 2:
            return [last_step("0.1 end"), last_step("0.2 other end"), last_step("0.15 third")]
        return [step(f"0.{i + 1} at {len(steps)}") for i in (2, 0, 1)]

    (found,), sampler, _ = search(script, SearchSettings("step-best-of-n", n=3))
    assert found.beams[0].steps == ("0.3 at 0", "0.3 at 1", "0.2 other end")
    assert len(found.beams) == 3
    assert sampler.calls == [1, 1, 1]


def test_trees_of_dvts_do_not_see_each_other() -> None:
    """The first tree is led astray, and the second, whose steps are all worse, still gives its solution."""
    roots = itertools.cycle([[step("0.9 a"), step("0.8 b")], [step("0.2 c"), step("0.3 d")]])

    def script(steps: tuple[str, ...]) -> list[Completion]:
        return next(roots) if not steps else [last_step("0.5 done"), last_step("0.4 done too")]

    (found,), sampler, _ = search(script, SearchSettings("dvts", n=4, width=2))
    assert {beam.steps[0] for beam in found.beams} == {"0.9 a", "0.3 d"}
    assert sampler.calls == [2, 2]


@pytest.mark.parametrize(("method", "asked"), [("beam", [2, 1]), ("dvts", [2, 2]), ("step-best-of-n", [1, 1])])
def test_a_tree_begins_with_as_many_steps_as_its_beams_have(method: SearchMethod, asked: list[int]) -> None:
    def script(steps: tuple[str, ...]) -> list[Completion]:
        return [last_step("0.5 \\boxed{4}")] * 2 if steps else [step("0.4 same"), step("0.4 same")]

    (found,), sampler, _ = search(script, SearchSettings(method, n=4, width=2))
    assert sampler.calls == asked  # equal beginnings of a tree are one beam
    assert found.is_finished


def test_a_box_finishes_a_solution_whatever_the_model_would_say_next() -> None:
    (found,), _, _ = search(lambda _: [step("0.5 so it is \\boxed{4}.")], SearchSettings("step-best-of-n", n=1))
    assert [beam.end for beam in found.beams] == ["finished"]


def test_a_model_that_ends_behind_a_blank_line_has_finished_the_step_before() -> None:
    def script(steps: tuple[str, ...]) -> list[Completion]:
        return [last_step("  \n")] if steps else [step("0.5 one"), step("  ")]

    (found,), _, rewarder = search(script, SearchSettings("step-best-of-n", n=2))
    assert [(beam.steps, beam.end, beam.rewards) for beam in found.beams] == [(("0.5 one",), "finished", (0.5,))]
    assert rewarder.seen[0].steps == ("0.5 one",)


def test_what_is_not_finished_is_given_where_there_is_nothing_else() -> None:
    settings = SearchSettings("step-best-of-n", n=2, max_steps=3)
    (found,), _, _ = search(lambda s: [step(f"0.2 {len(s)}"), step(f"0.4 {len(s)}")], settings)
    assert not found.is_finished
    assert [(beam.steps, beam.end) for beam in found.beams] == [(("0.4 0", "0.4 1", "0.4 2"), "steps")]
    assert found.error is None


def test_a_step_that_runs_into_its_limit_does_not_go_on() -> None:
    cut = Completion("0.9 and so on and on", "length", "")
    (found,), _, _ = search(lambda _: [cut, cut], SearchSettings("step-best-of-n", n=2))
    assert [(beam.steps, beam.end) for beam in found.beams] == [(("0.9 and so on and on",), "cut")]

    def script(steps: tuple[str, ...]) -> list[Completion]:
        return [cut, step("0.1 short")] if not steps else [last_step("0.2 end")]

    (found,), _, _ = search(script, SearchSettings("step-best-of-n", n=2))
    assert [beam.steps for beam in found.beams] == [("0.1 short", "0.2 end")]


def test_the_budget_is_what_a_question_generates() -> None:
    """Each round is 2 completions of 10 tokens: after two rounds 40 are spent."""
    for budget, rounds in ((1, 1), (20, 1), (21, 2), (40, 2), (41, 3)):
        settings = SearchSettings("step-best-of-n", n=2, budget=budget)
        (found,), _, _ = search(lambda s: [step(f"0.2 {len(s)}"), step(f"0.4 {len(s)}")], settings)
        assert (found.rounds, found.beams[0].end) == (rounds, "budget")


def test_what_cannot_be_rewarded_is_given_up() -> None:
    def script(steps: tuple[str, ...]) -> list[Completion]:
        return [step("0.9 unreadable"), step("0.1 fine")] if not steps else [last_step("0.3 end")]

    (found,), _, _ = search(script, SearchSettings("step-best-of-n", n=2))
    assert found.beams[0].steps == ("0.1 fine", "0.3 end")
    (found,), _, _ = search(lambda _: [step("0.9 unreadable")], SearchSettings("step-best-of-n", n=1))
    assert [(beam.end, beam.rewards) for beam in found.beams] == [("unscored", ())]


def test_a_question_that_cannot_be_sampled_fails_alone() -> None:
    other = Trajectory("And this?", (), id="other")

    def script(text: str) -> Sequence[Completion] | str:
        return "too long" if "How many" in text else [last_step("0.5 \\boxed{1}")]

    sampler = ScriptedSampler(script)
    failed, fine = Search(sampler, ByText(number), SearchSettings("step-best-of-n", n=1)).run([QUESTION, other])
    assert (failed.beams, failed.error) == ((), "too long")
    assert fine.is_finished
    (empty,), _, _ = search(lambda _: [step(" ")], SearchSettings("step-best-of-n", n=1))
    assert empty.error == "the model gave no step"


def test_questions_share_calls_and_a_new_one_begins_when_one_is_done() -> None:
    questions = [Trajectory(f"Question {i}", (), id=f"q{i}") for i in range(5)]
    lengths = {"Question 0": 3}  # the others take one step

    def script(text: str) -> list[Completion]:
        steps = steps_in(text)
        wanted = next((n for name, n in lengths.items() if name in text), 1)
        return [last_step("0.5 end") if len(steps) + 1 == wanted else step("0.4 on")]

    done: list[str] = []
    sampler = ScriptedSampler(script)
    results = Search(sampler, ByText(number), SearchSettings("step-best-of-n", n=1)).run(
        iter(questions), at_once=2, on_done=lambda question, _: done.append(question.id)
    )
    assert sampler.calls == [2, 2, 2, 1]
    assert done == ["q1", "q2", "q0", "q3", "q4"]
    assert [len(each.beams[0].steps) for each in results] == [3, 1, 1, 1, 1]  # in the order of the questions


@settings(deadline=None)  # the machine may be busy
@given(
    st.data(), st.sampled_from(["beam", "dvts", "step-best-of-n"]), st.sampled_from([(4, 2), (4, 4), (2, 1), (6, 3)])
)
def test_many_at_once_find_what_one_at_a_time_does(
    data: st.DataObject, method: SearchMethod, size: tuple[int, int]
) -> None:
    """Completions depend on the prompt and its seed alone here, as they do on engines with a seed per request."""
    endings = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=3))

    class Seeded(ScriptedSampler):
        def sample(self, prompts, n, params, on_done=lambda *_: None):  # type: ignore[no-untyped-def]
            results = []
            for prompt in prompts:
                steps = steps_in(prompt.text)
                drawn = [(prompt.seed * (i + 3) + 7 * len(prompt.text)) % 97 for i in range(n)]
                said = [
                    last_step(f"0.{d} e") if d % 8 in endings or len(steps) > 4 else step(f"0.{d} s") for d in drawn
                ]
                self._script = functools.partial(_say, said)
                results.append(self._answer(prompt.text))
            return results

    questions = [Trajectory(f"Question {i}", (), id=f"q{i}") for i in range(4)]
    how = SearchSettings(method, n=size[0], width=size[1], max_steps=6)
    sampler = Seeded(lambda _: [])
    together = Search(sampler, ByText(number), how).run(questions, at_once=3)
    alone = [Search(sampler, ByText(number), how).run([each])[0] for each in questions]
    assert [each.beams for each in together] == [each.beams for each in alone]
    for each in together:
        assert all(beam.rewards == tuple(map(number, beam.steps)) for beam in each.beams)
        lasts = [beam.rewards[-1] for beam in each.beams]
        assert lasts == sorted(lasts, reverse=True)
        assert len({beam.end == "finished" for beam in each.beams}) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0}, "n must be 1 or more"),
        ({"width": 0}, "width must be 1 or more"),
        ({"max_steps": 0}, "max_steps must be 1 or more"),
        ({"budget": 0}, "a budget of 0 tokens buys nothing"),
        ({"n": 6, "width": 4}, "6 samples cannot be shared out among beams of width 4"),
        ({"sampling": SamplingParams(temperature=0.0)}, "all continuations of a beam are the same one"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchSettings(**values)  # type: ignore[arg-type]


def test_a_server_that_does_not_say_what_ended_a_text_is_refused() -> None:
    with pytest.raises(InputError, match="does not say whether a stop text"):
        search(lambda _: [Completion("0.5 a", "stop")], SearchSettings("step-best-of-n", n=1))


def test_a_product_of_rewards_that_are_no_probabilities_is_refused() -> None:
    with pytest.raises(InputError, match="needs rewards in"):
        search(lambda _: [step("-0.5 a")], SearchSettings("step-best-of-n", n=1, aggregation="prod"))


def test_a_step_ends_at_a_blank_line_and_where_the_style_wants_it() -> None:
    assert SearchSettings().step_sampling().stop == ("\n\n",)
    assert SearchSettings(asking=Asking("plain", by_steps=True)).step_sampling().stop[:2] == ("\n\n", "\nProblem:")
    assert SearchSettings().step_sampling().max_tokens == 512
