r"""Are two answers the same? The only grader, for labels and for benchmarks.

Most pairs are settled here at once and exactly: equal after normalization, two numbers, lists of numbers, words. Only
what is left goes to Math-Verify, in a process of its own (``cpmi.grading_worker``) with a limit on its CPU time: a
computer algebra system can be sent into an endless loop by one odd answer. Running out of that limit is an outcome,
``Verdict.UNDECIDED``, never another way of grading; CPU time is counted, not time on the wall, so that a verdict does
not depend on how busy the machine is.

What counts as the same (all of it after ``normalize_answer``, which drops units, currency and layout):

* numbers by exact value: ``1/2``, ``0.5``, ``\frac{1}{2}``. A decimal with six or more decimals may be rounded.
* with a percent sign on one side only, either reading will do: ``20%`` is ``20`` and ``0.2``.
* ``x=5`` is ``5``, but not ``y=5``. In lists (``1,2``) and sets (``{1,2}``) order is free; in tuples and intervals it
  counts, and so does the bracket. A list without brackets may have lost those of a tuple in the same order.
* words without regard to case; ``unknown``, ``uncertain``, ``undetermined`` are one. ``A``, ``(A)``, ``(A) Paris`` too.
* a number in a base is the same without it (``1011_2``, ``1011``), not in another; times of day as they are written.
* anything else as Math-Verify says, where either answer may be its gold one (it is not symmetric; this is).
"""

from __future__ import annotations

import enum
import functools
import json
import os
import queue
import re
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

from cpmi.answer_forms import Number, normalize_answer, parse_number
from cpmi.answers import final_answer_of
from cpmi.errors import CpmiError
from cpmi.formulas import clearly_different
from cpmi.records import Trajectory

MAX_LENGTH = 1000
"""Normalized answers longer than this are not answers; Math-Verify is not asked about them (``UNDECIDED``)."""


class Verdict(enum.Enum):
    """What a comparison came to."""

    SAME = "same"
    DIFFERENT = "different"
    UNDECIDED = "undecided"


class Grader:
    """Compares answers; thread-safe, and the same for ``(a, b)`` as for ``(b, a)``.

    A worker process starts at the first pair that needs it and ends with ``close()``, with this object or with this
    process. A grader can be used again after ``close()``, pickled, and used in a forked process: each has its own
    worker.

    Args:
        workers: how many worker processes may work at once, for threads that compare side by side.
        seconds: CPU time for one pair. On a platform without ``fork`` and ``setitimer`` (Windows) only the wall-clock
            limit holds, so there a verdict near the limit can depend on the load of the machine.
        wall_seconds: wall-clock time after which a stuck worker is replaced; by default twenty times ``seconds``.
    """

    def __init__(self, seconds: float = 5.0, wall_seconds: float | None = None, *, workers: int = 1) -> None:
        self._seconds = seconds
        self._wall_seconds = 20 * seconds if wall_seconds is None else wall_seconds
        self._slots: queue.LifoQueue[_Slot] = queue.LifoQueue()  # the last one used first: it has its worker
        self._all_slots = [_Slot() for _ in range(workers)]
        for slot in self._all_slots:
            self._slots.put(slot)
        self._judge = functools.lru_cache(maxsize=65536)(self._ask)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(Grader, workers=len(self._all_slots)), (self._seconds, self._wall_seconds)

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def compare(self, a: str, b: str) -> Verdict:
        """Whether two answers are the same.

        Raises:
            CpmiError: the worker process cannot be started.
        """
        first, second = sorted((normalize_answer(a), normalize_answer(b)))
        settled = settle(first, second)
        if settled is not None:
            return settled
        try:
            return self._judge(first, second)
        except _WorkerDiedError:  # not remembered: it says nothing about the pair
            return Verdict.UNDECIDED

    def close(self) -> None:
        """End the worker processes."""
        for slot in self._all_slots:
            slot.end()

    def _ask(self, a: str, b: str) -> Verdict:
        if max(len(a), len(b)) > MAX_LENGTH:
            return Verdict.UNDECIDED
        slot = self._slots.get()
        try:
            return slot.ask({"a": a, "b": b, "seconds": self._seconds}, self._wall_seconds)
        finally:
            self._slots.put(slot)


def outcome(trajectory: Trajectory, grader: Grader) -> Verdict | None:
    """Whether a trajectory's final answer is right; None where it has none."""
    answer = final_answer_of(trajectory)
    return None if answer is None else grader.compare(answer, trajectory.gold_answer or "")


class _Slot:
    """Room for one worker process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def ask(self, request: dict[str, Any], wall_seconds: float) -> Verdict:
        with self._lock:
            for _ in range(2):  # a worker that died by itself was most likely killed from outside: ask once more
                if self._worker is None or not self._worker.usable():
                    self._worker = _Worker()
                reply = self._worker.ask(request, wall_seconds)
                if reply is not None:
                    return Verdict(reply["verdict"])
                timed_out = self._worker.timed_out
                self._worker.end()
                self._worker = None
                if timed_out:
                    return Verdict.UNDECIDED
        raise _WorkerDiedError

    def end(self) -> None:
        with self._lock:
            if self._worker is not None:
                self._worker.end()
            self._worker = None


class _WorkerDiedError(Exception):
    """The worker died twice at one pair, and neither time by its limit: something outside ends it."""


class _Worker:
    """A running ``grading_worker``."""

    def __init__(self) -> None:
        # By its path, so that it starts wherever cpmi was imported from; -P keeps its folder, full of module names that
        # others may want, off sys.path. A session of its own: Ctrl-C is for the parent to handle. A fixed hash seed:
        # SymPy's order of terms must not differ from run to run.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", str(Path(__file__).with_name("grading_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
            start_new_session=True,
        )
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _end, self._process, self._owner)
        self.timed_out = False
        hello = self._exchange(None, 300)
        if hello is None or "error" in hello:
            self.end()
            reason = hello["error"] if hello else f"exit status {self._process.returncode}"
            raise CpmiError(f"the grading process did not start ({reason}); run: pip install --upgrade cpmi")

    def usable(self) -> bool:
        """Whether it lives and is this process's own (after a fork, parent and child would share its pipes)."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, request: dict[str, Any], wall_seconds: float) -> dict[str, Any] | None:
        """Its reply, or None if it died or had to be killed."""
        return self._exchange(json.dumps(request) + "\n", wall_seconds)

    def _exchange(self, line: str | None, wall_seconds: float) -> dict[str, Any] | None:
        assert self._process.stdin is not None  # noqa: S101
        assert self._process.stdout is not None  # noqa: S101
        alarm = threading.Timer(wall_seconds, self._kill)
        alarm.daemon = True
        alarm.start()
        try:
            if line is not None:
                self._process.stdin.write(line)
                self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        finally:
            alarm.cancel()
            alarm.join()  # so that it cannot go off later, at the next pair
        result: dict[str, Any] | None = json.loads(reply) if reply.endswith("\n") and not self.timed_out else None
        return result

    def _kill(self) -> None:
        self.timed_out = True
        _kill_group(self._process)

    def end(self) -> None:
        """End it, now."""
        self._finalizer()


def _kill_group(process: subprocess.Popen[str]) -> None:
    """Kill the worker and the fork that judges for it."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, 9)  # start_new_session made it the leader of its group
        except ProcessLookupError:
            return
    else:
        process.kill()


def _end(process: subprocess.Popen[str], owner: int) -> None:
    if owner == os.getpid():
        if process.poll() is None:
            _kill_group(process)
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:  # what was not read yet
                continue


# --- pairs that need no algebra -------------------------------------------------------------------------------------


def settle(a: str, b: str) -> Verdict | None:
    """The verdict on two normalized answers where it takes no algebra; None where it does."""
    if a == b or not (a and b):
        return _verdict(a == b)
    first, second = _read_numbers(a), _read_numbers(b)
    if first and second:
        return _verdict(_same_numbers(first, second))
    options = _option(a), _option(b)
    if all(options) and min(len(a), len(b)) == 1:
        return _verdict(options[0] == options[1])
    words = _words(a), _words(b)
    if words[0] and words[1]:
        return _settle_words(words[0], words[1])
    if (first and words[1]) or (second and words[0]):
        return Verdict.DIFFERENT
    if exact := _exact_forms(a, b):
        return exact
    return Verdict.DIFFERENT if clearly_different(a, b) else None


def _verdict(same: bool) -> Verdict:
    return Verdict.SAME if same else Verdict.DIFFERENT


_LIST = re.compile(r"(?P<open>[(\[]|\\\{)?(?P<items>[^()\[\]]+?)(?P<close>[)\]]|\\\})?")
_VARIABLE = re.compile(r"(\\?[A-Za-z]+(?:_(?:\{\w+\}|\w))?)=(?=[^=])")
_Numbers = tuple[str, tuple[tuple[str, Number], ...]]  # brackets; (variable or "", value) for each


@functools.lru_cache(maxsize=65536)
def _read_numbers(text: str) -> _Numbers | None:
    """A number, or a list, set, tuple or interval of numbers, each perhaps with a variable (``x=5``)."""
    match = _LIST.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if match is None:
        return None
    items = []
    for item in match["items"].split(","):
        named = _VARIABLE.match(item)
        number = parse_number(item[named.end() :] if named else item)
        if number is None:
            return None
        items.append((named[1] if named else "", number))
    return (match["open"] or "") + (match["close"] or ""), tuple(items)


def _same_numbers(a: _Numbers, b: _Numbers) -> bool:
    (brackets, first), (other_brackets, second) = a, b
    ordered = [brackets for brackets in (a[0], b[0]) if brackets and brackets != r"\{\}"]
    if len(ordered) == 2 and brackets != other_brackets:
        return False
    if ordered:
        return len(first) == len(second) and all(map(_same_item, first, second))
    return all(any(_same_item(x, y) for y in second) for x in first) and all(
        any(_same_item(x, y) for x in first) for y in second
    )


def _same_item(a: tuple[str, Number], b: tuple[str, Number]) -> bool:
    return (not a[0] or not b[0] or a[0] == b[0]) and _same_number(a[1], b[1])


def _same_number(a: Number, b: Number) -> bool:
    if a.percent != b.percent:
        percent, plain = (a, b) if a.percent else (b, a)
        return plain.value in (percent.value, percent.value / 100)
    rounded = [number.decimals for number in (a, b) if number.decimals is not None and number.decimals >= 6]
    if rounded:
        return bool(abs(a.value - b.value) * 10 ** min(rounded) <= 1)
    return a.value == b.value


def _option(text: str) -> str | None:
    """The letter of ``A``, ``(A)Paris`` or ``A.Paris``."""
    match = re.fullmatch(r"([A-Za-z])|\(([A-Z])\).+|([A-Z])[.):].+", text)
    return "".join(group or "" for group in match.groups()).upper() if match else None


_BASE = re.compile(r"(-?[0-9A-F]+)_\{?([0-9]+)\}?")
_TIME = re.compile(r"0?([0-9]{1,2}:[0-5][0-9])")


def _exact_forms(a: str, b: str) -> Verdict | None:
    """Numbers in a base (which may be left out) and times of day: their text decides."""
    for form in (_BASE, _TIME):
        first, second = form.fullmatch(a), form.fullmatch(b)
        if first and second:
            return _verdict(first.groups() == second.groups())
    bare = {match[1] for match in map(_BASE.fullmatch, (a, b)) if match}
    return Verdict.SAME if bare & {a, b} else None


_ONE = {"uncertain": "unknown", "undetermined": "unknown", "cannot be determined": "unknown"}


def _words(text: str) -> str | None:
    """A text of words only, folded; None where it may be a formula."""
    folded = " ".join(re.sub(r"[_-]", " ", text.casefold()).split())
    if len(text) > 1 and re.search(r"(?<![^\W\d_])[^\W\d_]-|-[^\W\d_](?![^\W\d_])", text):  # p-q
        return None
    return _ONE.get(folded, folded) if re.fullmatch(r"[^\W\d_](?:[^\W\d_]|[ .,;:'?!])*", folded) else None


def _settle_words(a: str, b: str) -> Verdict | None:
    if a == b:
        return Verdict.SAME
    # Short ones may be products of variables (ab, ba) or lists of letters (A,C); those are equal only letter by letter.
    if sorted(filter(str.isalpha, a)) == sorted(filter(str.isalpha, b)) and len(a) <= 8 and not re.search(r"\w{5}", a):
        return None
    return Verdict.DIFFERENT
