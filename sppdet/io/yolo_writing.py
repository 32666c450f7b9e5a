"""Labels as YOLO's text files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sppdet.types import Boxes, Labels, Scores


def yolo_labels(
    boxes: Boxes, labels: Labels, *, width: int, height: int, scores: Scores | None = None
) -> str:
    """Build the text of one label file: a line `class x y width height` for each box.

    x and y are the centre; all four are fractions of the image, in nine digits, so that float32
    boxes come back to 1e-5 px.

    Args:
        boxes: (N, 4) xyxy, inside the image, original pixels, half-open.
        labels: (N,) 1..K; YOLO's classes are numbered from 0.
        width, height: of the image, in pixels, as its EXIF orientation shows it.
        scores: (N,) written behind each box, as YOLO's own detections have them with `save_conf`.
    """
    lines = []
    for row, ((x1, y1, x2, y2), label) in enumerate(
        zip(boxes.tolist(), labels.tolist(), strict=True)
    ):
        values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height]
        values += [(x2 - x1) / width, (y2 - y1) / height]
        if scores is not None:
            values.append(float(scores[row]))
        lines.append(" ".join([str(label - 1), *(f"{value:.9g}" for value in values)]))
    return "".join(line + "\n" for line in lines)


def yolo_data(class_names: Sequence[str], sets: Mapping[str, str] | None = None) -> str:
    """Build the text of `data.yaml`: folders of images by their set, and names of the classes, from 0.

    The folders are relative to the file; the labels are in `labels` in the place of `images`.

    Args:
        sets: folder or list of images by the name of a set.
    """
    import yaml

    facts = {**(sets or {"train": "images", "val": "images"}), "names": list(class_names)}
    return yaml.safe_dump(facts, allow_unicode=True, sort_keys=False)
