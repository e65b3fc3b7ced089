"""A small client of ``cpmi serve``, with nothing but the standard library."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import urlsplit

from cpmi.errors import CpmiError, InputError
from cpmi.records import Cost, StepRewards, Trajectory, first_line

_JSON = {"Content-Type": "application/json"}


class Client:
    """A served reward model, used as one in this process: a ``StepRewarder``.

    It keeps one connection; give each thread a client of its own.
    """

    def __init__(
        self, url: str, *, key: str | None = None, timeout: float = 600.0, batch: int = 64, patience: float = 300.0
    ) -> None:
        """Connect on the first request.

        Args:
            url: ``http://host:port`` or ``https://host``.
            key: an API key of the server.
            timeout: seconds to wait for the next bytes of an answer.
            batch: trajectories of one request.
            patience: seconds in which a request that finds the queue full is tried again.

        Raises:
            InputError: not such a URL.
        """
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{url}: not a server's address; write http://host:port")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=timeout)
        self._path = parts.path.rstrip("/")
        self._url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{self._path}"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._batch, self._patience = batch, patience
        self._model: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """What the server's model calls itself."""
        return str(self.model()["source"])

    def model(self) -> dict[str, Any]:
        """What the server says of its model (``GET /v1/model``); asked once."""
        if self._model is None:
            self._model = self._json("GET", "/v1/model")
        return self._model

    def describe(self) -> dict[str, Any]:
        """See ``StepRewarder.describe``: the model's own settings, not the server's."""
        return dict(self.model()["settings"])

    def is_healthy(self) -> bool:
        """Whether the server is there and takes requests."""
        try:
            response = self._ask("GET", "/ready", None)
            self._body(response)
        except CpmiError:
            return False
        return response.status == http.client.OK

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        """See ``StepRewarder.rewards``.

        Raises:
            CpmiError: the server is gone, or refuses.
            InputError: it says that the request is wrong.
        """
        return list(self.stream(trajectories))

    def stream(self, trajectories: Sequence[Trajectory]) -> Iterator[StepRewards]:
        """The same, each as soon as it is there, in order. Go on to the end before you ask anything else.

        Raises:
            CpmiError: the server is gone, or refuses.
            InputError: it says that the request is wrong.
        """
        for start in range(0, len(trajectories), self._batch):
            asked = trajectories[start : start + self._batch]
            rows = [{"id": each.id, "question": each.question, "steps": each.steps} for each in asked]
            response = self._patiently("POST", "/v1/score/stream", {"trajectories": rows})
            yield from self._answers(response, asked)

    def _answers(self, response: http.client.HTTPResponse, asked: Sequence[Trajectory]) -> Iterator[StepRewards]:
        count = 0
        source = ""
        while True:
            row = self._line(response)
            if row.get("done"):
                break
            source = row["source"]
            if count == len(asked) or row["id"] != asked[count].id:
                self._fail("its answers are not those of the trajectories")
            count += 1
            yield _record(row, source)
        response.read()  # to the end of the chunks, so that the connection can be used again
        if count != len(asked):
            self._fail(f"{count} answers to {len(asked)} trajectories")

    def _line(self, response: http.client.HTTPResponse) -> dict[str, Any]:
        try:
            line = response.readline()
        except (OSError, http.client.HTTPException) as error:
            self._fail(f"the connection broke ({error})")
        if not line.endswith(b"\n"):
            self._fail("the answer broke off")
        row: dict[str, Any] = json.loads(line)
        return row

    def _fail(self, reason: str) -> NoReturn:
        self._connection.close()
        raise CpmiError(f"{self._url}: {reason}")

    def _json(self, method: str, path: str) -> dict[str, Any]:
        row: dict[str, Any] = json.loads(self._body(self._patiently(method, path, None)))
        return row

    def _patiently(self, method: str, path: str, body: Mapping[str, Any] | None) -> http.client.HTTPResponse:
        """Ask until there is room, or patience ends; an answer that is no success is an error."""
        until = time.monotonic() + self._patience
        while True:
            response = self._ask(method, path, body)
            if response.status == http.client.OK:
                return response
            wait = float(response.headers.get("Retry-After") or 0)
            said = self._body(response)
            if not wait or time.monotonic() + wait > until:
                break
            time.sleep(wait)
        try:
            reason = str(json.loads(said)["error"])
        except (ValueError, KeyError, TypeError):
            reason = f"status {response.status}"
        wrong = response.status in (http.client.UNPROCESSABLE_ENTITY, http.client.REQUEST_ENTITY_TOO_LARGE)
        raise (InputError if wrong else CpmiError)(f"{self._url}: {reason}")

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> http.client.HTTPResponse:
        content = None if body is None else json.dumps(body).encode()
        for attempt in (1, 2):
            fresh = self._connection.sock is None
            try:
                self._connection.request(method, self._path + path, content, _JSON | self._headers)
                return self._connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                # A server may close a connection that was idle, just when we use it again: that alone is tried again.
                if fresh or attempt == 2 or isinstance(error, TimeoutError):
                    raise CpmiError(f"{self._url}: no answer ({first_line(error)})") from error
        raise AssertionError  # pragma: no cover - the second attempt returns or raises

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            self._fail(f"the connection broke ({error})")

    def close(self) -> None:
        """Give up the connection; the next request makes a new one."""
        self._connection.close()


def _record(row: Mapping[str, Any], source: str) -> StepRewards:
    return StepRewards(
        row["id"],
        tuple(row["rewards"]),
        source,
        terms={name: tuple(values) for name, values in row["terms"].items()},
        cost=Cost(tokens_scored=row["tokens_scored"], seconds=row["seconds"]),
        error=row["error"],
    )
