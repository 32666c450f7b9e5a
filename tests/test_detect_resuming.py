"""Detection in folders keeps what is done: further calls, killed ones, damaged journals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from folder_runs import LEAST, OLD, detect
from runs import files_in
from sppdet.folders.finder import Finder, Found
from sppdet.folders.formats import FORMATS
from sppdet.folders.journal import _HEADER, Journal, _line
from sppdet.folders.planning import Item
from sppdet.io.finding import JOURNAL
from sppdet.io.images import read_image
from sppdet.io.videos import write_video
from sppdet.stages.detector import Detector
from sppdet.types import Detections


def test_a_second_call_does_nothing_anew(
    detector: Detector, images: Path, tmp_path: Path, calls: list[int]
) -> None:
    out = tmp_path / "out"
    first, _ = detect(detector, [images], out)
    written = files_in(out)
    assert len(calls) == 3
    again, said = detect(detector, [images], out)
    assert len(calls) == 3 and "3 of 3 images were done already" in said
    assert again == first and first.detections > 0
    assert files_in(out) == written


def test_what_has_changed_is_done_again(
    detector: Detector, images: Path, tmp_path: Path, calls: list[int]
) -> None:
    out, names = tmp_path / "out", sorted(p.name for p in images.iterdir())
    detect(detector, [images], out)
    calls.clear()
    shutil.copy(images / names[0], images / names[1])  # another content
    (out / "images" / names[2]).unlink()
    detect(detector, [images], out)
    assert len(calls) == 2
    detect(detector, [images], tmp_path / "fresh")
    assert files_in(out) == files_in(tmp_path / "fresh")
    calls.clear()
    settings = detector.config.model_copy(update={"nms": 0.5})
    other = Detector(**{**vars(detector), "config": settings, "made_by": "another"})
    detect(other, [images], out)
    assert len(calls) == 3
    detect(detector, [images], out, formats=["json"])
    assert len(calls) == 6


def test_an_unknown_model_keeps_nothing(
    detector: Detector, images: Path, tmp_path: Path, calls: list[int]
) -> None:
    nameless = Detector(**{**vars(detector), "made_by": ""})
    for _ in range(2):
        detect(nameless, [images], tmp_path / "out")
    assert len(calls) == 6


def test_results_so_far_are_kept_when_the_work_ends_early(
    detector: Detector, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, calls = Detector.detect_prepared, 0

    def interrupted(self: Detector, *arguments: Any, **named: Any) -> Detections:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return genuine(self, *arguments, **named)

    monkeypatch.setattr(Detector, "detect_prepared", interrupted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        detect(detector, [images], out, formats=OLD)
    assert len(list((out / "images").iterdir())) == 2
    assert len((out / JOURNAL).read_text().splitlines()) == 1 + 2 * 3
    assert not (out / "detections.json").exists()
    detect(detector, [images], out, formats=OLD)
    assert calls == 4
    detect(detector, [images], tmp_path / "whole", formats=OLD)
    assert files_in(out) == files_in(tmp_path / "whole")


# Children of one process, which has imported everything: each is killed at its own moment.
KILLED = """
import json, os, signal, sys
from pathlib import Path
import sppdet.classification.stage, sppdet.folders.folder
from sppdet.folders import journal
from sppdet.folders import outputs
from sppdet.cli.main import main
from contextlib import contextmanager, suppress
from sppdet.io.videos import write_video
from sppdet.runs.artifacts import atomic_path as genuine
from sppdet.folders.journal import Journal

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def kill_at(pattern, nth, moment):
    seen = 0

    @contextmanager
    def atomic_path(path):
        nonlocal seen
        with genuine(path) as temporary:
            yield temporary
            seen += path.match(pattern)
            if moment == "before" and seen == nth and path.match(pattern):
                die()
        if moment == "after" and seen == nth and path.match(pattern):
            die()

    outputs.atomic_path = journal.atomic_path = atomic_path
    if pattern == "line":
        append = Journal._append

        def torn(self, record):
            nonlocal seen
            seen += 1
            if seen == nth:
                line = journal._line(journal._HEADER if nth == 1 else record)
                with self.path.open("ab") as handle:
                    handle.write(line[: len(line) // 2])
                die()
            return append(self, record)

        Journal._append = torn

command, out, whole, kills = sys.argv[1:-3], *sys.argv[-3:-1], json.loads(sys.argv[-1])
sys.argv[1:] = [*command, "--out", whole]  # undisturbed; the children find everything loaded
with suppress(SystemExit):
    main()
statuses = []
for kill in [*kills, None]:
    child = os.fork()
    if child == 0:
        if kill:
            kill_at(*kill)
        sys.argv[1:] = [*command, "--out", out]
        with suppress(SystemExit):
            main()
        os._exit(0)
    statuses.append(os.waitpid(child, 0)[1])
print(statuses)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_calls_that_are_killed_come_to_the_same_end(
    trained: Path, images: Path, tmp_path: Path
) -> None:
    frames = [read_image(path)[:100, :140] for path in sorted(images.iterdir())]
    write_video(tmp_path / "clip", frames, fps=3)
    clip = (tmp_path / "clip").rename(tmp_path / "clip.mp4")
    kills = [
        ("line", 1, ""),
        ("clip.mp4/000001.xml", 1, "after"),
        ("images/*", 1, "before"),
        ("images/*", 1, "after"),
        ("Annotations/*", 2, "after"),
        ("crops/*/*", 2, "before"),
        ("yolo/labels/*", 2, "after"),
        ("crops/*/*", 4, "after"),
        ("line", 4, ""),
        ("images/clip.mp4", 1, "before"),
        ("images/clip.mp4", 1, "after"),
        ("detections.json", 1, "before"),
        ("coco_results.json", 1, "after"),
        (JOURNAL, 1, "before"),
        (JOURNAL, 1, "after"),
    ]
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [
        "--threads",
        "1",
        "detect",
        trained,
        images,
        clip,
        "--score",
        LEAST,
        "--device",
        "cpu",
    ]
    command += ["--save", ",".join(FORMATS), "--workers", "1", out, whole]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, command), json.dumps(kills)],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert ended.stderr == ""
    statuses = json.loads(ended.stdout.splitlines()[-1])
    assert statuses == [int(signal.SIGKILL)] * len(kills) + [0]
    assert files_in(out) == files_in(whole)


def test_damaged_lines_are_done_again(
    detector: Detector, images: Path, tmp_path: Path, calls: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    detect(detector, [images], out, formats=["json"])
    written, calls[:] = files_in(out), []
    lines = (out / JOURNAL).read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"scores": [', b'"scores": [9.5, ')  # would be believed otherwise
    (out / JOURNAL).write_bytes(b"".join(lines) + lines[1][:50])
    detect(detector, [images], out, formats=["json"])
    assert len(calls) == 1 and "1 damaged lines" in caplog.text
    assert files_in(out) == written


def _not_as_written() -> list[dict[str, Any]]:
    entry: dict[str, Any] = {
        "image": "a.jpg", "made_by": "m", "width": 9, "height": 9, "files": {},
        "boxes": [[0, 0, 1, 1]], "scores": [0.5], "labels": [1],
    }  # fmt: skip
    wrong: dict[str, list[Any]] = {
        "image": [1, ["a"]],
        "made_by": [None],
        "width": [0],
        "height": ["9"],
        "files": [1, [1], {"a": 1}],
        "boxes": [1, [], [[1]], [1], [[0, 0, 1, "1"]]],
        "scores": ["1", [None], [True], [1, 2]],
        "labels": [[0], [1.0], {"a": 1}],
    }
    changes = [{key: value} for key, values in wrong.items() for value in values]
    missing = [{k: v for k, v in entry.items() if k != key} for key in entry if key != "image"]
    return [entry | change for change in changes] + missing + [{"file": 1, "digest": "d"}]


@pytest.mark.parametrize("record", _not_as_written(), ids=repr)
def test_lines_that_nothing_writes_are_damaged(
    record: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A checksum that holds doesn't say that the content makes sense."""
    (tmp_path / JOURNAL).write_bytes(_line(_HEADER) + _line(record))
    journal = Journal(tmp_path)
    assert journal.entry("a.jpg") is None and not journal.claims
    assert "1 damaged lines" in caplog.text
    journal.compact([])
    assert (tmp_path / JOURNAL).read_bytes() == _line(_HEADER)


def test_detections_come_back_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((50, 2, 2)).astype(np.float32) * 999, axis=1)
    boxes = corners.reshape(50, 4)
    found = Detections(
        boxes, rng.normal(size=50).astype(np.float32), rng.integers(1, 3, 50), ("a", "b")
    )
    journal = Journal(tmp_path)
    for name in ("one", "two"):
        journal.add(name, found, width=999, height=998, made_by="m", files={"f": "0"})
    journal.close()
    again = Journal(tmp_path)
    for result in again.results(["two", "one"]):
        assert np.array_equal(np.array(result.boxes, dtype=np.float32), found.boxes)
        assert np.array_equal(np.array(result.scores, dtype=np.float32), found.scores)
        assert result.labels == found.labels.tolist()
        assert (result.width, result.height) == (999, 998)
    entry = again.entry("one")
    assert entry is not None and (entry.made_by, len(entry.labels)) == ("m", 50)
    assert again.claims == {"f": {"0"}}


def test_memory_does_not_grow_with_the_images(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Detections kept in memory would take some 30 KB an image here."""
    for number in range(60):
        (tmp_path / f"{number}.png").touch()
    boxes = np.tile(np.array([[0, 0, 4, 4]], dtype=np.float32), (100, 1))
    scores, labels = np.linspace(2, 1, 100, dtype=np.float32), np.ones(100, np.int64)
    found = Detections(boxes, scores, labels, detector.class_names)

    def detected(finder: Finder, _: int) -> Iterator[tuple[Item, Found]]:
        image = np.zeros((8, 8, 3), np.uint8)
        return ((item, Found("", image, found)) for item in finder.plan.stills)

    monkeypatch.setattr(Finder, "outcomes", detected)
    peaks = []
    for count in (10, 60):
        paths = [tmp_path / f"{number}.png" for number in range(count)]
        tracemalloc.start()
        detect(detector, paths, tmp_path / f"out{count}", formats=["json", "csv", "coco"])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(json.loads((tmp_path / "out60" / "detections.json").read_text())["images"]) == 60
    assert (peaks[1] - peaks[0]) / 50 < 4_000  # bytes an image
