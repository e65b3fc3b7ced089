"""The labeler against values worked out by hand on the toy model, and the identities of its formula."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpmi import CPMI, CPMISettings, NegativeSettings, StepRewards, Template, Trajectory
from cpmi.models.toy import ToyModel
from cpmi.prompts import CUES
from cpmi.protocols import Truncation
from cpmi.records import Cost
from scripted import ScriptedSampler

# One template of five bytes before the steps ("q\n" would do; no byte of it is a digit or "="), target "=" + answer.
TEMPLATE = Template("{question}?", "={answer}")
OWN = NegativeSettings(count=1, choices=((("own", None),),))
BASE = CPMISettings(templates=(TEMPLATE,), negatives=OWN)


def label(trajectory: Trajectory, settings: CPMISettings = BASE) -> StepRewards:
    (record,) = CPMI(ToyModel(), settings).rewards([trajectory])
    return record


def p(count: int, length: int) -> float:
    """The toy model's log-probability of a byte seen ``count`` times in a context of ``length`` bytes."""
    return math.log((1 + count) / (256 + length))


# Context "q?" is 2 bytes; the step "7" + blank line is 3 bytes, so "with" the first step the context has 5.
SEVEN = Trajectory("q", ("7", "="), gold_answer="7", final_answer="3", id="seven")
WITHOUT = {answer: (p(0, 2) + p(0, 3)) for answer in "73"}  # "=" then the digit, neither seen before
WITH_7 = {"7": p(0, 5) + p(1, 6), "3": p(0, 5) + p(0, 6)}
WITH_EQUALS = {answer: p(1, 5) + p(0, 6) for answer in "73"}


def test_marginal_worked_by_hand() -> None:
    """Mean over the two target tokens; the step "7" helps 7 against 3, the step "=" helps neither more."""
    record = label(SEVEN)
    assert record.error is None
    gold = [(WITH_7["7"] - WITHOUT["7"]) / 2, (WITH_EQUALS["7"] - WITHOUT["7"]) / 2]
    wrong = [(WITH_7["3"] - WITHOUT["3"]) / 2, (WITH_EQUALS["3"] - WITHOUT["3"]) / 2]
    np.testing.assert_allclose(record.terms["gold"], gold, rtol=1e-12)
    np.testing.assert_allclose(record.terms["wrong"], wrong, rtol=1e-12)
    np.testing.assert_allclose(record.rewards, [math.log(2) / 2, 0.0], rtol=1e-12, atol=1e-15)
    assert record.details == {"answers": ["7", "3"], "kinds": ["gold", "own"]}
    assert record.source == "cpmi"


def test_cumulative_and_leave_one_out_worked_by_hand() -> None:
    # The first step's context has 5 bytes; "=" and its blank line make 8.
    both = {"7": p(1, 8) + p(1, 9), "3": p(1, 8) + p(0, 9)}
    cumulative = label(SEVEN, replace(BASE, context="cumulative"))
    np.testing.assert_allclose(
        cumulative.terms["gold"], [(WITH_7["7"] - WITHOUT["7"]) / 2, (both["7"] - WITH_7["7"]) / 2], rtol=1e-12
    )
    leave_one_out = label(SEVEN, replace(BASE, context="leave-one-out"))
    np.testing.assert_allclose(
        leave_one_out.terms["gold"], [(both["7"] - WITH_EQUALS["7"]) / 2, (both["7"] - WITH_7["7"]) / 2], rtol=1e-12
    )
    np.testing.assert_allclose(leave_one_out.rewards, [math.log(2) / 2, 0.0], rtol=1e-12, atol=1e-15)


def test_sum_weight_and_span_worked_by_hand() -> None:
    gold, wrong = WITH_7["7"] - WITHOUT["7"], WITH_7["3"] - WITHOUT["3"]
    assert label(SEVEN, replace(BASE, normalization="sum")).rewards[0] == pytest.approx(gold - wrong, rel=1e-12)
    assert label(SEVEN, replace(BASE, weight=0.25)).rewards[0] == pytest.approx((gold - 0.25 * wrong) / 2, rel=1e-12)
    assert label(SEVEN, replace(BASE, span="answer")).terms["gold"][0] == pytest.approx(p(1, 6) - p(0, 3), rel=1e-12)


def test_mean_and_hardest_of_two_wrong_answers_worked_by_hand() -> None:
    """Without the step 33 and 4 are alike per token; the step "3" makes 33 the hardest of the two."""
    trajectory = Trajectory("q", ("3",), gold_answer="7", id="x")
    negatives = NegativeSettings(count=2, choices=((("sibling", None),),))

    class Siblings:
        def others(self, trajectory: Trajectory) -> list[str]:
            return ["33", "4"]

    scores = {
        "with": {"33": (p(1, 6) + p(2, 7)), "4": p(0, 6)},
        "without": {"33": (p(0, 3) + p(1, 4)), "4": p(0, 3)},
    }
    base = replace(BASE, negatives=negatives, span="answer")
    (mean,) = CPMI(ToyModel(), base, siblings=Siblings()).rewards([trajectory])  # type: ignore[arg-type]
    gains = [
        (scores["with"]["33"] - scores["without"]["33"]) / 2,
        scores["with"]["4"] - scores["without"]["4"],
    ]
    assert mean.terms["wrong"][0] == pytest.approx(sum(gains) / 2, rel=1e-12)
    (hardest,) = CPMI(ToyModel(), replace(base, contrast="hardest"), siblings=Siblings()).rewards([trajectory])  # type: ignore[arg-type]
    levels = [max(scores[c]["33"] / 2, scores[c]["4"]) for c in ("with", "without")]
    assert levels == [scores["with"]["33"] / 2, scores["without"]["33"] / 2]
    assert hardest.terms["wrong"][0] == pytest.approx(levels[0] - levels[1], rel=1e-12)


def test_templates_are_averaged() -> None:
    other = Template("{question}, in short:", "so {answer}")
    alone = [label(SEVEN, replace(BASE, templates=(template,))).rewards for template in (TEMPLATE, other)]
    together = label(SEVEN, replace(BASE, templates=(TEMPLATE, other))).rewards
    np.testing.assert_allclose(together, np.mean(alone, axis=0), rtol=1e-12)


def test_truncation_reaches_the_engine() -> None:
    """After "q?7" and a blank line the likeliest byte is the line break; the scored byte is kept beside it."""
    record = label(SEVEN, replace(BASE, truncation=Truncation(top_k=1), span="answer"))
    with_7 = math.log(2 / (3 + 2))  # "\n" (1+2) stays, "7" (1+1) is added
    without = math.log(1 / (2 + 1))  # "=" or an earlier byte (1+1) stays, "7" (1+0) is added
    assert record.terms["gold"][0] == pytest.approx(with_7 - without, rel=1e-12)


def test_without_negatives_it_is_plain_mutual_information_and_says_so() -> None:
    record = label(replace(SEVEN, final_answer="7"))
    assert record.rewards == record.terms["gold"]
    assert record.terms["wrong"] == (0.0, 0.0)
    assert record.details["answers"] == ["7"]
    assert record.details["contrast"] == "none: no wrong answer was found"


BAD = {
    "no steps": (Trajectory("q", (), "7"), "no steps"),
    "an empty step": (Trajectory("q", ("a", " \n"), "7"), "step 1 (from 0) is empty"),
    "no gold answer": (Trajectory("q", ("a",)), "no gold answer"),
    "a blank gold answer": (Trajectory("q", ("a",), " "), "no gold answer"),
}


@pytest.mark.parametrize(("trajectory", "message"), BAD.values(), ids=BAD.keys())
def test_one_bad_trajectory_fails_alone(trajectory: Trajectory, message: str) -> None:
    before, bad, after = CPMI(ToyModel(), BASE).rewards([SEVEN, trajectory, replace(SEVEN, id="other")])
    assert bad.error is not None
    assert message in bad.error
    assert bad.rewards == ()
    assert before.rewards == after.rewards == label(SEVEN).rewards


def test_wrong_answers_that_cannot_be_sampled_fail_the_trajectory() -> None:
    """A label without contrast, or with the wrong answers of another kind, would be another label."""
    sampler = ScriptedSampler(lambda _: "server: HTTP 500")
    chosen = replace(BASE, negatives=NegativeSettings.parse("sampled,rule"))
    (record,) = CPMI(ToyModel(), chosen, sampler=sampler).rewards([SEVEN])
    assert record.error == "no wrong answers sampled: server: HTTP 500"
    assert record.rewards == ()
    assert record.cost == Cost(seconds=0.5)


def test_costs_are_the_engine_s() -> None:
    """Opening 2, "=7" and "=3" 3 nodes; step one 3 and its targets 3; step two shares its "=", so 2, and 3."""
    assert label(SEVEN).cost.tokens_scored == 2 + 3 + (3 + 3) + (2 + 3)
    assert label(SEVEN).cost.tokens_generated == 0


steps = st.lists(st.text("0123456789ab =", min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=4)
answers = st.integers(0, 999).map(str)


@settings(deadline=None, max_examples=30)
@given(steps=steps, gold=answers, wrong=answers, contrast=st.sampled_from(["mean", "hardest"]))
def test_cumulative_rewards_telescope_to_the_gain_of_the_whole_solution(
    steps: list[str], gold: str, wrong: str, contrast: str
) -> None:
    """All steps as one step gain what the steps gain one by one, up to the blank lines that join them."""
    chosen = replace(
        BASE, context="cumulative", contrast="hardest" if contrast == "hardest" else "mean", templates=CUES
    )
    cleaned = [step.strip() for step in steps]
    parts = label(Trajectory("q", tuple(cleaned), gold, wrong), chosen)
    whole = label(Trajectory("q", ("\n\n".join(cleaned),), gold, wrong), chosen)
    assert parts.error is None
    assert sum(parts.rewards) == pytest.approx(whole.rewards[0], abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(4)), st.integers(1, 4))
def test_order_and_batches_change_nothing(order: list[int], size: int) -> None:
    some = [Trajectory(f"q{i}", tuple("abc"[: i % 3 + 1]), str(i), str(i + 1), id=str(i)) for i in range(4)]
    labeler = CPMI(ToyModel(), BASE)
    alone = {t.id: label(t).rewards for t in some}
    shuffled = [some[i] for i in order]
    for start in range(0, 4, size):
        for record in labeler.rewards(shuffled[start : start + size]):
            assert record.rewards == alone[record.trajectory_id]
