"""Monte Carlo, process advantage and outcome labels."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpmi.errors import InputError
from cpmi.grader import Grader, Verdict
from cpmi.labelers.monte_carlo import MonteCarlo, MonteCarloSettings
from cpmi.labelers.outcome import Outcome
from cpmi.labelers.pav import PAV, PAVSettings, best_of
from cpmi.labelers.rollouts import PrefixValue, RolloutSettings
from cpmi.records import Cost, Trajectory
from scripted import ScriptedSampler


def trajectory(steps: int, *, final: str = "0", name: str = "t") -> Trajectory:
    """Steps ``s1``, ``s2``...; the gold answer is 7."""
    return Trajectory(f"Question {name}?", tuple(f"s{i}" for i in range(1, steps + 1)), "7", final, id=name)


def right_until(right: dict[int, int], n: int) -> Callable[[str], list[str]]:
    """A script: from a prefix of t steps, ``right[t]`` of n rollouts are right."""

    def script(text: str) -> list[str]:
        count = right[text.count("\n\ns") + text.count(">s")]
        return [r"\boxed{7}"] * count + [r"\boxed{8}"] * (n - count)

    return script


def mc(script: Callable[[str], Any], n: int = 4, **settings: Any) -> tuple[MonteCarlo, ScriptedSampler]:
    sampler = ScriptedSampler(script)
    return MonteCarlo(sampler, MonteCarloSettings(RolloutSettings(n=n), **settings)), sampler


# --- Monte Carlo ----------------------------------------------------------------------------------------------------


def test_soft_and_hard_values() -> None:
    right = {1: 4, 2: 3, 3: 1, 4: 0}
    (soft,) = mc(right_until(right, 4))[0].rewards([trajectory(5)])
    (hard,) = mc(right_until(right, 4), value="hard")[0].rewards([trajectory(5)])
    assert soft.rewards == (1.0, 0.75, 0.25, 0.0, 0.0)
    assert hard.rewards == (1.0, 1.0, 1.0, 0.0, 0.0)
    assert soft.details["right"] == [4, 3, 1, 0, 0]
    assert soft.details["n"] == [4, 4, 4, 4, 1]  # the last is graded, not rolled out
    assert (soft.cost.tokens_generated, soft.cost.tokens_scored) == (160, 20)


def test_every_trajectory_gets_its_own_values() -> None:
    labeler, sampler = mc(lambda text: [r"\boxed{7}" if "Question a?" in text else ""] * 4)
    right, none, wrong = labeler.rewards(
        [trajectory(2, name="a", final="7"), Trajectory("Q?", (), "7", id="none"), trajectory(3, name="b")]
    )
    assert right.rewards == (1.0, 1.0)
    assert none.error == "no steps"
    assert wrong.rewards == (0.0, 0.0, 0.0)
    assert sampler.calls == [3]


def test_a_failed_prefix_fails_its_trajectory_alone() -> None:
    labeler, _ = mc(lambda text: "server: 500" if "Question a?" in text and "s2" in text else [""] * 4)
    failed, fine = labeler.rewards([trajectory(3, name="a"), trajectory(3, name="b")])
    assert failed.error == "rollouts failed, prefix of 2: server: 500"
    assert failed.cost.tokens_generated == 40  # what the first prefix cost
    assert fine.rewards == (0.0, 0.0, 0.0)


def test_the_engines_seconds_are_shared_out_and_the_labelers_own_come_on_top() -> None:
    labeler, _ = mc(lambda _: [""] * 4)
    (record,) = labeler.rewards([trajectory(3)])
    assert record.cost.seconds == pytest.approx(1.0, abs=0.5)  # two prefixes at a pretended 0.5 s


@given(st.integers(1, 12), st.integers(0, 12))
def test_binary_search_finds_what_looking_everywhere_finds(steps: int, alive: int) -> None:
    """Where no prefix after a dead one is alive, hard labels are the same, for far fewer rollouts."""
    alive = min(alive, steps)
    final = "7" if alive == steps else "0"
    right = {length: int(length <= alive) for length in range(steps + 1)}
    everywhere, _ = mc(right_until(right, 1), n=1, value="hard")
    searching, sampler = mc(right_until(right, 1), n=1, value="hard", search="binary")
    (all_of_it,), (searched,) = (
        everywhere.rewards([trajectory(steps, final=final)]),
        searching.rewards([trajectory(steps, final=final)]),
    )
    assert searched.rewards == all_of_it.rewards == (1.0,) * alive + (0.0,) * (steps - alive)
    assert len(sampler.asked) <= math.ceil(math.log2(steps)) + (steps == 1)


def test_binary_search_asks_nothing_where_the_outcome_is_right() -> None:
    labeler, sampler = mc(lambda _: pytest.fail("asked"), value="hard", search="binary")
    (record,) = labeler.rewards([trajectory(6, final="7")])
    assert record.rewards == (1.0,) * 6
    assert not sampler.asked


def test_binary_searches_of_many_trajectories_share_their_rounds() -> None:
    labeler, sampler = mc(lambda _: [r"\boxed{7}"] * 4, value="hard", search="binary")
    labeler.rewards([trajectory(8, name=name) for name in "abcde"])
    assert sampler.calls == [5, 5, 5]  # after 4, 6 and 7 steps
    record = labeler.rewards([trajectory(8)])[0]
    assert record.rewards == (1.0,) * 7 + (0.0,)
    assert record.details["prefixes"] == [4, 6, 7, 8]


def test_a_failure_ends_its_search() -> None:
    labeler, sampler = mc(lambda _: "server: 500", value="hard", search="binary")
    (record,) = labeler.rewards([trajectory(8)])
    assert record.error == "rollouts failed, prefix of 4: server: 500"
    assert len(sampler.asked) == 1


def test_soft_values_by_binary_search_are_refused() -> None:
    with pytest.raises(InputError, match="binary search gives hard labels"):
        MonteCarloSettings(search="binary")


def test_a_monte_carlo_label_describes_itself() -> None:
    described = mc(lambda _: [""])[0].describe()
    assert described["engine"] == {"model": "scripted"}
    assert described["settings"]["rollouts"]["sampling"]["temperature"] == 0.6


# --- process advantage ----------------------------------------------------------------------------------------------


def test_process_advantage_by_hand() -> None:
    """Policy 0.75, 0.25, 0; prover from the empty prefix 0.5, 1, 0.5, 0: advantages 0.5, -0.5, -0.5; alpha 2."""
    policy = ScriptedSampler(right_until({1: 3, 2: 1}, 4), "policy")
    prover = ScriptedSampler(right_until({0: 1, 1: 2, 2: 1}, 2), "prover")
    settings = PAVSettings(RolloutSettings(n=4), 2.0, None, RolloutSettings(n=2))
    (record,) = PAV(policy, settings, prover=prover).rewards([trajectory(3)])
    assert record.terms == {"policy": (0.75, 0.25, 0.0), "advantage": (0.5, -0.5, -0.5)}
    assert record.rewards == (1.75, -0.75, -1.0)
    assert record.details["prover_at_start"] == 0.5
    assert (len(policy.asked), len(prover.asked)) == (2, 3)  # the whole solution is graded; the policy needs no start
    assert record.cost.tokens_generated == 2 * 40 + 3 * 20


def test_best_of_k_is_read_off_the_policys_rollouts() -> None:
    """Q of Best-of-2 with 1 of 4 right: 1 - C(3,2)/C(4,2) = 0.5; with 2 of 4: 1 - 1/6."""
    sampler = ScriptedSampler(right_until({0: 2, 1: 1, 2: 0}, 4))
    settings = PAVSettings(RolloutSettings(n=4), 1.0, 2)
    (record,) = PAV(sampler, settings).rewards([trajectory(3, final="7")])
    assert record.details["prover_at_start"] == pytest.approx(5 / 6)
    assert record.terms["advantage"] == pytest.approx((0.5 - 5 / 6, -0.5, 1.0))
    assert record.terms["policy"] == (0.25, 0.0, 1.0)
    assert record.cost.tokens_generated == 3 * 40  # paid once


@given(st.integers(1, 9), st.data())
def test_best_of_k_grows_with_k_and_with_right_rollouts(n: int, data: st.DataObject) -> None:
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    value = best_of(PrefixValue(n=n, right=right), k)
    assert best_of(PrefixValue(n=n, right=right), 1) == pytest.approx(right / n)
    assert right / n - 1e-12 <= value <= 1
    assert (value == 0) == (right == 0)
    assert best_of(PrefixValue(n=n, right=n), k) == 1


def test_a_failing_prover_is_named() -> None:
    policy, prover = ScriptedSampler(lambda _: [""] * 8, "a"), ScriptedSampler(lambda _: "too long", "b")
    (record,) = PAV(policy, PAVSettings(best_of=None), prover=prover).rewards([trajectory(2)])
    assert record.error == "rollouts of the prover failed, prefix of 0: too long"
    assert record.cost.tokens_generated == 80


@pytest.mark.parametrize("own", [True, False])
def test_a_prover_that_is_the_policy_is_warned_of(own: bool, caplog: pytest.LogCaptureFixture) -> None:
    policy, prover = ScriptedSampler(lambda _: [""], "a"), ScriptedSampler(lambda _: [""], "a" if own else "b")
    with caplog.at_level(logging.WARNING, "cpmi"):
        PAV(policy, PAVSettings(best_of=None), prover=prover)
    assert ("the prover is the policy itself" in caplog.text) == own


def test_best_of_one_is_the_policy_itself(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cpmi"):
        PAV(ScriptedSampler(lambda _: [""]), PAVSettings(best_of=1))
    assert "the prover is the policy itself" in caplog.text


@pytest.mark.parametrize("settings", [{"alpha": math.inf}, {"best_of": 0}, {"best_of": 9}])
def test_process_advantage_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        PAVSettings(**settings)


def test_a_prover_is_one_thing_or_the_other() -> None:
    sampler = ScriptedSampler(lambda _: [""])
    with pytest.raises(InputError, match="name one of them"):
        PAV(sampler, PAVSettings(), prover=sampler)
    with pytest.raises(InputError, match="name one of them"):
        PAV(sampler, PAVSettings(best_of=None))


# --- outcome --------------------------------------------------------------------------------------------------------


def test_outcome_copies_the_verdict_to_every_step() -> None:
    right, wrong, none = Outcome().rewards(
        [trajectory(3, final="7.0"), trajectory(2, final="8"), Trajectory("Q?", ("no idea",), "an apple")]
    )
    assert (right.rewards, wrong.rewards, none.rewards) == ((1.0, 1.0, 1.0), (0.0, 0.0), (0.0,))
    assert right.cost.tokens_generated == right.cost.tokens_scored == 0


def test_an_outcome_that_cannot_be_decided_is_an_error() -> None:
    class Stuck(Grader):
        def compare(self, a: str, b: str) -> Verdict:
            del a, b
            return Verdict.UNDECIDED

    (record,) = Outcome(grader=Stuck()).rewards([trajectory(2)])
    assert record.error is not None
    assert record.error.startswith("the grader could not decide")
    assert record.cost != Cost()
