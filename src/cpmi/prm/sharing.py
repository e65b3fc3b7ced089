"""What trajectories have in common is read once: many of them as one row of tokens, a trie.

Solutions of one question share it, and those of a tree search or of PRM800K most of their steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cpmi.prm.encode import Encoded
from cpmi.protocols import IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Some trajectories as one trie, its tokens in preorder.

    Attributes:
        members: the indices of its trajectories.
        ids: (n,) tokens.
        depths: (n,) position of each in its sequence.
        ends: (n,) end of each token's subtree: token i is an ancestor of j if i <= j < ends[i].
        places: for each member (steps,) where in the row its steps end.
    """

    members: tuple[int, ...]
    ids: IntArray
    depths: IntArray
    ends: IntArray
    places: tuple[IntArray, ...]

    def __len__(self) -> int:
        return len(self.ids)


def plan_rows(encoded: Sequence[Encoded], limit: int, *, at_least: float = 1.25) -> tuple[list[Row], list[int]]:
    """Rows of at most ``limit`` tokens for what shares much, and the indices of what is better read alone.

    Args:
        limit: of the tokens in a row; a single trajectory with more is read alone.
        at_least: how many tokens of the trajectories a token of their row must stand for.
    """
    rows, alone = [], []
    for members in _cut(encoded, limit):
        row = _row(encoded, members)
        whole = sum(len(encoded[index]) for index in members)
        if len(members) > 1 and whole >= at_least * len(row):
            rows.append(row)
        else:
            alone += members
    return rows, sorted(alone)


def _cut(encoded: Sequence[Encoded], limit: int) -> list[list[int]]:
    """Groups of neighbors in dictionary order: those that share a beginning stand side by side."""
    groups: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(encoded)), key=lambda i: encoded[i].ids):
        ids = encoded[index].ids
        new = len(ids) - (_shared(encoded[groups[-1][-1]].ids, ids) if groups else 0)
        # What shares no more than the tokens that open every text gains nothing from standing in a row.
        if groups and new < len(ids) - 4 and tokens + new <= limit:
            groups[-1].append(index)
            tokens += new
        else:
            groups.append([index])
            tokens = len(ids)
    return groups


def _row(encoded: Sequence[Encoded], members: Sequence[int]) -> Row:
    ids: list[int] = []
    depths: list[int] = []
    path: list[int] = []  # the places in the row of the tokens of the sequence at hand
    ends: list[int] = []
    places = []
    before: tuple[int, ...] = ()
    for index in members:
        sequence = encoded[index].ids
        shared = _shared(before, sequence)
        for place in path[shared:]:
            ends[place] = len(ids)  # nothing more hangs below these
        path = [*path[:shared], *range(len(ids), len(ids) + len(sequence) - shared)]
        ids += sequence[shared:]
        depths += range(shared, len(sequence))
        ends += [0] * (len(sequence) - shared)
        places.append(np.array([path[end] for end in encoded[index].ends], dtype=np.int64))
        before = sequence
    for place in path:
        ends[place] = len(ids)
    return Row(tuple(members), np.array(ids), np.array(depths), np.array(ends), tuple(places))


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)
