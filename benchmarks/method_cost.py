"""What labels cost on one device: methods one after the other in one process, with one model, on an idle machine.

    python benchmarks/method_cost.py --model hf:PATH --trajectories FILE [--count 200] [--rolled 24] [--rollouts 8]

The posterior and CPMI label ``--count`` trajectories, Monte Carlo the first ``--rolled`` of them. Each has a warm-up
that is not timed. Seconds are wall time of labeling, grading included, the model's loading not; one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from cpmi import CPMI, CPMISettings, ModelSettings, Trajectory, open_model, read_trajectories
from cpmi.grader import Grader
from cpmi.labelers.monte_carlo import MonteCarlo, MonteCarloSettings
from cpmi.labelers.posterior import FirstErrorPosterior
from cpmi.labelers.rollouts import RolloutSettings
from cpmi.models.hf import HFModel
from cpmi.prompts import CUES
from cpmi.protocols import SamplingParams, StepRewarder
from label_speed import machine


@dataclass(frozen=True)
class Way:
    """A labeler, and how many trajectories it labels, how many at a time."""

    rewarder: StepRewarder
    count: int
    at_a_time: int


def timed(way: Way, trajectories: list[Trajectory]) -> dict[str, Any]:
    """The figures of one method."""
    some = trajectories[: way.count]
    way.rewarder.rewards(some[: min(2, len(some))])
    start = time.perf_counter()
    records = [
        record
        for first in range(0, len(some), way.at_a_time)
        for record in way.rewarder.rewards(some[first : first + way.at_a_time])
    ]
    seconds = time.perf_counter() - start
    return {
        "trajectories": len(some),
        "failed": sum(record.error is not None for record in records),
        "seconds_each": round(seconds / len(some), 5),
        "tokens_read_each": mean(record.cost.tokens_scored for record in records),
        "tokens_generated_each": mean(record.cost.tokens_generated for record in records),
    }


def mean(values: Iterable[int]) -> float:
    known = list(values)
    return round(sum(known) / len(known), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--trajectories", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rolled", type=int, default=24)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--at-a-time", type=int, default=32)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    model = open_model(ModelSettings(options.model, options.dtype))
    assert isinstance(model, HFModel)  # noqa: S101 - for the type checker
    trajectories = list(islice(read_trajectories(options.trajectories), options.count))
    sampling = SamplingParams(
        max_tokens=options.max_tokens, temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.05
    )
    rolling = MonteCarloSettings(RolloutSettings(options.rollouts, sampling=sampling))
    many = (options.count, options.at_a_time)
    found: dict[str, Any] = {"model": Path(options.model).name, "machine": machine()}
    with Grader() as grader:
        ways = {
            "posterior": Way(FirstErrorPosterior(model, grader=grader), *many),
            "cpmi, four cues": Way(CPMI(model, CPMISettings(templates=CUES), grader=grader), *many),
            "cpmi, four instructions": Way(CPMI(model, grader=grader), *many),
            f"monte carlo, N={options.rollouts}": Way(
                MonteCarlo(model, rolling, grader=grader), options.rolled, options.rolled
            ),
        }
        for name, way in ways.items():
            if way.count:
                found[name] = timed(way, trajectories)
                print(name, found[name], file=sys.stderr, flush=True)
    if torch.cuda.is_available():
        found["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
