"""Speed of a reward model: its decoder's states cached, and its scores, against what others do; and equal numbers.

    python benchmarks/prm_speed.py --prm PRM --trajectories FILE --count 64

"Plain forward" is the decoder alone over the same trajectories, one after the other, nothing kept. "A forward per
prefix" is what the evaluation scripts of TRL and RLHFlow do: each prefix of a solution is a sequence of its own.
Everything runs in turn in one process, in rounds; medians are printed. Last, in float32 on a few trajectories, the
largest difference between our scores and those of a forward per prefix.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from cpmi.models import ModelSettings
from cpmi.prm.checkpoint import Opened, open_checkpoint
from cpmi.prm.encode import Encoded
from cpmi.prm.features import FeatureCache
from cpmi.prm.model import PRM
from cpmi.prm.network import pad
from cpmi.prm.states import StateReader
from cpmi.records import Trajectory, read_trajectories


@torch.inference_mode()
def plain_forward(opened: Opened, encoded: Sequence[Encoded]) -> None:
    for each in encoded:
        opened.network.states(**inputs(each))


@torch.inference_mode()
def forward_per_prefix(opened: Opened, encoded: Sequence[Encoded]) -> list[list[float]]:
    scores = []
    for each in encoded:
        prefixes = [each.first_steps(count) for count in range(1, len(each.ends) + 1)]
        scores.append([float(opened.network(**inputs(prefix))[0, -1]) for prefix in prefixes])
    return scores


def inputs(encoded: Encoded) -> dict[str, Any]:
    """Of one trajectory, which needs no mask."""
    return pad([encoded]) | {"attention_mask": None}


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prm", required=True)
    parser.add_argument("--trajectories", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--exact", type=int, default=8, help="trajectories whose scores are compared in float32")
    options = parser.parse_args()

    trajectories = list(islice(read_trajectories(options.trajectories), options.count))
    settings = ModelSettings(options.prm, device="cpu")
    opened = open_checkpoint(settings)
    prm = PRM(opened, settings)
    encoded = [prm.encode(trajectory) for trajectory in trajectories]
    tokens = sum(map(len, encoded))
    prefixes = sum(end + 1 for each in encoded for end in each.ends)
    steps = sum(len(each.ends) for each in encoded)
    print(f"{len(encoded)} trajectories, {steps} steps, {tokens} tokens; all prefixes {prefixes} tokens\n")

    def cached() -> None:
        with tempfile.TemporaryDirectory() as folder:
            cache = FeatureCache(Path(folder) / "features")
            cache.require("benchmark", "any")
            cache.states(encoded, StateReader(opened.network, torch.device("cpu")))

    ways: dict[str, Callable[[], object]] = {
        "plain forward, nothing kept": lambda: plain_forward(opened, encoded),
        "states computed and cached": cached,
        "scores, one pass": lambda: prm.rewards(trajectories),
        "scores, a forward per prefix": lambda: forward_per_prefix(opened, encoded),
    }
    plain_forward(opened, encoded[:4])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, work in ways.items():
            seconds[name].append(timed(work))
    print("| | seconds | spread | tokens/s of the trajectories | trajectories/s |\n|---|---|---|---|---|")
    for name, times in seconds.items():
        middle = statistics.median(times)
        spread = f"{min(times):.1f} - {max(times):.1f}"
        print(f"| {name} | {middle:.1f} | {spread} | {tokens / middle:,.0f} | {len(encoded) / middle:.2f} |")
    plain, kept, one, per_prefix = (statistics.median(times) for times in seconds.values())
    print(f"\ncached at {plain / kept:.0%} of the plain speed; scores {per_prefix / one:.1f} times faster")
    print(f"largest difference in float32: {difference(options.prm, trajectories[: options.exact]):.1e}")


def difference(prm: str, trajectories: Sequence[Trajectory]) -> float:
    settings = ModelSettings(prm, dtype="float32", device="cpu")
    opened = open_checkpoint(settings)
    exact = PRM(opened, settings)
    ours = [record.terms["score"] for record in exact.rewards(trajectories)]
    theirs = forward_per_prefix(opened, [exact.encode(trajectory) for trajectory in trajectories])
    return max(abs(a - b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    main()
