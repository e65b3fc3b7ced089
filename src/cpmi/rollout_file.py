"""Finished rollouts on disk, beside the part of a run they belong to.

    rollouts-00003-of-00016.jsonl     a line per prefix: who sampled, trajectory, prefix length, completions, cost

They are written as the engine gives them, so a killed run loses only what was being sampled. When the part is complete
nothing reads them any more: they are there for whoever wants to look, and can be deleted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from cpmi.errors import InputError
from cpmi.protocols import Completion, Sampled
from cpmi.records import Cost, parse_line
from cpmi.runs import RunDirectory, Shard, as_json, writing

_Key = tuple[str, str, int]


class RolloutFile:
    """A ``RolloutStore`` in a file; it keeps in memory only what belongs to trajectories that are not labeled yet."""

    def __init__(self, on_put: Callable[[int], None] = lambda _: None) -> None:
        """Closed; see ``opened``.

        Args:
            on_put: called with the number of rollouts whenever some are kept.
        """
        self._on_put = on_put
        self._path: Path | None = None
        self._file: IO[bytes] | None = None
        self._known: dict[_Key, Sampled] = {}

    @contextmanager
    def opened(
        self, run: RunDirectory, shard: Shard, labeled: Collection[str], taken_from: Path | None = None
    ) -> Iterator[None]:
        """Read what is there and append to it; the part's lock must be held.

        Args:
            labeled: ids of trajectories whose rollouts are not needed any more.
            taken_from: another run of the same policy, whose rollouts are as good as this one's; see
                ``require_same_policy``.

        Raises:
            InputError: a broken line.
        """
        if taken_from is not None:
            self._take_from(taken_from, labeled)
        self._path = run.path / f"rollouts-{shard.index:05d}-of-{shard.count:05d}.jsonl"
        self._read(labeled)
        try:
            yield
        finally:
            if self._file is not None:
                self._file.close()
            self._file, self._known = None, {}

    def get(self, role: str, trajectory_id: str, prefix: int) -> Sampled | None:
        """See ``RolloutStore.get``."""
        return self._known.get((role, trajectory_id, prefix))

    def put(self, role: str, trajectory_id: str, prefix: int, sampled: Sampled) -> None:
        """See ``RolloutStore.put``.

        Raises:
            CpmiError: the disk is full or cannot be written.
        """
        assert self._path is not None, "used outside opened()"  # noqa: S101
        row = {"role": role, "trajectory_id": trajectory_id, "prefix": prefix}
        row |= {"completions": [asdict(each) for each in sampled.completions], "cost": asdict(sampled.cost)}
        data = (json.dumps(row) + "\n").encode()  # ASCII: a model may say half of a surrogate pair
        with writing(self._path):
            if self._file is None:
                self._file = self._path.open("ab", buffering=0)
            while data:
                data = data[self._file.write(data) :]
        self._on_put(len(sampled.completions))

    def _take_from(self, other: Path, labeled: Collection[str]) -> None:
        """Take the policy's rollouts of another run; each keeps the cost it had."""
        for file in sorted(other.glob("rollouts-*-of-*.jsonl")):
            with file.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.endswith(b"\n"):
                        key, sampled = _parse(line, f"{file}:{number}")
                        if key[0] == "policy" and key[1] not in labeled:
                            self._known[key] = sampled

    # --- reading ----------------------------------------------------------------------------------------------------

    def _read(self, labeled: Collection[str]) -> None:
        """Take up what earlier attempts finished; a last line torn by a kill is cut off."""
        assert self._path is not None  # noqa: S101
        if not self._path.exists():
            return
        whole = 0
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                key, sampled = _parse(line, f"{self._path}:{number}")
                if key[1] not in labeled:
                    self._known[key] = sampled
        if whole < self._path.stat().st_size:
            with writing(self._path), self._path.open("r+b") as file:
                file.truncate(whole)


def _parse(line: bytes, place: str) -> tuple[_Key, Sampled]:
    try:
        row: Any = parse_line(line, place)
        completions = tuple(Completion(**each) for each in row["completions"])
        return (row["role"], row["trajectory_id"], row["prefix"]), Sampled(completions, Cost(**row["cost"]))
    except (KeyError, TypeError, InputError) as error:
        text = str(error).removeprefix(f"{place}: ")
        raise InputError(f"{place}: no line of rollouts ({text}); remove it and they are sampled again") from error


def require_same_policy(other: RunDirectory, manifest: Mapping[str, Any]) -> None:
    """Refuse rollouts of another model, made by other settings, or of other trajectories.

    Args:
        manifest: of the run that would take them.

    Raises:
        InputError: naming what differs.
    """
    for name in ("engine", "settings.rollouts", "input.sha256"):
        there, here = _field(other.manifest, name), _field(as_json(manifest), name)
        if there is None or there != here:
            raise InputError(f"{other.path}: its rollouts cannot be taken, its {name} is {there!r} and here {here!r}")


def _field(manifest: Any, name: str) -> Any:
    for part in name.split("."):
        manifest = manifest.get(part) if isinstance(manifest, dict) else None
    return manifest
