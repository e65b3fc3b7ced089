"""The engine of OpenAI-compatible servers against vLLM's own server; needs an environment with vLLM."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cpmi.errors import CpmiError, InputError
from cpmi.models import ModelSettings, open_model
from cpmi.prompts import Template, TreeBuilder, plan_scoring, step_contexts
from cpmi.protocols import Engine, Prompt, Sampled, SamplingParams

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

FOLDER = Path(os.environ.get("CPMI_TEST_MODELS") or Path.home() / ".cache" / "cpmi-models")
MODEL = FOLDER / "smollm2-135m"
CONTEXT = 1024
STARTS_WITHIN = 240  # seconds


class VLLMServer:
    """``vllm serve`` in a process group of its own, ended as a whole."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        arguments = ["--model", MODEL, "--served-model-name", "small", "--host", "127.0.0.1", "--port", self.port]
        arguments += ["--dtype", "float32", "--max-model-len", CONTEXT, "--max-num-seqs", 16, "--enforce-eager"]
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *map(str, arguments)]
        settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_API_KEY": "sk-small"}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env=os.environ | settings, start_new_session=True
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def wait(self, log: Path) -> None:
        """Until it answers."""
        for _ in range(STARTS_WITHIN):
            assert self._process.poll() is None, log.read_text(errors="replace")[-3000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        pytest.fail(f"not up within {STARTS_WITHIN} seconds: {log.read_text(errors='replace')[-3000:]}")

    def kill(self) -> None:
        """End it and whatever it has started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self._process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here")
    if not MODEL.is_dir():
        pytest.skip(f"no model {MODEL.name} in {FOLDER.name}; name its folder in CPMI_TEST_MODELS")
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    server = VLLMServer(log)
    try:
        server.wait(log)
        yield server
    finally:
        server.kill()


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-small")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def model(server: VLLMServer, _key: None) -> Iterator[Engine]:
    model = open_model(ModelSettings(f"openai:{server.url}#small", options={"retries": 1, "first_delay": 0.1}))
    yield model
    model.close()


@pytest.fixture(scope="module")
def transformers_model() -> Iterator[Engine]:
    pytest.importorskip("transformers")
    if not MODEL.is_dir():
        pytest.skip(f"no model {MODEL.name} in {FOLDER.name}")
    model = open_model(ModelSettings(f"hf:{MODEL}", dtype="float32", device="cpu"))
    yield model
    model.close()


def test_a_wrong_key_or_model_is_one_line(server: VLLMServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"unknown model .*'smal'; did you mean 'small'"):
        open_model(ModelSettings(f"openai:{server.url}#smal"))
    with pytest.raises(InputError, match="HTTP 404: Not Found; the URL of vLLM's"):
        open_model(ModelSettings(f"openai:{server.url}/v2#small"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    with pytest.raises(InputError, match=r"refuses the API key in .* \(HTTP 401: Unauthorized\)"):
        open_model(ModelSettings(f"openai:{server.url}#small"))


def test_rollouts(model: Engine) -> None:
    prompts = [Prompt(f"{i} + {i} =", seed=i) for i in range(6)]
    done: dict[int, Sampled] = {}
    params = SamplingParams(max_tokens=8, temperature=0.8, top_p=0.9, top_k=20, repetition_penalty=1.05, stop=("\n",))
    start = time.perf_counter()
    sampled = model.sample(prompts, 3, params, done.__setitem__)
    seconds = time.perf_counter() - start
    assert sampled == [done[i] for i in range(6)]
    for each in sampled:
        assert each.error is None
        assert len(each.completions) == 3
        assert all("\n" not in completion.text for completion in each.completions)
        assert {completion.stop_text for completion in each.completions} <= {"\n", ""}
        assert 0 < each.cost.tokens_generated <= 24
        assert each.cost.tokens_scored == len(model.encode(prompts[0].text))
    assert sum(each.cost.seconds for each in sampled) == pytest.approx(seconds, rel=0.1)


def test_seeds_make_rollouts_repeat(server: VLLMServer) -> None:
    model = open_model(ModelSettings(f"openai:{server.url}#small", options={"seed": True}))
    prompts = [Prompt("Once upon a time", seed) for seed in (1, 2, 1)]
    one, two, again = model.sample(prompts, 1, SamplingParams(max_tokens=12))
    model.close()
    assert one.completions == again.completions != two.completions


def test_a_greedy_text_is_that_of_transformers(model: Engine, transformers_model: Engine) -> None:
    greedy = SamplingParams(max_tokens=12, temperature=0)
    prompt = Prompt("The capital of France is", seed=0)
    (there,), (here,) = (each.sample([prompt], 1, greedy) for each in (model, transformers_model))
    assert there.completions == here.completions


def test_no_more_tokens_than_the_context_holds(model: Engine) -> None:
    short, long = Prompt("1 2 3", seed=0), Prompt("one " * 2 * CONTEXT, seed=0)
    params = SamplingParams(max_tokens=10 * CONTEXT, stop=("\n", "e", "1", " "))  # so that it ends soon
    fits, too_long = model.sample([short, long], 1, params)
    assert fits.error is None
    assert too_long.error is not None
    assert "maximum context length is 1024 tokens" in too_long.error


def test_tokens_and_dialogs_are_those_of_transformers(model: Engine, transformers_model: Engine) -> None:
    assert model.prefix == transformers_model.prefix
    for text in ("Step 1: 2 + 3 = 5.\n\n", " The answer is: 5", "é\u4e2d\ud800", " ", ""):
        assert model.encode(text) == transformers_model.encode(text)
    assert model.dialog("What is 2 + 3?", "Well") == transformers_model.dialog("What is 2 + 3?", "Well")


@pytest.mark.parametrize("context", ["marginal", "cumulative"])
def test_log_probabilities_are_those_of_transformers(model: Engine, transformers_model: Engine, context: str) -> None:
    steps = ["Tom has 3 apples and buys 4 more.", "3 + 4 = 7, so he has 7 apples.", "He eats 2: 7 - 2 = 5."]
    contexts = [each for pair in step_contexts(context, len(steps)) for each in pair]  # type: ignore[arg-type]
    templates = [Template("Solve: {question}", "The answer is: {answer}")]
    plans = plan_scoring("How many are left?", steps, ["5", "7", "3/4"], contexts, templates, model)
    trees = [plan.tree for plan in plans]
    for there, here in zip(model.logprobs(trees), transformers_model.logprobs(trees), strict=True):
        assert there.error is None
        assert there.logprobs is not None
        assert here.logprobs is not None
        np.testing.assert_allclose(there.logprobs, here.logprobs, atol=1e-3)
        assert there.cost.tokens_scored > 0


def test_a_tree_that_is_too_long_is_an_error(model: Engine) -> None:
    builder = TreeBuilder()
    ids = model.encode(" a") * (CONTEXT + 1)
    builder.insert(builder.insert(-1, ids)[-1], ids[:1], scored=True)
    (scored,) = model.logprobs([builder.build()[0]])
    assert scored.logprobs is None
    assert scored.error is not None
    assert "maximum context length" in scored.error


def test_a_server_killed_in_the_middle_ends_the_call(model: Engine, server: VLLMServer) -> None:
    """Last in this file: the server is gone afterwards."""
    done: dict[int, Sampled] = {}
    prompts = [Prompt(f"Story {i}:", seed=i) for i in range(200)]
    killer = threading.Timer(5, server.kill)
    killer.start()
    start = time.perf_counter()
    with pytest.raises(CpmiError, match="the server is gone: no connection"):
        model.sample(prompts, 2, SamplingParams(max_tokens=100), done.__setitem__)
    killer.join()
    assert time.perf_counter() - start < 60
    assert json.dumps([each.error for each in done.values() if each.error]) == "[]"
