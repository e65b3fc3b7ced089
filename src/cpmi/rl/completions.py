"""Completions of a policy as trajectories, and where in them their steps end: in characters and in tokens."""

from __future__ import annotations

import bisect
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cpmi.answers import extract_answer
from cpmi.errors import InputError
from cpmi.records import Trajectory
from cpmi.steps import split_steps

Interval = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A completion to be rewarded.

    Attributes:
        question: what the policy was asked.
        text: the completion.
        gold_answer: the right answer, where the data has it.
        intervals: where each step stands in ``text``: its first character, and the one behind its last.
        choices: the answers that the question offers, where it offers some.
    """

    question: str
    text: str
    gold_answer: str | None
    intervals: tuple[Interval, ...]
    choices: tuple[str, ...] | None = None

    @property
    def steps(self) -> tuple[str, ...]:
        """The texts of the steps."""
        return tuple(self.text[start:end] for start, end in self.intervals)

    @property
    def ends(self) -> tuple[int, ...]:
        """Where the steps end, in characters."""
        return tuple(end for _, end in self.intervals)

    def trajectory(self) -> Trajectory:
        """The attempt as a labeler or a reward model reads it.

        All attempts at a question have one id: wrong answers by rule are drawn by it, and attempts that are compared
        with one another must be measured against the same ones.
        """
        content = "\n".join((self.question, self.gold_answer or ""))
        name = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return Trajectory(self.question, self.steps, self.gold_answer, id=name, choices=self.choices)


# --- what a trainer hands over --------------------------------------------------------------------------------------


def completion_text(completion: object) -> str:
    """The text of a completion: a string, or chat messages of which the assistant's count.

    Raises:
        InputError: neither of them.
    """
    if isinstance(completion, str):
        return completion
    messages = _messages(completion, "completion")
    return "\n\n".join(_content(each) for each in messages if each.get("role", "assistant") == "assistant")


def question_text(prompt: object) -> str:
    """The question in a prompt: a string as it is, or the last message of the user.

    Raises:
        InputError: neither of them, or no message of a user.
    """
    if isinstance(prompt, str):
        return prompt
    said = [_content(each) for each in _messages(prompt, "prompt") if each.get("role") == "user"]
    if not said:
        raise InputError("a prompt has no message of a user; give the questions in a column of their own")
    return said[-1]


def _messages(value: object, what: str) -> list[Mapping[str, Any]]:
    if isinstance(value, Sequence) and all(isinstance(each, Mapping) for each in value):
        return list(value)
    raise InputError(f"a {what} must be a text or a list of chat messages, not {type(value).__name__}")


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""  # a message that only calls a tool has none
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text") or "") for part in content if part.get("type") == "text")


def gold_answer(value: object) -> str | None:
    r"""The right answer in a field of the data: the field itself, or, where it is a whole solution, what stands in its
    ``\boxed{}`` or behind its ``####``; None where the field is empty."""
    if value is None:
        return None
    text = str(value).strip()
    if "####" in text or "\\boxed" in text or "\\fbox" in text:
        text = (extract_answer(text) or "").strip()
    return text or None


# --- steps ----------------------------------------------------------------------------------------------------------

# A piece that opens like this goes on with the sentence before it. A letter alone is a variable ("x = 2"), and "- " and
# "* " open items of lists.
_GOES_ON = re.compile(r"[a-z]{2,}|[=<>,;:.)\]}/\u00d7\u00f7]|[-+*]\s*[0-9(]")
# And so does what follows a piece that ends like this.
_UNFINISHED = re.compile(
    r"(?:[=+*/<>,(\[{\u00d7\u00f7-]|\b(?:a|an|and|are|by|is|of|or|so|the|to|with))\s*\Z", re.IGNORECASE
)


def find_steps(text: str, how: str = "auto", *, join_fragments: bool = False) -> tuple[Interval, ...]:
    """Where the steps of a text stand.

    Args:
        how: see ``cpmi.steps.split_steps``.
        join_fragments: a piece that goes on with the sentence of the one before it (a small letter, an operator) is
            no step of its own.

    Raises:
        InputError: an unknown way to split.
    """
    intervals: list[Interval] = []
    at = 0
    for piece in split_steps(text, how):
        start = text.index(piece, at)  # pieces are the text in order, without white space at their ends
        at = start + len(piece)
        if join_fragments and intervals and (_GOES_ON.match(piece) or _is_unfinished(text, intervals[-1])):
            start = intervals.pop()[0]
        intervals.append((start, at))
    return tuple(intervals)


def _is_unfinished(text: str, interval: Interval) -> bool:
    return _UNFINISHED.search(text, max(interval[0], interval[1] - 8), interval[1]) is not None


# --- from characters to tokens --------------------------------------------------------------------------------------


def token_ends(ids: Sequence[int], ends: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """For each end of a step in ``decode(ids)`` the index of the token that completes it.

    The tokens that were sampled are what is rewarded, so they are decoded, beginning by beginning, and the text is
    never tokenized anew: that may cut it otherwise.

    Args:
        ids: the tokens of one completion, without padding.
        ends: in characters, ascending, at most the length of the text; each behind its last character.
        decode: gives the text of tokens, and of a beginning of them a beginning of the text.

    Raises:
        InputError: an end lies outside the text.
    """
    text = decode(ids)
    if any(not 0 < end <= len(text) for end in ends):
        raise InputError(f"a step ends outside the text of {len(text)} characters")
    found: list[int] = []
    low = 1
    for end in ends:
        high = len(ids)
        while low < high:  # the fewest tokens whose text has all of the step
            middle = (low + high) // 2
            if decode(ids[:middle])[:end] == text[:end]:
                high = middle
            else:
                low = middle + 1
        found.append(low - 1)
    return found


def ends_in_offsets(ends: Sequence[int], offsets: Sequence[Interval]) -> list[int]:
    """The same from a tokenizer's offsets: for each token where its text begins and ends, in characters.

    Raises:
        InputError: an end lies behind the last token.
    """
    token_ends = [end for _, end in offsets]
    if ends and (not token_ends or max(ends) > token_ends[-1]):
        raise InputError("a step ends behind the last token")
    return [bisect.bisect_left(token_ends, end) for end in ends]
