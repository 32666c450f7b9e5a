"""Videos and cameras: frames with their times in, annotated video out, by OpenCV's FFmpeg."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sppdet.errors import AnnotationError, DataError, ImageError
from sppdet.io.files import read_head
from sppdet.types import ImageArray

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
# what begins a file of these formats: FFmpeg would open a playlist by any name, and what that names
_CONTAINERS = re.compile(
    rb".{4}(?:ftyp|moov|mdat|wide|free|skip|pnot)|RIFF.{4}AVI |\x1aE\xdf\xa3", re.DOTALL
)
_CODECS = ("avc1", "mp4v")  # H.264 where the build has an encoder, else MPEG-4
_FPS = 25.0  # where a video states none
_FEWER = 0.02  # fraction of frames by which containers may overstate


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame: its number from 0, its time in seconds, its pixels (H, W, 3) uint8 RGB."""

    number: int
    seconds: float
    pixels: ImageArray


class Capture:
    """An open video or camera; `frames` reads it once."""

    def __init__(self, capture: Any, name: str, *, live: bool, max_pixels: int) -> None:
        self._capture = capture
        self._name = name
        self._live = live
        self._max_pixels = max_pixels
        fps = float(capture.get(cv2.CAP_PROP_FPS))
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else _FPS
        stated = float(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        sensible = not live and math.isfinite(stated) and 0 < stated < 2**31
        self.count = int(stated) if sensible else None  # by the container, which may be wrong
        width, height = (int(capture.get(p)) for p in (3, 4))  # of a frame
        if width * height > max_pixels:
            capture.release()
            raise ImageError(f"{name}: {width}x{height} pixels, expected {max_pixels} at most")

    def close(self) -> None:
        """Close the file or the camera."""
        self._capture.release()

    def frames(self, *, every: int = 1, most: int | None = None) -> Iterator[Frame]:
        """Yield every nth frame, `most` at most; the file is closed at the end.

        A camera goes on until `most` or Ctrl-C.

        Raises:
            ImageError: the video ends before the frames that its container states, or has none.
        """
        start, last, number, taken, gap = time.monotonic(), -1.0, 0, 0, 0.0
        with contextlib.closing(self), _interruptible(self._live) as stopped:
            while (most is None or taken < most) and not stopped.is_set():
                if not self._capture.grab():
                    if not stopped.is_set():
                        self._check_end(number, last + 1.5 * gap)
                    return
                seconds = time.monotonic() - start if self._live else self._seconds(number, last)
                if number % every == 0:
                    found, bgr = self._capture.retrieve()
                    if not found or bgr is None or bgr.size > 3 * self._max_pixels:
                        raise ImageError(f"{self._name}: frame {number} can't be decoded")
                    if bgr.ndim == 2:
                        bgr = cv2.cvtColor(bgr, cv2.COLOR_GRAY2BGR)
                    pixels = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)
                    yield Frame(number, round(seconds, 6), pixels)
                    taken += 1
                gap = max(gap, seconds - last if number else 0.0)
                last = seconds
                number += 1

    def _seconds(self, number: int, last: float) -> float:
        """Return the time that the file gives the frame; by its number where that makes no sense."""
        stated = float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000
        if math.isfinite(stated) and stated > last and (number == 0 or stated > 0):
            return stated
        return max(number / self.fps, last + 1e-6)

    def _check_end(self, number: int, seconds: float) -> None:
        """Refuse an end before that of the container, `seconds` being where the last frame may reach.

        Of videos of a variable rate containers state a number that their duration would have room for.
        """
        if number == 0:
            raise ImageError(f"{self._name}: has no frame that can be decoded")
        if self._live:
            raise ImageError(f"{self._name}: gives no more frames after {number}")
        if self.count is None:
            return
        missing = max(2, _FEWER * self.count)
        if number + missing < self.count and seconds + missing / self.fps < self.count / self.fps:
            raise ImageError(
                f"{self._name}: ends after {number} of {self.count} frames: damaged or cut short"
            )


def open_video(path: Path, *, max_pixels: int) -> Capture:
    """Open a video file; its rotation is applied.

    Raises:
        ImageError: there is no such file, or none that OpenCV opens as mp4, mov, avi, mkv or webm.
    """
    try:
        head = read_head(path, 16)
    except AnnotationError as error:
        raise ImageError(str(error)) from None
    problem = ImageError(f"{path}: can't be opened as a video (mp4, mov, avi, mkv, webm)")
    if not _CONTAINERS.match(head):
        raise problem
    capture = _opened(os.fspath(path), cv2.CAP_FFMPEG)
    if capture is None:
        raise problem
    return Capture(capture, os.fspath(path), live=False, max_pixels=max_pixels)


def open_camera(number: int, *, max_pixels: int) -> Capture:
    """Open a camera by its number.

    Raises:
        ImageError: there is none.
    """
    name = f"camera:{number}"
    capture = _opened(number, cv2.CAP_ANY)
    if capture is None:
        raise ImageError(f"{name}: no such camera, or another program uses it")
    return Capture(capture, name, live=True, max_pixels=max_pixels)


def write_video(path: Path, frames: Iterable[ImageArray], *, fps: float) -> None:
    """Write frames (H, W, 3) RGB as an MP4, one after another; H.264 where OpenCV has it, else MPEG-4.

    Frames of another size than the first one are resized. An odd row or column is cut off.

    Raises:
        DataError: OpenCV has no encoder for it.
    """
    # OpenCV takes the format from the suffix
    target = path.with_name(f"{path.name}.mp4")
    writer: Any = None
    size = (0, 0)
    try:
        for frame in frames:
            if writer is None:
                size = (frame.shape[1], frame.shape[0])
                writer = _writer(target, fps, size)
            bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
            same = (bgr.shape[1], bgr.shape[0]) == size
            writer.write(bgr if same else cv2.resize(bgr, size, interpolation=cv2.INTER_AREA))
        if writer is None:
            raise DataError(f"{path}: a video without frames")
        writer.release()
        if not target.is_file() or target.stat().st_size == 0:
            raise DataError(f"a video of {size[0]}x{size[1]} pixels can't be encoded")
        target.replace(path)
    finally:
        if writer is not None:
            writer.release()
        target.unlink(missing_ok=True)


def _writer(target: Path, fps: float, size: tuple[int, int]) -> Any:
    for codec in _CODECS:
        with contextlib.suppress(cv2.error):
            fourcc = cv2.VideoWriter.fourcc(*codec)
            writer = cv2.VideoWriter(os.fspath(target), cv2.CAP_FFMPEG, fourcc, fps, size)
            if writer.isOpened():
                return writer
    raise DataError(f"a video of {size[0]}x{size[1]} pixels can't be encoded by this OpenCV")


def _opened(source: str | int, backend: int) -> Any:
    try:
        capture = cv2.VideoCapture(source, backend)
    except cv2.error:
        return None
    return capture if capture.isOpened() else None


@contextlib.contextmanager
def _interruptible(live: bool) -> Iterator[threading.Event]:
    """Set the event at the first Ctrl-C, which ends a camera's frames but not the work on them."""
    stopped = threading.Event()
    if not live or threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)  # a second one ends the work

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        if signal.getsignal(signal.SIGINT) is stop:
            signal.signal(signal.SIGINT, before)
