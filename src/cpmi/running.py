"""Any ``StepRewarder`` over trajectories, batch by batch, into a part file; and how far that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from cpmi.errors import CpmiError
from cpmi.parts import Part
from cpmi.protocols import StepRewarder
from cpmi.records import Cost, StepRewards, Trajectory
from cpmi.runs import Shard


@dataclass(slots=True)
class Progress:
    """How far a run is; counts of this attempt but for ``before``.

    Attributes:
        total: trajectories of this shard (within ``limit``).
        before: of these, how many an earlier attempt had done.
        failed_before: of those, how many ended in an error.
        rollouts: sampled so far, also for trajectories that are not done yet.
    """

    total: int
    before: int = 0
    failed_before: int = 0
    rewarded: int = 0
    failed: int = 0
    rollouts: int = 0
    cost: Cost = Cost()
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def done(self) -> int:
        return self.before + self.rewarded + self.failed

    def add(self, record: StepRewards) -> None:
        self.cost += record.cost
        if record.error is None:
            self.rewarded += 1
        else:
            self.failed += 1
            self.errors[record.error] += 1


def run_part(
    rewarder: StepRewarder,
    trajectories: Iterable[Trajectory],
    part: Part,
    shard: Shard,
    total: int,
    *,
    batch_size: int = 8,
    complete: bool = True,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Reward every trajectory of the shard that the part does not hold yet; ``batch_size`` at a time, then to disk.

    Args:
        total: how many trajectories of the shard will come, for progress.
        complete: these are all the trajectories of the shard, so that the part is marked as done in the end.
    """
    progress = Progress(total)

    def todo() -> Iterator[Trajectory]:
        for trajectory in trajectories:
            if not shard.holds(trajectory.id):
                continue
            if trajectory.id in part.ids:
                progress.before += 1
                progress.failed_before += trajectory.id in part.failed
            else:
                yield trajectory

    def finished() -> Iterator[list[StepRewards]]:
        stream = todo()
        while batch := list(islice(stream, batch_size)):
            records = rewarder.rewards(batch)
            check_answers(rewarder, batch, records)
            yield records

    write_part(finished(), part, progress, complete=complete, on_progress=on_progress)
    return progress


def write_part(
    batches: Iterable[list[StepRewards]],
    part: Part,
    progress: Progress,
    *,
    complete: bool = True,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Take finished batches to disk as they come, wherever they were computed.

    Args:
        progress: is kept up to date.
        complete: with them all trajectories of the shard are there, so that the part is marked as done in the end.
    """
    on_progress(progress)  # the clock starts here
    for records in batches:
        part.append(records)
        for record in records:
            progress.add(record)
        on_progress(progress)
    if complete:
        part.mark_done()


def check_answers(rewarder: StepRewarder, batch: list[Trajectory], records: list[StepRewards]) -> None:
    """A rewarder that mixes up trajectories or steps is a bug that must not reach the disk.

    Raises:
        CpmiError: it does.
    """
    for trajectory, record in zip(batch, records, strict=True):
        wrong_length = record.error is None and len(record.rewards) != len(trajectory.steps)
        if record.trajectory_id != trajectory.id or wrong_length:
            raise CpmiError(f"{rewarder.name}: its rewards for {trajectory.id!r} do not fit that trajectory's steps")
