"""What sampling is, whatever computes the logits: which token comes next, where a completion ends, what it cost.

A completion has random numbers of its own, which only its prompt's seed and its own number decide. So it is the same,
up to rounding, whatever is computed beside it and in whichever order.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cpmi.models.tokenizing import SegmentTokenizer
from cpmi.protocols import Completion, OnSampled, Sampled, SamplingParams
from cpmi.records import Cost

NO_TOKEN = -1


def plain_generation(model: Any) -> frozenset[int]:
    """Take the checkpoint's own sampling habits (penalties, top_k, suppressed tokens...) off the model.

    ``generate`` would fill whatever a caller leaves open from them. What stays are the tokens that end a text.
    """
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends)  # type: ignore[no-untyped-call]
    return frozenset(ends if isinstance(ends, list) else [ends] if ends is not None else [])


@dataclass(slots=True, eq=False)
class Row:
    """One completion in the making.

    Attributes:
        prompt: the index of its prompt.
        tokens: the prompt's and those sampled so far.
        start: how many of them are the prompt's.
        room: the most tokens to sample.
        key: what its random numbers are made from.
        finish_reason: see ``Completion``; None: it goes on.
    """

    prompt: int
    tokens: list[int]
    start: int
    room: int
    key: str
    finish_reason: str | None = None

    @property
    def sampled(self) -> list[int]:
        return self.tokens[self.start :]

    def uniform(self) -> float:
        """The random number, 0 <= u < 1, for the next token; no state, so that a step can be done again."""
        digest = hashlib.blake2b(f"{self.key}:{len(self.tokens) - self.start}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest) >> 11) / 2**53


def rows_of(prompt: int, ids: Sequence[int], seed: int, n: int, room: int) -> list[Row]:
    """The ``n`` completions of a prompt, not begun."""
    return [Row(prompt, list(ids), len(ids), room, f"{seed}:{number}") for number in range(n)]


class Picker:
    """Draws each row's next token with the row's own random numbers."""

    def __init__(self, params: SamplingParams) -> None:
        self._penalty = None if params.repetition_penalty == 1 else Penalty(params.repetition_penalty)
        self._greedy = params.temperature == 0
        self._warpers: list[LogitsProcessor] = []
        if params.temperature not in (0, 1):
            self._warpers.append(TemperatureLogitsWarper(float(params.temperature)))
        if params.top_k:
            self._warpers.append(TopKLogitsWarper(params.top_k))
        if params.top_p < 1:
            self._warpers.append(TopPLogitsWarper(params.top_p))

    def pick(self, logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
        """A token for each row, -1 where the logits are no numbers.

        Args:
            logits: (rows, vocabulary) of what follows each row's tokens.
        """
        scores = logits.float()
        if self._penalty is not None:
            scores = self._penalty(scores, rows)
        if self._greedy:
            mass, tokens = scores.max(-1)
        else:
            for warper in self._warpers:
                scores = warper(None, scores)  # they look at the scores alone
            mass, tokens = _draw(scores, [row.uniform() for row in rows])
        picked: list[int] = tokens.masked_fill(mass.isnan(), NO_TOKEN).tolist()
        return picked


class Penalty:
    """On every token that a row holds already, as Transformers' ``RepetitionPenaltyLogitsProcessor``.

    That one wants all tokens of all rows at every step, which costs more than a step of a GPU. Here it is kept which
    tokens a row holds, and each step adds the newest.
    """

    def __init__(self, penalty: float) -> None:
        self._penalty = penalty
        self._rows: list[Row] = []
        self._lengths: list[int] = []
        self._held = torch.empty(0, 0, dtype=torch.bool)  # (rows, vocabulary)

    def __call__(self, scores: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """(rows, vocabulary) scores, those of tokens that were there divided, or multiplied where they are negative."""
        self._follow(rows, scores)
        penalized = torch.where(scores < 0, scores * self._penalty, scores / self._penalty)
        return torch.where(self._held, penalized, scores)

    def _follow(self, rows: Sequence[Row], scores: torch.Tensor) -> None:
        """Know what these rows hold; they are mostly those of the last call, each a token longer."""
        known = {id(row): place for place, row in enumerate(self._rows)}
        places = [known.get(id(row), -1) for row in rows]
        if len(rows) != len(self._rows) or places != list(range(len(rows))):
            held = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
            old = [place for place, at in enumerate(places) if at >= 0]
            if old:
                held[old] = self._held[[places[place] for place in old]]
            self._held = held
        done = [self._lengths[at] if at >= 0 else 0 for at in places]
        more = [(place, token) for place, row in enumerate(rows) for token in row.tokens[done[place] :]]
        if more:
            at, token = torch.tensor(more, device=scores.device).T
            self._held[at, token] = True
        self._rows, self._lengths = list(rows), [len(row.tokens) for row in rows]


def _draw(scores: torch.Tensor, uniforms: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row the total of its masses, NaN where its scores are no numbers, and the token drawn.

    The token is the first at which the summed masses exceed a share of their total; one without mass never is. Summed
    in double precision, where no rounding of 150,000 of them matters.
    """
    summed = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    total = summed[:, -1:]
    shares = torch.tensor(uniforms, dtype=torch.float64, device=scores.device)[:, None] * total
    tokens = torch.searchsorted(summed, shares, right=True).clamp_(max=scores.shape[-1] - 1)
    return total[:, 0], tokens[:, 0]


class Ending:
    """Tells where a completion ends: at a token that ends the text, behind a stop text, or where there is no room.

    A stop text is looked for in the completion alone: else a prompt that ends with a line break and a completion that
    begins with one would be a blank line.
    """

    def __init__(self, tokenizer: SegmentTokenizer, stop: Sequence[str], ends: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._ends = ends
        # A token is at least a byte, but for special ones: what the newest token completes lies within this many.
        self._tail = max((len(each.encode()) for each in stop), default=0) + 8

    def extend(self, row: Row, token: int) -> None:
        """Append a sampled token to the row, and note if that ends it."""
        row.tokens.append(token)
        if token in self._ends or self._stops(row):
            row.finish_reason = "stop"
        elif len(row.tokens) - row.start >= row.room:
            row.finish_reason = "length"

    def _stops(self, row: Row) -> bool:
        if not self._stop:
            return False
        text = self._tokenizer.decode(row.tokens[max(row.start, len(row.tokens) - self._tail) :])
        return any(each in text for each in self._stop)

    def completion(self, row: Row) -> Completion:
        text = self._tokenizer.decode(row.sampled)
        cuts = [(text.index(each), each) for each in self._stop if each in text]
        at, stop = min(cuts, default=(len(text), ""))
        return Completion(text[:at], row.finish_reason or "length", stop)


@dataclass(slots=True)
class _Account:
    """What is known of one prompt."""

    rows: list[Row] = field(default_factory=list)
    running: int = 0
    scored: int = 0
    planned: int = 0
    seconds: float = 0.0
    result: Sampled | None = None


class Ledger:
    """The prompts of one request: what is done of each, what it cost, and whom to tell."""

    def __init__(self, prompts: int, ending: Ending, on_done: OnSampled) -> None:
        self._accounts = [_Account() for _ in range(prompts)]
        self._ending = ending
        self._on_done = on_done
        self._last = time.perf_counter()

    def open(self, prompt: int, rows: list[Row], share: int = 0, planned: int = 0) -> None:
        """Wait for these rows of a prompt.

        Args:
            share: its share of all the prompt tokens that will be computed.
            planned: how many tokens will be computed when its turn comes.
        """
        self._accounts[prompt] = _Account(rows, len(rows), share, planned)

    def close(self, prompt: int, completions: tuple[Completion, ...] = (), error: str | None = None) -> None:
        """Settle a prompt; whatever of it still runs is finished, too."""
        account = self._accounts[prompt]
        for row in account.rows:
            row.finish_reason = row.finish_reason or "error"
        generated = sum(len(row.tokens) - row.start for row in account.rows)
        account.result = Sampled(completions, Cost(generated, account.scored, account.seconds), error)
        account.rows = []
        self._on_done(prompt, account.result)

    def computed(self, prompt: int, tokens: int) -> None:
        """So many tokens were computed on behalf of a prompt; those that were planned are paid for by shares."""
        account = self._accounts[prompt]
        account.scored += tokens - account.planned
        account.planned = 0

    def advance(self, rows: Sequence[Row], tokens: Sequence[int]) -> None:
        """Give each row its next token, and the rows' prompts the time since the last call in equal parts."""
        for row, token in zip(rows, tokens, strict=True):
            if token != NO_TOKEN:
                self._ending.extend(row, token)
        now = time.perf_counter()
        for row in rows:
            self._accounts[row.prompt].seconds += (now - self._last) / len(rows)
        self._last = now
        for row, token in zip(rows, tokens, strict=True):
            self._settle(row, token)

    def _settle(self, row: Row, token: int) -> None:
        account = self._accounts[row.prompt]
        if account.result is not None:
            return
        if token == NO_TOKEN:
            self.close(row.prompt, error="the model's logits are not numbers (NaN)")
        elif row.finish_reason is not None:
            account.running -= 1
            if not account.running:
                self.close(row.prompt, tuple(self._ending.completion(each) for each in account.rows))

    def results(self) -> list[Sampled]:
        """One for each prompt, all of which are settled."""
        return [account.result for account in self._accounts if account.result is not None]
