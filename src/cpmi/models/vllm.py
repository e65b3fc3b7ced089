"""Sampling and scoring with vLLM: ``vllm:PATH_OR_HUB_ID``.

All prompts of a call are in flight at once, and the engine fills its batches from them. Scoring sends each path of a
tree as a prompt of its own: vLLM takes no trees. Where it can be asked for given tokens from a given place on (on GPUs
alone), what paths share comes from its prefix cache; for log-probabilities of a whole prompt it reads none.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from types import MappingProxyType
from typing import Any

from cpmi.errors import CpmiError, InputError
from cpmi.models import ModelSettings
from cpmi.models.loading import revision_of
from cpmi.models.tokenizing import SegmentTokenizer
from cpmi.models.vllm_loading import close_engine, lives_in_process, one_line, open_engine
from cpmi.models.vllm_requests import Clock, TreeScores, Waiting, end_tokens, seed_of, takes_places, vllm_params
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
from cpmi.records import JSON

# (index of the prompt or tree, number of its completion or sequence)
_Key = tuple[int, int]


# Options that change how fast an engine is and what it needs, but nothing that it says; not even how long that may be.
_CHANGE_NOTHING = {
    "disable_log_stats", "enable_chunked_prefill", "enable_prefix_caching", "enforce_eager", "gpu_memory_utilization",
    "kv_cache_memory_bytes", "max_num_batched_tokens", "max_num_seqs", "num_gpu_blocks_override",
    "pipeline_parallel_size", "swap_space", "tensor_parallel_size",
}  # fmt: skip


def load_vllm(source: str, settings: ModelSettings) -> VLLMModel:
    """Open ``source``, a folder or a hub id, with vLLM.

    Raises:
        InputError: vLLM is not installed, there is no such model, or the device, the dtype or an option is not to be
            had.
    """
    llm = open_engine(source, settings)
    revision = revision_of(source)
    options = {name: value for name, value in settings.options.items() if name not in _CHANGE_NOTHING}
    return VLLMModel(llm, name=settings.name, revision=revision, options=options)


class VLLMModel:
    """A model in a vLLM engine, as a ``Scorer`` and a ``Sampler``."""

    def __init__(
        self, llm: Any, *, name: str, revision: str | None = None, options: Mapping[str, JSON] = MappingProxyType({})
    ) -> None:
        """Take over a ``vllm.LLM``; ``load_vllm`` loads by name.

        Args:
            options: of the engine, those that may change what it says.
        """
        self._options = options
        self._llm: Any = llm
        self._engine: Any = llm.llm_engine
        self._name = name
        self._revision = revision
        self._tokenizer = SegmentTokenizer(llm.get_tokenizer())
        config = self._engine.model_config
        self._dtype = str(config.dtype).removeprefix("torch.")
        self._context: int = config.max_model_len
        self._vocabulary: int = config.get_vocab_size()
        self._ends = end_tokens(config.try_get_generation_config())
        self._on_cpu = self._engine.vllm_config.device_config.device_type == "cpu"
        # Untested on a GPU. vLLM has it since 0.32, in the runner that needs Triton.
        self._scores_from_places = bool(getattr(self._engine.vllm_config, "use_v2_model_runner", False)) and (
            takes_places()
        )
        self._in_process = lives_in_process(llm)
        self._numbers = itertools.count()
        self._died: str | None = None

    @property
    def prefix(self) -> tuple[int, ...]:
        return self._tokenizer.prefix

    def encode(self, text: str, *, first: bool = False) -> tuple[int, ...]:
        """See ``Tokenizing.encode``."""
        return self._tokenizer.encode(text, first=first)

    def dialog(self, request: str, reply: str) -> str:
        """See ``Sampler.dialog``."""
        return self._tokenizer.dialog(request, reply)

    def describe(self) -> dict[str, JSON]:
        described: dict[str, JSON] = {"model": self._name, "revision": self._revision, "dtype": self._dtype}
        return described | ({"options": dict(self._options)} if self._options else {})

    def close(self) -> None:
        """See ``Engine.close``; closing twice does nothing."""
        llm, self._llm, self._engine = self._llm, None, None
        if llm is not None:
            close_engine(llm)

    # --- sampling ---------------------------------------------------------------------------------------------------

    def sample(
        self, prompts: Sequence[Prompt], n: int, params: SamplingParams, on_done: OnSampled = ignore_sampled
    ) -> list[Sampled]:
        """See ``Sampler.sample``.

        Seeds: on a GPU each completion has one of its own, made from its prompt's, so that it repeats up to rounding.
        vLLM has none per request on CPU. There the whole call is seeded from its prompts' seeds: the same call to an
        engine in the same state repeats, whatever was drawn before. (With the engine in a process of its own, which
        VLLM_ENABLE_V1_MULTIPROCESSING=1 asks for, only the same calls in the same order do.)

        Raises:
            CpmiError: the engine died.
            InputError: vLLM does not take these parameters.
        """
        clock = Clock()
        results: dict[int, Sampled] = {}

        def settle(index: int, sampled: Sampled) -> None:
            results[index] = sampled
            on_done(index, sampled)

        waiting: dict[int, Waiting] = {}
        for index, prompt in enumerate(prompts):
            ids = (*self.prefix, *self.encode(prompt.text, first=True))
            if error := self._why_not(ids):
                settle(index, Sampled((), error=error))
            elif n < 1 or params.max_tokens < 1:
                settle(index, Sampled((Completion("", "length", ""),) * n))
            else:
                waiting[index] = Waiting(ids, n)
        requests = {
            (index, number): (prompt.ids, self._sampling(params, prompt.ids, prompts[index].seed, number))
            for index, prompt in waiting.items()
            for number in range(n)
        }
        clock.start(waiting)
        # Requests of one completion each: of n in one, vLLM tells only of the last what it found in the cache.
        with self._seeded(prompts), closing(self._run(requests)) as finished:
            for (index, number), output in finished:
                if waiting[index].take(number, output):
                    settle(index, waiting[index].sampled(clock.stop(index)))
        return [results[index] for index in range(len(prompts))]

    def _room(self, ids: Sequence[int], params: SamplingParams) -> int:
        """How many tokens may be sampled."""
        return min(params.max_tokens, self._context - len(ids))

    def _sampling(self, params: SamplingParams, ids: Sequence[int], seed: int, number: int) -> Any:
        """The parameters of one completion, in vLLM's form."""
        return vllm_params(
            max_tokens=self._room(ids, params),
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,  # 0 is all, as here
            repetition_penalty=params.repetition_penalty,
            stop=list(params.stop),
            # The tokenizer's end-of-text token, which vLLM looks for by itself, may be another than the model's.
            ignore_eos=True,
            stop_token_ids=self._ends,
            # A seed per request is random numbers per request, which vLLM's CPU sampler dies of.
            seed=None if self._on_cpu else seed_of(seed, number),
        )

    @contextmanager
    def _seeded(self, prompts: Sequence[Prompt]) -> Iterator[None]:
        """Where vLLM draws from torch's generator in this process, have it begin anew; others get theirs back."""
        if not (self._on_cpu and self._in_process):
            yield
            return
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(*(prompt.seed for prompt in prompts)))
            yield

    # --- scoring ----------------------------------------------------------------------------------------------------

    def logprobs(self, trees: Sequence[TokenTree], truncation: Truncation = Truncation()) -> list[ScoredTree]:
        """See ``Scorer.logprobs``; a tree that does not fit comes back with ``error``.

        Raises:
            CpmiError: the engine died.
            InputError: a truncation, which vLLM does not apply to prompts.
        """
        if truncation != Truncation():
            raise InputError("vllm: gives log-probabilities over all tokens only; use hf: for truncated ones")
        start = time.perf_counter()
        scores = [TreeScores(tree) for tree in trees]
        for each in scores:
            # vLLM scores a prompt on the way to sampling a token, for which there must be room.
            whys = (self._why_not(ids) for ids in each.prompts())
            each.error = next(filter(None, whys), None)
        prompts = {
            (index, number): ids
            for index, each in enumerate(scores)
            if each.error is None
            for number, ids in enumerate(each.prompts())
        }
        if self._scores_from_places:
            prompts = self._score_from_places(scores, prompts)
        params = vllm_params(max_tokens=1, prompt_logprobs=0, detokenize=False)
        with closing(self._run({key: (ids, params) for key, ids in prompts.items()})) as finished:
            for (index, number), output in finished:
                scores[index].take(number, output)
        sent = sum(each.sent for each in scores) or 1
        return [each.result((time.perf_counter() - start) * each.sent / sent) for each in scores]

    def _score_from_places(
        self, scores: Sequence[TreeScores], prompts: Mapping[_Key, list[int]]
    ) -> dict[_Key, list[int]]:
        """Score by what shares its beginning with others; gives back what is left, which goes without the cache."""
        requests = {
            (index, number): (
                ids,
                vllm_params(
                    max_tokens=1,
                    detokenize=False,
                    skip_reading_prefix_cache=False,
                    **scores[index].from_first_target(number),
                ),
            )
            for (index, number), ids in prompts.items()
        }
        left = {}
        with closing(self._run(requests)) as finished:
            for (index, number), output in finished:
                if not scores[index].take_from_first_target(number, output):
                    left[index, number] = prompts[index, number]
        return left

    def _why_not(self, ids: Sequence[int]) -> str | None:
        if not ids:
            return "an empty prompt, and the model has no token that opens a text"
        if len(ids) >= self._context:
            return f"too long: {len(ids)} tokens leave no room in the model's context of {self._context}"
        if (top := max(ids)) >= self._vocabulary:
            return f"the tokenizer's token {top} is not one of the model's {self._vocabulary}"
        return None

    # --- the engine -------------------------------------------------------------------------------------------------

    def _run(self, requests: Mapping[_Key, tuple[Sequence[int], Any]]) -> Generator[tuple[_Key, Any], None, None]:
        """Send all requests; yield the ``RequestOutput`` of each as it is done. Those left over are withdrawn."""
        call = next(self._numbers)
        unfinished = {f"{call}-{index}-{number}": (index, number) for index, number in requests}
        try:
            for name, key in unfinished.items():
                self._add(name, *requests[key])
            while unfinished:
                for output in self._step():
                    if output.finished and (done := unfinished.pop(output.request_id, None)) is not None:
                        yield done, output
        finally:
            if unfinished and self._died is None:
                self._engine.abort_request(list(unfinished))

    def _add(self, name: str, ids: Sequence[int], params: Any) -> None:
        from vllm.inputs.engine import tokens_input

        with self._alive():
            self._engine.add_request(name, tokens_input(list(ids)), params)

    def _step(self) -> list[Any]:
        with self._alive():
            outputs: list[Any] = self._engine.step()
        return outputs

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """An engine that fails does not recover; so say what to do instead of how it failed.

        Raises:
            CpmiError: it died, now or before.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            if self._died is None:
                yield
                return
        except (EngineDeadError, RuntimeError, MemoryError, OSError) as error:
            self._died = f"the vLLM engine died ({one_line(error)}); what is done is kept: run the same command again"
            raise CpmiError(self._died) from error
        raise CpmiError(self._died)
