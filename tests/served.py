"""A reward model whose rewards tell which text they belong to, and a server of it on loopback."""

from __future__ import annotations

import http.client
import json
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import uvicorn

from cpmi.errors import CpmiError
from cpmi.records import Cost, StepRewards, Trajectory
from cpmi.serving import ServeSettings, bind
from cpmi.serving.app import make_app


def reward_of(question: str, steps: Sequence[str], index: int) -> float:
    """A number in [0, 1) of the question and the steps up to this one: no two texts of a test share it."""
    return zlib.crc32("\0".join([question, *steps[: index + 1]]).encode()) / 2**32


def rewards_of(question: str, steps: Sequence[str]) -> list[float]:
    return [reward_of(question, steps, index) for index in range(len(steps))]


class Telltale:
    """A ``StepRewarder``: a trajectory with a step ``bad`` is an error, with ``explode`` or ``refuse`` it raises.

    Attributes:
        open: calls wait until it is set.
        calls: the questions of each call so far.
    """

    name = "telltale"

    def __init__(self, seconds: float = 0.0) -> None:
        self.open = threading.Event()
        self.open.set()
        self.calls: list[list[str]] = []
        self._seconds = seconds

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        self.calls.append([trajectory.question for trajectory in trajectories])
        assert self.open.wait(60)
        time.sleep(self._seconds)
        return [self._reward(trajectory) for trajectory in trajectories]

    def _reward(self, trajectory: Trajectory) -> StepRewards:
        if "explode" in trajectory.steps:
            raise ZeroDivisionError("kaboom")
        if "refuse" in trajectory.steps:
            raise CpmiError("out of memory with 9 tokens")
        if "bad" in trajectory.steps or not trajectory.steps:
            return StepRewards(trajectory.id, (), self.name, error="too long" if trajectory.steps else "no steps")
        rewards = tuple(rewards_of(trajectory.question, trajectory.steps))
        terms = {"score": tuple(2 * reward for reward in rewards)}
        return StepRewards(trajectory.id, rewards, self.name, terms=terms, cost=Cost(0, 10 * len(rewards), 0.5))

    def describe(self) -> dict[str, Any]:
        return {"engine": {"model": "org/telltale", "revision": "r1"}, "family": None}


class Running(uvicorn.Server):
    """A server in a thread."""

    def __init__(self, rewarder: Telltale, settings: ServeSettings) -> None:
        app = make_app(rewarder, settings)
        super().__init__(uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=20))
        self.socket = bind("127.0.0.1", 0)
        self.port = int(self.socket.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.run, kwargs={"sockets": [self.socket]})

    def get(self, path: str) -> str:
        """The body of a GET that succeeds."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read().decode()
        assert response.status == 200, body
        return body

    def metric(self, name: str) -> float:
        """The value of a metric, given with its labels; 0 until something is counted under these."""
        values = [line.split()[-1] for line in self.get("/metrics").splitlines() if line.startswith(name + " ")]
        assert len(values) < 2
        return float(values[0]) if values else 0.0

    def wait_until(self, name: str, value: float, *, or_more: bool = False) -> None:
        """Wait until a metric has a value; ``or_more``: a counter may have passed it unseen."""
        until = time.monotonic() + 30
        while (found := self.metric(name)) != value and not (or_more and found > value):
            assert time.monotonic() < until, f"{name} is {self.metric(name)}"
            time.sleep(0.02)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of a POST."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with closing(connection):
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())


@contextmanager
def running(rewarder: Telltale, settings: ServeSettings | None = None) -> Iterator[Running]:
    """A server that listens, and is stopped in the end."""
    server = Running(rewarder, settings or ServeSettings())
    server.thread.start()
    until = time.monotonic() + 30
    while not server.started:
        assert server.thread.is_alive()
        assert time.monotonic() < until
        time.sleep(0.01)
    try:
        yield server
    finally:
        rewarder.open.set()
        server.should_exit = True
        server.thread.join(60)
        server.socket.close()
        assert not server.thread.is_alive()
