"""Export of stored proposals as files that other programs read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sppdet.config import Config
from sppdet.errors import DataError
from sppdet.io.image_cache import ImageCache
from sppdet.io.stored_proposals import file_name
from sppdet.runs.artifacts import atomic_path
from sppdet.runs.places import claim_folder
from sppdet.runs.progress import track
from sppdet.stages.data import read_datasets
from sppdet.stages.proposer import Proposer
from sppdet.stages.settle import settle


def export_proposals(config: Config, run: Path, out: Path) -> None:
    """Write the stored proposals as `<id>.npz` files with an array `boxes`, which load again.

    An id that can't be a file name has a file named by its digest, see `file_name`.

    Raises:
        ArtifactError: `out` has files that this hasn't written.
    """
    claim_folder(out, command="propose")
    proposer = Proposer(config.proposals, config.store or run / "store")
    config = settle(config, run)
    images = ImageCache.load(run / "images.json", max_pixels=config.data.max_pixels)
    digests: dict[str, str] = {}
    for dataset in read_datasets(config, images):
        if dataset is None:
            continue
        for image in track(dataset.images, total=len(dataset), label=f"writing, {dataset.name}"):
            digest = images.digest(image.path)
            if digests.setdefault(image.id, digest) != digest:
                raise DataError(f"{out}: two images have the id {image.id}")
            proposals = proposer.of_image(image, images)
            path = out / file_name(image.id)
            with atomic_path(path) as temporary, temporary.open("wb") as handle:
                np.savez(handle, boxes=proposals.boxes)
