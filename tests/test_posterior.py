"""The posterior over the first error: its evidence, its numbers, what it is fitted to, and its labeler."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpmi import CPMI, CPMISettings, InputError, NegativeSettings, Trajectory, read_rewards, write_records
from cpmi.fitting import cross_validated
from cpmi.labelers.evidence import FEATURES, arithmetic_in
from cpmi.labelers.first_error import FirstErrorModel, JudgedEvidence, Outcome, fit
from cpmi.labelers.levels import Levels, score_levels
from cpmi.labelers.likelihood import Likelihood, LikelihoodSettings
from cpmi.labelers.posterior import FirstErrorPosterior, PosteriorSettings
from cpmi.models.toy import ToyModel
from cpmi.prompts import CUES

MODEL = FirstErrorModel(
    ("a", "b"), (0.0, 1.0), (1.0, 2.0), (2.0, -1.0), {"right": 3.0, "wrong": -3.0, "unanswered": 0.0}
)
RIGHT = Trajectory("What is 2 + 3?", ("2 + 3 = 5", "The answer is 5."), "5", "5", (True, True), id="right")
WRONG = Trajectory(
    "What is 2 + 3?", ("2 + 3 = 6", "So 6", "The answer is 6."), "5", "6", (False, None, None), id="wrong"
)
CUT = Trajectory("What is 4 + 3?", ("Let us see.",), "7", None, (False,), tags={"finish_reason": "length"}, id="cut")


# --- the numbers ----------------------------------------------------------------------------------------------------


def test_a_posterior_worked_by_hand() -> None:
    """Scores 2a - (b - 1)/2 are 2 and 0; with the outcome right "none" has 3."""
    evidence = {"a": [1.0, 0.5], "b": [1.0, 3.0]}
    z = math.exp(2) + math.exp(0) + math.exp(3)
    expected = [math.exp(2) / z, 1 / z, math.exp(3) / z]
    np.testing.assert_allclose(MODEL.posterior(evidence, "right"), expected, rtol=1e-12)
    np.testing.assert_allclose(MODEL.rewards(evidence, "right"), [1 - expected[0], expected[2]], rtol=1e-12)


numbers = st.floats(-50, 50, allow_nan=False)


@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12), st.sampled_from(["right", "wrong", "unanswered"])
)
def test_rewards_are_probabilities_that_never_rise(rows: list[tuple[float, float]], outcome: Outcome) -> None:
    evidence = {"a": [a for a, _ in rows], "b": [b for _, b in rows]}
    posterior, rewards = MODEL.posterior(evidence, outcome), MODEL.rewards(evidence, outcome)
    assert posterior.sum() == pytest.approx(1)
    assert ((rewards >= 0) & (rewards <= 1)).all()
    assert (np.diff(rewards) <= 1e-12).all()
    assert rewards[-1] == pytest.approx(posterior[-1], abs=1e-12)
    # What is known of the outcome moves the whole curve, and never the odds between two steps.
    other = MODEL.posterior(evidence, "right" if outcome == "wrong" else "wrong")
    np.testing.assert_allclose(other[:-1] * posterior[:-1].sum(), posterior[:-1] * other[:-1].sum(), atol=1e-12)


def planted(count: int, seed: int) -> list[JudgedEvidence]:
    """Judgments drawn from MODEL."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        n = int(rng.integers(2, 7))
        evidence = {"a": rng.normal(0, 1, n), "b": rng.normal(1, 2, n), "noise": rng.normal(0, 1, n)}
        outcome: Outcome = "right" if rng.random() < 0.5 else "wrong"
        at = int(rng.choice(n + 1, p=MODEL.posterior(evidence, outcome)))
        drawn.append(JudgedEvidence(evidence, outcome, None if at == n else at))
    return drawn


def test_a_fit_finds_the_numbers_that_judgments_were_drawn_from() -> None:
    found = fit(planted(3000, 1), ("a", "b", "noise"), ridge=0.1, fitted_to="a draw")
    np.testing.assert_allclose(found.weights, (2.0, -1.0, 0.0), atol=0.15)
    assert found.none["right"] == pytest.approx(3.0, abs=0.3)
    assert found.none["wrong"] == pytest.approx(-3.0, abs=0.5)
    assert (found.n, found.fitted_to) == (3000, "a draw")


def test_a_fit_is_the_best_there_is() -> None:
    """A step aside in any direction makes the judgments less likely: it is convex, and the slopes are right."""
    judged = planted(200, 2)
    found = fit(judged, ("a", "b"), ridge=1.0)

    def loss(model: FirstErrorModel) -> float:
        total = 0.5 * sum(w * w for w in model.weights) + 0.005 * sum(b * b for b in model.none.values())
        for each in judged:
            at = -1 if each.first_error is None else each.first_error
            total -= math.log(model.posterior(each.evidence, each.outcome)[at])
        return total

    best = loss(found)
    for i in range(2):
        for step in (-0.05, 0.05):
            weights = tuple(w + step * (i == k) for k, w in enumerate(found.weights))
            assert loss(FirstErrorModel(found.features, found.mean, found.scale, weights, found.none)) > best
    for outcome in ("right", "wrong"):
        for step in (-0.1, 0.1):
            none = found.none | {outcome: found.none[outcome] + step}
            assert loss(FirstErrorModel(found.features, found.mean, found.scale, found.weights, none)) > best


def test_folds_keep_a_question_out_of_its_own_fit() -> None:
    """Every judgment says the first step; where a fold holds the only ones that say otherwise, they go unheard."""
    usual = [JudgedEvidence({"a": [1.0, 0.0]}, "wrong", 0) for _ in range(80)]
    right = [JudgedEvidence({"a": [1.0, 0.0]}, "right", None) for _ in range(40)]
    odd = [JudgedEvidence({"a": [1.0, 0.0]}, "wrong", 1) for _ in range(40)]
    folds = [i % 2 for i in range(120)] + [2] * 40
    (*_, last) = cross_validated([*usual, *right, *odd], folds, ("a",))
    assert last[0] < 0.1


@pytest.mark.parametrize(
    ("judged", "said"),
    [
        ([], "some without one"),
        ([JudgedEvidence({"a": [1.0]}, "wrong", 0)] * 3, "some without one"),
        ([JudgedEvidence({"a": [1.0]}, "wrong", 0), JudgedEvidence({"b": [1.0]}, "right", None)], "no evidence 'a'"),
    ],
)
def test_what_cannot_be_fitted_to(judged: list[JudgedEvidence], said: str) -> None:
    with pytest.raises(InputError, match=said):
        fit(judged, ("a",))


def test_a_model_is_saved_and_loaded(tmp_path: Path) -> None:
    MODEL.save(tmp_path / "m.json")
    assert FirstErrorModel.load(str(tmp_path / "m.json")) == MODEL
    assert FirstErrorModel.built_in().features == FEATURES
    assert FirstErrorModel.built_in().n > 100


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": [1.0]}, "for each of its features"),
        ({"none": {"right": 1.0}}, "'none' for each"),
        ({"scale": [0.0, 1.0]}, "above 0"),
        ({"mean": [float("nan"), 0.0]}, "finite"),
        ({"n": "many"}, "not a first-error model"),
        ({"features": None}, "not a first-error model"),
    ],
)
def test_a_broken_model_is_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    MODEL.save(tmp_path / "m.json")
    row = json.loads((tmp_path / "m.json").read_text()) | change
    (tmp_path / "m.json").write_text(json.dumps(row))
    with pytest.raises(InputError, match=said):
        FirstErrorModel.load(str(tmp_path / "m.json"))


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cpmi fit"):
        FirstErrorModel.load(str(tmp_path / "none.json"))
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        FirstErrorModel.load(str(tmp_path / "torn.json"))


# --- evidence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        ("So 3 * 4 = 12.", 1, 0),
        ("So 3 * 4 = 13.", 0, 1),
        ("10/3 = 3.33 and 7/2 = 3", 1, 1),  # rounded to its digits; a whole number has none to hide behind
        ("She has 5 eggs + 4 eggs = 10 eggs", 0, 1),
        (r"\dfrac{1}{2} = 0.5, and $\frac{3}{4} = 0.9$", 1, 1),
        ("$1,200 * 3 = $3,600", 1, 0),
        (r"\$18 \times 5 = \$80", 0, 1),
        ("20% * 50 = 10", 1, 0),
        ("3 + 4 = 7 + 5 = 12", 1, 0),  # a chain: what is said last
        ("2x + 3 = 7", 0, 0),
        ("10 * 2 = 20x", 0, 0),
        ("3 * 4 = 123", 0, 1),
        ("x = 5", 0, 0),
        ("A = (-9 - 5 - 0) = (-9 - 5) = -14", 1, 0),
        ("1/0 = 5", 0, 0),
        ("", 0, 0),
    ],
)
def test_arithmetic_in(text: str, right: int, wrong: int) -> None:
    assert arithmetic_in(text) == (right, wrong)


@settings(max_examples=60)
@given(st.text(alphabet="0123456789+-*/=(). \\frac{}%$,x", max_size=400))
def test_arithmetic_takes_any_text(text: str) -> None:
    right, wrong = arithmetic_in(text)
    assert right >= 0 <= wrong


def labeled(*trajectories: Trajectory, settings: PosteriorSettings | None = None) -> list[Any]:
    return FirstErrorPosterior(ToyModel(), settings).rewards(trajectories)


def test_gains_are_those_of_cpmi_and_likelihoods_those_of_likelihood() -> None:
    """One pass says what the two methods say in passes of their own."""
    (record,) = labeled(WRONG)
    for context, name in (("marginal", "gain"), ("cumulative", "lift")):
        one = CPMISettings(context=context, normalization="sum", templates=CUES)  # type: ignore[arg-type]
        (other,) = CPMI(ToyModel(), one).rewards([WRONG])
        np.testing.assert_allclose(record.terms[name], other.rewards, atol=1e-9)
    (likely,) = Likelihood(ToyModel(), LikelihoodSettings("mean", CUES[0])).rewards([WRONG])
    np.testing.assert_allclose(record.terms["likelihood"], likely.rewards, atol=1e-9)
    np.testing.assert_allclose(record.terms["length"], np.log1p(likely.terms["tokens"]), atol=1e-9)
    np.testing.assert_allclose(record.terms["surprise"], np.log1p(-np.array(likely.terms["sum"])), atol=1e-9)
    level, before = record.terms["level"], record.terms["level_before"]
    np.testing.assert_allclose(np.subtract(level, before), record.terms["lift"], atol=1e-9)


def test_where_the_own_answer_stands() -> None:
    late = Trajectory("What is 2 + 3?", ("2 and 3", "so 6", "The answer is 6."), "5", "6", id="late")
    (record,) = labeled(late)
    assert record.terms["own_first"] == (0.0, 1.0, 0.0)
    assert record.terms["own_before"] == (0.0, 0.0, 1.0)
    assert record.terms["last"] == (0.0, 0.0, 1.0)
    assert record.terms["first"] == (1.0, 0.0, 0.0)


# --- the labeler ----------------------------------------------------------------------------------------------------


def test_labels_of_right_wrong_and_unanswered_solutions() -> None:
    right, wrong, cut = labeled(RIGHT, WRONG, CUT)
    assert [each.details["outcome"] for each in (right, wrong, cut)] == ["right", "wrong", "unanswered"]
    for record, trajectory in ((right, RIGHT), (wrong, WRONG), (cut, CUT)):
        assert set(record.terms) == set(FEATURES)
        kind: Any = record.details["outcome"]
        expected = FirstErrorModel.built_in().rewards(record.terms, kind)
        np.testing.assert_allclose(record.rewards, expected)
        assert len(record.rewards) == len(trajectory.steps)
        assert record.cost.tokens_generated == 0 < record.cost.tokens_scored
    assert right.rewards[-1] > wrong.rewards[-1]
    assert wrong.details["answers"] == ["5", "6"]
    assert wrong.details["kinds"] == ["gold", "own"]


def test_trajectories_that_cannot_be_labeled_stand_among_those_that_can() -> None:
    bad = Trajectory("q", ("s",), None, id="no gold"), Trajectory("q", (), "5", id="no steps")
    records = labeled(bad[0], RIGHT, bad[1], WRONG)
    assert [record.trajectory_id for record in records] == ["no gold", "right", "no steps", "wrong"]
    assert ["no gold answer" in str(records[0].error), records[2].error] == [True, "no steps"]
    assert records[1] == replace_cost(labeled(RIGHT)[0], records[1])
    assert records[3].rewards == labeled(WRONG)[0].rewards


def replace_cost(record: Any, other: Any) -> Any:
    from dataclasses import replace

    return replace(record, cost=other.cost)


def test_settings_need_a_template() -> None:
    with pytest.raises(InputError, match="template"):
        PosteriorSettings(templates=())


# --- levels ---------------------------------------------------------------------------------------------------------


def test_levels_choose_mean_and_come_back_from_json() -> None:
    answers = ["5", "6", "47"]
    (scored,) = score_levels(ToyModel(), [WRONG], [answers], ("marginal",), CUES, steps_too=True)
    levels = scored.levels
    assert levels is not None
    some = levels.choose([0, 2], [1])
    np.testing.assert_array_equal(some.sums[0], levels.sums[1][:, [0, 2]])
    means = levels.at([()], "mean")
    np.testing.assert_allclose(means, levels.at([()], "sum") / levels.tokens[:, None, :])
    again = Levels.from_json(json.loads(json.dumps(levels.to_json())))
    np.testing.assert_allclose(again.sums, levels.sums, atol=1e-5)
    assert again.contexts == levels.contexts
    assert [len(step) for step in again.steps] == [len(step) for step in levels.steps]
    with pytest.raises(InputError, match="was not scored"):
        levels.gains("cumulative", 3)


def test_without_a_wrong_answer_there_is_no_contrast() -> None:
    settings = PosteriorSettings(negatives=NegativeSettings(count=0))
    (record,) = labeled(WRONG, settings=settings)
    assert record.error is None
    (gold,) = CPMI(ToyModel(), CPMISettings(normalization="sum", templates=CUES, weight=0.0)).rewards([WRONG])
    np.testing.assert_allclose(record.terms["gain"], gold.rewards, atol=1e-9)


# --- from the command line ------------------------------------------------------------------------------------------


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    made = []
    for i in range(30):
        question = f"What is {i} + 3?"
        made.append(
            Trajectory(question, (f"{i} + 3 = {i + 3}", f"It is {i + 3}."), str(i + 3), str(i + 3), (True, True))
        )
        made.append(
            Trajectory(
                question,
                (f"{i} and 3", f"{i} + 3 = {i + 5}", f"It is {i + 5}."),
                str(i + 3),
                str(i + 5),
                (True, False, None),
            )
        )
    write_records(tmp_path / "judged.jsonl", made)
    return tmp_path


def test_fit_and_use_it(judged: Path, run_cpmi: Any) -> None:
    label = ("label", "judged.jsonl", "--model", "toy:", "--method", "posterior")
    assert run_cpmi(*label, "--output", "run")[0] == 0
    code, out, _ = run_cpmi("fit", "run", "--output", "own.json")
    assert code == 0
    assert "fitted to 60 trajectories -> own.json" in out
    assert "F1 on questions it was not fitted to: 1.00" in out
    code, out, _ = run_cpmi("fit", "run", "--output", "two.json", "--feature", "last", "--feature", "first", "--json")
    assert json.loads(out)["n"] == 60
    assert FirstErrorModel.load("two.json").features == ("last", "first")
    assert run_cpmi(*label, "--first-error-model", "own.json", "--output", "own")[0] == 0
    wrong = [each for each in read_rewards("own") if each.details["outcome"] == "wrong"]
    assert all(each.rewards[0] > 0.5 > each.rewards[1] for each in wrong)
    assert len(wrong) == 30


def test_fit_refuses_what_it_cannot_use(judged: Path, run_cpmi: Any) -> None:
    run_cpmi("label", "judged.jsonl", "--model", "toy:", "--method", "outcome", "--output", "outcome")
    code, _, err = run_cpmi("fit", "outcome", "--output", "m.json")
    assert code == 2
    assert "has rewards of outcome; fit takes runs of --method posterior" in err
    run_cpmi("label", "judged.jsonl", "--model", "toy:", "--method", "posterior", "--output", "run")
    code, _, err = run_cpmi("fit", "run", "--feature", "gian", "--output", "m.json")
    assert code == 2
    assert "unknown evidence 'gian'" in err
    assert not Path("m.json").exists()


def test_another_model_of_the_first_error_is_another_run(judged: Path, run_cpmi: Any) -> None:
    label = ("label", "judged.jsonl", "--model", "toy:", "--method", "posterior", "--output", "run", "--limit", "4")
    assert run_cpmi(*label)[0] == 0
    run_cpmi("label", "judged.jsonl", "--model", "toy:", "--method", "posterior", "--output", "all")
    run_cpmi("fit", "all", "--output", "own.json")
    code, _, err = run_cpmi(*label, "--first-error-model", "own.json")
    assert code == 2
    assert "model" in err
