"""A decoder's states at the ends of steps: every token once.

Trajectories that begin alike are read as one trie, the others batched by length.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cpmi.errors import CpmiError
from cpmi.models.capabilities import capabilities
from cpmi.models.memory import is_out_of_memory
from cpmi.models.tree_attention import TreeAttention
from cpmi.prm.encode import Encoded
from cpmi.prm.network import StepScorer, pad
from cpmi.prm.sharing import Row, plan_rows
from cpmi.records import Cost

logger = logging.getLogger("cpmi")

# Tokens of one pass, padding included. On CPU a larger batch gains nothing; a single long trajectory is a batch too.
_BATCH_TOKENS = {"cpu": 1024}
_BATCH_TOKENS_ELSEWHERE = 32_768
# Tokens of a trie, whose attention mask is dense.
_ROW_TOKENS = {"cpu": 1024}
_ROW_TOKENS_ELSEWHERE = 8192


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
        row_tokens = _ROW_TOKENS.get(device.type, _ROW_TOKENS_ELSEWHERE)
        self._row_tokens = min(row_tokens, batch_tokens or row_tokens)
        self._capable = capabilities(network.backbone)
        self._attention = TreeAttention(network.backbone, self._capable)
        if reason := self._attention.flex_left:
            logger.warning("FlexAttention %s; attending block by block (same numbers, slower)", reason)
        if self._capable.no_tree is None and (difference := self._probe()) is not None:
            self._capable = replace(self._capable, no_tree=difference)

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

        able = [index for index, each in enumerate(encoded) if each.ends]
        for index in sorted(set(range(len(encoded))) - set(able)):
            finish(index, StepStates(None, error="no steps"))
        # The longest first: what does not fit into memory shows at once.
        queue = sorted(self._read_rows(encoded, able, finish), key=lambda i: -len(encoded[i]))
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
                    finish(index, StepStates(each[: len(encoded[index].ends)].clone(), cost))
        return [each for each in results if each is not None]

    def _read_rows(
        self, encoded: Sequence[Encoded], able: Sequence[int], finish: Callable[[int, StepStates], None]
    ) -> list[int]:
        """Read what begins alike; the indices of what is left."""
        if self._capable.no_tree is not None:
            return list(able)
        rows, alone = plan_rows([encoded[index] for index in able], self._row_tokens)
        for row in sorted(rows, key=lambda row: -len(row)):
            if self._capable.too_deep(int(row.depths.max()) + 1) or len(row) > self._row_tokens:
                alone += row.members
                continue
            start = time.perf_counter()
            states = self._trying(functools.partial(self._row, row), len(row))
            if states is None:
                self._row_tokens = len(row) // 2
                alone += row.members
                continue
            seconds = time.perf_counter() - start
            lengths = [len(encoded[able[member]]) for member in row.members]
            # Each pays for its share; the shares of whole tokens add up to the row.
            paid = [round(len(row) * part / sum(lengths)) for part in itertools.accumulate(lengths, initial=0)]
            for number, (member, places) in enumerate(zip(row.members, row.places, strict=True)):
                cost = Cost(
                    tokens_scored=paid[number + 1] - paid[number], seconds=seconds * lengths[number] / sum(lengths)
                )
                finish(able[member], StepStates(states[places], cost))
        return [able[index] for index in alone]

    def _take(self, queue: list[int], encoded: Sequence[Encoded]) -> list[int]:
        """The next trajectories that fit into a rectangle, at least one; the first is the longest."""
        count = max(1, self._batch_tokens // len(encoded[queue[0]]))
        batch, queue[:] = queue[:count], queue[count:]
        return batch

    def _pass(self, batch: Sequence[Encoded]) -> Tensor | None:
        """(B, S, H) states, or None where memory ran out; then less fits from now on."""

        def run() -> Tensor:
            inputs = {name: value.to(self._device) for name, value in pad(batch).items()}
            # Without padding nothing needs masking, and attention takes its fast causal path.
            mask = inputs["attention_mask"] if len({len(each) for each in batch}) > 1 else None
            return self._network.states(inputs["input_ids"], mask, inputs["ends"]).cpu()

        tokens = max(map(len, batch)) * len(batch)
        states = self._trying(run, tokens)
        if states is None:
            self._batch_tokens = max(1, tokens // 2)
        return states

    def _row(self, row: Row) -> Tensor:
        """(n, H) the states of a trie's tokens."""
        decoder: Any = self._network.backbone
        with self._attention.row(row.ends, row.depths) as mask:
            out = decoder(
                input_ids=torch.as_tensor(row.ids[None], device=self._device),
                position_ids=torch.as_tensor(row.depths[None], device=self._device),
                attention_mask=mask,
                use_cache=False,
            )
        states: Tensor = out.last_hidden_state[0].cpu()
        return states

    @torch.inference_mode()
    def _trying(self, run: Callable[[], Tensor], tokens: int) -> Tensor | None:
        """What ``run`` gives, or None where memory ran out."""
        try:
            return run()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning("out of memory with %d tokens at a time; going on with fewer", tokens)
        return None

    def _probe(self) -> str | None:
        """Why a small trie comes out otherwise than its sequences, or None if it does not.

        Catches what no list of architectures can: a decoder that ignores a mask or positions handed to it.
        """
        shared = (3, 4, 5, 6, 7, 8)
        ends = [(9, 10, 11), (12, 13), (12, 14, 15, 16)]
        tries = [Encoded(shared + each, (3, len(shared + each) - 1)) for each in ends]
        rows, alone = plan_rows(tries, 64)
        if alone or len(rows) != 1:
            raise CpmiError("a trie of three sequences was not made one row")
        if self._capable.too_deep(len(rows[0])):
            return None
        with torch.inference_mode():
            whole = self._row(rows[0])
            plain = [self._pass([each]) for each in tries]
        worst = 0.0
        for member, places in zip(rows[0].members, rows[0].places, strict=True):
            alone_states = plain[member]
            assert alone_states is not None  # noqa: S101 - six tokens fit into any memory
            size = float(alone_states.float().abs().max())
            worst = max(worst, float((whole[places].float() - alone_states[0].float()).abs().max()) / size)
        tolerance = 1e-4 if whole.dtype == torch.float32 else 0.1
        return None if worst < tolerance else f"a trie changes its states by {worst:.2g}"
