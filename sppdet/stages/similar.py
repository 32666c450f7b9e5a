"""Groups of similar images of a data set, which are to be divided by nobody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sppdet.errors import ImageError
from sppdet.evaluation.similar_images import Look, group_similar, look_of
from sppdet.io.images import read_image
from sppdet.parallel import ordered_map
from sppdet.runs.progress import track
from sppdet.types import Dataset


def similar_groups(dataset: Dataset, *, max_pixels: int, workers: int) -> NDArray[np.int64]:
    """Find the group (I,) of each image: near-duplicates and frames of one video are in one.

    An image that can't be read resembles none; other stages say what is wrong with it.
    """

    def look(path: Path) -> Look | None:
        try:
            return look_of(read_image(path, max_pixels=max_pixels))
        except ImageError:
            return None

    paths = [image.path for image in dataset.images]
    found = ordered_map(look, paths, workers=workers)
    looks = list(
        track(found, total=len(paths), label=f"looking for near-duplicates, {dataset.name}")
    )
    return group_similar([str(path.with_suffix("")) for path in paths], looks)
