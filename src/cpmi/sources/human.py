"""Benchmarks whose steps people judged: ProcessBench, PRMBench, BIG-Bench Mistake, MR-MATH."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from cpmi.errors import InputError
from cpmi.records import Trajectory
from cpmi.sources.labels import first_error_labels, given_labels
from cpmi.sources.reader import Context, Made
from cpmi.sources.rows import Row, at_place, texts_of, typed


def processbench(row: Row, context: Context) -> Iterator[Trajectory]:
    """ProcessBench (arXiv 2412.06559, QwenLM/ProcessBench): people marked the first wrong step.

    ``label`` counts from 0, -1 says there is none. Steps after the first error were not annotated. The official rows
    have no ``gold_answer``.
    """
    steps, identity = row.texts("steps"), row.text("id")
    label: int = typed(row.get("label"), int, "label", "a whole number")
    yield Trajectory(
        question=row.text("problem"),
        steps=steps,
        gold_answer=row.answer("gold_answer"),
        step_labels=first_error_labels(len(steps), None if label == -1 else label),
        tags=context.tags(
            subset=identity.rpartition("-")[0] or context.stem,
            generator=row.or_none("generator"),
            final_answer_correct=row.or_none("final_answer_correct"),
            label_kind="human",
        ),
        id=identity,
    )


def prmbench(rows: Iterator[Row], context: Context) -> Made:
    """PRMBench (arXiv 2501.03124, ssmisya/PRMBench): errors were written into right solutions, and checked by people.

    ``error_steps`` counts from 1; every other step is right, also after an error. An error step past the end (100 of
    the 6216 rows) is dropped, noted, and kept in the tag ``error_steps_past_end``. A row is named by its class and its
    ``idx``; the one pair that the data has twice gets ``-2``.
    """
    named: dict[str, int] = {}
    for row in rows:
        with at_place(row.place):
            trajectory = _prmbench_row(row, context)
        number = named[trajectory.id] = named.get(trajectory.id, 0) + 1
        if number > 1:
            context.tally.note("rows with a class and idx that came before, named with -2", row.place)
            trajectory = dataclasses.replace(trajectory, id=f"{trajectory.id}-{number}")
        yield row.place, trajectory


def _prmbench_row(row: Row, context: Context) -> Trajectory:
    subset, idx, steps = row.text("classification"), row.text("idx"), row.texts("modified_process")
    expected = "a list of whole numbers from 1"
    wrong = [
        typed(step, int, "error_steps", expected)
        for step in typed(row.get("error_steps"), list, "error_steps", expected)
    ]
    if any(step < 1 for step in wrong):
        raise InputError(f"field 'error_steps' must be {expected}")
    past = [step for step in wrong if step > len(steps)]
    if past:
        context.tally.note("rows with error steps past the end, dropped (tag error_steps_past_end)", row.place)
    return Trajectory(
        question=row.text("modified_question"),
        steps=steps,
        gold_answer=row.answer("ground_truth"),
        step_labels=tuple(i not in wrong for i in range(1, len(steps) + 1)),
        tags=context.tags(subset=subset, idx=idx, label_kind="human", error_steps_past_end=past or None),
        id=f"{subset}/{idx}",
    )


def big_bench_mistake(row: Row, context: Context) -> Iterator[Trajectory]:
    """BIG-Bench Mistake (arXiv 2311.08516, WHGTyen/BIG-Bench-Mistake): people marked the first mistake.

    ``mistake_index`` counts from 0, null says there is none (also where the answer is wrong all the same). The subset
    is the file's name, which is the task.
    """
    steps, index = row.texts("steps"), row.get("mistake_index")
    first = None if index is None else typed(index, int, "mistake_index", "a whole number or null")
    yield Trajectory(
        question=row.text("input"),
        steps=steps,
        gold_answer=row.answer("target"),
        final_answer=row.answer("answer"),
        step_labels=first_error_labels(len(steps), first),
        tags=context.tags(subset=context.stem, label_kind="human"),
    )


def mr_math(row: Row, context: Context) -> Iterator[Trajectory]:
    """MR-MATH (ReasonEval, arXiv 2404.05692, GAIR-NLP/ReasonEval), both files; each step is a list of its lines.

    The file of invalid errors names the first wrong step, from 1, "N/A" for none: labels as in ProcessBench. The file
    of redundant errors rates every step 1, or 0 for redundant: False says redundant there, not wrong, and the tag
    ``subset`` (``invalid``, ``redundant``) tells the two apart.
    """
    name = "model_output_step_format"
    steps = tuple("\n".join(texts_of(lines, name)) for lines in typed(row.get(name), list, name, "a list of lists"))
    if "rating" in row.values:
        subset, correct = "redundant", None
        labels, soft = given_labels(row.get("rating"), len(steps), "rating")
        if soft is not None:
            raise InputError("field 'rating' must hold 0 or 1 for each step")
    else:
        subset, correct = "invalid", row.text("model_output_answer_correctness") == "correct"
        name = "model_output_solution_first_error_step"
        first = row.get(name)
        index = None if first == "N/A" else typed(first, int, name, "a number or N/A") - 1
        labels = first_error_labels(len(steps), index)
    yield Trajectory(
        question=row.text("question"),
        steps=steps,
        gold_answer=row.answer("ground_truth_answer"),
        step_labels=labels,
        tags=context.tags(
            subset=subset,
            generator=row.or_none("generator"),
            final_answer_correct=correct,
            label_kind="human",
        ),
        id=f"{subset}/{typed(row.get('id'), str | int | float, 'id', 'a text or a number')}",
    )
