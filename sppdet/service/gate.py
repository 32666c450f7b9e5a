"""Check who may ask before a request is answered, and set the headers that every answer carries."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sppdet.errors import one_line
from sppdet.runs.log import LOGGER

ANY = "*"
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


@dataclass
class Counts:
    """Numbers of requests by what came of them."""

    answered: int = 0  # with a status below 400
    refused: int = 0  # below 500
    failed: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, status: int) -> None:
        """Count one request."""
        self.answered += status < 400
        self.refused += 400 <= status < 500
        self.failed += status >= 500


@dataclass(frozen=True)
class Gate:
    """Refuses what a page of another site sends through a visitor's browser; counts and logs.

    A page whose name its owner points to this machine (DNS rebinding) shows by the Host header, which
    must be an IP address, a name of this machine, or one of `hosts`. A page of another site shows by the
    Origin header, which must be that of the service or one of `origins`. `*` is any.
    """

    app: ASGIApp
    counts: Counts
    hosts: Collection[str] = ()
    origins: Collection[str] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499  # the client has gone

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            refusal = self._refusal(Headers(scope=scope))
            if refusal is None:
                await self.app(scope, receive, send_with_headers)
            else:
                await _answer(*refusal, send_with_headers)
        finally:
            self.counts.add(status)
            took = 1000 * (time.perf_counter() - began)
            with contextlib.suppress(OSError):  # nobody reads the log any more
                LOGGER.debug("%s %s: %d, %.0f ms", scope["method"], scope["path"], status, took)

    def _refusal(self, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if host and not self._knows(host):
            return (
                421,
                f"Host {host}: expected an IP address or localhost; --allow-host allows more",
            )
        origin = headers.get("origin")
        if origin is None or ANY in self.origins or origin in self.origins:
            return None
        if urlsplit_netloc(origin) == host.lower():
            return None
        return 403, f"Origin {origin}: a page of another site; --allow-origin allows it"

    def _knows(self, host: str) -> bool:
        name = _name(host)
        if ANY in self.hosts or name in self.hosts or name in _own_names():
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def urlsplit_netloc(url: str) -> str:
    """Return host and port of a URL; empty for one that is none."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _name(host: str) -> str:
    """Return the name in a Host header, without its port and the brackets of IPv6."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _own_names() -> tuple[str, ...]:
    return "localhost", socket.gethostname().lower()


async def _answer(status: int, line: str, send: Send) -> None:
    body = json.dumps({"error": one_line(line)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
