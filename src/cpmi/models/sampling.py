"""Continue one prompt with Transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from cpmi.models.tokenizing import SegmentTokenizer
from cpmi.protocols import Completion, SamplingParams


def plain_generation(model: Any) -> frozenset[int]:
    """Take the checkpoint's own sampling habits (penalties, top_k, suppressed tokens...) off the model.

    ``generate`` would fill whatever a caller leaves open from them. What stays are the tokens that end a text.
    """
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends)  # type: ignore[no-untyped-call]
    return frozenset(ends if isinstance(ends, list) else [ends] if ends is not None else [])


@torch.inference_mode()
def continue_prompt(
    model: Any,
    tokenizer: SegmentTokenizer,
    ids: Sequence[int],
    seed: int,
    n: int,
    params: SamplingParams,
    ends: frozenset[int],
) -> tuple[list[Completion], int]:
    """``n`` completions of the prompt ``ids``, and how many tokens were sampled for them."""
    prompt = torch.tensor([list(ids)], device=model.device)
    stop = _StopTexts(tokenizer, params.stop, len(ids))
    how = {"temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k}
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # manual_seed seeds every device
        torch.manual_seed(seed)
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            num_return_sequences=n,
            max_new_tokens=params.max_tokens,
            repetition_penalty=params.repetition_penalty,
            stopping_criteria=StoppingCriteriaList([stop]),
            pad_token_id=tokenizer.pad_token(),
            **({"do_sample": True, **how} if params.temperature > 0 else {"do_sample": False}),
        )
    rows = output[:, len(ids) :].tolist()
    lengths = [min(stop.lengths.get(i, len(row)), _length(row, ends)) for i, row in enumerate(rows)]
    sampled = [row[:length] for row, length in zip(rows, lengths, strict=True)]
    return [_completion(tokenizer.decode(row), row, params.stop, ends) for row in sampled], sum(lengths)


class _StopTexts(StoppingCriteria):
    """Ends a completion whose own text holds a stop text.

    ``generate``'s ``stop_strings`` also looks at the prompt, so that a prompt that ends with a line break and a
    completion that begins with one would be a blank line.
    """

    def __init__(self, tokenizer: SegmentTokenizer, stop: Sequence[str], prompt_length: int) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._prompt_length = prompt_length
        # A token is at least a byte, but for special ones: what the newest token completes lies within this many.
        self._tail = max((len(each.encode()) for each in stop), default=0) + 8
        self.lengths: dict[int, int] = {}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        del scores
        done = [self._ended(i, row[self._prompt_length :]) for i, row in enumerate(input_ids)] if self._stop else []
        return torch.tensor(done or [False] * len(input_ids), device=input_ids.device)

    def _ended(self, index: int, row: torch.Tensor) -> bool:
        if index not in self.lengths:
            text = self._tokenizer.decode(row[-self._tail :].tolist())
            if any(each in text for each in self._stop):
                self.lengths[index] = len(row)
        return index in self.lengths


def _length(row: list[int], ends: frozenset[int]) -> int:
    """How many tokens were sampled up to the one that ends the text, before the filling."""
    return next((i + 1 for i, token in enumerate(row) if token in ends), len(row))


def _completion(text: str, row: list[int], stop: Sequence[str], ends: frozenset[int]) -> Completion:
    cuts = [text.index(each) for each in stop if each in text]
    stopped = bool(cuts) or bool(row and row[-1] in ends)
    return Completion(text[: min(cuts)] if cuts else text, "stop" if stopped else "length")
