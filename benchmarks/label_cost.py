"""What labels cost and what they are worth: CPMI, Monte Carlo, PAV and outcome side by side, in one run.

    python benchmarks/label_cost.py --model PATH --trajectories FILE --output FOLDER [--limit 50] [--prover PATH]

Each method is a ``cpmi label`` command, one after the other on an otherwise idle machine, all on the same trajectories
(those of the file whose ids have the smallest hashes, so that right and wrong solutions are mixed whatever their order)
and the same model; ``cpmi compare`` makes the table. CPMI runs on Transformers, rollouts on vLLM (and, for the
throughput of the two samplers, a few trajectories on Transformers). Killed, it goes on where it was: give the same
folder. Hard values, PAV and the binary search take over the rollouts they share with Monte Carlo, at what those cost.
Seconds are those the engines and labelers report; loading a model is not in them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cpmi import __version__, read_rewards, read_trajectories, write_records


@dataclass(frozen=True)
class Run:
    """A labeling command: its folder, and what it takes beside the trajectories."""

    name: str
    options: tuple[str, ...]


def runs(options: argparse.Namespace) -> list[Run]:
    hf, vllm = ("--model", f"hf:{options.model}"), ("--model", f"vllm:{options.model}")
    sampling = ("--max-tokens", str(options.max_tokens), "--top-p", str(options.top_p))
    every = ("--limit", str(options.limit))
    few = ("--limit", str(options.transformers_limit))
    rolled = (*vllm, *sampling, *every, "--batch-size", str(options.limit))
    # The rollouts that Monte Carlo has paid for are taken over with their cost, instead of being sampled again.
    again = (*rolled, "--rollouts-from", str(options.output / "mc"))
    planned = [
        Run("outcome", ("--method", "outcome", *every)),
        Run("cpmi-instructions", ("--method", "cpmi", *hf, *every)),
        Run("cpmi-cues", ("--method", "cpmi", *hf, "--template-set", "cues", *every)),
        Run("posterior", ("--method", "posterior", *hf, *every)),
        Run("cpmi-sampled", ("--method", "cpmi", *hf, "--negative-kinds", "sampled", *every)),
        Run("mc", ("--method", "mc", *rolled)),
        Run("mc-hard", ("--method", "mc", "--value", "hard", *again)),
        Run("mc-binary", ("--method", "mc", "--rollout-search", "binary", *again)),
        Run("pav", ("--method", "pav", *again)),
    ]
    if options.prover:
        planned.append(Run("pav-prover", ("--method", "pav", "--prover", f"vllm:{options.prover}", *again)))
    if options.transformers_limit:
        planned.append(Run("mc-on-transformers", ("--method", "mc", *hf, *sampling, *few)))
    return [run for run in planned if not options.only or run.name in options.only]


def shuffled(trajectories: Path, folder: Path) -> Path:
    """The file with its lines in the order of the hashes of their ids, the same on every machine."""
    file = folder / "trajectories.jsonl"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        by_hash = sorted(read_trajectories(trajectories), key=lambda t: hashlib.sha256(t.id.encode()).digest())
        write_records(file, by_hash)
    return file


def cpmi(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cpmi", *arguments], check=True, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    return done.stdout


def throughput(folder: Path) -> dict[str, Any]:
    """Generated tokens per second of a run."""
    costs = [record.cost for record in read_rewards(folder)]
    tokens, seconds = sum(cost.tokens_generated for cost in costs), sum(cost.seconds for cost in costs)
    return {"trajectories": len(costs), "tokens_generated": tokens, "seconds": seconds, "rate": tokens / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a local folder or a hub id, without hf: or vllm:")
    parser.add_argument("--trajectories", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--prover", help="another model: PAV with it, beside PAV with Best-of-4 of the policy")
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--top-p", type=float, default=1.0, help="below 1 the engines sort the whole vocabulary")
    parser.add_argument("--transformers-limit", type=int, default=4, help="trajectories rolled out on Transformers too")
    parser.add_argument("--only", nargs="*", help="only these runs")
    options = parser.parse_args()
    started = datetime.now(UTC)
    print(
        f"cpmi {__version__}, Python {platform.python_version()}, {os.cpu_count()} CPUs, {started:%Y-%m-%d %H:%M} UTC"
    )
    trajectories = shuffled(options.trajectories, options.output)
    folders = []
    for run in runs(options):
        folder = options.output / run.name
        print(f"-- cpmi label {' '.join(run.options)}", flush=True)
        print(cpmi("label", str(trajectories), "--output", str(folder), *run.options), end="", flush=True)
        folders.append(folder)
    compared = [str(folder) for folder in folders if folder.name != "mc-on-transformers"]
    if len(compared) > 1:
        print(cpmi("compare", *compared), flush=True)
        (options.output / "compare.json").write_text(cpmi("compare", *compared, "--json"), encoding="utf-8")
    rates = {folder.name: throughput(folder) for folder in folders if folder.name.startswith("mc")}
    for name, figures in rates.items():
        print(f"{name}: {figures['rate']:.0f} tokens/s ({figures['tokens_generated']} in {figures['seconds']:.0f} s)")
    (options.output / "throughput.json").write_text(json.dumps(rates, indent=1), encoding="utf-8")
    print(f"took {datetime.now(UTC) - started}")


if __name__ == "__main__":
    main()
