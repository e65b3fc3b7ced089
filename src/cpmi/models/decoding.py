"""Many completions at a time: what prompts have in common is computed once, and no row waits for another.

Every row of a batch is at a place of its own in a text of its own. Their key/value states stand side by side, aligned
on the right; a row that is done leaves the batch and the next one takes its place. This is a loop of our own because
``generate`` computes a batch until its longest row is done, and the library's continuous batching has one random
generator for all requests and no stop texts.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from cpmi.models.memory import attempt
from cpmi.models.sampling import Ledger, Picker, Row

# Transformers renamed the argument in 5.24; models with code of their own keep the old name.
_CACHE_NAMES = ("past_key_values", "cache")


@dataclass(slots=True)
class BatchLimits:
    """How much is decoded at a time.

    Attributes:
        rows: the most completions; halved when memory runs out.
        tokens: the most tokens of all of them together, counting padding and those still to come.
        chunk: the most tokens of a prompt in one forward pass.
    """

    rows: int
    tokens: int
    chunk: int

    def halve(self, rows: int, note: Callable[[str], None]) -> None:
        """From now on half of these rows at a time, which were too many."""
        self.rows = max(1, rows // 2)
        note(f"out of memory; going on with at most {self.rows} completions at a time")


def out_of_memory(row: Row) -> str:
    return f"out of memory with a single completion, at {len(row.tokens)} tokens"


def why_not_batched(model: Any) -> str | None:
    """Why a model's states cannot be cut, padded and put side by side token by token, or None if they can."""
    # The underscored attribute is Transformers' own way to say this about a model; there is no public one.
    if getattr(model, "_is_stateful", False):
        return "its recurrent layers keep no state per token"
    parameters = inspect.signature(model.forward).parameters
    if not any(name in parameters for name in _CACHE_NAMES):
        return "its forward pass takes no cache"
    if missing := sorted({"attention_mask", "position_ids"} - set(parameters)):
        return f"its forward pass takes no {' and no '.join(missing)}"
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if unknown := sorted(kinds - {"full_attention", "sliding_attention"}):
        return f"it has layers of the kind {', '.join(unknown)}"
    layers = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if unknown := sorted(layer.__name__ for layer in layers - {DynamicLayer, DynamicSlidingWindowLayer}):
        return f"it has caches of the kind {', '.join(unknown)}"
    return None


@torch.inference_mode()
def probe(model: Any, vocabulary: int) -> str | None:
    """Why two texts of unlike length, decoded together from a shared beginning, come out wrong; None if they do not.

    Catches what no list of capabilities can: models that ignore a mask or positions handed to them.
    """
    long = [i * 7919 % vocabulary for i in range(3, 14)]
    trunk, batch = Trunk(model, chunk=4), Batch(model)
    for tokens in (long[:5], long):
        trunk.move_to(tokens[:-1])
        batch.join([Row(0, tokens, len(tokens), 1, "")], trunk.cache)
    together = batch.step().float().softmax(-1)
    for got, row in zip(together, batch.rows, strict=True):
        ids = torch.tensor([row.tokens], device=model.device)
        alone = model(ids).logits[0, -1].float().softmax(-1)
        difference = (got - alone).abs().max().item()
        if not difference < (1e-3 if model.dtype == torch.float32 else 0.1):
            return f"decoding in a batch changes its probabilities by {difference:.2g}"
    return None


class Trunk:
    """The states of one text at a time; the next text takes over those of what it has in common with it.

    So the sorted prompts of a trajectory, each the beginning of the next, cost as much as the longest.
    """

    def __init__(self, model: Any, chunk: int) -> None:
        self._model = model
        self._chunk = chunk
        self.clear()

    def clear(self) -> None:
        # Without a configuration it keeps every token, whereas a model's own forgets what left a sliding window; the
        # window is in the mask that the model makes either way.
        self.cache: Any = DynamicCache()
        self._tokens: list[int] = []
        self._logits: torch.Tensor | None = None

    def move_to(self, tokens: list[int]) -> tuple[torch.Tensor, int]:
        """Hold the states of this text.

        Returns:
            (1, vocabulary) logits of what follows it, and how many tokens were computed.
        """
        if self._logits is None or tokens != self._tokens:
            kept = min(shared_beginning(self._tokens, tokens), len(tokens) - 1)  # the last one gives the logits
            self._crop(kept)
            for start in range(kept, len(tokens), self._chunk):
                self._feed(tokens[start : start + self._chunk])
            computed = len(tokens) - kept
        else:
            computed = 0
        assert self._logits is not None  # noqa: S101 - for the type checker
        return self._logits, computed

    def _crop(self, kept: int) -> None:
        if not kept:
            self.clear()
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :kept], layer.values[:, :, :kept]
        self._tokens, self._logits = self._tokens[:kept], None

    def _feed(self, tokens: list[int]) -> None:
        ids = torch.tensor([tokens], device=self._model.device)
        places = torch.arange(len(self._tokens), len(self._tokens) + len(tokens), device=ids.device)
        seen = torch.ones(1, len(self._tokens) + len(tokens), dtype=torch.long, device=ids.device)
        self._logits = next_logits(self._model, ids, seen, places[None], self.cache)
        self._tokens = self._tokens + tokens


def shared_beginning(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts have in common from their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def next_logits(model: Any, ids: torch.Tensor, seen: torch.Tensor, places: torch.Tensor, cache: Any) -> torch.Tensor:
    """(rows, vocabulary) logits behind the last of the new tokens ``ids`` (rows, new), whose states join the cache."""
    parameters = inspect.signature(model.forward).parameters
    more = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
    more |= {next(name for name in _CACHE_NAMES if name in parameters): cache}
    output = model(ids, attention_mask=seen, position_ids=places, use_cache=True, **more)
    logits: torch.Tensor = output.logits[:, -1]
    return logits


class Batch:
    """Rows under way and the states of all their tokens but the last, padded on the left to one width."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.clear()

    def clear(self) -> None:
        self.rows: list[Row] = []
        self._cache: Any = DynamicCache()

    def join(self, rows: Sequence[Row], trunk: Any) -> int:
        """Add rows whose text was the trunk's before their newest token; how many rows there are then."""
        width = max([*self._lengths(), len(rows[0].tokens) - 1])
        joined = [*self.rows, *rows]
        states = []
        for i, layer in enumerate(trunk.layers):
            here = self._cache.layers[i] if self.rows else None
            keys = _stack(here and here.keys, layer.keys, len(rows), width)
            states.append((keys, _stack(here and here.values, layer.values, len(rows), width)))
            if here is not None:
                here.keys = here.values = None  # so that not all layers are there twice at a time
        self._cache = DynamicCache(states)
        self.rows = joined
        return len(joined)

    def step(self) -> torch.Tensor:
        """Feed each row's newest token; (rows, vocabulary) logits of what follows it."""
        lengths = torch.tensor(self._lengths(), device=self._model.device)
        width = int(max(self._lengths()))
        newest = torch.tensor([[row.tokens[-1]] for row in self.rows], device=lengths.device)
        columns = torch.arange(width + 1, device=lengths.device)
        seen = (columns[None, :] >= width - lengths[:, None]).long()
        return next_logits(self._model, newest, seen, lengths[:, None], self._cache)

    def drop_finished(self) -> None:
        """Take the finished rows out, and the padding that only they needed."""
        stay = [i for i, row in enumerate(self.rows) if row.finish_reason is None]
        if len(stay) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in stay]
        if not stay:
            self.clear()
            return
        width = max(self._lengths())
        for layer in self._cache.layers:
            chosen = torch.tensor(stay, device=layer.keys.device)
            layer.keys, layer.values = layer.keys[chosen, :, -width:], layer.values[chosen, :, -width:]

    def _lengths(self) -> list[int]:
        return [len(row.tokens) - 1 for row in self.rows]


def _stack(above: torch.Tensor | None, trunk: torch.Tensor, copies: int, width: int) -> torch.Tensor:
    """(rows + copies, heads, width, size): the states of the rows above, and of a trunk for each new row below."""
    rows = 0 if above is None else len(above)
    stacked = trunk.new_zeros(rows + copies, trunk.shape[1], width, trunk.shape[3])
    if above is not None:
        stacked[:rows, :, width - above.shape[2] :] = above
    stacked[rows:, :, width - trunk.shape[2] :] = trunk
    return stacked


class Decoder:
    """Samples the rows of a request, as many at a time as memory holds."""

    def __init__(self, model: Any, limits: BatchLimits, note: Callable[[str], None]) -> None:
        """``note`` is told, in a line, when memory runs out."""
        self._model = model
        self._limits = limits
        self._note = note
        self._trunk, self._batch = Trunk(model, limits.chunk), Batch(model)

    @torch.inference_mode()
    def run(self, rows: Sequence[Row], picker: Picker, ledger: Ledger) -> None:
        """Sample all rows to their end. Those with tokens in common should stand side by side."""
        queue = deque(rows)
        while queue or self._batch.rows:
            if fitting := self._fitting(queue):
                self._admit(fitting, queue, picker, ledger)
            else:
                self._step(queue, picker, ledger)
            while queue and queue[0].finish_reason is not None:  # its prompt failed
                queue.popleft()
        self._trunk.clear()

    def _fitting(self, queue: deque[Row]) -> list[Row]:
        """The rows at the head of the queue, alike in their tokens, that can join the batch."""
        if not queue:
            return []
        active = self._batch.rows
        longest = max(row.start + row.room for row in [queue[0], *active])
        most = min(self._limits.rows, self._limits.tokens // longest) - len(active)
        alike = takewhile(lambda row: row.tokens == queue[0].tokens, queue)
        return list(islice(alike, max(most, 0 if active else 1)))

    def _admit(self, rows: list[Row], queue: deque[Row], picker: Picker, ledger: Ledger) -> None:
        def begin() -> tuple[int, list[int]]:
            logits, computed = self._trunk.move_to(rows[0].tokens)
            return computed, picker.pick(logits.expand(len(rows), -1), rows)

        begun = attempt(begin, self._model.device)
        for _ in rows if begun else rows[:1]:
            queue.popleft()
        if not begun:
            self._make_room([*self._batch.rows, rows[0]], queue, ledger)
            return
        ledger.computed(rows[0].prompt, begun[0])
        ledger.advance(rows, begun[1])
        going_on = [row for row in rows if row.finish_reason is None]
        if going_on and not attempt(lambda: self._batch.join(going_on, self._trunk.cache), self._model.device):
            self._make_room([*self._batch.rows, *going_on], queue, ledger)

    def _step(self, queue: deque[Row], picker: Picker, ledger: Ledger) -> None:
        rows = self._batch.rows
        tokens = attempt(lambda: picker.pick(self._batch.step(), rows), self._model.device)
        if tokens is None:
            self._make_room(rows, queue, ledger)
            return
        ledger.advance(rows, tokens)
        self._batch.drop_finished()

    def _make_room(self, rows: list[Row], queue: deque[Row], ledger: Ledger) -> None:
        """After running out of memory with these rows: half as many at a time from now on, their states anew."""
        self._batch.clear()
        self._trunk.clear()
        if len(rows) == 1:
            ledger.close(rows[0].prompt, error=out_of_memory(rows[0]))
            return
        self._limits.halve(len(rows), self._note)
        queue.extendleft(sorted(rows, key=lambda row: row.tokens, reverse=True))
