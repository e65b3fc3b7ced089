"""A reward model behind HTTP: requests that arrive together are scored together."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

from cpmi.errors import CpmiError, InputError, require
from cpmi.serving.client import Client
from cpmi.serving.keys import Keys, read_keys
from cpmi.serving.settings import Limits, ServeSettings

if TYPE_CHECKING:
    from cpmi.protocols import StepRewarder

__all__ = ["Client", "Keys", "Limits", "ServeSettings", "bind", "need_packages", "read_keys", "serve"]


def need_packages() -> None:
    """Say at once what is missing.

    Raises:
        InputError: a package of the extra ``serve`` is not installed.
    """
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require(module, "serve")


def bind(host: str, port: int) -> socket.socket:
    """Take an address without listening yet: a port in use shows before a model is loaded.

    Args:
        port: 0: any free one.

    Raises:
        InputError: no such host.
        CpmiError: the address is in use, or not ours.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"--host {host}: no such address; 127.0.0.1 is this machine alone") from error
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise CpmiError(f"{host}:{port}: {error.strerror or error}; choose another --port or --host") from error
    return bound


def serve(rewarder: StepRewarder, settings: ServeSettings, bound: socket.socket) -> None:
    """Answer requests until a signal says to stop; then what is in flight is finished.

    Args:
        bound: of ``bind``.

    Raises:
        InputError: a package is missing.
        KeyboardInterrupt: Ctrl-C stopped it, after its work was done.
    """
    need_packages()
    import uvicorn

    from cpmi.serving.app import make_app

    # Whoever sends garbage would otherwise write into our log, a line each.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    config = uvicorn.Config(
        make_app(rewarder, settings),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        limit_concurrency=settings.limits.connections,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    uvicorn.Server(config).run(sockets=[bound])
