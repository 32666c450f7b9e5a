"""Results are kept as they come, nothing of others is overwritten, one bad image ends nothing."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from runs import CommandLine, printed_to
from sppdet.errors import ArtifactError, ConfigError, DataError, ImageError
from sppdet.folders.finder import Finder, Found
from sppdet.folders.folder import FolderResult, detect_folder
from sppdet.folders.formats import FORMATS, Format
from sppdet.folders.image_files import Finding, content_of
from sppdet.folders.journal import _HEADER, JOURNAL, Journal, _line
from sppdet.folders.outputs import _make
from sppdet.folders.planning import Item
from sppdet.io.images import read_image
from sppdet.io.names import unescape_name
from sppdet.io.videos import write_video
from sppdet.io.voc import read_voc_annotation
from sppdet.runs.artifacts import atomic_path
from sppdet.stages.detector import Detector
from sppdet.types import Detections

LEAST = -1.2  # a score that this little training reaches
OLD = [
    kind for kind in FORMATS if kind not in ("yolo", "crops")
]  # one drawing, one annotation an image


@pytest.fixture(scope="session")
def detector(trained: Path) -> Detector:
    return Detector.load(trained, device="cpu")


@pytest.fixture
def images(demo_root: Path, tmp_path: Path) -> Path:
    """A folder of three images."""
    return Path(shutil.copytree(demo_root / "fresh", tmp_path / "in"))


def detect(
    detector: Detector, paths: Sequence[Path], out: Path, *, formats: Sequence[Format] = FORMATS
) -> tuple[FolderResult, str]:
    """Detect; returns what came of it and what was said."""
    said = io.StringIO()
    with printed_to(said):
        result = detect_folder(detector, paths, out, min_score=LEAST, formats=formats, workers=2)
    return result, said.getvalue()


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file at any depth, hidden ones too."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """One number for each image that the detector works on."""
    genuine, made = Detector.detect_prepared, list[int]()

    def counted(self: Detector, *arguments: Any, **named: Any) -> Detections:
        made.append(1)
        return genuine(self, *arguments, **named)

    monkeypatch.setattr(Detector, "detect_prepared", counted)
    yield made


# -- nothing of others is overwritten ----------------------------------------------------------


def test_annotations_made_by_hand_stay(
    sppdet: CommandLine, trained: Path, demo_root: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(demo_root, tmp_path / "set"))
    before = files_in(root)
    status, out, err = sppdet(
        "detect", trained, root / "JPEGImages", "--out", root, "--save", "voc"
    )
    first = sorted(p.name for p in (root / "JPEGImages").iterdir())[0].replace("jpg", "xml")
    path = root / "Annotations" / first
    assert (status, out) == (1, "")
    assert err == (
        f"error: {path}: wasn't written by sppdet and isn't overwritten; expected another --out\n"
    )
    assert files_in(root) == before


@pytest.mark.parametrize(
    "file",
    [
        "detections.json",
        "detections.jsonl",
        "detections.csv",
        "coco_results.json",
        "yolo/data.yaml",
    ],
)
def test_joint_files_of_others_stay(
    detector: Detector, images: Path, tmp_path: Path, calls: list[int], file: str
) -> None:
    (tmp_path / "out" / file).parent.mkdir(parents=True)
    (tmp_path / "out" / file).write_text("mine")
    with pytest.raises(ConfigError, match=f"{file}: wasn't written by sppdet"):
        detect(detector, [images], tmp_path / "out")
    assert files_in(tmp_path / "out") == {file: b"mine"}
    assert not calls  # before anything was computed


def test_results_that_were_edited_stay(detector: Detector, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    detect(detector, [images], out)
    edited = next((out / "Annotations").iterdir())
    edited.write_text(edited.read_text().replace("<segmented>0<", "<segmented>1<"))
    before = files_in(out)
    with pytest.raises(ConfigError, match=f"{edited.name}: has changed since sppdet wrote it"):
        detect(detector, [images], out)
    assert files_in(out) == before
    detect(detector, [images], out, formats=["images", "json"])  # which leave it alone
    assert edited.read_bytes() == before[f"Annotations/{edited.name}"]


def test_a_link_in_the_place_of_a_result_stays(
    detector: Detector, images: Path, tmp_path: Path
) -> None:
    mine, out = tmp_path / "mine.json", tmp_path / "out"
    mine.write_text("mine")
    out.mkdir()
    (out / "detections.json").symlink_to(mine)
    with pytest.raises(ConfigError, match=r"detections\.json: wasn't written by sppdet"):
        detect(detector, [images], out)
    assert mine.read_text() == "mine"


def test_a_file_that_comes_meanwhile_stays(
    detector: Detector, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sorted(images.iterdir())[0].stem
    target = tmp_path / "out" / "Annotations" / f"{first}.xml"
    genuine = Detector.detect_prepared

    def slow(self: Detector, *arguments: Any, **named: Any) -> Detections:
        target.write_text("mine")
        return genuine(self, *arguments, **named)

    monkeypatch.setattr(Detector, "detect_prepared", slow)
    result, said = detect(detector, [images], tmp_path / "out", formats=["voc", "json"])
    assert target.read_text() == "mine"
    assert f"{target}: wasn't written by sppdet" in said and len(result.failed) == 1
    assert result.detected == 3  # what was found in it is kept


@pytest.mark.parametrize(
    ("searched", "out"),
    [
        ("in", "in"),
        ("in/images", "in"),  # images/*.jpg would be searched
        ("in/images/sub", "in"),
        ("in", "link"),  # to in/
        ("link", "in"),
        ("in", "sneaky"),  # whose `images` is a link to in/
        ("in", "in/images"),  # where images are that nobody has written
    ],
)
def test_a_searched_folder_gets_no_results(
    detector: Detector, images: Path, tmp_path: Path, searched: str, out: str
) -> None:
    (images / "images" / "sub").mkdir(parents=True)
    for name in ("images", "images/sub"):
        shutil.copy(next(images.glob("*.jpg")), images / name / "x.jpg")
    (tmp_path / "link").symlink_to(images)
    (tmp_path / "sneaky").mkdir()
    (tmp_path / "sneaky" / "images").symlink_to(images)
    before = files_in(tmp_path)
    with pytest.raises(ConfigError, match="is searched for images"):
        detect(detector, [tmp_path / searched], tmp_path / out)
    assert files_in(tmp_path) == before


def test_links_within_the_results_are_refused(
    detector: Detector, images: Path, tmp_path: Path
) -> None:
    (images / "sub").mkdir()
    next(images.glob("*.jpg")).rename(images / "sub" / "x.jpg")
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    (out / "images").mkdir(parents=True)
    (out / "images" / "sub").symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="images/sub: leads elsewhere by a link"):
        detect(detector, [images], out)
    assert not list(elsewhere.iterdir())


def test_an_image_is_not_drawn_over(detector: Detector, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    detect(detector, [images], out)
    drawn = next((out / "images").iterdir())
    before = drawn.read_bytes()  # sppdet's own, but an input now
    with pytest.raises(ConfigError, match=r"\.jpg is one of the images to detect in"):
        detect(detector, [drawn], out)
    assert drawn.read_bytes() == before
    detect(detector, [drawn], tmp_path / "other")  # named by itself it is an image as others


def test_earlier_results_are_left_out_of_the_search(
    detector: Detector, images: Path, tmp_path: Path
) -> None:
    out = images / "found"
    first, _ = detect(detector, [images], out, formats=OLD)
    written = files_in(out)
    again, said = detect(detector, [images], out, formats=OLD)
    assert first.images == again.images == 3
    assert "left out: 3 images that detect has written" in said
    assert files_in(out) == written
    other, _ = detect(detector, [images], tmp_path / "out")
    assert other.images == 3
    with pytest.raises(ImageError, match="no images besides 3 images that detect has written"):
        detect(detector, [out / "images"], tmp_path / "out")
    shutil.copy(next(images.glob("*.jpg")), out / "images" / "mine.jpg")
    assert detect(detector, [images], tmp_path / "out2")[0].images == 4
    with pytest.raises(ConfigError, match=r"is searched for images \(.*mine.jpg\)"):
        detect(detector, [images], out, formats=OLD)


@pytest.mark.parametrize("out", ["file", "file/below", "dangling"])
def test_no_folder_for_results(
    detector: Detector, images: Path, tmp_path: Path, calls: list[int], out: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"--out .*: .*(file|dangling) isn't a folder"):
        detect(detector, [images], tmp_path / out)
    assert not calls


def test_the_files_folder_is_a_file(
    detector: Detector, images: Path, tmp_path: Path, calls: list[int]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "images").write_text("mine")
    with pytest.raises(ConfigError, match="there is a file where a folder must be"):
        detect(detector, [images], tmp_path / "out")
    assert not calls and files_in(tmp_path / "out") == {"images": b"mine"}


def test_a_journal_of_something_else_stays(
    detector: Detector, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL).write_text("mine\n")
    with pytest.raises(ConfigError, match="no journal of this version"):
        detect(detector, [images], tmp_path / "out")
    assert files_in(tmp_path / "out") == {JOURNAL: b"mine\n"}


# -- what is done is kept ----------------------------------------------------------------------


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


# -- one bad image ends nothing ----------------------------------------------------------------


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are text here")
def test_names_of_any_bytes_and_length(detector: Detector, images: Path, tmp_path: Path) -> None:
    source = next(images.iterdir()).read_bytes()
    raw = [b"caf\xe9.jpg", b"=1+1.jpg", b"{xe9}.jpg", b"line\nbreak.jpg", b"n" * 232 + b".jpg"]
    raw += [b"\xe9" * 120 + b".jpg", b"deep\xff/x.jpg"]
    folder = tmp_path / "odd"
    for name in raw:
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source)
    out = tmp_path / "out"
    result, _ = detect(detector, [folder], out)
    assert result.failed == () and result.detected == len(raw)
    found = json.loads((out / "detections.json").read_text(encoding="utf-8"))
    names = [image["file_name"] for image in found["images"]]
    assert {os.fsencode(unescape_name(name)) for name in names} == set(raw)
    paths = [Path(unescape_name(image["path"])) for image in found["images"]]
    assert all(path.read_bytes() == source for path in paths)
    with (out / "detections.csv").open(encoding="utf-8", newline="") as handle:
        cells = [row["file_name"] for row in csv.DictReader(handle)]
    assert {cell.removeprefix("'") for cell in cells} == set(names)
    assert not any(cell.startswith("=") for cell in cells)
    drawn, annotations = files_in(out / "images"), files_in(out / "Annotations")
    assert len(drawn) == len(annotations) == len(raw)
    assert all(len(part.encode()) <= 255 for name in drawn for part in name.split("/"))
    files = {read_voc_annotation(out / "Annotations" / name).filename for name in annotations}
    assert files == {name.rpartition("/")[2] for name in names}


def test_images_that_fail_are_listed_and_the_rest_is_done(
    sppdet: CommandLine, trained: Path, images: Path, tmp_path: Path
) -> None:
    wide = images / "a wide one.png"
    Image.new("RGB", (70_000, 2), (9, 99, 200)).save(wide)  # no JPEG has so many
    (images / "b broken.jpg").write_bytes(b"\xff\xd8\xff")
    (images / "c gone.jpg").symlink_to(tmp_path / "nothing")
    out = tmp_path / "out"
    status, said, err = sppdet(
        *("detect", trained, images, "--out", out, "--save", ",".join(FORMATS)),
        *("--score", LEAST, "--device", "cpu"),
    )
    assert status == 1
    assert err == (
        f"error: 3 of 6 images failed; the first: {wide}: 70000x2 pixels can't be encoded as JPEG, "
        "expected 65500 a side at most\n"
    )
    assert said.count("failed: ") == 3 and "c gone.jpg: no such file" in said
    found = json.loads((out / "detections.json").read_text())
    assert len(found["images"]) == 4  # what was found in the wide one is there
    assert len(files_in(out / "images")) == 3 and len(files_in(out / "Annotations")) == 4


def test_an_image_that_is_deleted_meanwhile(
    detector: Detector, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = sorted(images.iterdir())[2]
    genuine = Detector.detect_prepared

    def deleting(self: Detector, *arguments: Any, **named: Any) -> Detections:
        last.unlink(missing_ok=True)
        return genuine(self, *arguments, **named)

    monkeypatch.setattr(Detector, "detect_prepared", deleting)
    monkeypatch.setattr(
        "sppdet.folders.finder.ordered_map", lambda f, items, workers: map(f, items)
    )
    result, _ = detect(detector, [images], tmp_path / "out")
    assert result.detected == 2 and result.failed == (f"{last}: no such file",)


def test_a_model_that_fails_on_one_image(
    detector: Detector, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, calls = Detector.detect_prepared, 0

    def failing(self: Detector, *arguments: Any, **named: Any) -> Detections:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError
        return genuine(self, *arguments, **named)

    monkeypatch.setattr(Detector, "detect_prepared", failing)
    result, _ = detect(detector, [images], tmp_path / "out")
    second = sorted(images.iterdir())[1]
    assert result.failed == (f"{second}: not enough memory",)
    assert result.detected == 2 and calls == 3


def test_a_full_disk_ends_the_work_and_loses_nothing(
    detector: Detector, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    calls: list[int],
) -> None:  # fmt: skip
    import contextlib
    import errno

    @contextlib.contextmanager
    def full(path: Path) -> Iterator[Path]:
        if len(list(path.parent.iterdir())) == 2:
            try:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                raise ArtifactError(f"{path}: can't be written: no space") from None
        with atomic_path(path) as temporary:
            yield temporary

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("sppdet.folders.outputs.atomic_path", full)
        with pytest.raises(ArtifactError, match="no space"):
            detect(detector, [images], out, formats=["images", "json"])
    assert len(calls) == 3
    detect(detector, [images], out, formats=["images", "json"])
    assert len(calls) == 4  # two were kept
    detect(detector, [images], tmp_path / "whole", formats=["images", "json"])
    assert files_in(out) == files_in(tmp_path / "whole")


def test_stems_that_clash(detector: Detector, images: Path, tmp_path: Path) -> None:
    source = next(images.iterdir()).read_bytes()
    folder, out = tmp_path / "clash", tmp_path / "out"
    for name in ("x.jpg", "x.png", "X.jpg", "y.png", "y.png.jpg/z.jpg", "y.png.xml/z.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(source)
    count = len(files_in(folder))
    result, _ = detect(detector, [folder], out)
    assert result.failed == () and result.detected == count
    for part in ("images", "Annotations"):
        written = files_in(out / part)
        assert len({name.casefold() for name in written}) == len(written) == count


@pytest.mark.parametrize("error", [MemoryError(), cv2.error("OpenCV: failed")])
def test_an_image_that_can_not_be_drawn_on(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("sppdet.folders.image_files.draw_detections", fail)
    nothing = Detections(
        np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), ("a",)
    )
    found = Finding("a.jpg", np.zeros((4, 6, 3), np.uint8), nothing)
    with pytest.raises(DataError, match="6x4 pixels can't be encoded as JPEG"):
        content_of("images", found, 0)


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="can't be written into: Not a directory"):
        _make(tmp_path / "file" / "out")
