"""Images by http: from a server of this machine, friendly and hostile."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sppdet.errors import ImageError, one_line
from sppdet.io.web import fetch

BODY = bytes(range(256)) * 40
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    answer: Answer

    def do_GET(self) -> None:
        try:
            type(self).answer(self)
        except OSError:  # the client has gone
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass

    def head(self, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """The URL of a server that answers so."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"answer": answer}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/some/x.jpg"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def problem(url: str, *, max_bytes: int = 10**6, timeout_s: float = 5.0) -> str:
    """The message of a fetch that fails, without the URL that it begins with."""
    with pytest.raises(ImageError) as caught:
        fetch(url, max_bytes=max_bytes, timeout_s=timeout_s)
    said = str(caught.value)
    assert said.startswith(f"{url}: ") and "\n" not in said
    return said.removeprefix(f"{url}: ")


def whole(handler: Handler) -> None:
    handler.head(Content_Type="image/jpeg", Content_Length=len(BODY))
    handler.wfile.write(BODY)


def test_a_body_comes_whole() -> None:
    with serving(whole) as url:
        assert fetch(url, max_bytes=len(BODY)) == BODY
        assert problem(url, max_bytes=len(BODY) - 1) == f"more than {len(BODY) - 1} bytes"


def test_a_body_in_chunks_of_no_stated_length() -> None:
    def chunks(handler: Handler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.head(Transfer_Encoding="chunked")
        for at in range(0, len(BODY), 1000):
            part = BODY[at : at + 1000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        handler.wfile.write(b"0\r\n\r\n")

    with serving(chunks) as url:
        assert fetch(url, max_bytes=len(BODY)) == BODY
        assert problem(url, max_bytes=len(BODY) - 1) == f"more than {len(BODY) - 1} bytes"


def test_redirects_within_http() -> None:
    def hop(handler: Handler) -> None:
        if handler.path == "/some/x.jpg":
            handler.head(302, Location="/else.jpg")
        else:
            whole(handler)

    with serving(hop) as url:
        assert fetch(url, max_bytes=10**6) == BODY


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x.jpg", "data:,x"])
def test_redirects_elsewhere(target: str) -> None:
    with serving(lambda handler: handler.head(302, Location=target)) as url:
        assert problem(url) == f"leads to {target}, expected http or https"


def test_redirects_without_end() -> None:
    with serving(lambda handler: handler.head(302, Location=f"{handler.path}x")) as url:
        assert "302" in problem(url)


@pytest.mark.parametrize("status", [404, 403, 500, 503])
def test_answers_in_error(status: int) -> None:
    with serving(lambda handler: handler.head(status)) as url:
        assert problem(url).startswith(f"the server answers {status} ")


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/json"])
def test_an_answer_that_is_no_image(kind: str) -> None:
    def page(handler: Handler) -> None:
        handler.head(Content_Type=kind)
        handler.wfile.write(b"<html>log in</html>")

    with serving(page) as url:
        expected = kind.partition(";")[0]
        assert problem(url) == f"the server answers with {expected}, expected an image"


def test_a_body_without_end() -> None:
    sent = 0

    def endless(handler: Handler) -> None:
        nonlocal sent
        handler.head(Content_Type="image/png")
        while True:
            handler.wfile.write(BODY)
            sent += len(BODY)

    with serving(endless) as url:
        assert problem(url, max_bytes=500_000) == "more than 500000 bytes"
    assert sent < 10_000_000


def test_a_stated_length_that_is_too_much_is_refused_at_once() -> None:
    def huge(handler: Handler) -> None:
        handler.head(Content_Length=10**15)
        time.sleep(3)

    with serving(huge) as url:
        start = time.monotonic()
        assert problem(url) == "more than 1000000 bytes"
        assert time.monotonic() - start < 2


def test_a_body_that_is_cut_short() -> None:
    def short(handler: Handler) -> None:
        handler.head(Content_Length=5000)
        handler.wfile.write(BODY[:1234])

    with serving(short) as url:
        assert problem(url) == "can't be fetched: ended after 1234 of 5000 bytes"


def drop_by_drop(handler: Handler) -> None:
    handler.head(Content_Length=10_000)
    for byte in BODY[:120]:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.05)


def header_by_header(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
    drop_by_drop(handler)


def silence(handler: Handler) -> None:
    time.sleep(4)


@pytest.mark.parametrize("answer", [drop_by_drop, header_by_header, silence])
def test_a_slow_server_has_a_deadline(answer: Answer) -> None:
    """A timeout of single reads would wait for all drops, 6 s here."""
    with serving(answer) as url:
        start = time.monotonic()
        assert problem(url, timeout_s=0.5) == "can't be fetched: no whole image after 0.5 s"
        assert time.monotonic() - start < 2


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert problem(f"http://127.0.0.1:{port}/x.jpg").startswith("can't be fetched: [Errno")


def test_an_answer_that_is_no_http() -> None:
    def nonsense(handler: Handler) -> None:
        handler.wfile.write(b"\x00\xffnonsense\r\n\r\n")

    with serving(nonsense) as url:
        assert problem(url).startswith("can't be fetched: ")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http:///x.jpg", "has no host"),
        ("http://user:secret@host/x.jpg", "has a user's name, which isn't supported"),
        ("http://host:99999/x.jpg", "Port out of range 0-65535"),
        ("http://host/a b.jpg", "has a space or control character; expected %20"),
        ("http://host/a\r\nX: y", "has a space or control character; expected %20"),
        ("http://[::1/x.jpg", "Invalid IPv6 URL"),
    ],
)
def test_urls_that_are_none(url: str, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        fetch(url, max_bytes=100)
    assert str(caught.value) == one_line(f"{url}: no URL of an image: {reason}")
