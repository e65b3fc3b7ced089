"""A small OpenAI-compatible server on loopback that misbehaves on demand. Its tokens are bytes."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
# What to do with a request for completions instead of answering it; returns whether it did anything.
Fault = Callable[["Handler", Body], bool]


class FakeServer(ThreadingHTTPServer):
    """Answers as vLLM does.

    Attributes:
        models: what ``/models`` lists.
        fault: asked about each request for completions first.
        refused: the paths that answer 404.
        key: the API key it wants, if any.
        bos: tokens that open a text which is tokenized with its special tokens.
        bodies: of all requests for completions so far, with how often each prompt came in ``seen``.
        most: the most requests for completions that were in work at one time.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.models: Any = {"data": [{"id": "tiny", "owned_by": "vllm", "max_model_len": 1000}]}
        self.fault: Fault = lambda handler, body: False
        self.refused: set[str] = set()
        self.key = ""
        self.bos: list[int] = []
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.seen: Counter[str] = Counter()
        self.most = 0
        self._working = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @contextmanager
    def note(self, body: Body) -> Iterator[None]:
        with self._lock:
            self.bodies.append(body)
            self.seen[str(body["prompt"])] += 1
            self._working += 1
            self.most = max(self.most, self._working)
        try:
            yield
        finally:
            with self._lock:
                self._working -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is part of the tests."""

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it has in the class above
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        if not self._turned_away():
            self.send(200, self.server.models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self._turned_away():
            return
        if self.path == "/tokenize":
            self.send(*tokenize(body, self.server.bos))
        elif self.path == "/detokenize":
            self.send(200, {"prompt": bytes(body["tokens"]).decode()})
        else:
            with self.server.note(body):
                if not self.server.fault(self, body):
                    self.send(200, completions(body))

    def send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        """Answer with JSON, or with a text as it is."""
        data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        kind = "text/html" if isinstance(answer, str) else "application/json"
        self.send_response(status)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _turned_away(self) -> bool:
        if self.path in self.server.refused:
            self.send(404, {"detail": "Not Found"})
            return True
        key = self.server.key
        if key and self.headers["authorization"] != f"Bearer {key}":
            self.send(401, {"error": {"message": f"wrong header: {self.headers['authorization']}"}})
            return True
        return False


def tokenize(body: Body, bos: list[int]) -> tuple[int, Any]:
    if "messages" in body:
        text = f"<user>{body['messages'][0]['content']}<model>"
        return 200, {"tokens": bos + list(text.encode())}
    return 200, {"tokens": (bos if body["add_special_tokens"] else []) + list(body["prompt"].encode())}


def logprob(before: int, token: int) -> float:
    """What the server says log p(token | ... before) is."""
    return -((before * 31 + token) % 97) / 10


def completions(body: Body) -> Body:
    """``n`` texts that name the prompt, or the echo of a prompt of tokens."""
    ids = body["prompt"] if isinstance(body["prompt"], list) else list(body["prompt"].encode())
    n = body.get("n", 1)
    usage = {"prompt_tokens": len(ids), "completion_tokens": 3 * n, "prompt_tokens_details": {"cached_tokens": 1}}
    choices: list[Body] = [
        {"index": i, "text": f"{body['prompt']}/{i}", "finish_reason": "length" if i % 2 else "stop", "logprobs": None}
        for i in range(n)
    ]
    if body.get("echo"):
        values = [logprob(before, token) for before, token in itertools.pairwise(ids)]
        choices[0]["logprobs"] = {"token_logprobs": [None, *values], "tokens": [f"token_id:{token}" for token in ids]}
    return {"choices": choices, "usage": usage}


# --- faults -----------------------------------------------------------------------------------------------------------


def answers(status: int, answer: Any, headers: dict[str, str] | None = None) -> Fault:
    """Answer with this."""

    def fault(handler: Handler, body: Body) -> bool:
        handler.send(status, answer, headers)
        return True

    return fault


def closes(handler: Handler, body: Body) -> bool:
    """Close the connection in the middle of the answer."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    return True


def sleeps(seconds: float) -> Fault:
    """Answer late."""

    def fault(handler: Handler, body: Body) -> bool:
        time.sleep(seconds)
        return False

    return fault


def first(count: int, fault: Fault) -> Fault:
    """The fault, for the first requests with each prompt."""
    return lambda handler, body: handler.server.seen[str(body["prompt"])] <= count and fault(handler, body)


def only(prompt: str, fault: Fault) -> Fault:
    """The fault, for the requests with this prompt."""
    return lambda handler, body: body["prompt"] == prompt and fault(handler, body)


def changed(change: Callable[[Body], object]) -> Fault:
    """The right answer, but for a change made to it."""

    def fault(handler: Handler, body: Body) -> bool:
        answer = completions(body)
        change(answer)
        handler.send(200, answer)
        return True

    return fault
