"""How well the rewards of runs agree with human step labels; prints a row per run.

    python benchmarks/label_quality.py --trajectories trajectories.jsonl RUN...

Pooled AUC: right against wrong steps of all trajectories, over annotated steps. Within: the first wrong step against
the right ones before it. First-error F1 is ProcessBench's metric (a step is called wrong if its reward is at most a
threshold) with the threshold that is best on these very labels: an upper bound. An AUC alone proves little, since
whoever knows the final answer gets a high one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from cpmi import read_rewards, read_trajectories
from cpmi.protocols import FloatArray


def auc(right: FloatArray, wrong: FloatArray) -> float:
    """The share of (right, wrong) pairs in which the right step has the higher reward; ties count half."""
    difference = right[:, None] - wrong[None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def first_error_f1(cases: list[tuple[FloatArray, int | None]], threshold: float) -> float:
    """Harmonic mean of the accuracies on trajectories with and without an error (ProcessBench's run_eval.py)."""
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for rewards, first_error in cases:
        below = np.flatnonzero(rewards <= threshold)
        predicted = int(below[0]) if len(below) else None
        hits[first_error is None].append(predicted == first_error)
    correct, error = (float(np.mean(each)) for each in hits.values())
    return 2 * correct * error / (correct + error) if correct + error else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=Path, required=True)
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    by_id = {trajectory.id: trajectory for trajectory in read_trajectories(options.trajectories)}
    print("| run | trajectories | pooled AUC | within-trajectory AUC | first-error F1, oracle threshold |")
    print("|---|---|---|---|---|")
    for run in options.runs:
        steps: dict[bool, list[float]] = {True: [], False: []}
        within, cases = [], []
        for record in read_rewards(run):
            trajectory = by_id[record.trajectory_id]
            if record.error is not None or trajectory.step_labels is None:
                continue
            rewards = np.array(record.rewards)
            for reward, label in zip(record.rewards, trajectory.step_labels, strict=True):
                if label is not None:
                    steps[label].append(reward)
            first = trajectory.first_error
            cases.append((rewards, first))
            if first:
                within.append(auc(rewards[:first], rewards[first : first + 1]))
        pooled = auc(np.array(steps[True]), np.array(steps[False]))
        thresholds = np.quantile(np.array(steps[True] + steps[False]), np.linspace(0, 1, 201))
        best = max(first_error_f1(cases, float(threshold)) for threshold in thresholds)
        print(f"| {run.name} | {len(cases)} | {pooled:.3f} | {np.mean(within):.3f} | {best:.3f} |")


if __name__ == "__main__":
    main()
