"""Attention over a row of token trees, without a mask of every token against every other.

In preorder the tokens from a to b see some of one another and some of the path from a's root to a, and nothing else: an
ancestor of theirs that stands before a is an ancestor of a. So a row is cut into blocks of queries, and each is given
the keys of that path and its own. A tree of many short branches costs by its depth and not by its size: for CPMI's
trees that is a third of the products of a dense mask or less, and the memory of a mask no longer grows with the square.

On CUDA the same sparsity goes to FlexAttention as a block mask, which is one kernel for all blocks.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cpmi.models.capabilities import Capabilities
from cpmi.models.masks import tree_masks
from cpmi.models.memory import is_out_of_memory
from cpmi.protocols import IntArray

_NAME = "cpmi_tree"  # in Transformers' list of attention functions
# Queries of a block. Fewer waste fewer products on what is masked, more are fewer calls; 32 to 128 are alike on CPU.
_BLOCK = 64


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Some queries that stand side by side, and what they may see.

    Attributes:
        start, stop: the queries.
        keys: (k,) the places of the keys they may see; None: all from the first to ``stop``.
        mask: (stop - start, k) which of these each of them sees.
    """

    start: int
    stop: int
    keys: torch.Tensor | None
    mask: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TreePlan:
    """Who sees whom in one row, in the forms that attention functions want.

    Attributes:
        blocks: cover the row.
        flex: FlexAttention's block mask, where that is used.
    """

    blocks: tuple[Block, ...]
    flex: Any = None


def plan_blocks(ends: IntArray, device: torch.device, size: int = _BLOCK) -> tuple[Block, ...]:
    """The blocks of a row.

    Args:
        ends: (n,) end of each token's subtree in preorder: token i is an ancestor of j if i <= j < ends[i].
    """
    blocks = []
    for start in range(0, len(ends), size):
        stop = min(start + size, len(ends))
        path = np.flatnonzero(ends[:start] > start)
        keys = np.concatenate([path, np.arange(start, stop)])
        queries = np.arange(start, stop)[:, None]
        seen = (keys[None] <= queries) & (queries < ends[keys][None])
        places = None if len(path) == start else torch.as_tensor(keys, device=device)
        blocks.append(Block(start, stop, places, torch.as_tensor(seen, device=device)))
    return tuple(blocks)


def has_flex(device: torch.device) -> bool:
    """Whether FlexAttention may work: it compiles itself, which takes CUDA and Triton."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def flex_mask(ends: IntArray, device: torch.device) -> Any:
    """The same as FlexAttention wants it."""
    from torch.nn.attention.flex_attention import create_block_mask

    end = torch.as_tensor(ends, device=device)

    def sees(_batch: Any, _head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & (query < end[key])

    return create_block_mask(sees, None, None, len(ends), len(ends), device=str(device))


class TreeAttention:
    """Lets a model's attention see rows of trees.

    Only while a row is computed does the model's configuration name our function; before and after, the model is as it
    was, for whoever else uses it.
    """

    def __init__(self, model: Any, capable: Capabilities, *, block: int = _BLOCK) -> None:
        """For this model; where FlexAttention was to be used and is not, ``flex_left`` says why.

        Args:
            block: queries of a block.
        """
        self._model = model
        self._capable = capable
        self._block = block
        self._configs = _configs(model)
        # Eager attention is chosen for what only it can do (soft caps, sinks), so it keeps its dense masks.
        self.by_blocks = capable.no_tree is None and model.config._attn_implementation == "sdpa"  # noqa: SLF001
        self.flex = self.by_blocks and has_flex(model.device)
        if self.by_blocks:
            _register()
        self.flex_left = self._why_not_flex() if self.flex else None

    @contextlib.contextmanager
    def row(self, ends: IntArray, depths: IntArray) -> Iterator[Any]:
        """Within it a forward pass over this row sees ancestors alone; gives the ``attention_mask`` to call it with.

        Args:
            ends: (n,) end of each token's subtree in preorder.
            depths: (n,) position of each in its sequence.
        """
        window = self._capable.window
        if not self.by_blocks or (window is not None and depths.max() >= window):
            yield tree_masks(self._model, self._capable, ends, depths)
            return
        device = self._model.device
        plan = TreePlan((), flex_mask(ends, device)) if self.flex else TreePlan(plan_blocks(ends, device, self._block))
        _current.append(plan)
        names = [config._attn_implementation for config in self._configs]  # noqa: SLF001
        try:
            for config in self._configs:
                config._attn_implementation = _NAME  # noqa: SLF001 - the public setter walks through all modules
            # Models build no mask of their own if they are given one of four dimensions; our function ignores it.
            yield torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device)
        finally:
            _current.pop()
            for config, name in zip(self._configs, names, strict=True):
                config._attn_implementation = name  # noqa: SLF001

    def _why_not_flex(self) -> str | None:
        """Leave FlexAttention where it fails, or where a small row comes out otherwise than by blocks; the reason.

        It takes no heads of some sizes, and whether it compiles shows only when it does.
        """
        room = self._capable.window or 260  # of a deeper row it would not be asked
        trunk = min(200, room * 3 // 4)
        branch = min(60, room - trunk)
        whole, fork = trunk + 2 * branch, trunk // 2
        ends = np.full(whole, whole)
        ends[fork + 1 : trunk + branch] = trunk + branch
        depths = np.concatenate([np.arange(trunk + branch), np.arange(fork + 1, fork + 1 + branch)])
        try:
            flexible = self._states(ends, depths)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self.flex = False
            return f"does not work here ({str(error).strip().splitlines()[0]})"
        self.flex = False
        by_blocks = self._states(ends, depths)
        difference = float((flexible - by_blocks).abs().max() / by_blocks.abs().max())
        tolerance = 1e-3 if self._model.dtype == torch.float32 else 0.1
        self.flex = difference < tolerance
        return None if self.flex else f"changes its numbers by {difference:.2g} of the largest"

    @torch.inference_mode()
    def _states(self, ends: IntArray, depths: IntArray) -> torch.Tensor:
        """What the model says of a row of tokens that say nothing, its first output, in float32."""
        model, device = self._model, self._model.device
        vocabulary = int(model.get_input_embeddings().weight.shape[0])
        ids = torch.as_tensor(np.arange(3, 3 + len(ends)) * 7919 % vocabulary, device=device)
        with self.row(ends, depths) as mask:
            places = torch.as_tensor(depths, device=device)
            states: torch.Tensor = model(input_ids=ids[None], attention_mask=mask, position_ids=places[None])[0]
        return states.float()


_current: list[TreePlan] = []  # of the row being computed; Transformers hands nothing of ours to attention functions


def _configs(model: Any) -> list[Any]:
    """The configurations that the model's layers read their attention from, each once."""
    found = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    return list(found.values())


@functools.cache
def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _attend)


def _attend(
    _module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: Any,
    scaling: float | None = None,
    **_options: Any,
) -> tuple[torch.Tensor, None]:
    """(1, n, heads, d) what each token gathers; takes (1, heads, n, d) queries and (1, key heads, n, d) keys.

    What else a model may ask of its attention (biases by position, say) is not done; whoever opens a model compares.
    """
    (plan,) = _current[-1:]
    groups = query.shape[1] // key.shape[1]
    if plan.flex is not None:
        out = _flex_attention(query.is_cuda)(
            query, key, value, block_mask=plan.flex, scale=scaling, enable_gqa=groups > 1
        )
        return out.transpose(1, 2).contiguous(), None
    # Once for all blocks: with a mask, kernels for several queries to a key are not to be had everywhere.
    key, value = (each if groups == 1 else each.repeat_interleave(groups, 1) for each in (key, value))
    parts = []
    for block in plan.blocks:
        keys, values = (
            each[:, :, : block.stop] if block.keys is None else each.index_select(2, block.keys)
            for each in (key, value)
        )
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                query[:, :, block.start : block.stop], keys, values, attn_mask=block.mask, scale=scaling
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


@functools.cache
def _flex_attention(compiled: bool) -> Callable[..., torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # Dynamic: rows differ in length. Not compiled it computes every product, which is for tests on a CPU.
    attend: Callable[..., torch.Tensor] = flex_attention
    return torch.compile(attend, dynamic=True) if compiled else attend
