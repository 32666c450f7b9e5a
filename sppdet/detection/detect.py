"""Detection in an image from its feature maps and proposals: scores, NMS, box regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.boxes import (
    clip_boxes,
    decode_deltas,
    empty_boxes,
    flip_boxes,
    nms,
    soft_nms,
    vote_boxes,
)
from sppdet.config import Classifier, DetectConfig
from sppdet.detection.ranking import Ranking
from sppdet.errors import DataError
from sppdet.features.regions import FeatureExtractor, Windows
from sppdet.training_config import Layer
from sppdet.types import Boxes, Detections, FeatureMaps, Proposals, Scores

VERSION = 1  # raise it when the same model gives other detections
TINY = 1e-7  # that the probability 1 is taken less of, to have finite odds


@dataclass(frozen=True)
class Classifiers:
    """Linear classifiers of all classes on the features of one layer, before scaling.

    SVMs score by their margins; a softmax, whose first row is the background, by log odds, so that 0 is
    even and the sigmoid of a score is the probability.
    """

    layer: Layer
    weights: torch.Tensor  # (K, D) float32; (K + 1, D) of a softmax
    biases: torch.Tensor  # (K,) float32; (K + 1,) of a softmax
    kind: Classifier = "svm"

    def to(self, device: torch.device) -> Classifiers:
        """Return the same on a device."""
        return replace(self, weights=self.weights.to(device), biases=self.biases.to(device))

    def scores(self, products: torch.Tensor) -> torch.Tensor:
        """Compute the scores (U, K) of windows from their features' products with the weights.

        Args:
            products: (U, K), or (U, K + 1) of a softmax.
        """
        linear = products + self.biases
        if self.kind == "svm":
            return linear
        log_p = torch.log_softmax(linear, dim=1)[:, 1:].clamp(max=-TINY)
        return log_p - torch.log(-torch.expm1(log_p))


@dataclass(frozen=True)
class Regressors:
    """Box regressors of all classes on the features of one layer, before scaling."""

    layer: Layer
    weights: torch.Tensor  # (K, D, 4) float32
    biases: torch.Tensor  # (K, 4) float32

    def to(self, device: torch.device) -> Regressors:
        """Return the same on a device."""
        return replace(self, weights=self.weights.to(device), biases=self.biases.to(device))

    @cached_property
    def rows(self) -> torch.Tensor:
        """The weights (K, 4, D), as products of windows take them."""
        return self.weights.transpose(1, 2).contiguous()


@dataclass(frozen=True)
class DetectionParts:
    """Trained parts of a detector after the feature maps, and its settings."""

    class_names: tuple[str, ...]
    extractor: FeatureExtractor
    classifiers: Classifiers
    regressors: Regressors | None
    config: DetectConfig
    ranking: Ranking | None = None  # of windows, for `max_windows`


@dataclass(frozen=True)
class View:
    """Feature maps of an image, or of its mirror image, and the windows of its proposals there."""

    maps: FeatureMaps
    windows: Windows

    def products(
        self, extractor: FeatureExtractor, layer: Layer, weights: torch.Tensor
    ) -> torch.Tensor:
        """Multiply the features of all distinct windows with weights (K, D); returns (U, K)."""
        return extractor.products(self.maps, self.windows.cells, layer, weights)

    def pooled(self, extractor: FeatureExtractor, row: int) -> torch.Tensor:
        """Pool the window of a proposal; returns (D,)."""
        return extractor.pool(self.maps, self.windows.cells[self.windows.index[[row]]])[0]

    def of(self, rows: NDArray[np.int64]) -> View:
        """Take the proposals of these rows (N,)."""
        used, index = np.unique(self.windows.index[rows], return_inverse=True)
        return View(self.maps, Windows(self.windows.cells[used], index))


@dataclass(frozen=True)
class ScoredProposals:
    """An image's proposals, scored by one model; `move` regresses those that are chosen."""

    parts: DetectionParts
    boxes: Boxes  # (P, 4)
    scores: Scores  # (P, K)
    views: tuple[View, ...]  # of the image and, with flip, of its mirror image

    @torch.inference_mode()
    def move(self, chosen: Sequence[NDArray[np.int64]], *, width: int, height: int) -> list[Boxes]:
        """Regress and clip the boxes of the rows that each class has chosen.

        A box that would leave the image stays where it is, and so do all without box regression.
        """
        counts = [len(rows) for rows in chosen]
        rows = np.concatenate(chosen)
        boxes = self.boxes[rows]
        regressors = self.parts.regressors
        if regressors is not None and len(rows):
            views = [_deltas(view, self.parts.extractor, regressors, chosen) for view in self.views]
            deltas = views[0]
            if len(views) == 2:
                deltas = (deltas + views[1] * _MIRRORED) / np.float32(2)
            with np.errstate(over="ignore"):  # a box beyond float32 is kept unmoved
                moved = decode_deltas(boxes, deltas)
            boxes = _clip_or_keep(moved, boxes, width=width, height=height)
        return np.split(boxes, np.cumsum(counts)[:-1])


_MIRRORED = np.array([-1, 1, 1, 1], dtype=np.float32)  # dx of a mirrored box points the other way


@torch.inference_mode()
def score(
    parts: DetectionParts,
    maps: FeatureMaps,
    proposals: Proposals,
    *,
    width: int,
    mirrored: FeatureMaps | None = None,
) -> ScoredProposals:
    """Score every window for every class, or only the `max_windows` that the ranking puts first.

    Args:
        maps: maps of the image, on the device of the parts.
        proposals: boxes in original pixels, of which there may be none.
        width: of the image in original pixels.
        mirrored: maps of the image mirrored left to right. The scores of a proposal and of its mirror
            image are averaged, and so are their box deltas, those of the mirror image with -dx.

    Raises:
        DataError: a score isn't finite.
    """
    if len(proposals) == 0:
        nothing = np.zeros((0, len(parts.class_names)), dtype=np.float32)
        return ScoredProposals(parts, empty_boxes(), nothing, ())
    extractor, classifiers = parts.extractor, parts.classifiers
    kept = _first_windows(parts, maps, proposals.boxes)
    views = [View(maps, extractor.windows(maps, kept))]
    if mirrored is not None:
        flipped = flip_boxes(kept, width=width)
        views.append(View(mirrored, extractor.windows(mirrored, flipped)))
    scores = []
    for view in views:
        products = view.products(extractor, classifiers.layer, classifiers.weights)
        scores.append(classifiers.scores(products).cpu().numpy()[view.windows.index])  # [P, K]
    mean = scores[0] if len(scores) == 1 else (scores[0] + scores[1]) / 2
    if not np.isfinite(mean).all():
        raise DataError("scores that aren't finite: are the model's weights the right ones?")
    return ScoredProposals(parts, kept, mean, tuple(views))


def _first_windows(parts: DetectionParts, maps: FeatureMaps, boxes: Boxes) -> Boxes:
    """Keep the boxes whose windows are to be scored."""
    if parts.ranking is None or parts.config.max_windows is None:
        return boxes
    return parts.ranking.first(parts.extractor, maps, boxes, parts.config.max_windows)


def weigh(scored: ScoredProposals, weight: float, *, min_score: float) -> ScoredProposals:
    """Multiply the excess of a model's scores over `min_score` by a weight > 0.

    Margins below `min_score`, which can be negative, stay below it and those above it stay above: a
    weight changes a model's rank among several, not which of its proposals count. 1 changes no bit.
    """
    if weight == 1:
        return scored
    low = np.float32(min_score)
    return replace(scored, scores=low + np.float32(weight) * (scored.scores - low))


@dataclass(frozen=True)
class Selection:
    """Detections of an image, and the scored proposal of each."""

    detections: Detections
    rows: NDArray[np.int64]  # (N,) rows of the scored proposals of all models, one after the other


def suppress(
    scored: Sequence[ScoredProposals], config: DetectConfig, *, width: int, height: int
) -> Detections:
    """Apply NMS, box regression and voting; returns the detections of `select`."""
    return select(scored, config, width=width, height=height).detections


def select(
    scored: Sequence[ScoredProposals], config: DetectConfig, *, width: int, height: int
) -> Selection:
    """Apply NMS per class to the union of all models' scored proposals, then regress, clip and vote.

    NMS and soft-NMS compare proposals, before regression; each box that is kept is regressed by the
    model that has scored it. With `box_voting` all proposals of the class with a score >= `min_score`
    are regressed as well, by their own models, and those whose regressed boxes have the IoU with the
    regressed box of a detection vote for it. The weight of a vote is the sigmoid of its score, also
    after soft-NMS of the score before it: margins can be negative, a sigmoid is positive, and it
    doesn't depend on `min_score`.

    Args:
        scored: proposals of one image by models with the same classes, one model or more; their scores
            are compared as they are.
        width, height: size of the image in original pixels.

    Returns:
        Detections in descending score; none for no proposals.
    """
    names = scored[0].parts.class_names
    boxes = np.concatenate([one.boxes for one in scored])
    scores = np.concatenate([one.scores for one in scored])  # [P, K]
    limits = [config.lowest_score(one.parts.classifiers.kind) for one in scored]
    of_each = np.repeat(np.array(limits, dtype=np.float32), [len(one.boxes) for one in scored])
    enough = of_each <= scores.T  # [K, P]
    candidates = [np.flatnonzero(of_class) for of_class in enough]
    chosen, kept_scores = [], []
    for k, rows in enumerate(candidates):
        kept, decayed = _choose(boxes[rows], scores[rows, k], config, min_score=min(limits))
        chosen.append(rows[kept])
        kept_scores.append(decayed)
    voting = config.box_voting is not None
    moved = _move(scored, candidates if voting else chosen, width=width, height=height)
    if config.box_voting is not None:
        moved = [
            _vote(of_class, np.searchsorted(rows, kept), scores[rows, k], config.box_voting)
            for k, (of_class, rows, kept) in enumerate(zip(moved, candidates, chosen, strict=True))
        ]
    labels = np.repeat(np.arange(1, len(chosen) + 1), [len(rows) for rows in chosen])
    all_scores = np.concatenate(kept_scores)
    order = np.argsort(-all_scores, kind="stable")
    found = Detections(np.concatenate(moved)[order], all_scores[order], labels[order], names)
    return Selection(found, np.concatenate(chosen)[order])


def _deltas(
    view: View,
    extractor: FeatureExtractor,
    regressors: Regressors,
    chosen: Sequence[NDArray[np.int64]],
) -> NDArray[np.float32]:
    """Compute box deltas (N, 4) of the rows that each class has chosen, class by class."""
    parts = []
    for k, rows in enumerate(chosen):
        if len(rows):
            own = view.of(rows)
            products = own.products(extractor, regressors.layer, regressors.rows[k])
            parts.append((products + regressors.biases[k])[own.windows.index])
    return torch.cat(parts).cpu().numpy()  # at once, so that a GPU is waited for once


def _choose(
    boxes: Boxes, scores: Scores, config: DetectConfig, *, min_score: float
) -> tuple[NDArray[np.int64], Scores]:
    """Select the rows of one class's detections and their scores, in descending score."""
    most = config.max_per_class
    if config.soft_nms is not None:
        return soft_nms(boxes, scores, sigma=config.soft_nms, min_score=min_score, max_boxes=most)
    kept = nms(boxes, scores, max_iou=config.nms, max_boxes=most)
    return kept, scores[kept]


def _move(
    scored: Sequence[ScoredProposals],
    chosen: Sequence[NDArray[np.int64]],
    *,
    width: int,
    height: int,
) -> list[Boxes]:
    """Regress the boxes of the rows of all proposals that each class has chosen, by their own models."""
    moved = [np.zeros((len(rows), 4), dtype=np.float32) for rows in chosen]
    start = 0
    for one in scored:
        own = [(start <= rows) & (rows < start + len(one.boxes)) for rows in chosen]
        parts = [rows[mine] - start for rows, mine in zip(chosen, own, strict=True)]
        of_model = one.move(parts, width=width, height=height)
        for boxes, mine, regressed in zip(moved, own, of_model, strict=True):
            boxes[mine] = regressed
        start += len(one.boxes)
    return moved


def _vote(boxes: Boxes, kept: NDArray[np.int64], scores: Scores, min_iou: float) -> Boxes:
    """Replace the boxes of the rows kept of one class by the means of their neighbours."""
    weights = np.exp(-np.logaddexp(0.0, -scores.astype(np.float64)))  # sigmoid
    return vote_boxes(boxes[kept], boxes, weights, min_iou=min_iou)


def _clip_or_keep(moved: Boxes, before: Boxes, *, width: int, height: int) -> Boxes:
    """Clip regressed boxes to the image; one outside reverts to its proposal."""
    clipped = clip_boxes(moved, width=width, height=height)
    # NaN compares false, so this includes boxes whose deltas aren't finite
    outside = ~((clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1]))
    clipped[outside] = before[outside]
    return clipped
