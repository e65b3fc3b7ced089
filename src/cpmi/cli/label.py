"""``cpmi label``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cpmi.cli.app import Json, app, engine_options, was_given
from cpmi.cli.on_ray import RayActors, RayAddress, RayOptions, RayWait, ray_settings
from cpmi.cli.running import run_job
from cpmi.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpmi.labeling import MethodSettings

# The same names as in the modules that use them, which are not imported here: they load numpy.
Method = Literal["posterior", "cpmi", "mc", "pav", "outcome", "likelihood"]
Context = Literal["marginal", "cumulative", "leave-one-out"]
Normalization = Literal["mean", "sum"]
Span = Literal["target", "answer"]
Contrast = Literal["mean", "hardest"]
PromptStyle = Literal["chat", "plain"]
Value = Literal["soft", "hard"]
Search = Literal["all", "binary"]

_PANELS: dict[str, tuple[Method, ...]] = {
    "First-error posterior (--method posterior)": ("posterior",),
    "Answers (--method posterior, cpmi)": ("posterior", "cpmi"),
    "CPMI (--method cpmi)": ("cpmi",),
    "Log-probabilities (--method cpmi, likelihood)": ("cpmi", "likelihood"),
    "Rollouts (--method mc, pav)": ("mc", "pav"),
    "Monte Carlo (--method mc)": ("mc",),
    "Process advantage (--method pav)": ("pav",),
}
_POSTERIOR, _ANSWERS, _CPMI, _LOGPROBS, _ROLLOUTS, _MC, _PAV = _PANELS


def _option(panel: str, text: str, **more: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, **more)


@app.command()
def label(
    ctx: typer.Context,
    trajectories: Annotated[Path, typer.Argument(help="trajectories.jsonl, as cpmi prepare writes it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; an unfinished one goes on.")],
    method: Annotated[
        Method,
        typer.Option(
            help="posterior: of the first error; cpmi: the paper's; mc: Monte Carlo; pav: process advantage; outcome, "
            "likelihood: baselines without rollouts."
        ),
    ] = "posterior",
    model: Annotated[
        str,
        typer.Option(
            help="hf:PATH_OR_HUB_ID, vllm:PATH_OR_HUB_ID, openai:URL#MODEL, smollm2 (a small one for trying out) or "
            "toy:. The labeling model, or the policy."
        ),
    ] = "smollm2",
    # posterior
    first_error_model: Annotated[
        str, _option(_POSTERIOR, "What the evidence means: default (the package's), or a file that cpmi fit made.")
    ] = "default",
    # posterior and cpmi
    negatives: Annotated[int, _option(_ANSWERS, "M: wrong answers to contrast with.", min=0)] = 4,
    negative_kinds: Annotated[
        str,
        _option(
            _ANSWERS,
            "Of own, sibling, choice, intermediate, rule, sampled: a,b takes both, in this order; a:3 at most 3 of a; "
            "a|b takes b only where a finds none.",
        ),
    ] = "own|choice|rule",
    templates: Annotated[
        int | None, _option(_ANSWERS, "K: how many templates; default: all of the set.", min=1)
    ] = None,
    template_set: Annotated[
        str | None,
        _option(_ANSWERS, "cues (default of posterior), instructions (of cpmi), or a JSON file of your own."),
    ] = None,
    # cpmi
    context: Annotated[Context, _option(_CPMI, "What the step is shown with and without.")] = "marginal",
    weight: Annotated[float, _option(_CPMI, "w: weight of the wrong answers.")] = 1.0,
    contrast: Annotated[Contrast, _option(_CPMI, "Against their mean, or the hardest of them.")] = "mean",
    normalization: Annotated[
        Normalization, _option(_LOGPROBS, "Mean or sum over the answer's or step's tokens.")
    ] = "mean",
    span: Annotated[Span, _option(_CPMI, "Score the cue with the answer, or the answer alone.")] = "target",
    truncate_top_k: Annotated[int, _option(_CPMI, "Renormalize over the k likeliest tokens; 0: all.", min=0)] = 0,
    truncate_top_p: Annotated[
        float, _option(_CPMI, "... over the likeliest tokens that reach p.", min=1e-9, max=1.0)
    ] = 1.0,
    # mc and pav
    rollouts: Annotated[int, _option(_ROLLOUTS, "N: completions of each prefix.", min=1)] = 8,
    rollout_prompt: Annotated[
        PromptStyle, _option(_ROLLOUTS, "chat: the model's chat template; plain: for models that have none.")
    ] = "chat",
    max_tokens: Annotated[int, _option(_ROLLOUTS, "The most tokens of one rollout.", min=1)] = 2048,
    temperature: Annotated[float, _option(_ROLLOUTS, "Of sampling; 0: greedy.", min=0)] = 0.6,
    top_p: Annotated[
        float, _option(_ROLLOUTS, "Sample of the likeliest tokens that reach p.", min=1e-9, max=1.0)
    ] = 0.95,
    top_k: Annotated[int, _option(_ROLLOUTS, "Sample of the k likeliest tokens; 0: all.", min=0)] = 20,
    repetition_penalty: Annotated[float, _option(_ROLLOUTS, "On tokens that were there; 1: none.", min=1e-9)] = 1.05,
    rollouts_from: Annotated[
        Path | None,
        _option(
            _ROLLOUTS, "A run of mc or pav with the same policy and trajectories: take its rollouts, sample the rest."
        ),
    ] = None,
    value: Annotated[
        Value | None, _option(_MC, "soft: share of right rollouts; hard: 1 if any is right. Default: soft.")
    ] = None,
    rollout_search: Annotated[
        Search, _option(_MC, "all prefixes, or a binary search for the first error (hard labels).")
    ] = "all",
    alpha: Annotated[float, _option(_PAV, "Weight of the prover's advantage.")] = 1.0,
    prover: Annotated[str, _option(_PAV, "best-of-K of the policy, or another model, named as for --model.")] = (
        "best-of-4"
    ),
    prover_rollouts: Annotated[int, _option(_PAV, "N of the prover, where it is another model.", min=1)] = 4,
    prover_option: Annotated[
        list[str] | None, _option(_PAV, "As --engine-option, for the prover.", metavar="NAME=VALUE")
    ] = None,
    # all
    seed: Annotated[int, typer.Option(help="Decides wrong answers and rollouts.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many; go on later with more.")] = None,
    shard: Annotated[str, typer.Option(help="i/n: label the i-th (from 0) of n parts.")] = "0/1",
    dtype: Annotated[str, typer.Option(help="auto (the model's own), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Trajectories at a time; default: 8; 64 for likelihood, or rollouts on vllm, openai."),
    ] = None,
    batch_tokens: Annotated[int, typer.Option(min=0, help="Tokens in one forward pass; 0: what suits.")] = 0,
    engine_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An option of the engine's own (vllm, openai); may be repeated."),
    ] = None,
    retry_errors: Annotated[bool, typer.Option(help="Try trajectories again that ended in an error.")] = False,
    ray: RayAddress = None,
    ray_actors: RayActors = None,
    ray_option: RayOptions = None,
    ray_wait: RayWait = 0,
    as_json: Json = False,
) -> None:
    """Give every step of every trajectory a reward; run it again to go on where it stopped."""
    from cpmi.labelers.cpmi import CPMISettings
    from cpmi.labelers.first_error import FirstErrorModel
    from cpmi.labelers.likelihood import LikelihoodSettings
    from cpmi.labelers.monte_carlo import MonteCarloSettings
    from cpmi.labelers.negatives import NegativeSettings
    from cpmi.labelers.pav import PAVSettings
    from cpmi.labelers.posterior import PosteriorSettings
    from cpmi.labelers.rollouts import RolloutSettings
    from cpmi.labeling import LabelJob, OutcomeSettings
    from cpmi.models import ModelSettings
    from cpmi.prompts import load_templates
    from cpmi.protocols import SamplingParams, Truncation
    from cpmi.runs import Shard

    _refuse_options_of_other_methods(ctx, method)
    sampling = SamplingParams(max_tokens, temperature, top_p, top_k, repetition_penalty)
    rolled = RolloutSettings(rollouts, rollout_prompt, sampling, seed)
    best_of = _best_of(prover)

    def posterior_settings() -> PosteriorSettings:
        return PosteriorSettings(
            templates=load_templates(template_set or "cues", templates),
            negatives=NegativeSettings.parse(negative_kinds, count=negatives, seed=seed),
            model=FirstErrorModel.load(first_error_model),
        )

    def cpmi_settings() -> CPMISettings:
        return CPMISettings(
            context=context, normalization=normalization, span=span, contrast=contrast,
            weight=weight, templates=load_templates(template_set or "instructions", templates),
            negatives=NegativeSettings.parse(negative_kinds, count=negatives, seed=seed),
            truncation=Truncation(truncate_top_k, truncate_top_p),
        )  # fmt: skip

    def mc_settings() -> MonteCarloSettings:
        return MonteCarloSettings(rolled, value or ("hard" if rollout_search == "binary" else "soft"), rollout_search)

    def pav_settings() -> PAVSettings:
        return PAVSettings(rolled, alpha, best_of, RolloutSettings(prover_rollouts, rollout_prompt, sampling, seed))

    made_by: dict[Method, Callable[[], MethodSettings]] = {
        "posterior": posterior_settings,
        "cpmi": cpmi_settings,
        "mc": mc_settings,
        "pav": pav_settings,
        "outcome": OutcomeSettings,
        "likelihood": lambda: LikelihoodSettings(normalization),
    }
    needs_prover = method == "pav" and best_of is None
    if method == "pav" and best_of is not None and (prover_option or was_given(ctx, "prover_rollouts")):
        raise InputError("--prover-rollouts and --prover-option are for a prover that is another model; leave them out")
    labeler = ModelSettings(model, dtype, device, batch_tokens, engine_options(engine_option))
    proves = ModelSettings(prover, dtype, device, batch_tokens, engine_options(prover_option))
    job = LabelJob(
        trajectories, output, None if method == "outcome" else labeler, made_by[method](),
        proves if needs_prover else None, rollouts_from, Shard.parse(shard), limit, batch_size, retry_errors,
        ray=ray_settings(ray, ray_actors, ray_option, ray_wait),
    )  # fmt: skip
    run_job(job, "labeling", "labeled", as_json=as_json)


def _refuse_options_of_other_methods(ctx: typer.Context, method: Method) -> None:
    """An option that would change nothing is a mistake worth a line."""
    for parameter in ctx.command.params:
        methods = _PANELS.get(getattr(parameter, "rich_help_panel", None) or "")
        if methods and method not in methods and was_given(ctx, parameter.name or ""):
            raise InputError(f"{parameter.opts[0]} is for --method {' or '.join(methods)}, not for {method}")


def _best_of(prover: str) -> int | None:
    match = re.fullmatch(r"best-of-([0-9]+)", prover)
    return int(match[1]) if match else None
