"""Export of stored proposals as files that other programs read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sppdet.artifacts import atomic_path
from sppdet.config import Config
from sppdet.data.cache import PictureCache
from sppdet.errors import DataError
from sppdet.pipeline import read_data
from sppdet.places import claim_folder
from sppdet.proposals.stage import Proposer
from sppdet.proposals.stored import file_name
from sppdet.run import Reporter


def export_proposals(config: Config, run: Path, out: Path) -> None:
    """Write the stored proposals as `<id>.npz` files with an array `boxes`, which load again.

    An id that can't be a file name has a file named by its digest, see `file_name`.

    Raises:
        ArtifactError: `out` has files that this hasn't written.
    """
    claim_folder(out, command="propose")
    proposer = Proposer(config.proposals, config.store or run / "store")
    pictures = PictureCache.load(run / "pictures.json", max_pixels=config.data.max_pixels)
    digests: dict[str, str] = {}
    for dataset in read_data(config, pictures, reporter=Reporter()):
        for image in dataset.images if dataset is not None else ():
            digest = pictures.digest(image.path)
            if digests.setdefault(image.id, digest) != digest:
                raise DataError(f"{out}: two pictures have the id {image.id}")
            proposals = proposer.of_image(image, pictures)
            path = out / file_name(image.id)
            with atomic_path(path) as temporary, temporary.open("wb") as handle:
                np.savez(handle, boxes=proposals.boxes)
