"""The proposals of one image by the engines of the settings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sppdet.config import ProposalsConfig
from sppdet.proposals.edge_boxes import EdgeDetector, edge_boxes
from sppdet.proposals.selective_search import selective_search
from sppdet.types import Boxes, ImageArray, Proposals


def propose(
    image: ImageArray, config: ProposalsConfig, detect_edges: EdgeDetector | None = None
) -> Proposals:
    """Compute the proposals of one image (H, W, 3) by every engine, joined by `interleaved`.

    Args:
        detect_edges: see `edge_boxes`.
    """
    found = []
    for engine in config.engines():
        if engine == "edgeboxes":
            found.append(edge_boxes(image, config, detect_edges).boxes)
        else:
            one = config.model_copy(update={"engine": engine})
            found.append(selective_search(image, one).boxes)
    return Proposals(interleaved(found)[: config.max_boxes])


def interleaved(ranked: Sequence[Boxes]) -> Boxes:
    """Join lists of boxes by rank: the first of each, then the second of each, and so on.

    A box that is in several lists is kept once, at its first place.
    """
    boxes = np.concatenate(ranked)
    ranks = np.concatenate([np.arange(len(one)) for one in ranked])
    boxes = boxes[np.argsort(ranks, kind="stable")]
    _, first = np.unique(boxes, axis=0, return_index=True)
    return boxes[np.sort(first)]
