"""Who pays for what prompts have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """A prompt's part in computing all prompts, each beginning once.

    Attributes:
        prompt: its index.
        planned: how many tokens are computed when its turn comes, those before it done.
        tokens: how many it pays for: of each beginning an equal part with all that have it. The sums are equal.
    """

    prompt: int
    planned: int
    tokens: int


def shares(prompts: Sequence[Sequence[int]]) -> list[Share]:
    """In the order in which to compute them: such that each has its longest beginning in common with the one before."""
    order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node, of the trie of all prompts
    paths, planned = [], []
    for i in order:
        before, node, path = len(nodes), -1, []
        for token in prompts[i]:
            node = nodes.setdefault((node, token), len(nodes))
            path.append(node)
        paths.append(path)
        planned.append(len(nodes) - before)
    users = Counter(node for path in paths for node in path)
    paid = _whole([sum(1 / users[node] for node in path) for path in paths])
    return [Share(*each) for each in zip(order, planned, paid, strict=True)]


def _whole(parts: list[float]) -> list[int]:
    """Whole numbers near the parts, with the same sum if that is whole."""
    whole, total = [], 0.0
    for part in parts:
        whole.append(round(total + part) - round(total))
        total += part
    return whole
