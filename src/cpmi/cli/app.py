"""The application that the verbs hang on, and what several of them share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cpmi import __version__
from cpmi.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Step-level rewards for chains of thought, from a language model's own log-probabilities.",
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on standard output.")]
Run = Annotated[Path, typer.Argument(help="A run directory, or a file of step rewards.")]
Trajectories = Annotated[
    Path | None, typer.Option(help="The labeled trajectories, if they are not where the run found them.")
]


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def was_given(ctx: typer.Context, name: str) -> bool:
    """Whether an option was said on the command line."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def engine_options(given: list[str] | None, what: str = "engine option") -> dict[str, Any]:
    """``NAME=VALUE`` pairs; a value is JSON where it can be read as such, else text."""
    options: dict[str, Any] = {}
    for pair in given or ():
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise InputError(f"{what} {pair!r}: write NAME=VALUE")
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options


def note_missing_parts(*runs: Path) -> None:
    """Say on standard error which of these runs are not finished."""
    from cpmi.runs import RunDirectory

    missing = []
    for run in filter(Path.is_dir, runs):
        done, parts = RunDirectory.open(run).parts_done()
        if done < parts:
            missing.append(f"{run} is not finished: {done} of {parts} parts are complete")
    if missing:
        typer.echo(f"cpmi: {'; '.join(missing)}", err=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cpmi {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    del version
