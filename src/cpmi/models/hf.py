"""Scoring and sampling with Hugging Face Transformers, on CPU or CUDA.

Several token trees go through the model in one row: a token attends to its own ancestors alone (a 4D mask) and its
position is its depth, so every branch is computed as if it stood alone and every shared beginning once. Logits are
computed only where something scored is predicted.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from cpmi.models.packing import Piece, cut, offsets, pack
from cpmi.protocols import (
    Completion,
    FloatArray,
    Prompt,
    Sampled,
    SamplingParams,
    ScoredTree,
    TokenTree,
    Truncation,
)
from cpmi.records import JSON, Cost

logger = logging.getLogger("cpmi")

_LOGITS_BYTES = 512 * 2**20  # of one forward pass; bounds memory whatever the vocabulary
# Of the float32 copy of logits normalized at a time: on CPU what stays in the cache (4 times faster than 64 MB).
_CHUNK_BYTES = {"cpu": 2 * 2**20, "cuda": 256 * 2**20}
_MAX_TREE_TOKENS = 8192  # a dense mask over more is too large; a larger tree is cut
_DEFAULT_BATCH_TOKENS = {"cpu": 512, "cuda": 4096}  # on CPU more only makes the mask larger: the rate is the same

# Layers that read a mask per layer type, checked against plain scoring in tests/test_hf.py. Other models that mix
# sliding and full attention are scored plainly once a tree is deeper than their window.
_MASK_PER_LAYER_TYPE = {"gemma2", "gemma3", "gemma3_text", "qwen2", "qwen3"}


class HFModel:
    """A causal language model as a ``Scorer`` and a ``Sampler``."""

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, revision: str | None = None, batch_tokens: int = 0
    ) -> None:
        """Take a loaded ``AutoModelForCausalLM`` and its tokenizer; see ``loading.load_hf`` for loading by name."""
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._name = name
        self._revision = revision
        self._device: torch.device = model.device
        self._batch_tokens = batch_tokens or _DEFAULT_BATCH_TOKENS.get(self._device.type, 4096)
        config = model.config.get_text_config()
        self._context_length: int | None = getattr(config, "max_position_embeddings", None)
        self._max_rows = max(1, _LOGITS_BYTES // (config.vocab_size * model.dtype.itemsize))
        chunk_bytes = _CHUNK_BYTES.get(self._device.type, 256 * 2**20)
        self._chunk_rows = max(1, chunk_bytes // (config.vocab_size * 4))
        self._window, self._layer_types = _attention_windows(config)
        self._mask_per_layer_type = config.model_type in _MASK_PER_LAYER_TYPE
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._probed: str | None = None
        self._noted: set[str] = set()
        self.prefix, self._anchor = _tokenizer_habits(tokenizer)
        self._no_tree: str | None = None
        self._no_tree = _why_no_tree(model, config) or self._probe()
        if self._no_tree:
            self._note(f"{name}: {self._no_tree}; scoring plainly, one sequence per answer (same numbers, slower)")

    # --- Tokenizing -------------------------------------------------------------------------------------------------

    def encode(self, text: str, *, first: bool = False) -> tuple[int, ...]:
        """Token ids of a segment, no special tokens.

        A tokenizer that puts a space before every text (SentencePiece's dummy prefix) would put one into the middle
        of the sequence; such a one reads the segment behind a line break, which is then taken off.
        """
        if self._anchor and not first:
            ids = self._ids("\n" + text)
            if ids[: len(self._anchor)] == self._anchor:
                return ids[len(self._anchor) :]
        return self._ids(text)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def describe(self) -> dict[str, JSON]:
        return {
            "model": self._name,
            "revision": self._revision,
            "dtype": str(self._model.dtype).removeprefix("torch."),
        }

    # --- Scorer -----------------------------------------------------------------------------------------------------

    def logprobs(self, trees: Sequence[TokenTree], truncation: Truncation = Truncation()) -> list[ScoredTree]:
        """See ``Scorer.logprobs``; a tree that does not fit comes back with ``error``."""
        values = [np.full(len(tree), np.nan) for tree in trees]
        costs = [Cost()] * len(trees)
        errors: dict[int, str] = {}
        queue = deque(self._batches(trees, errors))
        while queue:
            batch = queue.popleft()
            start = time.perf_counter()
            try:
                results = self._forward(trees, batch, truncation)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                queue.extendleft(reversed(self._smaller(trees, batch, errors)))
                continue
            seconds = time.perf_counter() - start
            tokens = sum(len(piece) for piece in batch)
            for piece, result in zip(batch, results, strict=True):
                values[piece.tree][piece.targets] = result
                costs[piece.tree] += Cost(tokens_scored=len(piece), seconds=seconds * len(piece) / tokens)
        return [
            ScoredTree(None if i in errors else value, cost, errors.get(i))
            for i, (value, cost) in enumerate(zip(values, costs, strict=True))
        ]

    def _batches(self, trees: Sequence[TokenTree], errors: dict[int, str]) -> Iterator[list[Piece]]:
        packed: list[Piece] = []
        plain: list[Piece] = []
        for index, tree in enumerate(trees):
            depth = int(tree.depths().max(initial=-1)) + 1
            if self._context_length and depth > self._context_length:
                errors[index] = f"too long: {depth} tokens, the model's context holds {self._context_length}"
            elif self._scores_plainly(depth):
                plain += cut(tree, index, 0, self._max_rows)
            else:
                packed += cut(tree, index, max(_MAX_TREE_TOKENS, depth + 2048), self._max_rows)
        yield from pack(packed, self._batch_tokens, self._max_rows)
        plain.sort(key=len)  # side by side in a rectangle: alike in length, so that little is padding
        yield from pack(plain, self._batch_tokens, self._max_rows)

    def _scores_plainly(self, depth: int) -> bool:
        if self._no_tree:
            return True
        if self._window is None or depth <= self._window or self._mask_per_layer_type or len(self._layer_types) < 2:
            return False
        self._note(
            f"{self._name}: its sliding window of {self._window} tokens is shorter than a tree; scoring such trees "
            "plainly, one sequence per answer (same numbers, slower)"
        )
        return True

    def _note(self, line: str) -> None:
        if line not in self._noted:
            self._noted.add(line)
            logger.warning(line)

    def _smaller(self, trees: Sequence[TokenTree], batch: list[Piece], errors: dict[int, str]) -> list[list[Piece]]:
        """After running out of memory: the same work in halves, and smaller batches from now on."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._batch_tokens = max(1, sum(len(piece) for piece in batch) // 2)
        self._note(f"{self._name}: out of memory; going on with at most {self._batch_tokens} tokens at a time")
        if len(batch) > 1:
            middle = len(batch) // 2
            return [batch[:middle], batch[middle:]]
        (piece,) = batch
        pieces = cut(trees[piece.tree], piece.tree, len(piece) // 2, max(1, len(piece.rows) // 2), piece.targets)
        if len(pieces) == 1:
            errors[piece.tree] = f"out of memory with a single sequence of {len(piece)} tokens"
            return []
        return [[each] for each in pieces]

    @torch.inference_mode()
    def _forward(self, trees: Sequence[TokenTree], batch: list[Piece], truncation: Truncation) -> list[FloatArray]:
        tokens = [trees[piece.tree].ids[piece.nodes] for piece in batch]
        chains = all(piece.is_chain for piece in batch)
        if chains and (self._no_tree or len(batch) == 1):
            logits = self._plain_logits(tokens, batch)
        else:
            logits = self._tree_logits(tokens, batch)
        first_row = np.cumsum([0] + [len(piece.rows) for piece in batch[:-1]])
        rows = np.concatenate([piece.target_rows + first for piece, first in zip(batch, first_row, strict=True)])
        ids = np.concatenate([trees[piece.tree].ids[piece.targets] for piece in batch])
        logprobs = self._pick(logits, self._tensor(rows), self._tensor(ids), truncation)
        return np.split(logprobs, np.cumsum([len(piece.targets) for piece in batch])[:-1])

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.as_tensor(values, device=self._device)

    def _tree_logits(self, tokens: list[Any], batch: list[Piece]) -> torch.Tensor:
        """(rows, vocabulary) logits of all predicting nodes, the pieces side by side in one row."""
        starts = offsets(batch)
        ends = np.concatenate([piece.ends + start for piece, start in zip(batch, starts, strict=True)])
        depths = np.concatenate([piece.depths for piece in batch])
        rows = np.concatenate([piece.rows + start for piece, start in zip(batch, starts, strict=True)])
        positions = self._tensor(depths)
        return self._logits(
            self._tensor(np.concatenate(tokens))[None],
            self._tensor(rows),
            attention_mask=self._masks(self._tensor(ends), positions),
            position_ids=positions[None],
        )[0]

    def _masks(self, ends: torch.Tensor, depths: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Who may attend to whom, (1, 1, n, n): row i attends to column j if j is i or an ancestor of i."""
        order = torch.arange(len(ends), device=self._device)
        ancestors = (order[None, :] <= order[:, None]) & (order[:, None] < ends[None, :])
        if self._window is None or int(depths.max()) < self._window:
            return self._as_mask(ancestors)
        near = ancestors & (depths[:, None] - depths[None, :] < self._window)
        if len(self._layer_types) < 2:
            return self._as_mask(near)
        full, sliding = self._as_mask(ancestors), self._as_mask(near)
        return {kind: sliding if kind == "sliding_attention" else full for kind in self._layer_types}

    def _as_mask(self, allowed: torch.Tensor) -> torch.Tensor:
        if self._model.config._attn_implementation == "sdpa":  # noqa: SLF001 - there is no public way to ask
            return allowed[None, None]
        # Eager attention adds the mask to the scores: a boolean one would be wrong without a word.
        floor = torch.finfo(self._model.dtype).min
        return torch.zeros_like(allowed, dtype=self._model.dtype).masked_fill_(~allowed, floor)[None, None]

    def _plain_logits(self, tokens: list[Any], batch: list[Piece]) -> torch.Tensor:
        """The same logits from sequences stacked and padded on the right, where padding cannot be seen."""
        longest = max(len(ids) for ids in tokens)
        padded = np.zeros((len(tokens), longest), dtype=np.int64)
        for row, ids in zip(padded, tokens, strict=True):
            row[: len(ids)] = ids
        first = min(int(piece.rows[0]) for piece in batch)
        kept = np.arange(first, longest)
        logits = self._logits(self._tensor(padded), self._tensor(kept))
        sequence = np.concatenate([np.full(len(piece.rows), i) for i, piece in enumerate(batch)])
        position = np.concatenate([piece.rows - first for piece in batch])
        return logits[self._tensor(sequence), self._tensor(position)]

    def _logits(self, ids: torch.Tensor, rows: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """(batch, rows, vocabulary) logits at the given positions, through the model's own head."""
        if self._takes_cache:
            inputs["use_cache"] = False
        if self._keeps_logits:
            logits: torch.Tensor = self._model(ids, logits_to_keep=rows, **inputs).logits
            return logits
        logits = self._model(ids, **inputs).logits
        return logits[:, rows]

    @property
    def _takes_cache(self) -> bool:
        return "use_cache" in inspect.signature(self._model.forward).parameters

    def _pick(self, logits: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, truncation: Truncation) -> FloatArray:
        """(targets,) log-probability of token ``ids[i]`` under ``logits[rows[i]]``, in float32."""
        if truncation != Truncation():
            return self._pick_truncated(logits, rows, ids, truncation)
        norms = torch.cat([chunk.float().logsumexp(-1) for chunk in torch.split(logits, self._chunk_rows)])
        picked: FloatArray = (logits[rows, ids].float() - norms[rows]).double().cpu().numpy()
        return picked

    def _pick_truncated(
        self, logits: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, truncation: Truncation
    ) -> FloatArray:
        picked: list[FloatArray] = []
        for some_rows, some_ids in zip(
            torch.split(rows, self._chunk_rows), torch.split(ids, self._chunk_rows), strict=True
        ):
            logprobs = logits[some_rows].float().log_softmax(-1)
            ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
            mass_before = ordered.exp().cumsum(-1) - ordered.exp()
            kept = mass_before < truncation.top_p
            if truncation.top_k:
                kept[:, truncation.top_k :] = False
            kept |= order == some_ids[:, None]
            norm = ordered.masked_fill(~kept, -torch.inf).logsumexp(-1)
            chosen = logprobs.gather(-1, some_ids[:, None])[:, 0]
            picked.append((chosen - norm).double().cpu().numpy())
        return np.concatenate(picked)

    def _probe(self) -> str | None:
        """Compare a small tree with its plain sequences: why this model cannot take trees, or None if it can.

        Catches what no list of architectures can: models that ignore a mask or positions handed to them.
        """
        vocabulary = self._model.config.get_text_config().vocab_size
        ids = (np.arange(3, 14) * 7919) % vocabulary
        parents = np.array([-1, 0, 1, 2, 3, 4, 5, 2, 7, 8, 9])
        tree = TokenTree(ids.astype(np.int64), parents, parents >= 0)
        together = cut(tree, 0, len(tree), self._max_rows)
        alone = cut(tree, 0, 0, self._max_rows)
        in_tree, plain = np.full(len(tree), np.nan), np.full(len(tree), np.nan)
        (in_tree[together[0].targets],) = self._forward([tree], together, Truncation())
        for piece in alone:
            (plain[piece.targets],) = self._forward([tree], [piece], Truncation())
        difference = float(np.nanmax(np.abs(in_tree - plain)))
        tolerance = 1e-4 if self._model.dtype == torch.float32 else 0.5
        return None if difference < tolerance else f"a token tree changes its numbers by {difference:.2g}"

    # --- Sampler ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def sample(self, prompts: Sequence[Prompt], n: int, params: SamplingParams) -> list[Sampled]:
        """See ``Sampler.sample``; one prompt at a time, so that its seed alone decides."""
        return [self._sample_one(prompt, n, params) for prompt in prompts]

    def _sample_one(self, prompt: Prompt, n: int, params: SamplingParams) -> Sampled:
        start = time.perf_counter()
        ids = self._tensor([[*self.prefix, *self.encode(prompt.text, first=True)]])
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(prompt.seed)
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                num_return_sequences=n,
                max_new_tokens=params.max_tokens,
                do_sample=params.temperature > 0,
                temperature=params.temperature or None,
                top_p=params.top_p,
                top_k=params.top_k,
                repetition_penalty=params.repetition_penalty,
                stop_strings=list(params.stop) or None,
                tokenizer=self._tokenizer,
                pad_token_id=self._pad_token(),
            )
        completions, generated = [], 0
        for row in output[:, ids.shape[1] :].tolist():
            completion, tokens = self._completion(row, params.stop)
            completions.append(completion)
            generated += tokens
        return Sampled(tuple(completions), Cost(tokens_generated=generated, seconds=time.perf_counter() - start))

    def _pad_token(self) -> int:
        pad, end = self._tokenizer.pad_token_id, self._tokenizer.eos_token_id
        return int(pad if pad is not None else end)

    def _completion(self, row: list[int], stop: Sequence[str]) -> tuple[Completion, int]:
        ends = self._model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        length = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        text = self._tokenizer.decode(row[:length], skip_special_tokens=True)
        cuts = [text.index(each) for each in stop if each in text]
        stopped = bool(cuts) or (length > 0 and row[length - 1] in ends)
        return Completion(text[: min(cuts)] if cuts else text, "stop" if stopped else "length"), length


def _attention_windows(config: Any) -> tuple[int | None, tuple[str, ...]]:
    """The sliding window, if any layer has one, and the kinds of attention layers where they are mixed."""
    kinds = tuple(sorted(set(getattr(config, "layer_types", None) or ())))
    window = getattr(config, "sliding_window", None)
    if kinds and "sliding_attention" not in kinds:
        window = None
    return window, kinds


def _why_no_tree(model: Any, config: Any) -> str | None:
    if getattr(model, "_is_stateful", False):
        return "recurrent layers cannot take a token tree"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"layers of the kind {', '.join(sorted(kinds))} cannot take a token tree"
    if model.config._attn_implementation not in ("sdpa", "eager"):  # noqa: SLF001 - there is no public way to ask
        return f"attention of the kind {model.config._attn_implementation} cannot take a token tree"  # noqa: SLF001
    parameters = inspect.signature(model.forward).parameters
    if not {"position_ids", "attention_mask"} <= set(parameters):
        return "its forward pass takes no positions"
    return None


def _tokenizer_habits(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens it opens a sequence with; and the line break to read segments behind, where that is needed."""

    def ids(text: str, **options: Any) -> tuple[int, ...]:
        return tuple(tokenizer(text, **options)["input_ids"])

    plain, full = ids("a", add_special_tokens=False), ids("a")
    at = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
    line, line_a = ids("\n", add_special_tokens=False), ids("\na", add_special_tokens=False)
    alone = line_a[: len(line)] == line and line_a[len(line) :] == plain
    return full[:at], () if alone else line


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "not enough memory" in str(error) or "out of memory" in str(error).lower()
