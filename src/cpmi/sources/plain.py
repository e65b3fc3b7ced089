"""Files without a format of their own: TRL's stepwise rows, and rows whose fields the user names."""

from __future__ import annotations

from collections.abc import Iterator

from cpmi.errors import InputError
from cpmi.records import Trajectory
from cpmi.sources.labels import row_labels
from cpmi.sources.reader import Context, Made
from cpmi.sources.rows import NO_VALUE, Row, at_place
from cpmi.steps import split_steps


def stepwise(row: Row, context: Context) -> Iterator[Trajectory]:
    """TRL's stepwise rows (``prompt``, ``completions``, ``labels``), the format of its PRM trainer up to 1.13.

    Labels are true or false, 0 or 1, or decimal numbers (soft); see ``Fields.labels``. Who made them is not written
    there: ``Fields.label_kind``.
    """
    steps = row.texts("completions")
    row.get("labels")
    labels, tags = row_labels(row, "labels", len(steps), context)
    tags = context.tags(subset=context.stem) | tags
    yield Trajectory(question=row.text("prompt"), steps=steps, step_labels=labels, tags=tags)


def plain(rows: Iterator[Row], context: Context) -> Made:
    """Rows with the fields named by ``Fields``; of ``.jsonl``, ``.json``, Parquet, or the ``datasets`` library."""
    fields = context.fields
    names = [fields.gold_answer, fields.final_answer, fields.labels, fields.id, *fields.tags]
    never_seen = {name for name in names if name is not None}
    for row in rows:
        never_seen = {name for name in never_seen if row.find(name) is NO_VALUE}
        with at_place(row.place):
            trajectory = _plain_row(row, context)
        yield row.place, trajectory
    if never_seen:  # a row may well lack one of these (Parquet cannot tell), but not every row
        raise InputError(f"{context.file}: no row has the field {min(never_seen)!r}, which was named")


def _plain_row(row: Row, context: Context) -> Trajectory:
    fields = context.fields
    solution = row.get(fields.steps, "name it with --steps-field")
    steps = split_steps(solution, context.how) if isinstance(solution, str) else row.texts(fields.steps)
    labels_path = fields.labels or ("step_labels" if "step_labels" in row.values else "labels")
    labels, tags = row_labels(row, labels_path, len(steps), context)
    identity = row.or_none(fields.id or "id")
    if not isinstance(identity, str | int | None) or isinstance(identity, bool):
        raise InputError(f"field {fields.id or 'id'!r} must be a text or a whole number")
    kept = {name: row.or_none(name) for name in fields.tags}
    return Trajectory(
        question=row.text(fields.question, "name it with --question-field"),
        steps=steps,
        gold_answer=row.answer(fields.gold_answer or "gold_answer"),
        final_answer=row.answer(fields.final_answer or "final_answer"),
        step_labels=labels,
        tags=context.tags(subset=context.stem, split=context.split) | tags | context.tags(**kept),
        id="" if identity is None else str(identity),
    )
