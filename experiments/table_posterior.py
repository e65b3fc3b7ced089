"""The posterior over the first error: which evidence counts, how many human labels it takes, what carries over.

    python experiments/table_posterior.py WORK --model smollm2-135m --sets gsm8k math prm800k mr-math bbm

Reads WORK/levels (``levels.py``), writes experiments/results/posterior-MODEL.json. "Own": ten folds of the set's own
questions. "Others": fitted to the other sets alone, so that nothing of the set was seen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import Scored, Table, figures, load
from table_cpmi import RESULTS, baselines, cpmi

from cpmi.fitting import cross_validated
from cpmi.labelers.evidence import FEATURES
from cpmi.labelers.first_error import FirstErrorModel, JudgedEvidence, Outcome, fit
from cpmi.protocols import FloatArray

POSITION = ("last", "first", "position", "late")
CPMI = ("gain", "gain_low", "lift", "lift_low", "level_before", "level", "drop")
LIKELIHOOD = ("likelihood", "likelihood_min", "likelihood_low", "length", "surprise", "unlikely", "ending")
READ = ("arithmetic_wrong", "arithmetic_right", "own_first", "own_before")
GROUPS = {
    "position": POSITION,
    "position, CPMI": (*POSITION, *CPMI),
    "position, likelihood": (*POSITION, *LIKELIHOOD),
    "position, CPMI, likelihood": (*POSITION, *CPMI, *LIKELIHOOD),
    "position, what can be read": (*POSITION, *READ),
    "everything": FEATURES,
}
BY_HAND = {"surprise": 1.0, "unlikely": 1.0, "gain": -1.0, "arithmetic_wrong": 1.0}
"""Without any human label: equal weights of standardized evidence, signs by what the features mean."""


def by_hand(judged: Sequence[JudgedEvidence]) -> FirstErrorModel:
    """No fit: standardized by the set itself; a wrong outcome surely has an error, a right one surely has none."""
    rows = {name: np.concatenate([np.asarray(each.evidence[name]) for each in judged]) for name in BY_HAND}
    none: dict[str, float] = dict.fromkeys(("right", "wrong", "unanswered"), 0.0)
    none |= {"right": 6.0, "wrong": -6.0}
    return FirstErrorModel(
        tuple(BY_HAND),
        tuple(float(values.mean()) for values in rows.values()),
        tuple(float(values.std()) or 1.0 for values in rows.values()),
        tuple(BY_HAND.values()),
        none,
    )


def apply(model: FirstErrorModel, judged: Sequence[JudgedEvidence]) -> list[FloatArray]:
    """Rewards of each."""
    return [model.rewards(each.evidence, each.outcome) for each in judged]


def main() -> None:
    """Every row, for every set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--sets", nargs="+", required=True)
    arguments = parser.parse_args()
    table = Table(
        f"posterior-{arguments.model}", "python experiments/table_posterior.py WORK " + " ".join(sys.argv[2:]), []
    )
    scored = {name: load(arguments.work, name, arguments.model) for name in arguments.sets}
    judged = {name: [each.judged_evidence() for each in found] for name, found in scored.items()}
    for name, own in scored.items():
        others = [each for other in scored if other != name for each in judged[other]]
        table.add(f"{name}: trajectories", {}, n=len(own), wrong=sum(x.first_error is not None for x in judged[name]))
        for baseline, rewards in baselines(own).items():
            table.add(f"{name}: baseline: {baseline}", figures(own, rewards))
        table.add(f"{name}: CPMI", figures(own, cpmi(own)))
        table.add(f"{name}: by hand, no human label", figures(own, apply(by_hand(judged[name]), judged[name])))
        for group, features in GROUPS.items():
            rewards = cross_validated(judged[name], [each.fold for each in own], features)
            table.add(f"{name}: own: {group}", figures(own, rewards))
            if others:
                table.add(f"{name}: others: {group}", figures(own, apply(fit(others, features), judged[name])))
        _hazard(table, name, own, judged[name])
        for count in (20, 50, 100):
            table.add(f"{name}: own: {count} labels", figures(own, _few(own, judged[name], count)))
    table.save(RESULTS)


def _few(own: Sequence[Scored], judged: Sequence[JudgedEvidence], count: int) -> list[FloatArray]:
    """Fitted to so many trajectories of the other folds."""
    folds = [each.fold for each in own]
    rewards = []
    for each, fold in zip(judged, folds, strict=True):
        rest = [other for other, at in zip(judged, folds, strict=True) if at != fold][:count]
        rewards.append(_fitted(tuple(map(id, rest)), rest).rewards(each.evidence, each.outcome))
    return rewards


_KNOWN: dict[tuple[int, ...], FirstErrorModel] = {}


def _fitted(key: tuple[int, ...], rest: Sequence[JudgedEvidence]) -> FirstErrorModel:
    if key not in _KNOWN:
        _KNOWN[key] = fit(rest, FEATURES)
    return _KNOWN[key]


def _hazard(table: Table, name: str, own: Sequence[Scored], judged: Sequence[JudgedEvidence]) -> None:
    """The stand-in: a logistic hazard per step on the same evidence and the outcome, survival."""
    from sklearn.linear_model import LogisticRegression

    outcomes: tuple[Outcome, ...] = ("right", "wrong")
    rows = [
        np.column_stack(
            [
                *(each.evidence[f] for f in FEATURES),
                *(np.full(len(each.evidence["gain"]), float(each.outcome == o)) for o in outcomes),
            ]
        )
        for each in judged
    ]
    folds = [each.fold for each in own]
    rewards: list[FloatArray] = [np.ones(0)] * len(rows)
    for fold in set(folds):
        xs, ys = [], []
        for each, x, at in zip(judged, rows, folds, strict=True):
            if at != fold:
                upto = len(x) if each.first_error is None else each.first_error + 1
                xs.append(x[:upto])
                ys.append(np.arange(upto) == (-1 if each.first_error is None else each.first_error))
        x, y = np.concatenate(xs), np.concatenate(ys)
        center, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
        model = LogisticRegression(max_iter=2000, C=0.3).fit((x - center) / scale, y)
        for i, at in enumerate(folds):
            if at == fold:
                rewards[i] = np.cumprod(1 - model.predict_proba((rows[i] - center) / scale)[:, 1])
    table.add(f"{name}: own: logistic hazard, everything", figures(own, rewards))


if __name__ == "__main__":
    main()
