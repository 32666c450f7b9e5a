"""The proposals of a whole data set: searched for in parallel, kept one file a picture."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from sppdet.artifacts import ItemStore, fingerprint
from sppdet.config import ProposalsConfig
from sppdet.data.cache import PictureCache
from sppdet.data.images import read_image
from sppdet.parallel import ordered_map
from sppdet.proposals.recall import Coverage, coverage
from sppdet.proposals.selective_search import VERSION, selective_search
from sppdet.proposals.stored import StoredProposals
from sppdet.run import Reporter
from sppdet.types import AnnotatedImage, Dataset, Picture, Proposals


class Proposer:
    """Proposals by the settings: `of` for one picture, `of_dataset` for all, kept in a store."""

    def __init__(self, config: ProposalsConfig, folder: Path | None = None) -> None:
        self._config = config
        self._stored = StoredProposals(config.path) if config.path is not None else None
        self.fingerprint = fingerprint(
            "proposals", VERSION, config.model_dump(), _state(config.path)
        )
        self.store = ItemStore(folder, "proposals", self.fingerprint) if folder else None

    def of(self, picture: Picture) -> Proposals:
        """Search a picture (H, W, 3) that belongs to no data set."""
        if self._stored is not None:
            # boxes by others exist for their pictures only: new ones are searched for
            plain = self._config.model_copy(update={"engine": "opencv", "path": None})
            return selective_search(picture, plain)
        return selective_search(picture, self._config)

    def of_image(self, image: AnnotatedImage, digest: str) -> Proposals:
        """A data set's picture: from the store where it is there, else made and stored."""
        if self.store is not None and self.store.has(image.id, digest):
            return Proposals(self.store.read(image.id)["boxes"].numpy())
        if self._stored is not None:
            proposals = self._stored.look_up(
                image.id,
                width=image.width,
                height=image.height,
                max_boxes=self._config.max_boxes,
            )
        else:
            proposals = selective_search(read_image(image.path), self._config)
        if self.store is not None:
            self.store.write(image.id, digest, {"boxes": torch.from_numpy(proposals.boxes)})
        return proposals

    def of_dataset(
        self, dataset: Dataset, pictures: PictureCache, *, workers: int, reporter: Reporter
    ) -> Coverage:
        """Make what is missing of a data set's proposals and measure all against the ground truth."""

        def one(image: AnnotatedImage) -> tuple[AnnotatedImage, Proposals]:
            return image, self.of_image(image, pictures.digest(image.path))

        pairs = ordered_map(one, dataset.images, workers=workers)
        label = f"proposals, {dataset.name}"
        found = coverage(reporter.track(pairs, total=len(dataset), label=label))
        reporter.say(f"{dataset.name}: {found}", "proposals", split=dataset.name, **vars(found))
        return found


def _state(path: Path | None) -> str:
    """What tells one state of a file or folder of stored proposals from another."""
    if path is None or not path.exists():
        return ""
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    text = "".join(f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}\n" for f in files)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
