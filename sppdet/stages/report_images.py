"""Images of a report: the ones with most errors and a random sample, with objects and detections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sppdet.errors import ImageError
from sppdet.evaluation.calibration import Calibration
from sppdet.evaluation.confusion import Verdict
from sppdet.evaluation.voc import TRUE_POSITIVE
from sppdet.io.image_cache import ImageCache
from sppdet.pages.graphics import thumbnail
from sppdet.pages.render import number
from sppdet.randomness import rng
from sppdet.types import Detections

WORST, RANDOM = 40, 20
_MOST_LINES = 12  # of one image's caption


def gallery(
    verdicts: Sequence[Verdict],
    images: ImageCache,
    calibration: Calibration | None,
    causes: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """Collect the images with most errors and, drawn from all others, a random sample.

    Args:
        causes: as from `causes_of`.
    """
    errors = np.array([one.errors for one in verdicts], dtype=np.int64)
    order = np.argsort(-errors, kind="stable")
    worst = [int(row) for row in order[:WORST] if errors[row]]
    rest = np.setdiff1d(np.arange(len(verdicts)), worst)
    sample = rng(0, "images of a report").permutation(rest)[:RANDOM]
    cases = (causes or {}).get("cases", {})
    return [
        {
            "title": title,
            "cards": [_card(verdicts[row], images, calibration, cases) for row in rows],
        }
        for title, rows in (("Most errors", worst), ("Random others", np.sort(sample).tolist()))
    ]


def _card(
    one: Verdict,
    images: ImageCache,
    calibration: Calibration | None,
    cases: Mapping[tuple[str, str, tuple[float, ...]], str],
) -> dict[str, Any]:
    """Collect an image with its boxes, lines of text, and the labels that the filters look for."""
    found, image = one.detections, one.image
    boxes: list[dict[str, Any]] = []

    def add(kind: str, box: Any, label: int, text: str) -> None:
        x1, y1, x2, y2 = (round(float(side), 1) for side in box)
        cause = cases.get((image.id, kind, (x1, y1, x2, y2)), "")
        size = {"x": x1, "y": y1, "width": round(x2 - x1, 1), "height": round(y2 - y1, 1)}
        boxes.append({"kind": kind, "label": label, "text": text, "cause": cause, **size})

    for box, label, hit, aside in zip(
        image.gt_boxes, image.gt_labels, one.found, image.difficult, strict=True
    ):
        kind = "aside" if aside else "object" if hit else "missed"
        add(kind, box, int(label), "")
    for d, text in enumerate(_strengths(found, calibration)):
        kind = "true" if one.outcomes[d] == TRUE_POSITIVE else "false" if one.false[d] else "aside"
        add(kind, found.boxes[d], int(found.labels[d]), text)
    counts = Counter(box["kind"] for box in boxes)
    shown = [box for box in boxes if box["kind"] in ("true", "false", "missed")]
    try:
        uri = thumbnail(images.read(image.path))
    except ImageError:  # gone or changed since the evaluation
        uri = ""
    return {
        "id": image.id,
        "uri": uri,
        "width": image.width,
        "height": image.height,
        "boxes": boxes,
        "lines": shown[:_MOST_LINES],
        "more": max(0, len(shown) - _MOST_LINES),
        "counts": counts,
        "labels": {
            kind: " ".join(
                map(str, sorted({b["label"] for b in boxes if kind in ("all", b["kind"])}))
            )
            for kind in ("all", "missed", "false")
        },
    }


def _strengths(found: Detections, calibration: Calibration | None) -> list[str]:
    """Format the probabilities of detections or, without a calibration, their scores."""
    if calibration is None:
        return [f"score {number(score)}" for score in found.scores.tolist()]
    p = calibration.probabilities(found.scores, found.labels)
    return [f"{100 * value:.0f} %" for value in p.tolist()]
