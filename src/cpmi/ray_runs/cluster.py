"""Joining a Ray cluster, or starting one; what its nodes have; and its errors as one line."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from cpmi.errors import CpmiError, InputError
from cpmi.records import first_line

_CONNECT_SECONDS = 5.0


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Join a cluster, or start one; a connection that is there already is used, and left as it is.

    Raises:
        InputError: there is no such cluster.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    _refuse_dead(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its core writes warnings into our progress line
    starting: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    # Ray replaces this handler, and would end the process without closing anything.
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # on what later versions will do with visible devices
            with _silenced():
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **starting)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"no Ray cluster at {address} ({first_line(error)})") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs each exception that we are to raise
    try:
        yield
    finally:
        ray.shutdown()


def _refuse_dead(address: str) -> None:
    """Where nobody answers Ray would try for minutes, and then end the process without a word.

    Raises:
        InputError: nobody answers.
    """
    named = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if problem := why_silent(named):
        raise InputError(f"no Ray cluster at {named} ({problem})")


def why_silent(address: str) -> str:
    """Why nobody answers at HOST:PORT; empty if somebody does, or if it is no such address."""
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdecimal() and int(port) < 2**16):
        return ""
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Nothing reaches standard error: Ray's core writes there that it is told to be quiet."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123 - a device
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Errors of Ray's are one line.

    Raises:
        CpmiError: what ``plain`` makes of them.
    """
    import ray.exceptions

    try:
        yield
    except ray.exceptions.RayError as error:
        raise plain(error) from error


def plain(error: Exception) -> Exception:
    """One line for what befell the cluster; an exception in the code of an actor is a bug, and stays as it is."""
    import ray.exceptions

    if isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError):
        return CpmiError(f"Ray: {first_line(error)} What is labeled so far is kept: the same command goes on there")
    return error


def answer(reference: Any) -> Any:
    """The answer of another process.

    Raises:
        CpmiError: it is gone.
    """
    import ray

    with plainly():
        return ray.get(reference)


def wanted_by(options: Mapping[str, Any]) -> dict[str, float]:
    """What an actor takes, by the names of a node's resources."""
    amounts = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options.get("memory") or 0}
    amounts |= options.get("resources") or {}
    if kind := options.get("accelerator_type"):
        amounts[f"accelerator_type:{kind}"] = 0.001
    return {name: float(amount) for name, amount in amounts.items() if amount}


def listed(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in amounts.items()) or "nothing"


def capacity() -> str:
    """What the nodes have, in a few words."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    hidden = ("node:", "object_store_memory")
    shown = [listed({n: a for n, a in sorted(there.items()) if not n.startswith(hidden)}) for there in alive]
    counted = [f"{shown.count(text)} x ({text})" for text in dict.fromkeys(shown)]
    return f"its nodes have {'; '.join(counted) or 'nothing'}"
