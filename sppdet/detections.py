"""The detections of one image: indexing, drawing, and conversions to other libraries' types."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sppdet.arrays import Boxes, ImageArray, Labels, Scores, check_array, check_boxes
from sppdet.errors import one_line, shorten

if TYPE_CHECKING:
    import pandas
    import supervision
    from PIL.Image import Image


@dataclass(frozen=True)
class Detection:
    """One detection: `box` is x1, y1, x2, y2 in original pixels, 0-based, half-open.

    `probability` is None without calibration.
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str
    probability: float | None


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """Scored, labelled final boxes of one image, in descending score.

    `len(d)` is their number. `d[d.scores > 0]` and `d[:3]` select some: an integer, a slice, an array of
    booleans or of row numbers gives `Detections` again. Iteration yields a `Detection` each.

    `class_names[label - 1]` names a label; `path` is empty if the image wasn't passed as a path.
    `probabilities` are those that a detection is right at IoU 0.5; None without calibration.
    `read_image` returns the image for `plot`; None: unknown.
    """

    boxes: Boxes  # (N, 4)
    scores: Scores  # (N,)
    labels: Labels  # (N,) 1..K
    class_names: tuple[str, ...] = field(default=())
    path: str = ""
    probabilities: NDArray[np.float32] | None = None  # (N,)
    read_image: Callable[[], ImageArray] | None = None

    def __post_init__(self) -> None:
        check_boxes(self.boxes)
        check_array(self.scores, "scores", (len(self.boxes),), np.float32)
        check_array(self.labels, "labels", (len(self.boxes),), np.int64)
        if self.probabilities is not None:
            check_array(self.probabilities, "probabilities", (len(self.boxes),), np.float32)

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Detection]:
        unknown: list[float | None] = [None] * len(self)
        probabilities = unknown if self.probabilities is None else self.probabilities.tolist()
        columns = (self.boxes.tolist(), self.scores.tolist(), self.labels.tolist())
        for box, score, label, name, probability in zip(
            *columns, self.names(), probabilities, strict=True
        ):
            yield Detection(tuple(box), score, label, name, probability)

    def __getitem__(self, rows: int | slice | NDArray[Any] | list[int] | list[bool]) -> Detections:
        """Select rows; their order is that of the index.

        Raises:
            IndexError: a row that isn't there, or booleans of another number than detections.
            TypeError: neither an integer, a slice nor an array (or list) of integers or booleans.
        """
        chosen = self._rows(rows)
        return Detections(
            self.boxes[chosen],
            self.scores[chosen],
            self.labels[chosen],
            self.class_names,
            self.path,
            None if self.probabilities is None else self.probabilities[chosen],
            self.read_image,
        )

    def __eq__(self, other: object) -> bool:
        """Compare all but `read_image`."""
        if not isinstance(other, Detections):
            return NotImplemented
        arrays = ("boxes", "scores", "labels", "probabilities")
        return (self.class_names, self.path) == (other.class_names, other.path) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in arrays
        )

    __hash__ = None  # type: ignore[assignment]  # of arrays

    def __repr__(self) -> str:
        names, counts = np.unique(self.names(), return_counts=True)
        order = np.argsort(-counts, kind="stable")
        found = [one_line(f"{counts[k]} × {names[k]}", 60) for k in order.tolist()]
        where = f" in {one_line(self.path, 60)}" if self.path else ""
        return f"<Detections: {shorten(found, limit=6) or 'none'}{where}>"

    def _repr_html_(self) -> str:
        from sppdet.conversions import html_of

        return html_of(self)

    def names(self) -> list[str]:
        """List the class name of every detection."""
        return [self.class_names[label - 1] for label in self.labels]

    def above(self, score: float | NDArray[np.float32]) -> Detections:
        """Select the detections with score >= `score`, one number or one for each class (K,)."""
        least = score[self.labels - 1] if isinstance(score, np.ndarray) else score
        return self[self.scores >= least]

    def plot(self, image: ImageArray | Image | None = None) -> Image:
        """Draw all of these detections on their image; see `sppdet.drawing.draw.draw_detections`.

        A detector returns improbable ones as well: `d[d.probabilities > 0.5].plot()` leaves them out.

        Args:
            image: an array (H, W, 3) uint8 RGB or a PIL image. None: the image that was passed to the
                detector, whose file is read again, and whose array must not have changed.

        Raises:
            ValueError: no image is known, or `image` is none of these types.
            ImageError: the file can't be read any more.
        """
        from PIL import Image as images

        from sppdet.drawing.draw import draw_detections

        return images.fromarray(draw_detections(self._pixels(image), self))

    def to_pandas(self) -> pandas.DataFrame:
        """Make a table of a row for each detection.

        Returns:
            Columns x1, y1, x2, y2 (original pixels, 0-based, half-open), score, probability (NaN without
            calibration), label (1..K), name.

        Raises:
            ImportError: pandas isn't installed.
        """
        from sppdet.conversions import to_pandas

        return to_pandas(self)

    def to_supervision(self) -> supervision.Detections:
        """Convert to Roboflow supervision's type.

        Returns:
            `xyxy`, `confidence` (the probabilities, or without calibration the scores), `class_id`
            (0..K-1, the label less one), and `data` with `class_name` and `score`.

        Raises:
            ImportError: supervision isn't installed.
        """
        from sppdet.conversions import to_supervision

        return to_supervision(self)

    def to_coco(
        self, image_id: int | str, category_ids: dict[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """Make COCO results: a dict for each detection, to be written as JSON.

        Args:
            image_id: id of the image in the annotations.
            category_ids: class name -> id in the annotations. None: the labels 1..K.

        Returns:
            image_id, category_id, bbox [x, y, width, height], score, and the names `category_name` and,
            where the path is known, `file_name`, which pycocotools ignores.

        Raises:
            ValueError: a class of a detection isn't in `category_ids`.
        """
        from sppdet.conversions import to_coco

        return to_coco(self, image_id, category_ids)

    def _rows(self, rows: Any) -> Any:
        expected = "expected an integer, a slice, or an array of integers or booleans"
        if isinstance(rows, slice):
            return rows
        if isinstance(rows, tuple | str) or np.ndim(rows) > 1:
            raise TypeError(f"index of detections: {one_line(repr(rows), 60)}, {expected}")
        array = np.asarray(rows)
        if array.size == 0:
            array = array.astype(bool if array.dtype == bool else np.int64)
        if array.dtype == bool:
            if array.shape != (len(self),):
                raise IndexError(
                    f"index of detections: booleans {array.shape}, expected ({len(self)},)"
                )
            return np.flatnonzero(array)
        if array.dtype.kind not in "iu":
            raise TypeError(f"index of detections: {array.dtype} {array.shape}, {expected}")
        wrong = (array < -len(self)) | (array >= len(self))
        if wrong.any():
            row = np.atleast_1d(array)[np.atleast_1d(wrong)][0]
            raise IndexError(f"index of detections: {row}, there are {len(self)}")
        return np.atleast_1d(array)

    def _pixels(self, image: ImageArray | Image | None = None) -> ImageArray:
        if image is None:
            if self.read_image is None:
                raise ValueError("these detections have no image; expected plot(image)")
            return self.read_image()
        if not isinstance(image, np.ndarray):
            if not hasattr(image, "convert"):
                kind = type(image).__name__
                raise ValueError(
                    f"image: {kind}, expected an array uint8 (H, W, 3) RGB or a PIL image"
                )
            image = np.asarray(image.convert("RGB"))
        check_array(image, "image", (None, None, 3), np.uint8)
        return image
