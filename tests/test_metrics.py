"""Metrics by hand, against scikit-learn and SciPy, and by what must hold."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from cpmi.metrics import (
    Estimate,
    JudgedTrajectory,
    PooledAUC,
    WithinAUC,
    average_ranks,
    estimate,
    resamples,
    roc_auc,
    spearman,
)
from judgments import judged, plain, some_rewards, trajectories

# --- ranks and areas ------------------------------------------------------------------------------------------------


@given(st.lists(some_rewards, min_size=1, max_size=30))
def test_ranks_are_scipys(values: list[float]) -> None:
    np.testing.assert_array_equal(average_ranks(np.array(values)), scipy.stats.rankdata(values))


@given(st.lists(st.tuples(some_rewards, some_rewards), min_size=2, max_size=30))
def test_rank_correlation_is_scipys(pairs: list[tuple[float, float]]) -> None:
    a, b = (np.array(each) for each in zip(*pairs, strict=True))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert spearman(a, b) is None
    else:
        assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)


def test_area_by_hand() -> None:
    """Right 3, 1, 1; wrong 2, 1. Pairs: 3>2, 3>1, 1<2, 1=1, 1<2, 1=1: 2 + 2 halves of 6."""
    assert roc_auc(np.array([3.0, 1, 1]), np.array([2.0, 1])) == pytest.approx(0.5)
    assert roc_auc(np.array([3.0]), np.array([])) is None


@given(st.lists(some_rewards, min_size=1, max_size=20), st.lists(some_rewards, min_size=1, max_size=20))
def test_area_is_scikit_learns_and_turns_around(right: list[float], wrong: list[float]) -> None:
    area = roc_auc(np.array(right), np.array(wrong))
    assert area == pytest.approx(sklearn.metrics.roc_auc_score([1] * len(right) + [0] * len(wrong), right + wrong))
    assert roc_auc(-np.array(right), -np.array(wrong)) == pytest.approx(1 - (area or 0.0))
    assert roc_auc(np.exp(right), np.exp(wrong)) == pytest.approx(area)


@given(trajectories())
def test_pooled_area_takes_annotated_steps_of_all_trajectories(each: list[JudgedTrajectory]) -> None:
    right = np.concatenate([one.rewards[one.labels == 1] for one in each])
    wrong = np.concatenate([one.rewards[one.labels == 0] for one in each])
    value = PooledAUC(each)(plain(len(each)))[0]
    expected = roc_auc(right, wrong)
    assert np.isnan(value) if expected is None else value == pytest.approx(expected)


@given(trajectories(2), st.data())
def test_a_weight_of_two_is_the_trajectory_twice(each: list[JudgedTrajectory], data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 3), min_size=len(each), max_size=len(each)))
    repeated = [one for one, count in zip(each, counts, strict=True) for _ in range(count)]
    if not repeated:
        return
    for metric in (PooledAUC, WithinAUC):
        weighted = metric(each)(np.array([counts], dtype=np.float64))[0]
        np.testing.assert_allclose(weighted, metric(repeated)(plain(len(repeated)))[0])


def test_within_trajectories_by_hand() -> None:
    """One: wrong 1 against 2 and 0: a half. Two: wrong 3 against 3: a tie. Three and four have nothing to compare."""
    each = [
        judged([2, 0, 1, 9], [1, 1, 0, -1]),
        judged([3, 3], [1, 0]),
        judged([1, 0], [0, -1]),
        judged([1, 2], [1, 1]),
    ]
    assert WithinAUC(each)(plain(4))[0] == pytest.approx(0.5)
    each[1] = judged([4, 3], [1, 0])
    assert WithinAUC(each)(plain(4))[0] == pytest.approx(0.75)


@given(trajectories(2), st.randoms())
def test_the_order_of_trajectories_changes_nothing(each: list[JudgedTrajectory], random: object) -> None:
    shuffled = [*each]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for metric in (PooledAUC, WithinAUC):
        np.testing.assert_allclose(metric(each)(plain(len(each))), metric(shuffled)(plain(len(each))))


# --- intervals ------------------------------------------------------------------------------------------------------


def test_resamples_begin_with_the_data_and_repeat() -> None:
    drawn = resamples(5, 100, seed=3)
    assert drawn.shape == (101, 5)
    assert (drawn[0] == 1).all()
    assert (drawn.sum(axis=1) == 5).all()
    np.testing.assert_array_equal(drawn, resamples(5, 100, seed=3))
    assert (drawn[1:] != resamples(5, 100, seed=4)[1:]).any()


def test_an_interval_by_hand() -> None:
    assert estimate(np.array([7.0, *range(41)])) == Estimate(7.0, 1.0, 39.0)
    assert estimate(np.array([np.nan, 1.0])) == Estimate(None)
    assert estimate(np.array([1.0, np.nan, 3.0])) == Estimate(1.0, 3.0, 3.0)
    assert estimate(np.array([1.0, np.nan])) == Estimate(1.0)


def test_the_interval_of_a_mean_has_the_width_it_should() -> None:
    """Within-trajectory areas of 0 and 1, half and half, of 400: a standard error of 0.025."""
    each = [judged([1, 0], [1, 0]), judged([0, 1], [1, 0])] * 200
    found = estimate(WithinAUC(each)(resamples(400, 2000)))
    assert found.value == 0.5
    assert found.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.01)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.01)


def test_a_benchmark_of_the_largest_size_takes_seconds() -> None:
    rng = np.random.default_rng(0)
    each = [judged(rng.normal(size=10).tolist(), [1] * 6 + [0] + [-1] * 3 if i % 2 else [1] * 10) for i in range(3400)]
    weights = resamples(3400, 200)
    for metric in (PooledAUC, WithinAUC):
        assert estimate(metric(each)(weights)).low is not None
