"""Judged trajectories for the tests of metrics."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from cpmi.metrics import JudgedTrajectory
from cpmi.protocols import FloatArray

some_rewards = st.integers(-3, 3).map(float)  # few values, so that there are ties


def judged(rewards: list[float], labels: list[int]) -> JudgedTrajectory:
    return JudgedTrajectory(np.array(rewards, dtype=np.float64), np.array(labels, dtype=np.int64))


@st.composite
def trajectories(draw: st.DrawFn, least: int = 1) -> list[JudgedTrajectory]:
    """Trajectories as in ProcessBench: right steps up to a first error, what follows it not annotated."""
    made = []
    for _ in range(draw(st.integers(least, 8))):
        rewards = draw(st.lists(some_rewards, min_size=1, max_size=5))
        first = draw(st.integers(0, len(rewards)))
        labels = [1] * first + [0] * (first < len(rewards)) + [-1] * (len(rewards) - first - 1)
        made.append(judged(rewards, labels))
    return made


def plain(count: int) -> FloatArray:
    return np.ones((1, count))
