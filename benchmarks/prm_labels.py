"""What a reward model learns from which labels: one head for each kind of labels, on the same decoder, judged alike.

    python benchmarks/prm_labels.py pick prepared.jsonl --output picked.jsonl --count 5000
    python benchmarks/prm_labels.py table --base-model PATH --train picked.jsonl --steps test.jsonl
        --processbench pb.jsonl --labels cpmi=RUN --labels mc=RUN:identity --sizes 60,400,5000 --folder FOLDER

``pick`` takes trajectories of 3 to 10 steps and at most 1600 characters that have a gold answer and human labels, each
text once: the first of every question, then the second of every question, and so on, questions and trajectories in the
order of a hash.

``table`` cuts every kind of labels, and the human ones, to the same first trajectories; for each size it trains a head
with the defaults of ``cpmi train`` (but a fifth of the questions held out) and scores both test sets. Everything is a
``cpmi`` command, printed as it runs; what is there already is not done again.
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

from cpmi import Trajectory, read_rewards, read_trajectories, write_records


def pick(options: argparse.Namespace) -> None:
    texts: set[tuple[str, ...]] = set()
    found: list[Trajectory] = []
    for each in read_trajectories(options.prepared):
        text = (each.question, *each.steps)
        size = sum(map(len, text))
        judged = any(label is not None for label in each.step_labels or ())
        if text not in texts and each.gold_answer and judged and 3 <= len(each.steps) <= 10 and size <= 1600:
            texts.add(text)
            found.append(each)
    found.sort(key=lambda each: _hash(each.id))
    seen: Counter[str] = Counter()
    ranked = []
    for place, each in enumerate(found):
        ranked.append((seen[each.question], place, each))
        seen[each.question] += 1
    ranked.sort(key=lambda row: row[:2])
    count = write_records(options.output, [each for _, _, each in ranked[: options.count]])
    print(f"{count} of {len(found)} trajectories -> {options.output}")


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


# --- the table ------------------------------------------------------------------------------------------------------


def cpmi(*arguments: str | Path) -> str:
    command = ["cpmi", *map(str, arguments)]
    print("$", shlex.join(command), file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def table(options: argparse.Namespace) -> None:
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"human": (None, "")} | {
        name: (Path(run.partition(":")[0]), run.partition(":")[2] or "auto")
        for name, _, run in (given.partition("=") for given in options.labels)
    }
    rows = []
    for size in map(int, options.sizes.split(",")):
        for kind, (run, normalizer) in kinds.items():
            targets = folder / f"{kind}-{size}.targets.jsonl"
            cost = _targets(options.train, size, run, normalizer, targets)
            if cost is not None:
                rows.append([kind, str(size), *cost, *_judged(options, targets, folder / f"{kind}-{size}")])
    head = ["labels", "trajectories", "s / trajectory", "tokens generated / trajectory", "held-out loss (constant)",
            "step AUC", "within AUC", "ProcessBench F1, gsm8k-tuned", "fixed-0.5", "oracle"]  # fmt: skip
    for line in (head, ["---"] * len(head), *rows, *_baselines(folder)):
        print(f"| {' | '.join(line)} |")


def _targets(train: Path, size: int, run: Path | None, normalizer: str, targets: Path) -> list[str] | None:
    """Write the targets of the first trajectories; what their labels cost, or None where there are too few."""
    if run is None:
        first = targets.with_suffix(".trajectories.jsonl")
        if write_records(first, islice(read_trajectories(train), size)) < size:
            return None
        if not targets.exists():
            cpmi("targets", first, "--from-labels", "--output", targets)
        return ["-", "-"]
    wanted = {each.id for each in islice(read_trajectories(train), size)}
    records = [record for record in read_rewards(run) if record.trajectory_id in wanted]
    if len(records) < size:
        return None
    if not targets.exists():
        rewards = targets.with_suffix(".rewards.jsonl")
        write_records(rewards, records)
        cpmi("targets", rewards, "--trajectories", train, "--normalizer", normalizer, "--output", targets)
    seconds = sum(record.cost.seconds for record in records) / size
    return [f"{seconds:.2f}", f"{sum(record.cost.tokens_generated for record in records) / size:,.0f}"]


def _judged(options: argparse.Namespace, targets: Path, prm: Path) -> list[str]:
    features = options.folder / "features" if options.features is None else options.features
    if not prm.exists():
        cpmi(
            "train",
            targets,
            "--base-model",
            options.base_model,
            "--features",
            features,
            "--held-out",
            "0.2",
            "--output",
            prm,
        )
    report: dict[str, Any] = json.loads((prm / "training.json").read_text())["report"]
    shown = [f"{report['best_loss']:.3f} ({report['constant_loss']:.3f})"]
    for name, file in (("steps", options.steps), ("pb", options.processbench)):
        cpmi("score", file, "--prm", prm, "--features", features, "--output", prm.with_name(f"{prm.name}.{name}"))
    source = f"{prm.name}.steps"
    results = _evaluate("steps", prm.with_name(source))
    shown += [_value(results, source, "all", metric) for metric in ("roc_auc", "within_auc")]
    source = f"{prm.name}.pb"
    for protocol in PROTOCOLS:
        results = _evaluate("processbench", prm.with_name(source), "--threshold", protocol)
        shown.append(_value(results, source, "average", "f1"))
    return shown


PROTOCOLS = ("gsm8k-tuned", "fixed-0.5", "oracle")


def _baselines(folder: Path) -> list[list[str]]:
    """What knows nothing of the steps, on the same test sets."""
    prm = next(path for path in sorted(folder.iterdir()) if (path / "training.json").exists())
    rows = []
    steps = _evaluate("steps", prm.with_name(f"{prm.name}.steps"))
    by_protocol = [
        _evaluate("processbench", prm.with_name(f"{prm.name}.pb"), "--threshold", each) for each in PROTOCOLS
    ]
    for source in dict.fromkeys(result["source"] for result in steps if "baseline" in result["source"]):
        quality = [_value(steps, source, "all", metric) for metric in ("roc_auc", "within_auc")]
        f1 = [_value(results, source, "average", "f1") for results in by_protocol]
        rows.append([source, "", "", "", "", *quality, *f1])
    return rows


def _evaluate(benchmark: str, run: Path, *more: str) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = json.loads(cpmi("evaluate", benchmark, "--rewards", run, "--json", *more))
    return results


def _value(results: list[dict[str, Any]], source: str, subset: str, metric: str) -> str:
    found = next((each for each in results if each["source"] == source and each["subset"] == subset), None)
    if found is None or found["metrics"].get(metric, {}).get("value") is None:
        return "-"
    estimate = found["metrics"][metric]
    scale, digits = (100, 1) if found["benchmark"] == "processbench" else (1, 2)
    value, low, high = (estimate[name] and scale * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.{digits}f}" + (f" ({low:.{digits}f}-{high:.{digits}f})" if low is not None else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    picks = verbs.add_parser("pick")
    picks.add_argument("prepared", type=Path)
    picks.add_argument("--output", type=Path, required=True)
    picks.add_argument("--count", type=int, default=5000)
    picks.set_defaults(run=pick)
    tables = verbs.add_parser("table")
    for name in ("train", "steps", "processbench", "folder"):
        tables.add_argument(f"--{name}", type=Path, required=True)
    tables.add_argument("--base-model", required=True)
    tables.add_argument("--labels", action="append", default=[], metavar="NAME=RUN[:NORMALIZER]")
    tables.add_argument("--sizes", default="60,400,5000")
    tables.add_argument("--features", type=Path)
    tables.set_defaults(run=table)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
