"""``cpmi evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cpmi.cli.app import Json, Trajectories, app, print_json

# The same names as in cpmi.evaluate, which is not imported here: it loads numpy.
BenchmarkName = Literal["steps", "processbench", "prmbench"]


@app.command()
def evaluate(
    benchmark: Annotated[BenchmarkName, typer.Argument(help="steps: any judged steps; processbench; prmbench.")],
    rewards: Annotated[Path, typer.Option(help="A run directory, or a file of step rewards.")],
    trajectories: Trajectories = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            help="fixed-0.5 (or another number), gsm8k-tuned, oracle (an upper bound), or dev:FILE (tuned on a run, or "
            "on trajectories that the rewards cover). Default: oracle for steps, else fixed-0.5."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="result.json to write.")] = None,
    bootstrap: Annotated[int, typer.Option(min=1, help="Resamples for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    as_json: Json = False,
) -> None:
    """Judge rewards by what people said of the steps, with intervals, and the trivial baselines beside them."""
    from dataclasses import asdict

    from cpmi.benchmarks.cases import Settings
    from cpmi.benchmarks.thresholds import Protocol
    from cpmi.display import show_notes, show_table
    from cpmi.evaluate import evaluate as run
    from cpmi.evaluate import published_table, table, threshold_line
    from cpmi.grader import Grader
    from cpmi.results import write_results

    protocol = Protocol.parse(threshold or ("oracle" if benchmark == "steps" else "fixed-0.5"))
    with Grader() as grader:
        results = run(benchmark, rewards, trajectories, Settings(protocol, bootstrap, seed), grader=grader)
    if output is not None:
        write_results(output, results)
    lines = [
        threshold_line(results[0]),
        f"intervals: 95 %, {bootstrap} resamples of trajectories",
        *results[0].notes,
        *(f"{each.source}, {each.subset}: {note}" for each in results[1:] for note in each.notes),
    ]
    if as_json:
        print_json([asdict(result) for result in results])
        for line in lines[2:]:
            typer.echo(f"cpmi: {line}", err=True)
        return
    if published := published_table(results):
        show_table(*published)
    show_table(*table(results))
    show_notes([*lines, *([f"written to {output}"] if output else [])])
