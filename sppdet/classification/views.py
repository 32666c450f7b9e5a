"""Views of an image for testing: crops, the whole image, or windows of the whole image's maps.

A view is a square of `crop` resized pixels at one of the positions below, mirrored or not, of the
image resized to a shorter side. With maps the layers run once on each resized image and its mirror
image, and the views are pooled from the maps (paper §3.3).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.classification.classifier import SppClassifier
from sppdet.classification.config import ViewSet
from sppdet.features.geometry import project, scale_factor
from sppdet.features.preprocessing import IMAGENET
from sppdet.features.spp import spp_windows
from sppdet.resizing import resized, resized_to
from sppdet.types import ImageArray

_CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
_CENTRE = (0.5, 0.5)
_SIDE_MIDDLES = ((0.5, 0.0), (0.5, 1.0), (0.0, 0.5), (1.0, 0.5))
PAPER_SIDES = (224, 256, 300, 360, 448, 560)  # resized pixels
_MAX_SIDE = 8192  # maximum longer side of a resized image, in pixels (ours)


@dataclass(frozen=True)
class View:
    """A square at a position (0..1 of the free width and height), or the whole image."""

    side: int  # shorter side of the resized image
    position: tuple[float, float] | None  # None: the whole image
    mirrored: bool


def views_of(name: ViewSet, side: int) -> list[View]:
    """List the views of a set.

    Args:
        side: shorter side of the resized image, for sets without sides of their own.
    """
    whole = [View(side, None, mirrored) for mirrored in (False, True)]
    if name == "centre":
        return [View(side, _CENTRE, False)]
    if name == "full":
        return whole
    if name in ("10", "maps10"):
        return [View(side, p, mirrored) for p in (_CENTRE, *_CORNERS) for mirrored in (False, True)]
    views = []
    for s in PAPER_SIDES:
        # at the smallest side there is room along one axis only: the middle and both ends
        ends = ((0.0, 0.0), (1.0, 1.0))
        spots = (_CENTRE, *ends) if s == min(PAPER_SIDES) else (_CENTRE, *_CORNERS, *_SIDE_MIDDLES)
        views += [View(s, p, mirrored) for p in spots for mirrored in (False, True)]
    return views + (whole if name == "maps98" else [])


def centre_crop(image: ImageArray, *, side: int, crop: int, size: int) -> NDArray[np.uint8]:
    """Cut the centre (size, size, 3) of an image (H, W, 3) resized to a shorter side."""
    larger = resized(image, side / min(image.shape[:2]))
    return resized_to(_cut(larger, View(side, _CENTRE, False), crop), size, size)


def whole_factor(image: ImageArray, side: int) -> float:
    """Scale factor of a whole image (H, W, 3) for a shorter side."""
    height, width = image.shape[:2]
    return scale_factor(width=width, height=height, scale=side, max_side=_MAX_SIDE)


def _cut(larger: ImageArray, view: View, crop: int) -> ImageArray:
    """Cut a view's square from a resized image, which is mirrored if the view is."""
    left, top = _corner(larger.shape[1], larger.shape[0], view, crop)
    return larger[top : top + crop, left : left + crop]


def _corner(width: int, height: int, view: View, crop: int) -> tuple[int, int]:
    """Left and top of a view's square in a resized image, which is mirrored if the view is."""
    assert view.position is not None
    left = max(0, round((width - crop) * view.position[0]))
    top = max(0, round((height - crop) * view.position[1]))
    # a mirrored view is at the mirrored place
    return max(0, width - crop - left) if view.mirrored else left, top


@torch.inference_mode()
def score_crops(
    classifier: SppClassifier, image: ImageArray, views: list[View], *, crop: int, size: int
) -> torch.Tensor:
    """Mean softmax scores (K,) over views, each cut from the image and run through the whole net.

    Args:
        size: side to which a square is resized; the whole image isn't.
    """
    device = next(classifier.parameters()).device
    total = torch.zeros(len(classifier.class_names), device=device)
    crops = []
    for view in views:
        seen = _mirrored(image, view.mirrored)
        if view.position is None:
            x = IMAGENET.to_input(seen, whole_factor(image, view.side)).to(device)
            total += classifier(x).float().softmax(dim=1)[0]
        else:
            larger = resized(seen, view.side / min(image.shape[:2]))
            crops.append(resized_to(_cut(larger, view, crop), size, size))
    if crops:
        batch = (
            IMAGENET.normalised(np.stack(crops))
            .to(device)
            .contiguous(memory_format=torch.channels_last)
        )
        total += classifier(batch).float().softmax(dim=1).sum(dim=0)
    return total / len(views)


@torch.inference_mode()
def score_maps(
    classifier: SppClassifier, image: ImageArray, views: list[View], *, crop: int
) -> torch.Tensor:
    """Mean softmax scores (K,) over views pooled from maps; the layers run once per scale and flip.

    A view's window has the cells whose receptive-field centres lie inside its square; views with the
    same window are computed once.
    """
    device = next(classifier.parameters()).device
    total = torch.zeros(len(classifier.class_names), device=device)
    for (factor, mirrored), wanted in _by_map(views, image).items():
        x = IMAGENET.to_input(_mirrored(image, mirrored), factor)
        feature_map = classifier.conv(x.to(device))[0].float()
        height, width = (round(length * factor) for length in image.shape[:2])
        windows = Counter(
            _window(classifier, feature_map, view, (width, height), crop) for view in wanted
        )
        cells = np.array(list(windows), dtype=np.int64)
        pooled = spp_windows(feature_map, cells, classifier.pyramid.levels)
        scores = classifier.head(pooled).float().softmax(dim=1)
        total += torch.tensor(list(windows.values()), device=device).float() @ scores
    return total / len(views)


def _by_map(views: list[View], image: ImageArray) -> dict[tuple[float, bool], list[View]]:
    """Group views by the map that they share: scale factor and mirroring."""
    groups: dict[tuple[float, bool], list[View]] = {}
    for view in views:
        factor = whole_factor(image, view.side)
        groups.setdefault((factor, view.mirrored), []).append(view)
    return groups


def _window(
    classifier: SppClassifier,
    feature_map: torch.Tensor,
    view: View,
    size: tuple[int, int],
    crop: int,
) -> tuple[int, ...]:
    """Window (left, top, right, bottom) of a view on a map, in cells, inclusive."""
    map_height, map_width = feature_map.shape[1:]
    if view.position is None:
        return 0, 0, map_width - 1, map_height - 1
    left, top = _corner(*size, view, crop)
    box = np.array([[left, top, left + crop, top + crop]], dtype=np.float32)
    cells = project(
        box,
        np.ones(1),
        stride=classifier.stride,
        offset=classifier.offset,
        map_width=map_width,
        map_height=map_height,
    )
    return tuple(cells[0].tolist())


def _mirrored(image: ImageArray, wanted: bool) -> ImageArray:
    return np.ascontiguousarray(image[:, ::-1]) if wanted else image
