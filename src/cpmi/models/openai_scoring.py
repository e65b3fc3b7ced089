"""Log-probabilities of a token tree from a server: one request per path to a leaf, whose prompt is echoed."""

from __future__ import annotations

from typing import Any

import numpy as np

from cpmi.models.openai_client import Failure
from cpmi.models.openai_replies import BadReply, Served, read_logprobs
from cpmi.models.sequences import LeafSequence
from cpmi.protocols import ScoredTree, TokenTree
from cpmi.records import Cost


def scoring_request(served: Served, ids: list[int]) -> dict[str, Any]:
    """Ask for the log-probability of each of the prompt's tokens, and for no new one."""
    request = {"model": served.name, "prompt": ids, "echo": True, "logprobs": 0, "max_tokens": 0, "temperature": 0}
    # vLLM can name tokens by their ids, so that what was scored can be compared with what was sent.
    return request | ({"return_tokens_as_token_ids": True} if served.owner == "vllm" else {})


def scoring_problem(answer: Any | Failure, ids: list[int]) -> str | None:
    """Why an answer to a scoring request holds no log-probabilities."""
    if isinstance(answer, Failure):
        return answer.line
    try:
        read_logprobs(answer, ids)
    except BadReply as error:
        return str(error)
    return None


class TreeScores:
    """What is known of one tree so far."""

    def __init__(self, tree: TokenTree) -> None:
        self.tree = tree
        self.cost = Cost()
        self.error: str | None = None
        self._values = np.full(len(tree), np.nan)

    def ids(self, sequence: LeafSequence) -> list[int]:
        """The tokens of a path."""
        return [int(self.tree.ids[node]) for node in sequence.nodes]

    def take(self, sequence: LeafSequence, answer: Any) -> None:
        """Note the log-probabilities of a path's tokens where they are asked for.

        Raises:
            BadReply: the answer holds none.
        """
        by_node = dict(zip(sequence.nodes, read_logprobs(answer, self.ids(sequence)), strict=True))
        self._values[list(sequence.targets)] = [by_node[node] for node in sequence.targets]

    def result(self) -> ScoredTree:
        return ScoredTree(None if self.error else self._values, self.cost, self.error)
