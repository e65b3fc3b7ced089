"""The application without a socket: answers, limits, keys, what goes wrong, metrics, and the page."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from cpmi.errors import CpmiError, InputError
from cpmi.records import Trajectory
from cpmi.serving import Keys, Limits, ServeSettings, bind, read_keys
from cpmi.serving.app import make_app
from served import Telltale, reward_of, rewards_of

Open = Callable[..., TestClient]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens applications with their lifespan; extra arguments are settings."""
    clients: list[TestClient] = []

    def open_one(rewarder: Telltale | None = None, **settings: Any) -> TestClient:
        clients.append(TestClient(make_app(rewarder or Telltale(), ServeSettings(**settings))))
        return clients[-1].__enter__()

    yield open_one
    for client in clients:
        client.__exit__(None, None, None)


def score(client: TestClient, *trajectories: dict[str, Any], path: str = "/v1/score") -> Any:
    response = client.post(path, json={"trajectories": list(trajectories)})
    assert response.status_code == 200, response.text
    return response.json()


def error(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    line = str(response.json()["error"])
    assert len(line.splitlines()) == 1
    return line


def test_rewards_come_in_order_with_what_made_them(opened: Open) -> None:
    client = opened()
    answer = score(
        client, {"question": "q", "steps": ["a", "b"], "id": "mine"}, {"question": "q", "steps": ["b", "a", "c"]}
    )
    assert {key: answer[key] for key in ("model", "revision", "aggregation", "tokens_scored")} == {
        "model": "org/telltale",
        "revision": "r1",
        "aggregation": "min",
        "tokens_scored": 50,
    }
    first, second = answer["results"]
    assert first == {
        "id": "mine",
        "source": "telltale",
        "rewards": rewards_of("q", "ab"),
        "reward": min(rewards_of("q", "ab")),
        "terms": {"score": [2 * reward for reward in rewards_of("q", "ab")]},
        "steps": None,
        "tokens_scored": 20,
        "seconds": 0.5,
        "error": None,
    }
    assert second["rewards"] == rewards_of("q", "bac")
    assert second["id"] == Trajectory("q", ("b", "a", "c")).id


def test_a_solution_in_one_text_is_split_and_says_how(opened: Open) -> None:
    client = opened(aggregation="last")
    (result,) = score(client, {"question": "q", "solution": "One.\n\nTwo.\n\nThree."})["results"]
    assert result["steps"] == ["One.", "Two.", "Three."]
    assert result["reward"] == reward_of("q", ["One.", "Two.", "Three."], 2)


def test_one_that_cannot_be_scored_does_not_fail_the_others(opened: Open) -> None:
    rows = [["a"], ["bad"], [], ["explode"], ["b"]]
    results = score(opened(), *({"question": "q", "steps": steps} for steps in rows))["results"]
    errors = [result["error"] for result in results]
    assert errors == [None, "too long", "no steps", "the reward model failed (ZeroDivisionError)", None]
    assert [result["rewards"] for result in results] == [rewards_of("q", "a"), [], [], [], rewards_of("q", "b")]
    assert [result["reward"] is None for result in results] == [False, True, True, True, False]


class Unbounded(Telltale):
    def rewards(self, trajectories: Any) -> Any:
        from dataclasses import replace

        return [replace(each, rewards=(2.0,), terms={}) for each in super().rewards(trajectories)]


def test_a_product_of_what_is_no_probability_is_an_error_of_its_own(opened: Open) -> None:
    (result,) = score(opened(Unbounded(), aggregation="prod"), {"question": "q", "steps": ["a"]})["results"]
    assert (result["rewards"], result["reward"]) == ([], None)
    assert "use another aggregation" in result["error"]


def test_a_stream_has_a_line_for_each_and_an_end(opened: Open) -> None:
    client = opened(batch_size=2)
    rows = [{"question": str(i), "steps": ["a"] if i != 3 else ["bad"]} for i in range(5)]
    with client.stream("POST", "/v1/score/stream", json={"trajectories": rows}) as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        *lines, end = [json.loads(line) for line in response.iter_lines()]
    assert [line["rewards"] for line in lines] == [[] if i == 3 else rewards_of(str(i), "a") for i in range(5)]
    assert (end["done"], end["results"], end["tokens_scored"], end["revision"]) == (True, 5, 40, "r1")


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"", "the body: Field required"),
        (b"{", "the body is not JSON: Expecting property name enclosed in double quotes at character 2"),
        (b'{"trajectories": \xff}', "the body is not UTF-8 (byte 18)"),
        (b"[" * 100_000, "the body is not JSON: nested too deep"),
        (b"1" * 5000, "the body is not JSON: a number with too many digits"),
        (b"[]", "the body: Input should be a valid dictionary or object to extract fields from"),
        (b"{}", "trajectories: Field required"),
        (b'{"trajectories": [], "more": 1}', "more: Extra inputs are not permitted"),
        (
            b'{"trajectories": [{"question": "q", "steps": [1, 2]}]}',
            "trajectories[0].steps[0]: Input should be a valid",
        ),
        (b'{"trajectories": [{"question": " ", "steps": []}]}', "trajectories[0].question: String should match"),
        (b'{"trajectories": [{"question": "q"}]}', "trajectories[0]: give either 'steps' or 'solution'"),
        (
            b'{"trajectories": [{"question": "q", "steps": [], "solution": "s"}]}',
            "trajectories[0]: give either 'steps' or 'solution'",
        ),
        (b'{"trajectories": [{"question": "\\ud800", "steps": []}]}', "trajectories[0].question: "),
    ],
)
@pytest.mark.parametrize("path", ["/v1/score", "/v1/score/stream"])
def test_bad_input_is_one_line(path: str, body: bytes, line: str, opened: Open) -> None:
    response = opened().post(path, content=body, headers={"Content-Type": "application/json"})
    assert error(response, 422).startswith(line)


def test_how_many_problems_there_are_is_said(opened: Open) -> None:
    response = opened().post("/v1/score", json={"trajectories": [{"question": 1, "steps": 2}]})
    assert error(response, 422) == "trajectories[0].question: Input should be a valid string (and 1 more)"


def test_limits_of_a_request(opened: Open) -> None:
    client = opened(limits=Limits(body_bytes=1000, trajectories=2, steps=3, characters=20))

    def refused(*rows: dict[str, Any]) -> str:
        return error(client.post("/v1/score", json={"trajectories": rows}), 422)

    fits = {"question": "q" * 17, "steps": ["a", "b", "c"]}
    assert len(score(client, fits, fits)["results"]) == 2
    assert refused(fits, fits, fits) == "trajectories: 3 are too many for one request; send at most 2"
    assert refused(fits, fits | {"steps": ["", "", "", ""]}) == "trajectories[1]: 4 steps are too many; send at most 3"
    assert refused(fits | {"steps": ["a", "bcd"]}) == "trajectories[0]: 21 characters are too many; send at most 20"
    one_text = {"question": "q", "solution": "s" * 21}
    assert refused(one_text) == "trajectories[0]: 21 characters are too many; send at most 20"


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(opened: Open) -> None:
    client = opened(limits=Limits(body_bytes=100))
    empty = b'{"trajectories": []}'
    largest = empty + b" " * (100 - len(empty))
    assert client.post("/v1/score", content=largest, headers={"Content-Type": "application/json"}).status_code == 200
    for content in (largest + b" ", iter([largest, b" "])):
        line = error(client.post("/v1/score", content=content), 413)
        assert line == "the body is larger than 100 bytes; send fewer trajectories in a request"


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    """Straight through ASGI: a receive that never gives the rest."""
    sent: list[Any] = []

    async def receive() -> Any:
        if not sent:
            await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    app = make_app(Telltale(), ServeSettings(limits=Limits(body_seconds=0.05)))
    asyncio.run(app({"type": "http", "method": "POST", "path": "/v1/score", "headers": []}, receive, send))
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"]) == {"error": "the body did not arrive within 0.05 s"}


def test_a_request_that_finds_no_room_is_told_when_to_come_back(opened: Open) -> None:
    rewarder = Telltale()
    client = opened(rewarder, batch_size=1, limits=Limits(queue=2, trajectories=2))
    rewarder.open.clear()
    row = {"question": "q", "steps": ["a"]}
    streams = []
    for count in (1, 2):
        context = client.portal.start_task_soon  # type: ignore[union-attr]
        streams.append(context(_fill, client.app, count))
        _until(lambda count=count: len(rewarder.calls) == 1 and _waiting(client) == 2 * (count - 1))  # type: ignore[misc]
    for path in ("/v1/score", "/v1/score/stream"):
        response = client.post(path, json={"trajectories": [row]})
        assert error(response, 503) == "too many trajectories are waiting; try again in 1 s"
        assert response.headers["retry-after"] == "1"
    rewarder.open.set()
    assert [stream.result(30) for stream in streams] == [200, 200]
    assert score(client, row)["results"][0]["rewards"] == rewards_of("q", "a")


async def _fill(app: Any, count: int) -> int:
    """A request for so many trajectories, inside the application's loop; its status."""
    body = json.dumps({"trajectories": [{"question": "q", "steps": ["a"]}] * count}).encode()
    sent: list[Any] = []
    gone = asyncio.Event()

    async def receive() -> Any:
        if not gone.is_set() and not sent and not asked:
            asked.append(True)
            return {"type": "http.request", "body": body}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asked: list[bool] = []
    headers = [(b"content-type", b"application/json")]
    await app(
        {"type": "http", "method": "POST", "path": "/v1/score", "headers": headers, "query_string": b""}, receive, send
    )
    return int(sent[0]["status"])


def _waiting(client: TestClient) -> float:
    (line,) = [each for each in client.get("/metrics").text.splitlines() if each.startswith("cpmi_queue_traj")]
    return float(line.split()[1])


def _until(condition: Callable[[], bool]) -> None:
    import time

    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_other_paths_and_methods(opened: Open) -> None:
    client = opened()
    assert error(client.get("/nothing"), 404) == "Not Found"
    response = client.get("/v1/score")
    assert error(response, 405) == "Method Not Allowed"
    assert response.headers["allow"] == "POST"


# --- keys -----------------------------------------------------------------------------------------------------------

LOCKED = ["/v1/model", "/metrics"]


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_only_who_has_a_key_is_answered(opened: Open) -> None:
    client = opened(keys=Keys(["first", "second"]))
    for header in ("Bearer first", "bearer  second", basic("cpmi:second"), basic(":first")):
        for path in LOCKED:
            assert client.get(path, headers={"Authorization": header}).status_code == 200
    wrong = [
        "",
        "Bearer",
        "Bearer first2",
        "Bearer firs",
        "first",
        "Basic first",
        basic("first"),
        basic("first:"),
        "Digest x",
    ]
    for header in wrong:
        for path in LOCKED:
            response = client.get(path, headers={"Authorization": header} if header else {})
            assert error(response, 401).startswith("an API key of this server is needed")
            assert response.headers["www-authenticate"] == "Bearer"
    # A body is not even read: this one would be too large.
    assert client.post("/v1/score", content=b" " * (9 << 20)).status_code == 401
    for path in ("/health", "/ready", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200
    schemes = client.get("/openapi.json").json()["components"]["securitySchemes"]
    assert {scheme["scheme"] for scheme in schemes.values()} == {"bearer", "basic"}


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n\n one \ntwo\n")
    keys = read_keys(file, {"CPMI_API_KEYS": "three, four"})
    assert keys is not None
    assert len(keys) == 4
    assert [keys.accept(f"Bearer {key}".encode()) for key in ("one", "two", "three", "four", "# ours")] == [
        True
    ] * 4 + [False]
    assert "one" not in repr(vars(keys))
    assert read_keys(None, {}) is None


@pytest.mark.parametrize("content", ["", "# none\n", "one two\n", "schlüssel\n"])
def test_a_file_without_usable_keys_does_not_open_the_server(content: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(InputError, match="key"):
        read_keys(file, {})
    with pytest.raises(InputError, match="No such file"):
        read_keys(tmp_path / "none", {})
    with pytest.raises(InputError, match="CPMI_API_KEYS is set and holds no key"):
        read_keys(None, {"CPMI_API_KEYS": " , "})


# --- state ----------------------------------------------------------------------------------------------------------


def test_state_and_metrics(opened: Open) -> None:
    client = opened(name="ours")
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    model = client.get("/v1/model").json()
    assert (model["model"], model["revision"], model["source"]) == ("ours", "r1", "telltale")
    assert model["settings"] == Telltale().describe()
    assert model["limits"] == {"body_bytes": 8 << 20, "trajectories": 256, "steps": 512, "characters": 100_000}
    score(client, {"question": "q", "steps": ["a", "b"]}, {"question": "q", "steps": ["bad"]})
    client.post("/v1/score", content=b"{")
    client.get("/nothing/at/all")
    text = client.get("/metrics").text
    for line in (
        'cpmi_requests_total{path="/v1/score",status="200"} 1.0',
        'cpmi_requests_total{path="/v1/score",status="422"} 1.0',
        'cpmi_requests_total{path="other",status="404"} 1.0',
        'cpmi_trajectories_total{outcome="scored"} 1.0',
        'cpmi_trajectories_total{outcome="failed"} 1.0',
        'cpmi_trajectories_total{outcome="dropped"} 0.0',
        "cpmi_steps_total 2.0",
        "cpmi_tokens_total 20.0",
        "cpmi_batch_trajectories_sum 2.0",
        "cpmi_batch_seconds_count 1.0",
        "cpmi_model_failures_total 0.0",
        "cpmi_queue_trajectories 0.0",
    ):
        assert line in text.splitlines()


def test_a_server_that_does_not_run_says_so() -> None:
    client = TestClient(make_app(Telltale(), ServeSettings()))  # without its lifespan
    assert error(client.get("/health"), 503) == "the queue has stopped; start the server anew"
    assert error(client.get("/ready"), 503) == "the server is stopping"


class Outside(HTMLParser):
    """Collects what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [tag] if tag in ("script", "link", "img", "iframe") else []
        self.found += [str(value) for name, value in attributes if name in ("src", "href") and value != "openapi.json"]


def test_the_page_shows_every_endpoint_and_loads_nothing(opened: Open) -> None:
    client = opened()
    response = client.get("/docs")
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    parser = Outside()
    parser.feed(response.text)
    assert parser.found == []
    assert "http" not in response.text.replace("http://127.0.0.1:8000", "").replace("http://host", "")
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in response.text


def test_the_examples_of_the_page_work(opened: Open) -> None:
    from cpmi.serving.page import example_of

    client = opened()
    schema = client.get("/openapi.json").json()
    posts = [(path, methods["post"]) for path, methods in schema["paths"].items() if "post" in methods]
    assert len(posts) == 5
    for path, operation in posts:
        example = example_of(operation["requestBody"]["content"]["application/json"]["schema"], schema)
        assert client.post(path, json=example).status_code == 200, path


# --- settings -------------------------------------------------------------------------------------------------------


def test_settings_that_cannot_be() -> None:
    with pytest.raises(InputError, match="unknown aggregation 'mni'; did you mean 'min'"):
        ServeSettings(aggregation="mni")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown way to split steps 'line'; did you mean 'lines'"):
        ServeSettings(split="line")
    with pytest.raises(InputError, match="batch_size must be 1 or more"):
        ServeSettings(batch_size=0)
    with pytest.raises(InputError, match="'steps' must be above 0"):
        Limits(steps=0)
    with pytest.raises(InputError, match="a request may hold 9 trajectories, but only 8 may wait"):
        Limits(trajectories=9, queue=8)


def test_an_address_in_use_shows_before_a_model_is_loaded(run_cpmi: Callable[..., tuple[int, str, str]]) -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CpmiError, match=f"127.0.0.1:{port}: Address already in use; choose another --port"):
            bind("127.0.0.1", port)
        status, _, said = run_cpmi("serve", "--prm", "nowhere", "--port", str(port))
        assert (status, "Address already in use" in said) == (1, True)
    with pytest.raises(InputError, match="--host no such host: no such address"):
        bind("no such host", 0)
    status, _, said = run_cpmi("serve", "--prm", "nowhere", "--port", "0", "--host", "0.0.0.0")  # noqa: S104
    assert status == 2
    warning, problem = said.splitlines()
    assert warning == "cpmi: warning: 0.0.0.0 can be reached from elsewhere, and no API key is needed"
    assert problem.startswith("cpmi: error: model nowhere cannot be loaded")
