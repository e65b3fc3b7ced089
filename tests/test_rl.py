"""Rewards of completions: steps and their places, weights, and what TRL hands over."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpmi.aggregation import Aggregation
from cpmi.errors import InputError
from cpmi.labelers.cpmi import CPMISettings
from cpmi.models.toy import ToyModel
from cpmi.prompts import CUES
from cpmi.records import StepRewards, Trajectory
from cpmi.rl import CPMIReward, Guards, OutcomeReward, PRMReward, RewardSettings, StepReward
from cpmi.rl.completions import completion_text, ends_in_offsets, find_steps, gold_answer, question_text, token_ends

QUESTION = "Ann has 3 bags of 4 apples and eats 5. How many are left?"


class Scripted:
    """A rewarder that looks its rewards up by the text of a step."""

    name = "scripted"

    def __init__(self, rewards: dict[str, float] | None = None, error: str | None = None) -> None:
        self.known, self.error = rewards or {}, error
        self.asked: list[Trajectory] = []

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        self.asked += trajectories
        if self.error:
            return [StepRewards(each.id, (), self.name, error=self.error) for each in trajectories]
        return [StepRewards(e.id, tuple(self.known.get(s, 0.5) for s in e.steps), self.name) for e in trajectories]

    def describe(self) -> dict[str, Any]:
        return {}


def plain(**changes: Any) -> RewardSettings:
    """No guards, steps at blank lines."""
    values: dict[str, Any] = {"split": "blank-lines", "guards": Guards.off()}
    return RewardSettings(**values | changes)


# --- steps and their places -----------------------------------------------------------------------------------------


@given(st.text(alphabet="ab. \nStep1:2é", max_size=60), st.sampled_from(("auto", "blank-lines", "lines", "sentences")))
def test_intervals_are_the_steps_as_they_stand(text: str, how: str) -> None:
    from cpmi.steps import split_steps

    intervals = find_steps(text, how)
    assert tuple(text[start:end] for start, end in intervals) == split_steps(text, how)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(intervals))


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("By noon\n\n130 are sold,\n\nso 50 remain.\n\nThen 8 go.", 3),  # "130 ..." opens with no small letter
        ("So 12 * 15\n\n= 180 rolls.", 1),
        ("So 12 *\n\n15 is 180.", 1),
        ("The total is\n\n180.", 1),
        ("x + 3 = 5\n\nx = 2", 2),
        ("It is 5.\n\n- 3 apples\n\n- Four pears", 2),
        ("One.\n\nTwo.", 2),
    ],
)
def test_pieces_of_one_sentence_are_one_step(text: str, joined: int) -> None:
    assert len(find_steps(text, "blank-lines", join_fragments=True)) == joined


def test_tokens_that_complete_a_step() -> None:
    """Worked by hand: tokens are bytes, so é takes two; the step ends with its second byte."""
    ids = list("né\n\nab".encode())
    assert token_ends(ids, [2, 6], lambda some: bytes(some).decode(errors="replace")) == [2, 6]


def test_a_token_over_two_steps_belongs_to_the_one_that_it_completes() -> None:
    pieces = ["One", ".\n\nTw", "o", "."]
    assert token_ends(range(4), [4, 10], lambda some: "".join(pieces[i] for i in some)) == [1, 3]
    assert ends_in_offsets([4, 10], [(0, 3), (3, 8), (8, 9), (9, 10)]) == [1, 3]


def test_ends_outside_the_text_are_refused() -> None:
    with pytest.raises(InputError, match="outside the text of 3"):
        token_ends([0, 1, 2], [4], lambda some: "abc"[: len(some)])
    with pytest.raises(InputError, match="behind the last token"):
        ends_in_offsets([4], [(0, 3)])


# --- what a trainer hands over --------------------------------------------------------------------------------------


def test_texts_and_messages() -> None:
    assert completion_text("a") == "a"
    assert completion_text([{"role": "assistant", "content": "a"}, {"role": "tool", "content": "x"}]) == "a"
    assert completion_text([{"role": "assistant", "content": [{"type": "text", "text": "a"}]}]) == "a"
    assert completion_text([{"role": "assistant", "content": None}]) == ""
    shown = [{"role": "user", "content": "old"}, {"role": "assistant", "content": "x"}]
    assert question_text([*shown, {"role": "user", "content": "new"}]) == "new"
    with pytest.raises(InputError, match="no message of a user"):
        question_text([{"role": "system", "content": "s"}])
    with pytest.raises(InputError, match="not int"):
        completion_text(3)


def test_answers_in_fields() -> None:
    assert gold_answer(7) == "7"
    assert gold_answer("so\n#### 42") == "42"
    assert gold_answer(r"thus \boxed{\frac12}") == r"\frac12"
    assert gold_answer("The answer") == "The answer"
    assert gold_answer(" ") is None
    assert gold_answer(None) is None


def test_the_call_of_trl() -> None:
    """As ``GRPOTrainer._calculate_rewards`` of TRL 1.16 calls: by keyword, columns as lists, loggers."""
    rewarder = Scripted({"It is 3 * 4 = 12.": 0.4, "So 12 - 5 = 7.": 0.2})
    reward = StepReward(rewarder, plain())
    metrics: dict[str, float] = {}
    extra: dict[str, list[Any]] = {}
    prompts = [[{"role": "user", "content": QUESTION}]] * 3
    texts = ["It is 3 * 4 = 12.\n\nSo 12 - 5 = 7.", "It is 3 * 4 = 12.\n\nThe answer is 12.", "So 12 - 5 = 7."]
    given = reward(
        prompts=prompts,
        completions=[[{"role": "assistant", "content": text}] for text in texts],
        completion_ids=[[1], [2], [3]],
        answer=["7", "7", None],
        trainer_state=object(),
        log_metric=metrics.__setitem__,
        log_extra=extra.__setitem__,
    )
    # outcome 1 + half of the mean of 0.4 and 0.2; outcome 0 + half of the mean of 0.4 and 0.5; no right answer
    assert given == [pytest.approx(1.15), pytest.approx(0.225), None]
    assert metrics["scripted/outcome"] == 0.5
    assert metrics["scripted/unjudged"] == pytest.approx(1 / 3)
    assert metrics["scripted/steps"] == 2
    assert extra["scripted_steps"] == ["+0.400 +0.200", "+0.400 +0.500", "no gold answer"]
    assert rewarder.asked[0].question == QUESTION
    assert rewarder.asked[0].id == rewarder.asked[1].id  # measured against the same wrong answers


def test_awaited_it_gives_the_same() -> None:
    reward = StepReward(Scripted(), plain())
    asynchronous = reward.asynchronous()
    assert inspect.iscoroutinefunction(asynchronous.__call__)
    arguments: dict[str, Any] = {"prompts": [QUESTION], "completions": ["It is 7."], "answer": ["7"]}
    assert asyncio.run(asynchronous(**arguments)) == reward(**arguments) == [1.25]
    assert asynchronous.__name__ == "scripted"


@pytest.mark.parametrize("how", ["last", "min", "prod", "mean", "sum"])
@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=5), cost=st.floats(0, 1))
def test_what_steps_bring_adds_up(how: Aggregation, values: list[float], cost: float) -> None:
    steps = [f"Step {chr(65 + i)}" for i in range(len(values))]
    rewarder = Scripted(dict(zip(steps, values, strict=True)))
    off = replace(Guards.off(), step_cost=cost)
    reward = StepReward(rewarder, plain(aggregation=how, guards=off, step_weight=0.5))
    (judged,) = reward.judge([reward.attempt(QUESTION, "\n\n".join(steps), "7")])
    from cpmi.aggregation import aggregate

    assert judged.reward == pytest.approx(0.5 * aggregate(values, how) - cost * len(values))
    assert judged.rest + sum(judged.shares) == pytest.approx(judged.reward)
    assert len(judged.shares) == len(judged.ends) == len(values)


def test_what_cannot_be_judged() -> None:
    failing = StepReward(Scripted(error="too long"), plain())
    assert failing([QUESTION], ["It is 7."], answer=["7"]) == [None]
    free = StepReward(Scripted(), plain(outcome_weight=0.0))  # a reward model needs no right answer
    assert free([QUESTION], ["It is 7."]) == [0.25]
    cpmi = CPMIReward(ToyModel(), settings=plain(outcome_weight=0.0))
    assert cpmi([QUESTION], ["It is 7."], answer=[None]) == [None]
    assert OutcomeReward()([QUESTION] * 3, ["It is 7.", "It is 8.", ""], answer=["7"] * 3) == [1, 0, 0]


def test_mistakes_are_told() -> None:
    with pytest.raises(InputError, match="'mean'"):
        RewardSettings(aggregation="meen")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="did you mean 'lines'"):
        RewardSettings(split="line")
    with pytest.raises(InputError, match="finite"):
        RewardSettings(step_weight=float("nan"))
    with pytest.raises(InputError, match="step_weight must be 0"):
        StepReward(None)
    with pytest.raises(InputError, match="product"):
        CPMIReward(ToyModel(), settings=RewardSettings(aggregation="prod"))
    with pytest.raises(InputError, match="needs its tokenizer"):
        CPMIReward(object())
    with pytest.raises(InputError, match="1 answers for 2 completions"):
        OutcomeReward()([QUESTION] * 2, ["a", "b"], answer=["7"])


def test_any_step_rewarder_is_a_prm() -> None:
    """The worst step decides."""
    reward = PRMReward(Scripted({"First 3 * 4 = 12.": 0.9, "Then 12 - 4 = 8.": 0.1}))
    assert reward([QUESTION], ["First 3 * 4 = 12.\n\nThen 12 - 4 = 8."], answer=["7"]) == [pytest.approx(0.05)]


# --- CPMI -----------------------------------------------------------------------------------------------------------


def test_cumulative_rewards_add_up_to_what_the_whole_gives() -> None:
    """Potentials: the sum is the level after all steps less that before any, however the text is cut.

    The level is worked out apart, by scoring the answers after all steps as one.
    """
    toy = ToyModel()
    cpmi = CPMISettings(context="cumulative", templates=CUES[:1])
    reward = CPMIReward(toy, cpmi=cpmi, settings=plain(aggregation="sum", outcome_weight=0.0, step_weight=1.0))
    text = "Take 3 * 4 = 12.\n\nOf 12 eat 5.\n\nSo 7 stay."
    single = CPMIReward(toy, cpmi=cpmi, settings=replace(reward.settings, split="step-k"))
    many, one = (each.judge([each.attempt(QUESTION, text, "7")]) for each in (reward, single))
    assert len(many[0].shares) == 3
    assert len(one[0].shares) == 1
    assert many[0].reward == pytest.approx(one[0].reward)


def test_siblings_are_the_batch() -> None:
    from cpmi.labelers.negatives import NegativeSettings

    cpmi = CPMISettings(templates=CUES[:1], negatives=NegativeSettings.parse("sibling"))
    reward = CPMIReward(ToyModel(), cpmi=cpmi, settings=plain())
    attempts = [reward.attempt(QUESTION, text, "7") for text in ("The answer is 7.", "The answer is 12.")]
    found = [record.details["answers"] for record in reward._rewards([each.trajectory() for each in attempts])]
    assert found == [["7", "12"], ["7"]]
