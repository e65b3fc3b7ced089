"""``cpmi serve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, cast

import typer

from cpmi.aggregation import Aggregation
from cpmi.cli.app import app
from cpmi.cli.running import stop_like_ctrl_c

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_LIMITS = "Limits"
_KEYS = "File with an API key on each line; or set CPMI_API_KEYS to keys with commas between. Default: none is needed."
_FAILED = "Number for texts of trainers that cannot be scored; default: such a request is refused."


@app.command()
def serve(
    prm: Annotated[str, typer.Option(help="The reward model: a folder, or a hub id.")],
    host: Annotated[str, typer.Option(help="Address to bind to; 0.0.0.0: all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    api_keys: Annotated[Path | None, typer.Option(help=_KEYS)] = None,
    name: Annotated[str, typer.Option(help="Name of the model in answers; default: its folder's, or its hub id.")] = "",
    family: Annotated[str | None, typer.Option(help="Of a model trained elsewhere; see cpmi score.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (the model's own), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    batch_tokens: Annotated[int, typer.Option(min=0, help="Tokens in one forward pass; 0: what suits.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Trajectories scored together at most.")] = 32,
    wait_ms: Annotated[float, typer.Option(min=0, help="How long a batch that is not full waits for more.")] = 5.0,
    aggregation: Annotated[
        str, typer.Option(help="Of step rewards to one number: last, min, prod, mean, sum.")
    ] = "min",
    split: Annotated[str, typer.Option(help="How a solution in one text is split; see cpmi prepare.")] = "auto",
    failed_reward: Annotated[float | None, typer.Option(help=_FAILED)] = None,
    queue: Annotated[int, typer.Option(min=1, help="Trajectories that may wait.", rich_help_panel=_LIMITS)] = 1024,
    max_trajectories: Annotated[int, typer.Option(min=1, help="In a request.", rich_help_panel=_LIMITS)] = 256,
    max_steps: Annotated[int, typer.Option(min=1, help="Of a trajectory.", rich_help_panel=_LIMITS)] = 512,
    max_characters: Annotated[int, typer.Option(min=1, help="Of a trajectory.", rich_help_panel=_LIMITS)] = 100_000,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Of a request.", rich_help_panel=_LIMITS)] = 8.0,
    body_seconds: Annotated[
        float, typer.Option(min=0.1, help="For a request's body to arrive.", rich_help_panel=_LIMITS)
    ] = 30.0,
    max_connections: Annotated[int, typer.Option(min=1, help="At a time.", rich_help_panel=_LIMITS)] = 1000,
    shutdown_seconds: Annotated[
        int, typer.Option(min=0, help="To finish what is in flight when told to stop.", rich_help_panel=_LIMITS)
    ] = 60,
) -> None:
    """Answer requests for step rewards over HTTP, until Ctrl-C."""
    from cpmi.serving import Limits, ServeSettings, bind, need_packages, read_keys
    from cpmi.serving import serve as run

    if failed_reward is not None and failed_reward - failed_reward != 0:
        raise typer.BadParameter("must be a finite number", param_hint="--failed-reward")
    settings = ServeSettings(
        name=name,
        aggregation=cast(Aggregation, aggregation),  # checked there
        split=split,
        failed_reward=failed_reward,
        batch_size=batch_size,
        wait_seconds=wait_ms / 1000,
        shutdown_seconds=shutdown_seconds,
        limits=Limits(
            body_bytes=int(max_body_mb * 2**20),
            body_seconds=body_seconds,
            trajectories=max_trajectories,
            steps=max_steps,
            characters=max_characters,
            queue=queue,
            connections=max_connections,
        ),
        keys=read_keys(api_keys, os.environ),
    )
    need_packages()
    with bind(host, port) as bound:
        from cpmi.models import ModelSettings
        from cpmi.prm import open_prm

        if host not in _LOOPBACK and settings.keys is None:
            typer.echo(f"cpmi: warning: {host} can be reached from elsewhere, and no API key is needed", err=True)
        rewarder = open_prm(ModelSettings(prm, dtype, device, batch_tokens), family)
        where = f"[{host}]" if ":" in host else host
        typer.echo(f"serving {prm} on http://{where}:{bound.getsockname()[1]} (docs: /docs); Ctrl-C stops it")
        stop_like_ctrl_c()
        try:
            run(rewarder, settings, bound)
        except KeyboardInterrupt:
            typer.echo("stopped", err=True)
