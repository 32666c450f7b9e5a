"""Standalone selective search."""

from __future__ import annotations

import numpy as np
from pydantic import ValidationError

from sppdet.config import ProposalsConfig, SearchMode
from sppdet.proposals.selective_search import selective_search as search
from sppdet.setting_problems import first_problem
from sppdet.types import Boxes, ImageArray


def selective_search(
    image: ImageArray,
    mode: SearchMode = "fast",
    *,
    max_boxes: int = 2000,
    min_size: int = 20,
    image_width: int = 500,
    seed: int = 0,
) -> Boxes:
    """Run selective search on an image (Uijlings et al., IJCV 2013).

    Args:
        image: (H, W, 3) uint8, RGB.
        mode: single builds 2 hierarchies of regions, about 700 boxes; fast 8, about 2,000; diverse 20,
            about 2,000; quality 80.
        max_boxes: maximum number of boxes.
        min_size: minimum width and height of a box, in pixels of the resized image.
        image_width: width in pixels to which the image is resized for the search.
        seed: seed of the pseudo-random ranking; the same image and seed give the same boxes.

    Returns:
        (P, 4) float32 distinct boxes, xyxy in original pixels, half-open, ranked.

    Raises:
        ValueError: `image` isn't an (H, W, 3) uint8 array with pixels, or a setting is impossible.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image: {image.dtype} {image.shape}, expected uint8 (H, W, 3)")
    try:
        config = ProposalsConfig(
            mode=mode, max_boxes=max_boxes, min_size=min_size, image_width=image_width, seed=seed
        )
    except ValidationError as error:
        raise ValueError(first_problem(error, ProposalsConfig)) from None
    return search(image, config).boxes
