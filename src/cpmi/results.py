"""What an evaluation says: one ``EvalResult`` per benchmark, subset and source of rewards, in a JSON file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpmi.errors import InputError
from cpmi.metrics import Estimate
from cpmi.records import JSON, Cost, write_whole


@dataclass(frozen=True, slots=True)
class EvalResult:
    """How well one source of rewards does on one subset of a benchmark.

    Attributes:
        benchmark: ``steps``, ``processbench``, ``prmbench`` or ``best-of-n``.
        subset: of the benchmark (``gsm8k``, ``redundency``...), or what it sums up: ``all``, ``average``, ``overall``,
            a group of PRMBench.
        source: of the rewards: a run's name, or a trivial baseline's; of ``best-of-n`` also the name of a rule that
            uses no rewards.
        metrics: each with its 95 % interval, in [0, 1]; a difference (``gain@N``) in [-1, 1]. The value is None where
            it is not defined (one class only).
        n: trajectories that the metrics are over; of ``best-of-n``: questions.
        n_unscored: trajectories of the subset that have no rewards, and are in no metric; of ``best-of-n``: candidates
            that cannot be chosen.
        settings: what the numbers depend on: the threshold protocol, thresholds, resamples, seed; of ``best-of-n``
            also the rule and the aggregation.
        curves: lines to draw, each two lists of numbers: ``roc``, ``pr``, ``reliability``.
        cases: a trajectory's outcome each: its id, what people said and what the rewards say. Of ``best-of-n`` a
            question's each, in the first result alone: its id, how many candidates, right ones and different answers.
        notes: what a reader must know, a sentence each.
        cost: of the rewards.
        versions: of this package and of those that compute.
    """

    benchmark: str
    subset: str
    source: str
    metrics: dict[str, Estimate]
    n: int
    n_unscored: int = 0
    settings: dict[str, JSON] = field(default_factory=dict)
    curves: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)
    cases: tuple[dict[str, JSON], ...] = ()
    notes: tuple[str, ...] = ()
    cost: Cost = Cost()
    versions: dict[str, str] = field(default_factory=dict)


def write_results(path: Path, results: Sequence[EvalResult]) -> None:
    """Write results as a JSON list, whole or not at all.

    Raises:
        InputError: another suffix than ``.json``.
        CpmiError: the file cannot be written.
    """
    if path.suffix != ".json":
        raise InputError(f"{path}: the name of a result must end in .json")
    text = json.dumps([dataclasses.asdict(result) for result in results], ensure_ascii=False, indent=1, allow_nan=False)
    write_whole(path, f"{text}\n".encode())


def read_results(path: Path) -> list[EvalResult]:
    """The results in a file.

    Raises:
        InputError: no such file, or one that ``write_results`` did not write.
    """
    try:
        rows: Any = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(rows, ensure_ascii=False, allow_nan=False).encode()  # as it was written: no NaN, no half of a pair
        results = [_result(row) for row in rows]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a result of cpmi evaluate ({error})") from error
    if not results:
        raise InputError(f"{path}: holds no results")
    return results


def _result(row: dict[str, Any]) -> EvalResult:
    read = {
        "metrics": {name: Estimate(**value) for name, value in row["metrics"].items()},
        "curves": {name: (tuple(x), tuple(y)) for name, (x, y) in row["curves"].items()},
        "cases": tuple(row["cases"]),
        "notes": tuple(row["notes"]),
        "cost": Cost(**row["cost"]),
    }
    result = EvalResult(**(row | read))
    texts = [result.benchmark, result.subset, result.source, *result.notes]
    figures = [figure for each in result.metrics.values() for figure in dataclasses.astuple(each) if figure is not None]
    figures += [number for lines in result.curves.values() for line in lines for number in line]
    figures += [result.n, result.n_unscored, *dataclasses.astuple(result.cost)]
    objects = [result.settings, result.versions, *result.cases]
    if not (
        all(isinstance(text, str) for text in texts)
        and all(type(figure) in (int, float) for figure in figures)
        and all(isinstance(each, dict) for each in objects)
    ):
        raise TypeError("a field of another type")
    return result
