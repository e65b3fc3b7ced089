"""Ask a model once for everything that the tables on labels need: every answer after every context.

    python experiments/levels.py WORK/data/gsm8k.jsonl --model hf:PATH --output WORK/levels/gsm8k-MODEL.jsonl

One line per trajectory, with its answers, their kinds and the model's log-probabilities. Goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, get_args

from cpmi import ModelSettings, NegativeSettings, Trajectory, open_model, read_trajectories
from cpmi.grader import Grader
from cpmi.labelers.levels import score_levels
from cpmi.labelers.negatives import Negative, find_negatives
from cpmi.prompts import ContextKind, load_templates

WANTED = {"own": 1, "choice": 4, "intermediate": 3, "rule": 4}
"""Wrong answers of each kind; one that two kinds have goes to the first."""


def wrong_answers(trajectory: Trajectory, grader: Grader) -> list[Negative]:
    """Of every kind so many, each once."""
    found: dict[str, Negative] = {}
    for kind, count in WANTED.items():
        (each,) = find_negatives([trajectory], NegativeSettings.parse(kind, count), grader)
        for negative in each.negatives:
            found.setdefault(negative.text, negative)
    return list(found.values())


def done(output: Path) -> set[str]:
    """The ids that are there; a torn last line is cut off."""
    if not output.exists():
        return set()
    whole = output.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    output.write_bytes(whole)
    return {json.loads(line)["id"] for line in whole.splitlines()}


def main() -> None:
    """Score what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trajectories", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--template-set", default="cues")
    parser.add_argument("--templates", type=int)
    parser.add_argument("--contexts", nargs="+", choices=get_args(ContextKind), default=["marginal", "cumulative"])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--at-a-time", type=int, default=1, help="trajectories; more on a GPU")
    arguments = parser.parse_args()
    grader = Grader()
    templates = load_templates(arguments.template_set, arguments.templates)
    known = done(arguments.output)
    todo = [each for each in read_trajectories(arguments.trajectories) if each.steps][: arguments.limit]
    todo = [each for each in todo if each.id not in known]
    model = open_model(ModelSettings(arguments.model, dtype=arguments.dtype))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with arguments.output.open("a", encoding="utf-8") as file:
        for start in range(0, len(todo), arguments.at_a_time):
            some = todo[start : start + arguments.at_a_time]
            wrong = [wrong_answers(each, grader) for each in some]
            answers = [
                [(each.gold_answer or "").strip(), *(negative.text for negative in own)]
                for each, own in zip(some, wrong, strict=True)
            ]
            levels = score_levels(model, some, answers, arguments.contexts, templates, steps_too=True)
            for trajectory, own_answers, own, scored in zip(some, answers, wrong, levels, strict=True):
                row: dict[str, Any] = {
                    "id": trajectory.id,
                    "answers": own_answers,
                    "kinds": ["gold", *(each.kind for each in own)],
                }
                if scored.levels is None:
                    row["error"] = str(scored.error)
                else:
                    row["levels"] = scored.levels.to_json()
                row["seconds"] = round(scored.cost.seconds, 4)
                row["tokens"] = scored.cost.tokens_scored
                file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"\r{start + len(some)}/{len(todo)}, {time.monotonic() - began:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)


if __name__ == "__main__":
    main()
