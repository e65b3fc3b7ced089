"""``cpmi prepare``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cpmi.cli.app import Json, app, print_json
from cpmi.errors import InputError

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
        str, _field("Cut one text into steps: auto, step-k, blank-lines, numbered, lines or sentences.", "HOW")
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
        print_json({"output": str(output), "trajectories": count, "tally": tally.summary(), "gold": joined})
        return
    typer.echo(f"{count} {'trajectory' if count == 1 else 'trajectories'} -> {output}")
    for line in (*tally.lines(), *(report.lines() if answers else ())):
        typer.echo(f"  {line}")
    if answers and answers.without_answer:
        typer.echo(f"  rows of the gold file without an answer: {answers.without_answer}")


def _list_sources(sources: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        print_json(sources)
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
