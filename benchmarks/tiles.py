"""What tiles find in large images: mosaics of images that a run hasn't seen, in whole and by tiles.

    python benchmarks/tiles.py RUN [--data ROOT] [--side 4] [--mosaics 4] [--tile 640] [--overlap 0.2]
                               [--set test] [--behind 0,0.1,0.25,0.5,1]

A mosaic is `side` x `side` images in cells of 640 pixels; it takes the run's one or more scales as
any image does, so that objects in it are small. Prints VOC 2007 AP and the objects that are found
(IoU >= 0.5, at the threshold with the best F1), of: the images one by one, which tiles can't exceed by
much; the mosaics whole; by tiles alone; by tiles and whole, as `sppdet detect --tile` does. `--set` takes
another set, without the images that the run was trained on; `--behind` has a row for each number by which
cut boxes stand behind their scores (see `merge_tiles`), which is chosen on such a set.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import replace
from pathlib import Path

import before_torch  # noqa: F401
import numpy as np

from sppdet.boxes import box_iou
from sppdet.detection.tiles import merge_tiles
from sppdet.evaluation.voc import evaluate_voc
from sppdet.io.images import read_image, upright_size
from sppdet.io.splits import read_split
from sppdet.randomness import rng
from sppdet.runs.environment import set_threads
from sppdet.stages.detector import Detector
from sppdet.stages.model_files import read_run_config
from sppdet.stages.thresholds import Threshold, least_scores
from sppdet.types import AnnotatedImage, Dataset, Detections, ImageArray

CELL = 640  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, help="another root of the run's data set")
    parser.add_argument("--side", type=int, default=4)
    parser.add_argument("--mosaics", type=int, default=4)
    parser.add_argument("--tile", type=int, default=640)
    parser.add_argument("--overlap", type=float, default=0.2)
    parser.add_argument("--set", default="test")
    parser.add_argument("--behind", default="", help="numbers to compare, separated by commas")
    args = parser.parse_args()
    set_threads(1)
    detector = Detector.load(args.run, device="cpu")
    config = read_run_config(args.run)
    data = config.data
    if args.data is not None:
        data = data.model_copy(update={"root": [args.data]})
    dataset = read_split(data, args.set, detector.class_names, None, workers=1)
    own = read_split(config.data, "train", detector.class_names, None, workers=1)
    trained_on = {image.id for image in own.images}
    count = args.mosaics * args.side**2
    order = rng(0, "images of mosaics").permutation(len(dataset))
    drawn = (dataset.images[i] for i in order)
    unseen = (image for image in drawn if image.id not in trained_on)
    fitting = (image for image in unseen if max(upright_size(image.path)) <= CELL)
    images = list(itertools.islice(fitting, count))
    mosaics = [
        mosaic(images[start : start + args.side**2], f"mosaic{start}", args.side)
        for start in range(0, len(images) - args.side**2 + 1, args.side**2)
    ]
    singles = replace(dataset, images=tuple(images))
    large = replace(dataset, images=tuple(truth for truth, _ in mosaics))
    pixels = args.side * CELL
    print(f"{len(mosaics)} mosaics of {pixels}x{pixels} pixels, tiles of {args.tile}, ", end="")
    print(f"scales {config.scales}, one thread\n")
    print("| detection | mAP (VOC 2007) | objects found | false detections | s a mosaic |")
    print("|---|---|---|---|---|")
    of_each = [read_image(image.path) for image in images[: len(mosaics) * args.side**2]]
    row("images one by one", detector, singles, of_each, per=len(mosaics))
    shown = [image for _, image in mosaics]
    row("mosaics, whole", detector, large, shown)
    memory: dict[int, list[Detections]] = {}
    tiled = detector.tiled(args.tile, overlap=args.overlap)
    row("by tiles alone", OnlyTiles(tiled), large, shown)
    row("by tiles and whole", tiled, large, shown)
    for behind in [float(text) for text in args.behind.split(",") if text]:
        merged = Merged(tiled, behind, memory)
        row(f"by tiles and whole, cut boxes {behind:g} behind", merged, large, shown)


class Merged:
    """A detector by tiles whose cut boxes stand `behind`; what it detects in a tile is kept in `memory`."""

    def __init__(
        self, detector: Detector, behind: float, memory: dict[int, list[Detections]]
    ) -> None:
        self.detector, self.behind, self.memory = detector, behind, memory
        self.class_names = detector.class_names
        self.calibration = detector.calibration

    def __call__(self, image: ImageArray) -> Detections:
        height, width = image.shape[:2]
        tiles = self.detector.tiles(width=width, height=height)
        plain = replace(self.detector, tiling=None)
        if id(image) not in self.memory:
            self.memory[id(image)] = [
                plain(np.ascontiguousarray(image[y1:y2, x1:x2])) for x1, y1, x2, y2 in tiles
            ]
        return merge_tiles(
            self.memory[id(image)], tiles, max_iou=self.detector.config.nms,
            width=width, height=height, behind=self.behind,
        )  # fmt: skip


class OnlyTiles:
    """A detector that leaves the whole image out."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.class_names = detector.class_names
        self.calibration = detector.calibration

    def __call__(self, image: ImageArray) -> Detections:
        height, width = image.shape[:2]
        tiles = self.detector.tiles(width=width, height=height)[:-1]
        plain = replace(self.detector, tiling=None)
        found = [plain(np.ascontiguousarray(image[y1:y2, x1:x2])) for x1, y1, x2, y2 in tiles]
        most = self.detector.config.nms
        return merge_tiles(found, tiles, max_iou=most, width=width, height=height)


def row(
    what: str,
    detector: Detector | Merged | OnlyTiles,
    dataset: Dataset,
    images: list[ImageArray],
    *,
    per: int | None = None,
) -> None:
    """Detect in the images and print what is found."""
    detector(images[0])  # compiles
    start = time.monotonic()
    found = {
        image.id: detector(pixels) for image, pixels in zip(dataset.images, images, strict=False)
    }
    seconds = (time.monotonic() - start) / (per or len(images))
    dataset = replace(dataset, images=dataset.images[: len(images)])
    result = evaluate_voc(dataset, found, metric="voc07")
    least, _ = least_scores(detector, Threshold())
    hits = objects = false = 0
    for image in dataset.images:
        kept = found[image.id].above(np.broadcast_to(least, len(dataset.class_names)))
        own = hits_of(image, kept)
        hits += own
        objects += len(image.gt_boxes)
        false += len(kept) - own
    print(
        f"| {what} | {100 * result.mean_ap:.1f} | {hits} of {objects} | {false} | {seconds:.1f} |",
        flush=True,
    )


def hits_of(image: AnnotatedImage, found: Detections) -> int:
    """Count the objects that a detection of their class matches, each detection once."""
    free = np.ones(len(found), dtype=bool)
    hits = 0
    iou = box_iou(image.gt_boxes, found.boxes)
    for overlaps, label in zip(iou, image.gt_labels, strict=True):
        fits = np.flatnonzero(free & (found.labels == label) & (overlaps >= 0.5))
        if len(fits):
            free[fits[np.argmax(overlaps[fits])]] = False
            hits += 1
    return hits


def mosaic(images: list[AnnotatedImage], name: str, side: int) -> tuple[AnnotatedImage, ImageArray]:
    """Lay images out in cells, in grey; returns the image's ground truth and its pixels."""
    canvas = np.full((side * CELL, side * CELL, 3), 128, dtype=np.uint8)
    boxes = []
    for number, image in enumerate(images):
        x, y = CELL * (number % side), CELL * (number // side)
        pixels = read_image(image.path)
        canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
        boxes.append(image.gt_boxes + np.array([x, y, x, y], dtype=np.float32))
    truth = AnnotatedImage(
        name,
        Path(name),
        side * CELL,
        side * CELL,
        np.concatenate(boxes),
        np.concatenate([image.gt_labels for image in images]),
        np.concatenate([image.difficult for image in images]),
        np.concatenate([image.truncated for image in images]),
    )
    return truth, canvas


if __name__ == "__main__":
    main()
