"""``cpmi verify`` as a function: what of a run is there, what is missing, and what is broken."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cpmi.errors import InputError
from cpmi.parts import part_lines, read_sums
from cpmi.records import StepRewards, Trajectory, from_json, parse_line, read_trajectories
from cpmi.rollout_file import rollout_lines
from cpmi.runs import RunDirectory, Shard
from cpmi.solutions import QUESTION_ID, attempt_from_json, run_folder
from cpmi.storage import grown, is_file, is_remote, location, noted

_KEPT = 20  # problems that are told in full; the others are counted
_NAMED = 5  # of the ids that are missing


@dataclass(frozen=True, slots=True)
class Verification:
    """What is known of a run on disk.

    Attributes:
        path: of the run.
        method: that made it.
        under_way: a process is writing to it now.
        total: how many trajectories (or questions) the run is about; None if the manifest does not say.
        rewarded, failed: how many have a good line, with rewards (or solutions) and with an error.
        missing: how many have none; ``first_missing``: the ids of some, where they are known.
        problems: what is broken, a line each, the first of them; ``problem_count``: of all.
        notes: what is worth knowing and not broken.
        advice: what to do; empty if there is nothing to do.
    """

    path: Path
    method: str
    under_way: bool
    total: int | None
    rewarded: int
    failed: int
    missing: int
    first_missing: tuple[str, ...]
    problems: tuple[str, ...]
    problem_count: int
    notes: tuple[str, ...]
    advice: str

    @property
    def is_sound(self) -> bool:
        """Whether everything is there, and nothing is broken."""
        return not self.missing and not self.problem_count and not self.under_way


def verify(path: Path, trajectories: Path | None = None) -> Verification:
    """Look at every line of a run; nothing is changed. In memory are the ids, and one line at a time.

    Args:
        path: what ``cpmi label`` or ``cpmi score`` wrote, or the file of candidates of ``cpmi solve``.
        trajectories: those of the run, if they are not where it found them.

    Raises:
        InputError: there is no run.
    """
    path = location(path)
    if run_folder(path).is_dir():
        return _verify_solutions(path)
    if not (path / "manifest.json").exists():
        raise InputError(f"{path}: not a run directory (no manifest.json), nor a file that cpmi solve wrote")
    found = _Findings(path)
    run = found.open(path)
    if run is not None:
        _check_run(found, run, trajectories)
        _check_attempts(found, path)
    return found.verification()


@dataclass(slots=True)
class _Findings:
    """What is found on the way; see ``Verification``."""

    path: Path
    method: str = "unknown"
    verb: str = "label"
    total: int | None = None
    under_way: bool = False
    rewarded: int = 0
    failed: int = 0
    missing: int = 0
    first_missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0
    by_hand: str = ""
    notes: list[str] = field(default_factory=list)

    def problem(self, text: str, *, by_hand: str = "") -> None:
        """Note what is broken, and what to do where the same command would not mend it."""
        self.problem_count += 1
        self.by_hand = self.by_hand or by_hand
        if len(self.problems) < _KEPT:
            self.problems.append(text)

    def open(self, folder: Path) -> RunDirectory | None:
        try:
            run = RunDirectory.open(folder)
        except InputError as error:
            self.problem(str(error), by_hand="restore manifest.json from a copy: nothing else says what this run is")
            return None
        self.method = str(run.manifest.get("method", "unknown"))
        self.verb = "score" if self.method == "prm" else "label"
        return run

    def verification(self) -> Verification:
        return Verification(
            self.path, self.method, self.under_way, self.total, self.rewarded, self.failed, self.missing,
            tuple(self.first_missing), tuple(self.problems), self.problem_count, tuple(self.notes), self._advice(),
        )  # fmt: skip

    def _advice(self) -> str:
        if self.by_hand:
            return self.by_hand
        if self.under_way:
            return "wait for the process that writes it" if self.missing or self.problem_count else ""
        if self.missing or self.problem_count:
            return f"run the same cpmi {self.verb} command again"
        return f"cpmi {self.verb} --retry-errors tries the failed ones again" if self.failed else ""


# --- runs of label and score ----------------------------------------------------------------------------------------


def _check_run(found: _Findings, run: RunDirectory, trajectories: Path | None) -> None:
    steps = _steps_by_id(found, run, trajectories)
    there: set[str] = set()
    count = run.manifest.get("shards", 1)
    if type(count) is not int or count < 1:
        found.problem(f"manifest.json: {count!r} is no number of parts", by_hand="restore manifest.json from a copy")
        return
    shards = [Shard(index, count) for index in range(count)]
    expected = {shard.name for shard in shards}
    for stray in sorted(path.name for path in run.path.glob("part-*.jsonl") if path.name.split(".")[0] not in expected):
        found.problem(f"{stray}: no part of this run of {count}", by_hand=f"move {stray} out of {run.path}")
    for shard in shards:
        _check_part(found, run, shard, steps, there)
    if steps is None:
        found.missing = max(0, (found.total or 0) - len(there))
        return
    for name in steps:
        if name not in there:
            found.missing += 1
            if len(found.first_missing) < _NAMED:
                found.first_missing.append(name)


def _steps_by_id(found: _Findings, run: RunDirectory, path: Path | None) -> dict[str, int] | None:
    """How many steps each trajectory has that the run is about; None if they are not there any more."""
    known = run.manifest.get("input")
    known = known if isinstance(known, dict) else {}
    total = known.get("trajectories")
    found.total = total if isinstance(total, int) else None
    path = noted(known.get("path", "")) if path is None else location(path)
    if not is_file(path):
        found.notes.append(f"the trajectories are no longer at {path}; name them with --trajectories to check more")
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != known.get("sha256"):
        found.notes.append(f"{path} has changed since the run began; checked without it")
        return None
    return {trajectory.id: len(trajectory.steps) for trajectory in read_trajectories(path)}


def _check_part(
    found: _Findings, run: RunDirectory, shard: Shard, steps: dict[str, int] | None, there: set[str]
) -> None:
    path = run.path / f"{shard.name}.jsonl"
    under_way = _is_locked(path.with_suffix(".lock"))  # asked first: what is finished meanwhile is seen as finished
    found.under_way |= under_way
    done = path.with_suffix(".done").exists()
    before = len(there)
    files = grown(path)
    for file in files:
        _check_lines(found, file, shard, steps, there, under_way=under_way)
    if done and steps is not None and sum(map(shard.holds, steps)) > len(there) - before:
        found.problem(f"{path.name}: marked as done, and not all of its trajectories are there")
    elif not done and not under_way:
        found.problem(f"{path.name}: {'not finished' if files else 'not begun'}")
    if files and not is_remote(path) and read_sums(path) is None:
        found.notes.append(f"{path.name}: has no digests, so that a line that was changed cannot be told")
    rollouts = run.path / f"rollouts-{path.name.removeprefix('part-')}"
    for file in grown(rollouts):
        _check_rollouts(found, file, is_needed=not done, under_way=under_way)
    for stem in (path.stem, rollouts.stem):
        for aside in sorted(run.path.glob(f"{stem}*.broken")):
            with aside.open("rb") as lines:
                found.notes.append(f"{aside.name}: {_counted(sum(1 for _ in lines))}, set aside by an earlier repair")


def _check_lines(
    found: _Findings, path: Path, shard: Shard, steps: dict[str, int] | None, there: set[str], *, under_way: bool
) -> None:
    """The lines of one file of a part. An id of another part is a problem there, so that no id can be in two."""
    for line in part_lines(path, shard, there):  # in a store a part is several files
        place = f"{path.name}, line {line.number}"
        record = line.record
        if record is None:
            if line.problem or not under_way:
                found.problem(f"{place}: {line.problem or 'torn by a kill'}")
        elif wrong := _misfit(record, steps):
            by_hand = f"remove {place}, then run the same cpmi {found.verb} command again"
            found.problem(f"{place}: {wrong}", by_hand=by_hand)
        else:
            there.add(record.trajectory_id)
            found.rewarded += record.error is None
            found.failed += record.error is not None


def _misfit(record: StepRewards, steps: dict[str, int] | None) -> str:
    """Why a record is none of these trajectories; empty if it is one."""
    name = record.trajectory_id
    if steps is None:
        return ""
    if name not in steps:
        return f"the trajectories have no {name!r}"
    if record.error is None and len(record.rewards) != steps[name]:
        return f"{len(record.rewards)} rewards for the {steps[name]} steps of {name!r}"
    return ""


def _counted(broken: int) -> str:
    return "1 broken line" if broken == 1 else f"{broken} broken lines"


def _check_rollouts(found: _Findings, path: Path, *, is_needed: bool, under_way: bool) -> None:
    for number, data, row in rollout_lines(path):
        if not isinstance(row, str) or (under_way and not data.endswith(b"\n")):
            continue
        text = f"{path.name}, line {number}: {row}"
        if is_needed:
            found.problem(text)
        else:
            found.notes.append(f"{text}; its part is done and does not need it")


def _check_attempts(found: _Findings, folder: Path) -> None:
    """How the last attempt ended. The file is a diary: nothing depends on it, so a broken line is a note."""
    path = folder / "attempts.jsonl"
    last: dict[str, Any] = {}
    began, broken = "", 0
    for row in _rows(path):
        if not isinstance(row, dict) or row.get("event") not in ("start", "end"):
            broken += 1
            continue
        last = row
        began = str(row.get("time")) if row["event"] == "start" else began
    if broken:
        found.notes.append(f"{path.name}: {_counted(broken)}; nothing depends on that")
    if not last or found.under_way:
        return
    if last["event"] == "start":
        found.notes.append(f"the last attempt, of {began}, has no end: it was killed")
    elif "stopped" in last:
        reason = f" ({last['reason']})" if last.get("reason") else ""
        found.notes.append(f"the last attempt, of {began}, was stopped by {last['stopped']}{reason}")


def _rows(path: Path) -> Iterator[Any]:
    """The values of the lines of a file; None for a broken one."""
    for file in grown(path):
        with file.open("rb") as lines:
            for line in lines:
                try:
                    yield parse_line(line, "")
                except InputError:
                    yield None


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock. It is asked by taking it for a moment, beside others who ask."""
    if not path.exists():
        return False
    if is_remote(path):
        return _is_leased(path)
    import fcntl  # not on Windows, where runs can be read all the same

    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False  # no locks on this file system, so nobody holds one
    return False


def _is_leased(path: Path) -> bool:
    """Whether a holder's time has not run out; see ``storage.Lease``."""
    try:
        until = json.loads(path.read_bytes())["until"]
        return isinstance(until, int | float) and until > time.time()
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # let go just now, or torn
        return False


# --- candidates of solve --------------------------------------------------------------------------------------------


def _verify_solutions(path: Path) -> Verification:
    """A question is done when its line is there, and as many candidates as it says."""
    folder = run_folder(path)
    found = _Findings(path)
    run = found.open(folder)
    if run is None:
        return found.verification()
    found.verb = "solve"
    found.under_way = _is_locked(folder / "lock")
    known = run.manifest.get("input")
    total = known.get("questions") if isinstance(known, dict) else None
    found.total = total if isinstance(total, int) else None
    candidates: Counter[str] = Counter()
    ids: set[str] = set()
    for place, row in _solution_lines(found, path):
        with _naming(found, place):
            candidate = from_json(Trajectory, row)
            if candidate.id in ids:
                raise InputError(f"the id {candidate.id!r} is there twice")
            ids.add(candidate.id)
            candidates[candidate.tags.get(QUESTION_ID, "")] += 1
    for place, row in _solution_lines(found, folder / "rewards.jsonl"):
        with _naming(found, place):
            from_json(StepRewards, row)
    _check_questions(found, folder / "questions.jsonl", candidates)
    _check_attempts(found, folder)
    return found.verification()


def _check_questions(found: _Findings, path: Path, candidates: Counter[str]) -> None:
    done: set[str] = set()
    for place, row in _solution_lines(found, path):
        with _naming(found, place):
            attempt = attempt_from_json(row)
            if attempt.id in done:
                raise InputError(f"the question {attempt.id!r} is there twice")
            done.add(attempt.id)
            if candidates[attempt.id] != attempt.candidates:
                found.missing += 1
                found.first_missing = [*found.first_missing, attempt.id][:_NAMED]
            elif attempt.error is None:
                found.rewarded += 1
            else:
                found.failed += 1
    found.missing += max(0, (found.total or 0) - len(done))
    if not found.under_way and (cut := sum(candidates[name] for name in candidates if name not in done)):
        found.problem(f"{found.path.name}: {cut} candidates of questions that are not done, left by a kill")


def _solution_lines(found: _Findings, path: Path) -> Iterator[tuple[str, Any]]:
    """The lines of a file and their places; broken ones are noted."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{path.name}, line {number}"
            if line.endswith(b"\n"):
                row = None
                with _naming(found, place):
                    row = parse_line(line, "")
                if row is not None:
                    yield place, row
            elif not found.under_way:
                found.problem(f"{place}: torn by a kill")


@contextlib.contextmanager
def _naming(found: _Findings, place: str) -> Iterator[None]:
    """Note what is wrong with a line of candidates. ``cpmi solve`` asks a question again if its line is taken out."""
    try:
        yield
    except InputError as error:
        problem = str(error).removeprefix(": ").removesuffix("; mend or remove this line")
        found.problem(f"{place}: {problem}", by_hand=f"remove {place}, then run the same cpmi solve command again")


def as_json(verification: Verification) -> dict[str, Any]:
    """The verification as a JSON object."""
    return {**asdict(verification), "path": str(verification.path), "sound": verification.is_sound}
