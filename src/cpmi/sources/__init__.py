"""Public data sets and plain files -> ``Trajectory``.

Each reader says where its format comes from and how its labels become ``step_labels``. Labels that people gave carry
the tag ``label_kind=human``, computed ones ``automatic``. Whatever does not become a trajectory, or becomes one only
after a change, is counted in the ``Tally``. A row that contradicts its own format stops the reading with its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from cpmi.errors import InputError, unknown_name
from cpmi.records import Trajectory
from cpmi.sources.automatic import math_aps, math_shepherd
from cpmi.sources.candidates import gsm8k_solutions, qwen_eval, zeroeval
from cpmi.sources.files import read_any
from cpmi.sources.human import big_bench_mistake, mr_math, prmbench, processbench
from cpmi.sources.plain import plain, stepwise
from cpmi.sources.prm800k import prm800k
from cpmi.sources.reader import Context, Fields, Made, Reader, Source, Tally, row_by_row
from cpmi.sources.rows import Row, answer_text, at_place, leaves, typed
from cpmi.sources.stream import stream
from cpmi.steps import WAYS

__all__ = [
    "SOURCES",
    "Context",
    "Fields",
    "Made",
    "Reader",
    "Row",
    "Source",
    "Tally",
    "answer_text",
    "at_place",
    "leaves",
    "read_any",
    "read_source",
    "typed",
]

SOURCES: dict[str, Source] = {
    "processbench": Source("ProcessBench: the first wrong step, marked by people", row_by_row(processbench)),
    "prmbench": Source("PRMBench: errors written into right solutions, checked by people", prmbench),
    "prm800k": Source("PRM800K: a rating by people for every step; official files or flat ones", prm800k),
    "math-shepherd": Source("Math-Shepherd: labels from rollouts (+ and - after each step)", row_by_row(math_shepherd)),
    "big-bench-mistake": Source(
        "BIG-Bench Mistake: the first mistake, marked by people", row_by_row(big_bench_mistake)
    ),
    "mr-math": Source("MR-MATH (ReasonEval): wrong or redundant steps, marked by people", row_by_row(mr_math)),
    "math-aps": Source("MATH-APS (OmegaPRM): trees of rollouts with Monte Carlo values", row_by_row(math_aps)),
    "zeroeval": Source("candidates: a pool of ZeroEval, answers of many models to each question", row_by_row(zeroeval)),
    "gsm8k-solutions": Source("candidates: GSM8K's example solutions, four models per question", gsm8k_solutions),
    "qwen-eval": Source("candidates: samples of Qwen2.5-Math's evaluation, with rewards", row_by_row(qwen_eval)),
    "stepwise": Source("TRL's stepwise rows: prompt, completions, labels", row_by_row(stepwise)),
    "plain": Source("your own .jsonl, .json or .parquet file; name its fields with the --...-field options", plain),
    "datasets": Source("the same from a Hugging Face hub data set, or a folder made by save_to_disk", plain),
}
_NAMED_FIELDS = ("plain", "datasets")


def read_source(
    name: str,
    files: Sequence[str],
    fields: Fields | None = None,
    *,
    split: str | None = None,
    how: str = "auto",
    tally: Tally | None = None,
) -> Iterator[Trajectory]:
    """Stream the trajectories of files of one source; all their ids differ.

    Args:
        name: one of ``SOURCES``.
        files: paths (``.jsonl``, ``.json``, ``.parquet``, each also ``.gz`` but for Parquet); for ``datasets`` a
            folder made by ``save_to_disk``, or a hub name, ``name:configuration`` where it has several.
        fields: for ``plain`` and ``datasets``; ``stepwise`` takes its ``label_kind``. None: the default names.
        split: for ``datasets``.
        how: for ``plain`` and ``datasets``: how a solution that is one text is split, see ``split_steps``.
        tally: filled while reading.

    Raises:
        InputError: an unknown name, a missing file, a row that does not fit (with its place), an id used twice.
    """
    if name not in SOURCES:
        raise unknown_name("source", name, SOURCES)
    if how not in ("auto", *WAYS):
        raise unknown_name("way to split steps", how, ("auto", *WAYS))
    fields = fields or Fields()
    _check_options(name, fields, split, how)
    resolved = list(files) if name == "datasets" else [str(Path(file).resolve()) for file in files]
    if twice := next((file for i, file in enumerate(files) if resolved[i] in resolved[:i]), None):
        raise InputError(f"{twice} is given twice")
    return stream(SOURCES[name], files, Context(name, "", fields, tally or Tally(), how, split))


def _check_options(name: str, fields: Fields, split: str | None, how: str) -> None:
    """An option that the source would ignore is a mistake."""
    if split is not None and name != "datasets":
        raise InputError(f"a split can be chosen for the source 'datasets' only, not for {name!r}")
    if name in _NAMED_FIELDS:
        return
    if fields.label_kind is not None and name != "stepwise":
        raise InputError(f"the source {name!r} knows who made its labels; leave out --label-kind")
    if dataclasses.replace(fields, label_kind=None) != Fields():
        raise InputError(
            f"the source {name!r} has fields of its own; fields can be named for 'plain' and 'datasets' only"
        )
    if how != "auto":
        raise InputError(f"the source {name!r} has steps of its own; --split-steps is for 'plain' and 'datasets' only")
