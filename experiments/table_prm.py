"""Reward models by the kind of their labels: solutions of many models, labeled in several ways, one head for each.

    python experiments/table_prm.py pool ../shared/data WORK --count 600
    python experiments/table_prm.py human ../shared/data WORK --count 3000
    python experiments/table_prm.py heads WORK --base-model PATH --labeler hf:PATH --processbench pb.jsonl
    python experiments/table_prm.py use WORK --base-model PATH --labeler hf:PATH --processbench pb.jsonl \
        --prmbench prmbench.jsonl --candidates gsm8k=g4.jsonl:150 math=m8.jsonl:86 --name prm-use

``pool`` takes complete solutions of GSM8K and MATH test questions by open-weight models (ZeroEval), half of them
right, none of a question of ProcessBench's files here. ``human`` takes solutions of PRM800K's train questions whose
every step people rated, half with an error: the upper reference. ``heads`` labels by outcome, CPMI and posterior,
trains a head on the frozen base model for each kind and size, and judges all on ProcessBench. ``use`` puts such heads
to other uses: PRMBench, and choosing among candidates; questions that a head has learned from are left out. What is
there is not done again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from table_cpmi import RESULTS

from cpmi import Trajectory, read_rewards, read_trajectories, write_records
from cpmi.benchmarks.baselines import known_outcome
from cpmi.grader import Grader

POOLS = {"gsm8k": "zeroeval_gsm8k_pool.jsonl.gz", "math": "zeroeval_math_l5_pool.jsonl.gz"}


@dataclass(frozen=True)
class Kind:
    """Labels, and how they become targets.

    Attributes:
        labels: ``outcome``, ``posterior``; ``gain``: CPMI (marginal, summed), which the records of the posterior hold
            as one of their terms; ``human``: of PRM800K.
    """

    labels: str
    normalizer: str


KINDS = {
    "outcome": Kind("outcome", "identity"),
    "CPMI, quantile-sigmoid": Kind("gain", "quantile-sigmoid"),
    "posterior, identity": Kind("posterior", "identity"),
    "posterior, quantile-sigmoid": Kind("posterior", "quantile-sigmoid"),
    "posterior, conditional": Kind("posterior", "conditional"),
    "human labels of PRM800K": Kind("human", ""),
}


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
    for kind in options.kinds:
        seconds = _labeled(options, KINDS[kind].labels)
        for size in options.sizes:
            for seed in options.seeds:
                rows.append(_row(options, folder, kind, size, seed, seconds))
                print(json.dumps(rows[-1]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    command = "python experiments/table_prm.py heads WORK " + " ".join(map(_shown, sys.argv[3:]))
    (RESULTS / f"{options.name}.json").write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")


def _labels_file(work: Path, labels: str) -> Path:
    return work / {"human": "human.jsonl", "gain": "labels-gain.jsonl"}.get(labels, f"labels-{labels}")


def _labeled(options: argparse.Namespace, labels: str) -> float | None:
    """Make sure that the labels are there; the seconds that one took, where they were computed."""
    run = _labels_file(options.work, labels)
    if labels == "human":
        return None
    if labels == "gain":
        seconds = _labeled(options, "posterior")
        if not run.exists():
            records = read_rewards(_labels_file(options.work, "posterior"))
            write_records(run, (replace(each, rewards=each.terms["gain"], source="cpmi", terms={}) for each in records))
        return seconds
    if not next(run.glob("*.done"), None):
        model = () if labels == "outcome" else ("--model", options.labeler, "--templates", "1")
        cpmi("label", options.work / "pool.jsonl", "--method", labels, *model, "--output", run)
    each = [record.cost.seconds for record in read_rewards(run)]
    return round(sum(each) / len(each), 4)


def _row(
    options: argparse.Namespace, folder: Path, kind: str, size: int, seed: int, seconds: float | None
) -> dict[str, Any]:
    scored = _scored(options, folder, kind, size, seed, {"pb": options.processbench})["pb"]
    prm = folder / _name(kind, size, seed)
    n = len((folder / f"{prm.name}.first.jsonl").read_text(encoding="utf-8").splitlines())
    report = json.loads((prm / "training.json").read_text())["report"]
    row: dict[str, Any] = {"row": kind, "n": n, "seed": seed, "seconds": seconds}
    row |= {"loss": round(report["best_loss"], 4), "constant": round(report["constant_loss"], 4)}
    for protocol in ("gsm8k-tuned", "fixed-0.5", "oracle"):
        for each in _results("processbench", scored, "--threshold", protocol):
            if each["source"] == scored.name and each["metrics"]["f1"]["value"] is not None:
                row[f"{protocol} {each['subset']}"] = _percent(each["metrics"]["f1"])
    return row


def _name(kind: str, size: int, seed: int) -> str:
    return f"{kind.replace(', ', '-').replace(' ', '-')}-{size}-{seed}"


def _results(benchmark: str, scored: Path, *more: str | Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(cpmi("evaluate", benchmark, "--rewards", scored, "--json", *more))
    return found


def _percent(estimate: dict[str, float | None]) -> list[float | None]:
    """The value and the ends of its interval."""
    found = [estimate[key] for key in ("value", "low", "high")]
    return [None if each is None else round(100 * each, 1) for each in found]


def _scored(
    options: argparse.Namespace, folder: Path, kind: str, size: int, seed: int, files: dict[str, Path]
) -> dict[str, Path]:
    """Runs of ``cpmi score`` over these files by a head that is trained first; by name."""
    name = _name(kind, size, seed)
    first, targets, prm = (folder / f"{name}{end}" for end in (".first.jsonl", ".targets.jsonl", ""))
    _targets(options, KINDS[kind], size, first, targets)
    runs = {each: folder / f"{name}.{each}" for each in files}
    missing = [each for each, run in runs.items() if not next(run.glob("*.done"), None)]
    features = ("--features", options.features or options.work / "features")
    if missing and not next(prm.glob("*.safetensors"), None):
        (prm / "training.json").unlink(missing_ok=True)  # its weights were taken away, see below
    if not (prm / "training.json").exists():
        told = ("--base-model", options.base_model, *features, "--held-out", "0.1", "--seed", str(seed))
        cpmi("train", targets, *told, "--output", prm)
    for each in missing:
        cpmi("score", files[each], "--prm", prm, *features, "--output", runs[each])
    for weights in prm.glob("*.safetensors"):  # with the decoder's, gigabytes; the head can be trained again
        weights.unlink()
    return runs


# --- use ------------------------------------------------------------------------------------------------------------


def use(options: argparse.Namespace) -> None:
    """A row for each kind and seed, and for what needs no reward model."""
    folder: Path = options.work / "heads"
    folder.mkdir(parents=True, exist_ok=True)
    learned = {
        "".join(each.question.split()) for name in ("pool", "human") for each in _read(options.work / f"{name}.jsonl")
    }
    files = {"pb": options.processbench, "prmbench": options.work / "use-prmbench.jsonl"}
    taken = {"prmbench": _unseen(options.prmbench, learned, None, options.prmbench_count, files["prmbench"])}
    for told in options.candidates:
        name, _, rest = told.partition("=")
        file, _, count = rest.rpartition(":")
        files[name] = options.work / f"use-{name}.jsonl"
        taken[name] = _unseen(Path(file), learned, int(count), None, files[name])
    rows: list[dict[str, Any]] = [{"row": "taken", **taken}]
    pools = [name for name in files if name not in ("pb", "prmbench")]
    for number, kind in enumerate(options.kinds):
        _labeled(options, KINDS[kind].labels)
        for seed in options.seeds:
            runs = _scored(options, folder, kind, options.size, seed, files)
            row: dict[str, Any] = {"row": kind, "seed": seed}
            for name, threshold in (("ProcessBench", f"dev:{runs['pb']}"), ("oracle", "oracle")):
                for each in _results("prmbench", runs["prmbench"], "--threshold", threshold):
                    if each["source"] == runs["prmbench"].name and each["subset"] == "overall":
                        row[f"prmbench {name}"] = _percent(each["metrics"]["prm_score"])
            for pool in pools:
                for rule, aggregation, metrics in _choices(runs[pool], options.aggregations):
                    if rule in ("best-of-n", "weighted"):
                        row[f"{pool} {rule} {aggregation}"] = _last(metrics)
                    elif number == 0 and seed == options.seeds[0]:
                        rows.append({"row": rule, "pool": pool, pool: _last(metrics)})
            rows.append(row)
            print(json.dumps(row), flush=True)
    command = "python experiments/table_prm.py use WORK " + " ".join(map(_shown, sys.argv[3:]))
    (RESULTS / f"{options.name}.json").write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")


def _read(path: Path) -> list[Trajectory]:
    return list(read_trajectories(path))


def _unseen(source: Path, learned: set[str], questions: int | None, count: int | None, output: Path) -> int:
    """Write so many questions with all their trajectories, or so many trajectories, by a hash; how many lines."""
    free = [each for each in _read(source) if "".join(each.question.split()) not in learned]
    if questions is not None:
        chosen = set(sorted({each.question for each in free}, key=_hash)[:questions])
        free = [each for each in free if each.question in chosen]
    else:
        free = sorted(free, key=lambda each: _hash(each.id))[:count]
    return write_records(output, free)


def _choices(run: Path, aggregations: list[str]) -> list[tuple[str, str, dict[str, Any]]]:
    told = [word for each in aggregations for word in ("--aggregation", each)]
    found = _results("best-of-n", run, *told)
    return [(e["settings"]["rule"], e["settings"].get("aggregation"), e["metrics"]) for e in found]


def _last(metrics: dict[str, Any]) -> list[float | None]:
    """The accuracy with the most candidates."""
    most = max((name for name in metrics if name.startswith("accuracy@")), key=lambda name: int(name.split("@")[1]))
    return _percent(metrics[most])


def _shown(word: str) -> str:
    """An argument without folders, which differ from machine to machine."""
    head, equals, rest = word.partition("=")
    if equals and "/" in rest:
        return f"{head}={Path(rest).name}"
    return Path(word).name if "/" in word else repr(word) if " " in word else word


def _targets(options: argparse.Namespace, kind: Kind, size: int, first: Path, targets: Path) -> int:
    """Write the targets of the first ``size`` trajectories; how many that are."""
    labels = _labels_file(options.work, kind.labels)
    if kind.labels == "human":
        wanted = list(islice(read_trajectories(labels), size))
        if not targets.exists():
            write_records(first, wanted)
            cpmi("targets", first, "--from-labels", "--output", targets)
        return len(wanted)
    ids = {each.id for each in islice(read_trajectories(options.work / "pool.jsonl"), size)}
    if not targets.exists():
        write_records(first, (each for each in read_rewards(labels) if each.trajectory_id in ids))
        told = ("--trajectories", options.work / "pool.jsonl", "--normalizer", kind.normalizer)
        cpmi("targets", first, *told, "--output", targets)
    return len(ids)


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
    for name, run in (("heads", heads), ("use", use)):
        trained = verbs.add_parser(name)
        trained.add_argument("work", type=Path)
        trained.add_argument("--base-model", required=True)
        trained.add_argument("--labeler", required=True)
        trained.add_argument("--processbench", type=Path, required=True)
        trained.add_argument("--features", type=Path)
        trained.add_argument("--seeds", type=int, nargs="+", default=[0])
        trained.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
        trained.add_argument("--name", default="prm", help="of the file in experiments/results")
        trained.set_defaults(run=run)
        if name == "heads":
            trained.add_argument("--sizes", type=int, nargs="+", default=[150, 600])
            continue
        trained.add_argument("--size", type=int, default=7000)
        trained.add_argument("--prmbench", type=Path, required=True)
        trained.add_argument("--prmbench-count", type=int, default=400)
        trained.add_argument("--candidates", nargs="+", required=True, help="NAME=FILE:QUESTIONS")
        trained.add_argument("--aggregations", nargs="+", default=["last", "min", "mean"])
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
