"""``cpmi score``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cpmi.cli.app import Json, app
from cpmi.cli.on_ray import RayActors, RayAddress, RayOptions, RayWait, ray_settings
from cpmi.cli.running import run_job


@app.command()
def score(
    trajectories: Annotated[Path, typer.Argument(help="trajectories.jsonl, as cpmi prepare writes it.")],
    prm: Annotated[str, typer.Option(help="The reward model: a folder, or a hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; an unfinished one goes on.")],
    family: Annotated[
        str | None,
        typer.Option(
            help="Of a model trained elsewhere: trl, qwen2.5-math-prm, math-shepherd, rlhflow; default: by its config."
        ),
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Folder of a frozen decoder's states, shared by heads on the same decoder.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many; go on later with more.")] = None,
    shard: Annotated[str, typer.Option(help="i/n: score the i-th (from 0) of n parts.")] = "0/1",
    dtype: Annotated[str, typer.Option(help="auto (the model's own), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Trajectories at a time; default: 256.")] = None,
    batch_tokens: Annotated[int, typer.Option(min=0, help="Tokens in one forward pass; 0: what suits.")] = 0,
    retry_errors: Annotated[bool, typer.Option(help="Try trajectories again that ended in an error.")] = False,
    ray: RayAddress = None,
    ray_actors: RayActors = None,
    ray_option: RayOptions = None,
    ray_wait: RayWait = 0,
    as_json: Json = False,
) -> None:
    """Give every step a reward by a process reward model: one pass over each trajectory; run it again to go on."""
    from cpmi.labeling import LabelJob, PRMSettings
    from cpmi.models import ModelSettings
    from cpmi.runs import Shard

    job = LabelJob(
        trajectories,
        output,
        ModelSettings(prm, dtype, device, batch_tokens),
        PRMSettings(family),
        shard=Shard.parse(shard),
        limit=limit,
        batch_size=batch_size,
        retry_errors=retry_errors,
        features=features,
        ray=ray_settings(ray, ray_actors, ray_option, ray_wait),
    )
    run_job(job, "scoring", "scored", as_json=as_json)
