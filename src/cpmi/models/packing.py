"""From token trees to forward passes: drop what need not be fed, cut what is too large, batch the rest.

Pure index arithmetic, no torch. A node is fed only if something scored hangs below it: the last token of an answer
is predicted but never read, which for short answers saves more than half of their tokens.
"""

from __future__ import annotations

from collections import deque
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


@dataclass(frozen=True, slots=True)
class Limits:
    """What one forward pass may hold.

    Attributes:
        tokens: fed, padding included.
        rows: at which logits are computed.
    """

    tokens: int
    rows: int

    def hold(self, tokens: int, rows: int) -> bool:
        return tokens <= self.tokens and rows <= self.rows


# --- cutting --------------------------------------------------------------------------------------------------------


def cut(tree: TokenTree, index: int, limits: Limits, targets: IntArray | None = None) -> list[Piece]:
    """Pieces within the limits that together predict every target (default: every scored node) once.

    A single path that needs more is a piece of its own; ``Limits(0, ...)`` gives one piece per leaf, each a plain
    sequence.
    """
    wanted = np.flatnonzero(tree.scored) if targets is None else targets
    if not len(wanted):
        return []
    predicting = tree.parents[wanted]
    nodes = _fed(tree, predicting)
    if limits.hold(len(nodes), len(np.unique(predicting))):
        return [_piece(tree, index, nodes, wanted)]
    return _cut_by_leaves(tree, index, nodes, wanted, limits)


def _fed(tree: TokenTree, predicting: IntArray) -> IntArray:
    """The predicting nodes and all their ancestors, in preorder."""
    parents = tree.parents.tolist()
    fed = np.zeros(len(tree), dtype=np.bool_)
    fed[predicting] = True
    for node in range(len(tree) - 1, -1, -1):
        if fed[node] and parents[node] >= 0:
            fed[parents[node]] = True
    return np.flatnonzero(fed)


def _cut_by_leaves(tree: TokenTree, index: int, nodes: IntArray, wanted: IntArray, limits: Limits) -> list[Piece]:
    """Paths to the leaves, taken from the left, as many to a piece as it holds."""
    parents = tree.parents.tolist()
    has_child = set(tree.parents[nodes].tolist())
    predicting = set(tree.parents[wanted].tolist())
    owner = np.empty(len(tree), dtype=np.int64)  # of each predicting node: the piece that predicts from it
    groups: list[set[int]] = [set()]
    rows: set[int] = set()
    for leaf in (node for node in nodes.tolist() if node not in has_child):
        # Preorder: what this path shares with any earlier one it shares with the last, whose piece predicts from it.
        branch = _new_ancestors(parents, leaf, groups[-1])
        more = predicting.intersection(branch)
        if groups[-1] and not limits.hold(len(groups[-1]) + len(branch), len(rows) + len(more)):
            groups.append(set())
            rows = set()
            branch = _new_ancestors(parents, leaf, groups[-1])
        groups[-1].update(branch)
        owner[list(more)] = len(groups) - 1
        rows |= more
    owners = owner[tree.parents[wanted]]
    return [
        _piece(tree, index, np.array(sorted(group), dtype=np.int64), wanted[owners == number])
        for number, group in enumerate(groups)
    ]


def _new_ancestors(parents: list[int], node: int, known: set[int]) -> list[int]:
    """The node and its ancestors up to the first known one."""
    path = []
    while node >= 0 and node not in known:
        path.append(node)
        node = parents[node]
    return path


def _piece(tree: TokenTree, index: int, nodes: IntArray, targets: IntArray) -> Piece:
    # Every parent of a node is a node too; that of a root (-1) is looked up at 0 and overwritten.
    parents = np.where(tree.parents[nodes] < 0, -1, np.searchsorted(nodes, tree.parents[nodes])).tolist()
    ends = list(range(1, len(nodes) + 1))
    depths = [0] * len(nodes)
    for node, parent in enumerate(parents):
        depths[node] = depths[parent] + 1 if parent >= 0 else 0
    for node in range(len(nodes) - 1, -1, -1):
        if (parent := parents[node]) >= 0:
            ends[parent] = max(ends[parent], ends[node])
    rows, target_rows = np.unique(np.searchsorted(nodes, tree.parents[targets]), return_inverse=True)
    return Piece(index, nodes, np.array(ends), np.array(depths), rows, targets, target_rows)


# --- batching -------------------------------------------------------------------------------------------------------


def take_row(pieces: deque[Piece], limits: Limits) -> list[Piece]:
    """Take from the left the pieces that fit into one row, one after the other; at least one."""
    batch = [pieces.popleft()]
    tokens, rows = len(batch[0]), len(batch[0].rows)
    while pieces and limits.hold(tokens := tokens + len(pieces[0]), rows := rows + len(pieces[0].rows)):
        batch.append(pieces.popleft())
    return batch


def take_stack(pieces: deque[Piece], limits: Limits) -> list[Piece]:
    """Take from the left the plain sequences that fit into one padded rectangle; at least one.

    Logits are computed in every sequence at each position where any of them predicts.
    """
    batch = [pieces.popleft()]
    longest, positions = len(batch[0]), set(batch[0].rows.tolist())
    while pieces:
        longest, positions = max(longest, len(pieces[0])), positions.union(pieces[0].rows.tolist())
        if not limits.hold((len(batch) + 1) * longest, (len(batch) + 1) * len(positions)):
            break
        batch.append(pieces.popleft())
    return batch


def offsets(pieces: list[Piece]) -> IntArray:
    """Where each piece begins in a row that holds them one after the other."""
    return np.cumsum([0] + [len(piece) for piece in pieces[:-1]])
