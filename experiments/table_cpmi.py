"""What decides a CPMI label: contexts, means, wrong answers, templates. One table for each set and model.

    python experiments/table_cpmi.py WORK --set gsm8k --model smollm2-135m

Reads WORK/levels (``levels.py``), writes experiments/results/cpmi-SET-MODEL.json. All rows are the same trajectories.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from common import DEFAULT, Scored, Table, figures, load, with_templates

from cpmi.benchmarks.baselines import survival
from cpmi.benchmarks.cases import Case
from cpmi.errors import InputError
from cpmi.labelers.levels import Contrast, Normalization
from cpmi.prompts import ContextKind
from cpmi.protocols import FloatArray

RESULTS = Path(__file__).parent / "results"
KINDS = (
    "rule",
    "intermediate",
    "intermediate,rule",
    "own,intermediate,rule",
    "own|intermediate,rule",
    "own,rule",
    DEFAULT,
)


def baselines(scored: Sequence[Scored]) -> dict[str, list[FloatArray]]:
    """The two that read no step."""
    right = np.array([float(each.outcome == "right") for each in scored])
    steps = [len(each.trajectory.steps) for each in scored]
    cases = [Case(each.trajectory, np.zeros(n)) for each, n in zip(scored, steps, strict=True)]
    return {
        "outcome": [np.full(n, value) for n, value in zip(steps, right, strict=True)],
        "outcome + position": survival(cases, right),
    }


def cpmi(
    scored: Sequence[Scored],
    context: ContextKind = "marginal",
    kinds: str = DEFAULT,
    count: int = 4,
    normalization: Normalization = "mean",
    contrast: Contrast = "mean",
    weight: float = 1.0,
) -> list[FloatArray]:
    """CPMI rewards by one setting."""
    rewards = []
    for each in scored:
        levels = each.with_kinds(kinds, count)
        right, wrong = levels.gains(context, len(each.trajectory.steps), normalization, contrast)
        rewards.append(right - weight * wrong)
    return rewards


def level(scored: Sequence[Scored]) -> list[FloatArray]:
    """Where the right answer stands over the wrong ones after the prefix."""
    rewards = []
    for each in scored:
        prefixes = [tuple(range(k + 1)) for k in range(len(each.trajectory.steps))]
        at = each.with_kinds(DEFAULT).at(prefixes)
        wrong = at[:, :, 1:].mean(axis=2) if at.shape[2] > 1 else 0.0
        rewards.append((at[:, :, 0] - wrong).mean(axis=0))
    return rewards


def main() -> None:
    """Every row of one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--set", required=True)
    parser.add_argument("--model", required=True)
    arguments = parser.parse_args()
    scored = load(arguments.work, arguments.set, arguments.model)
    command = "python experiments/table_cpmi.py WORK " + " ".join(sys.argv[2:])
    table = Table(f"cpmi-{arguments.set}-{arguments.model}", command, [])
    table.add("trajectories", {}, n=len(scored), wrong=sum(x.trajectory.first_error is not None for x in scored))
    for name, rewards in baselines(scored).items():
        table.add(f"baseline: {name}", figures(scored, rewards))
    every_context = [kind for kind in get_args(ContextKind) if _has(scored, kind)]
    for context in every_context:
        for normalization in get_args(Normalization):
            found = cpmi(scored, context, normalization=normalization)
            table.add(f"context: {context}, {normalization}", figures(scored, found))
    if "cumulative" in every_context:
        table.add("context: level after the prefix", figures(scored, level(scored)))
    for kinds in KINDS:
        table.add(f"wrong answers: {kinds}", figures(scored, cpmi(scored, kinds=kinds)))
    for count in (1, 2, 4):
        table.add(f"M: {count} by rule", figures(scored, cpmi(scored, kinds="rule", count=count)))
    for weight in (0.0, 0.5, 1.0):
        table.add(f"w: {weight}", figures(scored, cpmi(scored, weight=weight)))
    table.add("contrast: hardest", figures(scored, cpmi(scored, kinds="intermediate,rule", contrast="hardest")))
    templates = len(scored[0].levels.sums)
    for count in sorted(each for each in {1, 2, templates} if each <= templates):
        some = [with_templates(each, range(count)) for each in scored]
        table.add(f"K: {count}", figures(some, cpmi(some)))
    table.save(RESULTS)


def _has(scored: Sequence[Scored], kind: ContextKind) -> bool:
    try:
        cpmi(scored[:1], kind)
    except InputError:
        return False
    return True


if __name__ == "__main__":
    main()
