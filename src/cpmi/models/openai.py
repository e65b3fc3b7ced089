"""Sampling and scoring on an OpenAI-compatible server: ``openai:URL#MODEL``.

Sampling needs ``/completions``, which every such server has that continues plain text. Scoring also needs vLLM's
``/tokenize`` and the log-probabilities of an echoed prompt; chat prompts need ``/tokenize`` and ``/detokenize``.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from cpmi.errors import CpmiError, InputError
from cpmi.models import ModelSettings
from cpmi.models.in_flight import in_flight
from cpmi.models.openai_client import Address, Failure, Server, ServerOptions
from cpmi.models.openai_replies import (
    BadReply,
    Served,
    read_completions,
    read_cost,
    whole_text,
)
from cpmi.models.openai_scoring import TreeScores, scoring_problem, scoring_request
from cpmi.models.openai_served import find_model
from cpmi.models.openai_tokenizer import server_tokenizer
from cpmi.models.sequences import LeafSequence, leaf_sequences
from cpmi.models.tokenizing import SegmentTokenizer
from cpmi.protocols import (
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

logger = logging.getLogger("cpmi")

_GONE = 8  # requests in a row that failed, each with all its retries
_REFUSES_ALL = {401, 403, 404}  # a key or a model that was there when the server was opened
_TELL_SETTINGS = {"vllm", "sglang"}  # servers that take top_k and repetition_penalty, and have defaults of their own


def open_server(source: str, settings: ModelSettings) -> ServerModel:
    """Connect to a server; one request tells whether it is there and has the model.

    Args:
        source: ``URL#MODEL``; the model may be left out where the server has only one.

    Raises:
        InputError: a URL that cannot be used, no server there, a key it refuses, an unknown model or option, a setting
            that only a model of one's own has.
    """
    if (settings.dtype, settings.device, settings.batch_tokens) != ("auto", "auto", 0):
        raise InputError("dtype, device and batch tokens of an openai: model are the server's; leave them out")
    server = Server(Address.parse(source), ServerOptions.parse(settings.options))
    try:
        return ServerModel(server, find_model(server))
    except CpmiError:
        server.close()
        raise


def _different(n: int, params: SamplingParams) -> int:
    """How many completions to ask for: greedy ones are all the same, and vLLM refuses to make several."""
    return n if params.temperature else min(n, 1)


class ServerModel:
    """A model on a server, as a ``Scorer`` and a ``Sampler``."""

    def __init__(self, server: Server, served: Served) -> None:
        """Use a model that the server lists; ``open_server`` looks for it."""
        self._server = server
        self._served = served
        self._name = f"openai:{server.address.url}#{served.name}"
        self._failed_in_a_row = 0
        self._tells_usage = True
        self._can_score = False
        self._encode = functools.lru_cache(maxsize=65536)(self._encode_anew)

    def describe(self) -> dict[str, JSON]:
        return {"model": self._name, "revision": None, "dtype": None}

    def close(self) -> None:
        """See ``Engine.close``."""
        self._server.close()

    # --- text and tokens --------------------------------------------------------------------------------------------

    @property
    def prefix(self) -> tuple[int, ...]:
        return self._tokenizer.prefix

    def encode(self, text: str, *, first: bool = False) -> tuple[int, ...]:
        """See ``Tokenizing.encode``."""
        return self._encode(text, first)

    def dialog(self, request: str, reply: str) -> str:
        """See ``Sampler.dialog``."""
        return self._tokenizer.dialog(request, reply)

    @functools.cached_property
    def _tokenizer(self) -> SegmentTokenizer:
        return server_tokenizer(self._server, self._served.name)

    def _encode_anew(self, text: str, first: bool) -> tuple[int, ...]:
        return self._tokenizer.encode(text, first=first)

    # --- sampling ---------------------------------------------------------------------------------------------------

    def sample(
        self, prompts: Sequence[Prompt], n: int, params: SamplingParams, on_done: OnSampled = ignore_sampled
    ) -> list[Sampled]:
        """See ``Sampler.sample``; a server that reports no usage costs no tokens, and a warning says so once."""
        results: dict[int, Sampled] = {}

        def take(index: int, answer: Any | Failure, seconds: float) -> None:
            results[index] = self._sampled(answer, n, params, seconds)
            on_done(index, results[index])

        self._ask_all([self._sampling_request(prompt, n, params) for prompt in prompts], take)
        return [results[index] for index in range(len(prompts))]

    def _sampling_request(self, prompt: Prompt, n: int, params: SamplingParams) -> dict[str, Any]:
        """The prompt goes as text: the server opens it with its special tokens, as the Transformers engine does.

        A chat prompt comes without them from ``dialog``, so none is there twice.
        """
        # vLLM shortens what does not fit behind the prompt, but refuses what would not fit without one.
        most = min(params.max_tokens, self._served.context or params.max_tokens)
        request = {
            "model": self._served.name,
            "prompt": whole_text(prompt.text),
            "n": _different(n, params),
            "max_tokens": most,
            "temperature": params.temperature,
            "top_p": params.top_p,
        }
        if params.stop:
            request["stop"] = list(params.stop)
        if self._server.options.seed:
            request["seed"] = prompt.seed
        return request | self._beyond_openai(params)

    def _beyond_openai(self, params: SamplingParams) -> dict[str, float]:
        """Settings that OpenAI's API does not have.

        vLLM and SGLang take what a request leaves out from the checkpoint's ``generation_config.json``, often a top_k
        and a penalty: nothing is left out there. Other servers may refuse the names, so that they get only what is set.
        """
        if self._served.owner in _TELL_SETTINGS:
            return {"top_k": params.top_k or -1, "repetition_penalty": params.repetition_penalty, "min_p": 0.0}
        settings = {"top_k": (params.top_k, 0), "repetition_penalty": (params.repetition_penalty, 1.0)}
        return {name: value for name, (value, neutral) in settings.items() if value != neutral}

    def _sampled(self, answer: Any | Failure, n: int, params: SamplingParams, seconds: float) -> Sampled:
        cost = Cost(seconds=seconds)
        if isinstance(answer, Failure):
            return Sampled((), cost, error=f"server: {answer.line}{self._hint(answer, params)}")
        try:
            cost += self._tokens(answer)
            different = _different(n, params)
            return Sampled(read_completions(answer, different) * (n // different), cost)
        except BadReply as error:
            return Sampled((), cost, error=f"server: {error}")

    def _hint(self, failure: Failure, params: SamplingParams) -> str:
        named = [name for name in self._beyond_openai(params) if failure.status in (400, 422) and name in failure.line]
        if not named:
            return ""
        return f" ({' and '.join(named)}: not part of OpenAI's API, and left out where 0 and 1)"

    def _tokens(self, answer: Any) -> Cost:
        cost = read_cost(answer)
        if cost is None and self._tells_usage:
            self._tells_usage = False
            logger.warning("%s: the server does not report its usage, so no tokens are counted", self._name)
        return cost or Cost()

    # --- scoring ----------------------------------------------------------------------------------------------------

    def logprobs(self, trees: Sequence[TokenTree], truncation: Truncation = Truncation()) -> list[ScoredTree]:
        """See ``Scorer.logprobs``; each path to a leaf is a request.

        Raises:
            InputError: the server does not give log-probabilities of a prompt, or a truncation is asked for.
            CpmiError: the server is gone.
        """
        if truncation != Truncation():
            raise InputError("a server gives log-probabilities over all tokens only; for top_k and top_p use hf:MODEL")
        self._check_scoring()
        scores = [TreeScores(tree) for tree in trees]
        work = [(score, sequence) for score in scores for sequence in leaf_sequences(score.tree)]

        def take(index: int, answer: Any | Failure, seconds: float) -> None:
            score, sequence = work[index]
            score.cost += Cost(seconds=seconds)
            self._score(answer, score, sequence)

        self._ask_all([scoring_request(self._served, score.ids(sequence)) for score, sequence in work], take)
        return [score.result() for score in scores]

    def _score(self, answer: Any | Failure, score: TreeScores, sequence: LeafSequence) -> None:
        if isinstance(answer, Failure):
            score.error = f"server: {answer.line}"
            return
        try:
            score.cost += self._tokens(answer)
            score.take(sequence, answer)
        except BadReply as error:
            score.error = f"server: {error}"

    def _check_scoring(self) -> None:
        """Score a few tokens, once: a server that cannot would turn every tree into an error."""
        if self._can_score:
            return
        ids = [*self.prefix, *self.encode("1 + 1 = 2", first=True)]
        answer = self._server.ask("/completions", scoring_request(self._served, ids))
        if isinstance(answer, Failure) and answer.away:
            raise CpmiError(f"{self._name}: {answer.line}")
        if problem := scoring_problem(answer, ids):
            raise InputError(
                f"{self._name}: this server gives no log-probabilities of a prompt (echo with logprobs): {problem}; "
                "use a vLLM server, hf:MODEL or vllm:MODEL"
            )
        self._can_score = True

    # --- requests ---------------------------------------------------------------------------------------------------

    def _ask_all(self, requests: Sequence[dict[str, Any]], take: Callable[[int, Any | Failure, float], None]) -> None:
        """Send all requests, and give each answer with its seconds to ``take``, in the calling thread.

        Raises:
            CpmiError: the server is gone.
        """

        def work(index: int, stopped: threading.Event) -> Any | Failure:
            return self._server.ask("/completions", requests[index], stopped)

        with closing(in_flight(len(requests), work, self._server.options.parallel)) as answers:
            for index, answer, seconds in answers:
                self._check_alive(answer)
                take(index, answer, seconds)

    def _check_alive(self, answer: Any | Failure) -> None:
        """A server that is gone, or refuses all, would turn every prompt to come into an error."""
        if not isinstance(answer, Failure) or not (answer.away or answer.status in _REFUSES_ALL):
            self._failed_in_a_row = 0
            return
        if not answer.away:
            raise CpmiError(f"{self._name}: {answer.line}")
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= _GONE:
            raise CpmiError(f"{self._name}: {_GONE} requests in a row failed for good; the last: {answer.line}")
        if isinstance(alive := self._server.models(), Failure):
            raise CpmiError(f"{self._name}: the server is gone: {alive.line}")
