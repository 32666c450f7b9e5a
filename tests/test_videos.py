"""Videos and cameras: frames and times as ffprobe has them, damaged files, annotated video, resuming."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from folder_runs import LEAST
from runs import CommandLine, files_in, printed_to
from sppdet.errors import ConfigError, DataError, ImageError
from sppdet.folders.folder import FolderResult, detect_folder
from sppdet.folders.formats import Format
from sppdet.folders.inputs import plan_images
from sppdet.io import videos
from sppdet.io.finding import JOURNAL
from sppdet.io.images import read_image
from sppdet.io.videos import Frame, open_video, write_video
from sppdet.runs.progress import Counter
from sppdet.stages.detector import Detector
from sppdet.types import Detections, ImageArray

MAX_PIXELS = 10**7
FORMATS: tuple[Format, ...] = ("images", "json", "csv", "voc")
needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="there is no ffmpeg here"
)


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True, timeout=60)


def ffprobe(path: Path) -> tuple[dict[str, Any], list[float]]:
    """The stream of a video, and the times of its frames."""
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_streams", "-show_frames", str(path)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    times = [float(frame["pts_time"]) for frame in found["frames"]]
    stream: dict[str, Any] = found["streams"][0]
    return stream, times


def greys(count: int, *, width: int = 64, height: int = 48) -> Iterator[ImageArray]:
    """Frames that tell their number by their brightness."""
    for number in range(count):
        yield np.full((height, width, 3), 20 + 5 * number, np.uint8)


def numbers(frames: Sequence[Frame]) -> list[int]:
    # OpenCV's encoding loses some 3 of 255
    return [round((float(frame.pixels.mean()) - 17.5) / 5) for frame in frames]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A video of 40 frames, 10 a second."""
    write_video(tmp_path / "clip", greys(40), fps=10)
    return (tmp_path / "clip").rename(tmp_path / "clip.mp4")


def read(path: Path, *, every: int = 1, most: int | None = None) -> list[Frame]:
    return list(open_video(path, max_pixels=MAX_PIXELS).frames(every=every, most=most))


# -- frames ----------------------------------------------------------------------------------------


def test_frames_in_order_with_their_times(clip: Path) -> None:
    frames = read(clip)
    assert [frame.number for frame in frames] == numbers(frames) == list(range(40))
    assert [frame.seconds for frame in frames] == pytest.approx([n / 10 for n in range(40)])
    assert frames[3].pixels.shape == (48, 64, 3) and frames[3].pixels.dtype == np.uint8
    some = read(clip, every=7, most=4)
    assert [frame.number for frame in some] == numbers(some) == [0, 7, 14, 21]


def test_colours_are_rgb(tmp_path: Path) -> None:
    red = np.full((48, 64, 3), (230, 20, 40), np.uint8)
    write_video(tmp_path / "red", [red] * 3, fps=5)
    (tmp_path / "red").rename(tmp_path / "red.mp4")
    assert np.abs(read(tmp_path / "red.mp4")[0].pixels.astype(int) - red).max() < 12


@needs_ffmpeg
@pytest.mark.parametrize("suffix", [".mov", ".mkv", ".avi", ".webm", ".m4v"])
def test_every_container(clip: Path, suffix: str) -> None:
    path = clip.with_suffix(suffix)
    ffmpeg("-i", clip, path)
    frames = read(path)
    assert numbers(frames) == list(range(40))
    times = ffprobe(path)[1]
    assert [frame.seconds for frame in frames] == pytest.approx(times, abs=0.002)


@needs_ffmpeg
def test_times_of_a_variable_rate_are_those_of_the_file(clip: Path) -> None:
    path = clip.with_name("variable.mkv")
    ffmpeg("-i", clip, "-vf", "setpts=N*N/100/TB", "-fps_mode", "vfr", path)
    frames, times = read(path), ffprobe(path)[1]
    assert len(times) >= 35 and np.diff(times).max() > 5 * np.diff(times)[5]
    assert [frame.seconds for frame in frames] == pytest.approx(times, abs=0.002)


@needs_ffmpeg
def test_a_phones_turned_video_is_upright(clip: Path) -> None:
    path = clip.with_name("turned.mp4")
    try:
        ffmpeg("-display_rotation", "90", "-i", clip, "-c", "copy", path)
    except subprocess.CalledProcessError:  # before FFmpeg 6
        ffmpeg("-i", clip, "-c", "copy", "-metadata:s:v", "rotate=90", path)
    assert read(path)[0].pixels.shape == (64, 48, 3)


# -- damaged ---------------------------------------------------------------------------------------


@needs_ffmpeg
@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".webm"])
def test_a_video_that_is_cut_short_gives_what_it_has(clip: Path, suffix: str) -> None:
    path = clip.with_suffix(suffix)
    ffmpeg("-i", clip, path)
    path.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    frames = list[Frame]()
    with pytest.raises(ImageError) as caught:
        frames.extend(open_video(path, max_pixels=MAX_PIXELS).frames())
    # not the very last ones, which a decoder may have mended
    assert 1 < len(frames) < 38 and numbers(frames)[:-2] == list(range(len(frames) - 2))
    end = f"ends after {len(frames)} of 40 frames: damaged or cut short"
    assert str(caught.value) == f"{path}: {end}"


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense" * 100, b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"ffconcat version 1.0\n",
     b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 500, b"\x1aE\xdf\xa3" + b"\xff" * 300],
)  # fmt: skip
def test_what_is_no_video(
    tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        open_video(path, max_pixels=MAX_PIXELS)
    assert str(caught.value) == f"{path}: can't be opened as a video (mp4, mov, avi, mkv, webm)"


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv"])
def test_a_list_of_other_files_is_no_video(clip: Path, name: str) -> None:
    """FFmpeg itself opens it, whatever its suffix, and then the files that it names."""
    path = clip.with_name(name)
    path.write_text(f"ffconcat version 1.0\nfile {clip.name}\n")
    assert cv2.VideoCapture(str(path), cv2.CAP_FFMPEG).grab()
    with pytest.raises(ImageError, match="can't be opened as a video"):
        open_video(path, max_pixels=MAX_PIXELS)


def test_a_video_that_isnt_there_or_has_huge_frames(clip: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.mp4: no such file"):
        open_video(clip.with_name("gone.mp4"), max_pixels=MAX_PIXELS)
    with pytest.raises(ImageError, match="64x48 pixels, expected 3000 at most"):
        open_video(clip, max_pixels=3000)


# -- writing ---------------------------------------------------------------------------------------


@needs_ffmpeg
def test_a_written_video_as_ffprobe_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_video(path, greys(12, width=63, height=47), fps=12.5)  # odd sides lose a row and a column
    stream, times = ffprobe(path)
    assert (stream["width"], stream["height"], int(stream["nb_frames"])) == (62, 46, 12)
    assert stream["codec_name"] in ("h264", "mpeg4") and stream["r_frame_rate"] == "25/2"
    assert times == pytest.approx([n / 12.5 for n in range(12)])
    assert list(tmp_path.iterdir()) == [path]


def test_videos_that_cant_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a video without frames"):
        write_video(tmp_path / "none", [], fps=10)
    with pytest.raises(DataError, match="a video of 1x1 pixels can't be encoded"):
        write_video(tmp_path / "small", [np.zeros((1, 1, 3), np.uint8)], fps=10)
    assert list(tmp_path.iterdir()) == []


# -- detection -------------------------------------------------------------------------------------


def small(image: ImageArray, width: int, height: int) -> ImageArray:
    return np.asarray(cv2.resize(image, (width, height)), dtype=np.uint8)


@pytest.fixture
def film(demo_root: Path, tmp_path: Path) -> Path:
    """Six frames with shapes, two a second."""
    shown = [read_image(p) for p in sorted((demo_root / "JPEGImages").iterdir())[:3]]
    frames = [small(image, 280, 200) for image in shown for _ in range(2)]
    write_video(tmp_path / "film", frames, fps=2)
    return (tmp_path / "film").rename(tmp_path / "film.mp4")


def detect(
    detector: Detector, words: Sequence[str | Path], out: Path, **options: Any
) -> FolderResult:
    plan = plan_images(words, **options)
    return detect_folder(detector, plan, out, min_score=LEAST, formats=FORMATS, workers=2)


def test_frames_are_images_with_times(
    detector: Detector, film: Path, tmp_path: Path, calls: list[int]
) -> None:
    out = tmp_path / "out"
    result = detect(detector, [film], out, every=2)
    assert (result.images, result.detected, result.failed, len(calls)) == (3, 3, (), 3)
    found = json.loads((out / "detections.json").read_text())
    names = [f"film.mp4#{n:06d}" for n in (0, 2, 4)]
    assert [image["file_name"] for image in found["images"]] == names
    assert [image["seconds"] for image in found["images"]] == [0, 1, 2]
    assert {image["path"] for image in found["images"]} == {film.as_posix()}
    for image, frame in zip(found["images"], read(film, every=2), strict=True):
        expected = detector(frame.pixels).above(LEAST)
        rows = [row for row in found["annotations"] if row["image_id"] == image["id"]]
        assert len(rows) == len(expected) > 0
        assert [row["score"] for row in rows] == pytest.approx(expected.scores.tolist(), abs=1e-5)
    lines = list(csv.DictReader((out / "detections.csv").open(encoding="utf-8")))
    assert {(line["file_name"], line["seconds"]) for line in lines} == {
        (name, f"{second}.000") for name, second in zip(names, range(3), strict=True)
    }
    drawn = read(out / "images" / "film.mp4")
    assert len(drawn) == 3 and [frame.seconds for frame in drawn] == pytest.approx([0, 1, 2])
    for new, old in zip(drawn, read(film, every=2), strict=True):
        assert (np.abs(new.pixels.astype(int) - old.pixels) > 60).any()
    written = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    files = {JOURNAL, "detections.json", "detections.csv", "images/film.mp4"}
    assert written == files | {f"Annotations/film.mp4/{n:06d}.xml" for n in (0, 2, 4)}


def test_a_video_is_done_once(
    detector: Detector,
    film: Path,
    tmp_path: Path,
    calls: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    detect(detector, [film], out)
    before, stamp = files_in(out), (out / "images" / "film.mp4").stat().st_mtime_ns
    assert len(calls) == 6
    detect(detector, [film], out)
    assert len(calls) == 6 and files_in(out) == before
    assert (out / "images" / "film.mp4").stat().st_mtime_ns == stamp  # not drawn again
    (out / "images" / "film.mp4").unlink()
    detect(detector, [film], out)
    assert len(calls) == 6 and files_in(out) == before
    other = Detector(**{**vars(detector), "made_by": "another"})
    detect(other, [film], out)
    assert len(calls) == 12
    assert (out / "images" / "film.mp4").stat().st_mtime_ns != stamp
    detect(detector, [film], out, every=2)  # frames are known by their content
    assert len(read(out / "images" / "film.mp4")) == 3


def test_an_interrupted_video_goes_on(
    detector: Detector, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, calls = Detector.detect_prepared, 0

    def interrupted(self: Detector, *arguments: Any, **named: Any) -> Detections:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return genuine(self, *arguments, **named)

    monkeypatch.setattr(Detector, "detect_prepared", interrupted)
    with pytest.raises(KeyboardInterrupt):
        detect(detector, [film], tmp_path / "out")
    assert not (tmp_path / "out" / "images" / "film.mp4").exists()
    detect(detector, [film], tmp_path / "out")
    assert calls == 7  # three of six were done
    detect(detector, [film], tmp_path / "whole")
    assert files_in(tmp_path / "out") == files_in(tmp_path / "whole")


def test_a_video_that_is_drawn_of_older_results_is_drawn_again(
    detector: Detector, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the new results of the frames and the video of them."""
    out = tmp_path / "out"
    older = Detector(**{**vars(detector), "made_by": "older"})
    plan = plan_images([film])
    detect_folder(older, plan, out, min_score=5.0, formats=FORMATS, workers=1)
    before = (out / "images" / "film.mp4").read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sppdet.folders.folder.write_film", killed)
        detect(detector, [film], out)
    assert (out / "images" / "film.mp4").read_bytes() == before
    detect(detector, [film], out)
    assert (out / "images" / "film.mp4").read_bytes() != before


def test_a_video_of_someone_else_stays(
    detector: Detector, film: Path, tmp_path: Path, calls: list[int]
) -> None:
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "film.mp4").write_text("mine")
    with pytest.raises(ConfigError, match=r"film\.mp4: wasn't written by sppdet"):
        detect(detector, [film], tmp_path / "out")
    assert not calls
    (tmp_path / "out2" / "Annotations" / "film.mp4").mkdir(parents=True)
    mine = tmp_path / "out2" / "Annotations" / "film.mp4" / "000003.xml"
    mine.write_text("mine")
    result = detect(detector, [film], tmp_path / "out2")
    assert mine.read_text() == "mine" and len(result.failed) == 1
    assert "000003.xml: wasn't written by sppdet" in result.failed[0] and result.detected == 6


@needs_ffmpeg
def test_bad_inputs_are_listed_and_end_nothing(
    sppdet: CommandLine, trained: Path, film: Path, demo_root: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.avi"
    ffmpeg("-i", film, "-r", "20", cut)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (tmp_path / "none.webm").write_bytes(b"nonsense")
    image = sorted((demo_root / "fresh").iterdir())[0]
    (tmp_path / "list.txt").write_text(f"gone.jpg\n{image}\nhttp://127.0.0.1:1/x.jpg\n")
    status, said, err = sppdet(
        *("detect", trained, cut, tmp_path / "none.webm", f"@{tmp_path / 'list.txt'}"),
        *("--out", tmp_path / "out", "--score", LEAST, "--device", "cpu", "--every", "2"),
        *("--save", ",".join(FORMATS)),
    )
    failed = [line for line in said.splitlines() if line.startswith("failed: ")]
    assert status == 1 and len(failed) == 4 and err.count("\n") == 1
    assert sum("cut.avi: ends after" in line for line in failed) == 1
    assert sum("none.webm: can't be opened as a video" in line for line in failed) == 1
    assert sum("gone.jpg: no such file" in line for line in failed) == 1
    assert sum("http://127.0.0.1:1/x.jpg: can't be fetched" in line for line in failed) == 1
    found = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    frames = [one for one in found if one["file_name"].startswith("cut.avi#")]
    assert len(frames) >= 2 and len(found) == len(frames) + 1
    assert len(read(tmp_path / "out" / "images" / "cut.avi.mp4")) == len(frames)


# -- cameras ---------------------------------------------------------------------------------------


class Camera:
    """A stand-in for OpenCV's capture of a camera; `ends` makes it fail after so many frames."""

    def __init__(self, frames: Sequence[ImageArray], *, ends: int | None = None) -> None:
        self.frames, self.ends, self.taken, self.released = frames, ends, 0, False
        self.interrupt_at: int | None = None

    def get(self, _: int) -> float:
        return 0.0

    def grab(self) -> bool:
        if self.taken == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        self.taken += 1
        return self.ends is None or self.taken <= self.ends

    def retrieve(self) -> tuple[bool, ImageArray]:
        return True, self.frames[self.taken % len(self.frames)][:, :, ::-1]

    def release(self) -> None:
        self.released = True


@pytest.fixture
def camera(demo_root: Path, monkeypatch: pytest.MonkeyPatch) -> Camera:
    shown = sorted((demo_root / "fresh").iterdir())
    made = Camera([small(read_image(path), 140, 100) for path in shown])
    monkeypatch.setattr(videos, "_opened", lambda source, backend: made if source == 0 else None)
    return made


def of_camera(
    sppdet: CommandLine, trained: Path, out: Path, *more: str
) -> tuple[int, str, list[dict[str, Any]]]:
    status, said, err = sppdet(
        *("detect", trained, "camera:0", "--out", out, "--score", LEAST, "--device", "cpu", *more)
    )
    images: list[dict[str, Any]] = json.loads((out / "detections.json").read_text())["images"]
    return status, said + err, images


def test_a_camera_for_some_frames(
    sppdet: CommandLine, trained: Path, tmp_path: Path, camera: Camera
) -> None:
    status, said, images = of_camera(
        sppdet, trained, tmp_path / "out", "--frames", "3", "--every", "2"
    )
    assert status == 0 and "in 3 images" in said and camera.released
    assert [one["file_name"][-7:] for one in images] == ["#000000", "#000002", "#000004"]
    assert images[0]["path"] == "camera:0" and images[0]["seconds"] < images[2]["seconds"]
    drawn = sorted((tmp_path / "out" / "images").rglob("*.jpg"))
    assert [path.name for path in drawn] == ["000000.jpg", "000002.jpg", "000004.jpg"]


def test_ctrl_c_ends_a_camera_and_keeps_all(
    sppdet: CommandLine, trained: Path, tmp_path: Path, camera: Camera
) -> None:
    camera.interrupt_at = 4
    before = signal.getsignal(signal.SIGINT)
    status, said, images = of_camera(sppdet, trained, tmp_path / "out")
    assert status == 0 and camera.released and "interrupted" not in said
    assert len(images) == 5  # the one that was being taken as well
    assert signal.getsignal(signal.SIGINT) is before


def test_a_camera_that_is_unplugged(
    sppdet: CommandLine, trained: Path, tmp_path: Path, camera: Camera
) -> None:
    camera.ends = 2
    status, said, images = of_camera(sppdet, trained, tmp_path / "out")
    assert status == 1 and len(images) == 2
    assert "failed: camera:0: gives no more frames after 2" in said


def test_no_camera(sppdet: CommandLine, trained: Path, tmp_path: Path, camera: Camera) -> None:
    status, _, err = sppdet(
        "detect", trained, "camera:1", "--out", tmp_path / "out", "--device", "cpu"
    )
    assert status == 1 and "camera:1: no such camera, or another program uses it" in err


# -- memory ----------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_frames(tmp_path: Path) -> None:
    """Frames kept in memory would take 9 KB each, and items some hundred bytes."""
    peaks = []
    for count in (40, 240):
        write_video(tmp_path / "x", (np.zeros((48, 64, 3), np.uint8) for _ in range(count)), fps=10)
        (tmp_path / "x").rename(tmp_path / f"{count}.mp4")
        plan = plan_images([tmp_path / f"{count}.mp4"])
        tracemalloc.start()
        for item, load in plan.items(MAX_PIXELS):
            assert load().decode().shape == (48, 64, 3) and item.seconds is not None
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 50_000


def test_progress_of_a_camera_has_no_end() -> None:
    counter = Counter("detecting", None, 0)
    counter.add(made=True)
    assert counter.seconds_left() is None
    said = io.StringIO()
    with printed_to(said), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sppdet.runs.progress.INTERVAL_S", -1.0)
        counter.speak(20)
    assert said.getvalue() == "detecting: 1\n"
