"""From the record of an image to its annotated image: sizes compared, boxes moved, clipped, labelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sppdet.boxes import clip_boxes
from sppdet.io.image_cache import ImageInfo
from sppdet.io.records import ImageRecord, ObjectRecord
from sppdet.io.stated_sizes import Conflict, compare_sizes, repaired_boxes
from sppdet.types import AnnotatedImage, Boxes, Flags


@dataclass(frozen=True)
class ClippedRecord:
    """A record, its boxes as annotated and clipped to the image, (N, 4), in the order of its objects.

    `has_area` (N,) tells the boxes that have area in the image; `reach_px` (N,) is how far each reaches
    out of it. Without an image nothing is clipped and `size` is (0, 0).
    """

    record: ImageRecord
    size: tuple[int, int]
    boxes: Boxes
    inside: Boxes
    has_area: Flags
    reach_px: NDArray[np.float32]

    def objects(self) -> list[ObjectRecord]:
        """List the objects whose boxes have area."""
        return [self.record.objects[row] for row in np.flatnonzero(self.has_area)]

    def problem(self, row: int) -> str:
        """Say what is wrong with a box without area."""
        width, height = self.size
        where = f"lies outside the {width}x{height} image" if width else "has no area"
        corners = ", ".join(f"{value:g}" for value in self.boxes[row].tolist())
        return f"box ({corners}) {where}"

    def annotated(self, labels: Mapping[str, int]) -> AnnotatedImage:
        """Label the boxes that have area."""
        kept = self.objects()
        return AnnotatedImage(
            id=self.record.id,
            path=self.record.path,
            width=self.size[0],
            height=self.size[1],
            gt_boxes=self.inside[self.has_area],
            gt_labels=np.array([labels[item.name] for item in kept], dtype=np.int64),
            difficult=np.array([item.difficult for item in kept], dtype=np.bool_),
            truncated=np.array([item.truncated for item in kept], dtype=np.bool_),
        )


def clip_record(record: ImageRecord, info: ImageInfo | None) -> ClippedRecord:
    """Clip the boxes of a record, all of whose objects can be used, to its image; None: to nothing."""
    boxes = _boxes(record)
    size = (info.width, info.height) if info else (0, 0)
    inside = clip_boxes(boxes, width=size[0], height=size[1]) if info else boxes
    has_area = (inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])
    reach = np.abs(boxes - inside).max(axis=1, initial=0.0)
    return ClippedRecord(record, size, boxes, inside, has_area, reach)


def conflict_of(record: ImageRecord, info: ImageInfo) -> Conflict | None:
    """Classify how the size in a record contradicts its image; None if it doesn't, or none is stated."""
    if record.stated is None:
        return None
    size = info.width, info.height
    return compare_sizes(record.stated, size, orientation=info.orientation, boxes=_boxes(record))


def repaired_record(record: ImageRecord, info: ImageInfo, conflict: Conflict | None) -> ImageRecord:
    """Move the boxes of a record into its image; the record as it is if that isn't certain."""
    if record.stated is None:
        return record
    size = info.width, info.height
    moved = repaired_boxes(
        _boxes(record), conflict, stated=record.stated, found=size, orientation=info.orientation
    )
    pairs = zip(record.objects, moved.tolist(), strict=True)
    return replace(record, objects=tuple(replace(o, box=tuple(box)) for o, box in pairs))


def _boxes(record: ImageRecord) -> Boxes:
    return np.array([item.box for item in record.objects], dtype=np.float32).reshape(-1, 4)
