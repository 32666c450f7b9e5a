"""Fetching of images by http and https, within limits of size and time."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

from sppdet.errors import ImageError, one_line
from sppdet.version import __version__

TIMEOUT_S = 60.0  # of a whole image
_STALLED_S = 15.0  # without a byte
_BLOCK = 2**16
_SCHEMES = ("http", "https")


def is_url(word: str) -> bool:
    """Check that a word begins with http:// or https://."""
    return re.match(r"https?://", word, re.IGNORECASE) is not None


def fetch(url: str, *, max_bytes: int, timeout_s: float = TIMEOUT_S) -> bytes:
    """Fetch an image; redirects are followed to http and https alone.

    Args:
        max_bytes: a longer body is refused, at its stated length or as soon as it is exceeded.
        timeout_s: for the whole answer, however slowly its bytes come; a name is looked up and a
            connection made in `_STALLED_S` besides.

    Raises:
        ImageError: a malformed URL, no answer, one in error, one that is text, or a limit.
    """
    _check(url)
    sockets = _Sockets()
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(),
        _Redirects(), _Http(sockets), _Https(sockets),
    ):  # fmt: skip
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers={"User-Agent": f"sppdet/{__version__}"})
    until = time.monotonic() + timeout_s
    try:
        with (
            sockets.closed_at(timeout_s),
            opener.open(request, timeout=min(_STALLED_S, timeout_s)) as answer,
        ):
            return _body(answer, url, max_bytes=max_bytes)
    except urllib.error.HTTPError as error:
        said = " ".join(str(error.reason).split())
        raise ImageError(one_line(f"{url}: the server answers {error.code} {said}")) from None
    except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
        # a socket that is closed while it is read fails in any of these ways
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if time.monotonic() >= until:
            reason = f"no whole image after {timeout_s:g} s"
        said = f"{url}: can't be fetched: {reason or type(error).__name__}"
        raise ImageError(one_line(said)) from None


def _check(url: str) -> None:
    try:
        parts = urlsplit(url)
        problem = "" if parts.hostname else "has no host"
        _ = parts.port
        if parts.username is not None:
            problem = "has a user's name, which isn't supported"
    except ValueError as error:
        problem = str(error)
    if re.search(r"[\x00-\x20\x7f]", url):
        problem = "has a space or control character; expected %20"
    if problem:
        raise ImageError(one_line(f"{url}: no URL of an image: {problem}"))


def _body(answer: Any, url: str, *, max_bytes: int) -> bytes:
    kind = answer.headers.get_content_type() if "Content-Type" in answer.headers else ""
    if kind.startswith("text/") or kind == "application/json":
        raise ImageError(f"{url}: the server answers with {kind}, expected an image")
    too_long = ImageError(f"{url}: more than {max_bytes} bytes")
    stated = answer.headers.get("Content-Length", "")
    if stated.isdecimal() and int(stated) > max_bytes:
        raise too_long
    body = bytearray()
    while block := answer.read1(_BLOCK):
        body += block
        if len(body) > max_bytes:
            raise too_long
    if stated.isdecimal() and len(body) < int(stated):
        raise http.client.HTTPException(f"ended after {len(body)} of {stated} bytes")
    return bytes(body)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def http_error_302(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any
    ) -> Any:
        target = urljoin(req.full_url, headers.get("location", ""))
        if urlsplit(target).scheme.lower() not in _SCHEMES:
            raise ImageError(one_line(f"{req.full_url}: leads to {target}, expected http or https"))
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Sockets:
    """The sockets of one fetch, which are shut at its deadline: a timeout is of one read alone."""

    def __init__(self) -> None:
        self._open: list[socket.socket] = []
        self._late = False
        self._lock = threading.Lock()

    def add(self, one: socket.socket) -> None:
        with self._lock:
            self._open.append(one)
            if self._late:
                _shut(one)

    @contextlib.contextmanager
    def closed_at(self, seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, self._close)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _close(self) -> None:
        with self._lock:
            self._late = True
            for one in self._open:
                _shut(one)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # not of the TLS layer, which would wait for the other side
        socket.socket.shutdown(one, socket.SHUT_RDWR)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, sockets: _Sockets) -> None:
        super().__init__()
        self._sockets = sockets

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_noting(http.client.HTTPConnection, self._sockets), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, sockets: _Sockets) -> None:
        super().__init__()
        self._sockets = sockets

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_noting(http.client.HTTPSConnection, self._sockets), req)


def _noting(kind: type[http.client.HTTPConnection], sockets: _Sockets) -> Any:
    """Derive a connection that tells its socket to `sockets`."""

    class Noting(kind):  # type: ignore[misc, valid-type]
        def connect(self) -> None:
            super().connect()
            sockets.add(self.sock)

    return Noting
