"""The vLLM engine: what needs vLLM runs in an environment of its own (make test-vllm), the rest everywhere."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cpmi.errors import CpmiError, InputError
from cpmi.models import ModelSettings, open_model
from cpmi.models.vllm import VLLMModel
from cpmi.models.vllm_loading import check_options, engine_options, one_line
from cpmi.models.vllm_requests import Clock, end_tokens, seed_of, takes_places, vllm_params
from cpmi.prompts import ContextKind, Template, plan_scoring, step_contexts
from cpmi.protocols import Engine, Prompt, Sampled, SamplingParams, TokenTree, Truncation

FOLDER = Path(os.environ.get("CPMI_TEST_MODELS") or Path.home() / ".cache" / "cpmi-models")
MODEL = FOLDER / "smollm2-135m"
CONTEXT = 512
# Without compiling, which takes a minute; little memory, and a cache small enough that it is used up.
OPTIONS = {"enforce_eager": True, "max_model_len": CONTEXT, "kv_cache_memory_bytes": 2**28, "max_num_seqs": 16}

KINDS: tuple[ContextKind, ...] = ("marginal", "cumulative")

needs_vllm = pytest.mark.vllm
GREEDY = SamplingParams(max_tokens=12, temperature=0.0)
QUESTIONS = [
    "Question: A box holds 7 apples. How many apples are in 6 boxes?\n\nAnswer:",
    "The capital of France is",
    "1, 2, 3, 4,",
    "def add(a, b):\n    return",
    "Once upon a time",
]


def open_vllm(name: str = f"vllm:{MODEL}", dtype: str = "float32", **options: Any) -> VLLMModel:
    model = open_model(ModelSettings(name, dtype=dtype, options=OPTIONS | options))
    assert isinstance(model, VLLMModel)
    return model


@pytest.fixture(scope="module")
def available() -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here; run: make test-vllm")
    if not (MODEL / "config.json").is_file():
        pytest.skip(f"no model {MODEL.name} in {FOLDER}; name its folder in CPMI_TEST_MODELS")


@pytest.fixture(scope="module")
def model(available: None) -> Iterator[VLLMModel]:
    model = open_vllm()
    yield model
    model.close()


@pytest.fixture(scope="module")
def transformers(available: None) -> Iterator[Engine]:
    model = open_model(ModelSettings(f"hf:{MODEL}", dtype="float32", device="cpu"))
    yield model
    model.close()


def prompts(texts: Sequence[str] = QUESTIONS) -> list[Prompt]:
    return [Prompt(text, seed=i) for i, text in enumerate(texts)]


def texts(results: Sequence[Sampled]) -> list[list[str]]:
    assert [each.error for each in results] == [None] * len(results)
    return [[completion.text for completion in each.completions] for each in results]


def some_trees(tokenizer: Engine) -> list[TokenTree]:
    steps = ["7 * 6 = 42.", "So there are 42 apples, and 2 are eaten.", "42 - 2 = 40."]
    contexts = [each for kind in KINDS for pair in step_contexts(kind, len(steps)) for each in pair]
    template = Template("Solve: {question}", "The answer is: {answer}")
    plans = plan_scoring("How many are left?", steps, ["40", "42", "1.5", "400"], contexts, [template], tokenizer)
    trees = [plan.tree for plan in plans]
    return [*trees, chain(list(tokenizer.encode("One two three four")))]


def chain(ids: Sequence[int]) -> TokenTree:
    """One sequence, scored from its second token on."""
    parents = np.arange(-1, len(ids) - 1)
    return TokenTree(np.array(ids, dtype=np.int64), parents, parents >= 0)


# --- without vLLM ---------------------------------------------------------------------------------------------------


def test_a_missing_package_gives_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"pip install 'cpmi\[vllm\]'"):
        open_model(ModelSettings("vllm:org/model"))


@pytest.mark.parametrize(
    ("source", "dtype", "message"),
    [
        ("./nowhere", "auto", "no such folder"),
        ("a/b/c", "auto", "no such folder"),
        ("org/model", "int3", "dtype 'int3' is unknown"),
        ("weights.gguf", "auto", "use hf: for a GGUF"),
    ],
)
def test_what_cannot_be_loaded_is_said_before_vllm_starts(source: str, dtype: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_model(ModelSettings(f"vllm:{source}", dtype=dtype))


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json"):
        open_model(ModelSettings(f"vllm:{tmp_path}"))


def test_options_are_checked_by_name() -> None:
    known = ["max_model_len", "max_num_seqs", "max_num_batched_tokens", "dtype"]
    check_options({"max_model_len": 7}, known, has_batch_tokens=True)
    check_options({"max_num_batched_tokens": 7}, known, has_batch_tokens=False)
    with pytest.raises(InputError, match=r"unknown option 'max_model_length' .* did you mean 'max_model_len'"):
        check_options({"max_model_length": 7}, known, has_batch_tokens=False)
    with pytest.raises(InputError, match="'dtype' of a vllm: model is set by cpmi"):
        check_options({"dtype": "auto"}, known, has_batch_tokens=False)
    with pytest.raises(InputError, match=r"'max_num_batched_tokens' .* is set by cpmi"):
        check_options({"max_num_batched_tokens": 7}, known, has_batch_tokens=True)


@pytest.fixture
def _no_cache_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_CPU_KVCACHE_SPACE", "VLLM_ENABLE_V1_MULTIPROCESSING"):
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("_no_cache_setting")
def test_two_engines_fit_into_memory_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = engine_options(ModelSettings("vllm:x"), "cpu")
    assert on_cpu["kv_cache_memory_bytes"] == 4 * 2**30
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    chosen = engine_options(ModelSettings("vllm:x", batch_tokens=64, options={"gpu_memory_utilization": 0.3}), "cpu")
    assert "kv_cache_memory_bytes" not in chosen
    assert (chosen["gpu_memory_utilization"], chosen["max_num_batched_tokens"]) == (0.3, 64)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    assert "kv_cache_memory_bytes" not in engine_options(ModelSettings("vllm:x"), "cpu")


@pytest.mark.usefixtures("_no_cache_setting")
def test_on_a_gpu_memory_and_processes_are_left_to_vllm() -> None:
    options = engine_options(ModelSettings("vllm:x"), "cuda")
    assert not {"kv_cache_memory_bytes", "max_num_batched_tokens"} & options.keys()
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in os.environ


def test_seeds_fit_into_64_bits_and_differ() -> None:
    seeds = {seed_of(prompt, number) for prompt in range(30) for number in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**62 for seed in seeds)


@pytest.mark.parametrize(("eos", "ends"), [(None, []), (0, [0]), ([5, 7], [5, 7])])
def test_tokens_that_end_a_text(eos: Any, ends: list[int]) -> None:
    assert end_tokens({"eos_token_id": eos, "top_k": 5}) == ends


def test_seconds_are_split_over_the_prompts_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 13.0, 15.0, 16.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = Clock()
    clock.start({0: None, 1: None, 2: None})
    assert [clock.stop(1), clock.stop(0), clock.stop(2)] == [1.0, 2.0, 3.0]


def test_an_error_is_told_in_one_line() -> None:
    assert one_line(ValueError("1 error for X\n  Value error: too\n  small")) == "1 error for X Value error: too small"
    assert one_line(KeyError()) == "KeyError"


# --- scoring --------------------------------------------------------------------------------------------------------


@needs_vllm
def test_scores_are_those_of_transformers(model: VLLMModel, transformers: Engine) -> None:
    trees = some_trees(model)
    start = time.perf_counter()
    there = model.logprobs(trees)
    seconds = time.perf_counter() - start
    for got, wanted, tree in zip(there, transformers.logprobs(trees), trees, strict=True):
        assert got.logprobs is not None
        assert wanted.logprobs is not None
        np.testing.assert_allclose(got.logprobs, wanted.logprobs, rtol=0, atol=1e-3)
        assert (np.isnan(got.logprobs) == ~tree.scored).all()
    assert there[-1].cost.tokens_scored == len(trees[-1])
    assert there[0].cost.tokens_scored > len(trees[0])  # what its sequences share is sent with each
    assert sum(each.cost.seconds for each in there) == pytest.approx(seconds, rel=0.1)


@needs_vllm
def test_the_same_tokenizer_as_with_transformers(model: VLLMModel, transformers: Engine) -> None:
    assert model.prefix == transformers.prefix
    for text in ["The answer is: 4.5", "\n\nStep 2: é", " x"]:
        assert model.encode(text) == transformers.encode(text)
    assert model.dialog("What is 2 + 2?", "It") == transformers.dialog("What is 2 + 2?", "It")
    own = {"model": f"vllm:{MODEL}", "options": {"max_model_len": CONTEXT}}  # of OPTIONS, what changes what it says
    assert model.describe() == transformers.describe() | own


@needs_vllm
def test_a_tree_that_does_not_fit_is_an_error_and_the_others_are_scored(model: VLLMModel) -> None:
    fits = chain([100] * (CONTEXT - 1))
    results = model.logprobs([chain([100] * CONTEXT), fits, chain([5, 10**6]), chain([])])
    assert results[0].error == f"too long: {CONTEXT} tokens leave no room in the model's context of {CONTEXT}"
    assert results[0].logprobs is None
    assert results[1].logprobs is not None
    assert np.isfinite(results[1].logprobs[1:]).all()
    assert results[2].error == "the tokenizer's token 1000000 is not one of the model's 49152"
    assert results[3].error is None


@needs_vllm
def test_truncated_distributions_are_refused(model: VLLMModel) -> None:
    with pytest.raises(InputError, match="use hf: for"):
        model.logprobs([], Truncation(top_k=5))


class FromPlaces:
    """Answers requests for given tokens from a place on as vLLM's runner for GPUs does, by scoring whole prompts here.

    Every third answer is missing, as when the cache holds more than was asked for.
    """

    def __init__(self, model: VLLMModel) -> None:
        self._run = model._run
        self.asked: list[bool] = []

    def __call__(self, requests: dict[Any, tuple[list[int], Any]]) -> Iterator[tuple[Any, Any]]:
        whole = vllm_params(max_tokens=1, prompt_logprobs=0, detokenize=False)
        for key, output in self._run({key: (ids, whole) for key, (ids, _) in requests.items()}):
            ids, params = requests[key]
            self.asked.append(params.prompt_logprob_token_ids is not None)
            if not self.asked[-1]:
                yield key, output
                continue
            assert params.skip_reading_prefix_cache is False
            first = params.prompt_logprob_start + 1
            rows = [
                [output.prompt_logprobs[place][token].logprob]
                for place, (token,) in zip(range(first, len(ids)), params.prompt_logprob_token_ids, strict=True)
            ]
            missing = len(self.asked) % 3 == 0
            yield key, SimpleNamespace(prompt_token_id_logprobs=None if missing else rows, num_cached_tokens=first // 2)


@needs_vllm
def test_scores_from_a_place_on_are_those_of_whole_prompts(model: VLLMModel, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = some_trees(model)
    plain = model.logprobs(trees)
    places = FromPlaces(model)
    monkeypatch.setattr(model, "_run", places)
    monkeypatch.setattr(model, "_scores_from_places", True)
    there = model.logprobs(trees)
    for got, wanted in zip(there, plain, strict=True):
        assert got.logprobs is not None
        assert wanted.logprobs is not None
        np.testing.assert_allclose(got.logprobs, wanted.logprobs, rtol=0, atol=1e-5)
    # What was cached is not counted.
    assert sum(each.cost.tokens_scored for each in there) < sum(each.cost.tokens_scored for each in plain)
    assert places.asked.count(False) == places.asked.count(True) // 3 > 0


@needs_vllm
def test_this_vllm_can_be_asked_for_places_but_not_on_a_cpu(model: VLLMModel) -> None:
    assert takes_places()
    assert not model._scores_from_places


# --- sampling -------------------------------------------------------------------------------------------------------


@needs_vllm
def test_greedy_completions_are_those_of_transformers(model: VLLMModel, transformers: Engine) -> None:
    wanted = transformers.sample(prompts(), 2, GREEDY)
    done: dict[int, Sampled] = {}
    start = time.perf_counter()
    got = model.sample(prompts(), 2, GREEDY, done.__setitem__)
    seconds = time.perf_counter() - start
    assert texts(got) == texts(wanted)
    assert [done[i] for i in range(len(QUESTIONS))] == got
    assert all(done[i] is got[i] for i in done)
    assert [each.cost.tokens_generated for each in got] == [each.cost.tokens_generated for each in wanted]
    assert sum(each.cost.seconds for each in got) == pytest.approx(seconds, rel=0.1)


@needs_vllm
def test_each_prompt_is_reported_once_and_as_soon_as_it_is_done(model: VLLMModel) -> None:
    calls: list[tuple[int, float]] = []
    long = SamplingParams(max_tokens=60, stop=("\n",), temperature=0.0)
    model.sample(prompts(), 3, long, lambda index, _: calls.append((index, time.perf_counter())))
    assert sorted(index for index, _ in calls) == list(range(len(QUESTIONS)))
    assert calls[-1][1] - calls[0][1] > 0.05


@needs_vllm
def test_a_stop_text_ends_a_completion_and_is_not_part_of_it(model: VLLMModel, transformers: Engine) -> None:
    params = SamplingParams(max_tokens=12, temperature=0.0, stop=(",", " P"))
    got = model.sample(prompts(), 1, params)
    assert texts(got) == texts(transformers.sample(prompts(), 1, params))
    reasons = [each.completions[0].finish_reason for each in got]
    assert reasons == [each.completions[0].finish_reason for each in transformers.sample(prompts(), 1, params)]
    assert set(reasons) == {"stop", "length"}
    assert not any("," in text for each in texts(got) for text in each)
    said = [each.completions[0].stop_text for each in got]
    assert said == [each.completions[0].stop_text for each in transformers.sample(prompts(), 1, params)]
    assert {*said} - {""} <= {",", " P"}
    # Nothing was a stop text where the tokens ran out, or where the model ended its text by itself.
    assert not any(text for text, reason in zip(said, reasons, strict=True) if reason == "length")
    assert any(said)


@needs_vllm
def test_the_end_of_the_text_ends_a_completion(model: VLLMModel, transformers: Engine) -> None:
    asked = [Prompt(model.dialog("Say yes.", "Yes."), 0)]
    params = SamplingParams(max_tokens=100, temperature=0.0)
    (got,) = model.sample(asked, 1, params)
    assert got.completions == transformers.sample(asked, 1, params)[0].completions
    assert got.completions[0].finish_reason == "stop"
    assert "<|im_end|>" not in got.completions[0].text


@needs_vllm
def test_sampling_repeats_with_its_seeds_and_leaves_torch_alone(model: VLLMModel) -> None:
    import torch

    params = SamplingParams(max_tokens=20, temperature=1.0, top_p=0.95, top_k=40, repetition_penalty=1.05)
    model.sample(prompts(), 4, params)  # so that the cache is in the same state before the others
    torch.manual_seed(5)
    first = texts(model.sample(prompts(), 4, params))
    after = torch.rand(1).item()
    torch.manual_seed(5)
    assert torch.rand(1).item() == after
    assert texts(model.sample(prompts(), 4, params)) == first
    assert texts(model.sample([Prompt(text, 77) for text in QUESTIONS], 4, params)) != first
    assert any(len(set(each)) > 1 for each in first)


@needs_vllm
def test_tokens_found_in_the_cache_are_not_counted_as_computed(model: VLLMModel) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 30
    tokens = len(model.encode(text, first=True))
    assert 256 < tokens < CONTEXT
    (first,) = model.sample([Prompt(text, 0)], 1, GREEDY)
    (again,) = model.sample([Prompt(text, 0)], 3, GREEDY)
    assert first.cost.tokens_scored == tokens
    assert 0 < again.cost.tokens_scored < 3 * tokens - 2 * 256


@needs_vllm
def test_prompts_at_the_end_of_the_context(model: VLLMModel) -> None:
    def of(tokens: int) -> Prompt:
        prompt = Prompt(" the" * tokens, 0)
        assert len(model.encode(prompt.text, first=True)) == tokens
        return prompt

    asked = [of(CONTEXT - 3), of(CONTEXT), of(CONTEXT + 1), Prompt("", 0)]
    done: list[int] = []
    clipped, full, long, empty = model.sample(asked, 2, GREEDY, lambda index, _: done.append(index))
    assert sorted(done) == [0, 1, 2, 3]
    assert clipped.cost.tokens_generated == 2 * 3
    assert [each.finish_reason for each in clipped.completions] == ["length"] * 2
    for sampled, tokens in ((full, CONTEXT), (long, CONTEXT + 1)):
        why = f"too long: {tokens} tokens leave no room in the model's context of {CONTEXT}"
        assert sampled == Sampled((), error=why)
    assert empty.error is not None


@needs_vllm
def test_parameters_that_vllm_does_not_take(model: VLLMModel) -> None:
    with pytest.raises(InputError, match="temperature"):
        model.sample(prompts(), 1, SamplingParams(temperature=3.0))


# --- interruptions, death, several engines --------------------------------------------------------------------------


@needs_vllm
def test_an_error_of_the_caller_leaves_the_engine_usable(model: VLLMModel) -> None:
    before = texts(model.sample(prompts(), 1, GREEDY))

    def fail(index: int, sampled: Sampled) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.sample([*prompts(), *prompts()], 4, GREEDY, fail)
    assert not model._engine.has_unfinished_requests()
    assert texts(model.sample(prompts(), 1, GREEDY)) == before


@needs_vllm
def test_ctrl_c_in_the_middle_leaves_the_engine_usable(model: VLLMModel) -> None:
    before = texts(model.sample(prompts(), 1, GREEDY))
    for delay in (0.5, 0.93):
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            model.sample(prompts() * 4, 8, SamplingParams(max_tokens=400, temperature=2.0))
        timer.join()
        assert not model._engine.has_unfinished_requests()
        assert texts(model.sample(prompts(), 1, GREEDY)) == before


@needs_vllm
def test_a_second_engine_may_die_and_close_beside_the_first(model: VLLMModel, monkeypatch: pytest.MonkeyPatch) -> None:
    before = texts(model.sample(prompts(), 1, GREEDY))
    second = open_vllm(dtype="bfloat16")
    assert second.describe()["dtype"] == "bfloat16"
    (rough,) = second.logprobs([chain(model.encode("One two three"))])
    (fine,) = model.logprobs([chain(model.encode("One two three"))])
    np.testing.assert_allclose(rough.logprobs, fine.logprobs, rtol=0, atol=0.2)  # type: ignore[arg-type]

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of something\nin two lines")

    done: list[int] = []
    monkeypatch.setattr(second._engine.model_executor, "execute_model", fail)
    for _ in range(2):  # it says so again, and does not hang
        with pytest.raises(CpmiError, match=r"engine died \(out of something in two lines\).* the same command again"):
            second.sample(prompts(), 2, GREEDY, lambda index, _: done.append(index))
    assert not done
    second.close()
    second.close()
    assert texts(model.sample(prompts(), 1, GREEDY)) == before


INTERRUPTED = """
import os, sys
from cpmi.errors import CpmiError
from cpmi.models import ModelSettings, open_model
from cpmi.protocols import Prompt, SamplingParams
name, options = sys.argv[1], {"enforce_eager": True, "max_model_len": 512, "kv_cache_memory_bytes": 2**28}
for wrong, dtype in [({"max_modell_len": 5}, "auto"), ({"max_model_len": 10**7}, "auto")]:
    try:
        open_model(ModelSettings(name, dtype, options=options | wrong))
    except CpmiError as error:
        print("error:", error, flush=True)
try:
    open_model(ModelSettings(name, device="cuda"))
except CpmiError as error:
    print("error:", error, flush=True)
open_model(ModelSettings(name, options=options)).close()
model = open_model(ModelSettings(name, options=options))
model.sample([Prompt("a", 0)], 1, SamplingParams(max_tokens=2))
print("started", flush=True)
try:
    model.sample([Prompt("a", i) for i in range(64)], 8, SamplingParams(max_tokens=500))
except KeyboardInterrupt:
    model.close()
    print("interrupted", flush=True)
"""


@needs_vllm
@pytest.mark.timeout(240)
def test_a_process_of_its_own(available: None) -> None:
    """Errors in one line, close and reopen, Ctrl-C, no process left behind, and nothing else on the terminal."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM")}
    command = [sys.executable, "-c", INTERRUPTED, f"vllm:{MODEL}"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline().rstrip() for _ in range(4)]
        assert "unknown option 'max_modell_len'" in lines[0], (lines, process.poll())
        assert "cannot be loaded: " in lines[1]
        assert "device 'cuda': the vLLM that is installed computes on 'cpu' alone" in lines[2]
        assert lines[3] == "started"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii")
        assert children == ""  # so that a kill leaves nothing behind
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
        assert rest == "interrupted\n"
        assert process.returncode == 0
        assert errors == ""
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


ENGINE_KILLED = """
import os, signal, sys, time
import psutil
from cpmi.errors import CpmiError
from cpmi.models import ModelSettings, open_model
from cpmi.protocols import Prompt, SamplingParams
options = {"enforce_eager": True, "max_model_len": 512, "kv_cache_memory_bytes": 2**28}
if __name__ == "__main__":  # vLLM starts processes that import this again
    model = open_model(ModelSettings(sys.argv[1], options=options))
    assert not model._in_process
    (core,) = [each for each in psutil.Process().children(True) if each.name().startswith("VLLM::EngineCor")]
    def kill(index, sampled):
        core.kill()
    prompts = [Prompt("a", i) for i in range(64)]
    for on_done in (kill, lambda *_: None):
        try:
            model.sample(prompts, 1, SamplingParams(max_tokens=200), on_done)
        except CpmiError as error:
            print("error:", error, flush=True)
    model.close()
"""


@needs_vllm
@pytest.mark.timeout(240)
def test_an_engine_process_that_is_killed_is_one_line_and_no_wait(available: None, tmp_path: Path) -> None:
    """On a GPU the engine lives in a process of its own; vLLM alone would wait for its results for ever."""
    script = tmp_path / "killed.py"
    script.write_text(ENGINE_KILLED)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM")}
    done = subprocess.run(
        [sys.executable, str(script), f"vllm:{MODEL}"],
        capture_output=True, text=True, timeout=200, check=False,
        env=environment | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2, lines
    for line in lines:
        assert line.startswith("error: the vLLM engine died ("), line
        assert line.endswith("what is done is kept: run the same command again"), line
