"""`sppdet serve` in this process: its answers, its limits, and whom it refuses."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import tempfile
import threading
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from PIL import Image

from pages import HOSTILE
from runs import CommandLine
from sppdet.errors import ConfigError
from sppdet.service.answers import Answer, Answerer, Least
from sppdet.service.app import Service
from sppdet.service.limits import Held, Limits, Refused, parse_bytes
from sppdet.service.page import page
from sppdet.service.uploads import Gone
from sppdet.service.work import Workers
from sppdet.stages.detector import Detector
from sppdet.stages.thresholds import Threshold

LEAST = -1.04  # a score that this little training reaches some dozens of times
LIMITS = Limits(max_bytes=200_000, max_pixels=300_000, timeout=20, queue=1, workers=1)
JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="module")
def answerer(detector: Detector) -> Answerer:
    return Answerer.of(detector, LIMITS, Threshold("score", LEAST))


@pytest.fixture(scope="module")
def photo(demo_root: Path) -> Path:
    return min((demo_root / "fresh").iterdir())


class Client:
    """Sends requests to an application of a model, each with an event loop of its own."""

    def __init__(self, answerer: Answerer, **options: Any) -> None:
        self._answerer = answerer
        self._options = options

    def __call__(self, method: str, url: str, **request: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            service = Service("toys", self._answerer, **self._options)
            transport = httpx.ASGITransport(service.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as own:
                response: httpx.Response = await own.request(method, url, **request)
            service.workers.close()
            return response

        return asyncio.run(ask())


@pytest.fixture
def client(answerer: Answerer) -> Client:
    return Client(answerer)


def refusal(response: httpx.Response) -> tuple[int, str]:
    """The status and the one line of an answer without detections; all have the same form."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    (line,) = response.json().values()
    assert "\n" not in line and "/tmp" not in line and "Traceback" not in line
    return response.status_code, line


# -- answers ---------------------------------------------------------------------------------------


def test_an_answer_is_what_the_detector_finds(
    client: Client, detector: Detector, photo: Path
) -> None:
    found = detector(photo).above(LEAST)
    assert 2 < len(found) <= 100
    response = client("POST", "/detect", content=photo.read_bytes(), headers=JPEG)
    assert response.status_code == 200
    answer = response.json()
    Answer.model_validate(answer)  # what the schema of the API promises
    assert Image.open(photo).size == (answer["width"], answer["height"])
    assert answer["model"] == detector.made_by and answer["threshold"] == "scores >= -1.04"
    rows = answer["detections"]
    assert [list(row) for row in rows] == [["box", "class", "label", "score", "probability"]] * len(
        found
    )
    assert np.array_equal(np.array([row["box"] for row in rows], np.float32), found.boxes)
    assert np.array_equal(np.array([row["score"] for row in rows], np.float32), found.scores)
    assert found.probabilities is not None
    assert np.array_equal(
        np.array([row["probability"] for row in rows], np.float32), found.probabilities
    )
    assert [row["class"] for row in rows] == found.names()
    assert [row["label"] for row in rows] == found.labels.tolist()

    form = client("POST", "/detect", files={"file": ("a.jpg", photo.read_bytes(), "text/plain")})
    assert form.json()["detections"] == rows


def test_a_turned_image_is_detected_in_upright(
    client: Client, detector: Detector, photo: Path, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.jpg"
    Image.open(photo).save(turned, exif=exif)
    answer = client("POST", "/detect", content=turned.read_bytes(), headers=JPEG).json()
    width, height = Image.open(photo).size
    assert (answer["width"], answer["height"]) == (height, width)
    found = detector(turned).above(LEAST)
    assert [row["box"] for row in answer["detections"]] == found.boxes.tolist()


def test_what_the_query_wants(client: Client, detector: Detector, photo: Path) -> None:
    found = detector(photo)
    scores, probabilities = found.scores, found.probabilities
    assert probabilities is not None
    middle, likely = float(np.median(scores)), float(np.quantile(probabilities, 0.8))
    wanted = {
        f"score={middle}": scores >= middle,
        "score=-1000": scores > -np.inf,
        "score=-1000&max=2": np.arange(len(found)) < 2,
        f"min_probability={likely}": probabilities >= np.float32(likely) * (1 - 1e-6),
        "score=1000": scores > np.inf,
    }
    assert len({int(kept.sum()) for kept in wanted.values()}) == len(wanted)
    for query, kept in wanted.items():
        url = f"/detect?{query}" if "max" in query else f"/detect?{query}&max=10000"
        answer = client("POST", url, content=photo.read_bytes(), headers=JPEG).json()
        assert [row["box"] for row in answer["detections"]] == found.boxes[kept].tolist(), query


def test_a_drawn_answer(client: Client, photo: Path) -> None:
    ask = {"content": photo.read_bytes(), "headers": JPEG}
    drawn = client("POST", "/detect?draw=1", **ask)
    assert drawn.headers["content-type"] == "image/jpeg"
    image = Image.open(io.BytesIO(drawn.content))
    before = Image.open(photo).convert("RGB")
    assert image.format == "JPEG" and image.size == before.size
    (x1, y1, x2, y2) = client("POST", "/detect?max=1", **ask).json()["detections"][0]["box"]
    plain = client("POST", "/detect?draw=1&score=1000", **ask)
    changed = np.abs(
        np.asarray(image, np.int64) - np.asarray(Image.open(io.BytesIO(plain.content)), np.int64)
    ).sum(axis=2)
    rows = slice(max(0, round(y1)), round(y2))
    left = min(max(0, round(x1)), image.width - 1)
    assert changed[rows, left].mean() > 60 and x2 > x1


def test_the_service_describes_itself(
    client: Client, detector: Detector, trained: Path, photo: Path
) -> None:
    model = client("GET", "/model").json()
    assert model["classes"] == list(detector.class_names)
    assert model["settings"] == detector.signature and "scales:120+200" in model["settings"]
    assert model["weights"] == detector.maps.origin and model["name"] == "toys"
    assert model["limits"]["max_bytes"] == 200_000
    health = client("GET", "/health").json()
    assert health["ready"] and health["model"] == detector.made_by
    assert health["requests"] == {"answered": 0, "refused": 0, "failed": 0}
    assert client("HEAD", "/health").status_code == client("HEAD", "/").status_code == 200
    schema = client("GET", "/openapi.json").json()
    assert "image/*" in schema["paths"]["/detect"]["post"]["requestBody"]["content"]
    for path in ("/", "/model", "/health", "/openapi.json", "/docs", "/redoc"):
        text = client("GET", path).text
        assert str(trained) not in text and str(photo.parent) not in text
        assert "https://" not in text.replace("https://example.org", "")


def test_counts_of_requests(answerer: Answerer, photo: Path) -> None:
    async def ask() -> dict[str, Any]:
        service = Service("toys", answerer)
        transport = httpx.ASGITransport(service.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as own:
            await own.post("/detect", content=photo.read_bytes(), headers=JPEG)
            await own.get("/nope")
            await own.get("/health", headers={"Host": "evil.example"})
            found = (await own.get("/health")).json()
        service.workers.close()
        return dict(found)

    health = asyncio.run(ask())
    assert health["requests"] == {"answered": 1, "refused": 2, "failed": 0}
    assert (health["running"], health["waiting"]) == (0, 0)


# -- refusals --------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A PNG of white that says it is this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        )

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    pixels = zlib.compress(b"\xff" * 50_000, 9)
    magic = b"\x89PNG\r\n\x1a\n"
    return magic + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


BOUNDED = {"Content-Type": "multipart/form-data; boundary=b"}
REFUSALS: dict[str, tuple[dict[str, Any], int, str]] = {
    "text": (
        {"content": b"x", "headers": {"Content-Type": "text/html"}},
        415,
        "content type text/html: expected image/jpeg, image/png, ... or multipart/form-data with a "
        "field `file`",
    ),
    "no type": ({"content": b"x"}, 415, "content type missing: expected"),
    "control characters": (
        {"content": b"x", "headers": {"Content-Type": "a\x1b[31m"}},
        415,
        r"content type a\x1b[31m: expected",
    ),
    "gzip": (
        {"content": b"x", "headers": {**JPEG, "Content-Encoding": "gzip"}},
        415,
        "content encoding gzip: expected none",
    ),
    "nothing": ({"content": b"", "headers": JPEG}, 422, "the image has no bytes"),
    "no image": ({"content": b"GIF is no image", "headers": JPEG}, 422, "can't be decoded"),
    "cut off": ({"content": png(20, 20)[:40], "headers": JPEG}, 422, "can't be decoded"),
    "wrong inside": ({"content": png(400, 400), "headers": JPEG}, 422, "the image, PNG, can't be"),
    "bomb": (
        {"content": png(50_000, 50_000), "headers": JPEG},
        413,
        "the image has 50000x50000 pixels, expected 300000 at most",
    ),
    "large": ({"content": bytes(200_001), "headers": JPEG}, 413, "the body has more than 200000"),
    "no field": ({"files": {"image": b"x"}}, 422, "no field `file` with a file in the form"),
    "no file": ({"data": {"file": "x"}, "files": {"a": b"x"}}, 422, "no field `file` with a file"),
    "two files": (
        {"files": [("file", b"x"), ("file", b"y")]},
        400,
        "damaged multipart/form-data: Too many files",
    ),
    "no boundary": (
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "damaged multipart/form-data",
    ),
    "damaged form": (
        {"content": b"--b\r\nx\r\n\r\n", "headers": BOUNDED},
        400,
        "damaged multipart",
    ),
    "cut form": (
        {
            "content": b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx',
            "headers": BOUNDED,
        },
        422,
        "",
    ),
    "large form": ({"files": {"file": bytes(200_001)}}, 413, "the body has more than 200000"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_an_image_that_is_refused(client: Client, case: str) -> None:
    request, status, line = REFUSALS[case]
    found = refusal(client("POST", "/detect", **request))
    assert found[0] == status and line in found[1], found


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("score=a", "query, score: Input should be a valid number"),
        ("score=nan", "query, score: Input should be a finite number"),
        ("max=0", "query, max: Input should be greater than or equal to 1"),
        ("draw=perhaps", "query, draw: Input should be a valid boolean"),
        ("min_score=1", "query, min_score: unknown; expected some of score, min_probability, max"),
        ("score=1&min_probability=0.5", "expected one of score and min_probability"),
        ("min_probability=1", "query, min_probability: Input should be less than 1"),
    ],
)
def test_a_query_that_is_refused(client: Client, photo: Path, query: str, line: str) -> None:
    response = client("POST", f"/detect?{query}", content=photo.read_bytes(), headers=JPEG)
    found = refusal(response)
    assert found[0] == 422 and line in found[1]


def test_a_model_without_probabilities(detector: Detector, photo: Path) -> None:
    plain = replace(detector, calibration=None)
    answerer = Answerer(plain, LIMITS, Least(np.full(4, LEAST, np.float32), "scores"))
    client = Client(answerer)
    ask = {"content": photo.read_bytes(), "headers": JPEG}
    found = client("POST", "/detect", **ask).json()["detections"]
    assert len(found) > 2 and all(row["probability"] is None for row in found)
    response = client("POST", "/detect?min_probability=0.5", **ask)
    assert refusal(response) == (422, "min_probability: the model has no probabilities")
    assert 'data-measure="score"' in page("toys", answerer)
    with pytest.raises(ConfigError, match="no probabilities"):
        Answerer.of(plain, LIMITS, Threshold("probability", 0.5))


def test_other_routes_and_methods(client: Client) -> None:
    assert refusal(client("GET", "/nope")) == (404, "GET /nope: Not Found")
    got = client("GET", "/detect")
    assert refusal(got) == (405, "GET /detect: Method Not Allowed")
    assert got.headers["allow"] == "POST"
    assert refusal(client("DELETE", "/health"))[0] == 405
    assert refusal(client("GET", "/../../etc/passwd"))[0] == 404


def test_an_error_of_ours_tells_the_client_nothing(
    answerer: Answerer,
    photo: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken:
        calibration = None
        class_names = ("a",)
        made_by = "x"

        def __call__(self, *_: Any) -> Any:
            raise RuntimeError("/home/secret: no such thing")

    broken: Any = Broken()
    client = Client(replace(answerer, detector=broken))
    response = client("POST", "/detect", content=photo.read_bytes(), headers=JPEG)
    line = "the detection failed; the service's log says why"
    assert refusal(response) == (500, line)
    assert "detect: RuntimeError: /home/secret: no such thing" in caplog.text
    monkeypatch.setattr("sppdet.service.uploads.Upload._read", Broken.__call__)
    response = client("POST", "/detect", content=b"x", headers=JPEG)
    assert refusal(response) == (500, "the service failed; its log says why")


# -- who may ask -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:8000", 200), ("10.1.2.3:80", 200)),
        *(("LocalHost:8000", 200), ("mine.example:8000", 200), ("MINE.example", 200)),
        *(("evil.example", 421), ("evil.example:8000", 421), ("localhost.evil.example", 421)),
        *(("127.0.0.1.evil.example", 421), ("[::1", 421), ("a@localhost@b", 421)),
    ],
)
def test_names_of_the_service(answerer: Answerer, host: str, status: int) -> None:
    client = Client(answerer, hosts=["Mine.example"])
    assert client("GET", "/model", headers={"Host": host}).status_code == status
    assert Client(answerer, hosts=["*"])("GET", "/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        *(("http://127.0.0.1", 200), ("https://good.example", 200), ("HTTP://127.0.0.1", 200)),
        *(("http://127.0.0.1:8001", 403), ("https://evil.example", 403), ("null", 403)),
        *(("", 403), ("http://[", 403), ("https://good.example.evil.example", 403)),
    ],
)
def test_pages_of_other_sites(answerer: Answerer, photo: Path, origin: str, status: int) -> None:
    client = Client(answerer, origins=["https://good.example"])
    headers = {**JPEG, "Origin": origin}
    response = client("POST", "/detect?max=1", content=photo.read_bytes(), headers=headers)
    assert response.status_code == status
    allowed = response.headers.get("access-control-allow-origin")
    assert allowed == (origin if "good.example" in origin and status == 200 else None)
    everyone = Client(answerer, origins=["*"])
    assert everyone("GET", "/health", headers={"Origin": origin}).status_code == 200


def test_the_question_before_a_request_of_another_site(answerer: Answerer) -> None:
    headers = {
        "Origin": "https://good.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    asked = Client(answerer, origins=["https://good.example"])(
        "OPTIONS", "/detect", headers=headers
    )
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "https://good.example"
    assert "access-control-allow-credentials" not in asked.headers
    assert Client(answerer)("OPTIONS", "/detect", headers=headers).status_code == 403


# -- bodies and threads ----------------------------------------------------------------------------


def test_a_body_without_a_stated_size_is_cut_off(client: Client) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 50_000_000:
            sent += 50_000
            yield bytes(50_000)

    response = client("POST", "/detect", content=endless(), headers=JPEG)
    assert refusal(response)[0] == 413
    assert sent <= 300_000


def test_a_form_is_never_written_to_the_disk(
    answerer: Answerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rolled: list[Any] = []
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", rolled.append)
    client = Client(replace(answerer, limits=replace(LIMITS, max_bytes=4_000_000)))
    response = client("POST", "/detect", files={"file": bytes(3_000_000)})
    assert refusal(response) == (422, "the image can't be decoded") and not rolled


def test_a_slow_body(answerer: Answerer) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(5)
        yield b"y"

    hasty = Client(replace(answerer, limits=replace(LIMITS, timeout=0.2)))
    response = hasty("POST", "/detect", content=slow(), headers=JPEG)
    assert refusal(response) == (408, "the body didn't come within 0.2 s")
    assert response.headers["connection"] == "close"


def test_bytes_of_all_bodies() -> None:
    held = Held(100)
    held.add(60)
    with pytest.raises(Refused, match="too many requests"):
        held.add(41)
    held.add(40)
    held.remove(100)
    held.add(100)
    assert Limits(max_bytes=10, queue=3, workers=2).held_bytes == 50


async def _never() -> None:
    await asyncio.Event().wait()


def test_threads_are_bounded_and_the_queue_too() -> None:
    """Two run, one waits, one is sent away; then the one that waits runs."""

    async def main() -> None:
        workers = Workers(Limits(timeout=20, queue=1, workers=2))
        go, names = threading.Event(), set()

        def work() -> int:
            names.add(threading.current_thread().name)
            assert go.wait(20)
            return len(names)

        tasks = [asyncio.ensure_future(workers.run(work, _never())) for _ in range(3)]
        while workers.running < 2 or workers.waiting < 1:
            await asyncio.sleep(0.01)
        with pytest.raises(Refused) as refused:
            await workers.run(work, _never())
        assert refused.value.status == 503 and int(refused.value.headers["Retry-After"]) >= 1
        assert len(names) == 2  # the third waits
        go.set()
        await asyncio.gather(*tasks)
        assert (workers.running, workers.waiting, len(names)) == (0, 0, 2)
        assert await workers.run(lambda: 5, _never()) == 5
        workers.close()

    asyncio.run(main())


def test_a_detection_that_takes_too_long_keeps_its_thread() -> None:
    async def main() -> None:
        workers = Workers(Limits(timeout=0.2, queue=1, workers=1))
        go = threading.Event()
        with pytest.raises(Refused, match=r"takes longer than 0.2 s") as refused:
            await workers.run(lambda: go.wait(20), _never())
        assert refused.value.status == 504 and workers.running == 1
        with pytest.raises(Refused, match="too many") as refused:  # no thread was free in time
            await workers.run(lambda: go.wait(20), _never())
        assert refused.value.status == 503 and (workers.running, workers.waiting) == (1, 0)
        go.set()
        while workers.running:
            await asyncio.sleep(0.01)
        assert await workers.run(lambda: 1, _never()) == 1
        workers.close()

    asyncio.run(main())


def test_nothing_runs_for_a_client_that_has_gone() -> None:
    async def main() -> None:
        workers = Workers(Limits(timeout=20, queue=2, workers=1))
        go, ran = threading.Event(), []
        first = asyncio.ensure_future(workers.run(lambda: go.wait(20), _never()))
        leaves = asyncio.Event()
        second = asyncio.ensure_future(workers.run(lambda: ran.append(2), leaves.wait()))
        third = asyncio.ensure_future(workers.run(lambda: ran.append(3), _never()))
        while workers.waiting < 2:
            await asyncio.sleep(0.01)
        leaves.set()
        with pytest.raises(Gone):
            await second
        assert (workers.running, workers.waiting) == (1, 1)
        go.set()
        await asyncio.gather(first, third)
        assert ran == [3]
        workers.close()

    asyncio.run(main())


def test_an_error_in_a_thread_is_raised_and_frees_it() -> None:
    async def main() -> None:
        workers = Workers(Limits(timeout=20, workers=1))
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await workers.run(lambda: 1 // 0, _never())
        assert workers.running == 0
        workers.close()

    asyncio.run(main())


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [("500", 500), ("20MB", 20_000_000), (" 1.5 mib", 1_572_864), ("2kB", 2000), ("1 GB", 10**9)],
)
def test_numbers_of_bytes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "MB", "-5", "5 apples", "0", "0.1", "1e9", "inf"])
def test_what_is_no_number_of_bytes(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--max-bytes .*: expected"):
        parse_bytes(text)


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/", "https://", "null", ""])
def test_what_is_no_origin(origin: str, sppdet: CommandLine, tmp_path: Path) -> None:
    status, _, err = sppdet("serve", tmp_path / "none", "--allow-origin", origin)
    assert status == 1 and err.startswith(f"error: --allow-origin {origin}: expected scheme and ")


def test_the_command_refuses(
    sppdet: CommandLine, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sppdet("serve", trained, "--max-bytes", "much")[::2] == (
        1,
        "error: --max-bytes much: expected a number of bytes, such as 20MB\n",
    )
    status, _, said = sppdet("serve", trained, "--host", "256.1.1.1", "--port", "0")
    assert status == 1 and said.startswith("error: --host 256.1.1.1 --port 0: ")
    status, _, said = sppdet("serve", tmp_path, "--port", "0")
    assert status == 1 and said.startswith("error: ") and said.count("\n") == 1
    status, _, said = sppdet("serve", trained, "--score", "1", "--recall", ".5", "--port", "0")
    assert status == 1 and "expected one of --score" in said
    real = importlib.util.find_spec
    gone = {"fastapi", "python_multipart"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in gone else real(name)
    )
    assert sppdet("serve", trained)[::2] == (
        1,
        "error: serve: needs fastapi, python-multipart: pip install 'sppdet[serve]'\n",
    )


def test_hostile_names_on_the_page(answerer: Answerer) -> None:
    hostile = replace(answerer, detector=replace(answerer.detector, class_names=(HOSTILE,) * 4))
    text = page(HOSTILE, hostile)
    assert HOSTILE not in text and text.count("&lt;script&gt;") >= 5
    assert text.count("<script>") == 1
