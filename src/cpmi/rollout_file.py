"""Finished rollouts on disk, beside the part of a run they belong to.

    rollouts-00003-of-00016.jsonl     a line per prefix: who sampled, trajectory, prefix length, completions, cost, and
                                      a digest of all this
    rollouts-00003-of-00016.broken    lines that were taken out because they were broken; nothing reads them

They are written as the engine gives them, so a killed run loses only what was being sampled. When the part is complete
nothing reads them any more: they are there for whoever wants to look, and can be deleted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cpmi.errors import InputError
from cpmi.parts import drop_lines, line_sum, set_aside
from cpmi.protocols import Completion, Sampled
from cpmi.records import Cost, parse_line
from cpmi.runs import RunDirectory, Shard, as_json, writing
from cpmi.storage import Growing, grown, location, uncovered

logger = logging.getLogger("cpmi")

_Key = tuple[str, str, int]
_SUM = b', "sum": "'  # JSON escapes the quotes of a text, so that this stands in no completion


class RolloutFile:
    """A ``RolloutStore`` in a file; it keeps in memory only what belongs to trajectories that are not labeled yet."""

    def __init__(self, on_put: Callable[[int], None] = lambda _: None) -> None:
        """Closed; see ``opened``.

        Args:
            on_put: called with the number of rollouts whenever some are kept.
        """
        self._on_put = on_put
        self._path: Path | None = None
        self._file: Growing | None = None
        self._known: dict[_Key, Sampled] = {}

    @contextmanager
    def opened(
        self, run: RunDirectory, shard: Shard, labeled: Collection[str], taken_from: Path | None = None
    ) -> Iterator[None]:
        """Read what is there and append to it; broken lines are set aside. The part's lock must be held.

        Args:
            labeled: ids of trajectories whose rollouts are not needed any more.
            taken_from: another run of the same policy, whose rollouts are as good as this one's; see
                ``require_same_policy``.
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
        body = json.dumps(row).encode()[:-1]  # ASCII: a model may say half of a surrogate pair
        data = body + _SUM + line_sum(body) + b'"}\n'
        with writing(self._path):
            if self._file is None:
                self._file = Growing(self._path)
            self._file.add(data, hold_back=True)
        self._on_put(len(sampled.completions))

    def _take_from(self, other: Path, labeled: Collection[str]) -> None:
        """Take the policy's rollouts of another run; each keeps the cost it had."""
        for file in uncovered(location(other).glob("rollouts-*-of-*.jsonl")):
            broken = 0
            for _, line, found in rollout_lines(file):
                if isinstance(found, str):
                    broken += line.endswith(b"\n")
                elif found[0][0] == "policy" and found[0][1] not in labeled:
                    self._known[found[0]] = found[1]
            if broken:
                logger.warning("%s: lines that are broken and not taken: %d; what they held is sampled", file, broken)

    # --- reading ----------------------------------------------------------------------------------------------------

    def _read(self, labeled: Collection[str]) -> None:
        """Take up what earlier attempts finished; broken lines and a last line torn by a kill are taken out."""
        assert self._path is not None  # noqa: S101
        for file in grown(self._path):
            self._read_file(file, labeled)

    def _read_file(self, file: Path, labeled: Collection[str]) -> None:
        dropped: set[int] = set()
        broken: dict[int, str] = {}
        for number, line, found in rollout_lines(file):
            if isinstance(found, str):
                dropped.add(number)
                if line.endswith(b"\n"):
                    broken[number] = found
            elif found[0][1] not in labeled:
                self._known[found[0]] = found[1]
        if broken:
            set_aside(file, broken, "what they held is sampled again")
        if dropped:
            drop_lines(file, dropped)


def rollout_lines(path: Path) -> Iterator[tuple[int, bytes, tuple[_Key, Sampled] | str]]:
    """The lines of a file of rollouts: number, bytes, and what it holds or, as a text, what is wrong with it.

    A last line without its end is in the making, or was torn by a kill.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            yield number, line, _parse(line) if line.endswith(b"\n") else "torn"


def _parse(line: bytes) -> tuple[_Key, Sampled] | str:
    body, has_sum, rest = line.rpartition(_SUM)  # an older version wrote none
    if has_sum and rest != line_sum(body) + b'"}\n':
        return "not as it was written"
    try:
        row: Any = parse_line(line, "")
        completions = tuple(Completion(**each) for each in row["completions"])
        key = (row["role"], row["trajectory_id"], row["prefix"])
        if tuple(map(type, key)) != (str, str, int):
            return "no line of rollouts"
        return key, Sampled(completions, Cost(**row["cost"]))
    except (KeyError, TypeError, InputError) as error:
        problem = str(error).removeprefix(": ").removesuffix("; mend or remove this line")
        return f"no line of rollouts ({problem})"


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
