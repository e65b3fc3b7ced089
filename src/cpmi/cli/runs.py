"""The verbs that look at runs: ``export``, ``show``, ``compare``, ``combine``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cpmi.cli.app import Json, Run, Trajectories, app, note_missing_parts, print_json
from cpmi.errors import InputError

# The same names as in cpmi.export and cpmi.combine, which are not imported here: they load numpy.
ExportFormat = Literal["jsonl", "parquet", "stepwise"]
ScaleName = Literal["zscore", "rank", "none"]


@app.command()
def export(
    run: Run,
    to: Annotated[ExportFormat, typer.Option(help="stepwise: TRL's rows, the rewards as they are.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    trajectories: Trajectories = None,
) -> None:
    """Write a run as one file that others can read."""
    from cpmi.export import export as export_run

    note_missing_parts(run)
    count, failed = export_run(run, to, output, trajectories)
    typer.echo(f"{count} rows -> {output}" + (f" ({failed} attempts had failed)" if failed else ""))


@app.command()
def show(
    run: Run,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many trajectories.")] = 10,
    only: Annotated[list[str] | None, typer.Option("--id", help="Only this trajectory; may be repeated.")] = None,
    trajectories: Trajectories = None,
    as_json: Json = False,
) -> None:
    """Print trajectories with their rewards, each step colored by its own."""
    from itertools import islice

    from rich.console import Console

    from cpmi.display import color_scale, show_trajectories
    from cpmi.export import labeled_trajectories, trajectory_of
    from cpmi.records import read_rewards, to_json

    by_id = labeled_trajectories(run, trajectories)
    note_missing_parts(run)
    records = (record for record in read_rewards(run) if not only or record.trajectory_id in only)
    pairs = [(trajectory_of(by_id, record), record) for record in islice(records, limit)]
    if only and len(pairs) < min(limit, len(set(only))):
        missing = sorted(set(only) - {record.trajectory_id for _, record in pairs})
        raise InputError(f"{run}: has no {', '.join(missing)}")
    if as_json:
        print_json([{"trajectory": to_json(t), "rewards": to_json(r)} for t, r in pairs])
        return
    show_trajectories(pairs, color_scale(read_rewards(run)), Console(highlight=False))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, or files of step rewards.")],
    trajectories: Trajectories = None,
    baseline: Annotated[
        str | None, typer.Option(help="Run that savings refer to; default: the first of mc, else of pav.")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=1, help="Resamples for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    as_json: Json = False,
) -> None:
    """Put runs over the same trajectories side by side: what they cost, how they agree, with people too."""
    from dataclasses import asdict

    from cpmi.compare import compare as compare_runs
    from cpmi.compare import correlation_table, notes, table
    from cpmi.display import show_notes, show_table
    from cpmi.grader import Grader

    note_missing_parts(*runs)
    with Grader() as grader:
        result = compare_runs(runs, trajectories, baseline, grader=grader, count=bootstrap, seed=seed)
    if as_json:
        print_json(asdict(result))
        return
    show_table(*table(result))
    if result.correlations:
        show_table(*correlation_table(result))
    show_notes(notes(result))


@app.command()
def combine(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or a file of step rewards.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Another, over the same trajectories.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .jsonl, .jsonl.gz or .parquet.")],
    first_steps: Annotated[
        int | None, typer.Option(metavar="K", help="The first K steps from the first run, the rest from the second.")
    ] = None,
    weights: Annotated[str | None, typer.Option(metavar="W1,W2", help="A weighted sum of the two.")] = None,
    scale: Annotated[ScaleName, typer.Option(help="Put both on one scale first.")] = "zscore",
    as_json: Json = False,
) -> None:
    """Make one set of rewards of two: first steps from one and the rest from the other, or a weighted sum."""
    from dataclasses import asdict

    from cpmi.combine import Rule
    from cpmi.combine import combine as combine_runs

    note_missing_parts(first, second)
    report = combine_runs(first, second, output, Rule(first_steps, _weights(weights)), scale)
    if as_json:
        print_json(asdict(report) | {"output": str(output)})
        return
    failed = f", {report.failed} lines with an error, for they have no rewards in both" if report.failed else ""
    typer.echo(f"{report.combined} combined{failed} -> {output}")


def _weights(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        first, second = map(float, text.split(","))
    except ValueError as error:
        raise InputError(f"weights {text!r}: write two numbers, for example 0.5,0.5") from error
    return first, second
