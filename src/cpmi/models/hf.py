"""Scoring and sampling with Hugging Face Transformers, on CPU or CUDA."""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cpmi.errors import InputError
from cpmi.models.capabilities import capabilities
from cpmi.models.decoding import BatchLimits, Decoder, probe, why_not_batched
from cpmi.models.forward import ForwardPass
from cpmi.models.generating import Generator
from cpmi.models.memory import is_out_of_memory
from cpmi.models.packing import Limits, Piece, cut, take_row, take_stack
from cpmi.models.sampling import Ending, Ledger, Picker, plain_generation, rows_of
from cpmi.models.shares import Share, shares
from cpmi.models.tokenizing import SegmentTokenizer
from cpmi.protocols import (
    Completion,
    FloatArray,
    IntArray,
    OnSampled,
    Prompt,
    Sampled,
    SamplingParams,
    ScoredTree,
    TokenTree,
    Truncation,
    ignore_sampled,
)
from cpmi.records import JSON, Cost

logger = logging.getLogger("cpmi")

# A larger tree is cut, but leaves as many tokens for what hangs on its trunk. A dense mask grows with the square.
_MAX_TREE_TOKENS = 32_768
_MAX_DENSE_TOKENS = 8192
_MIN_BRANCH_TOKENS = 2048
# On CPU one tree at a time: more gain nothing there, and so what stands beside a tree cannot change its rounding.
_BATCH_TOKENS = {"cpu": 1}
_BATCH_TOKENS_ELSEWHERE = 4096
_BATCH_TOKENS_FLEX = 16_384  # one kernel for all trees of a row, whatever their number

# Completions sampled at a time (measured on CPU: 64 make a third more tokens per second than 32), the
# tokens of all of them (on CUDA: what this share of the free memory holds the states of), and those of a prompt in one
# forward pass.
_ROWS = {"cpu": 64}
_ROWS_ELSEWHERE = 512
_DECODED_TOKENS = 131_072
_STATES_SHARE = 0.4
_PROMPT_TOKENS = 2048

_PLAINLY = "scoring plainly, one sequence per answer (same numbers, slower)"


class HFModel:
    """A causal language model as a ``Scorer`` and a ``Sampler``."""

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, revision: str | None = None, batch_tokens: int = 0
    ) -> None:
        """Take over a loaded ``AutoModelForCausalLM`` and its tokenizer; ``loading.load_hf`` loads by name.

        Raises:
            InputError: the model lets a token see what follows it.
        """
        self._model = model.eval()
        self._tokenizer = SegmentTokenizer(tokenizer)
        self._name = name
        self._revision = revision
        self._device: torch.device = model.device
        config = model.config.get_text_config()
        self._context_length: int | None = getattr(config, "max_position_embeddings", None)
        self._vocabulary = min(config.vocab_size, int(model.get_input_embeddings().weight.shape[0]))
        self._capable = capabilities(model)
        self._forward = ForwardPass(model, self._capable)
        self._ends = plain_generation(model)
        self._notes: set[str] = set()

        rows = self._forward.max_rows
        if reason := self._forward.attention.flex_left:
            self._note(f"{name}: FlexAttention {reason}; attending block by block (same numbers, slower)")
        elsewhere = _BATCH_TOKENS_FLEX if self._forward.attention.flex else _BATCH_TOKENS_ELSEWHERE
        tokens = batch_tokens or _BATCH_TOKENS.get(self._device.type, elsewhere)
        self._limits = Limits(tokens, rows)  # of one forward pass
        self._max_piece: int | None = batch_tokens or None  # a tree with more tokens is cut; None: only if it must be
        if not self._forward.keeps_logits:  # it computes logits at every token
            self._limits = Limits(min(tokens, rows), rows)
            self._max_piece = min(batch_tokens or rows, rows)
        chunk = batch_tokens or _PROMPT_TOKENS
        self._batch_limits = BatchLimits(
            min(_ROWS.get(self._device.type, _ROWS_ELSEWHERE), batch_tokens or sys.maxsize),
            _decoded_tokens(model),
            chunk if self._forward.keeps_logits else min(chunk, rows),
        )
        if reason := self._probe():
            self._capable = replace(self._capable, no_tree=reason)
        if self._capable.no_tree:
            self._note(f"{name}: {self._capable.no_tree}; {_PLAINLY}")

    @property
    def prefix(self) -> tuple[int, ...]:
        return self._tokenizer.prefix

    def encode(self, text: str, *, first: bool = False) -> tuple[int, ...]:
        """See ``Tokenizing.encode``."""
        return self._tokenizer.encode(text, first=first)

    def describe(self) -> dict[str, JSON]:
        dtype = str(self._model.dtype).removeprefix("torch.")
        return {"model": self._name, "revision": self._revision, "dtype": dtype}

    # --- scoring ----------------------------------------------------------------------------------------------------

    def logprobs(self, trees: Sequence[TokenTree], truncation: Truncation = Truncation()) -> list[ScoredTree]:
        """See ``Scorer.logprobs``; a tree that does not fit comes back with ``error``."""
        work = _Work(trees, truncation)
        rows: list[Piece] = []
        stacks: list[Piece] = []
        for index, tree in enumerate(trees):
            depth = int(tree.depths().max(initial=-1)) + 1
            if error := self._why_not(tree, depth):
                work.errors[index] = error
            elif self._scores_plainly(depth):
                stacks += cut(tree, index, Limits(0, self._limits.rows))
            else:
                rows += cut(tree, index, self._tree_limits(depth))
        stacks.sort(key=len)  # alike in length side by side, so that little is padding
        self._run(work, rows, take_row, self._forward.row)
        self._run(work, stacks, take_stack, self._forward.stack)
        return work.results()

    def _why_not(self, tree: TokenTree, depth: int) -> str | None:
        if self._context_length and depth > self._context_length:
            return f"too long: {depth} tokens, the model's context holds {self._context_length}"
        return self._why_unknown(int(tree.ids.max(initial=0)))

    def _why_unknown(self, top: int) -> str | None:
        if top >= self._vocabulary:  # on CUDA it would end the process
            return f"the tokenizer's token {top} is not one of the model's {self._vocabulary}"
        return None

    def _scores_plainly(self, depth: int) -> bool:
        if self._capable.too_deep(depth):
            window = self._capable.window
            self._note(f"{self._name}: its sliding window of {window} tokens is shorter than a tree; {_PLAINLY}")
            return True
        return self._capable.no_tree is not None

    def _tree_limits(self, depth: int) -> Limits:
        """A tree is cut only if it must be, since each piece computes the trunk anew."""
        largest = _MAX_TREE_TOKENS if self._forward.attention.by_blocks else _MAX_DENSE_TOKENS
        tokens = max(largest, depth + _MIN_BRANCH_TOKENS)
        return Limits(tokens if self._max_piece is None else min(tokens, self._max_piece), self._limits.rows)

    def _run(
        self,
        work: _Work,
        pieces: list[Piece],
        take: Callable[[deque[Piece], Limits], list[Piece]],
        forward: Callable[[Sequence[TokenTree], list[Piece], Truncation], list[FloatArray]],
    ) -> None:
        queue = deque(pieces)
        while queue:
            batch = take(queue, self._limits)
            start = time.perf_counter()
            try:
                results = forward(work.trees, batch, work.truncation)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                results = None
            if results is None:  # here and not above: the exception holds on to the tensors of the failed pass
                queue.extendleft(reversed(self._smaller(work, batch)))
            else:
                work.take(batch, results, time.perf_counter() - start)

    def _smaller(self, work: _Work, batch: list[Piece]) -> list[Piece]:
        """After running out of memory: the same work in pieces such that half as much fits; so from now on."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        tokens = max(1, sum(len(piece) for piece in batch) // 2)
        self._limits = replace(self._limits, tokens=min(self._limits.tokens, tokens))
        self._note(f"{self._name}: out of memory; going on with at most {tokens} tokens at a time")
        if len(batch) > 1:
            return batch
        (piece,) = batch
        self._max_piece = tokens
        pieces = cut(work.trees[piece.tree], piece.tree, replace(self._limits, tokens=tokens), piece.targets)
        if len(pieces) > 1:
            return pieces
        work.errors[piece.tree] = f"out of memory with a single sequence of {len(piece)} tokens"
        return []

    def _note(self, line: str) -> None:
        if line not in self._notes:
            self._notes.add(line)
            logger.warning(line)

    def _probe(self) -> str | None:
        """Why a small tree comes out otherwise than its plain sequences, or None if it does not.

        Catches what no list of architectures can: models that ignore a mask or positions handed to them, or that see
        what follows.
        """
        tree = self._tree_of(np.array([-1, 0, 1, 2, 3, 4, 5, 2, 7, 8, 9]))
        plain = np.full(len(tree), np.nan)
        for piece in cut(tree, 0, Limits(0, self._limits.rows)):
            (plain[piece.targets],) = self._forward.stack([tree], [piece], Truncation())

        trunk = cut(tree, 0, self._limits, np.array([1, 2]))
        (trunk_alone,) = self._forward.stack([tree], trunk, Truncation())
        if np.abs(trunk_alone - plain[1:3]).max() > self._tolerance:
            raise InputError(
                f"model {self._name} is no causal language model: what follows a token changes its probability"
            )

        depth = int(tree.depths().max()) + 1
        if self._capable.no_tree or self._capable.too_deep(depth):
            return None
        difference = np.abs(self._in_row(tree) - plain[1:]).max()
        return None if difference < self._tolerance else f"a token tree changes its numbers by {difference:.2g}"

    @property
    def _tolerance(self) -> float:
        """By how much two ways to compute a log-probability may differ by rounding."""
        return 1e-4 if self._model.dtype == torch.float32 else 1.0

    def _tree_of(self, parents: IntArray) -> TokenTree:
        """A tree of this form, of tokens that say nothing."""
        ids = np.arange(3, 3 + len(parents)) * 7919 % self._vocabulary
        return TokenTree(ids.astype(np.int64), parents, parents >= 0)

    def _in_row(self, tree: TokenTree) -> FloatArray:
        """(scored nodes,) log-probabilities, the tree in one piece."""
        whole = cut(tree, 0, Limits(len(tree), len(tree)))
        (values,) = self._forward.row([tree], whole, Truncation())
        return values

    # --- sampling ---------------------------------------------------------------------------------------------------

    def sample(
        self, prompts: Sequence[Prompt], n: int, params: SamplingParams, on_done: OnSampled = ignore_sampled
    ) -> list[Sampled]:
        """See ``Sampler.sample``."""
        ledger = Ledger(len(prompts), Ending(self._tokenizer, params.stop, self._ends), on_done)
        texts: dict[int, tuple[int, ...]] = {}
        for index, prompt in enumerate(prompts):
            ids = (*self.prefix, *self.encode(prompt.text, first=True))
            if error := self._why_not_continued(ids):
                ledger.close(index, error=error)
            elif n < 1 or params.max_tokens < 1:
                ledger.close(index, (Completion("", "length", ""),) * n)
            else:
                texts[index] = ids
        rows = []
        for share in self._shares(texts):
            ids = texts[share.prompt]
            begun = rows_of(share.prompt, ids, prompts[share.prompt].seed, n, self._room(ids, params))
            ledger.open(share.prompt, begun, share.tokens, share.planned)
            rows += begun
        self._decoder().run(rows, Picker(params), ledger)
        return ledger.results()

    def dialog(self, request: str, reply: str) -> str:
        """See ``Sampler.dialog``."""
        return self._tokenizer.dialog(request, reply)

    def close(self) -> None:
        """See ``Engine.close``."""
        del self._model, self._forward

    def _room(self, ids: Sequence[int], params: SamplingParams) -> int:
        """How many tokens may be sampled."""
        return min(params.max_tokens, (self._context_length or sys.maxsize) - len(ids))

    def _why_not_continued(self, ids: Sequence[int]) -> str | None:
        if not ids:
            return "an empty prompt, and the model has no token that opens a text"
        if self._context_length and len(ids) >= self._context_length:
            return f"too long: {len(ids)} tokens leave no room in the model's context of {self._context_length}"
        return self._why_unknown(max(ids))

    @functools.cached_property
    def _no_batch(self) -> str | None:
        """Why rows of different prompts cannot be decoded together."""
        return why_not_batched(self._model) or probe(self._model, self._vocabulary)

    def _shares(self, texts: dict[int, tuple[int, ...]]) -> list[Share]:
        """The prompts in the order in which to sample them, and what each pays for."""
        if self._no_batch:
            return [Share(index, planned=0, tokens=0) for index in texts]
        indices = list(texts)
        return [replace(share, prompt=indices[share.prompt]) for share in shares(list(texts.values()))]

    def _decoder(self) -> Decoder | Generator:
        def note(line: str) -> None:
            self._note(f"{self._name}: {line}")

        if not self._no_batch:
            return Decoder(self._model, self._batch_limits, note)
        note(f"{self._no_batch}; sampling one prompt at a time (same completions, slower)")
        return Generator(self._model, self._tokenizer.pad_token(), self._batch_limits, note)


def _decoded_tokens(model: Any) -> int:
    """Of how many tokens the keys and values are held at a time."""
    config = model.config.get_text_config()
    if model.device.type != "cuda" or not all(hasattr(config, name) for name in ("num_hidden_layers", "hidden_size")):
        return _DECODED_TOKENS
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    values: int = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * size
    free, _ = torch.cuda.mem_get_info(model.device)
    bytes_each: int = values * model.dtype.itemsize
    return max(_DECODED_TOKENS, int(_STATES_SHARE * free) // bytes_each)


class _Work:
    """The trees of one request, and what is known of them so far."""

    def __init__(self, trees: Sequence[TokenTree], truncation: Truncation) -> None:
        self.trees = trees
        self.truncation = truncation
        self.errors: dict[int, str] = {}
        self._values = [np.full(len(tree), np.nan) for tree in trees]
        self._costs = [Cost()] * len(trees)

    def take(self, batch: list[Piece], results: list[FloatArray], seconds: float) -> None:
        """Note the results of a forward pass; each piece pays for its share of it."""
        tokens = sum(len(piece) for piece in batch)
        for piece, result in zip(batch, results, strict=True):
            self._values[piece.tree][piece.targets] = result
            self._costs[piece.tree] += Cost(tokens_scored=len(piece), seconds=seconds * len(piece) / tokens)

    def results(self) -> list[ScoredTree]:
        return [
            ScoredTree(None if i in self.errors else values, cost, self.errors.get(i))
            for i, (values, cost) in enumerate(zip(self._values, self._costs, strict=True))
        ]
