"""The interfaces of the house, on one page.

A ``Scorer`` gives log-probabilities of given tokens, a ``Sampler`` gives new text; a ``StepRewarder`` (a labeling
method, or a trained process reward model) turns trajectories into one number per step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cpmi.errors import InputError
from cpmi.records import JSON, Cost, StepRewards, Trajectory

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class TokenTree:
    """Many token sequences with shared beginnings, each beginning once: a request for log-probabilities.

    A node is a token; its sequence is the path from its root. Nodes stand in preorder: the parent of node i is
    node i-1 or one of that node's ancestors, so a subtree is a slice.

    Attributes:
        ids: (n,) token ids.
        parents: (n,) index of the parent, -1 for a root.
        scored: (n,) whether log p(token | its ancestors) is asked for. A root cannot be scored.
    """

    ids: IntArray
    parents: IntArray
    scored: BoolArray

    def __post_init__(self) -> None:
        if not self.ids.shape == self.parents.shape == self.scored.shape == (len(self.ids),):
            raise ValueError("ids, parents and scored must be arrays of one length")
        stack: list[int] = []
        for i, parent in enumerate(self.parents.tolist()):
            while stack and stack[-1] != parent:
                stack.pop()
            if parent != (stack[-1] if stack else -1):
                raise ValueError(f"node {i}: its parent {parent} is not an ancestor of the node before it")
            stack.append(i)
        if bool(self.scored[self.parents < 0].any()):
            raise ValueError("a root has no ancestors to be scored from")

    def __len__(self) -> int:
        return len(self.ids)

    def depths(self) -> IntArray:
        """(n,) number of ancestors of each node: its position in its sequence."""
        depths: list[int] = []
        for parent in self.parents.tolist():
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return np.array(depths, dtype=np.int64)

    def path(self, node: int) -> list[int]:
        """The nodes from the root to ``node``, both included."""
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = int(self.parents[node])
        return nodes[::-1]


@dataclass(frozen=True, slots=True)
class Truncation:
    """Renormalize each distribution over its likeliest tokens (the scored token is always kept among them).

    Attributes:
        top_k: keep the k likeliest tokens; 0: all.
        top_p: keep the smallest set of likeliest tokens whose probability reaches p; 1.0: all.
    """

    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise InputError("top_k must be 0 or more, top_p above 0 and at most 1")


@dataclass(frozen=True, slots=True, eq=False)
class ScoredTree:
    """The answer to a ``TokenTree``.

    Attributes:
        logprobs: (n,) natural log-probability of each scored node, NaN elsewhere; None where ``error`` is set.
        cost: what this tree cost.
        error: why the tree could not be scored, in one line.
    """

    logprobs: FloatArray | None
    cost: Cost = Cost()
    error: str | None = None


class Tokenizing(Protocol):
    """How an engine turns text into tokens."""

    @property
    def prefix(self) -> tuple[int, ...]:
        """Tokens that open every sequence (a beginning-of-sequence token, or nothing)."""
        ...

    def encode(self, text: str, *, first: bool = False) -> tuple[int, ...]:
        """Tokens of a segment of text, no special ones; ``first``: it opens the sequence."""
        ...


class Scorer(Tokenizing, Protocol):
    """An engine that gives log-probabilities of given tokens."""

    def logprobs(self, trees: Sequence[TokenTree], truncation: Truncation = Truncation()) -> list[ScoredTree]:
        """Score each tree, in order. How trees share a forward pass is the engine's own business."""
        ...

    def describe(self) -> dict[str, JSON]:
        """What identifies the model and could change its numbers: name, revision, dtype."""
        ...


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample; the names are those of the engines.

    Attributes:
        max_tokens: the most tokens of one completion.
        stop: texts at which a completion ends (they are not part of it).
    """

    max_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled continuation.

    Attributes:
        text: without the stop text.
        finish_reason: ``stop``, or ``length`` where ``max_tokens`` ended it.
        stop_text: the stop text that ended it; empty: none of them did, the model ended its text or ran into the limit;
            None: the engine does not say.
    """

    text: str
    finish_reason: str
    stop_text: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to continue, and the seed that makes its completions repeat (where the engine has a seed per request)."""

    text: str
    seed: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """The completions of one prompt and their cost.

    Attributes:
        completions: as many as were asked for; empty where ``error`` is set.
        cost: the prompt's share of what the engine spent. ``tokens_scored`` counts prompt tokens that were computed
            (not those whose state was at hand), ``seconds`` add up to the engine's time over all prompts.
        error: why there are none, in one line.
    """

    completions: tuple[Completion, ...]
    cost: Cost = Cost()
    error: str | None = None


OnSampled = Callable[[int, Sampled], None]


def ignore_sampled(index: int, sampled: Sampled) -> None:
    """An ``OnSampled`` that does nothing."""
    del index, sampled


class Sampler(Protocol):
    """An engine that continues text."""

    def sample(
        self, prompts: Sequence[Prompt], n: int, params: SamplingParams, on_done: OnSampled = ignore_sampled
    ) -> list[Sampled]:
        """``n`` completions of each prompt, in the order of the prompts.

        A prompt that the engine cannot continue (too long, a request that failed for good) comes back with ``error``.

        Args:
            on_done: called from the calling thread with a prompt's index and its completions, once for each prompt,
                as soon as they are there, in any order: so that what is paid for can be kept when the rest is lost.

        Raises:
            CpmiError: the engine is gone, so that nothing more can be sampled.
        """
        ...

    def dialog(self, request: str, reply: str) -> str:
        """The text in which a user asks ``request`` and the model has begun its reply with ``reply``, left open.

        Raises:
            InputError: the model has no chat template, or the engine does not give it.
        """
        ...

    def describe(self) -> dict[str, JSON]:
        """What identifies the model and could change what it says: name, revision, dtype."""
        ...


class Engine(Scorer, Sampler, Protocol):
    """A language model that scores and samples; what ``models.open_model`` gives."""

    def close(self) -> None:
        """Give back memory and processes; the engine cannot be used afterwards."""
        ...


class StepRewarder(Protocol):
    """A source of one number per reasoning step: a labeling method or a process reward model."""

    @property
    def name(self) -> str:
        """Short name of the method, kept as ``StepRewards.source``."""
        ...

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        """Reward each trajectory, in order; one that cannot be rewarded comes back with ``error``."""
        ...

    def describe(self) -> dict[str, Any]:
        """Every setting that could change the numbers, as JSON, for the manifest; a run that goes on has the same."""
        ...
