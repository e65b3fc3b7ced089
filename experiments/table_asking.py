"""How the labeling model is asked: wording, examples, chat markup, spans, truncation, and wrong answers it makes up.

    python experiments/table_asking.py WORK --set gsm8k --model smollm2-135m --path hf:PATH

Every row is a run of ``cpmi label`` over the same trajectories, in WORK/asking, and goes on where it stopped. Writes
experiments/results/asking-SET-MODEL.json. A run of ``posterior`` has the evidence of its steps, so it gives two rows;
the posterior is fitted to the set's other questions (ten folds).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import Scored, Table, figures
from table_cpmi import RESULTS, baselines
from table_rollouts import by_id, outcome_of

from cpmi import StepRewards, read_trajectories
from cpmi.benchmarks.baselines import fold_of
from cpmi.fitting import cross_validated
from cpmi.grader import Grader
from cpmi.labelers.evidence import FEATURES
from cpmi.labelers.first_error import JudgedEvidence
from cpmi.labelers.levels import Levels

TEMPLATES = Path(__file__).parent / "templates"
WORDINGS = {
    "four cues": ["--template-set", "cues"],
    "one cue": ["--template-set", "cues", "--templates", "1"],
    "four instructions": ["--template-set", "instructions"],
    **{f"one template, {name}": ["--template-set", f"{name}.json"] for name in ("few-shot", "chat", "boxed", "bare")},
}
"""Both for the posterior and for CPMI."""

CPMI_ALONE = {
    "span: the answer without the cue": ["--span", "answer"],
    "truncation: top-k 20": ["--truncate-top-k", "20"],
    "truncation: top-p 0.95": ["--truncate-top-p", "0.95"],
    "wrong answers: sampled": ["--negative-kinds", "sampled"],
    "wrong answers: own, else sampled": ["--negative-kinds", "own|choice|sampled"],
    "wrong answers: sampled, cumulative (as MCNIG)": ["--negative-kinds", "sampled", "--context", "cumulative"],
}
"""With one cue, marginal contexts and the mean over tokens where the row does not say otherwise."""


def labels(work: Path, name: str, model: str, data: str, method: str, options: Sequence[str]) -> dict[str, StepRewards]:
    """Of one run, which is made or finished first."""
    words = "-".join("".join(c if c.isalnum() else " " for c in name).split())
    output = work / "asking" / f"{data}-{words}-{method}"
    shown = [str(TEMPLATES / each) if each.endswith(".json") else each for each in options]
    command = ["label", str(work / "data" / f"{data.split('-')[0]}.jsonl"), "--model", model, "--method", method]
    subprocess.run(
        [sys.executable, "-m", "cpmi", *command, "--dtype", "bfloat16", "--output", str(output), *shown], check=True
    )
    return dict(by_id(output))


def main() -> None:
    """Every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--set", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--rows", nargs="+", help="of these names alone")
    options = parser.parse_args()
    data = f"{options.set}-{options.model}"
    runs: dict[str, dict[str, StepRewards]] = {}
    for method, rows in (("posterior", WORDINGS), ("cpmi", CPMI_ALONE)):
        for name, asked in rows.items():
            if options.rows and name not in options.rows:
                continue
            base = [] if method == "posterior" else ["--template-set", "cues", "--templates", "1"]
            runs[name] = labels(options.work, name, options.path, data, method, [*base, *asked])
    read = list(read_trajectories(options.work / "data" / f"{options.set}.jsonl"))
    trajectories = [each for each in read if all(each.id in run for run in runs.values())]
    with Grader() as grader:
        outcomes = [outcome_of(each, grader) for each in trajectories]
    nothing = Levels((), np.zeros((0, 0, 0)), np.zeros((0, 0)))
    scored = [
        Scored(each, nothing, (), (), outcome, 0.0, 0) for each, outcome in zip(trajectories, outcomes, strict=True)
    ]
    words = ["hf:PATH" if word == options.path else word for word in sys.argv[2:]]
    table = Table(f"asking-{data}", "python experiments/table_asking.py WORK " + " ".join(words), [])
    table.add("trajectories", {}, n=len(scored), wrong=sum(each.first_error is not None for each in trajectories))
    for name, rewards in baselines(scored).items():
        table.add(f"baseline: {name}", figures(scored, rewards))
    folds = [fold_of(each.question) for each in trajectories]
    for name, run in runs.items():
        found = [run[each.id] for each in trajectories]
        cost = {"tokens_generated": sum(each.cost.tokens_generated for each in found) / len(found)}
        if name not in WORDINGS:
            table.add(f"CPMI: {name}", figures(scored, [np.asarray(each.rewards) for each in found]), **cost)
            continue
        evidence = [{key: np.asarray(each.terms[key]) for key in FEATURES} for each in found]
        table.add(f"CPMI: {name}", figures(scored, [each["gain"] for each in evidence]), **cost)
        judged = [
            JudgedEvidence(one, outcome, each.first_error)
            for one, outcome, each in zip(evidence, outcomes, trajectories, strict=True)
        ]
        table.add(f"posterior: {name}", figures(scored, cross_validated(judged, folds, FEATURES)), **cost)
    table.save(RESULTS)


if __name__ == "__main__":
    main()
