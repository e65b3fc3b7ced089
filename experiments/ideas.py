"""Ideas that were tried beside the evidence of the posterior, each by one more reading of the solution.

    python experiments/ideas.py WORK --idea hindsight --set gsm8k --model smollm2-135m --path hf:PATH

* ``hindsight``: how likely each step is once the final answer is told, the right one or the wrong one. By Bayes a step
  that leads to the wrong answer is likelier under it.
* ``verdict``: after every step the model is asked whether everything above is right: log p(Yes) - log p(No).
* ``perturbed``: the step against versions of itself whose last result is changed: a local contrast.

Goes on where it stopped; then prints its rows: the new feature as a reward, and the posterior with and without it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import DEFAULT, Scored, Table, figures, load
from levels import done
from table_cpmi import RESULTS

from cpmi import ModelSettings, Trajectory, open_model
from cpmi.answers import results_in
from cpmi.fitting import cross_validated
from cpmi.labelers.evidence import FEATURES
from cpmi.labelers.first_error import JudgedEvidence
from cpmi.labelers.levels import score_levels
from cpmi.labelers.perturbations import perturb
from cpmi.prompts import CUES, Template, plan_steps
from cpmi.protocols import FloatArray

VERSIONS = 3


@dataclass(frozen=True, slots=True)
class Idea:
    """What to read, what features come of it (the first is the raw reward)."""

    read: Callable[[Any, Scored], dict[str, list[float]] | None]
    features: Callable[[dict[str, FloatArray], Scored], dict[str, FloatArray]]


def _sums(model: Any, question: str, solutions: list[tuple[str, ...]], template: Template) -> list[list[float]]:
    """Of each solution the log-probability of each step."""
    sums: dict[int, list[float]] = {}
    for plan in plan_steps(question, solutions, template, model):
        (result,) = model.logprobs([plan.tree])
        if result.logprobs is None:
            raise SystemExit(str(result.error))
        for number, spans in plan.spans.items():
            sums[number] = [float(result.logprobs[nodes].sum()) for nodes in spans]
    return [sums[number] for number in range(len(solutions))]


# --- hindsight ------------------------------------------------------------------------------------------------------

_TOLD = (
    "Solve the following problem step by step.\n\nProblem: {question}\n\nThe final answer is known to be ANSWER.\n\n"
    "Solution:\n\n"
)


def _wrong_answer(scored: Scored) -> str | None:
    """The first of those that the default kinds choose."""
    for choice in DEFAULT.split("|"):
        for answer, kind in zip(scored.answers, scored.kinds, strict=True):
            if kind == choice:
                return answer
    return None


def _read_hindsight(model: Any, scored: Scored) -> dict[str, list[float]] | None:
    if (wrong := _wrong_answer(scored)) is None:
        return None
    read = {}
    for name, answer in (("right", scored.answers[0]), ("wrong", wrong)):
        template = Template(_TOLD.replace("ANSWER", answer.translate(str.maketrans("{}", "()"))), "{answer}")
        (read[name],) = _sums(model, scored.trajectory.question, [scored.trajectory.steps], template)
    return read


def _hindsight(read: dict[str, FloatArray], scored: Scored) -> dict[str, FloatArray]:
    contrast = read["right"] - read["wrong"]
    plain = np.array([step.sum() for step in scored.levels.steps])
    return {
        "told": contrast,
        "told_low": np.minimum(contrast, 0),
        "told_gain": read["right"] - plain,
        "told_wrong_gain": read["wrong"] - plain,
        "told_sum": np.cumsum(contrast),
    }


# --- verdict --------------------------------------------------------------------------------------------------------

_ASK = Template(
    CUES[0].instruction, "Question: Is everything in the solution so far correct, Yes or No?\nAnswer: {answer}"
)


def _read_verdict(model: Any, scored: Scored) -> dict[str, list[float]] | None:
    (found,) = score_levels(model, [scored.trajectory], [["Yes", "No"]], ("cumulative",), (_ASK,))
    if found.levels is None:
        return None
    at = found.levels.at([tuple(range(k)) for k in range(len(scored.trajectory.steps) + 1)], "sum")
    return {"yes": (at[0, :, 0] - at[0, :, 1]).tolist()}


def _verdict(read: dict[str, FloatArray], scored: Scored) -> dict[str, FloatArray]:
    del scored
    yes = read["yes"]
    return {"yes": yes[1:], "yes_change": np.diff(yes), "yes_drop": yes[1:] - np.maximum.accumulate(yes)[1:]}


# --- perturbed ------------------------------------------------------------------------------------------------------


def _versions(trajectory: Trajectory, at: int) -> list[str]:
    """A step with its last result changed."""
    step = trajectory.steps[at]
    result = next((each for each in reversed(results_in(step)) if each in step), None)
    if result is None:
        return []
    before, _, after = step.rpartition(result)
    return [before + other + after for other in list(perturb(result, trajectory.question))[:VERSIONS]]


def _read_perturbed(model: Any, scored: Scored) -> dict[str, list[float]] | None:
    steps = scored.trajectory.steps
    solutions, places = [steps], []
    for at in range(len(steps)):
        for version in _versions(scored.trajectory, at):
            solutions.append((*steps[:at], version))
            places.append(at)
    own, *others = _sums(model, scored.trajectory.question, solutions, CUES[0])
    best = [0.0] * len(steps)
    mean = [0.0] * len(steps)
    for at in range(len(steps)):
        rivals = [sums[at] for sums, place in zip(others, places, strict=True) if place == at]
        if rivals:
            best[at], mean[at] = own[at] - max(rivals), own[at] - float(np.mean(rivals))
    return {"best": best, "mean": mean}


def _perturbed(read: dict[str, FloatArray], scored: Scored) -> dict[str, FloatArray]:
    del scored
    return {
        "against_best": read["best"],
        "against_mean": read["mean"],
        "against_low": np.minimum(read["best"], 0),
        "no_result": (read["best"] == 0).astype(np.float64),
    }


IDEAS = {
    "hindsight": Idea(_read_hindsight, _hindsight),
    "verdict": Idea(_read_verdict, _verdict),
    "perturbed": Idea(_read_perturbed, _perturbed),
}


def main() -> None:
    """Read what is missing, then the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--idea", choices=IDEAS, required=True)
    parser.add_argument("--set", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--path", required=True)
    arguments = parser.parse_args()
    idea = IDEAS[arguments.idea]
    scored = load(arguments.work, arguments.set, arguments.model)
    output = arguments.work / arguments.idea / f"{arguments.set}-{arguments.model}.jsonl"
    output.parent.mkdir(parents=True, exist_ok=True)
    known = done(output)
    if todo := [each for each in scored if each.trajectory.id not in known]:
        model = open_model(ModelSettings(arguments.path, dtype="bfloat16"))
        with output.open("a") as file:
            for each in todo:
                file.write(json.dumps({"id": each.trajectory.id, "read": idea.read(model, each)}) + "\n")
                file.flush()
    rows = {row["id"]: row["read"] for row in map(json.loads, output.read_text().splitlines()) if row["read"]}
    own = [each for each in scored if each.trajectory.id in rows]
    judged: list[JudgedEvidence] = []
    raw = []
    new: tuple[str, ...] = ()
    for each in own:
        read = {name: np.array(values) for name, values in rows[each.trajectory.id].items()}
        features = idea.features(read, each)
        new = tuple(features)
        raw.append(features[new[0]])
        plain = each.judged_evidence()
        judged.append(replace(plain, evidence={**plain.evidence, **features}))
    told = (word if word != arguments.path else "hf:PATH" for word in sys.argv[2:])
    command = "python experiments/ideas.py WORK " + " ".join(told)
    table = Table(f"{arguments.idea}-{arguments.set}-{arguments.model}", command, [])
    table.add(f"{arguments.idea}, raw", figures(own, raw), n=len(own))
    folds = [each.fold for each in own]
    table.add("posterior", figures(own, cross_validated(judged, folds, FEATURES)))
    table.add(f"posterior with {arguments.idea}", figures(own, cross_validated(judged, folds, (*FEATURES, *new))))
    table.save(RESULTS)


if __name__ == "__main__":
    main()
