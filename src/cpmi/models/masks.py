"""Attention masks of token trees that stand in one row: who may attend to whom."""

from __future__ import annotations

from typing import Any

import torch

from cpmi.models.capabilities import Capabilities
from cpmi.protocols import IntArray


def tree_masks(model: Any, capable: Capabilities, ends: IntArray, depths: IntArray) -> Any:
    """A mask (1, 1, n, n), or one for each kind of layer: row i attends to column j if j is i or an ancestor of i.

    Args:
        model: whose attention will read it.
        ends: (n,) end of each node's subtree in preorder: node i is an ancestor of j if i <= j < ends[i].
        depths: (n,) position of each node in its sequence.
    """
    order, end = torch.arange(len(ends), device=model.device), torch.as_tensor(ends, device=model.device)
    ancestors = (order[None, :] <= order[:, None]) & (order[:, None] < end[None, :])
    window = capable.window
    if window is None or depths.max() < window:
        return _as_mask(model, ancestors)
    depth = torch.as_tensor(depths, device=model.device)
    near = ancestors & (depth[None, :] > (depth - window)[:, None])
    if not capable.kinds:
        return _as_mask(model, near)
    full, sliding = _as_mask(model, ancestors), _as_mask(model, near)
    return {kind: sliding if kind == "sliding_attention" else full for kind in capable.kinds}


def _as_mask(model: Any, allowed: torch.Tensor) -> torch.Tensor:
    if model.config._attn_implementation == "sdpa":  # noqa: SLF001 - there is no public way to ask
        return allowed[None, None]
    # Eager attention adds the mask to the scores: a boolean one would be wrong without a word.
    mask = torch.zeros_like(allowed, dtype=model.dtype)
    return mask.masked_fill_(~allowed, torch.finfo(model.dtype).min)[None, None]
