"""How much faster a run on Ray is with more workers, side by side, on an engine that is not this machine's.

    python benchmarks/ray_speed.py --trajectories 640 --rounds 3

The engine is a server that takes --delay seconds for each request, however many there are: a model elsewhere. Each
worker has at most --parallel requests in flight. So what limits the speed is the waiting, and the figures say what Ray
and the driver add, not how fast a model is. Labels are likelihoods: one request for a trajectory.

Each run is a `label` of its own on a Ray cluster of this machine, started and ended with it. Its speed is taken from
the first batch of each worker to the last one; "ready" is the time before, in which Ray and the workers start. Worker
counts take turns within a round, and each figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ray

from cpmi import ModelSettings, Trajectory, __version__, write_records
from cpmi.labelers.likelihood import LikelihoodSettings
from cpmi.labeling import LabelJob, label
from cpmi.ray_runs import RaySettings
from cpmi.running import Progress

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Figures:
    """Of one number of workers; medians of the rounds.

    Attributes:
        rate: trajectories a second while it runs.
        rates: of each round.
        ready: seconds until the first batch is written.
        most: it could not be faster: requests in flight at most, by the delay.
    """

    workers: int
    rate: float
    rates: list[float]
    ready: float
    most: float


def serve(delay: float, said: Connection) -> None:
    """In a process of its own, so that it does not share an interpreter with the driver."""
    sys.path.insert(0, str(ROOT / "tests"))  # for the server of the tests
    from fake_openai import FakeServer, sleeps

    server = FakeServer()
    server.fault = sleeps(delay)
    said.send(server.url)
    server.serve_forever()


def some(count: int) -> list[Trajectory]:
    steps = [f"Step {k}: take {k} and add {k + 1}, which is {2 * k + 1}." for k in range(1, 4)]
    return [
        Trajectory(f"Question {i}: what is {i} + 1?", tuple(steps), "7", str(i + 1), id=f"t{i}") for i in range(count)
    ]


def timed(job: LabelJob, workers: int) -> tuple[float, float]:
    """Trajectories a second from the first batch of each worker to the last of all, and the seconds before."""
    seen: list[tuple[float, int]] = []

    def note(progress: Progress) -> None:
        if progress.done:
            seen.append((time.perf_counter(), progress.done))

    start = time.perf_counter()
    progress = label(job, note)
    if progress.failed:
        raise SystemExit(f"{progress.failed} trajectories failed: {progress.errors.most_common(1)}")
    # The workers' first batches come at one time: to count all but one of them would flatter many workers.
    (first, before), (last, done) = seen[workers - 1], seen[-1]
    return (done - before) / (last - first), first - start


def measure(options: Any, say: Callable[[str], None]) -> list[Figures]:
    there, here = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(options.delay, here), daemon=True)
    server.start()
    found: dict[int, list[tuple[float, float]]] = {workers: [] for workers in options.workers}
    try:
        model = ModelSettings(f"openai:{there.recv()}#tiny", options={"parallel": options.parallel})
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trajectories.jsonl"
            write_records(file, some(options.trajectories))
            for number in range(options.rounds):
                for workers in options.workers:
                    on_ray = RaySettings("local", (workers, workers), {"num_cpus": 0.1})
                    job = LabelJob(
                        file, Path(folder) / f"run-{number}-{workers}", model, LikelihoodSettings(),
                        batch_size=options.batch_size, ray=on_ray,
                    )  # fmt: skip
                    found[workers].append(timed(job, workers))
                    say(f"round {number + 1}, {workers} workers: {found[workers][-1][0]:.1f} trajectories/s")
    finally:
        server.terminate()
        server.join()
    return [
        Figures(
            workers,
            statistics.median(rate for rate, _ in rounds),
            [rate for rate, _ in rounds],
            statistics.median(ready for _, ready in rounds),
            workers * options.parallel / options.delay,
        )
        for workers, rounds in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, default=640)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--parallel", type=int, default=4, help="requests in flight for each worker")
    parser.add_argument("--delay", type=float, default=0.4, help="seconds that the server takes for a request")
    parser.add_argument("--json", action="store_true")
    options: Any = parser.parse_args()
    figures = measure(options, (lambda _: None) if options.json else print)
    if options.json:
        about = {"cpmi": __version__, "ray": ray.__version__, "cores": os.cpu_count(), "settings": vars(options)}
        print(json.dumps(about | {"figures": [asdict(each) for each in figures]}, indent=1))
        return
    print(f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, cpmi {__version__}, ray {ray.__version__}\n")
    print("| workers | trajectories/s | of what the server's delay allows | times as fast | ready after |")
    print("|---|---|---|---|---|")
    for each in figures:
        print(
            f"| {each.workers} | {each.rate:.1f} ({min(each.rates):.1f} - {max(each.rates):.1f}) "
            f"| {each.rate / each.most:.0%} | {each.rate / figures[0].rate:.2f} | {each.ready:.1f} s |"
        )


if __name__ == "__main__":
    main()
