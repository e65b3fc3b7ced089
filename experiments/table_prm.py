"""Reward models by the kind of their labels: solutions of many models, labeled in several ways, one head for each.

    python experiments/table_prm.py pool ../shared/data WORK --count 600
    python experiments/table_prm.py human ../shared/data WORK --count 3000
    python experiments/table_prm.py heads WORK --base-model PATH --labeler hf:PATH --processbench pb.jsonl

``pool`` takes complete solutions of GSM8K and MATH test questions by open-weight models (ZeroEval), half of them
right, none of a question of ProcessBench's files here. ``human`` takes solutions of PRM800K's train questions whose
every step people rated, half with an error: the upper reference. ``heads`` labels by outcome, CPMI and posterior,
trains a head on the frozen base model for each kind and size, and judges all on ProcessBench. What is there is not done
again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from table_cpmi import RESULTS

from cpmi import Trajectory, read_rewards, read_trajectories, write_records
from cpmi.benchmarks.baselines import known_outcome
from cpmi.grader import Grader

POOLS = {"gsm8k": "zeroeval_gsm8k_pool.jsonl.gz", "math": "zeroeval_math_l5_pool.jsonl.gz"}
KINDS: dict[str, tuple[tuple[str, ...], str]] = {
    "outcome": (("--method", "outcome"), "identity"),
    "cpmi": (("--method", "cpmi", "--template-set", "cues"), "quantile-sigmoid"),
    "posterior": (("--method", "posterior"), "identity"),
    "posterior, quantile-sigmoid": (("--method", "posterior"), "quantile-sigmoid"),
}
"""How each kind is labeled, and how its rewards become targets."""


def cpmi(*arguments: str | Path) -> str:
    """Run a command of the package."""
    command = ["cpmi", *map(str, arguments)]
    print("$", shlex.join(command), file=sys.stderr, flush=True)
    return subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, check=True).stdout


def pool(options: argparse.Namespace) -> None:
    """Write WORK/pool.jsonl, in an order in which every beginning is a mix."""
    options.work.mkdir(parents=True, exist_ok=True)
    tested = _tested(options.data)
    chosen: list[Trajectory] = []
    with Grader() as grader:
        for name, file_name in POOLS.items():
            prepared = options.work / f"pool-{name}.jsonl"
            cpmi("prepare", "zeroeval", options.data / "best_of_n" / file_name, "--output", prepared)
            usable = [each for each in read_trajectories(prepared) if _fits(each, tested)]
            usable.sort(key=lambda each: _hash(each.id))
            chosen += _balanced(usable, options.count // len(POOLS), grader, options.of_each)
    chosen.sort(key=lambda each: _hash(each.id))
    print(write_records(options.work / "pool.jsonl", chosen), "solutions")


def human(options: argparse.Namespace) -> None:
    """Write WORK/human.jsonl: at most four with an error, and four without, of a question."""
    options.work.mkdir(parents=True, exist_ok=True)
    tested = _tested(options.data)
    prepared = options.work / "prm800k-train.jsonl"
    cpmi("prepare", "prm800k", options.data / "prm800k/phase1_train_trajectories.jsonl.gz", "--output", prepared)
    taken: Counter[bool] = Counter()
    seen: Counter[tuple[str, bool]] = Counter()
    chosen: dict[tuple[str, ...], Trajectory] = {}
    for each in sorted(read_trajectories(prepared), key=lambda each: _hash(each.id)):
        wrong, told = each.first_error is not None, None not in (each.step_labels or (None,))
        key = (each.question, wrong)
        if told and _short(each, tested) and taken[wrong] < options.count // 2 and seen[key] < 4:
            if each.steps not in chosen:
                seen[key] += 1
                taken[wrong] += 1
            chosen.setdefault(each.steps, each)
    print(write_records(options.work / "human.jsonl", chosen.values()), "solutions")


def _tested(data: Path) -> set[str]:
    """ProcessBench's questions, without white space."""
    tested: set[str] = set()
    for file in sorted((data / "processbench").glob("*.jsonl")):
        rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        tested |= {"".join(row["problem"].split()) for row in rows}
    return tested


def _fits(each: Trajectory, tested: set[str]) -> bool:
    return bool(each.gold_answer) and _short(each, tested)


def _short(each: Trajectory, tested: set[str]) -> bool:
    size = sum(map(len, (each.question, *each.steps)))
    known = "".join(each.question.split()) in tested
    return not known and 3 <= len(each.steps) <= 12 and size <= 1800


def _balanced(usable: list[Trajectory], count: int, grader: Grader, of_each: int) -> list[Trajectory]:
    """Half right and half wrong, at most so many of each of a question."""
    taken: Counter[str] = Counter()
    seen: Counter[tuple[str, str]] = Counter()
    chosen = []
    for each in usable:
        outcome = known_outcome(each, grader)
        key = (each.question, outcome)
        if outcome in ("right", "wrong") and taken[outcome] < count // 2 and seen[key] < of_each:
            seen[key] += 1
            taken[outcome] += 1
            chosen.append(each)
        if taken.total() == count // 2 * 2:
            break
    return chosen


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def heads(options: argparse.Namespace) -> None:
    """Label, train, judge; a row for each kind and size."""
    folder: Path = options.work / "heads"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind, (method, normalizer) in KINDS.items():
        run = options.work / f"labels-{kind.partition(',')[0]}"
        model = () if "outcome" in method else ("--model", options.labeler)
        if not next(run.glob("*.done"), None):
            cpmi("label", options.work / "pool.jsonl", *method, *model, "--output", run)
        seconds = [record.cost.seconds for record in read_rewards(run)]
        for size in options.sizes:
            rows.append(_row(options, folder, kind, run, normalizer, size, sum(seconds) / len(seconds)))
            print(json.dumps(rows[-1]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    command = "python experiments/table_prm.py heads WORK " + " ".join(
        Path(word).name if "/" in word else word for word in sys.argv[3:]
    )
    (RESULTS / "prm.json").write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")


def _row(
    options: argparse.Namespace, folder: Path, kind: str, run: Path, normalizer: str, size: int, seconds: float
) -> dict[str, Any]:
    name = f"{kind.replace(', ', '-')}-{size}"
    pool_file, targets, prm, scored = (folder / f"{name}{end}" for end in (".first.jsonl", ".targets.jsonl", "", ".pb"))
    wanted = [each.id for each in islice(read_trajectories(options.work / "pool.jsonl"), size)]
    if not targets.exists():
        ids = set(wanted)
        write_records(pool_file, (each for each in read_rewards(run) if each.trajectory_id in ids))
        told = ("--trajectories", options.work / "pool.jsonl", "--normalizer", normalizer)
        cpmi("targets", pool_file, *told, "--output", targets)
    features = ("--features", options.features or options.work / "features")
    if not prm.exists():
        cpmi("train", targets, "--base-model", options.base_model, *features, "--held-out", "0.2", "--output", prm)
    cpmi("score", options.processbench, "--prm", prm, *features, "--output", scored)
    report = json.loads((prm / "training.json").read_text())["report"]
    row: dict[str, Any] = {"row": kind, "n": len(wanted), "seconds": round(seconds, 2)}
    row |= {"loss": round(report["best_loss"], 4), "constant": round(report["constant_loss"], 4)}
    for protocol in ("gsm8k-tuned", "fixed-0.5", "oracle"):
        found = json.loads(cpmi("evaluate", "processbench", "--rewards", scored, "--json", "--threshold", protocol))
        for each in found:
            if each["source"] == scored.name and each["metrics"]["f1"]["value"] is not None:
                f1 = each["metrics"]["f1"]
                row[f"{protocol} {each['subset']}"] = [
                    None if f1[key] is None else round(100 * f1[key], 1) for key in ("value", "low", "high")
                ]
    return row


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    pools = verbs.add_parser("pool")
    pools.add_argument("data", type=Path)
    pools.add_argument("work", type=Path)
    pools.add_argument("--count", type=int, default=600)
    pools.add_argument("--of-each", type=int, default=1, help="right, and wrong, solutions of a question at most")
    pools.set_defaults(run=pool)
    humans = verbs.add_parser("human")
    humans.add_argument("data", type=Path)
    humans.add_argument("work", type=Path)
    humans.add_argument("--count", type=int, default=3000)
    humans.set_defaults(run=human)
    trained = verbs.add_parser("heads")
    trained.add_argument("work", type=Path)
    trained.add_argument("--base-model", required=True)
    trained.add_argument("--labeler", required=True)
    trained.add_argument("--processbench", type=Path, required=True)
    trained.add_argument("--features", type=Path)
    trained.add_argument("--sizes", type=int, nargs="+", default=[150, 600])
    trained.set_defaults(run=heads)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
