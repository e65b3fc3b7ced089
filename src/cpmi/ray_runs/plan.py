"""What a run is to do: the input cut into slices, which nodes read piece by piece, and the batches of each.

A slice says where its rows begin, which of them are wanted, and what its batches have to look like.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from cpmi.errors import InputError
from cpmi.records import StepRewards, Trajectory, dump_line, from_json, open_bytes, parse_line, read_trajectories
from cpmi.storage import is_remote

SLICE_BATCHES = 64
"""Batches in a slice of the input: what a read task reads, and reads again when its node is lost."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of the input file, as a read task gets it.

    Attributes:
        start: the byte where its first line begins; 0 for a file that is only to be read from its beginning.
        wanted: a bit for each of its rows.
        digests: of each batch of rows that are wanted, so that a stale copy of the file on another node is found out.
    """

    path: Path
    start: int
    wanted: bytes
    batch_size: int
    digests: tuple[bytes, ...]

    def batches(self) -> Iterator[bytes]:
        """Its batches, as JSON lines.

        Raises:
            InputError: no such file on this machine, or another one.
        """
        if not self.path.exists():
            raise InputError(
                f"{self.path}: no such file on the node {socket.gethostname()}; put the input where every node of the "
                "Ray cluster reads it under the same path"
            )
        bits = np.unpackbits(np.frombuffer(self.wanted, dtype=np.uint8)).tolist()
        rows = (t for (_, t), bit in zip(_rows(self.path, self.start), bits, strict=False) if bit)
        for digest in self.digests:
            batch = encoded(islice(rows, self.batch_size))
            if _digest(batch) != digest:
                raise InputError(
                    f"{self.path}: the node {socket.gethostname()} has another file of this name; give every node of "
                    "the Ray cluster the same one"
                )
            yield batch


@dataclass(slots=True)
class Plan:
    """What a run is to do.

    Attributes:
        pieces: with whatever is wanted of the file.
        batches, trajectories: how many there are in them.
        before, failed_before: how many of the shard's trajectories are there already, and failed.
    """

    pieces: list[Slice] = field(default_factory=list)
    batches: int = 0
    trajectories: int = 0
    before: int = 0
    failed_before: int = 0

    @classmethod
    def of(
        cls,
        path: Path,
        batch_size: int,
        *,
        holds: Callable[[str], bool],
        limit: int | None,
        labeled: Collection[str] = (),
        failed: Collection[str] = (),
    ) -> Plan:
        """Cut the file into slices.

        Args:
            holds: whether an id is in the shard.
            limit: the rows after so many are not wanted.
            labeled: ids that are there already.
            failed: of these, the ones that ended in an error.
        """
        plan = cls()
        path = path if is_remote(path) else path.resolve()
        cut_at = None if path.suffix in (".gz", ".parquet") else SLICE_BATCHES * batch_size
        cut = _Cut(path, batch_size)
        for start, trajectory in islice(_rows(path), limit):
            held = holds(trajectory.id)
            done = held and trajectory.id in labeled
            plan.before += done
            plan.failed_before += done and trajectory.id in failed
            cut.add(start, trajectory, wanted=held and not done)
            if len(cut) == cut_at:
                plan._take(cut)
                cut = _Cut(path, batch_size)
        plan._take(cut)
        return plan

    def _take(self, cut: _Cut) -> None:
        if len(cut):
            piece = cut.finished()
            self.pieces.append(piece)
            self.batches += len(piece.digests)
            self.trajectories += len(cut)


class _Cut:
    """A slice in the making; rows before the first one wanted are left out where the file can be read from there."""

    def __init__(self, path: Path, batch_size: int) -> None:
        self._path, self._batch_size = path, batch_size
        self._start = 0
        self._wanted: list[bool] = []
        self._count = 0
        self._batch: list[Trajectory] = []
        self._digests: list[bytes] = []

    def __len__(self) -> int:
        return self._count

    def add(self, start: int | None, trajectory: Trajectory, *, wanted: bool) -> None:
        if start is not None and not self._count:
            if not wanted:
                return
            self._start = start
        self._wanted.append(wanted)
        if wanted:
            self._count += 1
            self._batch.append(trajectory)
            if len(self._batch) == self._batch_size:
                self._close_batch()

    def _close_batch(self) -> None:
        self._digests.append(_digest(encoded(self._batch)))
        self._batch.clear()

    def finished(self) -> Slice:
        if self._batch:
            self._close_batch()
        wanted = np.packbits(np.array(self._wanted, dtype=np.bool_)).tobytes()
        return Slice(self._path, self._start, wanted, self._batch_size, tuple(self._digests))


def _rows(path: Path, start: int = 0) -> Iterator[tuple[int | None, Trajectory]]:
    """Trajectories and the byte where each begins; None in files that cannot be read from there."""
    if path.suffix in (".gz", ".parquet"):
        yield from ((None, trajectory) for trajectory in read_trajectories(path))
        return
    with open_bytes(path) as lines:
        lines.seek(start)
        for line in lines:
            if line.strip():
                yield start, from_json(Trajectory, parse_line(line, str(path)))
            start += len(line)


def encoded(records: Iterable[Trajectory | StepRewards]) -> bytes:
    return "".join(map(dump_line, records)).encode()


def _digest(batch: bytes) -> bytes:
    return hashlib.sha256(batch).digest()[:8]
