"""What the vLLM engine is asked, what comes back, and who pays for it."""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cpmi.errors import InputError
from cpmi.models.sequences import leaf_sequences
from cpmi.protocols import Completion, Sampled, ScoredTree, TokenTree
from cpmi.records import Cost


def vllm_params(**values: Any) -> Any:
    """vLLM's parameters of a request that is answered once, when it is done.

    Raises:
        InputError: vLLM does not take a value (a temperature above 2, an empty stop text).
    """
    from vllm import SamplingParams
    from vllm.exceptions import VLLMError
    from vllm.sampling_params import RequestOutputKind

    try:
        return SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **values)
    except (ValueError, VLLMError) as error:
        raise InputError(f"vLLM cannot sample so: {error}") from error


def takes_places() -> bool:
    """Whether this vLLM can be asked for given tokens from a given place of a prompt on."""
    from vllm import SamplingParams

    return {"prompt_logprob_start", "prompt_logprob_token_ids"} <= set(inspect.signature(SamplingParams).parameters)


def seed_of(*parts: int) -> int:
    """A seed made from others, such that neighbors share nothing; below 2**62, since vLLM takes 64 bits with a sign."""
    digest = hashlib.sha256(",".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 2


def end_tokens(generation: Mapping[str, Any]) -> list[int]:
    """The tokens that end a text, by the checkpoint's generation settings (or its config)."""
    ends = generation.get("eos_token_id")
    return list(ends) if isinstance(ends, list) else [] if ends is None else [ends]


@dataclass(slots=True)
class Waiting:
    """A prompt under way: its tokens, how many completions it waits for, and those that are there."""

    ids: tuple[int, ...]
    n: int
    outputs: dict[int, Any] = field(default_factory=dict)

    def take(self, number: int, output: Any) -> bool:
        """Whether that was the last one."""
        self.outputs[number] = output
        return len(self.outputs) == self.n

    def sampled(self, seconds: float) -> Sampled:
        outputs = [self.outputs[number] for number in range(self.n)]
        computed = sum(len(self.ids) - (output.num_cached_tokens or 0) for output in outputs)
        completions = [output.outputs[0] for output in outputs]
        cost = Cost(sum(len(each.token_ids) for each in completions), computed, seconds)
        if odd := {str(each.finish_reason) for each in completions} - {"stop", "length"}:
            return Sampled((), cost, f"vLLM ended it: {', '.join(sorted(odd))}")
        return Sampled(tuple(map(_completion, completions)), cost)


def _completion(output: Any) -> Completion:
    """Where a token ended the text, vLLM gives its number as the reason."""
    stop = output.stop_reason if isinstance(output.stop_reason, str) else ""
    return Completion(output.text, output.finish_reason, stop)


class Clock:
    """Splits the time between one prompt's end and the next one's equally over the prompts in flight."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._seconds: dict[int, float] = {}

    def start(self, indices: Mapping[int, Any]) -> None:
        self._seconds = dict.fromkeys(indices, 0.0)

    def stop(self, index: int) -> float:
        """The seconds of a prompt that is done."""
        now = time.perf_counter()
        share = (now - self._last) / len(self._seconds)
        self._last = now
        for each in self._seconds:
            self._seconds[each] += share
        return self._seconds.pop(index)


class TreeScores:
    """A tree as prompts, and what is known of it.

    Attributes:
        error: why it cannot be scored.
        sent: tokens of its prompts that were computed.
    """

    def __init__(self, tree: TokenTree) -> None:
        self._tree = tree
        self._sequences = leaf_sequences(tree)
        self._values = np.full(len(tree), np.nan)
        self.error: str | None = None
        self.sent = 0

    def prompts(self) -> list[list[int]]:
        """The token ids to send."""
        return [self._tree.ids[list(each.nodes)].tolist() for each in self._sequences]

    def take(self, number: int, output: Any) -> None:
        """Note a ``RequestOutput``: at each place of the prompt the log-probability of its own token by its id."""
        for node, depth in self._targets(number):
            by_token = output.prompt_logprobs[depth]
            self._values[node] = by_token[int(self._tree.ids[node])].logprob
        self.sent += len(self._sequences[number].nodes)

    def from_first_target(self, number: int) -> dict[str, Any]:
        """Parameters that ask for a prompt's own tokens from its first target on, so that the rest may be cached.

        vLLM counts by what predicts: row i is the prediction of token i + 1, and a row is due for each up to the last.
        """
        start = min(depth for _, depth in self._targets(number)) - 1
        tokens = self._tree.ids[list(self._sequences[number].nodes)][start + 1 :]
        return {"prompt_logprob_start": start, "prompt_logprob_token_ids": tokens[:, None].tolist()}

    def take_from_first_target(self, number: int, output: Any) -> bool:
        """Note the answer to these; False: the cache held the first row too, so that there is none."""
        rows = output.prompt_token_id_logprobs
        if rows is None:
            return False
        targets = self._targets(number)
        first = min(depth for _, depth in targets)
        for node, depth in targets:
            self._values[node] = float(rows[depth - first][0])
        self.sent += len(self._sequences[number].nodes) - (output.num_cached_tokens or 0)
        return True

    def _targets(self, number: int) -> list[tuple[int, int]]:
        """The scored nodes of a sequence and where they stand in it."""
        sequence = self._sequences[number]
        depths = {node: depth for depth, node in enumerate(sequence.nodes)}
        return [(node, depths[node]) for node in sequence.targets]

    def result(self, seconds: float) -> ScoredTree:
        if self.error is not None:
            return ScoredTree(None, error=self.error)
        return ScoredTree(self._values, Cost(tokens_scored=self.sent, seconds=seconds))
