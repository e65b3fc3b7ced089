"""``cpmi fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cpmi.cli.app import Json, Trajectories, app, note_missing_parts, print_json


@app.command()
def fit(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs of cpmi label --method posterior.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, for --first-error-model.")],
    ridge: Annotated[float, typer.Option(help="Draws the weights towards 0.", min=0)] = 3.0,
    features: Annotated[list[str] | None, typer.Option("--feature", help="Use this one; repeat. Default: all.")] = None,
    trajectories: Trajectories = None,
    as_json: Json = False,
) -> None:
    """Learn from human step labels what the evidence of a posterior means: for your own model and data."""
    from dataclasses import asdict

    from cpmi.fitting import fit_first_error
    from cpmi.labelers.evidence import FEATURES

    note_missing_parts(*runs)
    report = fit_first_error(runs, output, trajectories=trajectories, features=tuple(features or FEATURES), ridge=ridge)
    if as_json:
        print_json(asdict(report) | {"output": str(output)})
        return
    left_out = f", {report.left_out} without a judgment of the first wrong step" if report.left_out else ""
    typer.echo(f"fitted to {report.n} trajectories{left_out} -> {output}")
    typer.echo(f"  first-error F1 on questions it was not fitted to: {report.first_error_f1.text()}")
