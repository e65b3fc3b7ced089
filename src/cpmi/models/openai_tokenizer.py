"""A server's tokenizer, reached over vLLM's paths ``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from cpmi.errors import CpmiError, InputError
from cpmi.models.openai_client import Failure, Server
from cpmi.models.openai_replies import BadReply, read_prompt, read_tokens, whole_text
from cpmi.models.tokenizing import SegmentTokenizer

T = TypeVar("T")


def server_tokenizer(server: Server, model: str) -> SegmentTokenizer:
    """The tokenizer of a model on a server.

    Raises:
        InputError: the server does not turn text into tokens.
    """
    remote = _RemoteTokenizer(server, model)
    if not remote("a", add_special_tokens=False)["input_ids"]:  # llama.cpp has a path of this name with other fields
        raise InputError(f"openai:{server.address.url}: its /tokenize gives no tokens; {_WAY_OUT}")
    return SegmentTokenizer(remote)


_WAY_OUT = "scoring and chat prompts need a vLLM server; use one, or hf:MODEL or vllm:MODEL"


class _RemoteTokenizer:
    """As much of a Transformers tokenizer as ``SegmentTokenizer`` uses."""

    # Whether there is one shows only when it is used.
    chat_template = "the server's own"

    def __init__(self, server: Server, model: str) -> None:
        self._server = server
        self._model = model
        self._dialog = functools.lru_cache(maxsize=4096)(self._render)

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool = False) -> dict[str, list[int]]:
        del verbose
        body = {"prompt": text, "add_special_tokens": add_special_tokens}
        return {"input_ids": self._ask("/tokenize", body, read_tokens)}

    def decode(self, ids: Any, **_: Any) -> str:
        return self._ask("/detokenize", {"tokens": list(ids)}, read_prompt) if ids else ""

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return self._dialog(messages[0]["content"])

    def _render(self, request: str) -> str:
        messages = [{"role": "user", "content": whole_text(request)}]
        ids = self._ask("/tokenize", {"messages": messages, "add_generation_prompt": True}, read_tokens)
        text = self.decode(ids)
        if self(text, add_special_tokens=False)["input_ids"] != ids:
            raise InputError(
                f"openai:{self._server.address.url}: its chat template cannot be read back from its tokens"
            )
        return text

    def _ask(self, path: str, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        address = self._server.address
        answer = self._server.ask(address.root + path, {"model": self._model, **body})
        if isinstance(answer, Failure):
            if answer.away:
                raise CpmiError(f"openai:{address.url}: {path}: {answer.line}")
            what = (
                "it has no chat template, or does not give it"
                if "messages" in body
                else "it cannot be asked for tokens"
            )
            raise InputError(f"openai:{address.url}: {what} ({path}: {answer.line}); {_WAY_OUT}")
        try:
            return read(answer)
        except BadReply as error:
            raise InputError(f"openai:{address.url}: {path}: {error}; {_WAY_OUT}") from None
