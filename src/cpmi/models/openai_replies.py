"""What a server answered, checked: the answers of strangers become values or one-line errors, never a traceback."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cpmi.models.openai_client import one_line
from cpmi.protocols import Completion
from cpmi.records import Cost

_FINISHED = ("stop", "length")
_SHOWN = 80  # characters of an answer that is no answer


class BadReply(Exception):  # noqa: N818 - never leaves the engine
    """An answer that cannot be used; its text is one line."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model as the server lists it.

    Attributes:
        owner: what serves it, where it says so: ``vllm``, ``sglang``, ...
        context: the most tokens of a prompt and its completion; 0: not told.
    """

    name: str
    owner: str
    context: int


def read_models(reply: Any) -> list[Served]:
    """The models of an answer to ``/models``."""
    return [
        Served(
            str(_field(entry, "id", str)),
            owner if isinstance(owner := entry.get("owned_by"), str) else "",
            context if isinstance(context := entry.get("max_model_len"), int) else 0,
        )
        for entry in _field(reply, "data", list)
    ]


def read_cost(reply: Any) -> Cost | None:
    """The tokens that the server says it spent, without seconds; None where it does not say.

    Prompt tokens whose state was in its cache are not counted, where it tells of them.
    """
    if _field(reply, "usage", (dict, type(None)), optional=True) is None:
        return None
    usage = reply["usage"]
    details = _field(usage, "prompt_tokens_details", (dict, type(None)), optional=True) or {}
    cached = _field(details, "cached_tokens", (int, type(None)), optional=True) or 0
    generated = _field(usage, "completion_tokens", (int, type(None)), optional=True) or 0
    return Cost(tokens_generated=generated, tokens_scored=max(0, _field(usage, "prompt_tokens", int) - cached))


def read_completions(reply: Any, n: int) -> tuple[Completion, ...]:
    """The ``n`` texts of an answer to ``/completions``."""
    choices = _field(reply, "choices", list)
    if len(choices) != n:
        raise BadReply(f"it gave {len(choices)} completions, {n} were asked for")
    return tuple(_completion(choice) for choice in choices)


def _completion(choice: Any) -> Completion:
    text, reason = _field(choice, "text", str), _field(choice, "finish_reason", str)
    if reason not in _FINISHED:
        raise BadReply(one_line(f"it ended a completion with {reason!r}"))
    return Completion(whole_text(text), reason, _stop_text(choice, reason))


def _stop_text(choice: Any, reason: str) -> str | None:
    """The stop text, by vLLM's field ``stop_reason`` (of SGLang: ``matched_stop``); None where the server has none."""
    for name in ("stop_reason", "matched_stop"):
        if name in choice:
            return choice[name] if isinstance(choice[name], str) else ""
    return "" if reason == "length" else None


def read_logprobs(reply: Any, ids: list[int]) -> list[float]:
    """Log-probability of each token of an echoed prompt given those before; NaN for the first, which has none before.

    Raises:
        BadReply: none are there, they are of other tokens than ``ids`` (a server may add one of its own), or one is no
            finite number.
    """
    choices = _field(reply, "choices", list)
    found = _field(choices[0] if choices else None, "logprobs", dict)
    values, tokens = _field(found, "token_logprobs", list), _field(found, "tokens", list)
    if len(values) != len(ids) or len(tokens) != len(ids) or values[0] is not None:
        raise BadReply(f"it gave {len(values)} log-probabilities for a prompt of {len(ids)} tokens")
    if any(_other_token(token, number) for token, number in zip(tokens, ids, strict=True)):
        raise BadReply("it scored other tokens than it was sent")
    if not all(_is_finite(value) for value in values[1:]):
        raise BadReply("it gave a log-probability that is no finite number")
    return [math.nan, *map(float, values[1:])]


def _other_token(shown: Any, number: int) -> bool:
    """Whether vLLM, which was asked to name tokens by id, names another; other servers show a text."""
    return isinstance(shown, str) and shown.startswith("token_id:") and shown != f"token_id:{number}"


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_tokens(reply: Any) -> list[int]:
    """The token ids of an answer to ``/tokenize``."""
    tokens: list[int] = _field(reply, "tokens", list)
    if not all(isinstance(token, int) and token >= 0 for token in tokens):
        raise BadReply("its tokens are no numbers")
    return tokens


def read_prompt(reply: Any) -> str:
    """The text of an answer to ``/detokenize``."""
    return str(_field(reply, "prompt", str))


def whole_text(text: str) -> str:
    """The text with halves of surrogate pairs replaced, which JSON can hold but no file and no request."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _field(value: Any, name: str, kind: type | tuple[type, ...], *, optional: bool = False) -> Any:
    """``value[name]``, of that type."""
    if not isinstance(value, dict):
        raise BadReply(f"its answer is no JSON object: {one_line(str(value)[:_SHOWN])!r}")
    if name not in value and optional:
        return None
    found = value.get(name)
    if name not in value or not isinstance(found, kind) or isinstance(found, bool):
        raise BadReply(f"its answer has no usable {name!r}")
    return found
