"""The process in which Math-Verify works for ``cpmi.grader``; it imports nothing of cpmi.

JSON lines: ``{"ready": true}`` first (or ``{"error": ...}``), then for each ``{"a": ..., "b": ..., "seconds": ...}``
one ``{"verdict": "same" | "different" | "undecided"}``. It ends when its standard input does.

Each pair is judged in a fork of the freshly loaded process, so that a verdict depends on the pair alone: not on what
was judged before it (caches, memory), and a fork that dies takes nothing with it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable

Judge = Callable[[str, str], bool]

MEMORY_BYTES = 2 * 1024**3
# Kinds of answers that occur; the parser is five times faster at what it has seen.
_WARM_UP = (
    ("2\\cdot 3", "T-18"),
    (r"3\sqrt{13}", r"\frac{\sqrt{3}}{4}"),
    (r"(6,\sqrt{2})", r"[1,\infty)"),
    (r"\frac{1}{2}x^2+3x-6", "(x+1)(x-2)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\{1,x\}"),
    ("y=-2x", "f(x)=x"),
    (r"\sin x", r"\log_{10}2"),
    ("2+3i", r"-2\pi"),
    (r"\binom{5}{2}", "5!"),
    ("x=1,x=2", r"x<1"),
)
_SAME, _DIFFERENT = 10, 11  # exit codes of the fork; anything else, a signal included, means undecided


def load_judge() -> Judge:
    """Import Math-Verify and warm it up (its parser builds its tables at the first use)."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)

    def formula(text: str) -> list[object]:
        parsed: list[object] = parse(f"${text}$", fallback_mode="no_fallback", parsing_timeout=None)
        return parsed

    def same(a: str, b: str) -> bool:
        """Math-Verify takes a gold answer and a prediction; here either may be the gold one."""
        first, second = formula(a), formula(b)
        return any(
            verify(gold, answer, timeout_seconds=None, raise_on_error=True)
            for gold, answer in ((first, second), (second, first))
        )

    for a, b in _WARM_UP:
        same(a, b)
    return same


def judge_in_fork(judge: Judge, a: str, b: str, seconds: float) -> str:
    """The verdict, computed in a fork that may use ``seconds`` of CPU time and ``MEMORY_BYTES`` of address space.

    A fork that runs out of either, or fails at all, is undecided.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _limit(seconds)
            code = _SAME if judge(a, b) else _DIFFERENT
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return {_SAME: "same", _DIFFERENT: "different"}.get(os.waitstatus_to_exitcode(status), "undecided")


def judge_here(judge: Judge, a: str, b: str) -> str:
    """The verdict where there is no ``fork``: a failure ends this process, and that is undecided too."""
    return "same" if judge(a, b) else "different"


def _limit(seconds: float) -> None:
    import resource

    with contextlib.suppress(ValueError, OSError):  # macOS does not limit address space
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # CPU time, so that the verdict does not depend on what else runs here; the default action ends the process even
    # inside C code.
    signal.setitimer(signal.ITIMER_PROF, seconds)


def main() -> None:
    """Answer requests until standard input ends."""
    try:
        judge = load_judge()
    except ImportError as error:
        print(json.dumps({"error": str(error)}), flush=True)  # noqa: T201
        return
    can_fork = hasattr(os, "fork") and hasattr(signal, "setitimer")
    print(json.dumps({"ready": True}), flush=True)  # noqa: T201
    for line in sys.stdin:
        request = json.loads(line)
        a, b = request["a"], request["b"]
        verdict = judge_in_fork(judge, a, b, request["seconds"]) if can_fork else judge_here(judge, a, b)
        print(json.dumps({"verdict": verdict}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
