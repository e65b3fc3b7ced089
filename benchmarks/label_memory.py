"""Peak memory of labeling, over the number and the length of trajectories; and how fast the command starts.

    python benchmarks/label_memory.py --model hf:PATH --trajectories FILE

Long trajectories are made by joining the steps of several of the file's until they have the tokens asked for; the
question and the answers are those of the first. Each row is a process of its own; "over the model" is its peak
resident memory less that of the weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

from cpmi import CPMI, CPMISettings, ModelSettings, Trajectory, open_model, read_trajectories
from cpmi.prompts import CUES


def long_trajectories(source: list[Trajectory], tokens: int, count: int, model: object) -> list[Trajectory]:
    """``count`` trajectories of at most ``tokens`` tokens of question and steps, and as near to it as steps allow."""
    made = []
    for start in range(count):
        first = source[start % len(source)]
        steps: list[str] = []
        room = tokens - length(first.question, model)
        for offset in range(len(source)):
            for step in source[(start + offset) % len(source)].steps:
                if (needed := length(step, model)) <= room:
                    steps.append(step)
                    room -= needed
        made.append(replace(first, steps=tuple(steps), step_labels=None, id=f"long-{start}"))
    return made


def length(text: str, model: object) -> int:
    return len(model.encode(text + "\n\n"))  # type: ignore[attr-defined]


def measure(options: argparse.Namespace) -> None:
    """One row, in this process."""
    model = open_model(ModelSettings(options.model, options.dtype))
    network = model._model  # type: ignore[attr-defined] # noqa: SLF001
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    source = list(islice(read_trajectories(options.trajectories), 40))
    trajectories = long_trajectories(source, options.tokens, options.count, model)
    labeler = CPMI(model, replace(CPMISettings(), context="cumulative", templates=CUES))
    records = [record for each in trajectories for record in labeler.rewards([each])]
    if failed := next((record.error for record in records if record.error), None):
        raise SystemExit(f"could not be labeled: {failed}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    most = max(record.cost.tokens_scored for record in records)
    print(json.dumps({"weights": weights, "peak": peak, "tokens": most}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--trajectories", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tokens:
        measure(options)
        return
    print("| trajectories | tokens of question and steps | tokens fed at most | peak | over the model |")
    print("|---|---|---|---|---|")
    for count, tokens in ((4, 500), (16, 500), (1, 2000), (4, 2000)):
        arguments = ["--tokens", str(tokens), "--count", str(count)]
        process = subprocess.run([sys.executable, *sys.argv, *arguments], capture_output=True, text=True, check=True)
        row = json.loads(process.stdout.splitlines()[-1])
        over = (row["peak"] - row["weights"]) / 1e9
        print(f"| {count} | {tokens} | {row['tokens']} | {row['peak'] / 1e9:.2f} GB | {over:.2f} GB |", flush=True)
    times = []
    for _ in range(11):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "cpmi", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    print(f"\ncpmi --help: median {statistics.median(times):.2f} s, least {min(times):.2f} s, of {len(times)} starts")


if __name__ == "__main__":
    main()
