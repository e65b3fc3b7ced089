"""Maps from rewards to training targets, each fitted to the rewards of one source.

Rewards have the scale of whatever made them; a reward model is trained on numbers of one scale, mostly probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cpmi.errors import InputError, require, unknown_name
from cpmi.protocols import BoolArray, FloatArray

Squash = Literal["none", "sigmoid", "tanh", "table", "step", "conditional"]

_QUANTILES = 1001  # of a table
_TAIL = 0.01  # of the rewards that the quantile sigmoid sends below EPS, and above 1 - EPS
EPS = 0.01
AUTO = "auto"  # the normalizer that suits the source, see ``normalizer_for``
_SURVIVALS = ("posterior",)  # sources whose rewards are probabilities that no step so far is wrong


@dataclass(frozen=True, slots=True)
class FittedMap:
    """A map from the rewards of one source to targets: clip, then ``squash(slope * reward + offset)``.

    Attributes:
        normalizer: its name, one of ``NORMALIZERS``.
        source: the ``StepRewards.source`` it was fitted to.
        n: the number of rewards it was fitted to.
        squash: ``none``, ``sigmoid``, ``tanh``; ``table``: interpolate in ``x``, ``y``; ``step``: 1 above 0, else 0;
            ``conditional``: each reward over the one before it (1 before the first step).
        low, high: rewards are clipped to these, or (``drop``) trajectories with others are left out; None: no bound.
        x, y: of a table, ascending.
    """

    normalizer: str
    source: str
    n: int
    squash: Squash = "none"
    slope: float = 1.0
    offset: float = 0.0
    low: float | None = None
    high: float | None = None
    drop: bool = False
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.squash not in (*_SQUASH, "table", "conditional"):
            raise unknown_name("squash of a map", self.squash, (*_SQUASH, "table", "conditional"))
        if len(self.x) != len(self.y) or (self.squash == "table") != bool(self.x):
            raise InputError(f"the map of {self.source} has {len(self.x)} and {len(self.y)} points in its table")

    def __call__(self, rewards: FloatArray) -> FloatArray | None:
        """(steps,) targets of one trajectory, NaN where there is none; None where an outlier is to be dropped.

        Raises:
            InputError: ``conditional``, and a reward is no probability.
        """
        low = -np.inf if self.low is None else self.low
        high = np.inf if self.high is None else self.high
        if self.drop and ((rewards < low) | (rewards > high)).any():
            return None
        z = self.slope * np.clip(rewards, low, high) + self.offset
        if self.squash == "conditional":
            _check_probabilities(self.source, z)
            before = _before(z)
            ratios = np.divide(z, before, out=np.full(len(z), np.nan), where=before > 0)
            return np.asarray(np.minimum(ratios, 1.0))
        return _SQUASH[self.squash](z) if self.squash != "table" else np.interp(z, self.x, self.y)

    def weights(self, rewards: FloatArray) -> FloatArray | None:
        """(steps,) how much each target counts, None where all count alike.

        A conditional target tells something only where the steps before it are right, so it counts as the probability
        of that: the expected log-likelihood of the first wrong step. People's labels are the case of certainty.
        """
        return _before(rewards) if self.squash == "conditional" else None


def _before(survival: FloatArray) -> FloatArray:
    """(steps,) the probability that no step before this one is wrong."""
    return np.concatenate([np.ones(1), survival[:-1]])


def _check_probabilities(source: str, rewards: FloatArray) -> None:
    if ((rewards < 0) | (rewards > 1)).any():
        raise InputError(
            f"{source}: conditional takes probabilities, such as the posterior's; these rewards reach from "
            f"{rewards.min():g} to {rewards.max():g}; use quantile-sigmoid"
        )


def _sigmoid(z: FloatArray) -> FloatArray:
    return np.asarray(0.5 * (1 + np.tanh(z / 2)))  # never overflows


_SQUASH: dict[str, Callable[[FloatArray], FloatArray]] = {
    "none": lambda z: z,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "step": lambda z: (z > 0).astype(np.float64),
}


@dataclass(frozen=True, slots=True)
class Outliers:
    """What becomes of rewards far out.

    Attributes:
        rule: ``keep``; ``clip`` them to the bounds; ``drop`` the trajectories that have one.
        bound: the most that |reward| may be (the official CPMI code drops beyond 60); None: the quantiles 0.01 and 0.99
            of the rewards (winsorizing).

    Raises:
        InputError: a bound that is no positive number.
    """

    rule: Literal["keep", "clip", "drop"] = "keep"
    bound: float | None = None

    def __post_init__(self) -> None:
        if self.bound is not None and not (np.isfinite(self.bound) and self.bound > 0):
            raise InputError(f"the bound of outliers must be a number above 0, not {self.bound}")

    @classmethod
    def parse(cls, text: str) -> Outliers:
        """Read ``keep``, ``clip``, ``drop``, ``clip:BOUND`` or ``drop:BOUND``.

        Raises:
            InputError: anything else.
        """
        rule, colon, bound = text.partition(":")
        try:
            value = float(bound) if colon else None
        except ValueError:
            value = -1.0
        if rule in ("clip", "drop"):
            return cls("clip" if rule == "clip" else "drop", value)
        if text == "keep":
            return cls()
        raise InputError(f"outliers {text!r}: use keep, clip, drop, clip:BOUND or drop:BOUND")

    def bounds(self, rewards: FloatArray) -> tuple[float | None, float | None]:
        """The lowest and the highest reward that is no outlier."""
        if self.rule == "keep":
            return None, None
        if self.bound is not None:
            return -self.bound, self.bound
        low, high = np.quantile(rewards, [_TAIL, 1 - _TAIL])
        return float(low), float(high)


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """How rewards become targets.

    Attributes:
        normalizer: one of ``NORMALIZERS``; or ``auto``: for each source what ``normalizer_for`` says.
        temperature: divides a standardized reward before it is squashed.
        at: the line of ``threshold``: targets are 1 above it.

    Raises:
        InputError: an unknown normalizer, a temperature that is not above 0.
    """

    normalizer: str = AUTO
    temperature: float = 1.0
    at: float = 0.0
    outliers: Outliers = Outliers()

    def __post_init__(self) -> None:
        if self.normalizer not in (AUTO, *NORMALIZERS):
            raise unknown_name("normalizer", self.normalizer, (AUTO, *NORMALIZERS))
        if not np.isfinite(self.at):
            raise InputError(f"the line of the threshold must be a finite number, not {self.at}")
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"the temperature must be a number above 0, not {self.temperature}")


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What a map is fitted to: the rewards of one source.

    Attributes:
        rewards: (n,) of all steps.
        labeled, labels: (m,) rewards of the steps that people judged, and 1.0 (right) or 0.0 (wrong) for each.
    """

    source: str
    rewards: FloatArray
    labeled: FloatArray
    labels: FloatArray


Shape = Mapping[str, Any]


def _affine(center: float, scale: float, squash: Squash, settings: TargetSettings) -> Shape:
    slope = 1 / (scale * settings.temperature)
    return {"squash": squash, "slope": slope, "offset": -center * slope}


def _zscore(squash: Squash) -> Callable[[Sample, TargetSettings], Shape]:
    return lambda sample, settings: _affine(float(sample.rewards.mean()), float(sample.rewards.std()), squash, settings)


def _mad(squash: Squash) -> Callable[[Sample, TargetSettings], Shape]:
    def fit(sample: Sample, settings: TargetSettings) -> Shape:
        """Median and median absolute deviation; 1.4826 of the latter are a standard deviation of normal numbers."""
        median = float(np.median(sample.rewards))
        scale = 1.4826 * float(np.median(np.abs(sample.rewards - median)))
        if scale == 0:
            raise InputError(
                f"{sample.source}: half of its rewards are {median:g}, so their MAD is 0; use zscore-sigmoid"
            )
        return _affine(median, scale, squash, settings)

    return fit


def _quantile_sigmoid(sample: Sample, settings: TargetSettings) -> Shape:
    """The sigmoid that sends the quantiles 0.01 and 0.99 to EPS and 1 - EPS ("logquant" of the official CPMI code)."""
    low, high = np.quantile(sample.rewards, [_TAIL, 1 - _TAIL])
    if low == high:
        raise InputError(
            f"{sample.source}: 98 % of its rewards are {low:g}, so no quantile tells them apart; use zscore-sigmoid"
        )
    half = np.log((1 - EPS) / EPS)
    return _affine(float(low + high) / 2, float((high - low) / 2 / half), "sigmoid", settings)


def _rank(sample: Sample, settings: TargetSettings) -> Shape:
    """The share of rewards below; equal ones share the middle of theirs."""
    del settings
    levels = np.linspace(0, 1, min(len(sample.rewards), _QUANTILES))
    places = (levels * (len(sample.rewards) - 1)).round().astype(np.int64)
    return _table(np.sort(sample.rewards)[places], levels)


def _table(x: FloatArray, y: FloatArray) -> Shape:
    """Ascending ``x``, each once, with the mean of its ``y``."""
    distinct, owner, counts = np.unique(x, return_inverse=True, return_counts=True)
    means = np.bincount(owner, weights=y) / counts
    return {"squash": "table", "x": tuple(distinct.tolist()), "y": tuple(means.tolist())}


def _threshold(sample: Sample, settings: TargetSettings) -> Shape:
    del sample
    return {"squash": "step", "offset": -settings.at}


def _isotonic(sample: Sample, settings: TargetSettings) -> Shape:
    """The share of right steps as a function of the reward that never falls (pool adjacent violators)."""
    del settings
    module: Any = require("sklearn.isotonic", "eval")
    _check_labels(sample)
    fitted = module.IsotonicRegression(out_of_bounds="clip").fit(sample.labeled, sample.labels)
    return _table(np.asarray(fitted.X_thresholds_), np.asarray(fitted.y_thresholds_))


def _platt(sample: Sample, settings: TargetSettings) -> Shape:
    """A sigmoid of the reward, fitted to the labels by maximum likelihood (Platt, 1999)."""
    del settings
    module: Any = require("sklearn.linear_model", "eval")
    _check_labels(sample)
    center, scale = float(sample.labeled.mean()), float(sample.labeled.std())
    x = (sample.labeled - center) / scale
    fitted = module.LogisticRegression(C=1e6, max_iter=1000).fit(x[:, None], sample.labels)
    slope = float(fitted.coef_[0, 0]) / scale
    return {"squash": "sigmoid", "slope": slope, "offset": float(fitted.intercept_[0]) - slope * center}


def _check_labels(sample: Sample) -> None:
    if len(np.unique(sample.labels)) < 2:
        raise InputError(
            f"{sample.source}: calibration needs human labels of right and of wrong steps; there are not both"
        )
    if np.ptp(sample.labeled) == 0:
        raise InputError(f"{sample.source}: all labeled steps have the same reward, which cannot be calibrated")


def _identity(sample: Sample, settings: TargetSettings) -> Shape:
    del sample, settings
    return {}


def _conditional(sample: Sample, settings: TargetSettings) -> Shape:
    """P(this step is right | all before it are) from P(all up to this one are)."""
    del settings
    _check_probabilities(sample.source, sample.rewards)
    return {"squash": "conditional"}


NORMALIZERS: dict[str, Callable[[Sample, TargetSettings], Shape]] = {
    "zscore-sigmoid": _zscore("sigmoid"),
    "quantile-sigmoid": _quantile_sigmoid,
    "mad-sigmoid": _mad("sigmoid"),
    "mad-tanh": _mad("tanh"),
    "rank": _rank,
    "standardize": _zscore("none"),
    "threshold": _threshold,
    "isotonic": _isotonic,
    "platt": _platt,
    "identity": _identity,
    "conditional": _conditional,
}

_NEEDS_NO_SPREAD = ("threshold", "identity", "conditional")


def normalizer_for(source: str, asked: str = AUTO) -> str:
    """The name in ``NORMALIZERS`` that is meant for the rewards of a source; ``auto``: ``conditional`` for the
    posterior's, else ``quantile-sigmoid`` (docs/results.md has the evidence)."""
    if asked != AUTO:
        return asked
    return "conditional" if source in _SURVIVALS else "quantile-sigmoid"


def fit(sample: Sample, settings: TargetSettings) -> FittedMap:
    """Fit a map to the rewards of one source; outliers are clipped, or left out, before. It names what ``auto`` became.

    Raises:
        InputError: rewards that are all the same, or labels that are missing.
    """
    low, high = settings.outliers.bounds(sample.rewards)
    drop = settings.outliers.rule == "drop"
    inside = _inside(sample.rewards, low, high) if drop else np.ones(len(sample.rewards), dtype=np.bool_)
    judged = _inside(sample.labeled, low, high) if drop else np.ones(len(sample.labeled), dtype=np.bool_)
    kept = Sample(
        sample.source,
        _clipped(sample.rewards[inside], low, high),
        _clipped(sample.labeled[judged], low, high),
        sample.labels[judged],
    )
    normalizer = normalizer_for(sample.source, settings.normalizer)
    if normalizer not in _NEEDS_NO_SPREAD and (not len(kept.rewards) or np.ptp(kept.rewards) == 0):
        what = f"are {kept.rewards[0]:g}" if len(kept.rewards) else "are outliers"
        raise InputError(f"{sample.source}: all its rewards {what}; there is nothing to learn from them")
    shape = NORMALIZERS[normalizer](kept, settings)
    return FittedMap(normalizer, sample.source, len(kept.rewards), low=low, high=high, drop=drop, **shape)


def _inside(rewards: FloatArray, low: float | None, high: float | None) -> BoolArray:
    return np.asarray(rewards == _clipped(rewards, low, high))


def _clipped(rewards: FloatArray, low: float | None, high: float | None) -> FloatArray:
    return np.clip(rewards, -np.inf if low is None else low, np.inf if high is None else high)
