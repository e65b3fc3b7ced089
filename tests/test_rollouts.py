"""Values of prefixes: what is asked, how answers are read and graded, what is counted."""

from __future__ import annotations

from typing import Any

import pytest

from cpmi.errors import InputError
from cpmi.grader import Grader, Verdict
from cpmi.labelers.rollouts import (
    Prefix,
    PrefixValue,
    Roller,
    RolloutSettings,
    RolloutStore,
    is_complete,
    rollout_answer,
)
from cpmi.protocols import Completion, Sampled, SamplingParams
from cpmi.records import Cost, Trajectory
from scripted import ScriptedSampler

TRAJECTORY = Trajectory("What is 2 + 2 + 3?", ("2 + 2 = 4", "4 + 3 = 7", "So it is 7."), "7", id="sum")


class Memory:
    """A ``RolloutStore`` in memory."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str, int], Sampled] = {}

    def get(self, role: str, trajectory_id: str, prefix: int) -> Sampled | None:
        return self.kept.get((role, trajectory_id, prefix))

    def put(self, role: str, trajectory_id: str, prefix: int, sampled: Sampled) -> None:
        self.kept[role, trajectory_id, prefix] = sampled


def roller(sampler: ScriptedSampler, store: RolloutStore | None = None, **settings: Any) -> Roller:
    return Roller(sampler, RolloutSettings(**settings), grader=Grader(), store=store)


def test_the_value_is_the_share_of_right_rollouts() -> None:
    sampler = ScriptedSampler(lambda _: [r"so \boxed{7}", "The answer is 7.0.", r"\boxed{8}", "I do not know"])
    (value,) = roller(sampler, n=4).values([Prefix(TRAJECTORY, 1)])
    assert value == PrefixValue(n=4, right=2, unanswered=1, cost=Cost(40, 5, 0.5))
    assert (value.soft, value.hard) == (0.5, 1.0)


def test_a_chat_prompt_begins_the_reply_and_a_plain_one_goes_on() -> None:
    chat, plain = ScriptedSampler(lambda _: [""]), ScriptedSampler(lambda _: [""])
    roller(chat, n=1).values([Prefix(TRAJECTORY, 2)])
    roller(plain, n=1, style="plain").values([Prefix(TRAJECTORY, 2)])
    assert chat.asked[0].text.startswith("<user>What is 2 + 2 + 3?\n\nReason step by step")
    assert chat.asked[0].text.endswith("<model>2 + 2 = 4\n\n4 + 3 = 7\n\n")
    assert plain.asked[0].text.endswith("Problem: What is 2 + 2 + 3?\n\nSolution:\n\n2 + 2 = 4\n\n4 + 3 = 7\n\n")
    assert chat.params == RolloutSettings().sampling
    assert plain.params is not None
    assert "\nProblem:" in plain.params.stop  # a base model would go on with a problem of its own


def test_the_defaults_are_those_of_the_official_code() -> None:
    assert RolloutSettings() == RolloutSettings(
        8, "chat", SamplingParams(max_tokens=2048, temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.05), 0
    )


def test_seeds_differ_by_prefix_and_not_by_company() -> None:
    together, alone = ScriptedSampler(lambda _: [""]), ScriptedSampler(lambda _: [""])
    roller(together, n=1).values([Prefix(TRAJECTORY, 1), Prefix(TRAJECTORY, 2)])
    roller(alone, n=1).values([Prefix(TRAJECTORY, 2)])
    first, second = (prompt.seed for prompt in together.asked)
    assert first != second == alone.asked[0].seed


def test_all_prefixes_are_in_flight_at_once() -> None:
    sampler = ScriptedSampler(lambda _: [r"\boxed{7}"])
    open_ended = Trajectory("Why?", ("because", "of that"), "7", id="open")
    roller(sampler, n=1).values([Prefix(t, length) for t in (TRAJECTORY, open_ended) for length in (0, 1, 2)])
    assert sampler.calls == [6]


def test_a_complete_solution_needs_no_rollout() -> None:
    sampler = ScriptedSampler(lambda _: pytest.fail("nothing to sample"))
    right, wrong = TRAJECTORY, Trajectory("What is 2 + 2 + 3?", ("The answer is 8.",), "7")
    values = roller(sampler).values([Prefix(right, 3), Prefix(wrong, 1)])
    assert values == [PrefixValue(n=1, right=1), PrefixValue(n=1, right=0)]
    assert is_complete(Prefix(right, 3))
    assert not is_complete(Prefix(right, 2))
    assert not is_complete(Prefix(Trajectory("Why?", ("Because.",), "an apple"), 1))


@pytest.mark.parametrize(
    ("text", "reason", "answer"),
    [
        (r"then \boxed{9}", "stop", "9"),
        ("so we get 12 - 3 = 9", "stop", "9"),  # states nothing; a number is asked for, and this is the last
        ("so we get 12 - 3 = 9", "length", None),  # cut: it was on its way
        (r"\boxed{9} and then 10 and 11 and", "length", "9"),
        ("", "stop", None),
        ("  \n", "stop", None),
    ],
)
def test_the_answer_of_a_rollout(text: str, reason: str, answer: str | None) -> None:
    assert rollout_answer(Prefix(TRAJECTORY, 1), Completion(text, reason)) == answer


def test_a_rollout_that_has_nothing_to_add_has_the_answer_of_its_last_step() -> None:
    stated = Trajectory("Q?", (r"it is \boxed{7}", "Check: fine"), "7")
    assert rollout_answer(Prefix(stated, 1), Completion("", "stop")) == "7"
    assert rollout_answer(Prefix(stated, 1), Completion("", "length")) is None
    assert rollout_answer(Prefix(stated, 2), Completion("", "stop")) is None


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ("B", "The answer is (B).", "The answer is (C)."),
        ("true", "The answer is: True", "The answer is: False"),
        ("uncertain", "The answer is: Unknown", "The answer is: True"),
        (r"\frac{1}{2}", r"\boxed{0.5}", r"\boxed{2}"),
        ("Paris", "The answer is paris.", "The answer is London."),
        (r"2\sqrt{3}", r"\boxed{\sqrt{12}}", r"\boxed{\sqrt{13}}"),
    ],
)
def test_answers_of_all_kinds_are_graded(gold: str, right: str, wrong: str) -> None:
    sampler = ScriptedSampler(lambda _: [right, wrong, right])
    (value,) = roller(sampler, n=3).values([Prefix(Trajectory("Q?", ("a", "b"), gold), 1)])
    assert value == PrefixValue(n=3, right=2, cost=Cost(30, 5, 0.5))


def test_what_the_grader_cannot_decide_is_counted_and_not_right() -> None:
    class Stuck(Grader):
        def compare(self, a: str, b: str) -> Verdict:
            return Verdict.UNDECIDED if "loop" in a else super().compare(a, b)

    sampler = ScriptedSampler(lambda _: [r"\boxed{loop}", r"\boxed{7}"])
    (value,) = Roller(sampler, RolloutSettings(n=2), grader=Stuck()).values([Prefix(TRAJECTORY, 1)])
    assert (value.n, value.right, value.undecided, value.soft) == (2, 1, 1, 0.5)


def test_a_real_answer_that_hangs_the_grader_is_undecided() -> None:
    hang = r"\boxed{" + "^".join(["9"] * 12) + r"+\sqrt{2}}"
    sampler = ScriptedSampler(lambda _: [hang, r"\boxed{3\sqrt{3}}"])
    trajectory = Trajectory("Q?", ("a", "b"), r"\sqrt{27}")
    with Grader(seconds=0.5) as grader:
        (value,) = Roller(sampler, RolloutSettings(n=2), grader=grader).values([Prefix(trajectory, 1)])
    assert (value.right, value.undecided) == (1, 1)


def test_rollouts_cut_at_the_limit_are_counted() -> None:
    endless = Completion("and again " * 100, "length")
    sampler = ScriptedSampler(lambda _: [endless, endless, r"\boxed{7}"])
    (value,) = roller(sampler, n=3).values([Prefix(TRAJECTORY, 1)])
    assert value == PrefixValue(n=3, right=1, unanswered=2, cut=2, cost=Cost(30, 5, 0.5))


def test_a_prompt_that_failed_says_why_and_the_others_go_on() -> None:
    sampler = ScriptedSampler(lambda text: "server: 500" if text.endswith("2 + 2 = 4\n\n") else [r"\boxed{7}"])
    failed, fine = roller(sampler, n=1).values([Prefix(TRAJECTORY, 1), Prefix(TRAJECTORY, 2)])
    assert (failed.error, failed.n, failed.cost.seconds) == ("server: 500", 0, 0.5)
    assert fine.right == 1


def test_too_few_completions_are_an_error() -> None:
    (value,) = roller(ScriptedSampler(lambda _: [r"\boxed{7}"]), n=2).values([Prefix(TRAJECTORY, 1)])
    assert value.error == "the engine gave 1 completions, 2 were asked for"


def test_what_is_in_the_store_is_not_sampled_again() -> None:
    store = Memory()
    first = roller(ScriptedSampler(lambda _: [r"\boxed{7}"]), store, n=1)
    before = first.values([Prefix(TRAJECTORY, 1)])
    again = ScriptedSampler(lambda _: [r"\boxed{8}"])
    after = roller(again, store, n=1).values([Prefix(TRAJECTORY, 1), Prefix(TRAJECTORY, 2)])
    assert after[0] == before[0]
    assert again.calls == [1]
    assert set(store.kept) == {("policy", "sum", 1), ("policy", "sum", 2)}


def test_failures_are_not_kept() -> None:
    store = Memory()
    roller(ScriptedSampler(lambda _: "server: 500"), store).values([Prefix(TRAJECTORY, 1)])
    assert not store.kept


def test_an_engine_that_dies_leaves_what_was_finished() -> None:
    store, asked = Memory(), []

    def script(text: str) -> list[str]:
        asked.append(text)
        if len(asked) == 3:
            raise RuntimeError("gone")
        return [r"\boxed{7}"]

    with pytest.raises(RuntimeError, match="gone"):
        roller(ScriptedSampler(script), store, n=1).values([Prefix(TRAJECTORY, i) for i in (0, 1, 2)])
    assert set(store.kept) == {("policy", "sum", 0), ("policy", "sum", 1)}


def test_no_rollouts_are_refused() -> None:
    with pytest.raises(InputError, match="must be 1 or more, not 0"):
        RolloutSettings(n=0)


def test_a_model_without_a_chat_template_is_refused_at_once() -> None:
    class Plain(ScriptedSampler):
        def dialog(self, request: str, reply: str) -> str:
            raise InputError("no chat template")

    with pytest.raises(InputError, match="no chat template"):
        roller(Plain(lambda _: [""]))
    roller(Plain(lambda _: [""]), style="plain")
