"""Any ``StepRewarder`` over a file of trajectories: resumable, killable at any moment, in shards.

A run directory holds

    manifest.json                 every setting, the digest of the input, the number of shards
    part-00003-of-00016.jsonl     a line of StepRewards per trajectory attempted, failures included
    part-00003-of-00016.done      empty; there when the part is complete
    part-00003-of-00016.lock      locked while a process writes the part
    rollouts-00003-of-00016.jsonl finished rollouts, for methods that have some (``cpmi.rollout_file``)
    attempts.jsonl                a line when an attempt starts and one when it ends

The manifest is the configuration. A part goes on where it stopped: ids already there are skipped, a last line torn by
a kill is dropped, and other settings on an old run are refused.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import logging
import os
import platform
import socket
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from cpmi import __version__
from cpmi.errors import CpmiError, InputError
from cpmi.protocols import StepRewarder
from cpmi.records import Cost, StepRewards, Trajectory, dump_line, from_json, parse_line

logger = logging.getLogger("cpmi")

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """Part ``index`` (from 0) of ``count``; which trajectories are in it depends on their ids alone."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From ``i/n``, i from 0 to n-1.

        Raises:
            InputError: anything else.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise InputError(f"shard {text!r}: write i/n with i from 0 to n-1, for example 0/4")
        return cls(int(index), int(count))

    def holds(self, trajectory_id: str) -> bool:
        digest = hashlib.sha256(trajectory_id.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index

    @property
    def name(self) -> str:
        return f"part-{self.index:05d}-of-{self.count:05d}"


# --- the directory --------------------------------------------------------------------------------------------------


class RunDirectory:
    """A run on disk; see the module's text for its files."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run.

        Raises:
            InputError: no run there, or a manifest that cannot be read.
        """
        file = path / "manifest.json"
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: not a run directory (no readable manifest.json)") from error
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{file}: broken ({error}); restore it from a copy, or use another --output") from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise InputError(f"{file}: not a manifest that this version of cpmi ({__version__}) can read")
        return cls(path, manifest)

    @classmethod
    def create_or_resume(cls, path: Path, settings: dict[str, Any]) -> RunDirectory:
        """A new run with these settings, or the one already there if its settings are the same.

        Raises:
            InputError: another run is there (with the fields that differ), or files that are not a run.
        """
        manifest = as_json({"format": FORMAT, "cpmi": __version__, "created": _now(), **settings})
        if not (path / "manifest.json").exists():
            cls.refuse_foreign(path)
            path.mkdir(parents=True, exist_ok=True)
            if _write_once(path / "manifest.json", json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"):
                return cls(path, manifest)
        run = cls.open(path)
        run.require_same(settings)
        return run

    @staticmethod
    def refuse_foreign(path: Path) -> None:
        """Refuse a place where a new run cannot go.

        Raises:
            InputError: a file, or a folder that holds something else.
        """
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; --output names a folder for the run")
        occupied = path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir())
        if occupied and not (path / "manifest.json").exists():  # another shard may have put it there just now
            raise InputError(f"{path} is not empty and not a run; choose another --output")

    def require_same(self, settings: dict[str, Any]) -> None:
        """Refuse to go on with settings that differ from the manifest's.

        Raises:
            InputError: with every field that differs, there and here.
        """
        there, here = _flat({name: self.manifest.get(name) for name in settings}), _flat(as_json(settings))
        ignored = {"input.path"}
        if there.get("engine.revision") is not None and there["engine.revision"] == here.get("engine.revision"):
            ignored.add("engine.model")  # the same model under another path
        names = [n for n in sorted(there.keys() | here.keys()) if there.get(n) != here.get(n) and n not in ignored]
        if names:
            listed = "; ".join(f"{name}: {there.get(name)!r} there, {here.get(name)!r} here" for name in names)
            raise InputError(f"{self.path} belongs to a run with other settings ({listed}); choose another --output")
        if self.manifest.get("cpmi") != __version__:
            logger.warning("%s was begun by cpmi %s, this is %s", self.path, self.manifest.get("cpmi"), __version__)

    def note_attempt(self, event: str, **fields: Any) -> None:
        """Append a line to ``attempts.jsonl``."""
        line = json.dumps({"event": event, "time": _now(), "pid": os.getpid(), **fields})
        path = self.path / "attempts.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def parts_done(self) -> tuple[int, int]:
        """How many parts are complete, and of how many."""
        return len(list(self.path.glob("part-*.done"))), int(self.manifest.get("shards", 1))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """One line for a file that cannot be written."""
    try:
        yield
    except OSError as error:
        raise CpmiError(
            f"{path}: cannot be written ({error.strerror}); what is labeled so far is kept: make room and run the same "
            "command again"
        ) from error


def lock_file(file: IO[str], path: Path) -> None:
    """Lock ``file`` until it is closed, so that one process at a time writes ``path``.

    Raises:
        InputError: another process holds it, or the file system has no locks.
    """
    import fcntl  # not on Windows, where runs can be read all the same

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{path}: another process is writing this part; wait for it or stop it") from error
    except OSError as error:
        raise InputError(f"{path}: this file system cannot lock files ({error.strerror})") from error


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def as_json(value: Any) -> Any:
    """The value as it is read back from JSON: tuples as lists."""
    return json.loads(json.dumps(value))


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested objects and lists as one level: ``{"settings.templates.0.cue": ...}``."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        flat: dict[str, Any] = {}
        for key, item in items:
            flat |= _flat(item, f"{name}.{key}" if name else str(key))
        return flat or {name: value}
    return {name: value}


def _write_once(path: Path, text: str) -> bool:
    """Write a file whole, unless it is there already; return whether it was written. Several may try at once."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with writing(path):
            partial.write_text(text, encoding="utf-8")
            _link(partial, path)
    except CpmiError as error:
        if isinstance(error.__cause__, FileExistsError):
            return False
        raise
    finally:
        partial.unlink(missing_ok=True)
    return True


def _link(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        partial.replace(path)  # a file system without hard links


# --- one part -------------------------------------------------------------------------------------------------------


class Part:
    """The part file of one shard, open for going on: knows what is there and appends to it; one process at a time."""

    def __init__(self, run: RunDirectory, shard: Shard, *, retry_errors: bool = False) -> None:
        """Lock and read the part.

        Args:
            retry_errors: take out the lines with an error, so that they are tried again.

        Raises:
            InputError: another process is writing this part, or a line in it is broken.
        """
        self.path = run.path / f"{shard.name}.jsonl"
        self.ids: set[str] = set()
        self.failed: set[str] = set()
        self._done_file = run.path / f"{shard.name}.done"
        with contextlib.ExitStack() as opened:
            lock_file(opened.enter_context((run.path / f"{shard.name}.lock").open("w")), self.path)
            kept = self._read(keep_errors=not retry_errors)
            if kept is not None:
                self._done_file.unlink(missing_ok=True)
                self._replace(kept)
            # Unbuffered: what a full disk refuses must not be written again when the file is closed.
            self._file = opened.enter_context(self.path.open("ab", buffering=0))
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    @property
    def is_done(self) -> bool:
        return self._done_file.exists()

    def _read(self, *, keep_errors: bool) -> list[bytes] | None:
        """Collect the ids that are there; the lines to keep, or None if that is all of them.

        A last line without its end was torn by a kill and is not kept.
        """
        if not self.path.exists():
            return None
        kept, all_good = [], True
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                record = self._record(line, number) if line.endswith(b"\n") else None
                if record is None or (record.error is not None and not keep_errors):
                    all_good = False
                    continue
                if record.trajectory_id in self.ids:
                    raise InputError(f"{self.path}:{number}: the id {record.trajectory_id!r} is there twice")
                kept.append(line)
                self.ids.add(record.trajectory_id)
                if record.error is not None:
                    self.failed.add(record.trajectory_id)
        return None if all_good else kept

    def _record(self, line: bytes, number: int) -> StepRewards:
        place = f"{self.path}:{number}"
        try:
            return from_json(StepRewards, parse_line(line, place))
        except InputError as error:
            text = str(error).removeprefix(f"{place}: ")
            raise InputError(f"{place}: {text}; remove this line and its trajectory is labeled again") from error

    def _replace(self, lines: Iterable[bytes]) -> None:
        partial = self.path.with_suffix(".partial")
        with writing(self.path):
            with partial.open("wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)

    def append(self, records: Iterable[StepRewards]) -> None:
        """Write whole lines, and return when they are on the disk.

        Raises:
            CpmiError: the disk is full or cannot be written; what was there before stays good.
        """
        records = list(records)
        data = "".join(dump_line(record) for record in records).encode()
        with writing(self.path):
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        self.ids.update(record.trajectory_id for record in records)
        self.failed.update(record.trajectory_id for record in records if record.error is not None)

    def mark_done(self) -> None:
        with writing(self._done_file):
            self._done_file.touch()


# --- running --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Progress:
    """How far a run is; counts of this attempt but for ``before``.

    Attributes:
        total: trajectories of this shard (within ``limit``).
        before: of these, how many an earlier attempt had done.
        failed_before: of those, how many ended in an error.
        rollouts: sampled so far, also for trajectories that are not done yet.
    """

    total: int
    before: int = 0
    failed_before: int = 0
    rewarded: int = 0
    failed: int = 0
    rollouts: int = 0
    cost: Cost = Cost()
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def done(self) -> int:
        return self.before + self.rewarded + self.failed

    def add(self, record: StepRewards) -> None:
        self.cost += record.cost
        if record.error is None:
            self.rewarded += 1
        else:
            self.failed += 1
            self.errors[record.error] += 1


def run_part(
    rewarder: StepRewarder,
    trajectories: Iterable[Trajectory],
    part: Part,
    shard: Shard,
    total: int,
    *,
    batch_size: int = 8,
    complete: bool = True,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Reward every trajectory of the shard that the part does not hold yet; ``batch_size`` at a time, then to disk.

    Args:
        total: how many trajectories of the shard will come, for progress.
        complete: these are all the trajectories of the shard, so that the part is marked as done in the end.
    """
    progress = Progress(total)

    def todo() -> Iterator[Trajectory]:
        for trajectory in trajectories:
            if not shard.holds(trajectory.id):
                continue
            if trajectory.id in part.ids:
                progress.before += 1
                progress.failed_before += trajectory.id in part.failed
            else:
                yield trajectory

    on_progress(progress)  # the clock starts here
    stream = todo()
    while batch := list(islice(stream, batch_size)):
        records = rewarder.rewards(batch)
        _check_answers(rewarder, batch, records)
        part.append(records)
        for record in records:
            progress.add(record)
        on_progress(progress)
    if complete:
        part.mark_done()
    return progress


def _check_answers(rewarder: StepRewarder, batch: list[Trajectory], records: list[StepRewards]) -> None:
    """A rewarder that mixes up trajectories or steps is a bug that must not reach the disk."""
    for trajectory, record in zip(batch, records, strict=True):
        wrong_length = record.error is None and len(record.rewards) != len(trajectory.steps)
        if record.trajectory_id != trajectory.id or wrong_length:
            raise CpmiError(f"{rewarder.name}: its rewards for {trajectory.id!r} do not fit that trajectory's steps")


@contextlib.contextmanager
def attempt(run: RunDirectory, shard: Shard | None = None) -> Iterator[dict[str, Any]]:
    """Note in ``attempts.jsonl`` when an attempt starts and how it ends; fill the dict with what to note at the end."""
    part = {} if shard is None else {"shard": shard.name}
    run.note_attempt("start", **part, cpmi=__version__, host=socket.gethostname(), python=platform.python_version())
    outcome: dict[str, Any] = {}
    try:
        yield outcome
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk must not hide the error that tells of it
            run.note_attempt("end", **part, stopped=type(error).__name__, reason=str(error), **outcome)
        raise
    run.note_attempt("end", **part, **outcome)
