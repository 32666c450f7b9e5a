"""Features and scores of an image's windows: once over the whole image, against R-CNN's crops.

    python benchmarks/rcnn.py [--net zf5] [--windows 2000] [--scales 688] [--classes 20] [--threads 1]
                              [--device cpu] [--batch 64] [--repeats 3] [--image FILE] [--json FILE]

Both sides have the same layers (random weights, float16 on a GPU), pooling {6, 3, 2, 1}, fc6 and fc7 of
4,096 (--head none: none) and one linear SVM a class. R-CNN cuts every window out with 16 px of context at
its own scale, warps it to 227×227 and runs the layers on it, in batches. The windows are selective
search's on the image (--image, or a made one), repeated where there are too few. Proposals are left
out, as in the paper. The two sides alternate; medians and their ratio are printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import before_torch  # noqa: F401
import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.boxes import clip_boxes
from sppdet.config import FeaturesConfig, ProposalsConfig
from sppdet.demo.set import make_demo_set
from sppdet.features.head import build_head
from sppdet.features.preprocessing import IMAGENET
from sppdet.features.pyramid import SpatialPyramid
from sppdet.features.regions import FeatureExtractor
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.finding import find_images
from sppdet.io.images import read_image
from sppdet.parallel import multiplying_in
from sppdet.runs.environment import set_threads
from sppdet.stages.proposer import Proposer
from sppdet.training_config import HeadConfig, Layer
from sppdet.types import Boxes, ImageArray

LEVELS = (6, 3, 2, 1)
SIDE, CONTEXT = 227, 16  # pixels of a warped crop, and of what is around the window in it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", default="zf5")
    parser.add_argument("--head", default="4096,4096")
    parser.add_argument("--windows", type=int, default=2000)
    parser.add_argument("--scales", default="688")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    set_threads(args.threads)
    device = torch.device(args.device)
    scales = [int(text) for text in args.scales.split(",")]
    widths = None if args.head == "none" else [int(text) for text in args.head.split(",")]
    times = compare(
        read_image(args.image) if args.image else made_image(),
        args.windows,
        scales,
        net=args.net,
        widths=widths,
        classes=args.classes,
        device=device,
        batch=args.batch,
        repeats=args.repeats,
    )
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    ratio = medians["R-CNN"] / medians["sppdet"]
    print(
        f"{args.net}, head {args.head}, {args.windows} windows, scales {scales}, "
        f"{args.threads} threads, {device}\n\n| | seconds an image |\n|---|---|"
    )
    for name, seconds in medians.items():
        print(f"| {name} | {seconds:.3f} |")
    print(f"\nratio {ratio:.1f}")
    if args.json is not None:
        args.json.write_text(json.dumps({"seconds": times, "ratio": ratio}, indent=1))


def compare(
    image: ImageArray,
    windows: int,
    scales: list[int],
    *,
    net: str,
    widths: list[int] | None,
    classes: int,
    device: torch.device,
    batch: int,
    repeats: int,
) -> dict[str, list[float]]:
    """Seconds of both sides on an image, in turns.

    Args:
        widths: of fc6 and fc7; None: no head.
        batch: crops that go through R-CNN's layers together.
    """
    boxes = some_boxes(image, windows)
    backbone = load_backbone(net, "none")
    backbone.layers.to(device)
    head = None
    if widths is not None:
        head = build_head(backbone, LEVELS, HeadConfig(widths=widths), outputs=21, seed=0)
        head = head.to(device).eval().requires_grad_(False)
    layer: Layer = "pool5" if head is None else "fc7" if head.fc7 else "fc6"
    settings = FeaturesConfig()
    extractor = FeatureExtractor.by(LEVELS, settings, head, device)
    width = extractor.width(layer, backbone.channels)
    svms = torch.randn(classes, width, device=device)
    pyramid = SpatialPyramid(LEVELS)

    @torch.inference_mode()
    def ours() -> torch.Tensor:
        maps = backbone.feature_maps(backbone.scaled(image, scales, settings), extractor.precision)
        found = extractor(maps, boxes, layer)
        scores = found.values @ svms.T
        return scores.cpu()[torch.from_numpy(found.index)]

    @torch.inference_mode()
    def rcnn(count: int) -> torch.Tensor:
        parts = []
        for start in range(0, count, batch):
            crops = np.stack([warped(image, box) for box in boxes[start : start + batch]])
            x = IMAGENET.normalised(torch.from_numpy(crops).to(device))
            x = x.contiguous(memory_format=torch.channels_last)
            with multiplying_in(extractor.precision, device):
                pooled = pyramid(backbone.layers(x))
                features = pooled if head is None else head.features(pooled, layer)
            parts.append(features.float() @ svms.T)
        return torch.cat(parts).cpu()

    times: dict[str, list[float]] = {"sppdet": [], "R-CNN": []}
    ours()  # both are warmed up
    rcnn(min(batch, len(boxes)))
    for _ in range(repeats):
        for name, work in (("sppdet", ours), ("R-CNN", partial(rcnn, len(boxes)))):
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return times


def warped(image: ImageArray, box: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(227, 227, 3): a window with its context, squeezed; beyond the image it is black."""
    inner = SIDE - 2 * CONTEXT
    factor = inner / (box[2:] - box[:2])
    matrix = np.array(
        [
            [factor[0], 0, CONTEXT - box[0] * factor[0]],
            [0, factor[1], CONTEXT - box[1] * factor[1]],
        ]
    )
    return np.asarray(cv2.warpAffine(image, matrix, (SIDE, SIDE)), dtype=np.uint8)


def some_boxes(image: ImageArray, count: int) -> Boxes:
    """(count, 4) proposals; where there are too few, the same ones moved by a pixel or more."""
    found = Proposer(ProposalsConfig(max_boxes=count)).of(image).boxes
    height, width = image.shape[:2]
    boxes = found
    shift = 0
    while len(boxes) < count:
        shift += 1
        moved = clip_boxes(found + np.float32(shift), width=width, height=height)
        sides = moved[:, 2:] - moved[:, :2]
        boxes = np.concatenate([boxes, moved[(sides >= 10).all(axis=1)]])
    return boxes[:count]


def made_image() -> ImageArray:
    """An image of the demo set, enlarged to 500 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        root = make_demo_set(Path(folder) / "set", seed=0, train_images=1, test_images=1)
        image = read_image(find_images([root])[0])
    factor = 500 / max(image.shape[:2])
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor), dtype=np.uint8)


if __name__ == "__main__":
    main()
