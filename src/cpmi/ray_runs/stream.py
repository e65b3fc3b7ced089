"""The stages of Ray Data that batches go through, and how an execution of it is stopped."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

from cpmi.ray_runs.plan import Plan
from cpmi.ray_runs.rows import nothing, reader
from cpmi.ray_runs.worker import ATTEMPTS, Setup, Worker

if TYPE_CHECKING:
    import pyarrow as pa

_MEMORY = 512 * 2**20  # bytes of batches under way, read or finished, all over the cluster


class Stop:
    """Makes Ray Data's execution end when the event is set: a callback, and the class that Ray makes it of.

    Nothing that ``iter_batches`` gives does: while no batch comes, whoever waits for one cannot close it.
    """

    def __init__(self, stopping: threading.Event | None = None) -> None:
        self._stopping = stopping

    def __call__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self  # Ray copies its settings, and the event must stay the same one

    def __reduce__(self) -> tuple[type[Stop], tuple[()]]:
        return Stop, ()  # settings travel to the workers, where nobody asks for this one

    def before_execution_starts(self, executor: Any) -> None: ...

    def on_execution_step(self, executor: Any) -> None:
        del executor
        if self._stopping is not None and self._stopping.is_set():
            raise StoppedError

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...


class StoppedError(Exception):
    """Nobody wants what would come."""


def _environment(options: dict[str, Any]) -> dict[str, Any]:
    """For the read tasks what the actors get: the keys of a store may be in it."""
    import ray.data

    if not (found := {name: options[name] for name in ("runtime_env",) if name in options}):
        return {}
    has_names = "runtime_env" in inspect.signature(ray.data.read_datasource).parameters  # not in older versions
    return found if has_names else {"ray_remote_args": found}


def stages(plan: Plan, setup: Setup, options: dict[str, Any], least: int, most: int, stopping: threading.Event) -> Any:
    """The stages: read tasks that take no CPU from the actors, and the actors."""
    import ray.data
    from ray.data.datasource import ReadTask

    # Where nothing is left an actor opens its engine all the same: what it is goes into the manifest.
    functions: list[Callable[[], Iterator[pa.Table]]] = [reader(piece) for piece in plan.pieces]
    functions = functions or [nothing]

    class Pieces(ray.data.Datasource):  # type: ignore[misc]  # the base is untyped
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, *_: Any, **__: Any) -> list[Any]:
            unknown = ray.data.block.BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(function, unknown) for function in functions]

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.target_max_block_size = 1  # a row a block, and a block a task: no actor holds finished batches back
    context.max_consecutive_actor_init_deaths = ATTEMPTS
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, Stop(stopping)]
    context.execution_options.resource_limits = ray.data.ExecutionResources(object_store_memory=_MEMORY)
    with ray.data.DataContext.current(context):
        rows = ray.data.read_datasource(
            Pieces(),
            override_num_blocks=len(functions),
            concurrency=min(2, len(functions)),
            num_cpus=0,  # the actors may have all that there are
            **_environment(options),
        )
        return rows.map_batches(
            Worker,
            fn_constructor_args=(setup,),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most, max_tasks_in_flight_per_actor=2),
            **options,
        )
