"""``cpmi loop``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cpmi.aggregation import Aggregation
from cpmi.cli.app import Json, app, engine_options, print_json
from cpmi.cli.running import stoppable

if TYPE_CHECKING:
    from cpmi.loop import LoopReport, RoundResult

LabelMethod = Literal["posterior", "cpmi"]

_POLICY, _LABELS, _PRM = "Solutions", "Labels", "Reward models"


def _option(panel: str, text: str, **more: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, **more)


@app.command()
def loop(
    questions: Annotated[str, typer.Argument(help="A file of questions, or hub:NAME for a data set of the hub.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the loop; an unfinished one goes on.")],
    task: Annotated[str, typer.Option(help="How the questions are read: gsm8k, math...; see docs/tasks.md.")] = (
        "questions"
    ),
    split: Annotated[str | None, typer.Option(help="Of a data set of the hub.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="The most rounds; more can be asked for later.")] = 3,
    round_questions: Annotated[int, typer.Option(min=1, help="New questions in each round.")] = 100,
    held_out: Annotated[
        int, typer.Option(min=1, help="Questions kept aside, to tell right solutions from wrong ones.")
    ] = 50,
    judged: Annotated[
        Path | None, typer.Option(help="Trajectories with human step labels, to judge by in place of --held-out.")
    ] = None,
    patience: Annotated[int, typer.Option(min=1, help="Stop after so many rounds without a better AUC.")] = 1,
    min_gain: Annotated[float, typer.Option(min=0, help="By how much an AUC must be higher to be better.")] = 0.0,
    aggregation: Annotated[Aggregation, typer.Option(help="Of step rewards, to judge solutions by.")] = "min",
    seed: Annotated[int, typer.Option(min=0, help="Decides order, sampling, and the first heads.")] = 0,
    policy: Annotated[str, _option(_POLICY, "hf:..., vllm:..., openai:..., smollm2 or toy:.")] = "smollm2",
    n: Annotated[int, _option(_POLICY, "Solutions of a question.", min=1)] = 4,
    max_tokens: Annotated[int, _option(_POLICY, "Of a solution.", min=1)] = 512,
    temperature: Annotated[float, _option(_POLICY, "Of sampling.", min=0)] = 0.8,
    engine_option: Annotated[
        list[str] | None, _option(_POLICY, "An option of the policy's engine; may be repeated.", metavar="NAME=VALUE")
    ] = None,
    labeler: Annotated[
        str | None,
        _option(_LABELS, "What is asked for log-probabilities; default: the policy (of vllm:PATH: hf:PATH)."),
    ] = None,
    label_method: Annotated[
        LabelMethod, _option(_LABELS, "posterior: of the first error; cpmi: each step by itself.")
    ] = "posterior",
    template_set: Annotated[str, _option(_LABELS, "instructions, cues, or a JSON file of your own.")] = "cues",
    select: Annotated[
        float, _option(_LABELS, "Share of the solutions that is labeled: those the heads are least sure of.")
    ] = 0.5,
    base_model: Annotated[str, _option(_PRM, "PATH_OR_HUB_ID of a decoder, or smollm2.")] = "smollm2",
    heads: Annotated[int, _option(_PRM, "Reward models of a round, which differ in their seeds.", min=1)] = 3,
    epochs: Annotated[float | None, _option(_PRM, "Of training; default: that of cpmi train.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (the models' own), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    as_json: Json = False,
) -> None:
    """Solve, choose, label, train, and again: a reward model learns while a policy solves; run it again to go on."""
    from cpmi.display import progress_display
    from cpmi.errors import require
    from cpmi.labelers.cpmi import CPMISettings
    from cpmi.labelers.posterior import PosteriorSettings
    from cpmi.loop import LoopSettings
    from cpmi.loop import loop as run
    from cpmi.models import ModelSettings
    from cpmi.prompts import load_templates
    from cpmi.protocols import SamplingParams
    from cpmi.solve import SampleSettings

    require("torch", "train")
    from cpmi.prm.settings import TrainSettings

    method = CPMISettings if label_method == "cpmi" else PosteriorSettings
    settings = LoopSettings(
        policy=ModelSettings(policy, dtype, device, options=engine_options(engine_option)),
        labeler=ModelSettings(labeler or _scored_by(policy), dtype, device),
        train=TrainSettings(ModelSettings(base_model, dtype, device), epochs=epochs, seed=seed),
        sampling=SampleSettings(n, sampling=SamplingParams(max_tokens=max_tokens, temperature=temperature), seed=seed),
        label=method(templates=load_templates(template_set)),
        questions=round_questions,
        held_out=held_out,
        select=select,
        heads=heads,
        rounds=rounds,
        patience=patience,
        min_gain=min_gain,
        aggregation=aggregation,
        seed=seed,
    )
    with stoppable(output, "done"):
        report = run(
            questions, output, settings, task=task, split=split, judged=judged, on_stage=progress_display,
            on_round=lambda done: None if as_json else _say(done),
        )  # fmt: skip
    if as_json:
        print_json(_as_json(report))
    else:
        typer.echo(f"stopped: {report.stopped} -> {output}")
        if report.best is not None:
            typer.echo(f"  best: round {report.best.number}, {output / report.best.prms[0]}")


def _scored_by(policy: str) -> str:
    """The same model, by the engine that scores best."""
    return f"hf:{policy.removeprefix('vllm:')}" if policy.startswith("vllm:") else policy


def _say(done: RoundResult) -> None:
    auc = "none (only right ones, or only wrong ones)" if done.auc is None else f"{done.auc:.3f}"
    unsure = "" if done.unsure is None else f", unsure by {done.unsure[0]:.2f} bits, the chosen {done.unsure[1]:.2f}"
    typer.echo(
        f"round {done.number}: {done.candidates} solutions{unsure}; {done.labeled} of {done.chosen} chosen labeled, "
        f"{done.targets} trained on; AUC {auc}"
    )


def _as_json(report: LoopReport) -> dict[str, Any]:
    from dataclasses import asdict

    best = None if report.best is None else report.best.number
    return {
        "rounds": [asdict(each) for each in report.rounds],
        "best": best,
        "stopped": report.stopped,
        "output": str(report.output),
    }
