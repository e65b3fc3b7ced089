"""Part files: their lines and the digests of these, the repair of broken ones, and a part open for writing."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from cpmi.errors import InputError
from cpmi.records import StepRewards, dump_line, from_json, parse_line
from cpmi.runs import RunDirectory, Shard, lock_file, writing
from cpmi.storage import Growing, Lease, grown, is_remote

logger = logging.getLogger("cpmi")


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
