"""Best-of-N against plain loops over all subsets, against numbers worked by hand, and against real samples."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpmi import InputError, Trajectory, write_records
from cpmi.aggregation import AGGREGATIONS
from cpmi.benchmarks.best_of_n import BestOfNSettings, Source, evaluate, parse_sizes, table
from cpmi.benchmarks.choosing import Pool, subsets_of
from cpmi.grader import Grader
from cpmi.results import EvalResult
from cpmi.selection import evaluate_best_of_n, grade

REAL = Path(__file__).resolve().parents[2] / "shared/data/best_of_n/qwen25math_math100_x8.jsonl"


def pool(answers: Sequence[str | None], gold: str = "a", name: str = "q", subset: str = "") -> Pool:
    """Candidates q/0, q/1... with these answers; equal letters are equal answers."""
    classes = [-1 if answer is None else ord(answer) for answer in answers]
    ids = tuple(f"{name}/{i}" for i in range(len(answers)))
    return Pool(name, ids, np.array([answer == gold for answer in answers]), np.array(classes), subset)


def whole(scores: dict[str, float]) -> Source:
    return Source("tag:x", {i: (score,) for i, score in scores.items()}, whole=True)


def by_rule(results: Sequence[EvalResult], subset: str = "all") -> dict[str, dict[str, float]]:
    """The values of the metrics, by rule."""
    return {
        str(each.settings["rule"]): {
            name: found.value for name, found in each.metrics.items() if found.value is not None
        }
        for each in results
        if each.subset == subset
    }


def quick(**options: object) -> BestOfNSettings:
    return BestOfNSettings(**({"resamples": 2, "subsets": 10**6} | options))  # type: ignore[arg-type]


# --- against plain loops --------------------------------------------------------------------------------------------


def slow(each: Pool, scores: dict[str, float], n: int, rule: str, temperature: float, seed: int) -> tuple[float, float]:
    """Accuracy and ties of one rule over all subsets of one pool."""
    kinds = {i: (int(c), bool(r)) for i, c, r in zip(each.ids, each.classes, each.right, strict=True)}
    place = {i: hashlib.sha256(f"{seed}\0{i}".encode()).digest() for i in each.ids}
    right, ties, count = 0, 0, 0
    for drawn in itertools.combinations(each.ids, min(n, len(each))):
        count += 1
        able = [i for i in drawn if kinds[i][0] >= 0 and (rule == "majority" or i in scores)]
        if not able:
            continue
        if rule == "best-of-n":
            top = [i for i in able if scores[i] == max(scores[j] for j in able)]
            ties += len({kinds[i] for i in top}) > 1
        else:
            votes: dict[int, float] = {}
            most = max((scores[i] for i in able), default=0) if rule == "softmax" else 0
            for i in able:
                weight = {"majority": 1.0, "weighted": scores.get(i, 0.0)}.get(rule)
                if weight is None:
                    weight = math.exp((scores[i] - most) / temperature)
                votes[kinds[i][0]] = votes.get(kinds[i][0], 0.0) + weight
            winners = [c for c in votes if votes[c] >= max(votes.values()) * (1 - 1e-12)]
            ties += len(winners) > 1
            top = [i for i in able if kinds[i][0] in winners]
        right += kinds[min(top, key=lambda i: place[i])][1]
    return right / count, ties / count


answers = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=6)
# few different ones, so that there are ties; 0 and huge ones, where a softmax must not vanish
some_scores = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.5, 1.0, 2000.0, None]), min_size=6, max_size=6)


@settings(max_examples=150, deadline=None)
@given(answers, some_scores, st.sampled_from([0.5, 1.0, 3.0]), st.integers(0, 3))
def test_every_rule_is_what_plain_loops_say(
    given_answers: list[str | None], given_scores: list[float | None], temperature: float, seed: int
) -> None:
    one = pool(given_answers)
    scores = {i: s for i, s in zip(one.ids, given_scores, strict=False) if s is not None}
    found = by_rule(evaluate([one], [whole(scores)], quick(temperature=temperature, seed=seed)))
    for n in range(1, len(one) + 1):
        for rule in ("majority", "best-of-n", "weighted", "softmax"):
            accuracy, ties = slow(one, scores, n, rule, temperature, seed)
            assert found[rule][f"accuracy@{n}"] == pytest.approx(accuracy, abs=1e-9), (rule, n)
            assert found[rule][f"ties@{n}"] == pytest.approx(ties, abs=1e-9), (rule, n)
            gain = found[rule][f"accuracy@{n}"] - found["majority"][f"accuracy@{n}"]
            assert found[rule].get(f"gain@{n}", 0.0) == pytest.approx(gain, abs=1e-9)
        drawn = [any(chosen) for chosen in itertools.combinations(one.right.tolist(), n)]
        assert found["oracle"][f"accuracy@{n}"] == pytest.approx(sum(drawn) / len(drawn))
        assert found["one sample"][f"accuracy@{n}"] == pytest.approx(one.right.mean())


@settings(max_examples=60, deadline=None)
@given(answers, st.lists(st.sampled_from([0.1, 0.4, 0.4, 0.9]), min_size=6, max_size=6))
def test_identities(given_answers: list[str | None], given_scores: list[float]) -> None:
    one = pool(given_answers)
    largest = len(one)
    found = by_rule(evaluate([one], [whole(dict(zip(one.ids, given_scores, strict=False)))], quick()))
    for figures in found.values():
        assert figures["accuracy@1"] == pytest.approx(one.right.mean())  # one candidate: no choice
        for n in range(1, largest + 1):
            assert figures[f"accuracy@{n}"] <= found["oracle"][f"accuracy@{n}"] + 1e-12
    equal = by_rule(evaluate([one], [whole(dict.fromkeys(one.ids, 0.3))], quick()))
    perfect = by_rule(evaluate([one], [whole(dict(zip(one.ids, map(float, one.right), strict=True)))], quick()))
    for n in range(1, largest + 1):
        for rule in ("weighted", "softmax"):
            assert equal[rule][f"accuracy@{n}"] == equal["majority"][f"accuracy@{n}"]
            assert equal[rule][f"ties@{n}"] == equal["majority"][f"ties@{n}"]
        assert perfect["best-of-n"][f"accuracy@{n}"] == pytest.approx(found["oracle"][f"accuracy@{n}"])


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_file_changes_nothing(rng: random.Random) -> None:
    """ "20%" is "20" and "0.2", which are not the same: who comes first matters, so that it must not be the file's."""
    texts = ["20", "20%", "0.2", "7", "20%", "7", "0.2", "20"]
    candidates = [
        Trajectory(f"Q{q}?", ("s",), "20", a, tags={"x": str((i * q) % 3), "subset": f"s{q % 2}"}, id=f"{q}/{i}")
        for q in range(1, 5)
        for i, a in enumerate(texts[q:])
    ]
    shuffled = list(candidates)
    rng.shuffle(shuffled)
    how = BestOfNSettings(resamples=10, subsets=5)
    with Grader() as grader:
        first, second = (
            evaluate(grade(order, grader).pools, [whole({t.id: float(t.tags["x"]) for t in order})], how)
            for order in (candidates, shuffled)
        )
    assert first == second


# --- by hand --------------------------------------------------------------------------------------------------------


def test_three_candidates_by_hand() -> None:
    """Answers b, a, a (a is right), scores 0.9, 0.5, 0.3.

    N = 2, pairs 01, 02, 12: best-of-n b, b, a: 1/3; weighted b, b, a; oracle 1; majority ties in the first two.
    N = 3: best-of-n b; weighted b 0.9, a 0.8; softmax e^0.9 = 2.46 to e^0.5 + e^0.3 = 3.0: a; majority a.
    """
    found = by_rule(evaluate([pool("baa")], [whole({"q/0": 0.9, "q/1": 0.5, "q/2": 0.3})], quick()))
    assert found["oracle"]["accuracy@2"] == 1.0
    assert found["best-of-n"]["accuracy@2"] == found["weighted"]["accuracy@2"] == pytest.approx(1 / 3)
    assert found["majority"]["ties@2"] == pytest.approx(2 / 3)
    assert [found[rule]["accuracy@3"] for rule in ("best-of-n", "weighted", "softmax", "majority")] == [0, 0, 1, 1]
    assert found["best-of-n"]["gain@3"] == -1.0
    assert found["one sample"]["accuracy@3"] == pytest.approx(2 / 3)


def test_a_low_temperature_makes_softmax_best_of_n() -> None:
    results = evaluate([pool("baa")], [whole({"q/0": 0.9, "q/1": 0.5, "q/2": 0.3})], quick(temperature=0.001))
    found = by_rule(results)
    assert [found["softmax"][f"accuracy@{n}"] for n in (1, 2, 3)] == pytest.approx([2 / 3, 1 / 3, 0])


def test_aggregations_of_steps() -> None:
    """Right: 0.5, 0.9 (last 0.9, min 0.5, prod 0.45, mean 0.7, sum 1.4); wrong: 0.6 x 3 (0.6, 0.6, 0.216, 0.6, 1.8)."""
    source = Source("run", {"q/0": (0.5, 0.9), "q/1": (0.6, 0.6, 0.6)})
    results = evaluate([pool("ab")], [source], quick())
    best = {each.settings["aggregation"]: each for each in results if each.settings["rule"] == "best-of-n"}
    right = {str(name): each.metrics["accuracy@2"].value for name, each in best.items()}
    assert right == {"last": 1, "min": 0, "prod": 1, "mean": 1, "sum": 0}
    assert [*right] == [*AGGREGATIONS]


def test_a_product_of_many_small_numbers_is_not_0() -> None:
    """1e-2 to the 300th and 2e-2 to the 300th are both 0 as floats."""
    source = Source("run", {"q/0": (0.02,) * 300, "q/1": (0.01,) * 300})
    found = by_rule(evaluate([pool("ab")], [source], quick(aggregations=("prod",))))
    for rule in ("best-of-n", "weighted"):
        assert (found[rule]["accuracy@2"], found[rule]["ties@2"]) == (1, 0)
    assert found["softmax"]["ties@2"] == 1  # e^0 each


def test_what_is_not_defined_is_left_out_with_a_note() -> None:
    results = evaluate([pool("ab")], [Source("run", {"q/0": (-0.5, 1.5), "q/1": (0.5, 0.5)})], quick())
    rules = [(each.settings["aggregation"], each.settings["rule"]) for each in results[3:]]
    assert ("min", "weighted") not in rules
    assert ("last", "weighted") in rules
    assert ("min", "softmax") in rules
    assert not [rule for rule in rules if rule[0] == "prod"]
    assert results[3].notes == (
        "weighted is left out for min: there are scores below 0, which are no weights; see softmax",
        "prod is left out: there are step rewards below 0 or above 1, which are no probabilities",
    )
    with pytest.raises(InputError, match=r"run: prod is left out.*choose another aggregation"):
        evaluate([pool("ab")], [Source("run", {"q/0": (2.0,)})], quick(aggregations=("prod",)))


def test_candidates_without_rewards_are_never_chosen() -> None:
    """Of b (no rewards), a (0.0), b (no rewards): a wins where it is drawn, though it weighs 0; else all is lost."""
    results = evaluate([pool("bab")], [whole({"q/1": 0.0})], quick())
    found = by_rule(results)
    for rule in ("best-of-n", "weighted", "softmax"):
        assert [found[rule][f"accuracy@{n}"] for n in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert results[3].n_unscored == 2
    assert results[3].notes == (
        "2 candidates have no rewards: they cannot be chosen, and have no vote in weighted and softmax",
        "no candidate drawn has both rewards and an answer, which counts as wrong: 66.7% at N = 1 and 0.0% at N = 3",
    )


def test_short_questions_use_all_they_have() -> None:
    results = evaluate([pool("aab", name="one"), pool("b", name="two")], [], quick())
    found = by_rule(results)
    assert [found["oracle"][f"accuracy@{n}"] for n in (1, 2, 3)] == pytest.approx([1 / 3, 1 / 2, 1 / 2])
    assert results[0].notes == (
        "1 of 2 questions have fewer than 3 candidates, and use all they have",
        "all candidates are right at 0 of 2 questions, and wrong at 1: no rule can win or lose there",
    )
    assert results[0].cases == (
        {"id": "one", "pool": 3, "right": 2, "answers": 2}, {"id": "two", "pool": 1, "right": 0, "answers": 1},
    )  # fmt: skip


def test_subsets_of_the_data_have_their_own_results() -> None:
    results = evaluate([pool("a", name="one", subset="x"), pool("b", name="two", subset="all")], [], quick())
    assert by_rule(results)["one sample"]["accuracy@1"] == 0.5
    assert by_rule(results, "x")["one sample"]["accuracy@1"] == 1.0
    assert by_rule(results, "subset all")["one sample"]["accuracy@1"] == 0.0
    assert table(results)[0] == ["rule", "aggregation", "rewards", "subset", "N = 1", "ties at 1"]


def test_the_sample_of_subsets_is_a_fair_one() -> None:
    """Each of 20 candidates is in 5 of 20 draws of 5: over 4,000 draws 1,000 times, give or take 27."""
    one = pool("a" * 20)
    members = subsets_of(one, 5, 4000, 0)
    assert set(members.sum(axis=1)) == {5}
    assert abs(members.sum(axis=0) - 1000).max() < 5 * 27.4
    assert not np.array_equal(members, subsets_of(one, 5, 4000, 1))
    assert not np.array_equal(members, subsets_of(pool("a" * 20, name="other"), 5, 4000, 0))
    assert len(subsets_of(one, 19, 4000, 0)) == 20  # all of them


def test_a_sample_comes_near_to_all_subsets() -> None:
    one = pool("aaabbbbcc" + "a" * 4)
    scores = whole({i: (7 * k % 13) / 13 for k, i in enumerate(one.ids)})
    every, some = (by_rule(evaluate([one], [scores], quick(subsets=most))) for most in (10**6, 1000))
    for rule, figures in every.items():
        for name, value in figures.items():
            assert some[rule][name] == pytest.approx(value, abs=0.08), (rule, name)


def test_which_ns() -> None:
    assert BestOfNSettings().sizes_for(4) == (1, 2, 3, 4)
    assert BestOfNSettings().sizes_for(40) == (1, 2, 4, 8, 16, 32, 40)
    assert BestOfNSettings().sizes_for(64) == (1, 2, 4, 8, 16, 32, 64)
    assert BestOfNSettings(sizes=(8, 1, 8)).sizes_for(4) == (1, 8)
    assert parse_sizes("1, 2,4") == (1, 2, 4)
    columns, _ = table(evaluate([pool("a" * 15)], [], quick()))
    assert columns[3:] == ["N = 1", "N = 2", "N = 4", "N = 8", "N = 15", "ties at 15"]


@pytest.mark.parametrize("text", ["0", "-1", "two", "1,,2", "", "1.5", "²", "1" * 5000])
def test_an_n_that_is_none(text: str) -> None:
    with pytest.raises(InputError, match="N must be a number from 1"):
        parse_sizes(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (0,)}, "N must be a number from 1, not 0"),
        ({"aggregations": ("median",)}, "unknown aggregation 'median'.*last, min, prod, mean, sum"),
        ({"temperature": 0.0}, "the temperature must be a number above 0, not 0"),
        ({"temperature": math.nan}, "the temperature must be a number above 0, not nan"),
        ({"subsets": 0}, "there must be 1 subset or more, not 0"),
    ],
)
def test_settings_that_are_none(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quick(**options)


# --- grading --------------------------------------------------------------------------------------------------------


def candidate(i: str, answer: str | None, gold: str | None = "1/2", **tags: str) -> Trajectory:
    return Trajectory(tags.get("question_id", "Q?"), ("No answer here.",), gold, answer, tags=tags, id=i)


def test_grading_groups_equal_answers() -> None:
    with Grader() as grader:
        graded = grade([candidate("x", "0.5"), candidate("y", r"\frac{1}{2}"), candidate("z", "2")], grader)
    (only,) = graded.pools
    assert only.right.tolist() == [True, True, False]
    assert only.classes.tolist() == [0, 0, 1]


def test_grading_counts_what_it_leaves_out() -> None:
    choices = ("True", "False")
    stated = Trajectory("Z?", ("The answer is maybe.",), "True", id="out", choices=choices)
    silent = Trajectory("Z?", ("Hm.",), "True", id="no", choices=choices)
    known = Trajectory("Z?", ("The answer is true.",), "True", id="yes", choices=choices)
    with Grader() as grader:
        graded = grade([stated, silent, known, candidate("q", "5", None, question_id="q")], grader)
    assert graded.notes() == [
        "1 questions without a gold answer are left out",
        "2 candidates have no answer (1 state one outside the choices): they are wrong, and have no vote",
    ]
    assert dict(zip(graded.pools[0].ids, graded.pools[0].right.tolist(), strict=True)) == {
        "out": False, "no": False, "yes": True,
    }  # fmt: skip


def test_a_tag_groups_candidates_and_a_gold_answer_may_be_said_once() -> None:
    """By their questions x and y would be apart; z has no gold answer of its own."""
    members = [
        Trajectory(text, ("It is 5",), gold, id=i, tags={"question_id": "1"})
        for i, text, gold in (("x", "Q?", "5"), ("y", "Q??", "5"), ("z", "Q?", None))
    ]
    with Grader() as grader:
        (only,) = grade(members, grader).pools
    assert (only.id, only.right.tolist()) == ("1", [True] * 3)


def test_grading_refuses_what_cannot_be_judged() -> None:
    with Grader() as grader:
        with pytest.raises(InputError, match="different gold answers"):
            grade([candidate("x", "1", "1"), candidate("y", "1", "2")], grader)
        with pytest.raises(InputError, match="none of the questions has a gold answer"):
            grade([candidate("x", "1", None)], grader)
        with pytest.raises(InputError, match="none of the candidates has an answer"):
            grade([candidate("x", None, "even or odd")], grader)
        with pytest.raises(InputError, match="there are no candidates"):
            grade([], grader)


# --- real samples ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.exists(), reason="needs shared/data/best_of_n beside the checkout")
def test_real_samples_and_the_scores_of_a_reward_model(tmp_path: Path) -> None:
    """8 samples for each of 100 MATH problems, with the booleans of another grader and an outcome reward model."""
    rows = [json.loads(line) for line in REAL.read_text().splitlines()]
    samples = [
        Trajectory(
            row["question"], (code,), row["gt"], pred or None,
            tags={"question_id": str(row["idx"]), "reward": str(score[0])}, id=f"{row['idx']}/{i}",
        )
        for row in rows
        for i, (code, pred, score) in enumerate(zip(row["code"], row["pred"], row["pred_score"], strict=True))
    ]  # fmt: skip
    write_records(tmp_path / "t.jsonl", samples)
    with Grader() as grader:
        results = evaluate_best_of_n(["tag:reward"], tmp_path / "t.jsonl", quick(), grader=grader)
    found = by_rule(results)
    theirs = np.array([row["score"] for row in rows])
    best = np.array([row["pred_score"] for row in rows])[:, :, 0].argmax(axis=1)
    assert found["one sample"]["accuracy@8"] == pytest.approx(theirs.mean(), abs=0.01)
    assert found["oracle"]["accuracy@8"] == pytest.approx(theirs.any(axis=1).mean(), abs=0.011)
    assert found["best-of-n"]["accuracy@8"] == pytest.approx(theirs[np.arange(100), best].mean(), abs=0.021)
    assert found["one sample"]["accuracy@8"] < found["majority"]["accuracy@8"] <= found["oracle"]["accuracy@8"]
