"""Where files lie: on a disk, or in a store that fsspec reaches (``s3://``, ``gs://``, ``hf://``...).

A store holds objects. Each is written whole and cannot be appended to; there are no locks and no folders. So what a
run appends to on a disk is, in a store, a row of objects (``Segments``), and what it locks on a disk is an object with
a date (``Lease``).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self, cast

from cpmi.errors import CpmiError, InputError, require

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}(?!/)")  # of two letters or more: C:/ is a disk of Windows


def location(path: str | os.PathLike[str]) -> Path:
    """The path; for a URL one that works like it (a ``upath.UPath``, which offers what the code uses of ``Path``).

    ``Path("s3://bucket/x")`` makes ``s3:/bucket/x`` of it; that is understood too.

    Raises:
        InputError: a package that reaches such stores is not installed, or there are no such stores.
    """
    if is_remote(path):
        return cast(Path, path)
    text = os.fspath(path)
    match = _URL.match(text)
    if match is None:
        return Path(path)
    protocol, rest = match[1], text[match.end() :]
    upath = require("upath", "remote")
    try:
        return cast(Path, upath.UPath(f"{protocol}://{rest}"))
    except ImportError as error:  # fsspec's text names the package
        raise InputError(f"{protocol}://{rest}: {error}") from error
    except ValueError as error:
        raise InputError(f"{protocol}://{rest}: no way to reach a store {protocol}://") from error


def is_remote(path: object) -> bool:
    """Whether ``location`` has made a path of a URL."""
    upath = sys.modules.get("upath")
    return upath is not None and isinstance(path, upath.UPath) and not isinstance(path, os.PathLike)


def noted(text: object) -> Path:
    """A place that a manifest names; it may be in a store that cannot be reached from here."""
    try:
        return location(str(text))
    except InputError:
        return Path(str(text))


def is_file(path: Path) -> bool:
    """Whether a file is there and can be reached."""
    try:
        return path.is_file()
    except store_errors():  # also a name that is too long, or a folder that cannot be looked into
        return False


def store_errors() -> tuple[type[Exception], ...]:
    """What stores raise, of the packages that are loaded: no file, no credentials, no answer..."""
    names = {"botocore.exceptions": ("BotoCoreError", "ClientError"), "aiohttp": ("ClientError",)}
    found = [getattr(sys.modules[module], name) for module in names if module in sys.modules for name in names[module]]
    return (OSError, *found)


def create(path: Path, data: bytes) -> bool:
    """Write an object, unless it is there already; return whether it was written. Several may try at once."""
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    except (ValueError, NotImplementedError):  # a store that cannot tell
        if path.exists():
            return False
        path.write_bytes(data)
    return True


@contextlib.contextmanager
def uploading(path: Path) -> Iterator[Path]:
    """A file on the disk to write, which becomes the object when all went well."""
    with tempfile.TemporaryDirectory() as folder:
        partial = Path(folder) / path.name
        yield partial
        with partial.open("rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)


# --- what grows -----------------------------------------------------------------------------------------------------

MERGED = 32
"""So many segments of one size are merged into one: a store is slow by the object."""


class Segments:
    """What would be a file that grows, as objects: ``part-00000-of-00001.00000007-00000007.jsonl``.

    Each ``append`` is an object. Of one size, 32 are merged into one, whose name covers theirs; what another name
    covers is not read, so that a merge may be killed at any moment.
    """

    def __init__(self, path: Path) -> None:
        """Take up what is there.

        Args:
            path: of the file that it would be.
        """
        self._path = path
        self._next = 1 + max((_span(file)[1] for file in self.files()), default=-1)

    def files(self) -> list[Path]:
        """The objects to read, in order."""
        return uncovered(self._path.parent.glob(f"{self._path.stem}.*-*{self._path.suffix}"))

    def append(self, data: bytes) -> None:
        """Write an object, and return when the store has it.

        Raises:
            CpmiError: another process has written it.
        """
        if not create(self._named(self._next, self._next), data):
            raise CpmiError(f"{self._path}: another process writes here too; stop one of them, and start again")
        self._next += 1
        if self._next % MERGED == 0:
            self._merge()

    def _named(self, first: int, last: int) -> Path:
        return self._path.with_name(f"{self._path.stem}.{first:08d}-{last:08d}{self._path.suffix}")

    def _merge(self) -> None:
        """Merge as odometers turn: 32 objects into one, 32 of those into one of the next size."""
        size = MERGED
        while self._next % size == 0:
            files = [file for file in self.files() if _span(file)[0] >= self._next - size]
            # On the disk first: an object that was left half written would cover what it does not hold.
            with uploading(self._named(self._next - size, self._next - 1)) as whole, whole.open("wb") as merged:
                for file in files:
                    with file.open("rb") as source:
                        shutil.copyfileobj(source, merged)
            for file in files:
                file.unlink()
            size *= MERGED


_SPAN = re.compile(r"\.(\d{8})-(\d{8})\.[a-z]+$")


def _span(file: Path) -> tuple[int, int]:
    match = _SPAN.search(file.name)
    assert match is not None, file  # noqa: S101 - of files that were found by such a name
    return int(match[1]), int(match[2])


def uncovered(files: Iterable[Path]) -> list[Path]:
    """Segments without those that were merged into another one, and other files as they are; by name."""
    found = sorted(files, key=lambda file: file.name)
    kept: list[Path] = []
    covered: dict[str, int] = {}  # of each row of segments, how far it is read
    # Of those that begin alike the widest comes last by name, and is to be looked at first.
    for file in sorted(found, key=_widest_first):
        if match := _SPAN.search(file.name):
            row = file.name[: match.start()]
            if int(match[2]) <= covered.get(row, -1):
                continue
            covered[row] = int(match[2])
        kept.append(file)
    return kept


def _widest_first(file: Path) -> tuple[str, int, int]:
    match = _SPAN.search(file.name)
    return (file.name[: match.start()], int(match[1]), -int(match[2])) if match else (file.name, -1, 0)


class Growing:
    """A file to add bytes to, or its row of segments, which gets what was added when it is synced."""

    def __init__(self, path: Path) -> None:
        self._segments = Segments(path) if is_remote(path) else None
        # Unbuffered: what a full disk refuses must not be written again when the file is closed.
        self._file = None if is_remote(path) else path.open("ab", buffering=0)
        self._waiting: list[bytes] = []
        self._since = time.monotonic()

    def add(self, data: bytes, *, hold_back: bool = False) -> None:
        """Add bytes; they are on the disk, or in the store, when this returns.

        Args:
            hold_back: they need not be: a crash may lose what a disk has not written, or what a store, slow by the
                object, was not given in the last seconds.

        Raises:
            OSError: they cannot be written.
            CpmiError: another process writes there.
        """
        if self._file is not None:
            while data:
                data = data[self._file.write(data) :]
            if not hold_back:
                os.fsync(self._file.fileno())
            return
        self._waiting.append(data)
        if not hold_back or time.monotonic() - self._since >= HELD_SECONDS:
            self._send()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        else:
            self._send()

    def _send(self) -> None:
        if self._segments is not None and self._waiting:
            self._segments.append(b"".join(self._waiting))
            self._waiting.clear()
        self._since = time.monotonic()


HELD_SECONDS = 10.0


def grown(path: Path) -> list[Path]:
    """The files to read of what grew there, in order."""
    if is_remote(path):
        return Segments(path).files()
    return [path] if path.exists() else []


# --- who may write --------------------------------------------------------------------------------------------------

LEASE_SECONDS = 90.0


class Lease:
    """An object that says who writes, and until when; renewed while it is held, so that a killed holder's runs out."""

    def __init__(self, path: Path, what: Path, seconds: float = LEASE_SECONDS) -> None:
        """Take it.

        Args:
            what: is written, for the message.
            seconds: after which a holder that has not renewed it is taken to be gone.

        Raises:
            InputError: another process holds it.
        """
        self._path, self._what, self._seconds = path, what, seconds
        self._holder = f"{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex[:8]}"
        self.is_lost = False
        self._stop = threading.Event()
        if not create(path, self._text()):
            self._take_over()
        self._thread = threading.Thread(target=self._renew, name="cpmi-lease", daemon=True)
        self._thread.start()

    def _take_over(self) -> None:
        there = self._read()
        if there is not None and there["until"] > _now():
            until = datetime.datetime.fromtimestamp(there["until"], datetime.UTC).isoformat(timespec="seconds")
            raise InputError(
                f"{self._what}: another process is writing this part ({there['holder']}); wait for it or stop it. "
                f"If it is gone, its hold ends at {until}"
            )
        self._path.write_bytes(self._text())
        if (there := self._read()) is None or there["holder"] != self._holder:
            raise InputError(f"{self._what}: another process is writing this part; wait for it or stop it")

    def check(self) -> None:
        """Whether it is still held, before something is written.

        Raises:
            CpmiError: another process took it, since this one had stood still for too long.
        """
        if self.is_lost:
            raise CpmiError(
                f"{self._what}: this process stood still for longer than {self._seconds:.0f} s, and another one has "
                "taken over; what it has written is kept"
            )

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        if not self.is_lost:
            with contextlib.suppress(OSError):  # it runs out by itself
                self._path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _renew(self) -> None:
        while not self._stop.wait(self._seconds / 4):
            try:
                there = self._read()
                self.is_lost = there is not None and there["holder"] != self._holder
                if not self.is_lost:
                    self._path.write_bytes(self._text())
            except store_errors():
                continue  # the store does not answer: try again, and what is written says so as well
            if self.is_lost:
                return

    def _text(self) -> bytes:
        return json.dumps({"holder": self._holder, "until": _now() + self._seconds}).encode()

    def _read(self) -> dict[str, Any] | None:
        try:
            there = json.loads(self._path.read_bytes())
        except (FileNotFoundError, ValueError):  # let go just now, or torn
            return None
        held = isinstance(there, dict) and isinstance(there.get("until"), int | float) and "holder" in there
        return there if held else None


def _now() -> float:
    return datetime.datetime.now(datetime.UTC).timestamp()
