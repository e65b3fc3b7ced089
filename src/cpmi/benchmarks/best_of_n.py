"""Best-of-N: what rewards do to answers, beside one sample, the majority and the oracle.

After huggingface/search-and-learn and RyanLiu112/compute-optimal-tts: the scores of a candidate's steps become one, and
the candidate with the highest one is chosen, or the scores of equal answers are added up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from cpmi.aggregation import AGGREGATIONS, Aggregation, aggregate
from cpmi.benchmarks.cases import versions
from cpmi.benchmarks.choosing import Pool, highest, oracle, shares, subsets_of, votes
from cpmi.errors import InputError
from cpmi.metrics import Estimate, estimate, resamples
from cpmi.protocols import BoolArray, FloatArray
from cpmi.records import JSON, Cost
from cpmi.results import EvalResult

NAME = "best-of-n"
ONE, MAJORITY, ORACLE = "one sample", "majority", "oracle"
BEST, WEIGHTED, SOFTMAX = "best-of-n", "weighted", "softmax"
WITHOUT_REWARDS = (ONE, MAJORITY, ORACLE)
SCORE: Final = "score"
"""The aggregation of a source that has one score for a whole candidate."""

_EVERY_N = 32  # up to here every N is reported, beyond it the powers of two


def _log_product(steps: Sequence[float]) -> float:
    return math.fsum(map(math.log, steps)) if min(steps) > 0 else -math.inf


def _one(steps: Sequence[float], how: Aggregation) -> float:
    """Of a product its logarithm: the product of many small numbers would be 0."""
    return _log_product(steps) if how == "prod" else aggregate(steps, how)


@dataclass(frozen=True, slots=True)
class BestOfNSettings:
    """How to choose and to report.

    Attributes:
        sizes: the Ns; by default every one up to the largest pool, or the powers of two where that is above 32.
        aggregations: of step rewards.
        temperature: of the rule ``softmax``.
        subsets: votes are counted in all subsets of a pool if they are no more than this, else in so many random ones.
        resamples: of the bootstrap, by question; intervals are 95 %.
        seed: of the subsets, the order that breaks ties, and the resamples.

    Raises:
        InputError: an N below 1, an aggregation that is none, a temperature that is not above 0, no subsets.
    """

    sizes: tuple[int, ...] | None = None
    aggregations: tuple[Aggregation, ...] = AGGREGATIONS
    temperature: float = 1.0
    subsets: int = 1000
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for n in self.sizes or ():
            if n < 1:
                raise InputError(f"N must be a number from 1, not {n}")
        if unknown := [name for name in self.aggregations if name not in AGGREGATIONS]:
            raise InputError(f"unknown aggregation {unknown[0]!r} (known: {', '.join(AGGREGATIONS)})")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"the temperature must be a number above 0, not {self.temperature:g}")
        if self.subsets < 1:
            raise InputError(f"there must be 1 subset or more, not {self.subsets}")

    def sizes_for(self, largest: int) -> tuple[int, ...]:
        """The Ns to report, from the smallest to the largest."""
        if self.sizes is not None:
            return tuple(sorted({*self.sizes}))
        if largest <= _EVERY_N:
            return tuple(range(1, largest + 1))
        return (*(2**k for k in range((largest - 1).bit_length())), largest)


def parse_sizes(text: str) -> tuple[int, ...]:
    """The Ns in ``1,2,4,8``.

    Raises:
        InputError: something else.
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not (part.isascii() and part.isdigit() and len(part) <= 9 and int(part)):
            raise InputError(f"N must be a number from 1, not {part!r}; write for example 1,2,4,8")
    return tuple(map(int, parts))


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Scores of candidates, by the candidate's id.

    Attributes:
        name: of the source.
        steps: the scores of a candidate's steps, one or more.
        costs: what a candidate's scores cost.
        whole: there is one score for a whole candidate, and nothing to aggregate.
        notes: what a reader must know of them.
    """

    name: str
    steps: Mapping[str, Sequence[float]]
    costs: Mapping[str, Cost] = field(default_factory=dict)
    whole: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """A way to choose: the figures of one row of the table.

    Attributes:
        scores: for each pool (P,), NaN where there is none; of a product its logarithm. None where no rewards are used.
    """

    rule: str
    source: Source | None = None
    aggregation: str | None = None
    scores: tuple[FloatArray, ...] | None = None

    def eligible(self, pool: Pool, q: int) -> BoolArray:
        """(P,) Who can be chosen."""
        return pool.answered if self.scores is None else pool.answered & ~np.isnan(self.scores[q])

    def logits(self, q: int, size: int, temperature: float) -> FloatArray:
        """(P,) the logarithm of each candidate's vote."""
        if self.scores is None:
            return np.zeros(size)
        scores, is_log = self.scores[q], self.aggregation == "prod"
        if self.rule == SOFTMAX:
            return np.asarray((np.exp(scores) if is_log else scores) / temperature)
        with np.errstate(divide="ignore"):  # the logarithm of 0
            return scores if is_log else np.log(scores)

    def result(
        self,
        subset: str,
        metrics: dict[str, Estimate],
        pools: Sequence[Pool],
        settings: BestOfNSettings,
        notes: Sequence[str],
        cases: tuple[dict[str, JSON], ...],
    ) -> EvalResult:
        ids = [i for pool in pools for i in pool.ids] if self.source else []
        described: dict[str, JSON] = {"rule": self.rule, "aggregation": self.aggregation}
        described |= {name: getattr(settings, name) for name in ("subsets", "temperature", "resamples", "seed")}
        return EvalResult(
            NAME,
            subset,
            self.source.name if self.source else self.rule,
            metrics,
            n=len(pools),
            n_unscored=sum(i not in self.source.steps for i in ids) if self.source else 0,
            settings=described,
            cases=cases,
            notes=tuple(notes),
            cost=sum((self.source.costs.get(i, Cost()) for i in ids), Cost()) if self.source else Cost(),
            versions=versions(),
        )


def evaluate(
    pools: Sequence[Pool], sources: Sequence[Source], settings: BestOfNSettings, notes: Sequence[str] = ()
) -> list[EvalResult]:
    """How often each rule chooses a right answer from N candidates, for each source and aggregation.

    The order of the pools, and of the candidates in them, changes nothing. The metrics ``accuracy@N``, ``gain@N`` (over
    the majority) and ``ties@N`` are means over questions; a question with fewer candidates than N uses all it has.
    ``EvalResult.source`` of a rule that uses no rewards is the name of the rule.

    Args:
        notes: what a reader must know of the pools; they come first in those of the first result.

    Raises:
        InputError: a source for which none of the aggregations is defined.
    """
    pools = sorted((pool.sorted(settings.seed) for pool in pools), key=lambda pool: pool.id)
    sizes = settings.sizes_for(max(map(len, pools)))
    ways, said = [_Way(ONE), _Way(MAJORITY), _Way(ORACLE)], [[*notes, *_pool_notes(pools, sizes)], [], []]
    for source in sources:
        own, own_notes = _ways_of(source, pools, sizes, settings)
        ways += own
        said += [[*source.notes, *own_notes], *([] for _ in own[1:])]
    right, tied = _figures(ways, pools, sizes, settings)
    results: list[EvalResult] = []
    for subset, rows in _subsets(pools).items():
        weights = resamples(len(rows), settings.resamples, settings.seed) / len(rows)
        members = [pools[q] for q in rows]
        for k, way in enumerate(ways):
            figures = {"accuracy": right[k, rows]}
            if way.rule != MAJORITY:
                figures["gain"] = right[k, rows] - right[1, rows]
            if way.rule not in (ONE, ORACLE):
                figures["ties"] = tied[k, rows]
            metrics = {
                f"{name}@{n}": estimate(column)
                for name, values in figures.items()
                for n, column in zip(sizes, (weights @ values).T, strict=True)
            }
            first = subset == "all"
            cases = tuple(map(_case, members)) if first and not results else ()
            results.append(way.result(subset, metrics, members, settings, said[k] if first else (), cases))
    return results


def _subsets(pools: Sequence[Pool]) -> dict[str, list[int]]:
    """The numbers of the pools in each subset, all of them first."""
    found = {"all": list(range(len(pools)))}
    names = sorted({pool.subset for pool in pools})
    for name in names if len(names) > 1 else ():
        key = f"subset {name}" if name == "all" else name
        found[key] = [q for q, pool in enumerate(pools) if pool.subset == name]
    return found


def _case(pool: Pool) -> dict[str, JSON]:
    answers = len({*pool.classes[pool.answered].tolist()})
    return {"id": pool.id, "pool": len(pool), "right": int(pool.right.sum()), "answers": answers}


def _figures(
    ways: Sequence[_Way], pools: Sequence[Pool], sizes: Sequence[int], settings: BestOfNSettings
) -> tuple[FloatArray, FloatArray]:
    """(ways, questions, sizes) the chance that the choice is right, and the chance that different answers tie."""
    right = np.zeros((len(ways), len(pools), len(sizes)))
    tied = np.zeros_like(right)
    voting = [k for k, way in enumerate(ways) if way.rule in (MAJORITY, WEIGHTED, SOFTMAX)]
    for q, pool in enumerate(pools):
        own = [min(n, len(pool)) for n in sizes]
        for k, way in enumerate(ways):
            if way.rule == ONE:
                right[k, q] = pool.right.mean()
            elif way.rule == ORACLE:
                right[k, q] = oracle(pool, own)
            elif way.rule == BEST:
                assert way.scores is not None  # noqa: S101 - it has a source
                right[k, q], tied[k, q] = highest(pool, way.scores[q], way.eligible(pool, q), own)
        eligible = [ways[k].eligible(pool, q) for k in voting]
        logits = [ways[k].logits(q, len(pool), settings.temperature) for k in voting]
        for n in sorted({*own}):
            members = subsets_of(pool, n, settings.subsets, settings.seed)
            share, ties = votes(pool, members, eligible, logits)
            here = [i for i, size in enumerate(own) if size == n]
            right[np.ix_(voting, [q], here)] = share[:, None, None]
            tied[np.ix_(voting, [q], here)] = ties[:, None, None]
    return right, tied


# --- a source of rewards --------------------------------------------------------------------------------------------


def _ways_of(
    source: Source, pools: Sequence[Pool], sizes: Sequence[int], settings: BestOfNSettings
) -> tuple[list[_Way], list[str]]:
    """What can be done with the scores of a source, and what cannot.

    Raises:
        InputError: nothing can be done.
    """
    ways, notes = [], _coverage(source, pools, sizes)
    names: tuple[Aggregation | Literal["score"], ...] = (SCORE,) if source.whole else settings.aggregations
    for name in names:
        if name == "prod" and not all(0 <= step <= 1 for steps in source.steps.values() for step in steps):
            notes.append("prod is left out: there are step rewards below 0 or above 1, which are no probabilities")
            continue
        how: Aggregation = "last" if name == SCORE else name
        scored = {i: _one(steps, how) for i, steps in source.steps.items()}
        scores = tuple(np.array([scored.get(i, np.nan) for i in pool.ids]) for pool in pools)
        rules = [BEST, WEIGHTED, SOFTMAX]
        if name != "prod" and any((each < 0).any() for each in scores):
            notes.append(
                f"weighted is left out for {name}: there are scores below 0, which are no weights; see softmax"
            )
            rules.remove(WEIGHTED)
        ways += [_Way(rule, source, name, scores) for rule in rules]
    if not ways:
        raise InputError(f"{source.name}: {notes[-1]}; choose another aggregation")
    return ways, notes


def _coverage(source: Source, pools: Sequence[Pool], sizes: Sequence[int]) -> list[str]:
    """Notes on the candidates that have no scores."""
    missing = sum(i not in source.steps for pool in pools for i in pool.ids)
    if not missing:
        return []
    notes = [f"{missing} candidates have no rewards: they cannot be chosen, and have no vote in weighted and softmax"]
    ends = sorted({sizes[0], sizes[-1]})
    empty = np.zeros(len(ends))
    for pool in pools:
        able = sum(i in source.steps for i, answered in zip(pool.ids, pool.answered, strict=True) if answered)
        empty += shares(len(pool), [min(n, len(pool)) for n in ends])[:, len(pool) - able] / len(pools)
    if empty[0] > 0:
        figures = " and ".join(f"{share:.1%} at N = {n}" for n, share in zip(ends, empty, strict=True))
        notes.append(f"no candidate drawn has both rewards and an answer, which counts as wrong: {figures}")
    return notes


def _pool_notes(pools: Sequence[Pool], sizes: Sequence[int]) -> list[str]:
    """Notes on pools that are short, or have no choice in them."""
    notes = []
    if short := sum(len(pool) < sizes[-1] for pool in pools):
        notes.append(f"{short} of {len(pools)} questions have fewer than {sizes[-1]} candidates, and use all they have")
    right, wrong = (sum(test(pool.right) for pool in pools) for test in (np.all, lambda array: not array.any()))
    if right or wrong:
        every = f"all candidates are right at {right} of {len(pools)} questions, and wrong at {wrong}"
        notes.append(f"{every}: no rule can win or lose there")
    return notes


# --- a table --------------------------------------------------------------------------------------------------------

_COLUMNS = 6  # so many Ns fit beside one another


def sizes_of(result: EvalResult) -> list[int]:
    """The Ns that a result has the accuracy for, from the smallest to the largest.

    Raises:
        ValueError: the name of a metric that ``evaluate`` did not write.
    """
    return sorted(int(name.partition("@")[2]) for name in result.metrics if name.startswith("accuracy@"))


def shown_sizes(sizes: Sequence[int]) -> list[int]:
    """Those that a table has columns for: of many the powers of two and the largest."""
    return [n for n in sizes if len(sizes) <= _COLUMNS or n & (n - 1) == 0 or n == sizes[-1]]


def percent(result: EvalResult, name: str) -> Estimate | None:
    """A metric in percent; None where the rule does not have it."""
    found = result.metrics.get(name)
    if found is None:
        return None
    return Estimate(*(None if x is None else 100 * x for x in (found.value, found.low, found.high)))


def table(results: Sequence[EvalResult]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of text: accuracy in percent with its interval; of many Ns the powers of two and the largest."""
    sizes = sizes_of(results[0])
    shown = shown_sizes(sizes)
    several = len({result.subset for result in results}) > 1
    rows = [
        [
            str(result.settings["rule"]),
            str(result.settings["aggregation"] or "-"),
            result.source if result.settings["aggregation"] else "-",
            *([result.subset] if several else []),
            *(_text(percent(result, f"accuracy@{n}")) for n in shown),
            _text(percent(result, f"ties@{sizes[-1]}")),
        ]
        for result in results
    ]
    names = ["rule", "aggregation", "rewards", *(["subset"] if several else [])]
    return [*names, *(f"N = {n}" for n in shown), f"ties at {sizes[-1]}"], rows


def _text(figure: Estimate | None) -> str:
    return "-" if figure is None else figure.text(1)
