"""From the bytes of an image to the answer of the service."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from sppdet.drawing.draw import draw_detections
from sppdet.errors import ConfigError, ImageError
from sppdet.io.headers import read_header
from sppdet.io.images import decode
from sppdet.randomness import rng
from sppdet.runs.environment import release_memory
from sppdet.service.limits import Limits, Refused
from sppdet.stages.detector import Detector
from sppdet.stages.thresholds import Threshold, least_scores
from sppdet.types import Detections, ImageArray

_JPEG_QUALITY = 90
_WARM_UP = (240, 320)  # height and width in px
_MOST = 10_000


class Wanted(BaseModel):
    """The query of `POST /detect`."""

    model_config = ConfigDict(extra="forbid")

    score: float | None = Field(
        None, allow_inf_nan=False, description="Minimum score; default: the service's threshold."
    )
    min_probability: float | None = Field(
        None, gt=0, lt=1, description="Minimum probability that a detection is right."
    )
    max: int = Field(100, ge=1, le=_MOST, description="Maximum number of detections, the best.")
    draw: bool = Field(False, description="Answer with the image as JPEG, the detections drawn.")


class Found(BaseModel):
    """One detection; `box` is x1, y1, x2, y2 in pixels of the upright image, 0-based, half-open."""

    box: tuple[float, float, float, float]
    class_: str = Field(alias="class", description="Name of the class.")
    label: int = Field(description="Number of the class, from 1.")
    score: float
    probability: float | None = Field(description="null without calibration.")


class Answer(BaseModel):
    """The answer to `POST /detect`: detections in descending score."""

    model_config = ConfigDict(extra="forbid")

    width: int
    height: int
    detections: list[Found]
    threshold: str = Field(description="What was wanted of a detection, in words.")
    model: str = Field(description="Identity of the model's parts and settings.")
    milliseconds: float = Field(description="Time of decoding and detection.")


@dataclass(frozen=True)
class Least:
    """Minimum scores (K,) of the classes, and what they are in words."""

    scores: NDArray[np.float32]
    text: str


@dataclass(frozen=True)
class Answerer:
    """A detector that answers requests; thread-safe."""

    detector: Detector
    limits: Limits
    usual: Least

    @classmethod
    def of(cls, detector: Detector, limits: Limits, threshold: Threshold) -> Answerer:
        """Prepare a detector; it detects once, in an image of noise, so that no client waits for that.

        Raises:
            ConfigError: the detector doesn't have the threshold.
        """
        made = cls(detector, limits, Least(*least_scores(detector, threshold)))
        noise = rng(0, "image to warm up a service").integers(
            0, 256, (*_WARM_UP, 3), dtype=np.uint8
        )
        cv2.blur(noise, (9, 9), noise)
        detector(noise)
        release_memory()  # of loading
        return made

    @property
    def measure(self) -> Literal["probability", "score"]:
        """Name the quantity that the page's slider sets."""
        return "score" if self.detector.calibration is None else "probability"

    @property
    def usual_value(self) -> float:
        """The threshold in what `measure` says, the least of all classes."""
        calibration, scores = self.detector.calibration, self.usual.scores
        if calibration is None:
            return float(scores.min())
        labels = np.arange(1, len(scores) + 1)
        return float(calibration.probabilities(scores, labels).min())

    def job(self, data: bytes, wanted: Wanted) -> Callable[[], bytes | dict[str, Any]]:
        """Check what is wanted; return the function that answers: a JPEG, or what becomes JSON.

        The function raises Refused for an image that can't be detected in.

        Raises:
            Refused: 422 for something that the model doesn't have.
        """
        least = self._least(wanted)
        return lambda: self._answer(data, wanted, least)

    def _answer(self, data: bytes, wanted: Wanted, least: Least) -> bytes | dict[str, Any]:
        began = time.perf_counter()
        pixels = self._decoded(data)
        try:
            found = self.detector(pixels).above(least.scores)[: wanted.max]
        except MemoryError:
            raise Refused(413, "the image needs more memory than there is") from None
        if wanted.draw:
            return _jpeg(draw_detections(pixels, found))
        height, width = pixels.shape[:2]
        return {
            "width": width,
            "height": height,
            "detections": _rows(found),
            "threshold": least.text,
            "model": self.detector.made_by,
            "milliseconds": round(1000 * (time.perf_counter() - began), 1),
        }

    def _decoded(self, data: bytes) -> ImageArray:
        header = read_header(data)
        if header is None:
            raise Refused(422, "the image can't be decoded")
        if header.width * header.height > self.limits.max_pixels:
            raise Refused(
                413,
                f"the image has {header.width}x{header.height} pixels, "
                f"expected {self.limits.max_pixels} at most",
            )
        try:
            return decode(data, "the image", max_pixels=self.limits.max_pixels).pixels
        except (ImageError, MemoryError):
            raise Refused(422, f"the image, {header.format}, can't be decoded") from None

    def _least(self, wanted: Wanted) -> Least:
        if wanted.score is not None and wanted.min_probability is not None:
            raise Refused(422, "expected one of score and min_probability")
        try:
            if wanted.score is not None:
                threshold = Threshold("score", wanted.score)
            elif wanted.min_probability is not None:
                threshold = Threshold("probability", wanted.min_probability)
            else:
                return self.usual
            return Least(*least_scores(self.detector, threshold))
        except ConfigError:
            raise Refused(422, "min_probability: the model has no probabilities") from None


def _rows(found: Detections) -> list[dict[str, Any]]:
    p = found.probabilities
    unknown: list[float | None] = [None] * len(found)
    columns = (
        found.boxes.tolist(),
        found.names(),
        found.labels.tolist(),
        found.scores.tolist(),
        unknown if p is None else p.tolist(),
    )
    keys = ("box", "class", "label", "score", "probability")
    return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]


def _jpeg(image: ImageArray) -> bytes:
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    # a JPEG has at most 65,535 pixels a side
    written, data = False, np.zeros(0, np.uint8)
    if max(bgr.shape[:2]) < 2**16:
        written, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not written:
        raise Refused(422, "the image is too long for a JPEG")
    return data.tobytes()
