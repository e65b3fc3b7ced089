"""The directory of a run over a file of trajectories: resumable, killable at any moment, in shards.

It holds

    manifest.json                 every setting, the digest of the input, the number of shards
    part-00003-of-00016.jsonl     a line of StepRewards per trajectory attempted, failures included
    part-00003-of-00016.sums      a digest per line of the part, so that a line that was changed is noticed
    part-00003-of-00016.broken    lines that were taken out because they were broken; nothing reads them
    part-00003-of-00016.done      empty; there when the part is complete
    part-00003-of-00016.lock      locked while a process writes the part
    rollouts-00003-of-00016.jsonl finished rollouts, for methods that have some (``cpmi.rollout_file``)
    attempts.jsonl                a line when an attempt starts and one when it ends

The manifest is the configuration. A part (``cpmi.parts``) goes on where it stopped: ids already there are skipped, a
last line torn by a kill is dropped, broken lines are set aside and their trajectories rewarded again. Other settings on
an old run are refused.
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cpmi import __version__
from cpmi.errors import CpmiError, InputError
from cpmi.storage import create, is_remote, location

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
