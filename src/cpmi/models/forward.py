"""One forward pass: token trees side by side in one row, or plain sequences in a rectangle.

In a row a token attends to its own ancestors alone (``tree_attention``) and its position is its depth, so every branch
is computed as if it stood alone and every shared beginning once. Logits are computed only where something scored is
predicted, by the model's own head, which may scale or cap them.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cpmi.models.capabilities import Capabilities
from cpmi.models.packing import Piece, offsets
from cpmi.models.tree_attention import TreeAttention
from cpmi.protocols import FloatArray, IntArray, TokenTree, Truncation

_LOGITS_BYTES = 512 * 2**20  # of one forward pass; bounds memory whatever the vocabulary
# Of the float32 copy of logits normalized at a time: on CPU what stays in the cache (4 times faster than 64 MB).
_CHUNK_BYTES = {"cpu": 2 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 256 * 2**20


class ForwardPass:
    """Log-probabilities of the targets of a batch of pieces."""

    def __init__(self, model: Any, capable: Capabilities) -> None:
        self._model = model
        self.attention = TreeAttention(model, capable)
        self._device: torch.device = model.device
        self._dtype: torch.dtype = model.dtype
        vocabulary = model.config.get_text_config().vocab_size
        self.max_rows = max(1, _LOGITS_BYTES // (vocabulary * self._dtype.itemsize))
        chunk_bytes = _CHUNK_BYTES.get(self._device.type, _CHUNK_BYTES_ELSEWHERE)
        self._chunk_rows = max(1, chunk_bytes // (vocabulary * 4))
        parameters = inspect.signature(model.forward).parameters
        self.keeps_logits = "logits_to_keep" in parameters
        self._options = {"use_cache": False} if "use_cache" in parameters else {}

    @torch.inference_mode()
    def row(self, trees: Sequence[TokenTree], batch: list[Piece], truncation: Truncation) -> list[FloatArray]:
        """For each piece the log-probabilities of its targets; trees one after the other in one row."""
        if len(batch) == 1 and batch[0].is_chain:
            return self.stack(trees, batch, truncation)  # the same, without a mask
        starts = offsets(batch)
        tokens = np.concatenate([trees[piece.tree].ids[piece.nodes] for piece in batch])
        depths = np.concatenate([piece.depths for piece in batch])
        ends = np.concatenate([piece.ends + start for piece, start in zip(batch, starts, strict=True)])
        rows = np.concatenate([piece.rows + start for piece, start in zip(batch, starts, strict=True)])
        with self.attention.row(ends, depths) as mask:
            logits = self._logits(tokens[None], rows, attention_mask=mask, position_ids=self._tensor(depths[None]))
        return self._pick(trees, batch, logits[0], np.arange(len(rows)), truncation)

    @torch.inference_mode()
    def stack(self, trees: Sequence[TokenTree], batch: list[Piece], truncation: Truncation) -> list[FloatArray]:
        """The same for plain sequences, padded on the right, where a causal model cannot see it."""
        tokens = np.zeros((len(batch), max(len(piece) for piece in batch)), dtype=np.int64)
        for line, piece in zip(tokens, batch, strict=True):
            line[: len(piece)] = trees[piece.tree].ids[piece.nodes]
        kept = np.unique(np.concatenate([piece.rows for piece in batch]))
        logits = self._logits(tokens, kept)
        places = [i * len(kept) + np.searchsorted(kept, piece.rows) for i, piece in enumerate(batch)]
        return self._pick(trees, batch, logits.flatten(0, 1), np.concatenate(places), truncation)

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.as_tensor(values, device=self._device)

    def _logits(self, ids: IntArray, rows: IntArray, **inputs: Any) -> torch.Tensor:
        """(batch, rows, vocabulary) logits at the given positions."""
        if self.keeps_logits:
            inputs["logits_to_keep"] = self._tensor(rows)
        logits: torch.Tensor = self._model(self._tensor(ids), **inputs, **self._options).logits
        return logits if self.keeps_logits else logits[:, self._tensor(rows)]

    # --- log-probabilities ------------------------------------------------------------------------------------------

    def _pick(
        self,
        trees: Sequence[TokenTree],
        batch: list[Piece],
        logits: torch.Tensor,
        places: IntArray,
        truncation: Truncation,
    ) -> list[FloatArray]:
        """For each piece (targets,) log-probabilities, in float32.

        Args:
            logits: (positions, vocabulary).
            places: for each predicting row of the batch where its logits stand.
        """
        first = np.cumsum([0] + [len(piece.rows) for piece in batch[:-1]])
        rows = np.concatenate([piece.target_rows + start for piece, start in zip(batch, first, strict=True)])
        ids = np.concatenate([trees[piece.tree].ids[piece.targets] for piece in batch])
        at, row, token = self._tensor(places), self._tensor(rows), self._tensor(ids)
        if truncation == Truncation():
            picked = _full(logits, at, row, token, self._chunk_rows)
        else:
            picked = _truncated(logits, at[row], token, self._chunk_rows, truncation)
        # Copying to the host waits for the device, so that whoever measures time measures the work.
        values: FloatArray = picked.cpu().double().numpy()
        return np.split(values, np.cumsum([len(piece.targets) for piece in batch])[:-1])


def _full(
    logits: torch.Tensor, places: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, chunk: int
) -> torch.Tensor:
    """(targets,) log-probability of token ``ids[i]`` at ``places[rows[i]]``; ``chunk`` places normalized at a time."""
    norms = torch.cat([logits[some].float().logsumexp(-1) for some in torch.split(places, chunk)])
    return logits[places[rows], ids].float() - norms[rows]


def _truncated(
    logits: torch.Tensor, places: torch.Tensor, ids: torch.Tensor, chunk: int, truncation: Truncation
) -> torch.Tensor:
    """(targets,) log-probability of ``ids[i]`` at ``places[i]`` among the likeliest tokens alone."""
    picked = []
    for some, some_ids in zip(torch.split(places, chunk), torch.split(ids, chunk), strict=True):
        logprobs = logits[some].float().log_softmax(-1)
        ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
        kept = torch.ones_like(order, dtype=torch.bool)
        if truncation.top_p < 1:
            masses = ordered.exp()
            kept = masses.cumsum(-1) - masses < truncation.top_p
        if truncation.top_k:
            kept[:, truncation.top_k :] = False
        kept |= order == some_ids[:, None]
        norm = ordered.masked_fill(~kept, -torch.inf).logsumexp(-1)
        picked.append(logprobs.gather(-1, some_ids[:, None])[:, 0] - norm)
    return torch.cat(picked)
