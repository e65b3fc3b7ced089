"""``cpmi evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from cpmi.cli.app import Json, Trajectories, app, print_json, was_given
from cpmi.errors import InputError

if TYPE_CHECKING:
    from cpmi.results import EvalResult

# The same names as in cpmi.evaluate, which is not imported here: it loads numpy.
BenchmarkName = Literal["steps", "processbench", "prmbench", "best-of-n"]

_STEPS, _CHOICE = "steps, processbench, prmbench", "best-of-n"
_PANELS = (_STEPS, _CHOICE)  # of the options that are for these benchmarks only


@app.command()
def evaluate(
    ctx: typer.Context,
    benchmark: Annotated[
        BenchmarkName,
        typer.Argument(help="steps: any judged steps; processbench; prmbench; best-of-n: candidates to choose from."),
    ],
    rewards: Annotated[
        list[str] | None,
        typer.Option(
            help="A run directory, or a file of step rewards. best-of-n: none or several, also tag:NAME for the number "
            "in that tag of each candidate."
        ),
    ] = None,
    trajectories: Trajectories = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_STEPS,
            help="fixed-0.5 (or another number), gsm8k-tuned, oracle (an upper bound), or dev:FILE (tuned on a run, or "
            "on trajectories that the rewards cover). Default: oracle for steps, else fixed-0.5.",
        ),
    ] = None,
    n: Annotated[
        str | None,
        typer.Option(
            "--n",
            rich_help_panel=_CHOICE,
            help="How many candidates to choose from: 1,2,4,8. Default: up to the largest pool.",
        ),
    ] = None,
    aggregation: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=_CHOICE, help="last, min, prod, mean, sum; may be repeated. Default: all."),
    ] = None,
    temperature: Annotated[float, typer.Option(rich_help_panel=_CHOICE, help="Of the rule softmax.")] = 1.0,
    subsets: Annotated[
        int, typer.Option(min=1, rich_help_panel=_CHOICE, help="Votes are counted in so many draws, if not in all.")
    ] = 1000,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="result.json to write.")] = None,
    bootstrap: Annotated[int, typer.Option(min=1, help="Resamples for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples; best-of-n: also of the draws and of ties.")] = 0,
    as_json: Json = False,
) -> None:
    """Judge rewards by what people said of the steps, or by the answers they choose, with intervals.

    Trivial baselines stand beside them.
    """
    _refuse_options_of_others(ctx, benchmark)
    sources = rewards or []
    if benchmark == "best-of-n":
        _refuse_options_without_rewards(ctx, sources)
        shown = _best_of_n(sources, trajectories, n, aggregation, temperature, subsets, bootstrap, seed)
    else:
        shown = _by_steps(benchmark, _only(sources, benchmark), trajectories, threshold, bootstrap, seed)
    _show(shown, output, as_json=as_json)


def _refuse_options_of_others(ctx: typer.Context, benchmark: BenchmarkName) -> None:
    """An option that would change nothing is a mistake worth a line."""
    for parameter in ctx.command.params:
        benchmarks = getattr(parameter, "rich_help_panel", None)
        if benchmarks in _PANELS and benchmark not in benchmarks and was_given(ctx, parameter.name or ""):
            raise InputError(f"{parameter.opts[0]} is for {benchmarks}, not for {benchmark}")


def _refuse_options_without_rewards(ctx: typer.Context, sources: Sequence[str]) -> None:
    if was_given(ctx, "aggregation") and all(source.startswith("tag:") for source in sources):
        raise InputError(
            "--aggregation is for step rewards, and there are none; name a run with --rewards, or leave it out"
        )
    if was_given(ctx, "temperature") and not sources:
        raise InputError("--temperature is for votes weighed by rewards, and there are none; leave it out")


def _only(sources: Sequence[str], benchmark: str) -> Path:
    if len(sources) != 1:
        raise InputError(f"{benchmark} judges one run, or one file of step rewards; --rewards names {len(sources)}")
    return Path(sources[0])


@dataclass(frozen=True, slots=True)
class _Shown:
    """Results, and how to show them: tables, and lines that are no notes of a result."""

    results: Sequence[EvalResult]
    tables: Sequence[tuple[list[str], list[list[str]]]]
    lines: Sequence[str]


def _by_steps(
    benchmark: Literal["steps", "processbench", "prmbench"],
    rewards: Path,
    trajectories: Path | None,
    threshold: str | None,
    bootstrap: int,
    seed: int,
) -> _Shown:
    from cpmi.benchmarks.cases import Settings
    from cpmi.benchmarks.thresholds import Protocol
    from cpmi.evaluate import evaluate as run
    from cpmi.evaluate import published_table, table, threshold_line
    from cpmi.grader import Grader

    protocol = Protocol.parse(threshold or ("oracle" if benchmark == "steps" else "fixed-0.5"))
    with Grader() as grader:
        results = run(benchmark, rewards, trajectories, Settings(protocol, bootstrap, seed), grader=grader)
    tables = [each for each in (published_table(results), table(results)) if each is not None]
    return _Shown(
        results, tables, [threshold_line(results[0]), f"intervals: 95 %, {bootstrap} resamples of trajectories"]
    )


def _best_of_n(
    rewards: Sequence[str],
    trajectories: Path | None,
    n: str | None,
    aggregation: list[str] | None,
    temperature: float,
    subsets: int,
    bootstrap: int,
    seed: int,
) -> _Shown:
    from cpmi.aggregation import AGGREGATIONS, Aggregation
    from cpmi.benchmarks.best_of_n import BestOfNSettings, parse_sizes, table
    from cpmi.grader import Grader
    from cpmi.selection import evaluate_best_of_n

    sizes = None if n is None else parse_sizes(n)
    aggregations = cast(tuple[Aggregation, ...], tuple(dict.fromkeys(aggregation or AGGREGATIONS)))  # checked there
    settings = BestOfNSettings(sizes, aggregations, temperature, subsets, bootstrap, seed)
    with Grader() as grader:
        results = evaluate_best_of_n(rewards, trajectories, settings, grader=grader)
    line = f"accuracy in percent, with 95 % intervals over {bootstrap} resamples of questions"
    return _Shown(results, [table(results)], [line])


def _show(shown: _Shown, output: Path | None, *, as_json: bool) -> None:
    from cpmi.display import show_notes, show_table
    from cpmi.results import write_results

    first, *others = shown.results
    if output is not None:
        write_results(output, shown.results)
    notes = [*first.notes, *(f"{each.source}, {each.subset}: {note}" for each in others for note in each.notes)]
    if as_json:
        print_json([asdict(result) for result in shown.results])
        for line in notes:
            typer.echo(f"cpmi: {line}", err=True)
        return
    for each in shown.tables:
        show_table(*each)
    show_notes([*shown.lines, *notes, *([f"written to {output}"] if output else [])])
