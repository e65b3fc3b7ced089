"""A decoder's states at the ends of steps: one pass over each trajectory, batched by length."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cpmi.models.memory import is_out_of_memory
from cpmi.prm.encode import Encoded
from cpmi.prm.network import StepScorer, pad
from cpmi.records import Cost

logger = logging.getLogger("cpmi")

# Tokens of one pass, padding included. On CPU a larger batch gains nothing; a single long trajectory is a batch too.
_BATCH_TOKENS = {"cpu": 1024}
_BATCH_TOKENS_ELSEWHERE = 32_768


@dataclass(frozen=True, slots=True, eq=False)
class StepStates:
    """What the decoder says of one trajectory.

    Attributes:
        states: (steps, H) on the CPU, in the decoder's dtype; None where ``error`` is set.
        error: why there are none, in one line.
    """

    states: Tensor | None
    cost: Cost = Cost()
    error: str | None = None


class StateReader:
    """Runs a ``StepScorer``'s decoder."""

    def __init__(self, network: StepScorer, device: torch.device, *, batch_tokens: int = 0) -> None:
        """Read with this network.

        Args:
            batch_tokens: the most tokens of one pass, padding included; 0: what suits the device.
        """
        self._network = network
        self._device = device
        self._batch_tokens = batch_tokens or _BATCH_TOKENS.get(device.type, _BATCH_TOKENS_ELSEWHERE)

    def read(
        self, encoded: Sequence[Encoded], on_done: Callable[[int, StepStates], None] = lambda *_: None
    ) -> list[StepStates]:
        """The states of each trajectory, in order.

        Args:
            on_done: called with an index and its states as soon as they are there.
        """
        results: list[StepStates | None] = [None] * len(encoded)

        def finish(index: int, states: StepStates) -> None:
            results[index] = states
            on_done(index, states)

        # The longest first: what does not fit into memory shows at once.
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
        queue = [index for index in order if encoded[index].ends]
        for index in order:
            if not encoded[index].ends:
                finish(index, StepStates(None, error="no steps"))
        while queue:
            batch = self._take(queue, encoded)
            start = time.perf_counter()
            states = self._pass([encoded[index] for index in batch])
            seconds = time.perf_counter() - start
            if states is None and len(batch) == 1:
                finish(batch[0], StepStates(None, error=f"out of memory with {len(encoded[batch[0]])} tokens"))
            elif states is None:
                queue = batch + queue
            else:
                tokens = sum(len(encoded[index]) for index in batch)
                for index, each in zip(batch, states, strict=True):
                    share = len(encoded[index])
                    cost = Cost(tokens_scored=share, seconds=seconds * share / tokens)
                    finish(index, StepStates(each[: len(encoded[index].ends)], cost))
        return [each for each in results if each is not None]

    def _take(self, queue: list[int], encoded: Sequence[Encoded]) -> list[int]:
        """The next trajectories that fit into a rectangle, at least one; the first is the longest."""
        count = max(1, self._batch_tokens // len(encoded[queue[0]]))
        batch, queue[:] = queue[:count], queue[count:]
        return batch

    @torch.inference_mode()
    def _pass(self, batch: Sequence[Encoded]) -> Tensor | None:
        """(B, S, H) states, or None where memory ran out; then less fits from now on."""
        inputs = {name: value.to(self._device) for name, value in pad(batch).items()}
        # Without padding nothing needs masking, and attention takes its fast causal path.
        mask = inputs["attention_mask"] if len({len(each) for each in batch}) > 1 else None
        try:
            return self._network.states(inputs["input_ids"], mask, inputs["ends"]).cpu()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._batch_tokens = max(1, max(map(len, batch)) * (len(batch) // 2))
        logger.warning("out of memory; going on with at most %d tokens at a time", self._batch_tokens)
        return None
