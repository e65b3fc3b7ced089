"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one server, in a registry of their own.

    Attributes:
        requests: answered, by ``path`` (of our routes, else ``other``) and ``status`` (499: the client went away).
        request_seconds: from the first byte of the body to the last of the answer, by ``path``.
        trajectories: by ``outcome``: ``scored``, ``failed`` (an error of its own), ``dropped`` (nobody waits any more).
        steps, tokens: scored.
        batch_size, batch_seconds: of a call of the reward model.
        failures: calls of the reward model that raised.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        """Count from zero.

        Args:
            waiting: how many trajectories wait right now.
        """
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter("cpmi_requests", "Requests answered.", ["path", "status"], registry=self._registry)
        self.request_seconds = Histogram(
            "cpmi_request_seconds", "Time of a request.", ["path"], buckets=_SECONDS, registry=self._registry
        )
        self.trajectories = Counter(
            "cpmi_trajectories", "Trajectories by what became of them.", ["outcome"], registry=self._registry
        )
        for outcome in ("scored", "failed", "dropped"):
            self.trajectories.labels(outcome)  # so that a rate can be taken before the first of a kind
        self.steps = Counter("cpmi_steps", "Steps scored.", registry=self._registry)
        self.tokens = Counter("cpmi_tokens", "Tokens the reward model read.", registry=self._registry)
        self.batch_size = Histogram(
            "cpmi_batch_trajectories", "Trajectories scored together.", buckets=_SIZES, registry=self._registry
        )
        self.batch_seconds = Histogram(
            "cpmi_batch_seconds", "Time of a call of the reward model.", buckets=_SECONDS, registry=self._registry
        )
        self.failures = Counter(
            "cpmi_model_failures", "Calls of the reward model that raised.", registry=self._registry
        )
        queue = Gauge("cpmi_queue_trajectories", "Trajectories that wait.", registry=self._registry)
        queue.set_function(waiting)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)
