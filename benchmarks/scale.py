"""What running itself costs, from a thousand trajectories to many: time, memory, and going on.

    python benchmarks/scale.py --trajectories train.jsonl --folder FOLDER --sizes 1000,10000,80000

The trajectories are those of the file, over and over, each time with a number in the question and an id of its own. Two
tables, every row a process of its own:

* ``runner``: everything that ``cpmi label`` does but the rewards, which are zeros at no cost: what is left is the
  overhead (the input is read and checked, read again, lines are written and synced). Then the last hundred lines are
  taken away and the run goes on.
* ``toy:``: CPMI on the toy engine with one template and one wrong answer, to see whether memory stays flat in a whole
  run; ``--toy-sizes ''`` leaves it out.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from cpmi import StepRewards, Trajectory, read_trajectories, write_records
from cpmi.labelers.cpmi import CPMISettings
from cpmi.labelers.negatives import NegativeSettings
from cpmi.labeling import InputScan, LabelJob, OutcomeSettings, label
from cpmi.models import ModelSettings
from cpmi.parts import Part
from cpmi.prompts import load_templates
from cpmi.running import run_part
from cpmi.runs import RunDirectory, Shard, attempt


class Zeros:
    """A ``StepRewarder`` that costs nothing."""

    name = "zeros"

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        return [StepRewards(each.id, (0.0,) * len(each.steps), self.name) for each in trajectories]

    def describe(self) -> dict[str, Any]:
        return {}


def synthesize(source: Path, target: Path, count: int) -> None:
    """Write ``count`` trajectories, unless they are there."""
    if target.exists():
        return
    templates = [each for each in islice(read_trajectories(source), 5000) if each.steps and each.gold_answer]
    made = (
        replace(each, question=f"({number}) {each.question}", id=f"{number:08d}-{each.id}", step_labels=None)
        for number, each in enumerate(islice(cycle(templates), count))
    )
    write_records(target, made)


def run_zeros(trajectories: Path, output: Path) -> dict[str, float]:
    """As ``cpmi label``, without rewards."""
    start = time.perf_counter()
    job = LabelJob(trajectories, output, None, OutcomeSettings())
    scan = InputScan.of(job)
    scanned = time.perf_counter()
    run = RunDirectory.create_or_resume(output, {"method": "zeros", "input": {"sha256": scan.sha256}, "shards": 1})
    with Part(run, Shard()) as part, attempt(run, Shard()):
        opened = time.perf_counter()
        done = run_part(Zeros(), read_trajectories(trajectories), part, Shard(), scan.total, batch_size=8)
    end = time.perf_counter()
    return {
        "seconds": end - start,
        "scan": scanned - start,
        "take_up": opened - scanned,
        "work": end - opened,
        "rewarded": done.rewarded,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def run_toy(trajectories: Path, output: Path) -> dict[str, float]:
    start = time.perf_counter()
    settings = CPMISettings(templates=load_templates("cues", 1), negatives=NegativeSettings.parse("own|rule", count=1))
    job = LabelJob(trajectories, output, ModelSettings("toy:"), settings)
    done = label(job)
    return {
        "seconds": time.perf_counter() - start,
        "engine": done.cost.seconds,
        "rewarded": done.rewarded,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_a_process(kind: str, trajectories: Path, output: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--row", kind, "--trajectories", str(trajectories), "--folder", str(output)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def table(options: argparse.Namespace) -> None:
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    print("| runner: trajectories | ms / trajectory | of it checking first | peak MB | the last 100, s |")
    print("|---|---|---|---|---|")
    for size in map(int, options.sizes.split(",")):
        file, run = folder / f"{size}.jsonl", folder / f"{size}.zeros"
        synthesize(options.trajectories, file, size)
        shutil.rmtree(run, ignore_errors=True)
        row = in_a_process("zeros", file, run)
        part = run / f"{Shard().name}.jsonl"
        part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[:-100]))
        again = in_a_process("zeros", file, run)
        if row["rewarded"] != size or again["rewarded"] != 100:
            raise SystemExit(f"rewarded {row['rewarded']} of {size}, then {again['rewarded']} of 100")
        each, scan = (1000 * row[name] / size for name in ("seconds", "scan"))
        print(f"| {size:,} | {each:.2f} | {scan:.2f} | {row['peak_mb']:.0f} | {again['seconds']:.1f} |", flush=True)
    if options.toy_sizes:
        print("\n| toy: trajectories | ms / trajectory | of it the engine | peak MB |\n|---|---|---|---|")
    for size in map(int, filter(None, options.toy_sizes.split(","))):
        file, run = folder / f"{size}.jsonl", folder / f"{size}.toy"
        synthesize(options.trajectories, file, size)
        shutil.rmtree(run, ignore_errors=True)
        row = in_a_process("toy", file, run)
        each, engine = (1000 * row[name] / size for name in ("seconds", "engine"))
        print(f"| {size:,} | {each:.1f} | {engine:.1f} | {row['peak_mb']:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sizes", default="1000,10000,80000")
    parser.add_argument("--toy-sizes", default="1000,80000")
    parser.add_argument("--row", choices=("zeros", "toy"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row is None:
        table(options)
    else:
        work = {"zeros": run_zeros, "toy": run_toy}[options.row]
        print(json.dumps(work(options.trajectories, options.folder)))


if __name__ == "__main__":
    main()
