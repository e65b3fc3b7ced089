"""The queue: order, turns, batches, dropping, failing, stopping."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpmi.records import StepRewards, Trajectory
from cpmi.serving.batching import Batcher, Job, QueueFullError, StoppingError
from cpmi.serving.metrics import Metrics
from served import Telltale, rewards_of


def trajectory(question: str, *steps: str) -> Trajectory:
    return Trajectory(question, steps or ("one", "two"), id="same")  # clients choose ids, and may choose alike


def batcher(rewarder: Telltale, *, batch_size: int = 4, queue: int = 100, wait: float = 0.0) -> Batcher:
    return Batcher(rewarder, Metrics(lambda: 0), batch_size=batch_size, wait=wait, queue=queue)


def scene(rewarder: Telltale, act: Callable[[Batcher], Awaitable[None]], **settings: float) -> None:
    """Act while the queue runs, then stop it."""

    async def all_of_it() -> None:
        queue = batcher(rewarder, **settings)  # type: ignore[arg-type]
        running = asyncio.create_task(queue.run())
        await asyncio.wait_for(asyncio.ensure_future(act(queue)), 30)
        queue.stop()
        await asyncio.wait_for(running, 30)

    asyncio.run(all_of_it())


def is_for(answers: Sequence[StepRewards], trajectories: Sequence[Trajectory]) -> bool:
    expected = [rewards_of(each.question, each.steps) for each in trajectories]
    return [list(answer.rewards) for answer in answers] == expected


@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(1, 5), st.data())
def test_every_request_gets_its_own_answers_in_order(sizes: list[int], batch_size: int, data: st.DataObject) -> None:
    asked = [[trajectory(f"{job} {index}") for index in range(size)] for job, size in enumerate(sizes)]
    dropped = data.draw(st.sets(st.integers(0, len(sizes) - 1)))
    rewarder = Telltale()

    async def act(queue: Batcher) -> None:
        jobs = [queue.submit(each) for each in asked]
        for index in dropped:
            queue.drop(jobs[index])
        for index, job in enumerate(jobs):
            if index not in dropped:
                answers = await job.all()
                assert is_for(answers, asked[index])
                assert {answer.trajectory_id for answer in answers} <= {"same"}
        assert queue.waiting == 0

    scene(rewarder, act, batch_size=batch_size)
    assert max(map(len, rewarder.calls), default=0) <= batch_size
    kept = [each.question for index, job in enumerate(asked) if index not in dropped for each in job]
    assert sorted(question for call in rewarder.calls for question in call) == sorted(kept)


def test_what_arrives_while_the_model_works_is_scored_together_and_requests_take_turns() -> None:
    rewarder = Telltale()

    async def act(queue: Batcher) -> None:
        rewarder.open.clear()
        first = queue.submit([trajectory("first")])
        while not rewarder.calls:
            await asyncio.sleep(0.001)
        long = queue.submit([trajectory(f"long {i}") for i in range(6)])
        short = queue.submit([trajectory("short")])
        assert queue.waiting == 7
        rewarder.open.set()
        await asyncio.gather(first.all(), long.all(), short.all())

    scene(rewarder, act, batch_size=4)
    long = [f"long {i}" for i in range(6)]
    assert rewarder.calls == [["first"], long[:4], ["short", *long[4:]]]


def test_a_batch_that_is_not_full_waits_for_what_comes_just_behind() -> None:
    rewarder = Telltale()

    async def act(queue: Batcher) -> None:
        first = queue.submit([trajectory("a")])
        await asyncio.sleep(0.02)
        second = queue.submit([trajectory("b")])
        await asyncio.gather(first.all(), second.all())

    scene(rewarder, act, wait=0.5)
    assert rewarder.calls == [["a", "b"]]


def test_a_trajectory_that_breaks_the_model_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    asked = [trajectory("a"), trajectory("b", "explode"), trajectory("c", "refuse"), trajectory("d", "bad")]

    async def act(queue: Batcher) -> None:
        good = queue.submit([trajectory("e")])
        answers = await queue.submit(asked).all()
        assert is_for(answers[:1], asked[:1])
        assert [answer.error for answer in answers[1:]] == [
            "the reward model failed (ZeroDivisionError)",
            "out of memory with 9 tokens",
            "too long",
        ]
        assert is_for(await good.all(), [trajectory("e")])
        assert is_for(await queue.submit(asked[:1]).all(), asked[:1])  # and it goes on

    scene(Telltale(), act, batch_size=8)
    assert "kaboom" in caplog.text


class Mixed(Telltale):
    """Gives answers in another order."""

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        return super().rewards(trajectories)[::-1]


def test_answers_in_another_order_are_not_handed_out() -> None:
    async def act(queue: Batcher) -> None:
        asked = [trajectory("a"), trajectory("b")]
        assert is_for(await queue.submit(asked).all(), asked)  # one at a time there is no order to mistake

    rewarder = Mixed()
    scene(rewarder, act)
    assert rewarder.calls == [["a", "b"], ["a"], ["b"]]


def test_a_full_queue_says_when_to_come_back_and_has_room_again_when_work_is_dropped() -> None:
    rewarder = Telltale(seconds=0.2)

    async def act(queue: Batcher) -> None:
        await queue.submit([trajectory("before")]).all()  # from now on its speed is known: 0.2 s each
        rewarder.open.clear()
        busy = queue.submit([trajectory("busy")])
        while len(rewarder.calls) < 2:
            await asyncio.sleep(0.001)
        waiting = queue.submit([trajectory(str(i)) for i in range(20)])
        with pytest.raises(QueueFullError, match="too many trajectories are waiting") as full:
            queue.submit([trajectory("x")])
        assert 4 <= full.value.retry_after <= 6  # 20 of 0.2 s
        queue.drop(waiting)
        queue.drop(waiting)  # twice does nothing
        more: Job = queue.submit([trajectory("y")])
        rewarder.open.set()
        assert is_for(await more.all(), [trajectory("y")])
        await busy.all()

    scene(rewarder, act, queue=20)
    assert rewarder.calls == [["before"], ["busy"], ["y"]]


def test_stopping_finishes_what_is_in_line_and_takes_nothing_new() -> None:
    rewarder = Telltale()
    asked = [trajectory(str(i)) for i in range(10)]

    async def act(queue: Batcher) -> None:
        rewarder.open.clear()
        job = queue.submit(asked)
        while not rewarder.calls:
            await asyncio.sleep(0.001)
        queue.stop()
        with pytest.raises(StoppingError):
            queue.submit(asked)
        rewarder.open.set()
        assert is_for(await job.all(), asked)

    scene(rewarder, act)
