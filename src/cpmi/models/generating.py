"""Completions with Transformers' own ``generate``, one prompt at a time, for models whose states cannot be shared."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from cpmi.models.decoding import BatchLimits, out_of_memory
from cpmi.models.memory import attempt
from cpmi.models.sampling import Ledger, Picker, Row


class Generator:
    """Samples the rows of a request; does what ``Decoder`` does, for any model."""

    def __init__(self, model: Any, pad_token: int, limits: BatchLimits, note: Callable[[str], None]) -> None:
        """``note`` is told, in a line, when memory runs out; ``pad_token`` fills up rows that are done."""
        self._model = model
        self._pad_token = pad_token
        self._limits = limits
        self._note = note

    @torch.inference_mode()
    def run(self, rows: Sequence[Row], picker: Picker, ledger: Ledger) -> None:
        """Sample all rows to their end; those of one prompt stand side by side."""
        for _, group in groupby(rows, key=lambda row: row.prompt):
            queue = deque(group)
            while queue and queue[0].finish_reason is None:  # else its prompt failed
                self._take(queue, picker, ledger)

    def _take(self, queue: deque[Row], picker: Picker, ledger: Ledger) -> None:
        most = max(1, min(self._limits.rows, self._limits.tokens // (queue[0].start + queue[0].room)))
        rows = [queue.popleft() for _ in range(min(most, len(queue)))]
        if attempt(lambda: self._generate(rows, picker, ledger), self._model.device) is None:
            self._make_room([row for row in rows if row.finish_reason is None], queue, ledger)

    def _generate(self, rows: list[Row], picker: Picker, ledger: Ledger) -> int:
        """Sample rows of one prompt to their end; how many prompt tokens were computed for it."""
        prompt = torch.tensor([row.tokens for row in rows], device=self._model.device)
        ledger.computed(rows[0].prompt, prompt.numel())
        self._model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=rows[0].room,
            do_sample=False,
            logits_processor=LogitsProcessorList([_Choose(rows, picker, ledger)]),
            stopping_criteria=StoppingCriteriaList([_Finished(rows)]),
            pad_token_id=self._pad_token,
        )
        return prompt.numel()

    def _make_room(self, rows: list[Row], queue: deque[Row], ledger: Ledger) -> None:
        """After running out of memory with these rows: half as many at a time from now on, from their beginning."""
        if len(rows) == 1:
            ledger.close(rows[0].prompt, error=out_of_memory(rows[0]))
            queue.clear()  # they are all of this prompt
            return
        self._limits.halve(len(rows), self._note)
        for row in rows:
            del row.tokens[row.start :]
        queue.extendleft(reversed(rows))


class _Choose(LogitsProcessor):
    """Leaves ``generate`` no choice but the token that was drawn for each row."""

    def __init__(self, rows: list[Row], picker: Picker, ledger: Ledger) -> None:
        self._rows = rows
        self._picker = picker
        self._ledger = ledger

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        del input_ids
        going_on = [i for i, row in enumerate(self._rows) if row.finish_reason is None]
        rows = [self._rows[i] for i in going_on]
        tokens = self._picker.pick(scores[going_on], rows)
        self._ledger.advance(rows, tokens)
        chosen = torch.full_like(scores, -torch.inf)
        chosen[going_on, tokens] = 0.0
        return chosen


class _Finished(StoppingCriteria):
    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        del scores
        return torch.tensor([row.finish_reason is not None for row in self._rows], device=input_ids.device)
