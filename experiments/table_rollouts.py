"""Monte Carlo, with and without the outcome, beside the posterior: the same trajectories and the same model.

    cpmi label FILE --model hf:PATH --output WORK/posterior
    cpmi label FILE --model vllm:PATH --method mc --rollouts 8 --max-tokens 512 --top-p 1 --output WORK/mc
    python experiments/table_rollouts.py FILE --posterior WORK/posterior --mc WORK/mc --name rollouts-gsm8k-qwen-0.5b

All that is fitted is fitted to other questions of the same file (ten folds). Writes experiments/results/NAME.json.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from common import Scored, Table, figures
from table_cpmi import RESULTS, baselines

from cpmi import StepRewards, Trajectory, read_rewards, read_trajectories
from cpmi.benchmarks.baselines import fold_of, known_outcome
from cpmi.fitting import cross_validated
from cpmi.grader import Grader
from cpmi.labelers.evidence import FEATURES
from cpmi.labelers.first_error import JudgedEvidence, Outcome
from cpmi.labelers.levels import Levels
from cpmi.protocols import FloatArray

POSITION = ("last", "first", "position", "late")
ROLLED = ("value", "value_before", "fall", "dead")


def rolled(values: FloatArray) -> dict[str, FloatArray]:
    """Evidence of Monte Carlo values: where the value stands, how far it fell, whether it is 0 from here on."""
    before = np.concatenate([values[:1], values[:-1]])
    dead = np.array([float(not values[t:].any()) for t in range(len(values))])
    return {"value": values, "value_before": before, "fall": before - values, "dead": dead}


def main() -> None:
    """Every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trajectories", type=Path)
    parser.add_argument("--posterior", type=Path, required=True)
    parser.add_argument("--mc", type=Path, required=True)
    parser.add_argument("--name", required=True)
    options = parser.parse_args()
    shown = by_id(options.posterior)
    values = by_id(options.mc)
    trajectories = [each for each in read_trajectories(options.trajectories) if each.id in shown and each.id in values]
    with Grader() as grader:
        outcomes = [outcome_of(each, grader) for each in trajectories]
    scored = [
        Scored(each, Levels((), np.zeros((0, 0, 0)), np.zeros((0, 0))), (), (), outcome, 0.0, 0)
        for each, outcome in zip(trajectories, outcomes, strict=True)
    ]
    evidence = [
        {**{name: np.asarray(term) for name, term in shown[each.id].terms.items()}}
        | rolled(np.asarray(values[each.id].rewards, dtype=np.float64))
        for each in trajectories
    ]
    judged = [
        JudgedEvidence(one, outcome, each.first_error)
        for one, outcome, each in zip(evidence, outcomes, trajectories, strict=True)
    ]
    folds = [fold_of(each.question) for each in trajectories]
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    table = Table(options.name, "python experiments/table_rollouts.py " + shlex.join(words), [])
    table.add("trajectories", {}, n=len(scored), wrong=sum(each.first_error is not None for each in trajectories))
    for name, rewards in baselines(scored).items():
        table.add(f"baseline: {name}", figures(scored, rewards), **cost([]))
    runs = [values[each.id] for each in trajectories]
    table.add("Monte Carlo", figures(scored, [np.asarray(run.rewards) for run in runs]), **cost(runs))
    for name, features, paid in (
        ("Monte Carlo, outcome, position", (*POSITION, *ROLLED), runs),
        ("posterior", FEATURES, [shown[each.id] for each in trajectories]),
        ("posterior with Monte Carlo", (*FEATURES, *ROLLED), runs),
    ):
        table.add(name, figures(scored, cross_validated(judged, folds, features)), **cost(paid))
    table.save(RESULTS)


def by_id(run: Path) -> Mapping[str, StepRewards]:
    """The records without an error."""
    return {each.trajectory_id: each for each in read_rewards(run) if each.error is None}


def outcome_of(trajectory: Trajectory, grader: Grader) -> Outcome:
    """Right, wrong, or unanswered."""
    told: dict[str, Outcome] = {"right": "right", "wrong": "wrong"}
    return told.get(known_outcome(trajectory, grader), "unanswered")


def cost(records: Sequence[StepRewards]) -> dict[str, float]:
    """Per trajectory, of the labels alone."""
    count = max(1, len(records))
    return {
        "seconds": round(sum(each.cost.seconds for each in records) / count, 2),
        "tokens_generated": round(sum(each.cost.tokens_generated for each in records) / count, 1),
    }


if __name__ == "__main__":
    main()
