"""`sppdet serve` as a process of its own: clients that misbehave, its end, and its page in a browser."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
from PIL import Image

from pages import check_page, opened
from sppdet.stages.detector import Detector

psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="os.kill only ends processes here")

TIMEOUT = 3.0  # s, of the service
OPTIONS = ("--max-bytes", "200kB", "--timeout", str(TIMEOUT), "--workers", "1", "--score", "-1.04")
JPEG = {"Content-Type": "image/jpeg"}
DROP = """([data, name]) => {
  const transfer = new DataTransfer();
  const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
  transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
  for (const kind of ["dragover", "drop"])
    document.getElementById("drop").dispatchEvent(
      new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


class Running:
    """A service at work: `url`, and its process."""

    def __init__(self, run: Path, *options: str) -> None:
        command = ["-m", "sppdet", "--threads", "1", "--quiet", "serve", str(run), "--port", "0"]
        self.process = subprocess.Popen(
            [sys.executable, *command, *OPTIONS, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("run is ready at http://127.0.0.1:")
        self.url = line.split()[-1]

    def connect(self) -> socket.socket:
        parts = urlsplit(self.url)
        assert parts.hostname and parts.port
        return socket.create_connection((parts.hostname, parts.port), timeout=30)

    def health(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url}health", timeout=30).json())

    def ended(self, number: int) -> tuple[int, str]:
        """Send a signal; returns the exit status and what standard error has."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@contextmanager
def running(run: Path, *options: str) -> Iterator[Running]:
    service = Running(run, *options)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
        service.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def service(trained: Path) -> Iterator[Running]:
    with running(trained) as found:
        yield found
        assert found.process.poll() is None and found.health()["ready"]


@pytest.fixture(scope="module")
def photo(demo_root: Path) -> Path:
    return min((demo_root / "fresh").iterdir())


def head(path: str = "/detect", **headers: object) -> bytes:
    """The beginning of a request by hand."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: image/jpeg"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def received(connection: socket.socket) -> bytes:
    """All that comes until the service closes the connection."""
    data = b""
    try:
        while part := connection.recv(2**16):
            data += part
    except ConnectionResetError:
        pass
    return data


def test_detections_over_the_network(service: Running, trained: Path, photo: Path) -> None:
    found = Detector.load(trained, device="cpu")(photo).above(-1.04)
    response = httpx.post(f"{service.url}detect", content=photo.read_bytes(), headers=JPEG)
    rows = response.json()["detections"]
    assert [row["box"] for row in rows] == found.boxes.tolist() and len(rows) > 2
    assert "server" not in response.headers


def test_headers_that_never_end(service: Running) -> None:
    """Bytes that drip in don't prolong it."""
    with service.connect() as connection:
        connection.sendall(b"POST /detect HTTP/1.1\r\n")
        began = time.monotonic()
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.2):
                try:
                    connection.sendall(b"X-A: b\r\n")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        assert received(connection) == b""
        took = time.monotonic() - began
        stop.set()
        thread.join()
    assert TIMEOUT - 0.5 < took < TIMEOUT + 5


def test_nothing_at_all(service: Running) -> None:
    with service.connect() as connection:
        began = time.monotonic()
        assert received(connection) == b""
        assert TIMEOUT - 0.5 < time.monotonic() - began < TIMEOUT + 5


def test_a_body_that_never_ends(service: Running) -> None:
    with service.connect() as connection:
        connection.sendall(head(Content_Length=1000) + b"x" * 10)
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"within 3 s" in answer


@pytest.mark.parametrize("stated", [True, False])
def test_a_huge_body(service: Running, stated: bool) -> None:
    """The answer comes at once, the rest is read into nothing, and memory stays as it is."""
    own = psutil.Process(service.process.pid)
    before = own.memory_info().rss
    size, chunk = 100_000_000, bytes(100_000)
    sent = 0
    with service.connect() as connection:
        if stated:
            connection.sendall(head(Content_Length=size))
        else:
            connection.sendall(head(Transfer_Encoding="chunked"))
        try:
            while sent < size:
                framed = chunk if stated else b"%x\r\n%b\r\n" % (len(chunk), chunk)
                connection.sendall(framed)
                sent += len(chunk)
        except OSError:  # closed in the middle, which it may
            pass
        connection.shutdown(socket.SHUT_WR)
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"more than 200000 bytes" in answer
    assert own.memory_info().rss - before < 20_000_000


def test_a_refused_body_is_not_asked_for(service: Running) -> None:
    with service.connect() as connection:
        connection.sendall(head(Content_Length=10**9, Expect="100-continue"))
        answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_refused_body_that_drips_in(service: Running) -> None:
    with service.connect() as connection:
        connection.sendall(head(Content_Length=10**9))
        began = time.monotonic()
        connection.settimeout(0.2)
        answer, closed = b"", False
        while not closed and time.monotonic() - began < 20:
            try:
                connection.sendall(b"x")
                part = connection.recv(1000)
                closed = not part
                answer += part
            except TimeoutError:
                continue
            except OSError:
                closed = True
        assert closed and time.monotonic() - began < TIMEOUT + 5
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"BREW /pot HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no host
    ],
    ids=["tls", "huge header", "negative", "no chunk", "version", "no host"],
)
def test_what_is_no_request(service: Running, data: bytes) -> None:
    with service.connect() as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        answer = received(connection)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


def test_clients_that_leave(service: Running, photo: Path) -> None:
    """In the middle of the body, and before the answer."""
    data = photo.read_bytes()
    for part in (data[:100], data):
        for _ in range(5):
            with service.connect() as connection:
                connection.sendall(head(Content_Length=len(data)) + part)
    end = time.monotonic() + 30
    while (now := service.health())["running"] or now["waiting"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    response = httpx.post(f"{service.url}detect", content=data, headers=JPEG, timeout=30)
    assert response.status_code == 200


def test_health_is_answered_while_detections_run(service: Running, photo: Path) -> None:
    codes: list[int] = []

    def ask() -> None:
        url = f"{service.url}detect"
        codes.append(
            httpx.post(url, content=photo.read_bytes(), headers=JPEG, timeout=60).status_code
        )

    threads = [threading.Thread(target=ask) for _ in range(24)]  # one runs, 16 wait
    for thread in threads:
        thread.start()
    seen = 0
    while any(thread.is_alive() for thread in threads):
        seen = max(seen, service.health()["waiting"])
    for thread in threads:
        thread.join()
    assert 0 < seen <= 16 and len(codes) == 24
    assert set(codes) == {200, 503}


def test_requests_at_work_are_answered_before_the_end(trained: Path, photo: Path) -> None:
    data = photo.read_bytes()
    with running(trained, "--timeout", "60") as own, own.connect() as idle, own.connect() as busy:
        busy.sendall(head(Content_Length=len(data)) + data[:100])
        while own.health()["requests"]["answered"] < 1:  # so the service has read that, too
            time.sleep(0.05)
        own.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 30
        with pytest.raises(OSError):  # nobody new
            while time.monotonic() < end:
                own.connect().close()
                time.sleep(0.05)
        busy.sendall(data[100:])
        answer = received(busy)
        assert answer.startswith(b"HTTP/1.1 200 ") and b'"detections":[{' in answer
        assert received(idle) == b""
        _, said = own.process.communicate(timeout=60)
        assert own.process.returncode == 128 + signal.SIGTERM
    assert said == "stopped by SIGTERM; the requests at work were answered first\n"


def test_a_port_that_is_taken(service: Running, trained: Path) -> None:
    port = str(urlsplit(service.url).port)
    ended = subprocess.run(
        [sys.executable, "-m", "sppdet", "serve", str(trained), "--port", port],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert ended.stderr == f"error: --host 127.0.0.1 --port {port}: Address already in use\n"


# -- the page --------------------------------------------------------------------------------------


def dropped(page: Any, data: bytes, name: str) -> None:
    page.evaluate(DROP, [base64.b64encode(data).decode(), name])


def test_the_page_stands_alone(service: Running, tmp_path: Path) -> None:
    response = httpx.get(service.url)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    (tmp_path / "page.html").write_text(response.text, encoding="utf-8")
    page = check_page(tmp_path / "page.html")
    assert all(f"{name} " in page.text or f"{name}," in page.text for name in ("disc", "star"))


def test_an_image_dropped_on_the_page(service: Running, trained: Path, photo: Path) -> None:
    found = Detector.load(trained, device="cpu")(photo)
    width, height = Image.open(photo).size
    with opened(service.url) as page:
        assert page.is_hidden("#result")
        dropped(page, photo.read_bytes(), "a photo.jpg")
        page.wait_for_selector("#result:not([hidden])")
        assert page.evaluate("document.getElementById('file').files[0].name") == "a photo.jpg"
        size = page.evaluate("[canvas.width, canvas.height]")
        assert size == [width, height]
        # all boxes are drawn when the threshold is least, and none when it is 1
        page.focus("#least")
        page.keyboard.press("Home")
        rows = page.locator("#rows tr")
        count = min(500, len(found))
        assert rows.count() == count
        assert page.inner_text("#said").startswith(
            f"{count} of {count} detections in {width} × {height} pixels"
        )
        cells = rows.first.locator("th, td").all_inner_texts()
        assert cells[0] == found.names()[0]
        shown = [float(cell.replace("−", "-")) for cell in cells[2:]]
        assert shown == [
            pytest.approx(float(found.scores[0]), abs=0.006),
            *(pytest.approx(float(side), abs=0.51) for side in found.boxes[0]),
        ]
        many = page.evaluate("canvas.toDataURL()")
        page.keyboard.press("End")
        assert rows.count() == int((found.probabilities == 1).sum())  # type: ignore[union-attr]
        few = page.evaluate("canvas.toDataURL()")
        assert many != few
        # where the best box's left side is, the image has changed
        page.keyboard.press("Home")
        left, top, _, bottom = found.boxes[0].tolist()
        at = [max(2, round(left)), round((top + bottom) / 2)]
        colour = """at => {
          const pen = document.createElement("canvas").getContext("2d");
          pen.drawImage(canvas, -at[0], -at[1]);
          return [...pen.getImageData(0, 0, 1, 1).data];
        }"""
        drawn = page.evaluate(colour, at)
        page.keyboard.press("End")
        assert page.evaluate(colour, at) != drawn


def test_errors_on_the_page(service: Running, photo: Path) -> None:
    with opened(service.url) as page:
        for data, line in (
            (b"no image", "The service answers 422: the image can't be decoded."),
            (bytes(200_001), "The file has more than 200000 bytes."),
        ):
            dropped(page, data, "a.jpg")
            page.wait_for_selector("#wrong:not([hidden])")
            page.wait_for_function(f"wrong.textContent === {json.dumps(line)}")
            assert page.is_hidden("#result")
        dropped(page, photo.read_bytes(), "b.jpg")
        page.wait_for_selector("#result:not([hidden])")
        assert page.is_hidden("#wrong")


def test_the_page_by_keyboard_on_a_small_screen(service: Running, photo: Path) -> None:
    with opened(service.url, viewport={"width": 360, "height": 640}) as page:
        order = []
        for _ in range(3):
            page.keyboard.press("Tab")
            order.append(
                page.evaluate("document.activeElement.id || document.activeElement.className")
            )
        assert order == ["skip", "file", "least"]
        with page.expect_file_chooser() as chooser:
            page.focus("#file")
            page.keyboard.press("Enter")
        chooser.value.set_files(photo)
        page.wait_for_selector("#result:not([hidden])")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_page_of_a_service_that_has_ended(trained: Path, photo: Path) -> None:
    with running(trained) as own:
        with pytest.raises(AssertionError), opened(own.url) as page:  # Chromium says so, too
            line = "interrupted; the requests at work were answered first\n"
            assert own.ended(signal.SIGINT) == (130, line)
            dropped(page, photo.read_bytes(), "a.jpg")
            page.wait_for_selector("#wrong:not([hidden])")
            said = page.inner_text("#wrong")
        assert said == "The service can't be reached."
