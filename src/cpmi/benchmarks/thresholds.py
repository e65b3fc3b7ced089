"""Threshold protocols: where the line between right and wrong steps comes from.

A figure means little without the name of its protocol.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cpmi.errors import InputError
from cpmi.metrics import JudgedTrajectory

TUNED_ON = "gsm8k"


@dataclass(frozen=True, slots=True)
class Protocol:
    """One of the protocols of the field.

    Attributes:
        name: ``fixed-0.5`` (or another number): the same for all; ``gsm8k-tuned``: best on the subset GSM8K, used for
            all; ``dev:FILE``: best on other data; ``oracle``: best on the very labels that are reported, an upper
            bound.
        value: of a fixed threshold.
        dev: the file of a ``dev`` protocol.
    """

    name: str
    value: float | None = None
    dev: str | None = None

    @classmethod
    def parse(cls, text: str) -> Protocol:
        """Read a protocol from its name.

        Raises:
            InputError: no such protocol.
        """
        kind, _, rest = text.partition(":" if text.startswith("dev") else "-")
        if text in ("oracle", "gsm8k-tuned"):
            return cls(text)
        if kind == "dev" and rest:
            return cls(text, dev=rest)
        if kind == "fixed":
            try:
                value = float(rest)
            except ValueError:
                value = math.nan
            if math.isfinite(value):
                return cls(text, value=value)
        raise InputError(f"unknown threshold {text!r}; use fixed-0.5, gsm8k-tuned, oracle or dev:FILE")

    @property
    def is_oracle(self) -> bool:
        return self.name == "oracle"

    def threshold(
        self,
        tuning: Sequence[JudgedTrajectory],
        best: Callable[[Sequence[JudgedTrajectory]], float | None],
    ) -> float | None:
        """The threshold to use; None for the oracle, which has one of its own for each figure.

        Args:
            tuning: what a tuned protocol is tuned on.
            best: finds the best threshold on judged trajectories, by the benchmark's own metric.

        Raises:
            InputError: there is nothing to tune on.
        """
        if self.is_oracle or self.value is not None:
            return self.value
        found = best(tuning)
        if found is None:
            what = f"the subset {TUNED_ON} has" if self.dev is None else f"{self.dev} has"
            raise InputError(
                f"threshold {self.name}: {what} not both trajectories with an error and without one that have rewards; "
                "use dev:FILE with other data, or fixed-0.5"
            )
        return found
