"""What a threshold decides: by hand, against scikit-learn, and against the definitions spelled out."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from cpmi.decisions import (
    FirstErrors,
    StepCounts,
    average_precision,
    balanced_accuracy,
    f1,
    negative_f1,
    predicted_first_error,
    prm_score,
)
from cpmi.metrics import JudgedTrajectory, resamples
from judgments import judged, plain, trajectories

THRESHOLDS = [-3.5, -2.5, -2, -1.5, -0.5, 0, 0.5, 1.5, 2.5, 3, 3.5]  # rewards are whole numbers from -3 to 3


# --- the first error ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threshold", "first"), [(-1, None), (-0.1, None), (0, 2), (2, 1), (2.5, 1), (9, 0)])
def test_a_step_is_right_above_the_threshold(threshold: float, first: int | None) -> None:
    assert predicted_first_error(np.array([3.0, 2.0, 0.0, 5.0]), threshold) == first


FOUR = [judged([1, 0, 0], [1, 0, -1]), judged([0, 1], [1, 0]), judged([1, 0], [1, 1]), judged([1, 1], [1, 1])]


def test_first_errors_by_hand() -> None:
    """At 0.5 exact: the first (step 1), the fourth (none); the second says 0 and is 1, the third says 1 and is right.

    Below 0 nothing is called wrong, at 1 everything: the first steps.
    """
    found = FirstErrors(FOUR)
    np.testing.assert_allclose(found.at(0.5, plain(4)), [[0.5, 0.5, 0.5]])
    np.testing.assert_allclose(found.at(0.0, plain(4)), [[0.5, 0.5, 0.5]])
    np.testing.assert_allclose(found.at(-0.1, plain(4)), [[0, 1, 0]])
    np.testing.assert_allclose(found.at(1.0, plain(4)), [[0, 0, 0]])
    np.testing.assert_allclose(found.best(plain(4)), [[0.5, 0.5, 0.5]])
    assert found.best_threshold() == 0.5


def test_accuracies_that_differ_have_a_harmonic_mean() -> None:
    """All errors found, one of four right ones spared: 2 * 1 * 0.25 / 1.25."""
    wrong = [judged([1, 0], [1, 0])] * 2
    right = [judged([1, 1], [1, 1])] + [judged([0, 1], [1, 1])] * 3
    assert FirstErrors([*wrong, *right]).at(0.5, plain(6))[0, 2] == pytest.approx(0.4)


def by_definition(each: list[JudgedTrajectory], threshold: float) -> tuple[float, float]:
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for one in each:
        hits[one.first_error is None].append(predicted_first_error(one.rewards, threshold) == one.first_error)
    return float(np.mean(hits[False])), float(np.mean(hits[True]))


@given(trajectories(2))
def test_every_threshold_is_as_the_definition_says_and_the_oracle_is_the_best(each: list[JudgedTrajectory]) -> None:
    found, one = FirstErrors(each), plain(len(each))
    if len({one.first_error is None for one in each}) < 2:
        assert np.isnan(found.at(0.5, one)[0, 2])
        assert np.isnan(found.best(one)).all()
        assert found.best_threshold() is None
        return
    figures = []
    for threshold in THRESHOLDS:
        error, correct = by_definition(each, threshold)
        figures.append(2 * correct * error / (correct + error) if correct + error else 0.0)
        np.testing.assert_allclose(found.at(threshold, one), [[error, correct, figures[-1]]])
    best = found.best_threshold()
    assert best is not None
    assert found.best(one)[0, 2] == pytest.approx(max(figures))
    assert found.at(best, one)[0, 2] == pytest.approx(max(figures))


@given(trajectories(2), st.data())
def test_a_weight_of_two_is_the_trajectory_twice(each: list[JudgedTrajectory], data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 3), min_size=len(each), max_size=len(each)))
    repeated = [one for one, count in zip(each, counts, strict=True) for _ in range(count)]
    weights = np.array([counts], dtype=np.float64)
    if not repeated:
        return
    ones = plain(len(repeated))
    np.testing.assert_allclose(FirstErrors(each).best(weights), FirstErrors(repeated).best(ones))
    np.testing.assert_allclose(FirstErrors(each).at(0, weights), FirstErrors(repeated).at(0, ones))
    np.testing.assert_allclose(StepCounts(each).at(0, weights), StepCounts(repeated).at(0, ones))
    weighted = average_precision(StepCounts(each).curve(weights[0]))
    np.testing.assert_allclose(weighted, average_precision(StepCounts(repeated).curve(ones[0])))


def test_a_threshold_found_here_is_halfway_to_the_next_reward() -> None:
    """Between 0.2 and 0.8 both are judged rightly."""
    assert FirstErrors([judged([0.8, 0.2], [1, 0]), judged([0.8], [1])]).best_threshold() == pytest.approx(0.5)


def test_what_nobody_judged_is_no_false_alarm() -> None:
    """The lowest rewards are on steps without a label; the wrong step is found, the right solution left alone."""
    each = [judged([0.9, 0.1, 0.8, 0.2], [1, -1, 1, 0]), judged([0.9, 0.1], [1, -1])]
    np.testing.assert_allclose(FirstErrors(each).at(0.5, plain(2)), [[1, 1, 1]])


def test_no_trajectories_have_no_figures() -> None:
    assert np.isnan(FirstErrors([]).best(np.ones((1, 0)))).all()
    assert StepCounts([]).at(0.5, np.ones((1, 0))).tolist() == [[0], [0], [0], [0]]


# --- counts of steps ------------------------------------------------------------------------------------------------


def test_counts_and_scores_by_hand() -> None:
    """At 0.5: right 1 1 0 and 1, wrong 1 0: three found, one wrong step missed, one found, one right step lost.

    F1 = 2*3 / (2*3 + 1 + 1) = 3/4, negative F1 = 2*1 / (2*1 + 1 + 1) = 1/2, PRMScore 5/8; shares 3/4 and 1/2.
    """
    counts = StepCounts([judged([1, 1, 0, 1], [1, 1, 1, 0]), judged([1, 0, 7], [1, 0, -1])]).at(0.5, plain(2))
    np.testing.assert_array_equal(counts[:, 0], [3, 1, 1, 1])
    assert (f1(counts)[0], negative_f1(counts)[0], prm_score(counts)[0]) == (0.75, 0.5, 0.625)
    assert balanced_accuracy(counts)[0] == 0.625


def test_scores_of_one_kind() -> None:
    """All steps right, three of four called so: F1 6/7; there is no wrong step, and one was called wrong: 0."""
    counts = np.array([[3.0], [0], [0], [1]])
    assert f1(counts)[0] == pytest.approx(6 / 7)
    assert negative_f1(counts)[0] == 0
    assert np.isnan(balanced_accuracy(counts)[0])
    assert np.isnan(f1(np.zeros((4, 1)))[0])


@given(trajectories(), st.sampled_from(THRESHOLDS))
def test_scores_are_scikit_learns(each: list[JudgedTrajectory], threshold: float) -> None:
    labels = np.concatenate([one.labels for one in each])
    rewards = np.concatenate([one.rewards for one in each])[labels >= 0]
    labels = labels[labels >= 0]
    found = StepCounts(each)
    counts = found.at(threshold, plain(len(each)))
    called = (rewards > threshold).astype(int)
    if labels.any() or called.any():
        assert f1(counts)[0] == pytest.approx(sklearn.metrics.f1_score(labels, called, zero_division=0.0))
    if not (labels.all() and called.all()):
        negative = sklearn.metrics.f1_score(labels, called, pos_label=0, zero_division=0.0)
        assert negative_f1(counts)[0] == pytest.approx(negative)
    if 0 < labels.sum() < len(labels):
        expected = sklearn.metrics.balanced_accuracy_score(labels, called)
        assert balanced_accuracy(counts)[0] == pytest.approx(expected)
    curve = found.curve(np.ones(len(each)))
    if labels.all():
        assert np.isnan(average_precision(curve))
    else:
        expected = sklearn.metrics.average_precision_score(1 - labels, -rewards)
        assert average_precision(curve) == pytest.approx(expected)


@given(trajectories())
def test_the_curve_is_every_threshold(each: list[JudgedTrajectory]) -> None:
    found = StepCounts(each)
    curve = found.curve(np.ones(len(each)))
    for i, threshold in enumerate(found.thresholds):
        np.testing.assert_allclose(curve[:, i], found.at(threshold, plain(len(each)))[:, 0])


def test_a_benchmark_of_the_largest_size_takes_seconds() -> None:
    rng = np.random.default_rng(0)
    each = [judged(rng.normal(size=10).tolist(), [1] * 6 + [0] + [-1] * 3 if i % 2 else [1] * 10) for i in range(3400)]
    assert FirstErrors(each).best(resamples(3400, 200)).shape == (201, 3)
