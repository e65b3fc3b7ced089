"""Fit the first-error model that comes with the package, to all that was scored for the experiments.

    python experiments/fit_default.py WORK --models smollm2-135m qwen-0.5b qwen-1.5b \
        --output src/cpmi/labelers/first_error.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import load
from data import SETS

from cpmi.labelers.evidence import FEATURES
from cpmi.labelers.first_error import fit


def main() -> None:
    """Fit and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    judged, said = [], []
    for model in arguments.models:
        for name in arguments.sets:
            if (arguments.work / "levels" / f"{name}-{model}.jsonl").exists():
                found = load(arguments.work, name, model)
                judged += [each.judged_evidence() for each in found]
                said.append(f"{name} ({len(found)}) by {model}")
    fitted = fit(judged, FEATURES, fitted_to="; ".join(said))
    fitted.save(arguments.output)
    for name, weight in zip(fitted.features, fitted.weights, strict=True):
        print(f"{name:18s} {weight:+.2f}")
    print(f"{fitted.n} trajectories -> {arguments.output}")


if __name__ == "__main__":
    main()
