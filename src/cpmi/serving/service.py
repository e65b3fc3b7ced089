"""A rewarder with its queue: how requests become trajectories, and answers what goes out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cpmi.aggregation import aggregate
from cpmi.errors import InputError
from cpmi.records import StepRewards, Trajectory
from cpmi.serving import shapes
from cpmi.serving.batching import Batcher, Job
from cpmi.serving.dialogs import question_and_solution
from cpmi.serving.metrics import Metrics
from cpmi.serving.settings import ServeSettings
from cpmi.steps import split_steps

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

    from cpmi.protocols import StepRewarder

Row = TypeVar("Row")


class Service:
    """A rewarder with its queue, and how requests become trajectories."""

    def __init__(self, rewarder: StepRewarder, settings: ServeSettings) -> None:
        self.settings = settings
        self.source = rewarder.name
        self.described = rewarder.describe()
        engine = self.described.get("engine", {})
        model = str(engine.get("model", rewarder.name))
        self.model = settings.name or (Path(model).resolve().name if Path(model).exists() else model)
        revision = engine.get("revision")
        self.revision = None if revision is None else str(revision)
        self.metrics = Metrics(lambda: self.batcher.waiting)
        self.batcher = Batcher(
            rewarder,
            self.metrics,
            batch_size=settings.batch_size,
            wait=settings.wait_seconds,
            queue=settings.limits.queue,
        )
        self._running: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """The queue is open as long as the application; what is in it at the end is finished."""
        del app
        self._running = asyncio.create_task(self.batcher.run())
        try:
            yield
        finally:
            self.batcher.stop()
            await self._running

    @property
    def is_alive(self) -> bool:
        return self._running is not None and not self._running.done()

    def trajectories(self, rows: Sequence[shapes.TrajectoryIn]) -> list[Trajectory]:
        """What is asked for, within the limits.

        Raises:
            InputError: too much, or no trajectory; with its place.
        """
        found = []
        for place, row in self._placed("trajectories", rows):
            steps = split_steps(self._fitting(place, row.solution), self.settings.split) if row.solution else row.steps
            found.append(self._trajectory(place, row.question, steps, row.id))
        return found

    def texts(self, field: str, texts: Sequence[str], prompts: Sequence[str | None]) -> list[Trajectory]:
        """The same of whole texts, as trainers send them."""
        found = []
        for (place, text), prompt in zip(self._placed(field, texts), prompts, strict=True):
            try:
                question, solution = question_and_solution(self._fitting(place, text), prompt)
            except InputError as error:
                raise InputError(f"{place}: {error}") from error
            found.append(self._trajectory(place, question, split_steps(solution, self.settings.split)))
        return found

    def _placed(self, field: str, rows: Sequence[Row]) -> list[tuple[str, Row]]:
        most = self.settings.limits.trajectories
        if len(rows) > most:
            raise InputError(f"{field}: {len(rows)} are too many for one request; send at most {most}")
        return [(f"{field}[{index}]", row) for index, row in enumerate(rows)]

    def _fitting(self, place: str, text: str) -> str:
        """Before it is split: the patterns that do so take long on very long texts."""
        most = self.settings.limits.characters
        if len(text) > most:
            raise InputError(f"{place}: {len(text)} characters are too many; send at most {most}")
        return text

    def _trajectory(self, place: str, question: str, steps: Sequence[str], name: str = "") -> Trajectory:
        limits = self.settings.limits
        if len(steps) > limits.steps:
            raise InputError(f"{place}: {len(steps)} steps are too many; send at most {limits.steps}")
        characters = len(question) + sum(map(len, steps))
        if characters > limits.characters:
            raise InputError(f"{place}: {characters} characters are too many; send at most {limits.characters}")
        try:
            return Trajectory(question, tuple(steps), id=name)
        except InputError as error:
            raise InputError(f"{place}: {error}") from error

    async def answers(self, trajectories: Sequence[Trajectory], request: Request) -> list[StepRewards] | None:
        """All answers, or None if the client goes away first; then what has not begun is dropped.

        Raises:
            QueueFullError: there is no room.
            StoppingError: the server takes nothing new.
        """
        job = self.batcher.submit(trajectories)
        done, gone = asyncio.create_task(job.all()), asyncio.create_task(_until_gone(request))
        try:
            await asyncio.wait([done, gone], return_when=asyncio.FIRST_COMPLETED)
            return done.result() if done.done() else None
        finally:
            done.cancel()
            gone.cancel()
            self.batcher.drop(job)

    def result(self, answer: StepRewards, steps: Sequence[str] | None) -> shapes.Result:
        """An answer as it goes out."""
        rewards, number, problem = list(answer.rewards), None, answer.error
        if problem is None:
            try:
                number = aggregate(rewards, self.settings.aggregation)
            except InputError as error:  # a product of what is no probability
                rewards, problem = [], str(error)
        return shapes.Result(
            id=answer.trajectory_id,
            source=answer.source,
            rewards=rewards,
            reward=number,
            terms={} if problem else {name: list(values) for name, values in answer.terms.items()},
            steps=None if steps is None else list(steps),
            tokens_scored=answer.cost.tokens_scored,
            seconds=answer.cost.seconds,
            error=problem,
        )

    def numbers(self, field: str, answers: Sequence[StepRewards]) -> list[float]:
        """One number for each text, as a trainer wants it.

        Raises:
            InputError: a text has none, and there is no number for such.
        """
        found = []
        for index, answer in enumerate(answers):
            result = self.result(answer, None)
            number = self.settings.failed_reward if result.reward is None else result.reward
            if number is None:
                raise InputError(
                    f"{field}[{index}]: {result.error}; "
                    "cpmi serve --failed-reward NUMBER gives texts that cannot be scored a number"
                )
            found.append(number)
        return found

    def stream(self, job: Job, steps: Sequence[Sequence[str] | None]) -> AsyncIterator[str]:
        """A line for each answer as soon as it is there, and one that says that this was all."""

        async def lines() -> AsyncIterator[str]:
            count = tokens = 0
            try:
                async for answer in job.answers():
                    result = self.result(answer, steps[count])
                    count, tokens = count + 1, tokens + result.tokens_scored
                    yield result.model_dump_json() + "\n"
                end = shapes.StreamEnd(
                    model=self.model,
                    revision=self.revision,
                    aggregation=self.settings.aggregation,
                    tokens_scored=tokens,
                    results=count,
                )
                yield end.model_dump_json() + "\n"
            finally:
                self.batcher.drop(job)

        return lines()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
