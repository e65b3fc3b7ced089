"""The engine of OpenAI-compatible servers, against one that misbehaves on demand."""

from __future__ import annotations

import logging
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import cpmi
from cpmi.errors import CpmiError, InputError
from cpmi.models import ModelSettings
from cpmi.models.in_flight import in_flight
from cpmi.models.openai import ServerModel
from cpmi.models.openai_client import Address, Failure, Server, ServerOptions
from cpmi.prompts import TreeBuilder
from cpmi.protocols import Prompt, Sampled, SamplingParams, TokenTree, Truncation
from fake_openai import (
    Body,
    FakeServer,
    Fault,
    answers,
    changed,
    closes,
    first,
    logprob,
    only,
    sleeps,
)

pytest.importorskip("openai")

PARAMS = SamplingParams(max_tokens=20)
Open = Callable[..., ServerModel]


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.stop()
    thread.join()


@pytest.fixture
def connect(server: FakeServer) -> Iterator[Open]:
    """Open a model of the server, with pauses between retries too short to notice."""
    opened = []

    def connect(name: str = "", **options: Any) -> ServerModel:
        settings = ModelSettings(name or f"openai:{server.url}#tiny", options={"first_delay": 0.001} | options)
        model = cpmi.open_model(settings)
        assert isinstance(model, ServerModel)
        opened.append(model)
        return model

    yield connect
    for model in opened:
        model.close()


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"prompt {i}", seed=i) for i in range(count)]


def texts(sampled: Sampled) -> list[str]:
    return [completion.text for completion in sampled.completions]


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_model_is_described_by_url_and_name(connect: Open, server: FakeServer) -> None:
    described = {"model": f"openai:{server.url}#tiny", "revision": None, "dtype": None}
    assert connect().describe() == described
    assert connect(f"openai:{server.url}").describe() == described  # the only model that there is
    assert connect(f"openai:{server.url}/#tiny").describe() == described


@pytest.mark.parametrize(
    ("models", "name", "message"),
    [
        ([{"id": "a/b"}, {"id": "c"}], "", "add #MODEL, one of the server's: a/b, c"),
        ([{"id": f"m{i}"} for i in range(99)], "", "m8, m9, ..."),
        ([], "", "it has none"),
        ([{"id": "qwen-0.5b"}], "#qwen-1.5b", "unknown model .*'qwen-1.5b'; did you mean 'qwen-0.5b'"),
        ([{"name": "c"}], "#c", "no usable 'id'"),
        ("nothing", "#c", "no usable 'data'.*is this an OpenAI-compatible API"),
    ],
)
def test_the_model_must_be_the_servers(connect: Open, server: FakeServer, models: Any, name: str, message: str) -> None:
    server.models = {"data": models}
    with pytest.raises(InputError, match=message):
        connect(f"openai:{server.url}{name}")


def test_a_page_is_no_list_of_models(connect: Open, server: FakeServer) -> None:
    server.models = "<html>\n<body>Welcome</body>"
    with pytest.raises(InputError, match="no JSON object: '<html> <body>Welcome") as caught:
        connect()
    assert "\n" not in str(caught.value)


def test_a_wrong_path_says_where_the_api_mostly_is(connect: Open, server: FakeServer) -> None:
    server.refused = {"/models"}
    with pytest.raises(InputError, match="HTTP 404: Not Found; the URL of vLLM's and of most servers ends in /v1"):
        connect(f"openai:{server.url.removesuffix('/v1')}#tiny")


def test_a_closed_port_is_one_line(server: FakeServer) -> None:
    closed = FakeServer()
    closed.server_close()
    with pytest.raises(InputError, match=r"openai:http://127.0.0.1:\d+/v1: /models: no connection: .*refused"):
        cpmi.open_model(ModelSettings(f"openai:{closed.url}#tiny"))


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000/v1", "ftp://a/v1", "http://", "http://h:x/v1", "http://h/v1?key=s3cret"]
)
def test_a_url_must_be_plain(url: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT/v1#MODEL") as caught:
        cpmi.open_model(ModelSettings(f"openai:{url}#tiny"))
    assert "s3cret" not in str(caught.value)


def test_addresses() -> None:
    assert Address.parse("http://me:p%40ss@h:80/v1/#a/b") == Address("http://h:80/v1", "a/b", "me:p@ss")
    assert Address.parse("https://[::1]:8/x").root == "https://[::1]:8/x"
    assert Address.parse("http://h/v1").root == "http://h"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paralel": 4}, r"unknown engine option of a server 'paralel'; did you mean 'parallel'.*retries, timeout"),
        ({"parallel": 0}, "parallel cannot be 0; it must be a whole number from 1 to 1000"),
        ({"parallel": "8"}, "parallel cannot be '8'"),
        ({"parallel": True}, "parallel cannot be True"),
        ({"retries": -1}, "retries cannot be -1"),
        ({"retries": 1.5}, "retries cannot be 1.5"),
        ({"timeout": 0}, "timeout cannot be 0; it must be a number of seconds above 0"),
        ({"first_delay": math.nan}, "first_delay cannot be nan"),
        ({"seed": 3}, "seed cannot be 3; it must be true or false"),
        ({"api_key_env": None}, "api_key_env cannot be None"),
    ],
)
def test_options_are_checked(connect: Open, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        connect(**options)


@pytest.mark.parametrize("setting", [{"dtype": "float32"}, {"device": "cpu"}, {"batch_tokens": 5}])
def test_settings_of_a_model_of_ones_own_are_refused(server: FakeServer, setting: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="are the server's"):
        cpmi.open_model(ModelSettings(f"openai:{server.url}#tiny", **setting))


def test_without_the_package_it_says_what_to_install(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r"pip install 'cpmi\[openai\]'"):
        cpmi.open_model(ModelSettings(f"openai:{server.url}#tiny"))


# --- keys -------------------------------------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment(connect: Open, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "sk-right"
    with pytest.raises(InputError, match="wants an API key in the environment variable OPENAI_API_KEY"):
        connect()
    monkeypatch.setenv("OTHER_KEY", "sk-right\n")
    with pytest.raises(InputError, match="wants an API key"):
        connect()
    assert texts(connect(api_key_env="OTHER_KEY").sample(prompts(1), 1, PARAMS)[0]) == ["prompt 0/0"]


def test_a_key_is_in_no_message(connect: Open, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "sk-right"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-s3cret")  # which this server repeats in its refusal
    with pytest.raises(InputError, match=r"refuses the API key in .* OPENAI_API_KEY \(HTTP 401: .*\*\*\*") as caught:
        connect()
    assert "s3cret" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-s3cret\nü")
    with pytest.raises(InputError, match="has characters that no key has") as caught:
        connect()
    assert "s3cret" not in str(caught.value)


def test_a_login_in_the_url_is_sent_and_not_shown(connect: Open, server: FakeServer) -> None:
    model = connect(f"openai:{server.url.replace('//', '//me:s3cret@')}#tiny")
    assert server.headers[-1]["authorization"] == "Basic bWU6czNjcmV0"
    assert "s3cret" not in str(model.describe())
    server.fault = answers(400, {"error": {"message": "no me:s3cret"}})
    assert model.sample(prompts(1), 1, PARAMS)[0].error == "server: HTTP 400: no ***"


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_completions_come_in_the_order_of_the_prompts(connect: Open, server: FakeServer) -> None:
    server.fault = only("prompt 0", sleeps(0.3))
    done: list[int] = []
    threads: set[int] = set()

    def on_done(index: int, sampled: Sampled) -> None:
        assert texts(sampled) == [f"prompt {index}/0", f"prompt {index}/1"]
        done.append(index)
        threads.add(threading.get_ident())

    start = time.perf_counter()
    sampled = connect().sample(prompts(12), 2, PARAMS, on_done)
    seconds = time.perf_counter() - start

    assert [texts(each)[0] for each in sampled] == [f"prompt {i}/0" for i in range(12)]
    assert [each.finish_reason for each in sampled[0].completions] == ["stop", "length"]
    assert sorted(done) == list(range(12))
    assert done[-1] == 0  # the slow one
    assert threads == {threading.get_ident()}
    assert all(each.cost.tokens_generated == 6 for each in sampled)
    assert [each.cost.tokens_scored for each in sampled] == [len("prompt 0") - 1] * 10 + [len("prompt 10") - 1] * 2
    assert sum(each.cost.seconds for each in sampled) == pytest.approx(seconds, rel=0.25)
    assert sampled[0].cost.seconds > max(each.cost.seconds for each in sampled[1:])


def test_greedy_completions_are_asked_for_once(connect: Open, server: FakeServer) -> None:
    """They are all the same, and vLLM refuses to make several."""
    (sampled,) = connect().sample([Prompt("a", 0)], 3, SamplingParams(temperature=0.0))
    assert [body["n"] for body in server.bodies] == [1]
    assert len(sampled.completions) == 3
    assert len(set(sampled.completions)) == 1


def test_no_prompts_are_no_requests(connect: Open, server: FakeServer) -> None:
    assert connect().sample([], 2, PARAMS) == []
    assert server.bodies == []


def test_parallel_bounds_the_requests_in_flight(connect: Open, server: FakeServer) -> None:
    server.fault = sleeps(0.05)
    connect(parallel=3).sample(prompts(9), 1, PARAMS)
    assert server.most == 3


def test_vllm_is_told_every_setting(connect: Open, server: FakeServer) -> None:
    """What a request leaves out, it takes from the checkpoint's generation_config.json."""
    model = connect()
    model.sample([Prompt("a\ud800b", 7)], 2, SamplingParams(max_tokens=5000, stop=("\n",)))
    assert server.bodies[-1] == {
        "model": "tiny",
        "prompt": "a�b",
        "n": 2,
        "max_tokens": 1000,  # what the server's context holds: more would be refused
        "temperature": 1.0,
        "top_p": 1.0,
        "stop": ["\n"],
        "top_k": -1,
        "repetition_penalty": 1.0,
        "min_p": 0.0,
    }
    model.sample(prompts(1), 1, SamplingParams(max_tokens=9, top_k=20, repetition_penalty=1.05))
    assert (server.bodies[-1]["top_k"], server.bodies[-1]["repetition_penalty"]) == (20, 1.05)


def test_other_servers_are_told_only_what_is_theirs(connect: Open, server: FakeServer) -> None:
    server.models["data"] = [{"id": "tiny", "owned_by": "system"}]
    model = connect(seed=True)
    model.sample([Prompt("a", 7)], 1, SamplingParams(max_tokens=5000))
    assert server.bodies[-1].keys() == {"model", "prompt", "n", "max_tokens", "temperature", "top_p", "seed"}
    assert (server.bodies[-1]["seed"], server.bodies[-1]["max_tokens"]) == (7, 5000)
    server.fault = answers(400, {"error": {"message": "unknown argument: top_k"}})
    (sampled,) = model.sample(prompts(1), 1, SamplingParams(top_k=20))
    assert sampled.error == (
        "server: HTTP 400: unknown argument: top_k (top_k: not part of OpenAI's API, and left out where 0 and 1)"
    )


def test_usage_that_is_not_reported_is_not_guessed(
    connect: Open, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.fault = changed(lambda answer: answer.pop("usage"))
    model = connect()
    with caplog.at_level(logging.WARNING, "cpmi"):
        for sampled in model.sample(prompts(3), 1, PARAMS):
            assert (sampled.error, sampled.cost.tokens_generated, sampled.cost.tokens_scored) == (None, 0, 0)
    assert [record.message for record in caplog.records] == [
        f"openai:{server.url}#tiny: the server does not report its usage, so no tokens are counted"
    ]


def test_an_empty_text_is_a_completion(connect: Open, server: FakeServer) -> None:
    server.fault = changed(lambda answer: answer["choices"][0].update(text=""))
    (sampled,) = connect().sample(prompts(1), 1, PARAMS)
    assert (texts(sampled), sampled.error) == ([""], None)


def test_half_a_character_is_replaced(connect: Open, server: FakeServer) -> None:
    server.fault = changed(lambda answer: answer["choices"][0].update(text="a\ud800"))
    assert texts(connect().sample(prompts(1), 1, PARAMS)[0]) == ["a�"]


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        answers(500, {"error": {"message": "try again"}}),
        answers(503, "<html>upstream</html>"),
        answers(429, {"error": {"message": "slow down"}}, {"Retry-After": "soon"}),
        answers(408, {}),
        closes,
    ],
)
def test_what_may_pass_is_tried_again(connect: Open, server: FakeServer, fault: Fault) -> None:
    server.fault = first(2, fault)
    sampled = connect(retries=2).sample(prompts(5), 1, PARAMS)
    assert [texts(each) for each in sampled] == [[f"prompt {i}/0"] for i in range(5)]
    assert set(server.seen.values()) == {3}


def test_retry_after_is_waited_for(connect: Open, server: FakeServer) -> None:
    server.fault = first(1, answers(429, {"error": {"message": "slow down"}}, {"Retry-After": "1"}))
    start = time.perf_counter()
    assert connect().sample(prompts(1), 1, PARAMS)[0].error is None
    assert time.perf_counter() - start >= 1


def test_pauses_grow(server: FakeServer) -> None:
    client = Server(Address.parse(server.url), ServerOptions(first_delay=2))
    waits: list[float] = []

    class Stopped(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0)
            return False

    server.fault = answers(500, {})
    client.ask("/completions", {"prompt": ""}, Stopped())
    client.close()
    assert [low <= wait <= high for wait, low, high in zip(waits, (1, 2, 4, 8, 16), (2, 4, 8, 16, 32), strict=True)]


def test_a_thread_that_nobody_waits_for_ends_quietly(server: FakeServer) -> None:
    client = Server(Address.parse(server.url), ServerOptions())
    client.close()
    assert client.ask("/completions", {"prompt": ""}) == Failure("the connection was closed on this side")


@pytest.mark.parametrize(
    ("said", "stop_texts"),
    [
        ({}, [None, ""]),  # a server that does not say; what ran into the limit, no stop text ended
        ({"stop_reason": "\n\n"}, ["\n\n", "\n\n"]),  # vLLM
        ({"stop_reason": None}, ["", ""]),
        ({"stop_reason": 151645}, ["", ""]),  # a token that ends the text
        ({"matched_stop": "\n\n"}, ["\n\n", "\n\n"]),  # SGLang
        ({"matched_stop": 7}, ["", ""]),
    ],
)
def test_what_ended_a_completion_is_the_servers_to_say(
    connect: Open, server: FakeServer, said: dict[str, Any], stop_texts: list[str | None]
) -> None:
    server.fault = only("prompt 0", changed(lambda answer: [each.update(said) for each in answer["choices"]]))
    (sampled,) = connect().sample(prompts(1), 2, PARAMS)
    assert [each.stop_text for each in sampled.completions] == stop_texts


@pytest.mark.parametrize(
    ("fault", "error", "requests"),
    [
        (answers(500, {"error": {"message": "out of\nmemory"}}), "HTTP 500: out of memory", 3),
        (answers(502, "<html>\n<h1>Bad Gateway"), "HTTP 502: <html> <h1>Bad Gateway", 3),
        (answers(500, "x" * 999), f"HTTP 500: {'x' * 287}...", 3),
        (answers(400, {"error": {"message": "too long"}}), "HTTP 400: too long", 1),
        (answers(422, {"detail": [{"loc": 1}]}), "HTTP 422: [{'loc': 1}]", 1),
        (closes, "no connection: ", 3),
        (sleeps(0.5), "no answer within 0.2 seconds", 3),
        (answers(200, "<html>hello"), "its answer is no JSON object: '<html>hello'", 1),
        (answers(200, "{]", {"Content-Type": "application/json"}), "the answer is not JSON: ", 1),
        (answers(200, [1]), "its answer is no JSON object: '[1]'", 1),
        (answers(200, None), "its answer is no JSON object: 'None'", 1),
        (answers(200, {}), "its answer has no usable 'choices'", 1),
        (changed(lambda answer: answer["choices"].pop()), "it gave 1 completions, 2 were asked for", 1),
        (changed(lambda answer: answer["choices"][1].update(text=None)), "its answer has no usable 'text'", 1),
        (changed(lambda answer: answer.update(choices=[1, 2])), "its answer is no JSON object: '1'", 1),
        (changed(lambda answer: answer["choices"][1].pop("finish_reason")), "no usable 'finish_reason'", 1),
        (changed(lambda answer: answer["choices"][1].update(finish_reason="abort")), "with 'abort'", 1),
        (changed(lambda answer: answer.update(usage={"prompt_tokens": "4"})), "no usable 'prompt_tokens'", 1),
        (changed(lambda answer: answer.update(usage=True)), "no usable 'usage'", 1),
    ],
)
def test_a_prompt_that_fails_is_an_error_and_the_others_go_on(
    connect: Open, server: FakeServer, fault: Fault, error: str, requests: int
) -> None:
    server.fault = only("prompt 1", fault)
    sampled = connect(retries=2, timeout=0.2).sample(prompts(3), 2, PARAMS)
    assert sampled[1].completions == ()
    assert sampled[1].error is not None
    assert sampled[1].error.startswith("server: ")
    assert error in sampled[1].error
    assert "\n" not in sampled[1].error
    assert sampled[1].cost.seconds > 0
    assert [texts(sampled[i]) for i in (0, 2)] == [[f"prompt {i}/0", f"prompt {i}/1"] for i in (0, 2)]
    assert server.seen["prompt 1"] == requests


def test_a_server_that_dies_ends_the_call(connect: Open, server: FakeServer) -> None:
    def dies(handler: Any, body: Body) -> bool:
        if body["prompt"] != "prompt 3":
            return False
        server.stop()
        return closes(handler, body)

    server.fault = dies
    done: dict[int, Sampled] = {}
    with pytest.raises(CpmiError, match=r"#tiny: the server is gone: no connection: .*refused") as caught:
        connect(retries=2, parallel=1).sample(prompts(1000), 1, PARAMS, done.__setitem__)
    assert not isinstance(caught.value, InputError)
    assert sorted(done) == [0, 1, 2]  # none of the others became an error


def test_a_server_that_fails_every_request_ends_the_call(connect: Open, server: FakeServer) -> None:
    server.fault = answers(500, {"error": {"message": "dead engine"}})
    done: dict[int, Sampled] = {}
    with pytest.raises(CpmiError, match="8 requests in a row failed for good; the last: HTTP 500: dead engine"):
        connect(retries=0, parallel=4).sample(prompts(1000), 1, PARAMS, done.__setitem__)
    assert len(done) == 7


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_key_or_a_model_taken_away_ends_the_call(connect: Open, server: FakeServer, status: int) -> None:
    model = connect()
    server.fault = answers(status, {"error": {"message": "not any more"}})
    with pytest.raises(CpmiError, match=f"HTTP {status}: not any more"):
        model.sample(prompts(3), 1, PARAMS)


def test_an_interrupt_waits_for_nothing(connect: Open, server: FakeServer) -> None:
    server.fault = sleeps(30)
    model = connect(parallel=2)
    pressed: list[float] = []

    def press() -> None:
        while len(server.bodies) < 2:
            time.sleep(0.01)
        pressed.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        model.sample(prompts(10), 1, PARAMS)
    assert time.perf_counter() - pressed[0] < 10
    assert len(server.bodies) == 2


def test_what_a_caller_raises_stops_the_rest(connect: Open, server: FakeServer) -> None:
    def on_done(index: int, sampled: Sampled) -> None:
        raise OSError("disk full")

    server.fault = sleeps(0.05)
    with pytest.raises(OSError, match="disk full"):
        connect(parallel=1).sample(prompts(10), 1, PARAMS, on_done)
    time.sleep(0.2)
    assert len(server.bodies) <= 2


def test_a_defect_in_a_request_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: queue.SimpleQueue[Any] = queue.SimpleQueue()
    monkeypatch.setattr(threading, "excepthook", printed.put)

    def work(index: int, stopped: threading.Event) -> int:
        return 1 // index

    with pytest.raises(RuntimeError, match="error of its own"):
        list(in_flight(2, work, 1))
    assert printed.get(timeout=5).exc_type is ZeroDivisionError


# --- chat prompts -----------------------------------------------------------------------------------------------------


def test_the_servers_chat_template_is_used(connect: Open, server: FakeServer) -> None:
    server.bos = [1]
    assert connect().dialog("Why?", "Because") == "<user>Why?<model>Because"  # the server adds its opening itself


def test_a_server_without_a_chat_template_says_so(
    connect: Open, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sys.modules["fake_openai"].tokenize

    def tokenize(body: Body, bos: list[int]) -> tuple[int, Any]:
        return (400, {"error": {"message": "no template"}}) if "messages" in body else real(body, bos)

    monkeypatch.setattr("fake_openai.tokenize", tokenize)
    with pytest.raises(
        InputError, match=r"has no chat template, or does not give it \(/tokenize: HTTP 400: no template"
    ):
        connect().dialog("Why?", "Because")


# --- scoring ----------------------------------------------------------------------------------------------------------


def tree_of(model: ServerModel) -> TokenTree:
    builder = TreeBuilder()
    root = builder.insert(-1, [*model.prefix, *model.encode("ab", first=True)])[-1]
    branch = builder.insert(root, model.encode("cd"))[-1]
    for node, answer in ((root, "x"), (branch, "yz"), (branch, "yx")):
        builder.insert(node, model.encode(answer), scored=True)
    return builder.build()[0]


def expected(tree: TokenTree) -> list[float]:
    ids, parents = tree.ids.tolist(), tree.parents.tolist()
    return [
        logprob(ids[parent], token) if scored else math.nan
        for token, parent, scored in zip(ids, parents, tree.scored.tolist(), strict=True)
    ]


@pytest.mark.parametrize("bos", [[], [1]])
def test_each_path_to_a_leaf_is_a_request(connect: Open, server: FakeServer, bos: list[int]) -> None:
    server.bos = bos
    model = connect()
    assert model.prefix == tuple(bos)
    tree = tree_of(model)
    two = [tree, tree]
    start = time.perf_counter()
    scored = model.logprobs(two)
    seconds = time.perf_counter() - start

    for each in scored:
        assert each.error is None
        assert each.logprobs is not None
        np.testing.assert_array_equal(each.logprobs, expected(tree))
        tokens = sum(len(bos) + len(text) - 1 for text in ("abx", "abcdyz", "abcdyx"))
        assert (each.cost.tokens_scored, each.cost.tokens_generated) == (tokens, 9)  # as the server counts them
    assert 0 < sum(each.cost.seconds for each in scored) <= seconds
    asked = [bytes(body["prompt"][len(bos) :]).decode() for body in server.bodies]
    assert sorted(asked) == sorted(["1 + 1 = 2", *["abx", "abcdyz", "abcdyx"] * 2])
    assert all(body["max_tokens"] == 0 for body in server.bodies)


def test_a_tree_that_fails_is_an_error_and_the_others_go_on(connect: Open, server: FakeServer) -> None:
    model = connect()
    tree = tree_of(model)
    builder = TreeBuilder()
    builder.insert(builder.insert(-1, [5])[-1], [6], scored=True)
    server.fault = lambda handler, body: body["prompt"] == [5, 6] and answers(400, {"error": "odd"})(handler, body)
    bad, good = model.logprobs([builder.build()[0], tree])
    assert (bad.logprobs, bad.error) == (None, "server: HTTP 400: odd")
    assert good.error is None


def test_a_tree_without_a_question_is_no_request(connect: Open, server: FakeServer) -> None:
    builder = TreeBuilder()
    builder.insert(-1, [5, 6])
    (scored,) = connect().logprobs([builder.build()[0]])
    assert scored.logprobs is not None
    assert np.isnan(scored.logprobs).all()


def test_a_server_without_tokenize_cannot_score(connect: Open, server: FakeServer) -> None:
    server.refused = {"/tokenize"}
    with pytest.raises(InputError, match=r"/tokenize: HTTP 404: Not Found.* use one, or hf:MODEL or vllm:MODEL"):
        connect().encode("a")


def test_a_server_whose_tokenize_is_another_cannot_score(
    connect: Open, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = connect()
    monkeypatch.setattr("fake_openai.tokenize", lambda body, bos: (200, {"tokens": []}))
    with pytest.raises(InputError, match="its /tokenize gives no tokens"):
        model.encode("a")
    monkeypatch.setattr("fake_openai.tokenize", lambda body, bos: (200, {"tokens": ["a"]}))
    with pytest.raises(InputError, match="its tokens are no numbers"):
        model.encode("a")


def shorten(answer: Body) -> None:
    answer["choices"][0]["logprobs"]["token_logprobs"].pop()


def shift(answer: Body) -> None:
    answer["choices"][0]["logprobs"]["tokens"][1] = "token_id:0"


def spoil(answer: Body) -> None:
    answer["choices"][0]["logprobs"]["token_logprobs"][1] = math.nan


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (changed(lambda answer: answer["choices"][0].update(logprobs=None)), "no usable 'logprobs'"),
        (changed(lambda answer: answer.update(choices=[])), "no JSON object"),
        (changed(shorten), "8 log-probabilities for a prompt of 9 tokens"),
        (changed(shift), "it scored other tokens than it was sent"),
        (changed(spoil), "no finite number"),
        (answers(400, {"error": {"message": "echo is not supported"}}), "echo is not supported"),
    ],
)
def test_a_server_without_log_probabilities_cannot_score(
    connect: Open, server: FakeServer, fault: Fault, message: str
) -> None:
    model = connect()
    server.fault = fault
    with pytest.raises(InputError, match=f"{message}.*; use a vLLM server, hf:MODEL or vllm:MODEL"):
        model.logprobs([tree_of(model)])


def test_a_truncation_is_refused(connect: Open) -> None:
    with pytest.raises(InputError, match="use hf:MODEL"):
        connect().logprobs([], Truncation(top_k=5))


def test_tokens_are_asked_for_once(connect: Open, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = connect()
    assert model.encode("a step") == tuple(b"a step")
    server.refused = {"/tokenize"}
    assert model.encode("a step") == tuple(b"a step")
