"""Where the images of a call of `detect` come from: files, URLs, standard input, videos, cameras."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from sppdet.errors import ImageError
from sppdet.folders.planning import Item
from sppdet.io.images import most_bytes, to_rgb
from sppdet.io.names import fit_name
from sppdet.io.videos import Capture, Frame
from sppdet.types import ImageArray


@dataclass(frozen=True)
class Content:
    """The content of an image: the digest of what it is made of, and how it is decoded.

    `decode` returns (H, W, 3) uint8 RGB, or raises an ImageError.
    """

    digest: str
    decode: Callable[[], ImageArray]


Load = Callable[[], Content]  # from any thread; raises an ImageError


class Source(Protocol):
    """Images by a common name. `path` is the file that they are from, if it is one."""

    @property
    def name(self) -> str:
        """Name of the results; that of an only image, or the beginning of its frames' names."""

    @property
    def path(self) -> Path | None:
        """The file that it is, which no result may overwrite."""

    def count(self, max_pixels: int) -> int | None:
        """Estimate the number of images; None: nobody knows."""

    def items(self, max_pixels: int) -> Iterator[tuple[Item, Load]]:
        """Yield the images, one after another; what can't be opened is an image that fails on loading.

        Images of more than `max_pixels` fail as well.
        """


@dataclass(frozen=True)
class Still:
    """One image, in a file or elsewhere.

    `read` returns its encoded bytes, at most as many as it is called with.
    """

    item: Item
    read: Callable[[int], bytes]
    path: Path | None = None

    @property
    def name(self) -> str:
        """Name of the image."""
        return self.item.name

    def count(self, max_pixels: int) -> int:
        """One."""
        return 1

    def items(self, max_pixels: int) -> Iterator[tuple[Item, Load]]:
        """Yield the image."""

        def load() -> Content:
            data = self.read(most_bytes(max_pixels))
            digest = hashlib.blake2b(data, digest_size=20).hexdigest()
            return Content(digest, lambda: to_rgb(data, self.item.origin, max_pixels=max_pixels))

        yield self.item, load


@dataclass(frozen=True)
class Film:
    """The frames of a video or a camera, each an image; its name ends in the frame's number.

    `whole` stands for all frames. A video, whose results are drawn into a video, can be opened again;
    of a camera each frame is drawn as an image.
    """

    whole: Item
    open: Callable[[int], Capture]  # with the maximum of pixels
    every: int = 1
    most: int | None = None
    path: Path | None = None

    @property
    def name(self) -> str:
        """Name of the film."""
        return self.whole.name

    @property
    def is_live(self) -> bool:
        """Whether it is a camera."""
        return self.path is None

    @property
    def file(self) -> str:
        """Path of the video with all results drawn, below the folder of the results."""
        stem = self.whole.stem
        *folders, last = (stem[:-4] if stem.lower().endswith(".mp4") else stem).split("/")
        return "/".join(["images", *map(fit_name, folders), fit_name(last, ".mp4")])

    def count(self, max_pixels: int) -> int | None:
        """Return the number of frames by the container, 1 for what can't be opened."""
        if self.is_live:
            return self.most
        try:
            capture = self.open(max_pixels)
        except ImageError:
            return 1
        capture.close()
        known = None if capture.count is None else -(-capture.count // self.every)
        return known if self.most is None else min(self.most, known or self.most)

    def items(self, max_pixels: int) -> Iterator[tuple[Item, Load]]:
        """Yield the frames; a failure that ends them early is an image that fails, with the film's name."""
        try:
            for frame in self.frames(self.open(max_pixels)):
                yield self.item(frame), _pixels(frame.pixels)
        except ImageError as error:
            yield self.whole, _failing(error)

    def frames(self, capture: Capture) -> Iterator[Frame]:
        """Yield the frames that count."""
        return capture.frames(every=self.every, most=self.most)

    def item(self, frame: Frame) -> Item:
        """Name a frame."""
        number = f"{frame.number:06d}"
        return replace(
            self.whole,
            name=f"{self.name}#{number}",
            stem=f"{self.whole.stem}/{number}",
            seconds=frame.seconds,
            drawn=self.is_live,
        )


def _pixels(pixels: ImageArray) -> Load:
    def load() -> Content:
        digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=20)
        digest.update(np.ascontiguousarray(pixels).data)
        return Content(digest.hexdigest(), lambda: pixels)

    return load


def _failing(error: ImageError) -> Load:
    def load() -> Content:
        raise error

    return load


@dataclass(frozen=True)
class FolderPlan:
    """The sources in order, the folders that were searched, a line for each kind that was left out."""

    sources: tuple[Source, ...]
    searched: tuple[Path, ...]
    left_out: tuple[str, ...]

    @property
    def stills(self) -> list[Item]:
        """The images that are known before anything is opened."""
        return [source.item for source in self.sources if isinstance(source, Still)]

    @property
    def films(self) -> list[Film]:
        """The videos whose results are drawn into a video."""
        return [s for s in self.sources if isinstance(s, Film) and not s.is_live]

    @property
    def files(self) -> list[Path]:
        """The files that are read."""
        return [source.path for source in self.sources if source.path is not None]

    def count(self, max_pixels: int) -> int | None:
        """Estimate the number of images; None: nobody knows."""
        counts = [source.count(max_pixels) for source in self.sources]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def items(self, max_pixels: int) -> Iterator[tuple[Item, Load]]:
        """Yield all images; see `Source.items`."""
        for source in self.sources:
            yield from source.items(max_pixels)
