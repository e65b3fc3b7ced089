"""What a server is told."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from cpmi.aggregation import AGGREGATIONS, Aggregation
from cpmi.errors import InputError, unknown_name
from cpmi.serving.keys import Keys
from cpmi.steps import WAYS


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request, and all of them, may ask for.

    Attributes:
        body_bytes: of a request's body.
        body_seconds: within which it must have arrived.
        trajectories: of one request.
        steps: of one trajectory.
        characters: of one trajectory, question and steps together.
        queue: trajectories that may wait, of all requests.
        connections: open at a time; one more is turned away.

    Raises:
        InputError: one is not above 0, or a request may hold more than can wait.
    """

    body_bytes: int = 8 << 20
    body_seconds: float = 30.0
    trajectories: int = 256
    steps: int = 512
    characters: int = 100_000
    queue: int = 1024
    connections: int = 1000

    def __post_init__(self) -> None:
        for limit in fields(self):
            if not getattr(self, limit.name) > 0:
                raise InputError(f"the limit {limit.name!r} must be above 0")
        if self.trajectories > self.queue:
            raise InputError(
                f"a request may hold {self.trajectories} trajectories, but only {self.queue} may wait; "
                "raise --queue or lower --max-trajectories"
            )


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """How a server scores and whom it answers.

    Attributes:
        name: of the model, as clients see it; empty: what the rewarder calls itself.
        aggregation: how step rewards become the one number of a solution.
        split: how a solution in one text is cut into steps, see ``cpmi.steps.split_steps``.
        failed_reward: the number that the endpoints of trainers give a text that cannot be scored; None: such a
            request is refused.
        batch_size: trajectories scored together.
        wait_seconds: how long a batch that is not full waits for more to arrive.
        shutdown_seconds: how long a server that was told to stop goes on with what it has.
        keys: who may ask; None: everybody.

    Raises:
        InputError: an unknown name, or a number out of range.
    """

    name: str = ""
    aggregation: Aggregation = "min"
    split: str = "auto"
    failed_reward: float | None = None
    batch_size: int = 32
    wait_seconds: float = 0.005
    shutdown_seconds: int = 60
    limits: Limits = field(default_factory=Limits)
    keys: Keys | None = None

    def __post_init__(self) -> None:
        if self.aggregation not in AGGREGATIONS:
            raise unknown_name("aggregation", self.aggregation, AGGREGATIONS)
        if self.split not in ("auto", *WAYS):
            raise unknown_name("way to split steps", self.split, ("auto", *WAYS))
        if self.batch_size < 1 or self.wait_seconds < 0 or self.shutdown_seconds < 0:
            raise InputError("batch_size must be 1 or more, the waiting times 0 or more")
