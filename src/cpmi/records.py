"""The records that flow through everything: trajectories in, step rewards out.

Each is a frozen dataclass that checks itself when it is made, and has one JSON form: an object a line
(``.jsonl``, ``.jsonl.gz``) or a row of a Parquet file (``.parquet``) with the same fields.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import itertools
import json
import math
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, cast

from cpmi.errors import CpmiError, InputError
from cpmi.storage import is_remote, location, uncovered, uploading

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]

_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A question and one chain-of-thought solution of it, step by step.

    Attributes:
        question: the problem statement.
        steps: the solution's steps, in order. May be empty here; a labeler records that as an error.
        gold_answer: the right answer, where it is known.
        final_answer: the answer this solution arrives at, where it is known.
        step_labels: human judgment per step (True: right), None where a step is not annotated; None: no annotation.
        tags: anything else worth keeping (source, subset, generator...).
        id: stable name; by default a hash of question, steps and gold answer.
        choices: the answers to choose from, where the question offers some (``A``, ``B``...; ``True``, ``False``...);
            the gold answer is one of them.

    Raises:
        InputError: a field has the wrong type or is no text that a file can hold, ``step_labels`` is not as long as
            ``steps``, or the gold answer is none of the choices.
    """

    question: str
    steps: tuple[str, ...]
    gold_answer: str | None = None
    final_answer: str | None = None
    step_labels: tuple[bool | None, ...] | None = None
    tags: dict[str, str] = field(default_factory=dict)
    id: str = ""
    choices: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check(isinstance(self.question, str) and bool(self.question.strip()), "question", "a text that is not empty")
        _check(_all(self.steps, str), "steps", "a list of texts")
        for name in ("gold_answer", "final_answer"):
            _check(isinstance(getattr(self, name), str | None), name, "a text or null")
        if self.step_labels is not None:
            _check(_all(self.step_labels, bool | None), "step_labels", "a list of true, false or null")
            if len(self.step_labels) != len(self.steps):
                raise InputError(f"step_labels has {len(self.step_labels)} entries for {len(self.steps)} steps")
        texts = isinstance(self.tags, dict) and _all((*self.tags, *self.tags.values()), str)
        _check(texts, "tags", "an object of texts")
        _check(isinstance(self.id, str), "id", "a text")
        self._check_choices()
        for name in ("question", "steps", "gold_answer", "final_answer", "tags", "id", "choices"):
            _check_writable(name, getattr(self, name))
        if not self.id:
            content = _ENCODE([self.question, list(self.steps), self.gold_answer])
            object.__setattr__(self, "id", hashlib.sha256(content.encode()).hexdigest()[:16])

    def _check_choices(self) -> None:
        if self.choices is None:
            return
        distinct = _all(self.choices, str) and len(set(self.choices)) == len(self.choices) >= 2
        _check(distinct and all(map(str.strip, self.choices)), "choices", "a list of two or more different texts")
        if self.gold_answer is not None and self.gold_answer not in self.choices:
            listed = ", ".join(self.choices)
            raise InputError(f"the gold answer {self.gold_answer!r} is none of the choices ({listed})")

    @property
    def first_error(self) -> int | None:
        """Index (from 0) of the first step that people judged wrong; None if there is none, or no annotation."""
        return next((i for i, label in enumerate(self.step_labels or ()) if label is False), None)


@dataclass(frozen=True, slots=True)
class Cost:
    """What an engine spent; reported by the engine that spent it, and costs add.

    Attributes:
        tokens_generated: tokens sampled.
        tokens_scored: tokens fed through the model to score them or what follows them.
        seconds: wall time of the engine's work.
    """

    tokens_generated: int = 0
    tokens_scored: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.tokens_generated + other.tokens_generated,
            self.tokens_scored + other.tokens_scored,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True, slots=True)
class StepRewards:
    """One attempt to reward the steps of one trajectory: a number per step, or the reason why there is none.

    Attributes:
        trajectory_id: the ``Trajectory.id`` it belongs to.
        rewards: one finite number per step, in order; empty where ``error`` is set.
        source: what made them, e.g. ``cpmi``.
        terms: the parts a reward is made of, each one number per step.
        details: what else the method wants to keep, as JSON (the answers it scored, what it could not do).
        cost: what this trajectory cost.
        error: why the trajectory could not be rewarded, in one line.

    Raises:
        InputError: a wrong type, a number that is not finite, a text that no file can hold, terms of another length
            than the rewards, or rewards beside an error.
    """

    trajectory_id: str
    rewards: tuple[float, ...]
    source: str
    terms: dict[str, tuple[float, ...]] = field(default_factory=dict)
    details: dict[str, JSON] = field(default_factory=dict)
    cost: Cost = Cost()
    error: str | None = None

    def __post_init__(self) -> None:
        _check(isinstance(self.trajectory_id, str) and bool(self.trajectory_id), "trajectory_id", "a text")
        _check(isinstance(self.source, str), "source", "a text")
        _check(isinstance(self.error, str | None), "error", "a text or null")
        _check(isinstance(self.details, dict), "details", "an object")
        _check(isinstance(self.terms, dict), "terms", "an object of lists of numbers")
        for name, values in {"rewards": self.rewards, **self.terms}.items():
            _check(_all_finite(values), name, "a list of finite numbers")
            if len(values) != len(self.rewards):
                raise InputError(f"term {name!r} has {len(values)} numbers for {len(self.rewards)} rewards")
        for name in ("trajectory_id", "source", "terms", "details", "error"):
            _check_writable(name, getattr(self, name))
        if self.error is not None and self.rewards:
            raise InputError("a line with an error cannot have rewards")


Record = TypeVar("Record", Trajectory, StepRewards)


def _check(ok: bool, name: str, expected: str) -> None:
    if not ok:
        raise InputError(f"field {name!r} must be {expected}")


_DEEPEST = 100  # nested levels of a field: far fewer than what Python's JSON can write


def _check_writable(name: str, value: object) -> None:
    """Refuse what JSON can spell and no file can hold: half of a surrogate pair, NaN, nesting without end."""
    values = [(value, 0)]
    while values:
        value, depth = values.pop()
        if depth > _DEEPEST:
            raise InputError(f"field {name!r} is nested deeper than {_DEEPEST} levels")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"field {name!r} holds {value}, which is no number that JSON has")
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                half = ascii(value[error.start])
                problem = f"field {name!r} holds half of a surrogate pair, which is not text; mend or remove {half}"
                raise InputError(problem) from error
        elif isinstance(value, Mapping):
            values += ((each, depth + 1) for each in (*value, *value.values()))
        elif isinstance(value, list | tuple):
            values += ((each, depth + 1) for each in value)


def _all(values: object, kind: Any) -> bool:
    """Whether ``values`` is a tuple of ``kind``; a bool does not pass for a number, though Python says it is one."""
    takes_bool = kind in (bool, bool | None)
    return isinstance(values, tuple) and all(
        isinstance(value, kind) and (takes_bool or not isinstance(value, bool)) for value in values
    )


def _all_finite(values: object) -> bool:
    """Whether ``values`` is a tuple of numbers that fit into a float."""
    if not _all(values, int | float):
        return False
    try:
        return all(math.isfinite(value) for value in cast(tuple[float, ...], values))
    except OverflowError:  # a whole number of hundreds of digits
        return False


# --- one record <-> one JSON object ---------------------------------------------------------------------------------


def to_json(record: Trajectory | StepRewards) -> dict[str, Any]:
    """The record as a JSON object; fields that hold nothing (None, empty) are left out, ``rewards`` never."""
    row = dataclasses.asdict(record)
    keep = {"id", "question", "steps", "trajectory_id", "rewards", "source"}
    return {key: value for key, value in row.items() if key in keep or (value is not None and value != {})}


def from_json(kind: type[Record], row: object) -> Record:
    """A record from its JSON object.

    Raises:
        InputError: not an object, an unknown or missing field, or a value of the wrong type.
    """
    if not isinstance(row, dict):
        raise InputError(f"expected a JSON object, found {type(row).__name__}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := [name for name in row if name not in fields]:
        hint = "; cpmi prepare converts other formats" if kind is Trajectory else ""
        raise InputError(f"unknown field {unknown[0]!r} (known: {', '.join(fields)}){hint}")
    required = [n for n, f in fields.items() if f.default is dataclasses.MISSING is f.default_factory]
    if missing := [name for name in required if name not in row]:
        raise InputError(f"missing field {missing[0]!r}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    for name in ("tags", "terms", "details"):
        if name in values and values[name] is None:  # how Parquet stores an empty object
            del values[name]
    if kind is StepRewards:
        values |= _nested_fields(values)
    return kind(**cast(Any, values))  # the fields check themselves


def _nested_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    if isinstance(terms := values.get("terms"), dict):
        nested["terms"] = {name: tuple(term) if isinstance(term, list) else term for name, term in terms.items()}
    if (cost := values.get("cost")) is not None:
        known = {f.name for f in dataclasses.fields(Cost)}
        ok = isinstance(cost, dict) and set(cost) <= known and _all_finite(tuple(cost.values()))
        _check(ok, "cost", f"an object of finite numbers ({', '.join(sorted(known))})")
        nested["cost"] = Cost(**cost)
    elif "cost" in values:
        nested["cost"] = Cost()
    return nested


def dump_line(record: Trajectory | StepRewards) -> str:
    """The record as one line of JSON, with its newline."""
    return _ENCODE(to_json(record)) + "\n"


# --- files ----------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Stream ``(place, JSON value)`` from ``.jsonl``, ``.jsonl.gz`` or ``.parquet``; place is e.g. ``data.jsonl:3``.

    Raises:
        InputError: a missing file, invalid UTF-8, or a line that is not JSON, each with its place.
    """
    path = location(path)
    yield from ((_place(path, number), row) for number, row in _numbered_rows(path))


def _place(path: Path, number: int) -> str:
    return f"{path}, row {number}" if path.suffix == ".parquet" else f"{path}:{number}"


def _numbered_rows(path: Path, *, growing: bool = False) -> Iterator[tuple[int, Any]]:
    """The rows and their numbers (of the line, or of the row in Parquet).

    Args:
        growing: the file may still be written to, or its writer was killed: a last line without its end is left out.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.is_dir():
        raise InputError(f"{path} is a folder; a file is needed here")
    yield from (_parquet_rows(path) if path.suffix == ".parquet" else _json_lines(path, growing=growing))


def _json_lines(path: Path, *, growing: bool) -> Iterator[tuple[int, Any]]:
    with unpacking(path), open_bytes(path) as lines:
        for number, line in enumerate(lines, start=1):
            if growing and not line.endswith(b"\n"):
                return
            if line.strip():
                yield number, parse_line(line, _place(path, number))


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading bytes, unpacking ``.gz``."""
    file = cast(IO[bytes], path.open("rb"))
    return cast(IO[bytes], _Unpacked(file)) if path.suffix == ".gz" else file


class _Unpacked(gzip.GzipFile):
    """Unpacks, and closes the packed file with it. (``gzip`` itself opens only what lies on a disk.)"""

    def __init__(self, packed: IO[bytes]) -> None:
        super().__init__(fileobj=packed, mode="rb")
        self._packed = packed

    def close(self) -> None:
        super().close()
        self._packed.close()


@contextlib.contextmanager
def unpacking(path: Path) -> Iterator[None]:
    """Say in one line what is wrong with a damaged ``.gz`` file.

    Raises:
        InputError: the file is cut off, damaged, or not packed at all.
    """
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: not a whole gzip file ({error})") from error


def parse_line(line: bytes, place: str) -> Any:
    """The JSON value of one line.

    Raises:
        InputError: invalid UTF-8 or broken JSON, with its place.
    """
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{place}: broken JSON ({json_problem(error)}{column}); mend or remove this line") from error


def json_problem(error: ValueError | RecursionError) -> str:
    """What ``json.loads`` found wrong, without its place."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "nested too deep" if isinstance(error, RecursionError) else "a number with too many digits"


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    # ValueError: a text that is not UTF-8; OverflowError: a date that Python's types cannot hold.
    broken = (pyarrow.ArrowException, OSError, ValueError, OverflowError)
    with contextlib.ExitStack() as opened:
        try:
            table = pyarrow.parquet.ParquetFile(opened.enter_context(path.open("rb")) if is_remote(path) else path)
        except broken as error:
            raise InputError(f"{path}: not a Parquet file ({first_line(error)})") from error
        number = 0
        try:
            for batch in table.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {k: _from_parquet(k, v) for k, v in row.items() if v is not None}
        except broken as error:
            raise InputError(f"{path}: damaged after row {number} ({first_line(error)}); replace this file") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


_JSON_COLUMNS = ("tags", "terms", "details", "cost")  # objects without fixed fields; Parquet holds them as JSON text


def _from_parquet(name: str, value: Any) -> Any:
    if name in _JSON_COLUMNS and isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value  # the record's own check says what is wrong with it
    return value


def read_records(kind: type[Record], path: Path) -> Iterator[Record]:
    """Stream records from a file; see ``read_rows``.

    Raises:
        InputError: with the line or row of the first record that is not one.
    """
    yield from (record for _, record in _numbered_records(kind, location(path)))


def _numbered_records(kind: type[Record], path: Path, *, growing: bool = False) -> Iterator[tuple[int, Record]]:
    for number, row in _numbered_rows(path, growing=growing):
        try:
            record = from_json(kind, row)
        except InputError as error:
            raise InputError(f"{_place(path, number)}: {error}") from error
        yield number, record


def read_trajectories(path: str | os.PathLike[str]) -> Iterator[Trajectory]:
    """Stream the trajectories of a ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` file.

    Raises:
        InputError: a missing file or a bad record (with its line); a repeated id (with both lines).
    """
    path = location(path)
    seen: dict[str, int] = {}
    for number, trajectory in _numbered_records(Trajectory, path):
        first = seen.setdefault(trajectory.id, number)
        if first != number:
            raise InputError(
                f"{_place(path, number)}: the id {trajectory.id!r} occurs twice, first at {_place(path, first)}; "
                "give each trajectory its own id"
            )
        yield trajectory


def read_rewards(path: str | os.PathLike[str]) -> Iterator[StepRewards]:
    """Stream the step rewards of a run directory (all its parts, in order) or of a file.

    Lines with ``error`` come too: look at ``StepRewards.error``. The last line of a part may still be in the making, or
    torn by a kill: in a run directory it is left out while it has no end.

    Raises:
        InputError: nothing there, or a bad record (with its line).
    """
    path = location(path)
    if not path.is_dir():
        yield from read_records(StepRewards, path)
        return
    parts = uncovered(path.glob("part-*-of-*.jsonl"))
    if not parts:
        raise InputError(f"{path}: no part-*.jsonl in this folder; is it the output of cpmi label?")
    for part in parts:
        try:
            yield from (record for _, record in _numbered_records(StepRewards, part, growing=True))
        except InputError as error:
            problem = str(error).removesuffix("; mend or remove this line")
            advice = f"cpmi verify {path} tells more; run the same cpmi label command again to repair"
            raise InputError(f"{problem}; {advice}") from error


def rewards_by_id(path: str | os.PathLike[str]) -> dict[str, StepRewards]:
    """The step rewards of a run directory or a file by trajectory, in its order; see ``read_rewards``.

    Raises:
        InputError: a repeated id, or nothing there.
    """
    records: dict[str, StepRewards] = {}
    for record in read_rewards(path):
        if record.trajectory_id in records:
            raise InputError(f"{path}: the id {record.trajectory_id!r} occurs twice")
        records[record.trajectory_id] = record
    if not records:
        raise InputError(f"{path}: holds no rewards")
    return records


Column = Literal["text", "texts", "numbers", "flags"]

_COLUMNS: dict[str, Column] = {"steps": "texts", "choices": "texts", "step_labels": "flags", "rewards": "numbers"}


def write_records(path: Path, records: Iterable[Trajectory | StepRewards]) -> int:
    """Write records to ``.jsonl``, ``.jsonl.gz`` or ``.parquet``, whole or not at all; return how many."""
    iterator = iter(records)
    first = next(iterator, None)
    rows: Iterator[Trajectory | StepRewards] = iter(()) if first is None else itertools.chain([first], iterator)
    kind = Trajectory if first is None else type(first)
    columns = {f.name: _COLUMNS.get(f.name, "text") for f in dataclasses.fields(kind)}
    is_parquet = location(path).suffix == ".parquet"
    return write_rows(path, (_parquet_row(row) if is_parquet else to_json(row) for row in rows), columns)


def _parquet_row(record: Trajectory | StepRewards) -> dict[str, Any]:
    row = dataclasses.asdict(record)
    return {name: _ENCODE(value) if name in _JSON_COLUMNS else value for name, value in row.items()}


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; its folder is made.

    Raises:
        CpmiError: it cannot be written.
    """
    with _appearing(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A file to write that takes its name only when it is complete."""
    if is_remote(path):
        with uploading(path) as partial:
            yield partial
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise CpmiError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):  # what went wrong before is what the user should read
            partial.unlink(missing_ok=True)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, Column]) -> int:
    """Write rows to ``.jsonl``, ``.jsonl.gz`` or ``.parquet``, whole or not at all; return how many.

    The file appears under its name only when it is complete.

    Args:
        columns: names and types of the columns of a Parquet file.

    Raises:
        InputError: another suffix.
        CpmiError: the file cannot be written.
    """
    path = location(path)
    if path.suffix not in (".jsonl", ".gz", ".parquet"):
        raise InputError(f"{path}: the name must end in .jsonl, .jsonl.gz or .parquet")
    with _appearing(path) as partial:
        return _write_parquet(partial, rows, columns) if path.suffix == ".parquet" else _write_lines(partial, rows)


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    with gzip.open(path, "wb") if ".gz" in path.suffixes else path.open("wb") as file:
        for row in rows:
            file.write((_ENCODE(row) + "\n").encode())
            count += 1
    return count


def _write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, Column]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, numbers, flags = pa.string(), pa.list_(pa.float64()), pa.list_(pa.bool_())
    types = {"text": text, "texts": pa.list_(text), "numbers": numbers, "flags": flags}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    count = 0
    iterator = iter(rows)
    with pq.ParquetWriter(path, schema) as writer:
        while chunk := list(itertools.islice(iterator, 1000)):
            writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
            count += len(chunk)
    return count
