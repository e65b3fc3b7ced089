"""Where and on what a run's actors live, as the user says it; checked before Ray is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cpmi.errors import InputError, unknown_name
from cpmi.records import JSON

OPTIONS = ("num_cpus", "num_gpus", "memory", "resources", "accelerator_type", "label_selector", "runtime_env")


@dataclass(frozen=True, slots=True)
class RaySettings:
    """Where and on what a run's actors live. It changes no reward, so it is not in the manifest.

    Attributes:
        address: ``local``: a cluster of this machine alone, started for the run and ended with it; ``auto``: the one
            that this machine belongs to; else its ``HOST:PORT``.
        actors: the least and the most of them; each opens an engine of its own. None: one for each GPU of the cluster
            (or for each ``num_gpus`` of them); one where there is none.
        options: of each actor, by Ray's names (``OPTIONS``). ``num_cpus`` is 1 by default, ``num_gpus`` 1 where the
            cluster has GPUs and the engine computes by itself, else 0.
        wait_seconds: for a cluster that grows when it is asked to: how long to wait for a node that can hold an actor.
            0: what no node of the cluster can hold now is refused.

    Raises:
        InputError: an address, a number or an option that cannot be.
    """

    address: str = "local"
    actors: tuple[int, int] | None = None
    options: Mapping[str, JSON] = field(default_factory=dict)
    wait_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.address.startswith("ray://"):
            raise InputError(
                f"{self.address}: Ray Data cannot be driven through a Ray client; run this command on a node of the "
                "cluster with --ray auto (`ray job submit` does that), or name its HOST:PORT"
            )
        if self.actors is not None and not 1 <= self.actors[0] <= self.actors[1]:
            raise InputError(f"actors must be N, or MIN:MAX with 1 <= MIN <= MAX, not {self.actors}")
        if self.wait_seconds < 0:
            raise InputError("the time to wait must be 0 or more")
        for name in self.options:
            if name not in OPTIONS:
                raise unknown_name("Ray option", name, OPTIONS)
        for name in ("num_cpus", "num_gpus", "memory"):
            amount = self.options.get(name, 0)
            if isinstance(amount, bool) or not isinstance(amount, int | float) or amount < 0:
                raise InputError(f"Ray option {name} must be a number of 0 or more, not {amount!r}")
        resources = self.options.get("resources", {})
        if not isinstance(resources, dict) or not all(isinstance(n, int | float) for n in resources.values()):
            raise InputError(f'Ray option resources must be an object of numbers like {{"TPU": 1}}, not {resources!r}')

    @staticmethod
    def parse_actors(text: str | None) -> tuple[int, int] | None:
        """From ``N`` or ``MIN:MAX``.

        Raises:
            InputError: anything else.
        """
        if text is None:
            return None
        least, colon, most = text.partition(":")
        if not (least.isdecimal() and (most.isdecimal() or not colon)):
            raise InputError(f"actors {text!r}: write N, or MIN:MAX")
        return int(least), int(most or least)
