"""A sampler that says what a test tells it to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cpmi.protocols import Completion, OnSampled, Prompt, Sampled, SamplingParams, ignore_sampled
from cpmi.records import JSON, Cost


class ScriptedSampler:
    """Answers each prompt with ``script(text)``; notes what it was asked.

    Each prompt costs 10 tokens a completion, 5 prompt tokens and 0.5 s.
    """

    def __init__(self, script: Callable[[str], Sequence[str | Completion] | str], name: str = "scripted") -> None:
        """A script gives the texts of the completions, or an error as one text."""
        self._script = script
        self._name = name
        self.asked: list[Prompt] = []
        self.calls: list[int] = []
        self.params: SamplingParams | None = None

    def sample(
        self, prompts: Sequence[Prompt], n: int, params: SamplingParams, on_done: OnSampled = ignore_sampled
    ) -> list[Sampled]:
        self.calls.append(len(prompts))
        self.params = params
        results = []
        for index, prompt in enumerate(prompts):
            self.asked.append(prompt)
            results.append(self._answer(prompt.text))
            on_done(index, results[-1])
        return results

    def _answer(self, text: str) -> Sampled:
        said = self._script(text)
        if isinstance(said, str):
            return Sampled((), Cost(seconds=0.5), error=said)
        completions = tuple(each if isinstance(each, Completion) else Completion(each, "stop") for each in said)
        return Sampled(completions, Cost(10 * len(completions), 5, 0.5))

    def dialog(self, request: str, reply: str) -> str:
        return f"<user>{request}<model>{reply}"

    def describe(self) -> dict[str, JSON]:
        return {"model": self._name}
