"""What an actor does: it opens an engine once, and computes one batch after the other."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpmi.errors import CpmiError
from cpmi.labelers.rollouts import RolloutStore
from cpmi.ray_runs.cluster import answer
from cpmi.ray_runs.desk import KeptAtDesk
from cpmi.ray_runs.plan import encoded
from cpmi.ray_runs.rows import BATCH, FAILED, error_row, row
from cpmi.records import StepRewards, Trajectory, from_json
from cpmi.running import check_answers
from cpmi.runs import as_json

if TYPE_CHECKING:
    import pyarrow as pa

    from cpmi.protocols import StepRewarder

ATTEMPTS = 4  # at a batch: one that kills its actor every time would be tried for ever

Opener = Callable[[Any, RolloutStore, ExitStack], "StepRewarder"]
"""Opens the method and its engine, from an object of the driver's (a reference to it travels); picklable."""


@dataclass(frozen=True, eq=False, slots=True)
class Setup:
    """What an actor is made of: small, picklable."""

    open: Opener
    payload: Any  # a reference
    desk: Any  # a handle
    folder: str


class Worker:
    """What Ray Data makes an actor of: one engine, open as long as it lives."""

    def __init__(self, setup: Setup) -> None:
        self._desk = setup.desk
        self._store = KeptAtDesk(setup.desk)
        self._opened = ExitStack()
        self._begun = False
        self._failure: CpmiError | None = None
        try:
            self._rewarder = self._open(setup)
        except CpmiError as error:
            self._failure = error

    def _open(self, setup: Setup) -> StepRewarder:
        if Path(setup.folder).is_dir():
            os.chdir(setup.folder)  # so that a relative path is the same here and there
        answer(self._desk.start.remote())
        rewarder = setup.open(answer(setup.payload), self._store, self._opened)
        description = as_json(rewarder.describe())
        problem = answer(self._desk.describe.remote(description, socket.gethostname()))
        if problem is not None:
            raise CpmiError(problem)
        return rewarder

    def __call__(self, table: pa.Table) -> pa.Table:
        """A finished batch for each batch; what went wrong before it passes through."""
        kind, data = table["kind"][0].as_py(), table["data"][0].as_py()
        if kind == FAILED:
            return table
        try:
            if self._failure is not None:
                return error_row(self._failure)
            self._wait()
            batch = [from_json(Trajectory, json.loads(line)) for line in data.splitlines()]
            return row(BATCH, encoded(self._rewards(batch) if batch else ()))
        except CpmiError as error:
            return error_row(error)

    def _wait(self) -> None:
        while not self._begun:
            self._begun, stopped = answer(self._desk.may_begin.remote())
            if stopped is not None:
                raise CpmiError(stopped)
            if not self._begun:
                time.sleep(0.1)

    def _rewards(self, batch: list[Trajectory]) -> list[StepRewards]:
        before, kept = answer(self._desk.take.remote([trajectory.id for trajectory in batch]))
        if before >= ATTEMPTS:
            raise CpmiError(
                f"the batch that begins with the trajectory {batch[0].id!r} has ended {before} actors; Ray's logs say "
                "of what (often memory: ask for more of it, or for a smaller --batch-size)"
            )
        self._store.fill(kept)
        records = self._rewarder.rewards(batch)
        check_answers(self._rewarder, batch, records)
        return records
