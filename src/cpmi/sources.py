"""Public data sets and plain files -> ``Trajectory``.

Each reader says where its format comes from and how its labels become ``step_labels``. Labels that people gave carry
the tag ``label_kind=human``, computed ones ``automatic``. Whatever does not become a trajectory, or becomes one only
after a change, is counted in the ``Tally``. A row that contradicts its own format stops the reading with its place.
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any

from cpmi.errors import InputError, require
from cpmi.records import Trajectory, open_bytes, read_rows
from cpmi.steps import WAYS, split_steps, unknown_name


@dataclass(frozen=True, slots=True)
class Fields:
    """Which field of a plain row holds what; a dotted path (``meta.question``, ``choices.0.text``) reaches inside.

    Attributes:
        question: the problem statement.
        steps: the solution: a list of texts, or one text, which is split into steps.
        gold_answer: the right answer; None: ``gold_answer``, in the rows that have it. The same holds for those below.
        final_answer: the solution's own answer.
        labels: one label per step: true, false, 0, 1, or null; any decimal number (0.5, also 1.0) makes them soft.
        id: a name of its own for each row.
        tags: fields to keep as tags.
        label_kind: who made the labels, kept as a tag: ``human`` or ``automatic``; None: not known.
    """

    question: str = "question"
    steps: str = "steps"
    gold_answer: str | None = None
    final_answer: str | None = None
    labels: str | None = None
    id: str | None = None
    tags: tuple[str, ...] = ()
    label_kind: str | None = None


@dataclass(slots=True)
class Tally:
    """What was read, and everything that did not go straight through.

    Attributes:
        read: rows read.
        made: trajectories made.
        skipped: reason -> (how many, the first place).
        notes: what was changed or set aside in a row that was kept -> (how many, the first place).
    """

    read: int = 0
    made: int = 0
    skipped: dict[str, tuple[int, str]] = field(default_factory=dict)
    notes: dict[str, tuple[int, str]] = field(default_factory=dict)

    def skip(self, reason: str, place: str) -> None:
        """Count something that made no trajectory."""
        _count(self.skipped, reason, place)

    def note(self, what: str, place: str) -> None:
        """Count something that was kept, but not as it stood."""
        _count(self.notes, what, place)

    def lines(self) -> list[str]:
        """The summary, ready to print."""
        skipped = [f"skipped, {reason}: {n} (first: {place})" for reason, (n, place) in self.skipped.items()]
        notes = [f"{what}: {n} (first: {place})" for what, (n, place) in self.notes.items()]
        return [f"rows read: {self.read}, trajectories made: {self.made}", *skipped, *notes]


def _count(counts: dict[str, tuple[int, str]], key: str, place: str) -> None:
    number, first = counts.get(key, (0, place))
    counts[key] = (number + 1, first)


def read_source(
    name: str,
    files: Sequence[str],
    fields: Fields = Fields(),
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
        fields: for ``plain`` and ``datasets``; ``stepwise`` takes its ``label_kind``.
        split: for ``datasets``.
        how: how a solution that is one text is split, see ``split_steps``.
        tally: filled while reading.

    Raises:
        InputError: an unknown name, a missing file, a row that does not fit (with its place), an id used twice.
    """
    if name not in SOURCES:
        raise unknown_name("source", name, SOURCES)
    if how not in ("auto", *WAYS):
        raise unknown_name("way to split steps", how, ("auto", *WAYS))
    if split is not None and name != "datasets":
        raise InputError(f"a split can be chosen for the source 'datasets' only, not for {name!r}")
    resolved = list(files) if name == "datasets" else [str(Path(file).resolve()) for file in files]
    if twice := next((file for i, file in enumerate(resolved) if file in resolved[:i]), None):
        raise InputError(f"{twice} is given twice")
    return _read(name, files, Context(name, "", fields, tally or Tally(), how, split))


def _read(name: str, files: Sequence[str], context: Context) -> Iterator[Trajectory]:
    seen: dict[str, str] = {}
    repeats: dict[str, int] = {}
    for file in files:
        here = dataclasses.replace(context, file=file)
        values = _dataset_rows(file, context.split) if name == "datasets" else read_any(Path(file))
        for place, trajectory in SOURCES[name](_rows(values, context.tally), here):
            if not trajectory.steps:
                context.tally.skip("no steps", place)
                continue
            with at_place(place):
                _check_unicode(trajectory)
                trajectory = _with_own_id(trajectory, place, seen, repeats, context.tally)
            context.tally.made += 1
            yield trajectory


def _with_own_id(
    trajectory: Trajectory, place: str, seen: dict[str, str], repeats: dict[str, int], tally: Tally
) -> Trajectory:
    """The trajectory, under another id where an identical one without a name of its own came before."""
    if trajectory.id in seen:
        if trajectory.id != dataclasses.replace(trajectory, id="").id:
            raise InputError(
                f"the id {trajectory.id!r} was already used at {seen[trajectory.id]}; give each row its own id"
            )
        tally.note("identical trajectories, told apart by -2, -3... after their id", place)
        repeats[trajectory.id] = repeats.get(trajectory.id, 1) + 1
        renamed = dataclasses.replace(trajectory, id=f"{trajectory.id}-{repeats[trajectory.id]}")
        return _with_own_id(renamed, place, seen, repeats, tally)
    seen[trajectory.id] = place
    return trajectory


def _check_unicode(trajectory: Trajectory) -> None:
    """JSON can spell half of a surrogate pair, which no file can hold."""
    answers = (trajectory.gold_answer or "", trajectory.final_answer or "")
    try:
        "".join((trajectory.question, *trajectory.steps, *answers, *trajectory.tags.values())).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise InputError(f"{half} is half of a character (a lone surrogate); mend or remove this row") from error


# --- rows -------------------------------------------------------------------------------------------------------------


def read_any(path: Path) -> Iterator[tuple[str, Any]]:
    """Stream ``(place, value)`` from JSON lines or Parquet, or from a ``.json`` file that is one list or one object.

    An object whose values are all objects holds a row each; the key becomes the row's ``id`` if it has none. A
    ``.json`` file is read whole; one that holds JSON lines after all (ProcessBench's early files) is read as such.

    Raises:
        InputError: a missing file, or one that is not what its name says, with the line.
    """
    endings = path.suffixes[-2:] if path.suffix == ".gz" else [path.suffix]
    if endings == [".parquet", ".gz"]:
        raise InputError(f"{path}: unpack this file first; Parquet is compressed inside")
    if endings == [".parquet"] and path.is_file():
        yield from _with_nulls(path)
        return
    if endings[0] != ".json" or not path.is_file():
        yield from read_rows(path)
        return
    try:
        with open_bytes(path) as file:
            value = json.loads(file.read().decode("utf-8"))
    except (EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: not a whole gzip file ({error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deep") from error
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            problem = f"broken JSON ({error.msg} at column {error.colno})"
            raise InputError(f"{path}:{error.lineno}: {problem}; mend or replace this file") from error
        yield from read_rows(path)
        return
    for number, row in enumerate(_listed(value), start=1):
        yield f"{path}, row {number}", row


def _with_nulls(path: Path) -> Iterator[tuple[str, Any]]:
    """Parquet rows with a key for every column, since a null is a value in some formats ("no mistake")."""
    columns: dict[str, None] | None = None
    for place, row in read_rows(path):
        if columns is None:
            import pyarrow.parquet

            columns = dict.fromkeys(pyarrow.parquet.read_schema(path).names)
        yield place, {**columns, **row}


def _holds_rows(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(row, dict) for row in value.values())


def _listed(value: Any) -> list[Any]:
    if _holds_rows(value):
        return [{"id": key, **row} for key, row in value.items()]
    return value if isinstance(value, list) else [value]


def _dataset_rows(name: str, split: str | None) -> Iterator[tuple[str, Any]]:
    """The rows of a folder made by ``save_to_disk``, or of a name on the Hugging Face hub."""
    datasets = require("datasets", "datasets")
    saved = any((Path(name) / mark).exists() for mark in ("dataset_dict.json", "dataset_info.json"))
    hub_name, _, configuration = name.partition(":")
    try:
        if saved:
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(hub_name, configuration or None, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:  # what datasets documents
        problem = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{name}: the datasets library cannot load this ({problem})") from error
    if isinstance(loaded, Mapping):
        loaded = _chosen(name, loaded, split)
    elif saved and split is not None:
        raise InputError(f"{name}: this folder holds one split without a name; leave out --split")
    for number, row in enumerate(loaded, start=1):
        yield f"{name}, row {number}", row


def _chosen(name: str, splits: Mapping[str, Any], split: str | None) -> Any:
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split is None or split not in splits:
        problem = "it has several splits" if split is None else f"it has no split {split!r}"
        raise InputError(f"{name}: {problem}; choose one with --split (there are: {', '.join(splits)})")
    return splits[split]


_NO_VALUE = object()


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source and where it stands; the readers' way to ask for a field of a given type."""

    place: str
    values: Mapping[str, Any]

    @classmethod
    def of(cls, place: str, value: Any) -> Row:
        """The row, if the value is an object."""
        if not isinstance(value, Mapping):
            raise InputError(f"expected a JSON object, found {type(value).__name__}")
        return cls(place, value)

    def find(self, path: str) -> Any:
        """The value at a name or a dotted path; ``_NO_VALUE`` if there is none."""
        if path in self.values:
            return self.values[path]
        value: Any = self.values
        for part in path.split("."):
            if isinstance(value, Mapping) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                return _NO_VALUE
        return value

    def get(self, path: str, hint: str = "is this a file of another source?") -> Any:
        """The value of a field that must be there."""
        if (value := self.find(path)) is _NO_VALUE:
            raise InputError(f"field {path!r} is missing; the fields here are: {', '.join(self.values)}; {hint}")
        return value

    def text(self, path: str, hint: str = "is this a file of another source?") -> str:
        """A text that must be there."""
        return str(_typed(self.get(path, hint), str, path, "a text"))

    def texts(self, path: str) -> tuple[str, ...]:
        """A list of texts that must be there."""
        return _texts(self.get(path), path)

    def answer(self, path: str) -> str | None:
        """An answer, if there is one: see ``answer_text``."""
        value = self.find(path)
        return None if value is _NO_VALUE else answer_text(value, path)

    def or_none(self, path: str) -> Any:
        """The value of a field that need not be there."""
        value = self.find(path)
        return None if value is _NO_VALUE else value


def _typed(value: Any, kind: type | UnionType, name: str, expected: str) -> Any:
    """``value`` if it is of the kind; a bool is no number."""
    if isinstance(value, bool) or not isinstance(value, kind):
        raise InputError(f"field {name!r} must be {expected}, found {type(value).__name__}")
    return value


def _texts(value: Any, name: str) -> tuple[str, ...]:
    return tuple(_typed(text, str, name, "a list of texts") for text in _typed(value, list, name, "a list of texts"))


def answer_text(value: Any, name: str) -> str | None:
    """An answer as text: a whole number without its ".0", a blank text as None.

    Raises:
        InputError: neither a text nor a number nor None.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"field {name!r} must be a text or a number, found {type(value).__name__}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


@contextmanager
def at_place(place: str) -> Iterator[None]:
    """Put the place before what is wrong there."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _rows(values: Iterable[tuple[str, Any]], tally: Tally) -> Iterator[Row]:
    for place, value in values:
        tally.read += 1
        with at_place(place):
            row = Row.of(place, value)
        yield row


@dataclass(frozen=True, slots=True)
class Context:
    """What a reader knows besides the rows."""

    source: str
    file: str
    fields: Fields
    tally: Tally
    how: str
    split: str | None

    @property
    def stem(self) -> str:
        """The name of the file, or of the folder or hub data set, without ``.jsonl.gz`` and the like."""
        return re.sub(r"(\.(jsonl?|parquet|ndjson|gz))+$", "", Path(self.file).name)

    def tags(self, **values: Any) -> dict[str, str]:
        """Tags from values, as text: true and false as JSON has them, None left out."""
        return {"source": self.source} | {
            name: value if isinstance(value, str) else _compact(value)
            for name, value in values.items()
            if value is not None
        }


def _compact(value: Any) -> str:
    """JSON text; a value that JSON does not know (a date from Parquet) as its own text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


Made = Iterator[tuple[str, Trajectory]]
Reader = Callable[[Iterator[Row], Context], Made]


def _row_by_row(read: Callable[[Row, Context], Iterable[Trajectory]]) -> Reader:
    def reader(rows: Iterator[Row], context: Context) -> Made:
        for row in rows:
            with at_place(row.place):
                made = list(read(row, context))
            yield from ((row.place, trajectory) for trajectory in made)

    return reader


# --- step labels ------------------------------------------------------------------------------------------------------

Labels = tuple[bool | None, ...]


def _first_error_labels(steps: int, first: int | None) -> Labels:
    """Right up to the first error (from 0), wrong there, not annotated after it; all right without an error."""
    if first is None:
        return (True,) * steps
    if not 0 <= first < steps:
        raise InputError(f"the first wrong step would be number {first + 1} of {steps}; mend or remove this row")
    return (*(True,) * first, False, *(None,) * (steps - first - 1))


def _given_labels(values: Any, steps: int, name: str) -> tuple[Labels | None, list[float | None] | None]:
    """Labels that a row gives step by step: hard ones, or soft ones.

    A decimal number makes all labels of the row soft, be it 1.0: a source of soft labels has rows where each happens
    to be 0.0 or 1.0. Soft labels are never rounded to hard ones.
    """
    if values is None:
        return None, None
    labels = _typed(values, list, name, "a list of labels")
    if len(labels) != steps:
        raise InputError(f"field {name!r} has {len(labels)} labels for {steps} steps")
    known = [label for label in labels if label is not None]
    if not all(isinstance(label, bool | int | float) and 0 <= label <= 1 for label in known):
        raise InputError(f"field {name!r} must hold true, false, numbers from 0 to 1, or null for each step")
    if any(isinstance(label, float) for label in known):
        return None, [None if label is None else float(label) for label in labels]
    return tuple(None if label is None else bool(label) for label in labels), None


def _plain_labels(row: Row, path: str, steps: int, context: Context) -> tuple[Labels | None, dict[str, str]]:
    labels, soft = _given_labels(row.or_none(path), steps, path)
    if soft is not None:
        context.tally.note("soft labels, kept in the tag soft_labels, not as step_labels", row.place)
    kind = context.fields.label_kind if (labels or soft) else None
    return labels, context.tags(soft_labels=soft, label_kind=kind)


# --- readers, one for each format -------------------------------------------------------------------------------------


def _processbench(row: Row, context: Context) -> Iterator[Trajectory]:
    """ProcessBench (arXiv 2412.06559, QwenLM/ProcessBench): people marked the first wrong step.

    ``label`` counts from 0, -1 says there is none. Steps after the first error were not annotated. The official rows
    have no ``gold_answer``.
    """
    steps, identity = row.texts("steps"), row.text("id")
    label: int = _typed(row.get("label"), int, "label", "a whole number")
    yield Trajectory(
        question=row.text("problem"),
        steps=steps,
        gold_answer=row.answer("gold_answer"),
        step_labels=_first_error_labels(len(steps), None if label == -1 else label),
        tags=context.tags(
            subset=identity.rpartition("-")[0] or context.stem,
            generator=row.or_none("generator"),
            final_answer_correct=row.or_none("final_answer_correct"),
            label_kind="human",
        ),
        id=identity,
    )


def _prmbench(rows: Iterator[Row], context: Context) -> Made:
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
        _typed(step, int, "error_steps", expected)
        for step in _typed(row.get("error_steps"), list, "error_steps", expected)
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


def _math_shepherd(row: Row, context: Context) -> Iterator[Trajectory]:
    """Math-Shepherd (arXiv 2312.08935, peiyi9979/Math-Shepherd): labels from rollouts, not from people.

    In ``input`` each step ends with ``ки``, and ``label`` is the same text with ``+`` or ``-`` there: whether any
    rollout from that step reached the right answer. The field trains and tests on these as step labels, so they are
    ``step_labels`` here too, with ``label_kind=automatic``. The question ends before the first "Step 1:"; steps keep
    their headers and lose the white space around the tag.
    """
    text, marked = row.text("input"), row.text("label")
    *parts, rest = text.split("ки")
    marks: list[bool | None] = []
    at = 0
    for part in parts:
        mark = marked[at + len(part) : at + len(part) + 1]
        if not marked.startswith(part, at) or mark not in ("+", "-"):
            raise InputError(f"field 'label' does not have + or - for tag {len(marks) + 1} of 'input'")
        marks.append(mark == "+")
        at += len(part) + 1
    if rest.strip():  # a last step that no rollout judged
        parts.append(rest)
        marks.append(None)
    question, header, first = parts[0].partition("Step 1:") if parts else ("", "", "")
    if not header or not question.strip():
        raise InputError("field 'input' must be a question, then steps from 'Step 1:' on, each ended by 'ки'")
    steps = tuple(part.strip() for part in (header + first, *parts[1:]))
    answer = re.search(r"The answer is:?\s*(?P<answer>(?:(?!The answer is).)+)$", steps[-1], re.DOTALL)
    task = row.or_none("task")
    yield Trajectory(
        question=question.strip(),
        steps=steps,
        final_answer=answer_text(answer["answer"].strip(), "input") if answer else None,
        step_labels=tuple(marks),
        tags=context.tags(subset=task, label_kind="automatic"),
    )


def _big_bench_mistake(row: Row, context: Context) -> Iterator[Trajectory]:
    """BIG-Bench Mistake (arXiv 2311.08516, WHGTyen/BIG-Bench-Mistake): people marked the first mistake.

    ``mistake_index`` counts from 0, null says there is none (also where the answer is wrong all the same). The subset
    is the file's name, which is the task.
    """
    steps, index = row.texts("steps"), row.get("mistake_index")
    first = None if index is None else _typed(index, int, "mistake_index", "a whole number or null")
    yield Trajectory(
        question=row.text("input"),
        steps=steps,
        gold_answer=row.answer("target"),
        final_answer=row.answer("answer"),
        step_labels=_first_error_labels(len(steps), first),
        tags=context.tags(subset=context.stem, label_kind="human"),
    )


def _mr_math(row: Row, context: Context) -> Iterator[Trajectory]:
    """MR-MATH (ReasonEval, arXiv 2404.05692, GAIR-NLP/ReasonEval), both files; each step is a list of its lines.

    The file of invalid errors names the first wrong step, from 1, "N/A" for none: labels as in ProcessBench. The file
    of redundant errors rates every step 1, or 0 for redundant: False says redundant there, not wrong, and the tag
    ``subset`` (``invalid``, ``redundant``) tells the two apart.
    """
    name = "model_output_step_format"
    steps = tuple("\n".join(_texts(lines, name)) for lines in _typed(row.get(name), list, name, "a list of lists"))
    if "rating" in row.values:
        subset, correct = "redundant", None
        labels, soft = _given_labels(row.get("rating"), len(steps), "rating")
        if soft is not None:
            raise InputError("field 'rating' must hold 0 or 1 for each step")
    else:
        subset, correct = "invalid", row.text("model_output_answer_correctness") == "correct"
        name = "model_output_solution_first_error_step"
        first = row.get(name)
        index = None if first == "N/A" else _typed(first, int, name, "a number or N/A") - 1
        labels = _first_error_labels(len(steps), index)
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
        id=f"{subset}/{row.get('id')}",
    )


def _math_aps(row: Row, context: Context) -> Iterator[Trajectory]:
    """MATH-APS (OmegaPRM, arXiv 2406.06592; files of openreasoner/openr): a tree of rollouts with Monte Carlo values.

    Every leaf is one trajectory. The values are no labels of people, nor of steps that were ever judged right or
    wrong: they stay in the tags ``mc_values`` (one per step) and ``mc_value_question``, as JSON. In the tree file a
    node holds its own text; the flat file lists the same nodes in preorder, each with all the text from the question
    on, so a node's parent is the nearest open node whose text it goes on from (a node that goes on from its sibling
    cannot be told from a child there; its text and values are right either way). White space around a step is dropped.
    """
    question, nodes = row.text("question"), row.get("reasoning_steps")
    paths = _flat_paths(nodes) if isinstance(nodes, list) else _tree_paths(nodes)
    for (_, question_value), *path in paths:
        yield Trajectory(
            question=question,
            steps=tuple(text.strip() for text, _ in path),
            gold_answer=row.answer("final_answer"),
            tags=context.tags(
                mc_values=[value for _, value in path],
                mc_value_question=question_value,
                question_id=row.or_none("question_id"),
            ),
        )


Valued = tuple[str, float]


def _valued(node: Any, text: str) -> Valued:
    node = _typed(node, dict, "reasoning_steps", "a list or a tree of objects")
    value = _typed(node.get("mc_value"), int | float, "mc_value", "a number")
    return str(_typed(node.get(text), str, text, "a text")), float(value)


def _tree_paths(root: Any) -> Iterator[list[Valued]]:
    """Each path from the root to a leaf; without recursion, since trees may be deep."""
    stack: list[tuple[Any, list[Valued]]] = [(root, [])]
    while stack:
        node, above = stack.pop()
        path = [*above, _valued(node, "text")]
        children = _typed(node.get("children") or [], list, "children", "a list")
        stack.extend((child, path) for child in reversed(children))
        if not children:
            yield path


def _flat_paths(nodes: list[Any]) -> Iterator[list[Valued]]:
    open_nodes: list[Valued] = []  # the whole text of each node from the root to the one read last
    for node in nodes:
        text, value = _valued(node, "solution_prefix")
        leaf = list(open_nodes)
        while open_nodes and not (text.startswith(open_nodes[-1][0]) and len(text) > len(open_nodes[-1][0])):
            open_nodes.pop()
        if leaf and len(open_nodes) < len(leaf):  # the one read last has no child
            yield _own_texts(leaf)
        if leaf and not open_nodes:
            raise InputError("field 'reasoning_steps' must list prefixes that all go on from the first")
        open_nodes.append((text, value))
    if open_nodes:
        yield _own_texts(open_nodes)


def _own_texts(path: list[Valued]) -> list[Valued]:
    before = ["", *(text for text, _ in path[:-1])]
    return [(text[len(above) :], value) for above, (text, value) in zip(before, path, strict=True)]


def _stepwise(row: Row, context: Context) -> Iterator[Trajectory]:
    """TRL's stepwise rows (``prompt``, ``completions``, ``labels``), the format of its PRM trainer up to 1.13.

    Labels are true or false, 0 or 1, or decimal numbers (soft); see ``Fields.labels``. Who made them is not written
    there: ``Fields.label_kind``.
    """
    steps = row.texts("completions")
    row.get("labels")
    labels, tags = _plain_labels(row, "labels", len(steps), context)
    tags = context.tags(subset=context.stem) | tags
    yield Trajectory(question=row.text("prompt"), steps=steps, step_labels=labels, tags=tags)


def _plain(rows: Iterator[Row], context: Context) -> Made:
    """Rows with the fields named by ``Fields``; of ``.jsonl``, ``.json``, Parquet, or the ``datasets`` library."""
    fields = context.fields
    names = [fields.gold_answer, fields.final_answer, fields.labels, fields.id, *fields.tags]
    never_seen = {name for name in names if name is not None}
    for row in rows:
        never_seen = {name for name in never_seen if row.find(name) is _NO_VALUE}
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
    labels, tags = _plain_labels(row, labels_path, len(steps), context)
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


# --- PRM800K ----------------------------------------------------------------------------------------------------------

_RATINGS: dict[int | None, bool | None] = {1: True, 0: True, -1: False, None: None}
_ANSWER_MARK = "\n\n# Answer\n\n"


@dataclass(frozen=True, slots=True)
class _Rated:
    """A step that people rated, and the steps before it: a node of the tree that the labelers saw."""

    row: Row
    path: tuple[str, ...]
    rating: int | None
    human: bool
    is_solution: bool
    answer: str | None


def _prm800k(rows: Iterator[Row], context: Context) -> Made:
    """PRM800K (arXiv 2305.20050, openai/prm800k): every step rated by people; every leaf of the step tree is one row.

    A rating of 1 (good) or 0 (neutral: not wrong, but no progress) is True, as in the paper's own training, -1 is
    False, null (a step that a labeler wrote, or left alone) None; the tag ``ratings`` keeps them. A rejected
    alternative ends a trajectory of its own after the chosen steps before it. Three forms, told apart by their fields:

    * official: ``question``, ``label.steps[].completions``. "# Answer" and what follows it leaves the last step and
      becomes ``final_answer``;
    * stepwise: ``instruction``, ``responses`` (the steps before), ``next_response``, ``rating``; rows of one problem
      stand together. Where a step stands there twice, the later rating counts;
    * trajectories: ``problem``, ``steps``, ``ratings``.
    """
    for is_stepwise, group in itertools.groupby(rows, key=lambda row: "next_response" in row.values):
        if is_stepwise:
            for _, problem in itertools.groupby(group, key=lambda row: row.values.get("instruction")):
                nodes = [_stepwise_node(row) for row in problem]
                yield from _leaves(nodes, nodes[0].row.text("instruction"), None, {}, context)
        else:
            for row in group:
                if "label" in row.values and isinstance(row.values.get("question"), Mapping):
                    yield from _official(row, context)
                else:
                    yield _rated_steps(row, context)


def _stepwise_node(row: Row) -> _Rated:
    with at_place(row.place):
        row.text("instruction")
        return _Rated(
            row=row,
            path=(*row.texts("responses"), row.text("next_response")),
            rating=_rating(row.get("rating")),
            human=bool(row.or_none("is_human_response")),
            is_solution=bool(row.or_none("is_solution")),
            answer=row.answer("answer"),
        )


def _rating(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | None) or value not in _RATINGS:
        raise InputError(f"a rating must be 1, 0, -1 or null, found {value!r}")
    return None if value is None else int(value)


def _leaves(nodes: list[_Rated], question: str, gold: str | None, tags: dict[str, Any], context: Context) -> Made:
    inner = {node.path[:-1] for node in nodes}
    latest: dict[tuple[str, ...], _Rated] = {}
    for node in nodes:
        if node.path in latest and latest[node.path].rating != node.rating:
            context.tally.note("steps rated twice and differently; the later rating counts", node.row.place)
        latest[node.path] = node
    for node in nodes:
        if node.path in inner:
            continue
        branch = [latest.get(node.path[: i + 1]) for i in range(len(node.path))]
        with at_place(node.row.place):
            trajectory = _rated(
                context,
                question=question,
                steps=node.path,
                gold=gold,
                answer=node.answer,
                ratings=[step.rating if step else None for step in branch],
                human=[bool(step and step.human) for step in branch],
                tags={"is_solution": node.is_solution, **tags},
            )
        yield node.row.place, trajectory


def _rated(
    context: Context,
    *,
    question: str,
    steps: tuple[str, ...],
    gold: str | None,
    answer: str | None,
    ratings: list[int | None],
    human: list[bool],
    tags: dict[str, Any],
) -> Trajectory:
    return Trajectory(
        question=question,
        steps=steps,
        gold_answer=gold,
        final_answer=answer,
        step_labels=tuple(_RATINGS[rating] for rating in ratings),
        tags=context.tags(
            subset=re.sub("_(stepwise|trajectories)$", "", context.stem),
            label_kind="human",
            ratings=ratings,
            human_steps=[i for i, by_human in enumerate(human) if by_human] or None,
            **tags,
        ),
    )


def _rated_steps(row: Row, context: Context) -> tuple[str, Trajectory]:
    """One row of the trajectories form."""
    with at_place(row.place):
        ratings = [_rating(value) for value in _typed(row.get("ratings"), list, "ratings", "a list of ratings")]
        human = row.or_none("is_human_step") or [False] * len(ratings)
        return row.place, _rated(
            context,
            question=row.text("problem"),
            steps=row.texts("steps"),
            gold=None,
            answer=row.answer("answer"),
            ratings=ratings,
            human=_typed(human, list, "is_human_step", "a list of true or false"),
            tags={"is_solution": row.or_none("is_solution")},
        )


def _official(row: Row, context: Context) -> Made:
    """One row of the official form: one labeler's way through one problem."""
    with at_place(row.place):
        nodes = _official_nodes(row, context)
        question, gold = row.text("question.problem"), row.answer("question.ground_truth_answer")
        names = ("generation", "is_quality_control_question", "is_initial_screening_question")
        tags = {name: row.or_none(name) for name in names}
        tags["finish_reason"] = row.or_none("label.finish_reason")
    if not nodes:
        context.tally.skip("no step was rated", row.place)
    yield from _leaves(nodes, question, gold, tags, context)


def _official_nodes(row: Row, context: Context) -> list[_Rated]:
    steps = _typed(row.get("label.steps"), list, "label.steps", "a list of objects")
    solved = row.or_none("label.finish_reason") == "solution"
    nodes: list[_Rated] = []
    prefix: tuple[str, ...] = ()
    for number in range(len(steps)):
        at = f"label.steps.{number}"
        completions = _typed(row.or_none(f"{at}.completions") or [], list, f"{at}.completions", "a list")
        chosen = row.or_none(f"{at}.chosen_completion")
        paths = [f"{at}.completions.{i}" for i in range(len(completions))]
        if chosen is not None and not (isinstance(chosen, int) and 0 <= chosen < len(paths)):
            raise InputError(f"field '{at}.chosen_completion' must be null or count from 0 to {len(paths) - 1}")
        if row.or_none(f"{at}.human_completion") is not None:
            paths.append(f"{at}.human_completion")
            chosen = len(paths) - 1 if chosen is None else chosen
        following = None
        for index, path in enumerate(paths):
            text, _, answer = row.text(f"{path}.text").partition(_ANSWER_MARK)
            node = _Rated(
                row=row,
                path=(*prefix, text),
                rating=_rating(row.or_none(f"{path}.rating")),
                human=path.endswith("human_completion"),
                is_solution=solved and index == chosen and number == len(steps) - 1,
                answer=answer.strip() or None,
            )
            nodes.append(node)
            following = node.path if index == chosen else following
        if following is None:
            if any(row.or_none(f"label.steps.{later}.completions") for later in range(number + 1, len(steps))):
                context.tally.note("steps after one where nothing was chosen, left out", row.place)
            break
        prefix = following
    return nodes


SOURCES: dict[str, Reader] = {
    "processbench": _row_by_row(_processbench),
    "prmbench": _prmbench,
    "prm800k": _prm800k,
    "math-shepherd": _row_by_row(_math_shepherd),
    "big-bench-mistake": _row_by_row(_big_bench_mistake),
    "mr-math": _row_by_row(_mr_math),
    "math-aps": _row_by_row(_math_aps),
    "stepwise": _row_by_row(_stepwise),
    "plain": _plain,
    "datasets": _plain,
}
