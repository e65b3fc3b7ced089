"""Gathers what arrives together and scores it together, one call of the reward model at a time.

Everything but the reward model itself runs on the event loop, so there is nothing to lock. Requests take turns: each
batch begins with the next request in line, so that one with a thousand trajectories does not keep others waiting.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cpmi.errors import CpmiError
from cpmi.records import StepRewards, Trajectory

if TYPE_CHECKING:
    from cpmi.protocols import StepRewarder
    from cpmi.serving.metrics import Metrics

logger = logging.getLogger("cpmi")

_LONGEST_WAIT = 120  # seconds that a client is told to wait at most
_NEWS = 0.2  # share of the latest batch in the running mean of the speed


class QueueFullError(CpmiError):
    """There is no room for a request.

    Attributes:
        retry_after: seconds after which there should be some.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many trajectories are waiting; try again in {retry_after} s")
        self.retry_after = retry_after


class StoppingError(CpmiError):
    """The server takes nothing new."""

    def __init__(self) -> None:
        super().__init__("the server is stopping")


class Job:
    """The trajectories of one request, and their answers as they come, in the order of the request."""

    def __init__(self, trajectories: Sequence[Trajectory]) -> None:
        self.waiting = deque(trajectories)
        self.dropped = False
        self._total = len(self.waiting)
        self._answers: asyncio.Queue[StepRewards] = asyncio.Queue()

    async def answers(self) -> AsyncIterator[StepRewards]:
        """Each answer as soon as it is there."""
        for _ in range(self._total):
            yield await self._answers.get()

    async def all(self) -> list[StepRewards]:
        """All answers."""
        return [answer async for answer in self.answers()]

    def put(self, answer: StepRewards) -> None:
        """The next answer is there."""
        self._answers.put_nowait(answer)


@dataclass(frozen=True, slots=True)
class _Ticket:
    job: Job
    trajectory: Trajectory
    number: str  # the id under which the rewarder sees it: clients may give two trajectories the same one


class Batcher:
    """A queue in front of a ``StepRewarder``, which is called in one thread.

    Attributes:
        waiting: trajectories in the queue.
    """

    def __init__(self, rewarder: StepRewarder, metrics: Metrics, *, batch_size: int, wait: float, queue: int) -> None:
        """Queue for this rewarder; ``run`` must be running for anything to happen.

        Args:
            batch_size: the most trajectories of one call.
            wait: seconds that a batch which is not full waits for more.
            queue: the most trajectories that may wait.
        """
        self._rewarder, self._metrics = rewarder, metrics
        self._batch_size, self._wait, self._queue = batch_size, wait, queue
        self._jobs: deque[Job] = deque()
        self._wake = asyncio.Event()
        self._stopping = False
        self._numbers = itertools.count()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reward-model")
        self._seconds_each = 0.0
        self.waiting = 0

    def submit(self, trajectories: Sequence[Trajectory]) -> Job:
        """Put a request in line.

        Raises:
            QueueFullError: there is no room for all of it.
            StoppingError: nothing new is taken.
        """
        if self._stopping:
            raise StoppingError
        if self.waiting + len(trajectories) > self._queue:
            seconds = math.ceil(self.waiting * self._seconds_each)
            raise QueueFullError(min(max(seconds, 1), _LONGEST_WAIT))
        job = Job(trajectories)
        if trajectories:
            self._jobs.append(job)
            self.waiting += len(trajectories)
            self._wake.set()
        return job

    def drop(self, job: Job) -> None:
        """Nobody waits for this any more: what has not begun will not. Does nothing to a job that is done."""
        if job.waiting:
            self._jobs.remove(job)
            self.waiting -= len(job.waiting)
            self._metrics.trajectories.labels("dropped").inc(len(job.waiting))
            job.waiting.clear()
        job.dropped = True

    async def run(self) -> None:
        """Score what comes, until ``stop``; then what is in line is finished first."""
        try:
            while self._jobs or not self._stopping:
                self._wake.clear()
                if not self._jobs:
                    await self._wake.wait()
                    continue
                if self.waiting < self._batch_size and not self._stopping:
                    await asyncio.sleep(self._wait)
                if batch := self._take():  # all of it may have been dropped meanwhile
                    await self._score(batch)
        finally:
            self._thread.shutdown(wait=False)

    def stop(self) -> None:
        """Take nothing new, and end ``run`` when nothing is left."""
        self._stopping = True
        self._wake.set()

    @property
    def stopping(self) -> bool:
        """Whether nothing new is taken."""
        return self._stopping

    def _take(self) -> list[_Ticket]:
        batch: list[_Ticket] = []
        for _ in range(len(self._jobs)):
            if len(batch) == self._batch_size:
                break
            job = self._jobs.popleft()
            count = min(len(job.waiting), self._batch_size - len(batch))
            batch += [_Ticket(job, job.waiting.popleft(), str(next(self._numbers))) for _ in range(count)]
            if job.waiting:
                self._jobs.append(job)  # to the end of the line
        self.waiting -= len(batch)
        return batch

    async def _score(self, batch: Sequence[_Ticket]) -> None:
        answers = await self._call(batch)
        if isinstance(answers, BaseException) and len(batch) > 1:
            # One of them is to blame. The others should not suffer for it.
            for ticket in batch:
                await self._score([ticket])
            return
        if isinstance(answers, BaseException):
            answers = [StepRewards(batch[0].trajectory.id, (), self._rewarder.name, error=_why(answers))]
        for ticket, answer in zip(batch, answers, strict=True):
            self._deliver(ticket, answer)

    def _deliver(self, ticket: _Ticket, answer: StepRewards) -> None:
        outcome = "dropped" if ticket.job.dropped else "failed" if answer.error is not None else "scored"
        self._metrics.trajectories.labels(outcome).inc()
        self._metrics.steps.inc(len(answer.rewards))
        self._metrics.tokens.inc(answer.cost.tokens_scored)
        ticket.job.put(replace(answer, trajectory_id=ticket.trajectory.id))

    async def _call(self, batch: Sequence[_Ticket]) -> list[StepRewards] | BaseException:
        """What the rewarder says, or what it raised."""
        numbered = [replace(ticket.trajectory, id=ticket.number) for ticket in batch]
        start = time.perf_counter()
        call = asyncio.get_running_loop().run_in_executor(self._thread, self._rewards, numbered)
        await asyncio.wait([call])
        seconds = time.perf_counter() - start
        self._metrics.batch_size.observe(len(batch))
        self._metrics.batch_seconds.observe(seconds)
        each = seconds / len(batch)
        self._seconds_each = each if not self._seconds_each else (1 - _NEWS) * self._seconds_each + _NEWS * each
        if (error := call.exception()) is None:
            return call.result()
        self._metrics.failures.inc()
        if not isinstance(error, CpmiError):
            logger.error("the reward model raised with %d trajectories", len(batch), exc_info=error)
        return error

    def _rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        answers = self._rewarder.rewards(trajectories)
        if [answer.trajectory_id for answer in answers] != [trajectory.id for trajectory in trajectories]:
            raise CpmiError("the reward model's answers are not those of the trajectories, in their order")
        return answers


def _why(error: BaseException) -> str:
    return str(error) if isinstance(error, CpmiError) else f"the reward model failed ({type(error).__name__})"
