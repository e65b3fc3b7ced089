"""``cpmi train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cpmi.cli.app import Json, app, print_json, was_given
from cpmi.cli.running import stop_like_ctrl_c
from cpmi.errors import InputError

if TYPE_CHECKING:
    from cpmi.prm.settings import TrainReport

# The same names as in cpmi.prm, which is not imported here: it loads torch.
Tune = Literal["features", "head", "lora", "full"]
Objective = Literal["bce", "bce-hard", "mse", "mse-logit", "focal", "pqm", "pairwise"]
Head = Literal["linear", "mlp"]
Confidence = Literal["none", "reward", "target"]
TooLong = Literal["refuse", "truncate", "drop"]
LogTo = Literal["none", "tensorboard", "wandb"]

_LOSS, _WEAK, _LORA, _STEPS, _RUN = (
    "Objective", "Weak labels", "LoRA (--tune lora)", "How steps are written", "Optimization",
)  # fmt: skip


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


@app.command()
def train(
    ctx: typer.Context,
    targets: Annotated[Path, typer.Argument(help="targets.jsonl, as cpmi targets writes it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the reward model.")],
    base_model: Annotated[
        str, typer.Option(help="PATH_OR_HUB_ID of a decoder, or smollm2 (a small one for trying out).")
    ] = "smollm2",
    tune: Annotated[
        Tune,
        typer.Option(
            help="features: a head on states of the frozen decoder, computed once; head: the same, computed in every "
            "epoch; lora: adapters and head; full: every weight."
        ),
    ] = "features",
    head: Annotated[
        Head, typer.Option(help="linear: one layer, which everything loads; mlp: two, which this package loads.")
    ] = "linear",
    features: Annotated[
        Path | None,
        typer.Option(help="Folder for the states of the frozen decoder, to be shared by several trainings."),
    ] = None,
    objective: Annotated[
        Objective, _option(_LOSS, "bce: soft targets; pqm, pairwise: rank the steps of a solution.")
    ] = "bce",
    hard_at: Annotated[float, _option(_LOSS, "bce-hard, pqm: a step is right above this.")] = 0.5,
    gamma: Annotated[float, _option(_LOSS, "Of focal.")] = 2.0,
    margin: Annotated[float, _option(_LOSS, "zeta of pqm.")] = 4.0,
    positive_weight: Annotated[
        str, _option(_LOSS, "What a right step counts in units of a wrong one; balanced: both sides alike.")
    ] = "1",
    weight_by: Annotated[Confidence, _option(_WEAK, "Count steps by |reward|, or by |2 target - 1|.")] = "none",
    ambiguous: Annotated[
        str | None, _option(_WEAK, "Do not learn from steps with a target between these.", metavar="LOW,HIGH")
    ] = None,
    label_smoothing: Annotated[float, _option(_WEAK, "Move targets towards 1/2 by this share.")] = 0.0,
    small_loss: Annotated[
        float, _option(_WEAK, "After the first epoch, leave out this share of steps: those with the largest loss.")
    ] = 0.0,
    lora_rank: Annotated[int, _option(_LORA, "Rank of the adapters.", min=1)] = 16,
    lora_alpha: Annotated[int, _option(_LORA, "Scale of the adapters.", min=1)] = 32,
    lora_dropout: Annotated[float, _option(_LORA, "Dropout before them.", min=0, max=0.99)] = 0.05,
    lora_targets: Annotated[str, _option(_LORA, "Layers that get one, or all-linear.")] = "q_proj,k_proj,v_proj,o_proj",
    merge: Annotated[bool, _option(_LORA, "Add adapters to the weights in the end: a plain checkpoint.")] = True,
    separator: Annotated[str, _option(_STEPS, r"What ends every step; \n is a line break.")] = r"\n\n",
    after_question: Annotated[str, _option(_STEPS, "Between question and first step.")] = r"\n",
    max_tokens: Annotated[int | None, _option(_STEPS, "Of a trajectory; default: the model's context.", min=1)] = None,
    too_long: Annotated[TooLong, _option(_STEPS, "What becomes of trajectories with more.")] = "refuse",
    epochs: Annotated[float | None, _option(_RUN, "Default: 2; features: 1,200 steps, as 6 to 30 epochs.")] = None,
    batch_size: Annotated[
        int | None, _option(_RUN, "Trajectories of an optimizer step, over all processes; default: 64, or 32.", min=1)
    ] = None,
    forward_size: Annotated[
        int | None,
        _option(_RUN, "Of these, how many at a time in each process; default: at most 8 (features: 64).", min=1),
    ] = None,
    learning_rate: Annotated[float | None, _option(_RUN, "Of the decoder; default: 2e-5, lora 2e-4.")] = None,
    head_learning_rate: Annotated[float | None, _option(_RUN, "Default: 1e-3, with lora and full 3e-4.")] = None,
    weight_decay: Annotated[float, _option(_RUN, "Of AdamW.", min=0)] = 0.01,
    warmup: Annotated[float, _option(_RUN, "Share of the optimizer steps in which the rates rise.")] = 0.05,
    held_out: Annotated[float, _option(_RUN, "Share of the questions to watch the loss on; 0: none.")] = 0.1,
    patience: Annotated[int, _option(_RUN, "Stop after so many epochs without a better held-out loss.", min=1)] = 5,
    gradient_checkpointing: Annotated[bool, _option(_RUN, "Less memory, a third more time.")] = False,
    bf16: Annotated[bool | None, _option(_RUN, "Compute in bfloat16; default: where it is safe and fast.")] = None,
    dtype: Annotated[
        str, _option(_RUN, "Of the weights: auto (the model's own; full: float32), float32, bfloat16.")
    ] = "auto",
    device: Annotated[str, _option(_RUN, "auto, cpu, cuda ...")] = "auto",
    batch_tokens: Annotated[int, _option(_RUN, "features: tokens in one pass; 0: what suits.", min=0)] = 0,
    seed: Annotated[int, _option(_RUN, "Decides the split, the head's first weights, and the order.", min=0)] = 0,
    log_to: Annotated[LogTo, _option(_RUN, "Where else to log (pip install tensorboard, or wandb).")] = "none",
    as_json: Json = False,
) -> None:
    """Train a process reward model: a checkpoint that Transformers and vLLM load; run it again to go on.

    Several processes: torchrun --nproc-per-node N -m cpmi train ...
    """
    from dataclasses import asdict

    from cpmi.display import training_display
    from cpmi.errors import require
    from cpmi.models import ModelSettings
    from cpmi.training import train as run

    require("torch", "train")
    from cpmi.prm.data import WeightSettings
    from cpmi.prm.encode import StepFormat
    from cpmi.prm.objectives import ObjectiveSettings
    from cpmi.prm.settings import LoraSettings, TrainSettings

    _refuse_what_changes_nothing(ctx, tune, objective, held_out)
    settings = TrainSettings(
        base=ModelSettings(base_model, dtype, device, batch_tokens),
        tune=tune,
        head=head,
        form=StepFormat(after_question=_text(after_question), separator=_text(separator)),
        objective=ObjectiveSettings(objective, hard_at, gamma, margin, label_smoothing, small_loss),
        weights=WeightSettings(weight_by, _range(ambiguous), _positive(positive_weight)),
        lora=LoraSettings(lora_rank, lora_alpha, lora_dropout, tuple(lora_targets.split(",")), merge),
        epochs=epochs,
        batch_size=batch_size,
        forward_size=forward_size,
        rate=learning_rate,
        head_rate=head_learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        held_out=held_out,
        patience=patience,
        max_tokens=max_tokens,
        too_long=too_long,
        gradient_checkpointing=gradient_checkpointing,
        bf16=bf16,
        seed=seed,
        log_to=log_to,
    )
    stop_like_ctrl_c()
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        with training_display(shown=is_first) as update:
            report = run(targets, settings, output, features=features, on_progress=update)
    except KeyboardInterrupt:
        typer.echo("\nstopped; the same command goes on from the last whole epoch", err=True)
        raise typer.Exit(130) from None
    if not is_first:
        return
    if as_json:
        print_json(asdict(report) | {"output": str(output)})
    else:
        _print_report(report)


def _print_report(report: TrainReport) -> None:
    held = f", {report.held_out} held out" if report.held_out else ""
    typer.echo(
        f"{report.trained} trajectories with {report.steps} steps{held}: {report.epochs:.4g} epochs -> {report.output}"
    )
    if report.best_loss is not None:
        typer.echo(f"  best held-out loss: {report.best_loss:.4f}; of a constant: {report.constant_loss:.4f}")
    if report.constant_loss is not None and not (report.best_loss or 0) < report.constant_loss:
        typer.echo(
            "  nothing was learned that a constant does not know: more data, better labels, or another base model?"
        )
    typer.echo("  seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.seconds.items()))
    if report.steps_cut or report.dropped:
        typer.echo(f"  too long: {report.steps_cut} steps cut, {report.dropped} whole trajectories left out")
    if report.unused:
        typer.echo(f"  {report.unused} trajectories have no step to learn from")
    if report.stray_marks:
        typer.echo(
            f"  {report.stray_marks} trajectories hold the separator's token elsewhere, too: whoever finds steps by it "
            "(vLLM's step_tag_id) sees more of them"
        )


_ONLY_FOR: dict[str, tuple[str, ...]] = {
    "features": ("features",),
    "batch_tokens": ("features",),
    "learning_rate": ("lora", "full"),
    "gradient_checkpointing": ("lora", "full"),
    "bf16": ("lora", "full"),
    **dict.fromkeys(("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "merge"), ("lora",)),
}
_ONLY_OF: dict[str, tuple[str, ...]] = {"gamma": ("focal",), "margin": ("pqm",), "hard_at": ("bce-hard", "pqm")}


def _refuse_what_changes_nothing(ctx: typer.Context, tune: str, objective: str, held_out: float) -> None:
    """An option that would change nothing is a mistake worth a line."""
    options = {parameter.name: parameter.opts[0] for parameter in ctx.command.params}
    given = {name for name in options if name and was_given(ctx, name)}
    for name in sorted(given & _ONLY_FOR.keys()):
        if tune not in _ONLY_FOR[name]:
            raise InputError(f"{options[name]} is for --tune {' or '.join(_ONLY_FOR[name])}, not for {tune}")
    for name in sorted(given & _ONLY_OF.keys()):
        if objective not in _ONLY_OF[name]:
            raise InputError(f"{options[name]} is for --objective {' or '.join(_ONLY_OF[name])}, not for {objective}")
    if "patience" in given and not held_out:
        raise InputError("--patience needs trajectories that are held out; leave it or --held-out 0 out")


def _text(written: str) -> str:
    return written.replace(r"\n", "\n")


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise InputError(f"ambiguous {text!r}: write two numbers, for example 0.4,0.6") from error
    return low, high


def _positive(text: str) -> float | None:
    if text == "balanced":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"positive weight {text!r}: write a number, or balanced") from error
