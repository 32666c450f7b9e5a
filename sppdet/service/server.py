"""The process of the service: its socket, its connections, its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sppdet.errors import ConfigError
from sppdet.runs.log import LOGGER, RESULT, event
from sppdet.runs.signals import STOPPING, Stopped

if TYPE_CHECKING:
    from sppdet.service.app import Service

_CONNECTIONS = 512  # beyond, requests are answered by 503
_KEEP_ALIVE_S = 5
_SAME_REQUEST_S = 1.0  # a terminal may send one request to stop twice
_SPARE_S = 5.0


class Connection(H11Protocol):
    """A connection on which the service waits for a client no longer than its limit.

    The routes have limits of their own while they read a body. This one holds while no route is at work:
    for the headers of a request, for the rest of a body that was refused, and until an answer is fetched.
    """

    timeout = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        self._deadline: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Stop waiting when the headers are complete."""
        super().data_received(data)
        self._wait()

    def on_response_complete(self) -> None:
        """Begin to wait again."""
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.timeout, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Server(uvicorn.Server):
    """Announces when it is ready; ends by `Stopped` when all requests at work are answered.

    A second signal, more than a second after the first, ends it without waiting.
    """

    def __init__(self, config: uvicorn.Config, line: str, url: str) -> None:
        super().__init__(config)
        self._line = line
        self._url = url
        self._stopped: tuple[int, float] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        LOGGER.log(RESULT, "%s", self._line, extra=event("serving", url=self._url))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at the signals that end a command; in a thread there are none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ignored = {n for n in STOPPING if signal.getsignal(n) is signal.SIG_IGN}
        before = {n: signal.signal(n, self.handle_exit) for n in STOPPING if n not in ignored}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._stopped is not None:
            raise Stopped(self._stopped[0])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ask the server to end; called by a signal."""
        now = time.monotonic()
        if self._stopped is None:
            self._stopped = sig, now
            self.should_exit = True
        elif now - self._stopped[1] > _SAME_REQUEST_S:
            self.force_exit = True


def bind(host: str, port: int) -> socket.socket:
    """Take an address, on which nobody is answered yet.

    Args:
        port: 0 is any that is free.

    Raises:
        ConfigError: the address isn't one, or is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host {host} --port {port}: {reason}") from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the URL of a bound address."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def serve_until_stopped(service: Service, bound: socket.socket, *, name: str) -> None:
    """Answer requests until a signal ends it.

    Raises:
        Stopped: by the signal, after the requests at work were answered.
    """
    timeout = service.limits.timeout
    config = uvicorn.Config(
        service.app,
        http=type("Connection", (Connection,), {"timeout": timeout}),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_S,
        # a body, the wait for a thread, the detection
        timeout_graceful_shutdown=round(3 * timeout + _SPARE_S),
    )
    # each damaged form would be a line
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    url = url_of(bound)
    server = Server(config, f"{name} is ready at {url}", url)
    try:
        server.run(sockets=[bound])
    finally:
        service.workers.close()
        bound.close()
