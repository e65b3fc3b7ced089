"""How a model is asked to solve a question, or to go on with a solution that is begun."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cpmi.prompts import STEP_SEPARATOR
from cpmi.protocols import Prompt, Sampler, SamplingParams
from cpmi.records import Trajectory

PromptStyle = Literal["chat", "plain"]

# A base model that is done goes on with a problem of its own, whose answer must not be taken for this one's.
_PLAIN_STOPS = ("\nProblem:", "\n\n\n\n")


@dataclass(frozen=True, slots=True)
class Asking:
    """A way to ask.

    Attributes:
        style: ``chat``: the question as a user's message and the steps as the model's reply, begun; ``plain``: one
            text, for models without a chat template.
        by_steps: ask for a blank line between steps, so that solutions can be cut into them.
        instruction: how to reason; where to put the answer is said behind it.
    """

    style: PromptStyle = "chat"
    by_steps: bool = False
    instruction: str = "Reason step by step"

    def text(self, sampler: Sampler, question: Trajectory, steps: Sequence[str] = ()) -> str:
        """The prompt: the question, and the steps that there are, each with a blank line behind it.

        Raises:
            InputError: the style is ``chat`` and the model has no chat template.
        """
        begun = "".join(step + STEP_SEPARATOR for step in steps)
        request, problem = self._request(question), question.question.strip()
        if self.style == "chat":
            return sampler.dialog(f"{problem}\n\n{request}", begun)
        return f"Solve the following problem. {request}\n\nProblem: {problem}\n\nSolution:\n\n{begun}"

    def _request(self, question: Trajectory) -> str:
        how = ", with a blank line between steps," if self.by_steps else ","
        choices = question.choices
        one_of = "" if choices is None else f" ({', '.join(choices[:-1])} or {choices[-1]})"
        return f"{self.instruction}{how} and put the final answer{one_of} within \\boxed{{}}."

    def sampling(self, params: SamplingParams) -> SamplingParams:
        """The parameters with the stop texts that the style needs, where there are none."""
        return params if self.style == "chat" or params.stop else replace(params, stop=_PLAIN_STOPS)


STEP_BY_STEP = Asking(by_steps=True)


def prompt(text: str, *key: object) -> Prompt:
    """The prompt under a seed of its own, made from what ``key`` says."""
    name = ":".join(map(str, key))
    return Prompt(text, int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]))
