"""Where is the first error? A posterior over its position, given the outcome and what every step shows.

For a trajectory of T steps with evidence x_1..x_T (one vector per step, standardized) and the outcome o (is the final
answer right, wrong, or not told):

    P(first error at t) = exp(w . x_t) / Z,        P(no error) = exp(b_o) / Z,        r_t = P(no error up to step t)

a conditional logit with an option of its own for "none" (McFadden 1974). Steps compete for the one error that a wrong
outcome tells of; steps judged one by one do not know that there is one, nor that it is the first that counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from cpmi.errors import InputError, require
from cpmi.protocols import FloatArray

Outcome = Literal["right", "wrong", "unanswered"]
Evidence = Mapping[str, Sequence[float] | FloatArray]
"""Per feature one number per step."""

BUILT_IN = "default"
_CLIP = 4.0  # standard deviations: beyond them a number says no more


@dataclass(frozen=True, slots=True)
class FirstErrorModel:
    """The numbers of the posterior.

    Attributes:
        features: their names, in order.
        mean, scale: of each feature, to standardize it.
        weights: of each standardized feature, in nats.
        none: for each outcome b_o, the weight of "no error".
        fitted_to: what people judged that it was fitted to, in words.
        n: how many trajectories that were.
    """

    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    none: dict[str, float]
    fitted_to: str = ""
    n: int = 0

    def __post_init__(self) -> None:
        lengths = {len(self.features), len(self.mean), len(self.scale), len(self.weights)}
        numbers = (*self.mean, *self.scale, *self.weights, *self.none.values())
        if lengths != {len(self.features)} or not self.features:
            raise InputError("a first-error model needs a mean, a scale and a weight for each of its features")
        if set(self.none) != set(get_args(Outcome)):
            raise InputError(f"a first-error model needs a weight of 'none' for each of {', '.join(get_args(Outcome))}")
        if not all(isinstance(each, int | float) and math.isfinite(each) for each in numbers):
            raise InputError("a first-error model must hold finite numbers")
        if not all(each > 0 for each in self.scale):
            raise InputError("the scales of a first-error model must be above 0")

    def posterior(self, evidence: Evidence, outcome: Outcome) -> FloatArray:
        """(steps + 1,) the chance of each step to be the first wrong one; the last: that there is no error.

        Raises:
            InputError: a feature is missing.
        """
        x = self.standardized(evidence)
        return _softmax(np.append(x @ np.array(self.weights), self.none[outcome]))

    def rewards(self, evidence: Evidence, outcome: Outcome) -> FloatArray:
        """(steps,) the chance that there is no error up to each step."""
        return np.clip(1 - np.cumsum(self.posterior(evidence, outcome)[:-1]), 0.0, 1.0)

    def standardized(self, evidence: Evidence) -> FloatArray:
        """(steps, features)."""
        if missing := [name for name in self.features if name not in evidence]:
            raise InputError(f"no evidence {missing[0]!r}, which the first-error model uses")
        x = np.stack([np.asarray(evidence[name], dtype=np.float64) for name in self.features], axis=1)
        clipped: FloatArray = np.clip((x - np.array(self.mean)) / np.array(self.scale), -_CLIP, _CLIP)
        return clipped

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def built_in(cls) -> FirstErrorModel:
        """The one that comes with the package; ``fitted_to`` says to what."""
        return cls.load(BUILT_IN)

    @classmethod
    def load(cls, name_or_file: str) -> FirstErrorModel:
        """The one that comes with the package (``default``), or a file that ``save`` wrote.

        Raises:
            InputError: no such file, or none of these.
        """
        try:
            if name_or_file == BUILT_IN:
                text = (resources.files("cpmi.labelers") / "first_error.json").read_text(encoding="utf-8")
            else:
                text = Path(name_or_file).read_text(encoding="utf-8")
            row = json.loads(text)
        except OSError as error:
            raise InputError(f"{name_or_file}: {error.strerror or error}; a file of cpmi fit, or default") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name_or_file}: not JSON in UTF-8 ({error})") from error
        try:
            listed = {name: tuple(row[name]) for name in ("features", "mean", "scale", "weights")}
            return cls(**listed, none=dict(row["none"]), fitted_to=str(row["fitted_to"]), n=int(row["n"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{name_or_file}: not a first-error model ({error})") from error
        except InputError as error:
            raise InputError(f"{name_or_file}: {error}") from error


@dataclass(frozen=True, slots=True)
class JudgedEvidence:
    """A trajectory that people judged: its evidence, its outcome, and the index of the first wrong step, or None."""

    evidence: Evidence
    outcome: Outcome
    first_error: int | None


def fit(
    judged: Sequence[JudgedEvidence], features: Sequence[str], *, ridge: float = 3.0, fitted_to: str = ""
) -> FirstErrorModel:
    """The numbers that make the judgments most likely (penalized: ``ridge / 2 * |w|^2``; convex, so there is one best).

    Raises:
        InputError: nothing to fit to, or scikit-learn (and SciPy with it) is not installed.
    """
    if len({each.first_error is None for each in judged}) < 2:
        raise InputError("a first-error model is fitted to trajectories with an error and to some without one")
    optimize: Any = require("scipy.optimize", "eval")
    stacked = [_stack(each.evidence, features) for each in judged]
    everything = np.concatenate(stacked)
    mean, scale = everything.mean(axis=0), everything.std(axis=0)
    scale[scale < 1e-6] = 1.0
    rows = [np.clip((x - mean) / scale, -_CLIP, _CLIP) for x in stacked]
    kinds = [get_args(Outcome).index(each.outcome) for each in judged]
    targets = [len(x) if each.first_error is None else each.first_error for x, each in zip(rows, judged, strict=True)]

    def loss(theta: FloatArray) -> tuple[float, FloatArray]:
        weights, none = theta[: len(features)], theta[len(features) :]
        total, slope = ridge / 2 * float(weights @ weights), np.concatenate([ridge * weights, _WEAK * none])
        total += _WEAK / 2 * float(none @ none)
        for x, kind, target in zip(rows, kinds, targets, strict=True):
            p = _softmax(np.append(x @ weights, none[kind]))
            total -= math.log(max(p[target], 1e-300))
            p[target] -= 1
            slope[: len(features)] += x.T @ p[:-1]
            slope[len(features) + kind] += p[-1]
        return total, slope

    start = np.zeros(len(features) + len(get_args(Outcome)))
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
    weights, none = found[: len(features)], found[len(features) :]
    return FirstErrorModel(
        tuple(features),
        _rounded(mean),
        _rounded(scale),
        _rounded(weights),
        dict(zip(get_args(Outcome), _rounded(none), strict=True)),
        fitted_to,
        len(judged),
    )


def _rounded(values: FloatArray) -> tuple[float, ...]:
    return tuple(np.round(values, 6).tolist())


_WEAK = 0.01  # keeps the weight of an outcome finite that is always followed by the same


def _stack(evidence: Evidence, features: Sequence[str]) -> FloatArray:
    if missing := [name for name in features if name not in evidence]:
        raise InputError(f"no evidence {missing[0]!r} to fit to")
    return np.stack([np.asarray(evidence[name], dtype=np.float64) for name in features], axis=1)


def _softmax(scores: FloatArray) -> FloatArray:
    exp = np.exp(scores - scores.max())
    return cast(FloatArray, exp / exp.sum())
