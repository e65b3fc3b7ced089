"""The command line: each verb parses, calls, prints."""

from __future__ import annotations

import json
import logging
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from cpmi import __version__
from cpmi.errors import CpmiError, InputError

if TYPE_CHECKING:
    from types import FrameType

    from cpmi.labelers.cpmi import CPMISettings
    from cpmi.runs import Progress

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Step-level rewards for chains of thought, from a language model's own log-probabilities.",
)


# The same names as in the modules that use them, which are not imported here: they load numpy.
Context = Literal["marginal", "cumulative", "leave-one-out"]
Normalization = Literal["mean", "sum"]
Span = Literal["target", "answer"]
Contrast = Literal["mean", "hardest"]
Method = Literal["cpmi"]
ExportFormat = Literal["jsonl", "parquet", "stepwise"]


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


Json = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object on standard output.")]
Run = Annotated[Path, typer.Argument(help="A run directory, or a file of step rewards.")]
Trajectories = Annotated[
    Path | None, typer.Option(help="The labeled trajectories, if they are not where the run found them.")
]


# --- prepare --------------------------------------------------------------------------------------------------------

LabelKind = Literal["human", "automatic"]


def _field(text: str, metavar: str = "NAME") -> Any:
    return typer.Option(metavar=metavar, help=text, rich_help_panel="Fields of your own data (plain, datasets)")


def _gold(text: str, metavar: str = "NAME", *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel="Gold answers from another file")


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="What the files are: see cpmi prepare list.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Files; for datasets a hub name (NAME:CONFIGURATION) or saved folder."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write .jsonl, .jsonl.gz or .parquet.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after so many trajectories.")] = None,
    as_json: Json = False,
    question_field: Annotated[str, _field("The question.")] = "question",
    steps_field: Annotated[str, _field("The steps, or the solution as one text.")] = "steps",
    answer_field: Annotated[str | None, _field("The right answer; default: gold_answer.")] = None,
    final_answer_field: Annotated[str | None, _field("The solution's own answer; default: final_answer.")] = None,
    labels_field: Annotated[str | None, _field("A label per step; default: step_labels, else labels.")] = None,
    id_field: Annotated[str | None, _field("An id for each row; default: id.")] = None,
    tag_field: Annotated[list[str] | None, _field("A field to keep as a tag; may be repeated.")] = None,
    label_kind: Annotated[
        LabelKind | None, _field("Who made the labels: human or automatic (also for stepwise).", "KIND")
    ] = None,
    split_steps: Annotated[
        str, _field("Cut one text into steps: auto, step-k, blank-lines, numbered or lines.", "HOW")
    ] = "auto",
    split: Annotated[str | None, _field("Which split (datasets only).")] = None,
    gold: Annotated[Path | None, _gold("Join the answers in this file, by the question's text.", "FILE")] = None,
    gold_question_field: Annotated[str | None, _gold("The question; default: question, problem...")] = None,
    gold_answer_field: Annotated[str | None, _gold("The answer; default: gold_answer, answer...")] = None,
    replace_gold: Annotated[
        bool, _gold("Replace gold answers that differ, instead of keeping them.", "", "--replace-gold")
    ] = False,
) -> None:
    """Turn public data sets, or your own files, into one file of trajectories.

    cpmi prepare processbench gsm8k.json -o trajectories.jsonl

    cpmi prepare plain my.jsonl --steps-field solution --answer-field answer -o trajectories.jsonl
    """
    from itertools import chain, islice

    from cpmi.gold import JoinReport, join_gold, load_gold
    from cpmi.records import write_records
    from cpmi.sources import SOURCES, Fields, Tally, read_source

    if source == "list":
        _list_sources({name: made.about for name, made in SOURCES.items()}, as_json=as_json)
        return
    fields = Fields(
        question_field, steps_field, answer_field, final_answer_field, labels_field, id_field,
        tuple(tag_field or ()), label_kind,
    )  # fmt: skip
    tally, report, answers = Tally(), JoinReport(), None
    trajectories = read_source(source, files or (), fields, split=split, how=split_steps, tally=tally)
    output = _checked_output(output, files, gold)
    if gold:
        answers = load_gold(gold, gold_question_field, gold_answer_field)
        trajectories = join_gold(trajectories, answers, report, replace=replace_gold)
    elif gold_question_field or gold_answer_field or replace_gold:
        raise InputError("--gold-question-field, --gold-answer-field and --replace-gold need --gold FILE")
    if (first := next(trajectories, None)) is None:
        raise InputError(f"{', '.join(files or ())}: no trajectory here ({'; '.join(tally.lines())})")
    count = write_records(output, islice(chain([first], trajectories), limit))
    if as_json:
        joined = asdict(report) | {"rows_without_answer": answers.without_answer} if answers else None
        _print_json({"output": str(output), "trajectories": count, "tally": tally.summary(), "gold": joined})
        return
    typer.echo(f"{count} {'trajectory' if count == 1 else 'trajectories'} -> {output}")
    for line in (*tally.lines(), *(report.lines() if answers else ())):
        typer.echo(f"  {line}")
    if answers and answers.without_answer:
        typer.echo(f"  rows of the gold file without an answer: {answers.without_answer}")


def _list_sources(sources: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        _print_json(sources)
        return
    width = max(map(len, sources))
    for name, about in sources.items():
        typer.echo(f"{name:{width}}  {about}")


def _checked_output(output: Path | None, files: list[str] | None, gold: Path | None) -> Path:
    """The file to write, before anything is read."""
    if not files or output is None:
        raise InputError("name at least one FILE to read, and the file to write with --output FILE")
    if not output.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise InputError(f"{output}: the name must end in .jsonl, .jsonl.gz or .parquet")
    if output.is_dir():
        raise InputError(f"{output} is a folder; name a file in it")
    if output.resolve() in {Path(file).resolve() for file in (*files, *((gold,) if gold else ()))}:
        raise InputError(f"{output} is one of the files to read; write to another one")
    return output


# --- label ----------------------------------------------------------------------------------------------------------


@app.command()
def label(
    trajectories: Annotated[Path, typer.Argument(help="trajectories.jsonl, as cpmi prepare writes it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; an unfinished one goes on.")],
    model: Annotated[
        str, typer.Option(help="hf:PATH_OR_HUB_ID, smollm2 (a small one for trying out) or toy:.")
    ] = "smollm2",
    method: Annotated[Method, typer.Option(help="How to label.")] = "cpmi",
    context: Annotated[Context, typer.Option(help="What the step is shown with and without.")] = "marginal",
    negatives: Annotated[int, typer.Option(min=0, help="M: wrong answers to contrast with.")] = 4,
    negative_kinds: Annotated[
        str,
        typer.Option(
            help="Of own, sibling, intermediate, rule, sampled: a,b takes both, in this order; a:3 at most 3 of a; "
            "a|b takes b only where a finds none."
        ),
    ] = "own|rule",
    templates: Annotated[
        int | None, typer.Option(min=1, help="K: how many templates; default: all of the set.")
    ] = None,
    template_set: Annotated[str, typer.Option(help="instructions, cues, or a JSON file of your own.")] = "instructions",
    weight: Annotated[float, typer.Option(help="w: weight of the wrong answers.")] = 1.0,
    contrast: Annotated[Contrast, typer.Option(help="Against their mean, or the hardest of them.")] = "mean",
    normalization: Annotated[Normalization, typer.Option(help="Mean or sum over the answer's tokens.")] = "mean",
    span: Annotated[Span, typer.Option(help="Score the cue with the answer, or the answer alone.")] = "target",
    top_k: Annotated[int, typer.Option(min=0, help="Renormalize over the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(min=1e-9, max=1.0, help="... over the likeliest that reach p.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Decides which wrong answers are drawn.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many; go on later with more.")] = None,
    shard: Annotated[str, typer.Option(help="i/n: label the i-th (from 0) of n parts.")] = "0/1",
    dtype: Annotated[str, typer.Option(help="auto (the model's own), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Trajectories between two writes to disk.")] = 8,
    batch_tokens: Annotated[int, typer.Option(min=0, help="Tokens in one forward pass; 0: what suits.")] = 0,
    retry_errors: Annotated[bool, typer.Option(help="Try trajectories again that ended in an error.")] = False,
    as_json: Json = False,
) -> None:
    """Give every step of every trajectory a reward; run it again to go on where it stopped."""
    from cpmi.display import progress_display
    from cpmi.labelers.cpmi import CPMISettings
    from cpmi.labelers.negatives import NegativeSettings
    from cpmi.labeling import LabelJob
    from cpmi.labeling import label as run_job
    from cpmi.models import ModelSettings
    from cpmi.prompts import load_templates
    from cpmi.protocols import Truncation
    from cpmi.runs import Shard

    drawn = NegativeSettings.parse(negative_kinds, count=negatives, seed=seed)
    settings: CPMISettings = CPMISettings(
        context=context, normalization=normalization, span=span, contrast=contrast,
        weight=weight, templates=load_templates(template_set, templates), negatives=drawn,
        truncation=Truncation(top_k, top_p),
    )  # fmt: skip
    job = LabelJob(
        trajectories, output, ModelSettings(model, dtype, device, batch_tokens), method, settings,
        Shard.parse(shard), limit, batch_size, retry_errors,
    )  # fmt: skip
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with progress_display("labeling") as update:
            progress = run_job(job, update)
    except KeyboardInterrupt:
        kept = f"; {output} keeps what is labeled, and the same command goes on there" if output.exists() else ""
        typer.echo(f"\nstopped{kept}", err=True)
        raise typer.Exit(130) from None
    _print_summary(progress, output, as_json=as_json)
    if progress.done and progress.failed + progress.failed_before == progress.done:
        raise CpmiError("no trajectory could be labeled")


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    raise KeyboardInterrupt


def _print_summary(progress: Progress, output: Path, *, as_json: bool) -> None:
    if as_json:
        counts = {name: getattr(progress, name) for name in ("total", "before", "failed_before", "rewarded", "failed")}
        _print_json(counts | {"errors": progress.errors, "cost": asdict(progress.cost), "output": str(output)})
        return
    labeled = f"{progress.rewarded} labeled, {progress.failed} failed"
    before = f", {progress.before} already there" if progress.before else ""
    if progress.failed_before:
        before += f" ({progress.failed_before} of them failed; --retry-errors tries those again)"
    typer.echo(f"{labeled}{before} of {progress.total} -> {output}")
    for error, count in progress.errors.most_common(5):
        typer.echo(f"  failed, {count}: {error}")


# --- looking at runs ------------------------------------------------------------------------------------------------


@app.command()
def export(
    run: Run,
    to: Annotated[ExportFormat, typer.Option(help="stepwise: TRL's rows, the rewards as they are.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    trajectories: Trajectories = None,
) -> None:
    """Write a run as one file that others can read."""
    from cpmi.export import export as export_run

    _note_missing_parts(run)
    count, failed = export_run(run, to, output, trajectories)
    typer.echo(f"{count} rows -> {output}" + (f" ({failed} attempts had failed)" if failed else ""))


@app.command()
def show(
    run: Run,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many trajectories.")] = 10,
    only: Annotated[list[str] | None, typer.Option("--id", help="Only this trajectory; may be repeated.")] = None,
    trajectories: Trajectories = None,
    as_json: Json = False,
) -> None:
    """Print trajectories with their rewards, each step colored by its own."""
    from itertools import islice

    from rich.console import Console

    from cpmi.display import color_scale, show_trajectories
    from cpmi.export import labeled_trajectories, trajectory_of
    from cpmi.records import read_rewards, to_json

    by_id = labeled_trajectories(run, trajectories)
    _note_missing_parts(run)
    records = (record for record in read_rewards(run) if not only or record.trajectory_id in only)
    pairs = [(trajectory_of(by_id, record), record) for record in islice(records, limit)]
    if only and len(pairs) < min(limit, len(set(only))):
        missing = sorted(set(only) - {record.trajectory_id for _, record in pairs})
        raise InputError(f"{run}: has no {', '.join(missing)}")
    if as_json:
        _print_json([{"trajectory": to_json(t), "rewards": to_json(r)} for t, r in pairs])
        return
    show_trajectories(pairs, color_scale(read_rewards(run)), Console(highlight=False))


def _note_missing_parts(run: Path) -> None:
    from cpmi.runs import RunDirectory

    if not run.is_dir():
        return
    done, parts = RunDirectory.open(run).parts_done()
    if done < parts:
        typer.echo(f"cpmi: {run} is not finished: {done} of {parts} parts are complete", err=True)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def main() -> None:
    """Entry point: what went wrong is one line, and the exit status says whose fault it was."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("cpmi: %(message)s"))
    logging.getLogger("cpmi").handlers = [handler]
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # the error that ends its retries says it all
    try:
        app()
    except CpmiError as error:
        typer.echo(f"cpmi: error: {error}", err=True)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except OSError as error:
        typer.echo(f"cpmi: error: {error.filename or 'file'}: {error.strerror or error}", err=True)
        sys.exit(1)
