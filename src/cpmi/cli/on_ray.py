"""The options of the verbs that can work on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cpmi.cli.app import engine_options
from cpmi.errors import InputError

if TYPE_CHECKING:
    from cpmi.ray_runs import RaySettings

_PANEL = "Ray"

RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Compute on a Ray cluster: local (one of this machine, for this run), auto (the one that this machine "
        "belongs to) or HOST:PORT.",
        rich_help_panel=_PANEL,
    ),
]
RayActors = Annotated[
    str | None,
    typer.Option(
        metavar="N|MIN:MAX",
        help="How many actors, each with an engine of its own. Default: one for each GPU, one where there is none.",
        rich_help_panel=_PANEL,
    ),
]
RayOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--ray-option",
        metavar="NAME=VALUE",
        help="An option of Ray's own for each actor (num_gpus=1, num_cpus=4, accelerator_type=A100); may be repeated.",
        rich_help_panel=_PANEL,
    ),
]
RayWait = Annotated[
    float,
    typer.Option(
        min=0,
        metavar="SECONDS",
        help="How long to wait for a cluster that grows; 0: what no node can hold now is refused.",
        rich_help_panel=_PANEL,
    ),
]


def ray_settings(address: str | None, actors: str | None, options: list[str] | None, wait: float) -> RaySettings | None:
    """What was asked for; None where it is not Ray.

    Raises:
        InputError: an option of Ray without --ray, or one that cannot be.
    """
    from cpmi.ray_runs import RaySettings

    if address is None:
        if actors is not None or options or wait:
            raise InputError("--ray-actors, --ray-option and --ray-wait go with --ray ADDRESS")
        return None
    parsed = RaySettings.parse_actors(actors)
    return RaySettings(address, parsed, engine_options(options, "Ray option"), wait)
