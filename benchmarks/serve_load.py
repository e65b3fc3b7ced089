"""What serving costs: trajectories/s over HTTP against the model in process, and hostile clients beside good ones.

    python benchmarks/serve_load.py --prm PRM --trajectories FILE --clients 16

Both sides score the same trajectories in turns, in one run: in process in batches of as many as there are clients, and
over loopback by that many clients, each with one trajectory at a time. The server is a process of its own. Then clients
that send slowly, garbage or too much, or go away, meet it while good ones compare every answer with the model's own.
Every loop has an end. Exit status 1: something was wrong (an answer, a crash, a throughput below --at-least).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cpmi import PRM, read_trajectories
from cpmi.records import StepRewards, Trajectory
from cpmi.serving import Client

_BODY_LIMIT = 256 * 1024
_BODY_SECONDS = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prm", required=True)
    parser.add_argument("--trajectories", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64, help="trajectories of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--hostile", type=int, default=40, help="attacks of each kind; 0: none")
    parser.add_argument("--at-least", type=float, default=0.8, help="share of the throughput in process")
    parser.add_argument("--tolerance", type=float, default=0.05, help="of a reward: batches differ in rounding")
    options = parser.parse_args()
    asked = [each for each in read_trajectories(options.trajectories) if each.steps][: options.count]
    model = PRM.from_pretrained(options.prm)
    print(f"{len(asked)} trajectories, {sum(len(each.steps) for each in asked)} steps, {options.clients} clients")
    with serving(options.prm) as server:
        right = Right(model.rewards(asked), options.tolerance)  # warms up, too
        over_http(server.url, asked[: options.clients], options.clients, right)
        ok = compare(model, server.url, asked, right, options) >= options.at_least
        if options.hostile:
            under_attack(server, asked, right, options)
        ok = ok and server.process.poll() is None
    for complaint in right.complaints:
        print(f"WRONG: {complaint}")
    sys.exit(not ok or bool(right.complaints))


# --- the server -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Server:
    process: subprocess.Popen[str]
    url: str
    port: int

    def memory(self) -> int:
        """Resident memory, MiB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") >> 20


@contextmanager
def serving(prm: str) -> Iterator[Server]:
    limits = ["--max-body-mb", str(_BODY_LIMIT / 2**20), "--body-seconds", str(_BODY_SECONDS)]
    command = [sys.executable, "-m", "cpmi", "serve", "--prm", prm, "--port", "0", *limits]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None  # noqa: S101
            found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
            if found is None:
                sys.exit("the server did not start")
            server = Server(process, found[0], int(found[1]))
            with closing(Client(server.url)) as client:
                for _ in range(600):
                    if client.is_healthy():
                        break
                    time.sleep(0.2)
            yield server
        finally:
            process.terminate()


# --- throughput -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Right:
    """The model's own rewards, to compare answers with.

    Attributes:
        checked: answers compared.
        largest: the largest difference of a reward seen.
    """

    records: Sequence[StepRewards]
    tolerance: float
    checked: int = 0
    largest: float = 0.0
    complaints: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, index: int, answer: StepRewards) -> None:
        own = self.records[index]
        with self._lock:
            self.checked += 1
            same = (answer.trajectory_id, answer.error, len(answer.rewards))
            if same != (own.trajectory_id, own.error, len(own.rewards)):
                self.complaints.append(f"trajectory {own.trajectory_id} got the answer of {answer.trajectory_id}")
                return
            difference = max((abs(a - b) for a, b in zip(answer.rewards, own.rewards, strict=True)), default=0.0)
            self.largest = max(self.largest, difference)
            if difference > self.tolerance:
                self.complaints.append(f"trajectory {own.trajectory_id}: a reward differs by {difference:.3g}")


def in_process(model: PRM, asked: Sequence[Trajectory], batch: int) -> float:
    """Seconds."""
    start = time.perf_counter()
    for first in range(0, len(asked), batch):
        model.rewards(asked[first : first + batch])
    return time.perf_counter() - start


def over_http(url: str, asked: Sequence[Trajectory], clients: int, right: Right) -> tuple[float, list[float]]:
    """Seconds of all, and of each request."""
    places = iter(range(len(asked)))
    lock, latencies = threading.Lock(), []

    def work(_: int) -> None:
        with closing(Client(url)) as client:
            while True:
                with lock:
                    place = next(places, None)
                if place is None:
                    return
                begun = time.perf_counter()
                (answer,) = client.rewards([asked[place]])
                latencies.append(time.perf_counter() - begun)
                right.check(place, answer)

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(clients)))
    return time.perf_counter() - start, latencies


def compare(model: PRM, url: str, asked: Sequence[Trajectory], right: Right, options: argparse.Namespace) -> float:
    """Both sides in turns; the median of the rounds' ratios of throughput."""
    ratios, own, http, latencies = [], [], [], []
    for turn in range(options.rounds):
        sides: list[Callable[[], None]] = [
            lambda: own.append(in_process(model, asked, options.clients)),
            lambda: http.append(over_http(url, asked, options.clients, right)),
        ]
        for side in sides if turn % 2 == 0 else sides[::-1]:
            side()
        latencies += http[-1][1]
        ratios.append(own[-1] / http[-1][0])
        print(
            f"round {turn + 1}: in process {len(asked) / own[-1]:.2f} trajectories/s, "
            f"over HTTP {len(asked) / http[-1][0]:.2f}, ratio {ratios[-1]:.3f}"
        )
    p50, p99 = (percentile(latencies, share) for share in (0.5, 0.99))
    print(f"a request over HTTP: p50 {p50:.2f} s, p99 {p99:.2f} s ({len(latencies)} requests)")
    print(f"a batch in process: {statistics.median(own) / len(asked) * options.clients:.2f} s")
    print(f"throughput over HTTP: {statistics.median(ratios):.1%} of that in process")
    return statistics.median(ratios)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


# --- hostile clients ------------------------------------------------------------------------------------------------


def under_attack(server: Server, asked: Sequence[Trajectory], right: Right, options: argparse.Namespace) -> None:
    """Every kind of attack in a thread of its own, while good clients go on until the last has ended."""
    before, checked = server.memory(), right.checked
    over = threading.Event()
    ended: Counter[str] = Counter()

    def attack(name: str) -> None:
        dice = random.Random(name)
        for _ in range(options.hostile):
            ended[f"{name}: {ATTACKS[name](server.port, asked, dice)}"] += 1

    def good(number: int) -> None:
        with closing(Client(server.url)) as client:
            for turn in itertools.count(number):
                if over.is_set():
                    return
                right.check(turn % len(asked), client.rewards([asked[turn % len(asked)]])[0])

    start = time.perf_counter()
    with ThreadPoolExecutor(len(ATTACKS) + 4) as pool:
        friends = [pool.submit(good, number * 7) for number in range(4)]
        attacks = [pool.submit(attack, name) for name in ATTACKS]
        for each in attacks:
            each.result()
        over.set()
        for each in friends:
            each.result()
    print(f"under attack for {time.perf_counter() - start:.0f} s: {right.checked - checked} good answers compared")
    for name, count in sorted(ended.items()):
        print(f"  {name}: {count}")
    _finish(server, right)
    print(f"memory of the server: {before} MiB before, {server.memory()} MiB after")
    print(f"{right.checked} answers compared in all, largest difference {right.largest:.2g}")


def _finish(server: Server, right: Right) -> None:
    """It is alive, and nothing waits for clients that went away."""
    with closing(Client(server.url)) as client:
        if not client.is_healthy():
            right.complaints.append("the server is not healthy after it")
            return
    for _ in range(300):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            text = _all_of(connection)
        if b"\ncpmi_queue_trajectories 0.0\n" in text:
            return
        time.sleep(0.1)
    right.complaints.append("trajectories still wait after all clients have gone")


Attack = Callable[[int, Sequence[Trajectory], random.Random], str]


def _head(path: str, length: int | None) -> bytes:
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{size}\r\n\r\n".encode()


def _body(asked: Sequence[Trajectory]) -> bytes:
    return json.dumps({"trajectories": [{"question": each.question, "steps": each.steps} for each in asked]}).encode()


def _all_of(connection: socket.socket) -> bytes:
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


def _said(port: int, pieces: Iterator[bytes], pause: float = 0.0) -> str:
    """Send, and read until the connection is closed; the status."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        found = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
        except OSError:  # it has closed: it may have said why
            pass
        with suppress(OSError):
            found = _all_of(connection)
    return found.split(b" ", 2)[1].decode() if found.startswith(b"HTTP/1.1 ") else "closed"


def _slow(port: int, asked: Sequence[Trajectory], dice: random.Random) -> str:
    body = _body([dice.choice(asked)])
    return _said(port, iter([_head("/v1/score", len(body)), *(body[i : i + 1] for i in range(100))]), pause=0.05)


def _broken(port: int, asked: Sequence[Trajectory], dice: random.Random) -> str:
    body = bytearray(_body([dice.choice(asked)]))
    for _ in range(20):
        body[dice.randrange(len(body))] = dice.randrange(256)
    closing_head = _head("/v1/score", len(body)).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    return _said(port, iter([closing_head, bytes(body)]))


def _garbage(port: int, asked: Sequence[Trajectory], dice: random.Random) -> str:
    del asked
    return _said(port, iter([dice.randbytes(500) + b"\r\n\r\n"]))


def _oversized(port: int, asked: Sequence[Trajectory], dice: random.Random) -> str:
    del asked
    size = _BODY_LIMIT * 4
    if dice.random() < 0.5:
        return _said(port, iter([_head("/v1/score", size), *[b" " * 65536] * (size // 65536)]))
    return _said(port, iter([_head("/v1/score", None), *[b"10000\r\n" + b" " * 65536 + b"\r\n"] * (size // 65536)]))


def _cancelled(port: int, asked: Sequence[Trajectory], dice: random.Random) -> str:
    path = dice.choice(["/v1/score", "/v1/score/stream"])
    body = _body(dice.sample(asked, min(8, len(asked))))
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(_head(path, len(body)) + body)
        time.sleep(dice.random())
    return "gone"


ATTACKS: dict[str, Attack] = {
    "slow body": _slow,
    "broken body": _broken,
    "garbage": _garbage,
    "oversized body": _oversized,
    "cancelled": _cancelled,
}


if __name__ == "__main__":
    main()
