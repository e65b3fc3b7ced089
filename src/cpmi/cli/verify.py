"""``cpmi verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpmi.cli.app import Json, Trajectories, app, print_json

if TYPE_CHECKING:
    from cpmi.verify import Verification


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="A run directory, or a file of candidates of cpmi solve.")],
    trajectories: Trajectories = None,
    as_json: Json = False,
) -> None:
    """Say what of a run is there, missing and broken. Exit status 0: complete and sound; 1: not; 2: not a run."""
    from cpmi.verify import as_json as to_json
    from cpmi.verify import verify as verify_run

    found = verify_run(run, trajectories)
    if as_json:
        print_json(to_json(found))
    else:
        _say(found)
    if not found.is_sound:
        raise typer.Exit(1)


def _say(found: Verification) -> None:
    of = "" if found.total is None else f" of {found.total}"
    counts = [f"{found.rewarded}{of} done"]
    counts += [f"{found.failed} failed"] if found.failed else []
    counts += [f"{found.missing} missing"] if found.missing else []
    counts += [f"{found.problem_count} problem{'s' * (found.problem_count > 1)}"] if found.problem_count else []
    state = "complete and sound" if found.is_sound else "under way" if found.under_way else "not complete and sound"
    typer.echo(f"{found.path} ({found.method}): {', '.join(counts)}; {state}")
    for problem in found.problems:
        typer.echo(f"  {problem}")
    if found.problem_count > len(found.problems):
        typer.echo(f"  ... and {found.problem_count - len(found.problems)} more")
    if found.first_missing:
        more = ", ..." if found.missing > len(found.first_missing) else ""
        typer.echo(f"  missing: {', '.join(found.first_missing)}{more}")
    for note in found.notes:
        typer.echo(f"  note: {note}")
    if found.advice:
        typer.echo(f"  what to do: {found.advice}")
