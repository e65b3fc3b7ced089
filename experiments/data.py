"""The human-labeled trajectories of the experiments: a sample of each set, by a hash of its ids.

    python experiments/data.py ../shared/data --output WORK/data

Each set becomes WORK/data/NAME.jsonl. Nothing of the data is kept in this repository.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from cpmi import Trajectory, read_trajectories, write_records

SETS: dict[str, tuple[int, list[str]]] = {
    "gsm8k": (200, ["processbench", "processbench/gsm8k.jsonl"]),
    "math": (200, ["processbench", "processbench/math.jsonl"]),
    "olympiadbench": (200, ["processbench", "processbench/olympiadbench.jsonl"]),
    "omnimath": (200, ["processbench", "processbench/omnimath.jsonl"]),
    "prm800k": (150, ["prm800k", "prm800k/phase1_test_trajectories.jsonl.gz", "--gold", "math/test.jsonl.gz"]),
    "mr-math": (159, ["mr-math", "reasoneval/mr-math_invalid_errors.jsonl"]),
    "bbm": (
        160,
        ["big-bench-mistake"]
        + [
            f"big_bench_mistake/{name}.jsonl"
            for name in ("multistep_arithmetic", "word_sorting", "logical_deduction", "tracking_shuffled_objects")
        ],
    ),
}
"""For each set how many trajectories, and what ``cpmi prepare`` is told."""


def sample(trajectories: list[Trajectory], count: int) -> list[Trajectory]:
    """Those with a gold answer and human labels, the smallest hashes first."""
    usable = [each for each in trajectories if each.gold_answer and each.step_labels]
    return sorted(usable, key=lambda each: hashlib.sha256(each.id.encode()).digest())[:count]


def main() -> None:
    """Prepare every set that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, (count, told) in SETS.items():
        output = arguments.output / f"{name}.jsonl"
        if output.exists():
            continue
        with tempfile.TemporaryDirectory() as folder:
            everything = Path(folder) / "all.jsonl"
            words = [str(arguments.data / word) if "/" in word else word for word in told]
            subprocess.run([sys.executable, "-m", "cpmi", "prepare", *words, "--output", everything], check=True)
            chosen = sample(list(read_trajectories(everything)), count)
        write_records(output, chosen)
        wrong = sum(each.first_error is not None for each in chosen)
        print(f"{name}: {len(chosen)} trajectories, {wrong} with an error")


if __name__ == "__main__":
    main()
