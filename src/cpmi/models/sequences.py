"""A token tree as plain sequences, for engines that take no trees: each path to a leaf is a request of its own."""

from __future__ import annotations

from dataclasses import dataclass

from cpmi.protocols import TokenTree


@dataclass(frozen=True, slots=True)
class LeafSequence:
    """A path from a root of a tree, as far down as something is asked for.

    Attributes:
        nodes: the path's nodes; ``tree.ids[nodes]`` are the tokens to send.
        targets: the scored nodes on it that no earlier sequence of the tree answers for.
    """

    nodes: tuple[int, ...]
    targets: tuple[int, ...]


def leaf_sequences(tree: TokenTree) -> list[LeafSequence]:
    """Sequences that together hold every scored node of the tree once among their targets."""
    parents = set(tree.parents.tolist())
    scored = tree.scored.tolist()
    answered: set[int] = set()
    sequences = []
    for leaf in range(len(tree)):
        if leaf in parents:
            continue
        path = tree.path(leaf)
        targets = [node for node in path if scored[node] and node not in answered]
        if targets:
            answered.update(targets)
            sequences.append(LeafSequence(tuple(path[: path.index(targets[-1]) + 1]), tuple(targets)))
    return sequences
