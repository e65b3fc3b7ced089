"""The verbs that show: ``report`` and ``plot``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

from cpmi.cli.app import Json, Trajectories, app, print_json

# The same names as in cpmi.report.figures, which is not imported here: it loads matplotlib.
Kind = Literal["distribution", "roc", "pr", "reliability", "position", "cost", "training", "best-of-n"]

Bootstrap = Annotated[int, typer.Option(min=1, help="Resamples for the intervals.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the resamples.")]


@app.command()
def report(
    arguments: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_RESULT...",
            help="Run directories, files of step rewards, or results of cpmi evaluate (.json).",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    trajectories: Trajectories = None,
    title: Annotated[str | None, typer.Option(help="Of the page; default: the names of the runs.")] = None,
    bootstrap: Bootstrap = 1000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a page in one HTML file: can these step rewards be trusted, and what do they look like?"""
    from cpmi.grader import Grader
    from cpmi.report import write_report

    with Grader() as grader:
        done = write_report(arguments, output, trajectories, title=title, grader=grader, count=bootstrap, seed=seed)
    _say(done.notes)
    if as_json:
        print_json({"output": str(done.output), "trajectories": done.trajectories, "runs": list(done.runs)})
        return
    runs = "1 run" if len(done.runs) == 1 else f"{len(done.runs)} runs"
    trajectories_shown = "1 trajectory" if done.trajectories == 1 else f"{done.trajectories} trajectories"
    typer.echo(f"{trajectories_shown}, {runs} -> {done.output}")


@app.command()
def plot(
    kind: Annotated[
        Kind,
        typer.Argument(
            help="Which figure of the report; training: losses of reward models; best-of-n: results of cpmi evaluate."
        ),
    ],
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run directories, or files of step rewards; folders of reward models; results of best-of-n.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .png, .svg or .pdf.")],
    trajectories: Trajectories = None,
    bootstrap: Bootstrap = 1000,
    seed: Seed = 0,
) -> None:
    """Write one figure of the report by itself, for a paper."""
    from cpmi.grader import Grader
    from cpmi.report import plot as plot_runs

    with Grader() as grader:
        notes = plot_runs(kind, runs, output, trajectories, grader=grader, count=bootstrap, seed=seed)
    _say(notes)
    typer.echo(f"{kind} -> {output}")


def _say(notes: Iterable[str]) -> None:
    for note in notes:
        typer.echo(f"cpmi: {note}", err=True)
