"""The benchmarks by hand: expected numbers are worked out from the definitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics

from cpmi.benchmarks import prmbench, processbench, steps
from cpmi.benchmarks.baselines import OUTCOME, OUTCOME_AND_POSITION, baselines, survival
from cpmi.benchmarks.calibration import Calibration
from cpmi.benchmarks.cases import Case, Rewarded, Settings, join
from cpmi.benchmarks.thresholds import Protocol
from cpmi.errors import InputError
from cpmi.grader import Grader
from cpmi.records import Cost, StepRewards, Trajectory, read_trajectories
from cpmi.results import EvalResult, read_results, write_results
from cpmi.sources import Fields, read_source
from judgments import judged

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def trajectory(i: str, labels: Sequence[bool | None], subset: str = "gsm8k", **more: str) -> Trajectory:
    made = tuple(f"step {n}" for n in range(len(labels)))
    return Trajectory(f"Q {i}?", made, "1", more.pop("answer", "1"), tuple(labels), {"subset": subset, **more}, id=i)


def rewarded(*pairs: tuple[Trajectory, Sequence[float] | None]) -> Rewarded:
    records = {
        t.id: StepRewards(t.id, tuple(r or ()), "x", cost=Cost(1, 2, 0.5), error=None if r is not None else "no")
        for t, r in pairs
    }
    return join("x", records, {t.id: t for t, _ in pairs})


def settings(threshold: str = "fixed-0.5", resamples: int = 20) -> Settings:
    return Settings(Protocol.parse(threshold), resamples)


def values(results: Sequence[EvalResult], metric: str) -> dict[str, float | None]:
    return {each.subset: each.metrics[metric].value for each in results}


T, F, N = True, False, None


# --- thresholds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["fixed", "fixed-x", "fixed-nan", "dev", "dev:", "best", "gsm8k", ""])
def test_unknown_protocols_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"use fixed-0\.5, gsm8k-tuned, oracle or dev:FILE"):
        Protocol.parse(text)


def test_protocols() -> None:
    assert Protocol.parse("fixed--1.5").value == -1.5
    assert Protocol.parse("dev:a-b.jsonl").dev == "a-b.jsonl"
    assert Protocol.parse("oracle").is_oracle
    assert not Protocol.parse("gsm8k-tuned").is_oracle


# --- ProcessBench ---------------------------------------------------------------------------------------------------

GSM8K = [
    (trajectory("gsm8k-0", (T, F, N)), (0.9, 0.2, 0.1)),  # found
    (trajectory("gsm8k-1", (T, F, N)), (0.3, 0.1, 0.9)),  # found at 0.3 > t > 0.1 only
    (trajectory("gsm8k-2", (T, T)), (0.9, 0.8)),  # left alone
    (trajectory("gsm8k-3", (T, T)), (0.7, 0.4)),  # called wrong at 0.5
]
MATH = [
    (trajectory("math-0", (F, N), "math"), (0.35, 0.9)),
    (trajectory("math-1", (T, F), "math"), (0.9, 0.6)),
    (trajectory("math-2", (T, T, T), "math"), (0.9, 0.9, 0.9)),
]


def test_processbench_at_a_fixed_threshold_by_hand() -> None:
    """GSM8K: 1/2 and 1/2. MATH: 1/2 and 1: F1 2/3. Average F1 (1/2 + 2/3) / 2."""
    results = processbench.evaluate(rewarded(*MATH, *GSM8K), settings())
    assert [each.subset for each in results] == ["gsm8k", "math", "average"]
    assert values(results, "error_accuracy") == {"gsm8k": 0.5, "math": 0.5, "average": 0.5}
    assert values(results, "correct_accuracy") == {"gsm8k": 0.5, "math": 1.0, "average": 0.75}
    assert values(results, "f1") == pytest.approx({"gsm8k": 0.5, "math": 2 / 3, "average": 7 / 12})
    assert [each.n for each in results] == [4, 3, 7]
    assert results[2].cost == Cost(7, 14, 3.5)
    assert results[0].settings == {"threshold": "fixed-0.5", "resamples": 20, "seed": 0, "threshold_value": 0.5}
    assert results[2].notes == ("the average is over gsm8k, math, not over ProcessBench's four subsets",)
    assert [case["prediction"] for case in results[0].cases] == [1, 0, -1, 1]
    assert [case["label"] for case in results[0].cases] == [1, 1, -1, -1]


def test_processbench_tuned_on_gsm8k_by_hand() -> None:
    """Between 0.2 and 0.3 all of GSM8K is judged rightly, so the line is 0.25: MATH then has errors 0/2 and right 1."""
    results = processbench.evaluate(rewarded(*GSM8K, *MATH), settings("gsm8k-tuned"))
    assert results[0].settings["threshold_value"] == pytest.approx(0.25)
    assert values(results, "f1") == {"gsm8k": 1.0, "math": 0.0, "average": 0.5}


def test_processbench_oracle_is_an_upper_bound_and_says_so() -> None:
    """MATH at a line from 0.6 up to 0.9: both errors found, the right one left alone."""
    results = processbench.evaluate(rewarded(*GSM8K, *MATH), settings("oracle"))
    assert values(results, "f1") == {"gsm8k": 1.0, "math": 1.0, "average": 1.0}
    assert results[0].settings["upper_bound"] is True
    assert "threshold_value" not in results[0].settings
    assert results[1].cases[1] == {"id": "math-1", "label": 1, "prediction": 1}


def test_processbench_tuned_on_other_data() -> None:
    results = processbench.evaluate(rewarded(*MATH), settings("dev:f"), rewarded(*GSM8K).cases)
    assert results[0].settings["threshold_value"] == pytest.approx(0.25)
    assert len(results) == 1  # one subset has no average
    with pytest.raises(InputError, match="threshold gsm8k-tuned: the subset gsm8k has not both"):
        processbench.evaluate(rewarded(*MATH), settings("gsm8k-tuned"))
    with pytest.raises(InputError, match="dev:f: f has not both"):
        processbench.evaluate(rewarded(*MATH), settings("dev:f"), rewarded(GSM8K[0]).cases)


def test_what_has_no_rewards_is_counted_and_in_no_metric() -> None:
    result = processbench.evaluate(rewarded(*GSM8K[:3], (GSM8K[3][0], None)), settings())[0]
    assert (result.n, result.n_unscored) == (3, 1)
    assert result.metrics["correct_accuracy"].value == 1.0
    assert result.cost == Cost(4, 8, 2.0)  # what failed was paid for


def test_a_subset_of_one_kind_says_that_f1_is_not_defined() -> None:
    results = processbench.evaluate(rewarded(*GSM8K, MATH[2]), settings())
    assert results[1].metrics["f1"].value is None
    assert results[1].metrics["correct_accuracy"].value == 1.0
    assert results[1].notes == ("F1 is not defined: only trajectories without an error",)
    assert results[2].metrics["f1"].value is None
    results = processbench.evaluate(rewarded(*GSM8K, (MATH[0][0], None)), settings())
    assert results[1].notes == ("F1 is not defined: no trajectory with rewards",)


def test_the_published_protocol_on_the_real_data() -> None:
    """Rewards that are the labels themselves are judged to be perfect, in all four subsets."""
    names = [str(DATA / "processbench" / f"{name}.jsonl") for name in processbench.SUBSETS]
    if not all(Path(name).is_file() for name in names):
        pytest.skip("the shared ProcessBench files are not beside this checkout")
    cases = [
        (t, [0.0 if label is False else 1.0 for label in t.step_labels or ()])
        for t in read_source("processbench", names, Fields())
    ]
    results = processbench.evaluate(rewarded(*cases), settings(resamples=2))
    assert [(each.subset, each.n) for each in results] == [
        ("gsm8k", 200), ("math", 500), ("olympiadbench", 500), ("omnimath", 500), ("average", 1700),
    ]  # fmt: skip
    assert set(values(results, "f1").values()) == {1.0}
    nothing_wrong = [(t, [1.0] * len(t.steps)) for t, _ in cases]
    results = processbench.evaluate(rewarded(*nothing_wrong), settings(resamples=2))
    assert set(values(results, "f1").values()) == {0.0}
    assert set(values(results, "correct_accuracy").values()) == {1.0}


# --- PRMBench -------------------------------------------------------------------------------------------------------


def one_of_each_class() -> list[tuple[Trajectory, Sequence[float]]]:
    """Every class has one item of four steps; called right at 0.5: yes, yes, no, no."""
    scores = (0.9, 0.6, 0.5, 0.1)
    labels = {
        "redundency": (T, T, F, F),  # all as called: 1
        "circular": (T, F, F, T),  # TP 1, FP 1, TN 1, FN 1: F1 1/2, negative 1/2
        "counterfactual": (T, T, F, F),
        "step_contradiction": (F, F, T, T),  # nothing as called: 0
        "domain_inconsistency": (T, T, F, F),
        "confidence": (T, T, T, F),  # TP 2, TN 1, FN 1: F1 4/5, negative 2/3
        "missing_condition": (T, T, F, F),
        "deception": (T, F, F, F),  # TP 1, FP 1, TN 2: F1 2/3, negative 4/5
        "multi_solutions": (T, T, T, T),  # TP 2, FN 2: F1 2/3 alone
    }
    return [(trajectory(f"{name}/1", each, name), scores) for name, each in labels.items()]


def test_prmbench_by_hand() -> None:
    results = prmbench.evaluate(rewarded(*one_of_each_class()), settings())
    scores = values(results, "prm_score")
    mixed = (4 / 5 + 2 / 3) / 2
    assert scores == pytest.approx(
        {
            "redundency": 1, "circular": 0.5, "simplicity": 0.75,
            "counterfactual": 1, "step_contradiction": 0, "domain_inconsistency": 1, "confidence": mixed,
            "soundness": (2 + mixed) / 4,
            "missing_condition": 1, "deception": mixed, "multi_solutions": 2 / 3,
            "sensitivity": (1 + mixed + 2 / 3) / 3,
            # All items: TP 8+1+0+2+1+2 = 14, FP 1+2+1 = 4, TN 8+1+0+1+2 = 12, FN 1+2+1+2 = 6.
            "overall": (28 / 38 + 24 / 34) / 2,
        }
    )  # fmt: skip
    assert list(scores) == [*prmbench.CLASSES, *prmbench.GROUPS, "overall"]
    first = values(results, "first_error_accuracy")
    assert (first["redundency"], first["circular"], first["step_contradiction"]) == (1.0, 0.0, 0.0)
    assert first["multi_solutions"] is None
    assert first["overall"] == pytest.approx(5 / 8)
    assert results[-1].n == 9
    assert values(results, "negative_f1")["multi_solutions"] == 0.0


def test_prmbench_counts_are_pooled_over_items_not_averaged() -> None:
    """One long item all wrong, one short one all right: TP 1, FN 3, TN 1: F1 2/5, negative F1 2/5."""
    pair = rewarded((trajectory("a", (T, F), "circular"), (1, 0)), (trajectory("b", (T, T, T), "circular"), (0, 0, 0)))
    (result, overall) = prmbench.evaluate(pair, settings())
    assert result.metrics["prm_score"].value == pytest.approx(0.4)
    assert overall.metrics["prm_score"].value == pytest.approx(0.4)


def test_prmbench_thresholds() -> None:
    """Tuned on other data, where the line lies between 0.1 and 0.5; at 0.3 "confidence" is judged rightly."""
    dev = rewarded((trajectory("d", (T, F)), (0.5, 0.1)))
    items = rewarded(one_of_each_class()[5])
    tuned = prmbench.evaluate(items, settings("dev:f"), dev.cases)[0]
    assert tuned.settings["threshold_value"] == pytest.approx(0.3)
    assert tuned.metrics["prm_score"].value == 1.0
    assert prmbench.evaluate(items, settings("oracle"))[0].metrics["prm_score"].value == 1.0
    with pytest.raises(InputError, match="gsm8k-tuned"):
        prmbench.evaluate(items, settings("gsm8k-tuned"))


@pytest.mark.parametrize("kind", [T, F])
def test_prmbench_is_not_tuned_on_steps_of_one_kind(kind: bool) -> None:
    assert prmbench.best_threshold([judged([0.1, 0.2, 0.3], [int(kind)] * 3)]) is None


def test_prmbench_names_items_whose_error_lies_past_the_end() -> None:
    slip = trajectory("deception/9", (T, T), "deception", error_steps_past_end="[3]")
    overall = prmbench.evaluate(rewarded((slip, (1, 0)), one_of_each_class()[0]), settings())[-1]
    assert overall.notes == ("1 items name an error step past their end, which counts nowhere: deception/9",)


def test_the_real_prmbench() -> None:
    path = DATA / "prmbench" / "prmtest_classified.jsonl.gz"
    if not path.is_file():
        pytest.skip("the shared PRMBench file is not beside this checkout")
    items = list(read_source("prmbench", [str(path)], Fields()))
    perfect = [(t, [float(bool(label)) for label in t.step_labels or ()]) for t in items]
    results = prmbench.evaluate(rewarded(*perfect), settings(resamples=2))
    assert [each.subset for each in results] == [*prmbench.CLASSES, *prmbench.GROUPS, "overall"]
    assert set(values(results, "prm_score").values()) == {1.0}
    assert "items name an error step past their end" in results[-1].notes[0]


# --- steps ----------------------------------------------------------------------------------------------------------


def test_steps_by_hand() -> None:
    """Right 0.9 0.3 | 0.9 0.8 0.7 0.4, wrong 0.2 0.1: all told apart; half the trajectories exactly right at 0.5."""
    results = {each.subset: each for each in steps.evaluate(rewarded(*GSM8K), settings())}
    assert list(results) == ["all", "step 1", "step 2"]
    figures = {name: each.value for name, each in results["all"].metrics.items()}
    assert figures["roc_auc"] == figures["within_auc"] == figures["pr_auc"] == figures["best_balanced_accuracy"] == 1.0
    assert figures["wrong_share"] == pytest.approx(2 / 8)
    assert (figures["error_accuracy"], figures["correct_accuracy"], figures["first_error_f1"]) == (0.5, 0.5, 0.5)
    squares = [0.1**2, 0.7**2, 0.1**2, 0.2**2, 0.3**2, 0.6**2, 0.2**2, 0.1**2]
    assert figures["brier"] == pytest.approx(sum(squares) / 8)
    # Each distinct reward has a bin of its own, but for 0.9 twice.
    assert figures["ece"] == pytest.approx((0.2 + 0.7 + 0.2 + 0.3 + 0.6 + 0.2 + 0.1) / 8)
    assert results["step 1"].metrics["roc_auc"].value is None
    assert results["step 1"].notes == ("the area is not defined: all steps are right",)
    assert results["step 2"].metrics["roc_auc"].value == 1.0
    assert results["step 2"].metrics["wrong_share"].value == 0.5


def test_steps_by_subset_and_with_rewards_that_are_no_probabilities() -> None:
    results = {
        each.subset: each for each in steps.evaluate(rewarded(*GSM8K, (MATH[0][0], (-3.0, 2.0)), MATH[2]), settings())
    }
    assert list(results)[:3] == ["all", "gsm8k", "math"]
    assert "brier" not in results["all"].metrics
    assert "no calibration: there are rewards below 0 or above 1, which are no probabilities" in results["all"].notes
    assert "brier" in results["gsm8k"].metrics


def test_what_is_undefined_is_said() -> None:
    constant = steps.evaluate(rewarded((GSM8K[0][0], (1, 1, 1)), (GSM8K[2][0], (1, 1))), settings())[0]
    assert constant.metrics["roc_auc"].value == 0.5
    assert "all rewards are 1: they tell nothing apart; an area of 0.5 is made of ties alone" in constant.notes
    right = steps.evaluate(rewarded(*GSM8K[2:]), settings())[0]
    assert right.metrics["roc_auc"].value is None
    assert "areas are not defined: all annotated steps are right" in right.notes
    nothing = steps.evaluate(rewarded((GSM8K[0][0], None)), settings())[0]
    assert (nothing.n, nothing.n_unscored) == (0, 1)
    assert nothing.metrics["pr_auc"].value is None
    assert "no trajectory has rewards" in nothing.notes


def test_curves_run_from_corner_to_corner() -> None:
    curves = steps.evaluate(rewarded(*GSM8K, *MATH), settings())[0].curves
    x, y = curves["roc"]
    assert (x[0], y[0], x[-1], y[-1]) == (1.0, 1.0, 0.0, 0.0)
    rights = [0.9, 0.3, 0.9, 0.8, 0.7, 0.4, 0.9, 0.9, 0.9, 0.9]
    wrongs = [0.2, 0.1, 0.35, 0.6]
    area = sklearn.metrics.auc(x, y)
    assert area == pytest.approx(sklearn.metrics.roc_auc_score([1] * 10 + [0] * 4, rights + wrongs))
    recall, precision = curves["pr"]
    assert (recall[-1], precision[0]) == (1.0, 1.0)


def test_calibration_by_hand() -> None:
    """0.05 0.05 (one right) and 1.0 (right), 0.5 not annotated: ECE (|0.1 - 1| + 0) / 3."""
    found = Calibration([judged([0.05, 0.05, 0.5], [1, 0, -1]), judged([1.0], [1])])
    assert found.ece(np.ones((1, 2)))[0] == pytest.approx(0.3)
    assert found.brier(np.ones((1, 2)))[0] == pytest.approx((0.95**2 + 0.05**2) / 3)
    np.testing.assert_allclose(found.curve(), [[0.05, 1.0], [0.5, 1.0]])


# --- joining --------------------------------------------------------------------------------------------------------


def test_rewards_and_judgments_that_do_not_fit_are_refused() -> None:
    t = trajectory("a", (T, F))
    with pytest.raises(InputError, match="none of its 1 ids is one of the 1 judged"):
        join("x", {"b": StepRewards("b", (1.0, 0.0), "x")}, {"a": t})
    with pytest.raises(InputError, match="'a': 3 rewards for 2 steps"):
        join("x", {"a": StepRewards("a", (1.0, 0.0, 0.0), "x")}, {"a": t})
    with pytest.raises(InputError, match="none of the trajectories has human step labels"):
        join("x", {"a": StepRewards("a", (1.0, 0.0), "x")}, {"a": trajectory("a", (N, N))})


def test_what_is_left_out_is_said() -> None:
    by_id = {i: trajectory(i, labels) for i, labels in {"a": (T, F), "b": (N, N), "c": (T, T), "d": (T, T)}.items()}
    records = {i: StepRewards(i, (1.0, 0.0), "x") for i in ("a", "b", "z")} | {
        "d": StepRewards("d", (), "x", error="e")
    }
    found = join("x", records, by_id)
    assert [case.trajectory.id for case in found.cases] == ["a", "c", "d"]
    assert found.notes == (
        "1 of the rewards belong to no trajectory here, and are left out",
        "1 trajectories without human step labels are left out",
        "2 judged trajectories have no rewards (1 failed), and are in no metric",
    )


# --- baselines ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as grader:
        yield grader


def test_the_outcome_is_the_graders_or_what_the_data_say(grader: Grader) -> None:
    wrong = trajectory("w", (T, F), answer="2")
    told = Trajectory("Q?", ("a", "b"), step_labels=(T, T), tags={"final_answer_correct": "True"}, id="t")
    made, _ = baselines(rewarded((GSM8K[2][0], (0, 0)), (wrong, (1, 1)), (told, (0, 0))), grader)
    assert made[0].source == OUTCOME
    assert [case.rewards.tolist() for case in made[0].cases if case.rewards is not None] == [[1, 1], [0, 0], [1, 1]]
    assert made[0].cases[0].cost == Cost()
    unknown = Trajectory("Q?", ("a",), step_labels=(T,), id="u")
    assert baselines(rewarded((unknown, (0,))), grader) == (
        [],
        ["no baselines: whether the final answer is right is not known for 1 trajectories"],
    )


def test_what_the_grader_cannot_say_is_what_the_data_say(grader: Grader) -> None:
    told = Trajectory("Q?", ("a", "b"), "7", None, (T, T), {"final_answer_correct": "true"}, id="t")
    untold = Trajectory("Q?", ("a", "b"), "7", None, (T, F), id="u")
    made, _ = baselines(rewarded((told, (0, 0)), (untold, (0, 0))), grader)
    assert [case.rewards.tolist() for case in made[0].cases if case.rewards is not None] == [[1, 1], [0, 0]]


def test_a_baseline_is_over_the_trajectories_that_have_rewards(grader: Grader) -> None:
    made, _ = baselines(rewarded(*GSM8K[:3], (GSM8K[3][0], None)), grader)
    assert [case.rewards is None for case in made[0].cases] == [False, False, False, True]


def many(count: int = 60) -> list[Case]:
    """Wrong answers have their first error at step 2 of 4, right ones none."""
    return [
        Case(trajectory(str(i), (T, F, N, N) if i % 2 else (T, T, T, T), answer=str(i % 2)), np.zeros(4))
        for i in range(count)
    ]


def test_outcome_and_position_learn_where_errors_are(grader: Grader) -> None:
    cases = many()
    curves = survival(cases, np.array([1.0 - i % 2 for i in range(60)]))
    for i, curve in enumerate(curves):
        assert (np.diff(curve) <= 0).all()
        assert curve[1] < 0.7 if i % 2 else curve[3] > 0.7
    made, notes = baselines(Rewarded("x", tuple(cases)), grader)
    assert [each.source for each in made] == [OUTCOME, OUTCOME_AND_POSITION]
    assert notes == []


def test_no_case_is_judged_by_a_model_that_has_seen_its_question() -> None:
    """Other labels of one case change its own curve only if its fold learns from itself."""
    outcomes = np.array([1.0 - i % 2 for i in range(60)])
    before = survival(many(), outcomes)
    cases = many()
    cases[1] = Case(trajectory("1", (F, N, N, N), answer="2"), np.zeros(4))
    after = survival(cases, outcomes)
    np.testing.assert_array_equal(before[1], after[1])
    assert any((a != b).any() for a, b in zip(before, after, strict=True))


# --- files ----------------------------------------------------------------------------------------------------------


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = processbench.evaluate(rewarded(*GSM8K, *MATH), settings()) + steps.evaluate(rewarded(*GSM8K), settings())
    write_results(tmp_path / "new" / "result.json", results)
    assert read_results(tmp_path / "new" / "result.json") == results
    for name, text in {"list": "[1]", "text": "x", "other": '[{"metrics": {}}]'}.items():
        (tmp_path / f"{name}.json").write_text(text)
        with pytest.raises(InputError, match=f"{name}.json: not a result of cpmi evaluate"):
            read_results(tmp_path / f"{name}.json")
    with pytest.raises(InputError, match=r"none.json: No such file"):
        read_results(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"must end in .json"):
        write_results(tmp_path / "result.txt", results)


def test_intervals_repeat_and_depend_on_the_seed() -> None:
    pairs = rewarded(*GSM8K, *MATH)
    one, again = (processbench.evaluate(pairs, settings()) for _ in range(2))
    assert one == again
    assert one != processbench.evaluate(pairs, Settings(Protocol.parse("fixed-0.5"), 20, seed=5))


def test_the_examples_can_be_judged() -> None:
    examples = Path(__file__).resolve().parents[1] / "examples" / "word_problems.jsonl"
    pairs = [(t, [float(label is not False) for label in t.step_labels or ()]) for t in read_trajectories(examples)]
    assert steps.evaluate(rewarded(*pairs), settings())[0].metrics["first_error_f1"].value == 1.0
