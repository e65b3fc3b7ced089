"""``cpmi solve``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cpmi.cli.app import Json, app, engine_options, print_json, was_given
from cpmi.cli.running import already_there, counts, refuse_nothing, say_errors, stoppable
from cpmi.errors import InputError

if TYPE_CHECKING:
    from cpmi.solve import Solved, SolveJob

# The same names as in the modules that use them, which are not imported here: they load numpy.
Method = Literal["none", "beam", "step-best-of-n", "dvts"]
Aggregation = Literal["last", "min", "prod", "mean", "sum"]
PromptStyle = Literal["chat", "plain"]

_SEARCH = "Guided search (--search)"


def _search_option(text: str, **more: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=_SEARCH, **more)


@app.command()
def solve(
    ctx: typer.Context,
    questions: Annotated[str, typer.Argument(help="A file of questions, or hub:NAME for a data set of the hub.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="candidates.jsonl; an unfinished one goes on.")],
    task: Annotated[
        str, typer.Option(help="How the questions are read: gsm8k, math, folio, logiqa2...; see docs/tasks.md.")
    ] = "questions",
    split: Annotated[str | None, typer.Option(help="Of a data set of the hub.")] = None,
    model: Annotated[
        str, typer.Option(help="hf:PATH_OR_HUB_ID, vllm:PATH_OR_HUB_ID, openai:URL#MODEL, smollm2 or toy:.")
    ] = "smollm2",
    n: Annotated[int, typer.Option("--n", min=1, help="Solutions of a question; of a search: steps in a round.")] = 8,
    search: Annotated[
        Method,
        _search_option("none: solutions side by side. beam; step-best-of-n; dvts: diverse verifier tree search."),
    ] = "none",
    prm: Annotated[str | None, _search_option("The reward model that leads it: a folder, or a hub id.")] = None,
    prm_family: Annotated[
        str | None, _search_option("Of a reward model trained elsewhere, see cpmi score --family.")
    ] = None,
    width: Annotated[int, _search_option("Continuations of a beam (beam, dvts).", min=1)] = 4,
    aggregation: Annotated[Aggregation, _search_option("Of step rewards, to rank beginnings by.")] = "last",
    max_steps: Annotated[int, _search_option("The most steps of a solution.", min=1)] = 40,
    budget: Annotated[
        int | None,
        _search_option("A question's search ends before the round in which it has generated so many tokens."),
    ] = None,
    at_once: Annotated[int, _search_option("Questions under way at a time.", min=1)] = 32,
    prompt: Annotated[
        PromptStyle, typer.Option(help="chat: the model's chat template; plain: for models that have none.")
    ] = "chat",
    instruction: Annotated[
        str, typer.Option(help="How to reason; the form of steps and answer is said behind it.")
    ] = "Reason step by step",
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of a solution (default: 2048); of a search: of a step (default: 512).")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Of sampling; 0: greedy.")] = 0.8,
    top_p: Annotated[float, typer.Option(min=1e-9, max=1.0, help="Sample of the likeliest tokens that reach p.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample of the k likeliest tokens; 0: all.")] = 0,
    repetition_penalty: Annotated[float, typer.Option(min=1e-9, help="On tokens that were there; 1: none.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Decides the solutions.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many; go on later with more.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (the model's own), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    engine_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An option of the engine's own (vllm, openai); may be repeated."),
    ] = None,
    retry_errors: Annotated[bool, typer.Option(help="Try questions again that ended in an error.")] = False,
    as_json: Json = False,
) -> None:
    """Sample solutions of questions, or search for them step by step under a reward model; run it again to go on."""
    from dataclasses import replace

    from cpmi.asking import Asking
    from cpmi.models import ModelSettings
    from cpmi.search import STEP_SAMPLING, SearchSettings
    from cpmi.solve import SAMPLING, SampleSettings, SolveJob

    _refuse_search_options(ctx, search)
    asking = Asking(prompt, by_steps=True, instruction=instruction)
    default = SAMPLING if search == "none" else STEP_SAMPLING
    sampling = replace(
        default, max_tokens=max_tokens or default.max_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
        repetition_penalty=repetition_penalty,
    )  # fmt: skip
    settings: SampleSettings | SearchSettings
    if search == "none":
        settings = SampleSettings(n, asking, sampling, seed)
    else:
        settings = SearchSettings(search, n, width, aggregation, max_steps, budget, asking, sampling, seed)
    job = SolveJob(
        questions, output, ModelSettings(model, dtype, device, options=engine_options(engine_option)), task, split,
        settings, None if prm is None else ModelSettings(prm, dtype, device), prm_family, limit, at_once, retry_errors,
    )  # fmt: skip
    _run(job, as_json=as_json)


def _refuse_search_options(ctx: typer.Context, search: Method) -> None:
    """An option that would change nothing is a mistake worth a line."""
    for parameter in ctx.command.params:
        of_search = getattr(parameter, "rich_help_panel", None) == _SEARCH and parameter.name != "search"
        if of_search and search == "none" and was_given(ctx, parameter.name or ""):
            raise InputError(f"{parameter.opts[0]} is for a search; choose one with --search")
    if search == "step-best-of-n" and was_given(ctx, "width"):
        raise InputError("--width is for --search beam and dvts; step-best-of-n has one beam of --n continuations")


def _run(job: SolveJob, *, as_json: bool) -> None:
    from cpmi.display import progress_display
    from cpmi.solve import solve as run

    with stoppable(job.output, "solved"), progress_display("solving", "questions") as update:
        solved = run(job, update)
    _say(solved, job.output, as_json=as_json)
    refuse_nothing(solved.progress, "no question could be solved")


def _say(solved: Solved, output: Path, *, as_json: bool) -> None:
    progress = solved.progress
    if as_json:
        found = {name: getattr(solved, name) for name in ("candidates", "finished", "unfinished")}
        costs = {"sampling": asdict(solved.sampling), "rewarding": asdict(solved.rewarding)}
        print_json({**counts(progress), **found, **costs, "output": str(output)})
        return
    typer.echo(
        f"{progress.rewarded} questions done, {progress.failed} failed{already_there(progress)} of {progress.total}: "
        f"{solved.candidates} solutions, {solved.finished} of them finished -> {output}"
    )
    say_errors(progress)
    if solved.unfinished:
        typer.echo(f"  {solved.unfinished} questions have no finished solution; what there is of them is kept")
    typer.echo(f"  {_cost(solved)}")
    for line in solved.tally.lines()[1:]:
        typer.echo(f"  {line}")


def _cost(solved: Solved) -> str:
    sampling, rewarding = solved.sampling, solved.rewarding
    text = f"{sampling.tokens_generated:,} tokens generated in {sampling.seconds:,.0f} s"
    return (
        f"{text}, {rewarding.tokens_scored:,} read for rewards in {rewarding.seconds:,.0f} s"
        if rewarding.seconds
        else text
    )
