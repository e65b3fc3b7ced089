"""Many requests to a server at once, and whose wall time is whose."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

T = TypeVar("T")

# What a request does: its index, and an event that is set when nobody waits for the answer any more.
Work = Callable[[int, threading.Event], T]


def in_flight(count: int, work: Work[T], parallel: int) -> Generator[tuple[int, T, float]]:
    """Do ``work(0)`` to ``work(count - 1)`` in threads, at most ``parallel`` at a time; yield each as it is done.

    Close the generator to stop: what is queued is then never begun, and nothing is waited for. The threads are daemons,
    unlike those of ``ThreadPoolExecutor``, which Python waits for at its end: Ctrl-C would take as long as a request.

    Yields:
        The index, the result, and seconds: the wall time between one request's end and the next one's is split equally
        over those in flight, so that the seconds of all requests add up to the wall time of the whole.
    """
    begun = time.perf_counter()
    todo = deque(range(count))
    done: queue.SimpleQueue[tuple[int, list[T]]] = queue.SimpleQueue()
    stopped = threading.Event()
    for _ in range(min(parallel, count)):
        threading.Thread(target=_worker, args=(todo, work, stopped, done), name="request", daemon=True).start()
    try:
        yield from _finished(count, done, parallel, begun)
    finally:
        stopped.set()
        todo.clear()


def _worker(
    todo: deque[int], work: Work[T], stopped: threading.Event, done: queue.SimpleQueue[tuple[int, list[T]]]
) -> None:
    while todo:
        try:
            index = todo.popleft()
        except IndexError:  # another thread was faster
            return
        result: list[T] = []
        try:
            result.append(work(index, stopped))
        finally:
            done.put((index, result))  # empty where ``work`` raised, so that nobody waits for it in vain


def _finished(
    count: int, done: queue.SimpleQueue[tuple[int, list[T]]], parallel: int, last: float
) -> Iterator[tuple[int, T, float]]:
    waiting = dict.fromkeys(range(count), 0.0)  # in the order in which they begin
    while waiting:
        index, result = done.get()
        if not result:
            raise RuntimeError("a request ended in an error of its own, which is printed above")
        now = time.perf_counter()
        flying = list(itertools.islice(waiting, parallel))
        for each in flying:
            waiting[each] += (now - last) / len(flying)
        last = now
        yield index, result[0], waiting.pop(index)
