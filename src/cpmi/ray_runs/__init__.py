"""Batches of a run computed by actors on a Ray cluster; whoever started the run stays the only one who writes it.

    the file -> slices -> read tasks -> batches -> actors -> finished batches -> the driver -> part file
                `plan`    `rows`                   `worker`                      `run`

Ray Data streams them (`stream`): a row between its stages is one batch as JSON lines, in a block of its own, so that
what a batch costs is lost with an actor and nothing else. Beside it stands the desk (`desk`), a small actor on the
driver's node. Actors tell it what they have opened and bring it each finished rollout at once; they begin when the
driver has compared what they have opened with the run's manifest.

Errors that are meant for the user travel as rows. An exception in an actor is a bug, and a dead actor is Ray's to
restart.
"""

from cpmi.ray_runs.plan import Plan, Slice
from cpmi.ray_runs.run import RayRun
from cpmi.ray_runs.settings import OPTIONS, RaySettings
from cpmi.ray_runs.worker import Opener, Worker

__all__ = ["OPTIONS", "Opener", "Plan", "RayRun", "RaySettings", "Slice", "Worker"]
