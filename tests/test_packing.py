"""Cutting and batching of token trees: pure index arithmetic, checked against its definitions on random trees."""

from __future__ import annotations

from collections import deque

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cpmi.models.packing import Limits, Piece, cut, offsets, take_row, take_stack
from cpmi.protocols import TokenTree


@st.composite
def trees(draw: st.DrawFn) -> TokenTree:
    """Preorder trees and forests: each node hangs on the node before it or on an ancestor of that."""
    parents: list[int] = []
    for pops in draw(st.lists(st.integers(0, 4), min_size=1, max_size=40)):
        parent = len(parents) - 1
        for _ in range(pops):
            parent = parents[parent] if parent >= 0 else -1
        parents.append(parent)
    scored = draw(st.lists(st.booleans(), min_size=len(parents), max_size=len(parents)))
    above = np.array(parents)
    return TokenTree(np.arange(len(parents)), above, np.array(scored) & (above >= 0))


limits = st.builds(Limits, tokens=st.integers(0, 45), rows=st.integers(1, 20))


def node_paths(tree: TokenTree) -> list[set[int]]:
    return [set(tree.path(node)) for node in range(len(tree))]


@given(trees(), limits)
def test_every_target_is_predicted_once_from_its_parent(tree: TokenTree, limit: Limits) -> None:
    pieces = cut(tree, 3, limit)
    targets = [target for piece in pieces for target in piece.targets.tolist()]
    assert sorted(targets) == np.flatnonzero(tree.scored).tolist()
    for piece in pieces:
        assert piece.tree == 3
        predicted_from = piece.nodes[piece.rows[piece.target_rows]]
        assert predicted_from.tolist() == tree.parents[piece.targets].tolist()


@given(trees(), limits)
def test_a_piece_is_a_tree_of_its_own(tree: TokenTree, limit: Limits) -> None:
    paths, depths = node_paths(tree), tree.depths()
    for piece in cut(tree, 0, limit):
        nodes = piece.nodes.tolist()
        assert nodes == sorted(set().union(*(paths[node] for node in nodes)))  # in order, with all ancestors
        assert piece.depths.tolist() == depths[nodes].tolist()
        below = [[i <= j < piece.ends[i] for i in range(len(nodes))] for j in range(len(nodes))]
        assert below == [[above in paths[node] for above in nodes] for node in nodes]
        assert piece.rows.tolist() == sorted(set(piece.rows.tolist()))
        assert len(piece.targets)


@given(trees(), limits)
def test_nothing_is_fed_in_vain(tree: TokenTree, limit: Limits) -> None:
    paths = node_paths(tree)
    for piece in cut(tree, 0, limit):
        predicting = piece.nodes[piece.rows].tolist()
        assert set(piece.nodes.tolist()) == set().union(*(paths[node] for node in predicting))


@given(trees(), limits)
def test_pieces_keep_the_limits_unless_one_path_needs_more(tree: TokenTree, limit: Limits) -> None:
    for piece in cut(tree, 0, limit):
        assert limit.hold(len(piece), len(piece.rows)) or piece.is_chain


@given(trees())
def test_what_fits_is_not_cut_and_no_room_means_plain_sequences(tree: TokenTree) -> None:
    whole = cut(tree, 0, Limits(len(tree), len(tree)))
    assert len(whole) == bool(tree.scored.any())
    alone = cut(tree, 0, Limits(0, len(tree)))
    assert all(piece.is_chain for piece in alone)
    fed = {node for piece in whole for node in piece.nodes.tolist()}
    assert len(alone) == len(fed - set(tree.parents[sorted(fed)].tolist()))  # one per leaf


@given(trees(), limits, st.data())
def test_only_the_targets_asked_for(tree: TokenTree, limit: Limits, data: st.DataObject) -> None:
    scored = np.flatnonzero(tree.scored)
    wanted = np.array([node for node in scored if data.draw(st.booleans())], dtype=np.int64)
    targets = [target for piece in cut(tree, 0, limit, wanted) for target in piece.targets.tolist()]
    assert sorted(targets) == wanted.tolist()


def test_a_tree_worked_by_hand() -> None:
    #  0 1 2 3*       * scored; 3, 6 and 7 are predicted but never fed
    #      4 5 6*
    #  0 7*
    tree = TokenTree(
        np.arange(8),
        np.array([-1, 0, 1, 2, 1, 4, 5, 0]),
        np.array([False, False, False, True, False, False, True, True]),
    )
    (piece,) = cut(tree, 0, Limits(5, 3))
    assert piece.nodes.tolist() == [0, 1, 2, 4, 5]
    assert piece.ends.tolist() == [5, 5, 3, 5, 5]
    assert piece.depths.tolist() == [0, 1, 2, 2, 3]
    assert piece.rows.tolist() == [0, 2, 4]
    assert piece.targets.tolist() == [3, 6, 7]
    assert piece.target_rows.tolist() == [1, 2, 0]

    left, right = cut(tree, 0, Limits(4, 3))  # the trunk is fed twice, what it predicts is predicted once
    assert (left.nodes.tolist(), left.targets.tolist()) == ([0, 1, 2], [3, 7])
    assert (right.nodes.tolist(), right.targets.tolist()) == ([0, 1, 4, 5], [6])


def test_an_empty_tree_and_one_with_nothing_scored() -> None:
    none = np.array([], dtype=np.int64)
    assert cut(TokenTree(none, none, none.astype(np.bool_)), 0, Limits(5, 5)) == []
    assert cut(TokenTree(np.array([1, 2]), np.array([-1, 0]), np.array([False, False])), 0, Limits(5, 5)) == []


# --- batching -------------------------------------------------------------------------------------------------------


def chains(*lengths: int) -> list[Piece]:
    """Plain sequences whose last token predicts."""
    pieces = []
    for index, length in enumerate(lengths):
        places = np.arange(length + 1)
        pieces += cut(TokenTree(places, places - 1, places == length), index, Limits(length, 1))
    return pieces


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), limits)
def test_rows_take_all_pieces_in_order_and_as_many_as_fit(lengths: list[int], limit: Limits) -> None:
    queue = deque(pieces := chains(*lengths))
    batches = []
    while queue:
        batches.append(take_row(queue, limit))
        tokens, rows = sum(map(len, batches[-1])), len(batches[-1])
        assert len(batches[-1]) == 1 or limit.hold(tokens, rows)
        assert not queue or not limit.hold(tokens + len(queue[0]), rows + 1)
    assert [piece for batch in batches for piece in batch] == pieces


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), limits)
def test_stacks_count_their_padding(lengths: list[int], limit: Limits) -> None:
    queue = deque(pieces := chains(*lengths))
    batches = []

    def size(batch: list[Piece]) -> tuple[int, int]:
        return len(batch) * max(map(len, batch)), len(batch) * len({len(piece) for piece in batch})

    while queue:
        batches.append(take_stack(queue, limit))
        assert len(batches[-1]) == 1 or limit.hold(*size(batches[-1]))
        assert not queue or not limit.hold(*size([*batches[-1], queue[0]]))
    assert [piece for batch in batches for piece in batch] == pieces


def test_offsets() -> None:
    assert offsets(chains(3, 1, 5)).tolist() == [0, 3, 4]
