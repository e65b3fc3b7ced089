"""Any ``StepRewarder`` over a file of trajectories: resumable, killable at any moment, in shards.

A run directory holds

    manifest.json                 every setting, the digest of the input, the number of shards
    part-00003-of-00016.jsonl     a line of StepRewards per trajectory attempted, failures included
    part-00003-of-00016.sums      a digest per line of the part, so that a line that was changed is noticed
    part-00003-of-00016.broken    lines that were taken out because they were broken; nothing reads them
    part-00003-of-00016.done      empty; there when the part is complete
    part-00003-of-00016.lock      locked while a process writes the part
    rollouts-00003-of-00016.jsonl finished rollouts, for methods that have some (``cpmi.rollout_file``)
    attempts.jsonl                a line when an attempt starts and one when it ends

The manifest is the configuration. A part goes on where it stopped: ids already there are skipped, a last line torn by
a kill is dropped, broken lines are set aside and their trajectories rewarded again, and other settings on an old run
are refused.
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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from cpmi import __version__
from cpmi.errors import CpmiError, InputError
from cpmi.protocols import StepRewarder
from cpmi.records import Cost, StepRewards, Trajectory, dump_line, from_json, parse_line
from cpmi.storage import Growing, Lease, create, grown, is_remote, location

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
        self.path = location(path)
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run.

        Raises:
            InputError: no run there, or a manifest that cannot be read.
        """
        path = location(path)
        file = path / "manifest.json"
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: not a run directory (no readable manifest.json)") from error
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested too deep, too many digits
            raise InputError(f"{file}: broken ({error}); restore it from a copy, or use another --output") from error
        shards = manifest.get("shards", 1) if isinstance(manifest, dict) else None
        whole = isinstance(shards, int) and not isinstance(shards, bool) and shards >= 1
        if not whole or manifest.get("format") != FORMAT:
            raise InputError(f"{file}: not a manifest that this version of cpmi ({__version__}) can read")
        return cls(path, manifest)

    @classmethod
    def create_or_resume(cls, path: Path, settings: dict[str, Any]) -> RunDirectory:
        """A new run with these settings, or the one already there if its settings are the same.

        Raises:
            InputError: another run is there (with the fields that differ), or files that are not a run.
        """
        path = location(path)
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
        line = json.dumps({"event": event, "time": _now(), "pid": os.getpid(), **fields}) + "\n"
        path = self.path / "attempts.jsonl"
        if is_remote(path):
            create(path.with_name(f"attempt-{_now()}-{uuid.uuid4().hex[:8]}.jsonl"), line.encode())
            return
        with writing(path), path.open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # torn by a kill
                    line = "\n" + line
            file.write(line.encode())

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
    if is_remote(path):
        return create(path, text.encode())
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


@dataclass(frozen=True, slots=True)
class PartLine:
    """A line of a part file.

    Attributes:
        number: from 1.
        data: its bytes.
        record: what it says, if it is good.
        problem: else what is wrong with it; empty for a last line without its end, which is in the making or was torn
            by a kill.
    """

    number: int
    data: bytes
    record: StepRewards | None = None
    problem: str = ""


def part_lines(path: Path, shard: Shard, others: Collection[str] = frozenset()) -> Iterator[PartLine]:
    """The lines of a part, good and broken ones.

    Args:
        others: ids that are in other files of the same part.
    """
    sums = read_sums(path)
    seen: set[str] = set()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                yield PartLine(number, line)
                return
            place = f"{path}:{number}"
            try:
                record = from_json(StepRewards, parse_line(line, place))
            except InputError as error:
                problem = str(error).removeprefix(f"{place}: ").removesuffix("; mend or remove this line")
                yield PartLine(number, line, problem=problem)
                continue
            name = record.trajectory_id
            if sums is not None and line_sum(line) not in sums:
                yield PartLine(number, line, problem="not as it was written")
            elif name in seen or name in others:
                yield PartLine(number, line, problem=f"the id {name!r} is there twice")
            elif not shard.holds(name):
                yield PartLine(number, line, problem=f"the id {name!r} belongs to another part")
            else:
                seen.add(name)
                yield PartLine(number, line, record)


def line_sum(line: bytes) -> bytes:
    """The digest of a line: 16 hexadecimal digits."""
    return hashlib.sha256(line).hexdigest()[:16].encode()


def read_sums(part: Path) -> set[bytes] | None:
    """The digests of the lines that were written to a part; None where there are none to compare with."""
    path = part.with_suffix(".sums")
    if is_remote(path) or not path.exists():
        return None
    content = path.read_bytes()
    # Without the last end a kill came between; what it left is no digest.
    return set(content.split(b"\n")[:-1])


def set_aside(path: Path, broken: Mapping[int, str], consequence: str) -> None:
    """Copy broken lines to the end of the file's ``.broken``, and warn of them.

    Args:
        broken: their numbers and what is wrong with them.
        consequence: what becomes of what they held.
    """
    aside = path.with_suffix(".broken")
    with writing(aside), path.open("rb") as lines:
        taken = b"".join(line for number, line in enumerate(lines, start=1) if number in broken)
        with contextlib.closing(Growing(aside)) as file:
            file.add(taken)
    listed = [f"line {number}: {problem}" for number, problem in islice(broken.items(), 3)]
    more = ["..."] if len(broken) > len(listed) else []
    count = "1 broken line" if len(broken) == 1 else f"{len(broken)} broken lines"
    logger.warning("%s: %s moved to %s (%s); %s", path, count, aside.name, "; ".join(listed + more), consequence)


def drop_lines(path: Path, numbers: Collection[int]) -> None:
    """Take lines out of a file; it is rewritten whole or not at all.

    Raises:
        CpmiError: the disk is full or cannot be written; the file is as it was.
    """
    with path.open("rb") as lines:
        replace_lines(path, (line for number, line in enumerate(lines, start=1) if number not in numbers))


def replace_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Make these the lines of a file, whole or not at all; its lock must be held.

    Raises:
        CpmiError: the disk is full or cannot be written; the file is as it was.
    """
    if is_remote(path):
        path.write_bytes(b"".join(lines))
        return
    partial = path.with_suffix(".partial")
    with writing(path):
        try:
            with partial.open("wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


class Part:
    """The part file of one shard, open for going on: knows what is there and appends to it; one process at a time."""

    def __init__(self, run: RunDirectory, shard: Shard, *, retry_errors: bool = False) -> None:
        """Lock, read and repair the part: broken lines are set aside, with a warning.

        Args:
            retry_errors: take out the lines with an error, so that they are tried again.

        Raises:
            InputError: another process is writing this part.
            CpmiError: the disk is full or cannot be written.
        """
        self.path = run.path / f"{shard.name}.jsonl"
        self.ids: set[str] = set()
        self.failed: set[str] = set()
        self._done_file = run.path / f"{shard.name}.done"
        with contextlib.ExitStack() as opened:
            lock = run.path / f"{shard.name}.lock"
            self._lease = opened.enter_context(Lease(lock, self.path)) if is_remote(lock) else None
            if self._lease is None:
                lock_file(opened.enter_context(lock.open("w")), self.path)
            for file in grown(self.path):
                self._take_up(file, shard, keep_errors=not retry_errors)
            self._sums: Growing | None = None
            if not is_remote(self.path):  # stores have checksums of their own
                self._mend_sums()
                self._sums = opened.enter_context(contextlib.closing(Growing(self.path.with_suffix(".sums"))))
            self._file = opened.enter_context(contextlib.closing(Growing(self.path)))
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

    def _take_up(self, file: Path, shard: Shard, *, keep_errors: bool) -> None:
        """Collect the ids that are there, and take out the lines that cannot stay."""
        dropped: set[int] = set()
        broken: dict[int, str] = {}
        for line in part_lines(file, shard, self.ids):
            if line.record is None or (line.record.error is not None and not keep_errors):
                dropped.add(line.number)
                if line.problem:
                    broken[line.number] = line.problem
                continue
            self.ids.add(line.record.trajectory_id)
            if line.record.error is not None:
                self.failed.add(line.record.trajectory_id)
        if dropped:
            self._done_file.unlink(missing_ok=True)  # first: a kill in between must not leave it
        if broken:
            set_aside(file, broken, "whatever is missing now is labeled again")
        if dropped:
            drop_lines(file, dropped)

    def _mend_sums(self) -> None:
        """Digests for a part that has none (an older version wrote it) or whose last one was torn."""
        path = self.path.with_suffix(".sums")
        if path.exists() and path.read_bytes()[-1:] in (b"", b"\n"):
            return
        with contextlib.ExitStack() as opened:
            lines = opened.enter_context(self.path.open("rb")) if self.path.exists() else ()
            replace_lines(path, (line_sum(line) + b"\n" for line in lines))

    def append(self, records: Iterable[StepRewards]) -> None:
        """Write whole lines, and return when they are on the disk.

        Raises:
            CpmiError: the disk is full or cannot be written; what was there before stays good.
        """
        records = list(records)
        lines = [dump_line(record).encode() for record in records]
        if self._lease is not None:
            self._lease.check()
        with writing(self.path):
            self._done_file.unlink(missing_ok=True)  # lines may have been taken out by hand
            # Digests first: one without its line does no harm, a line without its digest would count as broken.
            if self._sums is not None:
                self._sums.add(b"".join(line_sum(line) + b"\n" for line in lines))
            self._file.add(b"".join(lines))
        self.ids.update(record.trajectory_id for record in records)
        self.failed.update(record.trajectory_id for record in records if record.error is not None)

    def mark_done(self) -> None:
        with writing(self._done_file):
            self._done_file.write_bytes(b"")


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

    def finished() -> Iterator[list[StepRewards]]:
        stream = todo()
        while batch := list(islice(stream, batch_size)):
            records = rewarder.rewards(batch)
            check_answers(rewarder, batch, records)
            yield records

    write_part(finished(), part, progress, complete=complete, on_progress=on_progress)
    return progress


def write_part(
    batches: Iterable[list[StepRewards]],
    part: Part,
    progress: Progress,
    *,
    complete: bool = True,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Take finished batches to disk as they come, wherever they were computed.

    Args:
        progress: is kept up to date.
        complete: with them all trajectories of the shard are there, so that the part is marked as done in the end.
    """
    on_progress(progress)  # the clock starts here
    for records in batches:
        part.append(records)
        for record in records:
            progress.add(record)
        on_progress(progress)
    if complete:
        part.mark_done()


def check_answers(rewarder: StepRewarder, batch: list[Trajectory], records: list[StepRewards]) -> None:
    """A rewarder that mixes up trajectories or steps is a bug that must not reach the disk.

    Raises:
        CpmiError: it does.
    """
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
