"""`sppdet serve` under load, a fifth of it damaged or hostile: latency, memory, what is answered.

    python benchmarks/serve.py RUN [--images FOLDER] [--requests 1000] [--clients 8] [--hostile 200]
                               [--threads 1] [--workers 1] [--niceness 10] [--json FILE]

Starts the service as a process of its own and sends it requests from CLIENTS threads, in an order drawn
once. Without --images the folder is data/frk5/JPEGImages below $SPPDET_DATA. Prints Markdown tables: the
latency of good requests as the client sees it, what became of each kind of the others, and the memory of
the service before and during the load. The exit status is 1 if a good request failed, if a hostile one got
another answer than it should, or if the service ended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import queue
import random
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil

from sppdet.io.finding import find_images

MAX_BYTES = 20_000_000
TIMEOUT = 10.0  # s, of the service, so that slow clients end within the benchmark
QUEUE = 16
CHECKPOINTS = 4  # of the memory while requests are answered
_CLOSED = 0  # no answer: the connection is closed
_PATIENCE_S = 120.0


@dataclass
class Service:
    """The service at work."""

    host: str
    port: int
    process: subprocess.Popen[str]
    images: list[bytes] = field(default_factory=list)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=_PATIENCE_S)

    def rss_mb(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss) / 1e6


def status_of(connection: socket.socket) -> int:
    """Read an answer to its end; returns its status, 0 where the connection is closed without one."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(2**16):
            data += part
            head, found, body = data.partition(b"\r\n\r\n")
            length = _stated_length(head) if found else None
            if length is not None and len(body) >= length:
                break
    return int(data.split(b" ", 2)[1]) if data.startswith(b"HTTP/1.1 ") else _CLOSED


def _stated_length(head: bytes) -> int | None:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return None


def head(kind: str = "image/jpeg", *lines: str, method: str = "POST") -> bytes:
    """The beginning of a request."""
    first = [f"{method} /detect HTTP/1.1", "Host: localhost", f"Content-Type: {kind}"]
    return "\r\n".join([*first, *lines, "", ""]).encode()


def whole(data: bytes, kind: str = "image/jpeg", method: str = "POST") -> bytes:
    """A request with its body."""
    return head(kind, f"Content-Length: {len(data)}", method=method) + data


# -- requests that deserve no detections -----------------------------------------------------------


def png(width: int, height: int, rows: int) -> bytes:
    """A PNG of zeros that says it is this large; its data has `rows` rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return len(data).to_bytes(4, "big") + kind + data + check.to_bytes(4, "big")

    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    data = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    parts = (b"IHDR", size + bytes([8, 2, 0, 0, 0])), (b"IDAT", data), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def sent(service: Service, data: bytes) -> int:
    with service.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        return status_of(connection)


def large_body(service: Service, *, chunked: bool) -> int:
    """100 MB, with their size stated or without."""
    part = bytes(250_000)
    framed = b"%x\r\n%b\r\n" % (len(part), part) if chunked else part
    size = "Transfer-Encoding: chunked" if chunked else "Content-Length: 100000000"
    with service.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(head("image/jpeg", size))
            for _ in range(400):
                connection.sendall(framed)
            if chunked:
                connection.sendall(b"0\r\n\r\n")
        return status_of(connection)


def slow(service: Service, start: bytes) -> int:
    """A client that sends a byte now and then, until the service has had enough."""
    with service.connect() as connection:
        connection.sendall(start)
        connection.settimeout(0.5)
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            try:
                connection.sendall(b"x")
                return int(connection.recv(2**16).split(b" ", 2)[1])
            except TimeoutError:
                continue
            except (ConnectionError, IndexError):
                return _CLOSED
    return -1


def half_closed(service: Service) -> int:
    """The sending half is closed in the middle of the body."""
    data = whole(service.images[0])
    with service.connect() as connection:
        connection.sendall(data[: len(data) // 2])
        connection.shutdown(socket.SHUT_WR)
        return status_of(connection)


def left(service: Service) -> int:
    """The client asks and leaves."""
    with service.connect() as connection:
        connection.sendall(whole(service.images[0]))
    return _CLOSED


def hostile_kinds(images: list[bytes]) -> dict[str, tuple[Callable[[Service], int], set[int]]]:
    """By name: a request that returns the status of its answer, and the statuses that are right."""
    bomb, wide = png(60_000, 60_000, 2_000), png(49_999, 1_000, 1_000)
    damaged = images[0][: len(images[0]) // 3]
    noise = random.Random(0).randbytes(100_000)
    form = "multipart/form-data; boundary=b"
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'

    def by(data: bytes) -> Callable[[Service], int]:
        return lambda service: sent(service, data)

    busy = {503}
    return {
        "PNG bomb, 60,000 × 60,000": (by(whole(bomb, "image/png")), {413} | busy),
        "PNG bomb, 50 million pixels of one colour": (
            by(whole(wide, "image/png")),
            {200, 504} | busy,
        ),
        "first third of a JPEG": (by(whole(damaged)), {200, 422} | busy),
        "noise as JPEG": (by(whole(noise)), {422} | busy),
        "text as JPEG": (by(whole(b"<script>alert(1)</script>")), {422} | busy),
        "type text/html": (by(whole(b"x", "text/html")), {415}),
        "body of 100 MB": (lambda service: large_body(service, chunked=False), {413}),
        "body of 100 MB, chunked": (lambda service: large_body(service, chunked=True), {413}),
        "slow headers": (lambda s: slow(s, b"POST /detect HTTP/1.1\r\nX: "), {_CLOSED}),
        "slow body": (lambda s: slow(s, head("image/jpeg", "Content-Length: 99999")), {408}),
        "half-closed in the body": (half_closed, {_CLOSED, 400}),
        "left before the answer": (left, {_CLOSED}),
        "method PATCH": (by(whole(b"x", method="PATCH")), {405}),
        "headers of 1 MB": (by(head("image/jpeg", "X: " + "a" * 1_000_000)), {400, _CLOSED}),
        "no HTTP": (by(b"\x16\x03\x01" + noise[:500]), {400, _CLOSED}),
        "damaged form": (by(whole(b"--b\r\nx\r\n\r\n", form)), {400}),
        "form cut off": (by(whole(part + images[0][:500], form)), {422, 400} | busy),
        "form without the field": (by(whole(b"--b--\r\n", form)), {422, 400}),
        "lying Content-Length": (
            by(head("image/jpeg", "Content-Length: 10") + images[0]),
            {422, 400} | busy,
        ),
        "Host of another site": (
            by(whole(images[0]).replace(b"Host: localhost", b"Host: evil.example")),
            {421},
        ),
    }


# -- the load --------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What the clients have seen."""

    seconds: list[float] = field(default_factory=list)  # of good requests
    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    memory: list[tuple[str, float]] = field(default_factory=list)
    wall: float = 0.0
    again: int = 0  # good requests that had to wait and come again


def good(service: Service, number: int, outcome: Outcome) -> int:
    """A good request, again after 503 as a client should; its latency counts from the first time."""
    data = whole(service.images[number % len(service.images)])
    began = time.perf_counter()
    while (status := sent(service, data)) == 503:
        outcome.again += 1
        time.sleep(0.5)
    if status == 200:
        outcome.seconds.append(time.perf_counter() - began)
    return status


def load(service: Service, *, requests: int, hostile: int, clients: int) -> Outcome:
    """Send all requests; the memory is read after each quarter of them."""
    kinds = hostile_kinds(service.images)
    names = [list(kinds)[number % len(kinds)] for number in range(hostile)]
    names += ["good"] * (requests - hostile)
    random.Random(1).shuffle(names)
    work: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
    for item in enumerate(names):
        work.put(item)
    outcome = Outcome(statuses={name: Counter() for name in ("good", *kinds)})
    outcome.memory.append(("before the first request", service.rss_mb()))
    lock, done = threading.Lock(), 0
    step = max(1, requests // CHECKPOINTS)

    def client() -> None:
        nonlocal done
        while True:
            try:
                number, name = work.get_nowait()
            except queue.Empty:
                return
            try:
                one = kinds.get(name)
                status = one[0](service) if one else good(service, number, outcome)
            except OSError:
                status = -1
            with lock:
                outcome.statuses[name][status] += 1
                done += 1
                if done % step == 0:
                    outcome.memory.append((f"after {done:,} requests", service.rss_mb()))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.wall = time.perf_counter() - began
    time.sleep(2 * TIMEOUT)
    outcome.memory.append((f"{2 * TIMEOUT:g} s after the last", service.rss_mb()))
    return outcome


@contextlib.contextmanager
def started(args: argparse.Namespace, images: list[bytes]) -> Iterator[Service]:
    """Start the service, end it by SIGTERM."""
    options = ["--port", "0", "--timeout", str(TIMEOUT), "--queue", str(QUEUE)]
    options += ["--workers", str(args.workers), "--threads", str(args.threads)]
    command = [sys.executable, "-m", "sppdet", "serve", str(args.run), *options, "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    parts = urlsplit(process.stdout.readline().rpartition(" ")[2].strip())  # "... is ready at URL"
    assert parts.hostname and parts.port
    try:
        yield Service(parts.hostname, parts.port, process, images)
    finally:
        process.terminate()
        process.wait(60)


def tables(outcome: Outcome, kinds: dict[str, set[int]]) -> Iterator[str]:
    """Yield the lines of what is printed."""
    p50, p90, p99 = np.percentile(outcome.seconds, [50, 90, 99])
    count = len(outcome.seconds)
    yield "| good requests | answered a second | p50 | p90 | p99 | longest | sent again after 503 |"
    yield "|---|---|---|---|---|---|---|"
    yield (
        f"| {count} | {count / outcome.wall:.2f} | {p50:.2f} s | {p90:.2f} s | {p99:.2f} s "
        f"| {max(outcome.seconds):.2f} s | {outcome.again} |"
    )
    yield ""
    yield "| damaged or hostile | requests | answered by |"
    yield "|---|---|---|"
    for name in kinds:
        counts = outcome.statuses[name]
        said = [
            f"{status or 'closed'}{f' ({n})' if len(counts) > 1 else ''}"
            for status, n in sorted(counts.items())
        ]
        yield f"| {name} | {counts.total()} | {', '.join(said)} |"
    yield ""
    yield "| memory of the service (RSS) | MB |"
    yield "|---|---|"
    for when, megabytes in outcome.memory:
        yield f"| {when} | {megabytes:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--hostile", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--niceness", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if hasattr(os, "nice"):
        os.nice(args.niceness)
    folder = args.images or Path(os.environ["SPPDET_DATA"]) / "data" / "frk5" / "JPEGImages"
    paths = find_images([folder])
    images = [path.read_bytes() for path in paths[:: max(1, len(paths) // 50)]]
    with started(args, images) as service:
        outcome = load(service, requests=args.requests, hostile=args.hostile, clients=args.clients)
        alive = service.process.poll() is None
        status = sent(service, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    right = {name: statuses for name, (_, statuses) in hostile_kinds(images).items()}
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end; ",
        end="",
    )
    print(f"{args.workers} workers, {args.threads} torch threads, {args.clients} clients\n")
    print("\n".join(tables(outcome, right)))
    wrong = {
        name: dict(counts)
        for name, counts in outcome.statuses.items()
        if not set(counts) <= right.get(name, {200})
    }
    if args.json:
        found = {"seconds": outcome.seconds, "memory": outcome.memory, "wall": outcome.wall}
        args.json.write_text(json.dumps({**found, "wrong": wrong}))
    if wrong or not alive or status != 200:
        sys.exit(f"wrong: {wrong}; alive: {alive}; health: {status}")


if __name__ == "__main__":
    main()
