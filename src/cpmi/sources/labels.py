"""How labels in a row become ``step_labels``, or soft labels in a tag."""

from __future__ import annotations

from typing import Any

from cpmi.errors import InputError
from cpmi.sources.reader import Context
from cpmi.sources.rows import Row, typed

Labels = tuple[bool | None, ...]


def first_error_labels(steps: int, first: int | None) -> Labels:
    """Right up to the first error (from 0), wrong there, not annotated after it; all right without an error."""
    if first is None:
        return (True,) * steps
    if not 0 <= first < steps:
        number = str(first + 1) if abs(first) < 2**63 else "beyond all bounds"  # Python spells no number of any length
        raise InputError(f"the first wrong step would be number {number} of {steps}; mend or remove this row")
    return (*(True,) * first, False, *(None,) * (steps - first - 1))


def given_labels(values: Any, steps: int, name: str) -> tuple[Labels | None, list[float | None] | None]:
    """Labels that a row gives step by step: hard ones, or soft ones.

    A decimal number makes all labels of the row soft, be it 1.0: a source of soft labels has rows where each happens
    to be 0.0 or 1.0. Soft labels are never rounded to hard ones.
    """
    if values is None:
        return None, None
    labels = typed(values, list, name, "a list of labels")
    if len(labels) != steps:
        raise InputError(f"field {name!r} has {len(labels)} labels for {steps} steps")
    known = [label for label in labels if label is not None]
    if not all(isinstance(label, bool | int | float) and 0 <= label <= 1 for label in known):
        raise InputError(f"field {name!r} must hold true, false, numbers from 0 to 1, or null for each step")
    if any(isinstance(label, float) for label in known):
        return None, [None if label is None else float(label) for label in labels]
    return tuple(None if label is None else bool(label) for label in labels), None


def row_labels(row: Row, path: str, steps: int, context: Context) -> tuple[Labels | None, dict[str, str]]:
    """The hard labels in a field, or none and the tags that keep the soft ones; who made them, where it is known."""
    labels, soft = given_labels(row.or_none(path), steps, path)
    if soft is not None:
        context.tally.note("soft labels, kept in the tag soft_labels, not as step_labels", row.place)
    kind = context.fields.label_kind if (labels or soft) else None
    return labels, context.tags(soft_labels=soft, label_kind=kind)
