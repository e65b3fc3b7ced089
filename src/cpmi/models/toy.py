"""A tiny model whose probabilities can be worked out by hand, for tests, docs and trying things without torch.

Its tokens are bytes. After a context of n bytes the next byte is b with probability

    (1 + how often b occurs in the context) / (256 + n)

so a text becomes likelier once it has been seen. It samples from the same distribution.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence

import numpy as np

from cpmi.protocols import (
    Completion,
    OnSampled,
    Prompt,
    Sampled,
    SamplingParams,
    ScoredTree,
    TokenTree,
    Truncation,
    ignore_sampled,
)
from cpmi.records import JSON, Cost

_BYTES = 256


class ToyModel:
    """A ``Scorer`` and a ``Sampler`` over bytes; see the module's text for its distribution."""

    prefix: tuple[int, ...] = ()

    def encode(self, text: str, *, first: bool = False) -> tuple[int, ...]:
        """The UTF-8 bytes of the text."""
        del first
        return tuple(text.encode("utf-8", "surrogatepass"))

    def describe(self) -> dict[str, JSON]:
        return {"model": "toy:"}

    def logprobs(self, trees: Sequence[TokenTree], truncation: Truncation = Truncation()) -> list[ScoredTree]:
        return [self._score(tree, truncation) for tree in trees]

    def _score(self, tree: TokenTree, truncation: Truncation) -> ScoredTree:
        start = time.perf_counter()
        logprobs = np.full(len(tree), np.nan)
        counts = [0] * _BYTES
        stack: list[int] = []  # the path to the node before this one; preorder makes it the tree's own stack
        tokens = tree.ids.tolist()
        for node, (token, parent, scored) in enumerate(
            zip(tokens, tree.parents.tolist(), tree.scored.tolist(), strict=True)
        ):
            while stack and stack[-1] != parent:
                counts[tokens[stack.pop()]] -= 1
            if scored:
                logprobs[node] = _logprob(counts, len(stack), token, truncation)
            counts[token] += 1
            stack.append(node)
        return ScoredTree(logprobs, Cost(tokens_scored=len(tree), seconds=time.perf_counter() - start))

    def sample(
        self, prompts: Sequence[Prompt], n: int, params: SamplingParams, on_done: OnSampled = ignore_sampled
    ) -> list[Sampled]:
        results = []
        for index, prompt in enumerate(prompts):
            start = time.perf_counter()
            rng = random.Random(prompt.seed)
            completions = tuple(_continue(prompt.text, params, rng) for _ in range(n))
            tokens = sum(len(completion.text.encode()) for completion in completions)
            cost = Cost(tokens, len(self.encode(prompt.text)), time.perf_counter() - start)
            results.append(Sampled(completions, cost))
            on_done(index, results[-1])
        return results

    def dialog(self, request: str, reply: str) -> str:
        return f"User: {request}\n\nAssistant: {reply}"

    def close(self) -> None:
        """There is nothing to give back."""


def _logprob(counts: Sequence[int], length: int, token: int, truncation: Truncation) -> float:
    logprob = math.log((1 + counts[token]) / (_BYTES + length))
    if truncation == Truncation():
        return logprob
    probabilities = np.array(counts, dtype=np.float64) + 1
    probabilities /= _BYTES + length
    order = np.argsort(-probabilities, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = order[before < truncation.top_p][: truncation.top_k or None]
    mass = probabilities[kept].sum() + (0 if token in kept else probabilities[token])
    return logprob - math.log(mass)


def _continue(context: str, params: SamplingParams, rng: random.Random) -> Completion:
    """Sample bytes; those outside printable ASCII are never drawn, so the text is always valid."""
    counts = [1 if 32 <= b < 127 or b == 10 else 0 for b in range(_BYTES)]
    for byte in context.encode("utf-8", "surrogatepass"):
        counts[byte] += 1 if counts[byte] else 0
    text = ""
    for _ in range(params.max_tokens):
        byte = rng.choices(range(_BYTES), weights=counts)[0]
        counts[byte] += 1
        text += chr(byte)
        for stop in params.stop:
            if text.endswith(stop):
                return Completion(text.removesuffix(stop), "stop", stop)
    return Completion(text, "length", "")
