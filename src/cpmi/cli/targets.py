"""``cpmi targets``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cpmi.cli.app import Json, Trajectories, app, note_missing_parts, print_json, was_given
from cpmi.errors import InputError

# The same names as in cpmi.normalizers, which is not imported here: it loads numpy.
Normalizer = Literal[
    "auto", "quantile-sigmoid", "zscore-sigmoid", "mad-sigmoid", "mad-tanh", "rank", "standardize", "threshold",
    "isotonic", "platt", "identity", "conditional",
]  # fmt: skip


@app.command()
def targets(
    ctx: typer.Context,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, or files of step rewards.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .jsonl, .jsonl.gz or .parquet.")],
    normalizer: Annotated[
        Normalizer,
        typer.Option(help="How rewards become targets; auto: conditional for posterior, else quantile-sigmoid."),
    ] = "auto",
    temperature: Annotated[float, typer.Option(help="Divides a standardized reward before it is squashed.")] = 1.0,
    at: Annotated[float, typer.Option(help="Of threshold: targets are 1 above it.")] = 0.0,
    outliers: Annotated[
        str, typer.Option(help="keep; clip or drop (beyond the quantiles 0.01, 0.99); clip:60, drop:60 (beyond |60|).")
    ] = "keep",
    maps: Annotated[Path | None, typer.Option(help="Apply the maps in this file instead of fitting any.")] = None,
    from_labels: Annotated[
        bool,
        typer.Option("--from-labels", help="The files hold trajectories with human step labels: 1 right, 0 wrong."),
    ] = False,
    trajectories: Trajectories = None,
    as_json: Json = False,
) -> None:
    """Turn rewards into training targets: one file with all that a trainer needs, and the fitted maps beside it."""
    from dataclasses import asdict

    from cpmi.normalizers import Outliers, TargetSettings
    from cpmi.targets import maps_path, write_label_targets, write_targets

    def refuse(names: tuple[str, ...], option: str, why: str) -> None:
        for name in names:
            if was_given(ctx, name):
                raise InputError(f"--{name} and {option}: {why}; leave one of the two out")

    fitting = ("normalizer", "temperature", "at", "outliers")
    if from_labels:
        refuse((*fitting, "maps", "trajectories"), "--from-labels", "human labels are targets as they are")
        written = write_label_targets(runs, output)
        if as_json:
            print_json(asdict(written) | {"output": str(output)})
            return
        typer.echo(
            f"{written.rows} trajectories"
            + (f", {written.failed} without labels" if written.failed else "")
            + f" -> {output}"
        )
        return
    if maps is not None:
        refuse(fitting, "--maps", "fitted maps are applied as they are")
    note_missing_parts(*runs)
    settings = TargetSettings(normalizer, temperature, at, Outliers.parse(outliers))
    report = write_targets(runs, output, settings, trajectories=trajectories, maps=maps)
    if as_json:
        print_json(asdict(report) | {"output": str(output), "maps_file": str(maps_path(output))})
        return
    failed = f", {report.failed} without rewards" if report.failed else ""
    dropped = f", {report.dropped} dropped for an outlier" if report.dropped else ""
    typer.echo(f"{report.rows} trajectories{failed}{dropped} -> {output}")
    for each in report.maps:
        typer.echo(f"  {each.source}: {each.normalizer}, fitted to {each.n} rewards -> {maps_path(output)}")
