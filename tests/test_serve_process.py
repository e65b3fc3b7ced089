"""A server on loopback: many clients, hostile ones, those that go away, and stopping."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cpmi.errors import CpmiError, InputError
from cpmi.records import StepRewards, Trajectory
from cpmi.serving import Client, Keys, Limits, ServeSettings
from served import Running, Telltale, rewards_of, running

IN_FLIGHT = 'cpmi_trajectories_total{outcome="%s"}'


def trajectory(name: str, *steps: str) -> Trajectory:
    return Trajectory(f"question {name}", steps or ("one", f"two of {name}"), id="same")


def body_of(*trajectories: Trajectory) -> bytes:
    rows = [{"question": each.question, "steps": each.steps} for each in trajectories]
    return json.dumps({"trajectories": rows}).encode()


def head(path: str, length: int | None) -> bytes:
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{size}\r\n\r\n".encode()


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def all_of(connection: socket.socket) -> bytes:
    """What the server says until it closes the connection."""
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


def ask(server: Running, trajectories: list[Trajectory], **options: float) -> list[StepRewards]:
    with closing(Client(server.url, **options)) as client:  # type: ignore[arg-type]
        return client.rewards(trajectories)


def expected(trajectories: list[Trajectory]) -> list[StepRewards]:
    return Telltale().rewards(trajectories)


# --- clients --------------------------------------------------------------------------------------------------------


def test_sixteen_clients_at_once_each_get_their_own_answers() -> None:
    rewarder = Telltale(seconds=0.005)
    with running(rewarder, ServeSettings(batch_size=8)) as server:

        def work(number: int) -> None:
            with closing(Client(server.url, batch=3)) as client:
                for turn in range(5):
                    asked = [trajectory(f"{number} {turn} {index}") for index in range(turn + 1)]
                    assert client.rewards(asked) == expected(asked)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(16)))
        assert server.metric(IN_FLIGHT % "scored") == 16 * 15
    assert max(map(len, rewarder.calls)) == 8  # and they were scored together


def test_the_client_is_a_step_rewarder() -> None:
    asked = [trajectory("a"), trajectory("b", "bad"), trajectory("c")]
    with (
        running(Telltale(), ServeSettings(keys=Keys(["k3y"]))) as server,
        closing(Client(server.url, key="k3y")) as client,
    ):
        assert (client.name, client.describe()) == ("telltale", Telltale().describe())
        assert client.rewards(asked) == expected(asked)
        assert client.rewards([]) == []
        assert client.is_healthy()
        with pytest.raises(InputError, match=r"trajectories\[0\]: 600 steps are too many; send at most 512"):
            client.rewards([Trajectory("q", ("s",) * 600)])
        with (
            closing(Client(server.url)) as stranger,
            pytest.raises(CpmiError, match="an API key of this server is needed"),
        ):
            stranger.rewards(asked)
    assert not client.is_healthy()
    with pytest.raises(CpmiError, match="no answer"):
        client.rewards(asked)
    with pytest.raises(InputError, match="write http://host:port"):
        Client("ftp://host")


def test_the_client_comes_back_when_there_is_room() -> None:
    rewarder = Telltale()
    with running(rewarder, ServeSettings(batch_size=1, limits=Limits(queue=1, trajectories=1))) as server:
        rewarder.open.clear()
        with ThreadPoolExecutor(3) as pool:
            answers = [pool.submit(ask, server, [trajectory(str(number))]) for number in range(3)]
            server.wait_until('cpmi_requests_total{path="/v1/score/stream",status="503"}', 1, or_more=True)
            rewarder.open.set()
            for number, answer in enumerate(answers):
                assert answer.result(30) == expected([trajectory(str(number))])
        rewarder.open.clear()
        asked = len(rewarder.calls)
        with ThreadPoolExecutor(2) as pool:
            answers = [pool.submit(ask, server, [trajectory("busy")])]
            while len(rewarder.calls) == asked:  # the first is computed, so that the second alone waits
                time.sleep(0.01)
            answers.append(pool.submit(ask, server, [trajectory("busy")]))
            server.wait_until("cpmi_queue_trajectories", 1)
            with pytest.raises(CpmiError, match="too many trajectories are waiting"):
                ask(server, [trajectory("x")], patience=0)
            rewarder.open.set()
            for answer in answers:
                answer.result(30)


def test_the_client_says_when_an_answer_breaks_off() -> None:
    """A server that sends one of two lines, and closes."""
    line = json.dumps(
        {"id": "same", "source": "x", "rewards": [1], "terms": {}, "tokens_scored": 1, "seconds": 0, "error": None}
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + line.encode() + b"\n")
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):  # to close on what was not read would reset the connection
                    pass

        thread = threading.Thread(target=answer)
        thread.start()
        with closing(Client(f"http://127.0.0.1:{listening.getsockname()[1]}")) as client:
            stream = client.stream([trajectory("a"), trajectory("b")])
            assert next(stream).rewards == (1,)
            with pytest.raises(CpmiError, match="the answer broke off"):
                next(stream)
        thread.join()


# --- hostile clients ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    limits = Limits(body_bytes=10_000, body_seconds=0.5)
    with running(Telltale(), ServeSettings(limits=limits)) as server:
        yield server
        # After all of them it works as before, and nothing waits.
        asked = [trajectory("after")]
        with closing(Client(server.url)) as client:
            assert client.rewards(asked) == expected(asked)
        assert server.metric("cpmi_queue_trajectories") == 0


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01garbage\r\n\r\n", b"400"),
        (b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: minus one\r\n\r\n", b"400"),
        (head("/v1/score", None) + b"nonsense\r\n", b"400"),
        (head("/v1/score", 10_001), b"413"),  # refused before a byte of it came
        (head("/v1/score", None) + b"2711\r\n" + b" " * 10_001 + b"\r\n", b"413"),
        (head("/v1/score", 100) + b'{"trajectories"', b"408"),  # the rest never comes
        (head("/v1/score", None) + b"5\r\n{    \r\n", b"408"),
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_closed(sent: bytes, status: bytes, small: Running) -> None:
    with connect(small) as connection:
        connection.sendall(sent)
        answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize("count", [0, 3, 60, 120])
def test_who_goes_away_within_a_request_does_no_harm(count: int, small: Running) -> None:
    with connect(small) as connection:
        connection.sendall((head("/v1/score", 100) + b"{" * 100)[:count])
    assert small.get("/health")


def test_a_slow_body_within_its_time_is_answered(small: Running) -> None:
    body = body_of(trajectory("slow"))
    with connect(small) as connection:
        connection.sendall(head("/v1/score", len(body)))
        for start in range(0, len(body), 20):
            connection.sendall(body[start : start + 20])
            time.sleep(0.01)
        response = http.client.HTTPResponse(connection)
        response.begin()
        (result,) = json.loads(response.read())["results"]
    assert result["rewards"] == rewards_of("question slow", ["one", "two of slow"])


@pytest.mark.parametrize("path", ["/v1/score", "/v1/score/stream", "/classify"])
def test_the_waiting_work_of_a_client_that_goes_away_is_dropped(path: str) -> None:
    rewarder = Telltale()
    with running(rewarder, ServeSettings(batch_size=1)) as server:
        rewarder.open.clear()
        mine = trajectory("mine")
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, server, [mine])
            while not rewarder.calls:
                time.sleep(0.01)
            chat = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\ns"
            body = (
                json.dumps({"input": [chat] * 5}).encode() if path == "/classify" else body_of(*[trajectory("x")] * 5)
            )
            with connect(server) as connection:
                connection.sendall(head(path, len(body)) + body)
                server.wait_until("cpmi_queue_trajectories", 5)
            server.wait_until("cpmi_queue_trajectories", 0)
            assert server.metric(IN_FLIGHT % "dropped") == 5
            rewarder.open.set()
            assert answer.result(30) == expected([mine])
    assert rewarder.calls == [["question mine"]]


def test_a_stream_that_is_left_after_a_few_lines_stops() -> None:
    rewarder = Telltale(seconds=0.05)
    with running(rewarder, ServeSettings(batch_size=1)) as server:
        body = body_of(*[trajectory(str(number)) for number in range(100)])
        with connect(server) as connection:
            connection.sendall(head("/v1/score/stream", len(body)) + body)
            received = b""
            while received.count(b'"id"') < 2:
                received += connection.recv(65536)
        server.wait_until("cpmi_queue_trajectories", 0)
        assert server.metric(IN_FLIGHT % "dropped") > 50
    assert len(rewarder.calls) < 50


def test_a_client_that_does_not_read_does_not_stop_the_others() -> None:
    with running(Telltale(), ServeSettings(limits=Limits(trajectories=2000, queue=4000))) as server:
        lazy_steps = ("step",) * 200
        body = body_of(*[trajectory(str(number), *lazy_steps) for number in range(2000)])  # some 20 MB of answers
        with connect(server) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(head("/v1/score/stream", len(body)) + body)
            asked = [trajectory("quick")]
            with closing(Client(server.url)) as client:
                assert client.rewards(asked) == expected(asked)


# --- stopping -------------------------------------------------------------------------------------------------------


def until_it_listens_no_more(server: Running) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            server.get("/health")
        except (OSError, http.client.HTTPException):
            return
        time.sleep(0.01)
    pytest.fail("it still listens")


def test_stopping_finishes_what_is_in_flight() -> None:
    rewarder = Telltale()
    asked = [trajectory(str(number)) for number in range(10)]
    with running(rewarder, ServeSettings(batch_size=2)) as server, ThreadPoolExecutor(2) as pool:
        rewarder.open.clear()
        answers = [pool.submit(ask, server, asked) for _ in range(2)]
        server.wait_until("cpmi_queue_trajectories", 18)
        server.should_exit = True
        until_it_listens_no_more(server)
        rewarder.open.set()
        for answer in answers:
            assert answer.result(30) == expected(asked)


@pytest.fixture(scope="module")
def prm(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny trained reward model."""
    from cpmi.models import ModelSettings
    from cpmi.prm.data import TargetRow
    from cpmi.prm.settings import TrainSettings
    from cpmi.prm.train import train

    folder = tmp_path_factory.mktemp("served") / "prm"
    rows = [TargetRow(str(i), f"Question {i}", ("Good.", "Bad."), (0.9, 0.1), (None, None), "test") for i in range(8)]
    train(rows, TrainSettings(ModelSettings(str(tiny_base), device="cpu"), epochs=1, held_out=0.0), folder)
    return folder


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_a_reward_model_until_it_is_stopped(prm: Path, stop: signal.Signals) -> None:
    from cpmi import PRM

    asked = [
        Trajectory("What is 2 + 3?", ("2 + 3 = 5.", "So 5.")),
        Trajectory("Long", ("x" * 300,)),
        Trajectory("q", ()),
    ]
    command = [sys.executable, "-m", "cpmi", "serve", "--prm", str(prm), "--port", "0", "--device", "cpu"]
    environment = os.environ | {"CPMI_API_KEYS": "k3y"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            url = re.findall(r"on (http://127\.0\.0\.1:\d+) ", said)[0]
            with closing(Client(url, key="k3y")) as client:
                _wait_for(client)
                answers = client.rewards(asked)
                described = client.describe()
            server.send_signal(stop)
            assert server.wait(60) == 0
            assert server.stderr is not None
            assert server.stderr.read() == "stopped\n"
        finally:
            server.kill()
    model = PRM.from_pretrained(str(prm), device="cpu")
    assert described == model.describe()
    for answer, record in zip(answers, model.rewards(asked), strict=True):
        assert (answer.error, answer.source, answer.cost.tokens_scored) == (
            record.error,
            record.source,
            record.cost.tokens_scored,
        )
        assert answer.rewards == pytest.approx(record.rewards, abs=1e-5)
        assert answer.terms.keys() == record.terms.keys()
    assert [answer.error is None for answer in answers] == [True, False, False]


def _wait_for(client: Client) -> None:
    until = time.monotonic() + 60
    while not client.is_healthy():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_what_is_missing_is_said_with_the_line_that_installs_it(run_cpmi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    status, _, said = run_cpmi("serve", "--prm", "nowhere")
    assert status == 2
    assert "run: pip install 'cpmi[serve]'" in said
