"""What every request passes before the application sees it: keys, the size of the body, the clock, and counting."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

from cpmi.serving.metrics import Metrics
from cpmi.serving.settings import ServeSettings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OPEN = {"/health", "/ready", "/docs", "/openapi.json"}  # say nothing that needs a key
GONE = 499  # as nginx counts a client that went away


class Gate:
    """ASGI middleware. A body is read whole before the application is called, so that it never waits for a slow one."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics, paths: frozenset[str]) -> None:
        """Stand before this application.

        Args:
            paths: those that are counted by name.
        """
        self._app, self._settings, self._metrics, self._paths = app, settings, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        status = GONE
        start = time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._pass(scope, receive, sending)
        finally:
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.request_seconds.labels(path).observe(time.perf_counter() - start)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        keys = self._settings.keys
        if keys is not None and scope["path"] not in _OPEN and not keys.accept(headers.get(b"authorization")):
            line = "an API key of this server is needed; send it as the header 'Authorization: Bearer KEY'"
            await _refuse(send, 401, line, (b"www-authenticate", b"Bearer"))
            return
        limits = self._settings.limits
        too_large = f"the body is larger than {limits.body_bytes} bytes; send fewer trajectories in a request"
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > limits.body_bytes:
            await _refuse(send, 413, too_large)
            return
        try:
            async with asyncio.timeout(limits.body_seconds):
                body = await _read(receive, limits.body_bytes)
        except TimeoutError:
            await _refuse(send, 408, f"the body did not arrive within {limits.body_seconds:g} s")
            return
        except _TooLargeError:
            await _refuse(send, 413, too_large)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)


class _TooLargeError(Exception):
    pass


async def _read(receive: Receive, limit: int) -> bytes | None:
    """The whole body; None: the client went away."""
    pieces, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit:
            raise _TooLargeError
        pieces.append(piece)
        more = message.get("more_body", False)
    return b"".join(pieces)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body first, and then what comes: that the client goes away."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replaying() -> Message:
        return messages.pop() if messages else await receive()

    return replaying


async def _refuse(send: Send, status: int, line: str, *headers: tuple[bytes, bytes]) -> None:
    """Answer at once, and close the connection: what is left of the body is not wanted."""
    content = json.dumps({"error": line}).encode()
    fields = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send(
        {"type": "http.response.start", "status": status, "headers": [*fields, (b"connection", b"close"), *headers]}
    )
    await send({"type": "http.response.body", "body": content})
