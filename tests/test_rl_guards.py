"""Each hack pays without its guard, and does not with it.

The labeling model of these tests is ``toy:``, to which a text is likelier once its letters were seen: it pays for
saying the answer and for nothing else, so it can be hacked by hand. Where a hack needs other rewards they are scripted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from cpmi.errors import InputError
from cpmi.grader import Grader
from cpmi.labelers.cpmi import CPMISettings
from cpmi.labelers.negatives import NegativeSettings
from cpmi.models.toy import ToyModel
from cpmi.prompts import CUES
from cpmi.records import StepRewards, Trajectory
from cpmi.rl import CPMIReward, Guards, RewardSettings, StepReward
from cpmi.rl.guards import final_statement, gives_answer, hedges, says_nothing

QUESTION = (
    "A bakery bakes 12 trays of 15 rolls, sells 130 and packs the others into bags of 2. How many bags are there?"
)
GOLD = "25"
HONEST = ("There are 12 * 15 = 180 rolls.", "Then 180 - 130 = 50 rolls remain.", "Half of them is 50 / 2 = 25.")
OFF = Guards.off()


class Constant:
    """A rewarder that gives every step the same."""

    name = "constant"

    def __init__(self, reward: float) -> None:
        self.reward = reward

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        return [StepRewards(each.id, (self.reward,) * len(each.steps), self.name) for each in trajectories]

    def describe(self) -> dict[str, Any]:
        return {}


def settings(guards: Guards, **changes: Any) -> RewardSettings:
    """Of the step reward alone, unless told otherwise."""
    shape = {"aggregation": "sum", "outcome_weight": 0.0, "step_weight": 1.0, "split": "blank-lines"}
    return RewardSettings(**shape | changes, guards=guards)  # type: ignore[arg-type]


def constant(steps: Sequence[str], guards: Guards, each: float = 0.2, **changes: Any) -> float:
    return earned(StepReward(Constant(each), settings(guards, **changes)), steps)


def toy(steps: Sequence[str], guards: Guards, context: Any = "marginal", **changes: Any) -> float:
    negatives = NegativeSettings(count=2, choices=((("rule", None),),))
    cpmi = CPMISettings(context=context, templates=CUES[:1], negatives=negatives)
    return earned(CPMIReward(ToyModel(), cpmi=cpmi, settings=settings(guards, **changes)), steps)


def earned(reward: StepReward, steps: Sequence[str]) -> float:
    (value,) = reward([QUESTION], ["\n\n".join(steps)], answer=[GOLD])
    assert value is not None
    return value


PADDED = ("There are 12 trays of bread.", "Every tray holds 15 rolls.", *HONEST)


def test_more_steps() -> None:
    """Length: every step is worth a little, so more steps are worth more."""
    assert constant(PADDED, OFF) > constant(HONEST, OFF)
    assert constant(PADDED, OFF, aggregation="mean") == pytest.approx(constant(HONEST, OFF, aggregation="mean"))
    cost = replace(OFF, step_cost=0.25)
    assert constant(PADDED, cost) < constant(HONEST, cost)
    few = replace(OFF, max_steps=3)
    assert constant(PADDED, few) == pytest.approx(constant(HONEST, few))


def test_the_same_step_again() -> None:
    again = (*HONEST[:2], HONEST[1], "So " + HONEST[1].lower(), HONEST[2])
    guard = replace(OFF, near_repeat=0.8)
    assert constant(again, OFF) > constant(HONEST, OFF)
    assert constant(again, guard) == pytest.approx(constant(HONEST, guard))


def test_a_step_with_a_new_number_is_no_repeat() -> None:
    alike = ("There are 12 * 15 = 180 rolls.", "There are 12 * 16 = 192 rolls.")
    assert constant(alike, replace(OFF, near_repeat=0.8)) == constant(alike, OFF)


@pytest.mark.parametrize("filler", ["Let's think step by step.", "---", "Okay, so here we go!", "The answer is:"])
def test_steps_that_say_nothing(filler: str) -> None:
    padded = (filler, *HONEST)
    guard = replace(OFF, filler=True)
    assert constant(padded, OFF) > constant(HONEST, OFF)
    assert constant(padded, guard) == pytest.approx(constant(HONEST, guard))


def test_words_that_conclude_say_something() -> None:
    assert not any(map(says_nothing, ("So x is even.", "The answer is yes.", "= 5", "All cats sleep.", "No.")))


def test_the_answer_in_step_one() -> None:
    """The first step says it, the rest is show; without the guard that pays more than reasoning does."""
    first = ("The answer is 25.", *HONEST)
    guard = replace(OFF, after_answer=True)
    for context in ("marginal", "cumulative"):
        assert toy(first[:1], OFF, context, aggregation="mean") > toy(HONEST, OFF, context, aggregation="mean")
        assert toy(first, guard, context) == 0
        assert toy(first, guard, context, aggregation="mean") == 0
    bounded = replace(OFF, clip=0.01)
    assert toy(first[:1], bounded, aggregation="mean") <= 0.01


def test_the_answer_may_be_said_in_words_or_boxed() -> None:
    attempt = StepReward(Constant(1), settings(OFF)).attempt("How many legs?", "x", "8")
    with Grader() as grader:
        said = ["It has eight legs.", r"So \boxed{8}.", "The answer is 8.0.", "4 + 4 = 8"]
        assert all(gives_answer(step, attempt, grader) for step in said)
        assert not any(gives_answer(step, attempt, grader) for step in ("It has 18 legs.", "4 + 5 = 9", "Nine."))
        named = replace(attempt, question="Of 8 cats 3 go and 3 come. How many?")
        assert not gives_answer("There are 8 cats at first.", named, grader)  # the question says it
        assert gives_answer("So 5 + 3 = 8.", named, grader)


def test_text_behind_the_final_answer() -> None:
    """Right or wrong, what follows a final answer is not paid."""
    guard = replace(OFF, after_answer=True)
    for answer in ("The answer is 25.", "The answer is 40."):
        short = (*HONEST[:2], answer)
        longer = (*short, "Bakeries are lovely places.", "Bread is sold there.")
        assert constant(longer, OFF) > constant(short, OFF)
        assert constant(longer, guard) == pytest.approx(constant(short, guard))


def test_one_sentence_in_many_steps() -> None:
    torn = ("There are 12 *", "15", "= 180 rolls.", *HONEST[1:])
    guard = replace(OFF, join_fragments=True)
    assert constant(torn, OFF) > constant(HONEST, OFF)
    assert constant(torn, guard) == pytest.approx(constant(HONEST, guard))


def test_capital_letters_do_not_help_where_rewards_are_differences() -> None:
    """A sentence torn where no rule sees it: potentials pay for where a text ends, not for how it is cut."""
    torn = ("There are 12 trays.", "Rolls 180.", "Then 50 rolls remain.", "Half is 25.")
    whole = "\n\n".join(torn)
    reward = {
        how: earned(
            CPMIReward(
                ToyModel(),
                cpmi=CPMISettings(context="cumulative", templates=CUES[:1]),
                settings=settings(OFF, split=how),
            ),
            [whole],
        )
        for how in ("blank-lines", "step-k")
    }
    assert reward["blank-lines"] == pytest.approx(reward["step-k"])


def test_several_final_answers() -> None:
    """A wrong box first and the right one last is right to whoever reads the last alone."""
    hedge = ("It may be \\boxed{40}.", "Or \\boxed{25}.")
    shape: dict[str, Any] = {"outcome_weight": 1.0, "step_weight": 0.0}
    guard = replace(OFF, one_answer=True)
    assert constant(hedge, OFF, **shape) == 1
    assert constant(hedge, guard, **shape) == 0
    twice = ("So \\boxed{25}.", "The answer is 25.0.")
    assert constant(twice, guard, **shape) == 1
    parts = ("The answer to the first part is 50.", "The answer is 25.")
    assert constant(parts, guard, **shape) == 1


def test_saying_nothing_at_all() -> None:
    """Where wrong steps cost, silence pays; it must not."""
    wrong = ("There are 12 + 15 = 27 rolls.", "The answer is 27.")
    guard = replace(OFF, silence=-1.0)
    for silent in ("", "Okay."):
        assert earned(StepReward(Constant(-0.3), settings(OFF, aggregation="mean")), [silent]) >= -0.3
        assert constant([silent], replace(guard, filler=True), -0.3, aggregation="mean") == -1
    assert constant(wrong, guard, -0.3, aggregation="mean") == pytest.approx(-0.3)


def test_all_guards_together_leave_reasoning_its_pay() -> None:
    guards = Guards()
    reward = StepReward(Constant(0.2), settings(guards, aggregation="mean"))
    attempt = reward.attempt(QUESTION, "\n\n".join((*HONEST, "The answer is 25.")), GOLD)
    (judged,) = reward.judge([attempt])
    assert judged.withheld == (None, None, "answered", "answered")
    assert judged.reward == pytest.approx(0.2)
    everything = ("Let's see.", *HONEST[:2], HONEST[1], *HONEST[2:], "Bread is nice.")
    assert constant(everything, guards, aggregation="mean") == pytest.approx(0.2)


def test_final_statements() -> None:
    assert final_statement("The answer is 5.") == "5"
    assert final_statement("The answer to part one is 5.") is None
    attempt = StepReward(Constant(1), settings(OFF)).attempt(QUESTION, r"\boxed{\frac{1}{2}} or \boxed{0.5}", GOLD)
    with Grader() as grader:
        assert not hedges(attempt, grader)


def test_numbers_out_of_range_are_refused() -> None:
    for field, value in (("clip", 0.0), ("max_steps", 0), ("near_repeat", 1.5), ("step_cost", -1.0)):
        with pytest.raises(InputError, match=field):
            Guards(**{field: value})  # type: ignore[arg-type]
