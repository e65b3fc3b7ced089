"""From token trees to forward passes: drop what need not be fed, cut what is too large, pack the rest into rows.

Pure index arithmetic, no torch. A node is fed only if something scored hangs below it: the last token of an answer
is predicted but never read, which for short answers saves more than half of their tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cpmi.protocols import IntArray, TokenTree


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A part of one tree that goes through the model in one go: some nodes with all their ancestors.

    Attributes:
        tree: index of the tree in its request.
        nodes: (n,) the nodes fed, as indices into the tree, in preorder.
        ends: (n,) end of each node's subtree within the piece: node i is an ancestor of j if i <= j < ends[i].
        depths: (n,) position of each node in its sequence.
        rows: (r,) which of the n predict something, ascending.
        targets: (t,) the scored nodes predicted here, as indices into the tree.
        target_rows: (t,) for each target the index into ``rows`` of its parent.
    """

    tree: int
    nodes: IntArray
    ends: IntArray
    depths: IntArray
    rows: IntArray
    targets: IntArray
    target_rows: IntArray

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def is_chain(self) -> bool:
        """Whether no node branches, so that an ordinary causal forward does it."""
        return bool((self.ends == len(self)).all())


def cut(tree: TokenTree, index: int, max_tokens: int, max_rows: int, targets: IntArray | None = None) -> list[Piece]:
    """Pieces that together predict every target (default: every scored node) once.

    A piece holds at most ``max_tokens`` nodes and ``max_rows`` predicting ones, unless a single path needs more;
    ``max_tokens=0`` gives one piece per leaf, each a plain sequence.
    """
    wanted = np.flatnonzero(tree.scored) if targets is None else targets
    if not len(wanted):
        return []
    parents = tree.parents
    fed = np.zeros(len(tree), dtype=np.bool_)
    fed[parents[wanted]] = True
    for node in range(len(tree) - 1, 0, -1):
        if fed[node] and parents[node] >= 0:
            fed[parents[node]] = True
    nodes = np.flatnonzero(fed)
    if len(nodes) <= max_tokens and len(np.unique(parents[wanted])) <= max_rows:
        return [_piece(tree, index, nodes, wanted)]
    return _cut_by_leaves(tree, index, nodes, wanted, max_tokens, max_rows)


def _cut_by_leaves(
    tree: TokenTree, index: int, nodes: IntArray, wanted: IntArray, max_tokens: int, max_rows: int
) -> list[Piece]:
    has_child = set(tree.parents[nodes].tolist())
    predicting = set(tree.parents[wanted].tolist())
    pieces: list[Piece] = []
    open_targets = wanted
    group: set[int] = set()

    def close() -> None:
        nonlocal open_targets
        here = np.isin(tree.parents[open_targets], list(group))
        pieces.append(_piece(tree, index, np.array(sorted(group), dtype=np.int64), open_targets[here]))
        predicting.difference_update(group)
        open_targets = open_targets[~here]

    for leaf in nodes.tolist():
        if leaf in has_child:
            continue
        joined = group.union(tree.path(leaf))
        if group and (len(joined) > max_tokens or len(joined & predicting) > max_rows):
            close()
            joined = set(tree.path(leaf))
        group = joined
    close()
    return pieces


def _piece(tree: TokenTree, index: int, nodes: IntArray, targets: IntArray) -> Piece:
    position = np.full(len(tree) + 1, -1, dtype=np.int64)  # the extra last entry answers for the parent of a root
    position[nodes] = np.arange(len(nodes))
    parents = position[tree.parents[nodes]].tolist()
    ends = list(range(1, len(nodes) + 1))
    depths = [0] * len(nodes)
    for node, parent in enumerate(parents):
        depths[node] = depths[parent] + 1 if parent >= 0 else 0
    for node in range(len(nodes) - 1, -1, -1):
        if (parent := parents[node]) >= 0:
            ends[parent] = max(ends[parent], ends[node])
    rows, target_rows = np.unique(position[tree.parents[targets]], return_inverse=True)
    return Piece(index, nodes, np.array(ends), np.array(depths), rows, targets, target_rows)


def pack(pieces: Iterable[Piece], max_tokens: int, max_rows: int) -> Iterator[list[Piece]]:
    """Fill rows with whole pieces, in order; a piece over a limit has a row of its own."""
    batch: list[Piece] = []
    tokens = rows = 0
    for piece in pieces:
        if batch and (tokens + len(piece) > max_tokens or rows + len(piece.rows) > max_rows):
            yield batch
            batch, tokens, rows = [], 0, 0
        batch.append(piece)
        tokens += len(piece)
        rows += len(piece.rows)
    if batch:
        yield batch


def offsets(pieces: Sequence[Piece]) -> list[int]:
    """Where each piece begins in a row that holds them one after the other."""
    return np.cumsum([0] + [len(piece) for piece in pieces[:-1]]).tolist()  # type: ignore[no-any-return]
