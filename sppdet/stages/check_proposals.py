"""Proposals of a sample of images in a check: which objects does none of them cover?"""

from __future__ import annotations

import numpy as np

from sppdet.errors import SppdetError
from sppdet.parallel import ordered_map
from sppdet.proposals.recall import best_ious, coverage
from sppdet.randomness import rng
from sppdet.runs.environment import worker_count
from sppdet.runs.log import LOGGER
from sppdet.runs.progress import track
from sppdet.stages.check_findings import Case, part_of
from sppdet.stages.check_reading import Survey
from sppdet.stages.proposer import Proposer
from sppdet.types import AnnotatedImage, Proposals

_COVERED_IOU = 0.5


def search_sample(found: Survey, sample: int) -> None:
    """Search `sample` images with objects, drawn by the seed, and add the objects that no proposal covers.

    Proposals that can't be had, such as stored ones that aren't there, are a warning.
    """
    every = [
        (split, image)
        for split, images in zip(found.splits, found.images, strict=True)
        for image in images
        if not image.difficult.all()
    ]
    order = rng(found.config.seed, "images of a check").permutation(len(every))[:sample]
    chosen = [every[row] for row in np.sort(order)]
    pairs: list[tuple[AnnotatedImage, Proposals]] = []
    try:
        proposer = Proposer(found.config.proposals)
        searched = ordered_map(
            lambda one: proposer.of_image(one[1], found.cache),
            chosen,
            workers=worker_count(found.config.workers),
        )
        for (split, image), proposals in zip(
            chosen, track(searched, total=len(chosen), label="proposals"), strict=True
        ):
            pairs.append((image, proposals))
            best = best_ious(image.gt_boxes, proposals.boxes)
            for row in np.flatnonzero((best < _COVERED_IOU) & ~image.difficult).tolist():
                part = part_of(split, image, [row], found.class_names, close=True)
                text = f"{image.id}: {part.boxes[0][1]}, best IoU {best[row]:.2f}"
                found.cases.append(Case("uncovered", text, (part,), worth=1 - float(best[row])))
    except SppdetError as error:
        LOGGER.warning("proposals aren't looked at: %s", error)
        return
    if pairs:
        found.coverage, found.sampled = coverage(pairs), len(chosen)
