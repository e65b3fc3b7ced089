"""A connection to an OpenAI-compatible server: address, options, requests with retries, failures in one line."""

from __future__ import annotations

import base64
import os
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import unquote, urlsplit

from cpmi.errors import InputError, require, unknown_name
from cpmi.records import JSON

_CONNECT_SECONDS = 10.0
_PROBE_SECONDS = 30.0
_LONGEST_DELAY = 60.0
_LINE = 300  # characters
_RETRIED = {408, 409, 429}  # and everything from 500 on
_NO_KEY = "none"  # the client wants a key; servers of one's own do not


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, and which of its models is meant.

    Attributes:
        url: without user, password and closing slash: fit for messages and manifests.
        model: empty where none is named.
        login: ``user:password``, or nothing.
    """

    url: str
    model: str
    login: str = ""

    @classmethod
    def parse(cls, source: str) -> Address:
        """Read ``URL#MODEL``.

        Raises:
            InputError: no http(s) URL, or one with a query, which cannot be kept with the paths added to it.
        """
        url, _, model = source.partition("#")
        try:
            parts = urlsplit(url)
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            raise InputError("openai: the server's URL cannot be read; use openai:http://HOST:PORT/v1#MODEL") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise InputError("openai: needs a plain http(s) URL; use openai:http://HOST:PORT/v1#MODEL")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        login = unquote(parts.netloc.rpartition("@")[0])
        return cls(f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}", model, login)

    @property
    def root(self) -> str:
        """Where vLLM has the paths that are not OpenAI's."""
        return self.url.removesuffix("/v1")


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The engine options of a server.

    Attributes:
        parallel: the most requests in flight.
        retries: how often a request is sent again that failed for a reason that may pass.
        timeout: seconds without an answer after which a request has failed.
        seed: send each prompt's seed.
        api_key_env: the environment variable that holds the API key; it may be unset.
        first_delay: seconds before the first retry; each further one waits twice as long, up to a minute.
    """

    parallel: int = 64
    retries: int = 5
    timeout: float = 600.0
    seed: bool = False
    api_key_env: str = "OPENAI_API_KEY"
    first_delay: float = 1.0

    @classmethod
    def parse(cls, options: Mapping[str, JSON]) -> ServerOptions:
        """Check the engine options.

        Raises:
            InputError: an unknown name, or a value of the wrong type or outside its range.
        """
        known = [field.name for field in fields(cls)]
        for name, value in options.items():
            if name not in known:
                raise unknown_name("engine option of a server", name, known)
            if not _fits(name, value):
                raise InputError(f"engine option {name} cannot be {value!r}; it must be {_MEANINGS[name]}")
        return cls(**options)  # type: ignore[arg-type]


_MEANINGS = {
    "parallel": "a whole number from 1 to 1000",
    "retries": "a whole number from 0 to 100",
    "timeout": "a number of seconds above 0",
    "seed": "true or false",
    "api_key_env": "the name of an environment variable",
    "first_delay": "a number of seconds from 0 to 60",
}


def _fits(name: str, value: JSON) -> bool:
    if name == "seed":
        return isinstance(value, bool)
    if name == "api_key_env":
        return isinstance(value, str) and bool(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if name in ("timeout", "first_delay"):
        return 0 < value <= 1e6 if name == "timeout" else 0 <= value <= _LONGEST_DELAY
    return isinstance(value, int) and (1 <= value <= 1000 if name == "parallel" else 0 <= value <= 100)


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without an answer.

    Attributes:
        line: why, in one line without secrets.
        away: the reason may pass (no connection, no answer in time, overload): not the request's own fault.
        status: of HTTP, where there was one.
        wait: seconds to wait before trying again, as the server asked.
    """

    line: str
    away: bool = False
    status: int | None = None
    wait: float = 0.0


_CLOSED = Failure("the connection was closed on this side")


class Server:
    """Sends requests; ``openai``'s client does the transport, its own retries are off."""

    def __init__(self, address: Address, options: ServerOptions) -> None:
        """Connect to nothing yet.

        Raises:
            InputError: the package ``openai`` is missing, or the API key is no header's value.
        """
        self._openai: Any = require("openai", "openai")
        self.address = address
        self.options = options
        self.key = _api_key(options.api_key_env)
        self._closed = threading.Event()
        login = base64.b64encode(address.login.encode()).decode()
        self._client = self._openai.OpenAI(
            base_url=address.url,
            api_key=self.key or _NO_KEY,
            max_retries=0,
            timeout=self._openai.Timeout(options.timeout, connect=min(options.timeout, _CONNECT_SECONDS)),
            default_headers={"Authorization": f"Basic {login}"} if login else None,
        )

    def models(self) -> Any | Failure:
        """The server's answer to ``/models``: one try, which also tells whether there is a server."""
        seconds = min(self.options.timeout, _PROBE_SECONDS)
        return self._try("get", "/models", {"options": {"timeout": seconds}}, seconds)

    def ask(self, path: str, body: dict[str, Any], stopped: threading.Event | None = None) -> Any | Failure:
        """Post ``body`` and return the decoded answer, whatever it is; repeat what may pass, with growing pauses.

        Args:
            path: below the server's URL, or a URL of its own.
            stopped: gives up between two tries once it is set.
        """
        stopped = stopped or threading.Event()
        for attempt in range(self.options.retries + 1):
            answer = self._try("post", path, {"body": body}, self.options.timeout)
            if not isinstance(answer, Failure) or not answer.away:
                return answer
            if attempt == self.options.retries or stopped.wait(self._delay(attempt, answer)):
                break
        return answer

    def close(self) -> None:
        """Close all connections; a request that a thread still sends fails."""
        self._closed.set()
        self._client.close()

    def _delay(self, attempt: int, failure: Failure) -> float:
        # Not all at the same moment: the requests that failed together would come back together.
        growing: float = self.options.first_delay * 2**attempt * random.uniform(0.5, 1.0)
        return min(max(growing, failure.wait), _LONGEST_DELAY)

    def _try(self, method: str, path: str, arguments: dict[str, Any], seconds: float) -> Any | Failure:
        openai = self._openai
        if self._closed.is_set():
            return _CLOSED
        try:
            return getattr(self._client, method)(path, cast_to=object, **arguments)
        except openai.APITimeoutError:
            return Failure(f"no answer within {seconds:g} seconds", away=True)
        except openai.APIConnectionError as error:
            return Failure(self._line(f"no connection: {error.__cause__ or 'it was closed'}"), away=True)
        except openai.APIStatusError as error:
            return self._refusal(error)
        except openai.OpenAIError as error:
            return Failure(self._line(f"{error}"))
        except RuntimeError:  # from a client that was closed since, to a thread that nobody waits for any more
            if not self._closed.is_set():
                raise
            return _CLOSED
        except ValueError as error:  # a JSON header over what is no JSON
            return Failure(self._line(f"the answer is not JSON: {error}"))

    def _refusal(self, error: Any) -> Failure:
        status = int(error.status_code)
        wait = str(error.response.headers.get("retry-after", "")).strip()
        return Failure(
            self._line(f"HTTP {status}: {_message(error.body) or error.response.reason_phrase}"),
            away=status in _RETRIED or status >= 500,
            status=status,
            wait=float(wait) if wait.isascii() and wait.isdecimal() else 0.0,
        )

    def _line(self, text: str) -> str:
        for secret in (self.key, self.address.login):
            text = text.replace(secret, "***") if secret else text
        return one_line(text)


def one_line(text: str) -> str:
    """The text on one line, cut where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= _LINE else text[: _LINE - 3] + "..."


def _message(body: object) -> str:
    """What an error's body says: ``message`` where there is one."""
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body
    return str(body or "")


def _api_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):  # also, the client's error would show it
        raise InputError(f"the API key in the environment variable {variable} has characters that no key has")
    return key
