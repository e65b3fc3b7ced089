"""Attention over rows of trees, block by block and by FlexAttention, against the dense mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpmi.models import tree_attention
from cpmi.models.hf import HFModel
from cpmi.models.tree_attention import TreeAttention, flex_mask, has_flex, plan_blocks
from cpmi.protocols import IntArray, TokenTree
from tiny_models import byte_tokenizer, tiny_model

CPU = torch.device("cpu")

# Not compiled it is slow, which is no matter here.
uncompiled = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")


def ends_of(parents: list[int]) -> IntArray:
    ends = list(range(1, len(parents) + 1))
    for node in reversed(range(len(parents))):
        if parents[node] >= 0:
            ends[parents[node]] = max(ends[parents[node]], ends[node])
    return np.array(ends)


def ancestors(parents: list[int]) -> np.ndarray[Any, Any]:
    """(n, n) whether the row's token sees the column's, found by walking up."""
    sees = np.zeros((len(parents), len(parents)), dtype=bool)
    for node in range(len(parents)):
        at = node
        while at >= 0:
            sees[node, at] = True
            at = parents[at]
    return sees


@st.composite
def forests(draw: st.DrawFn) -> list[int]:
    """Parents of some trees side by side, in preorder."""
    parents: list[int] = []
    path: list[int] = []
    for _ in range(draw(st.integers(1, 40))):
        path = path[: draw(st.integers(0, len(path)))] if draw(st.booleans()) else path
        parents.append(path[-1] if path else -1)
        path = [*path, len(parents) - 1]
    return parents


@settings(deadline=None)
@given(forests(), st.integers(1, 12))
def test_blocks_show_each_token_its_ancestors_and_nothing_else(parents: list[int], size: int) -> None:
    seen = np.zeros((len(parents), len(parents)), dtype=int)
    for block in plan_blocks(ends_of(parents), CPU, size):
        keys = np.arange(block.stop) if block.keys is None else block.keys.numpy()
        assert len(set(keys.tolist())) == len(keys)
        for query, row in zip(range(block.start, block.stop), block.mask.numpy(), strict=True):
            seen[query, keys[row]] += 1
    assert (seen == ancestors(parents)).all()


def test_a_row_of_short_branches_costs_by_its_depth() -> None:
    branches = 200
    parents = [-1, *range(49)] + [parent for i in range(branches) for parent in (49, 50 + 2 * i)]
    blocks = plan_blocks(ends_of(parents), CPU)
    products = sum(block.mask.numel() for block in blocks)
    assert products < 0.3 * len(parents) ** 2
    assert max(block.mask.shape[1] for block in blocks) <= 50 + 64 + 1


@settings(max_examples=20, deadline=None)
@given(forests())
def test_the_block_mask_of_flex_attention_says_the_same(parents: list[int]) -> None:
    mask = flex_mask(ends_of(parents), CPU)
    n = len(parents)
    query, key = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    zero = torch.zeros((), dtype=torch.long)
    assert (mask.mask_mod(zero, zero, query, key).numpy() == ancestors(parents)).all()


@pytest.fixture
def tree() -> TokenTree:
    """A trunk of 90 tokens with branches, some of which branch again: several blocks."""
    parents = [-1, *range(89)]
    for start in (20, 50, 89, 89, 89):
        first = len(parents)
        parents += [start, *range(first, first + 30)]
        parents += [first + 5, len(parents)]
    count = len(parents)
    order = np.argsort(np.array([_place(parents, i) for i in range(count)], dtype=object), kind="stable")
    rank = {int(old): new for new, old in enumerate(order)}
    sorted_parents = np.array([rank.get(parents[old], -1) for old in order.tolist()])
    ids = np.random.default_rng(0).integers(3, 250, count)
    return TokenTree(ids.astype(np.int64), sorted_parents, sorted_parents >= 0)


def _place(parents: list[int], node: int) -> tuple[int, ...]:
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return tuple(reversed(path))


def scores(model: HFModel, tree: TokenTree) -> np.ndarray[Any, Any]:
    (scored,) = model.logprobs([tree])
    assert scored.logprobs is not None
    return scored.logprobs[tree.scored]


@uncompiled
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_rows_come_out_as_with_a_dense_mask(kind: str, tree: TokenTree) -> None:
    model = HFModel(tiny_model(kind), byte_tokenizer(), name=kind)
    attention = model._forward.attention
    assert attention.by_blocks
    by_blocks = scores(model, tree)
    attention.flex = True  # not compiled on a CPU
    by_flex = scores(model, tree)
    attention.flex = attention.by_blocks = False
    dense = scores(model, tree)
    assert np.abs(by_blocks - dense).max() < 1e-4
    assert np.abs(by_flex - dense).max() < 1e-4
    assert np.ptp(dense) > 1e-2, "a model that says the same everywhere would hide a wrong mask"


def test_the_model_is_as_it_was_before_and_after_a_row_also_when_it_fails() -> None:
    model = tiny_model("llama")
    attention = TreeAttention(model, HFModel(model, byte_tokenizer(), name="llama")._capable)

    def fail() -> None:
        with attention.row(np.array([3, 2, 3]), np.array([0, 1, 1])):
            assert model.config._attn_implementation == "cpmi_tree"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert model.config._attn_implementation == "sdpa"
    assert not tree_attention._current


def test_eager_attention_keeps_its_dense_mask(tree: TokenTree) -> None:
    model = tiny_model("llama")
    by_blocks = scores(HFModel(model, byte_tokenizer(), name="llama"), tree)
    model.set_attn_implementation("eager")
    eager = HFModel(model, byte_tokenizer(), name="llama")
    assert not eager._forward.attention.by_blocks
    assert np.abs(scores(eager, tree) - by_blocks).max() < 1e-4


def test_flex_attention_is_left_where_it_fails(
    tree: TokenTree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_args: Any, **_options: Any) -> torch.Tensor:
        raise RuntimeError("no Triton\nand more lines")

    expected = scores(HFModel(tiny_model("llama"), byte_tokenizer(), name="llama"), tree)
    monkeypatch.setattr(tree_attention, "has_flex", lambda _device: True)
    monkeypatch.setattr(tree_attention, "_flex_attention", lambda _compiled: broken)
    model = HFModel(tiny_model("llama"), byte_tokenizer(), name="llama")
    assert not model._forward.attention.flex
    assert "FlexAttention does not work here (no Triton); attending block by block" in caplog.text
    assert (scores(model, tree) == expected).all()


def test_flex_attention_is_left_where_it_says_something_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(query: torch.Tensor, *_args: Any, **_options: Any) -> torch.Tensor:
        return torch.ones_like(query)

    monkeypatch.setattr(tree_attention, "has_flex", lambda _device: True)
    monkeypatch.setattr(tree_attention, "_flex_attention", lambda _compiled: wrong)
    assert not HFModel(tiny_model("llama"), byte_tokenizer(), name="llama")._forward.attention.flex
    assert "FlexAttention changes its numbers by" in caplog.text


@uncompiled
def test_flex_attention_is_kept_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_attention, "has_flex", lambda _device: True)
    assert HFModel(tiny_model("llama"), byte_tokenizer(), name="llama")._forward.attention.flex


def test_flex_attention_is_for_cuda() -> None:
    assert not has_flex(CPU)
