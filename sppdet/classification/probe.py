"""Linear probe: features of images from a network's layer, one linear SVM per class.

The paper's Tables 6 (VOC 2007 classification) and 7 (Caltech-101): features scaled to length 1, no
augmentation, one-vs-rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sppdet.classification.config import ProbeConfig
from sppdet.classification.data import read_folder, split_classes
from sppdet.classification.views import centre_crop, whole_factor
from sppdet.data_config import DataConfig
from sppdet.errors import ConfigError, DataError, image_named
from sppdet.evaluation.curves import average_precision, mean_of_known
from sppdet.evaluation.voc import precision_recall, warn_uncounted
from sppdet.features.backbones import Backbone
from sppdet.features.head import Head, build_head
from sppdet.features.pyramid import SpatialPyramid
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.image_cache import ImageCache
from sppdet.io.images import read_image
from sppdet.io.splits import read_split
from sppdet.parallel import ordered_map
from sppdet.resizing import resized_to
from sppdet.runs.artifacts import write_json
from sppdet.runs.environment import worker_count
from sppdet.runs.log import LOGGER, RESULT
from sppdet.runs.places import claim_folder
from sppdet.runs.progress import track
from sppdet.stages.model import choose_device
from sppdet.types import Dataset, ImageArray

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class ProbeResult:
    """Scores of a probe: accuracy of every split, or the 11-point mAP of VOC's test set."""

    metric: str  # accuracy, or mAP (voc07)
    values: tuple[float, ...]
    width: int  # of the features
    per_class: dict[str, float]  # mean over the splits

    @property
    def mean(self) -> float:
        """Mean over the splits."""
        return float(np.mean(self.values))


class Features:
    """Feature extractor with the settings of a probe."""

    def __init__(self, config: ProbeConfig, *, device: torch.device) -> None:
        self._config = config
        self._backbone = load_backbone(config.backbone.name, config.backbone.weights, whole=True)
        self._backbone.layers.to(device)
        self._pyramid = SpatialPyramid(config.spp_levels)
        self._device = device
        self._head = _head(config, self._backbone, device)
        if config.layer == "conv" and config.image == "full":
            raise ConfigError(
                "layer: conv has another length for every image; expected image: crop or warp"
            )

    @torch.inference_mode()
    def of(self, image: ImageArray) -> Matrix:
        """Compute the features (D,) of an image, scaled to length 1."""
        maps = self._backbone.layers(self._input(image).to(self._device))
        if self._config.layer == "conv":
            values = maps.flatten(1)
        else:
            values = self._pyramid(maps)
            if self._head is not None:
                layer: str = self._config.layer
                values = self._head.features(values, "fc7" if layer == "fc7" else "fc6")
        vector: Matrix = torch.nn.functional.normalize(values.float(), dim=1)[0].cpu().numpy()
        return vector

    def _input(self, image: ImageArray) -> torch.Tensor:
        side, factor = self._config.side, 1.0
        if self._config.image == "full":
            factor = whole_factor(image, side)
        elif self._config.image == "crop":
            image = centre_crop(image, side=side, crop=side, size=side)
        else:
            image = resized_to(image, side, side)
        return self._backbone.preprocessing.to_input(image, factor)

    def of_all(self, paths: Sequence[Path], *, workers: int) -> Matrix:
        """Compute the features (N, D) of images."""
        read = partial(read_image, max_pixels=self._config.data.max_pixels)
        images = ordered_map(read, paths, workers=workers)
        tracked = track(images, total=len(paths), label="features")
        rows = []
        for path, image in zip(paths, tracked, strict=True):
            with image_named(path):
                rows.append(self.of(image))
        return np.stack(rows)


def _head(config: ProbeConfig, backbone: Backbone, device: torch.device) -> Head | None:
    if config.layer not in ("fc6", "fc7"):
        return None
    if config.head is None or backbone.fc is None:
        raise ConfigError(
            f"layer: {config.layer} needs head.widths and weights that have fully connected layers"
        )
    if config.layer == "fc7" and (len(config.head.widths) < 2 or backbone.fc.fc7 is None):
        raise ConfigError("layer: fc7 needs two head.widths and weights that have an fc7")
    own = [fc.out_features for fc in (backbone.fc.fc6, backbone.fc.fc7) if fc is not None]
    if config.head.widths != own[: len(config.head.widths)]:
        raise ConfigError(f"head.widths: {config.head.widths}, expected the weights' own {own}")
    missing = [n for n in backbone.fc.levels if n not in config.spp_levels]
    if missing:
        raise ConfigError(f"spp_levels: {config.spp_levels} has no {missing[0]}, which fc6 needs")
    head = build_head(backbone, config.spp_levels, config.head, outputs=1, seed=0)
    return head.to(device).eval().requires_grad_(False)


def probe(config: ProbeConfig, out: Path, *, device: str = "auto") -> ProbeResult:
    """Train and test linear SVMs on features; write `probe.json` into the folder `out`.

    Raises:
        ConfigError: the network or the weights don't have the layer.
        DataError: see the readers.
    """
    claim_folder(out, command="probe")
    features = Features(config, device=choose_device(device))
    if config.data.format == "voc":
        result = _probe_voc(config, features)
    else:
        result = _probe_folders(config, features)
    spread = float(np.std(result.values))
    LOGGER.log(
        RESULT,
        "%s: %.4f ± %.4f over %d splits, features of %d",
        *(result.metric, result.mean, spread, len(result.values), result.width),
    )
    settings = config.model_dump(mode="json")
    facts = {**vars(result), "mean": result.mean, "deviation": spread, "settings": settings}
    write_json(out / "probe.json", facts)
    return result


def _probe_folders(config: ProbeConfig, features: Features) -> ProbeResult:
    data = config.data
    training = read_folder(data.root / data.train)
    same = data.train == data.test
    if same and data.train_per_class is None:
        raise ConfigError("data.train_per_class: expected where train and test are the same folder")
    other = training if same else read_folder(data.root / data.test, training.class_names)
    workers = worker_count(config.workers)
    # the features of an image are computed once for all splits
    paths = sorted({*training.paths, *other.paths})
    row_of = {path: row for row, path in enumerate(paths)}
    values = features.of_all(paths, workers=workers)
    accuracies: list[float] = []
    by_class: dict[str, list[float]] = {}
    for seed in config.splits:
        train, rest = split_classes(
            training, first=data.train_per_class, second=data.test_per_class, seed=seed
        )
        test = rest
        if not same:
            test, _ = split_classes(other, first=data.test_per_class, second=None, seed=seed)
        if len(test) == 0:
            raise ConfigError("data.train_per_class: leaves no image to test on")
        machine = _fit(values[[row_of[p] for p in train.paths]], train.labels, config.C)
        found = machine.predict(values[[row_of[p] for p in test.paths]])
        # the mean over classes, as Caltech-101's results are given
        correct = []
        for k, name in enumerate(train.class_names):
            if (test.labels == k).any():
                correct.append(float((found[test.labels == k] == k).mean()))
                by_class.setdefault(name, []).append(correct[-1])
        accuracies.append(float(np.mean(correct)))
        LOGGER.info("split %d: accuracy %.4f on %d images", seed, accuracies[-1], len(test))
    per_class = {name: float(np.mean(values_of)) for name, values_of in by_class.items()}
    return ProbeResult("accuracy", tuple(accuracies), values.shape[1], per_class)


def _probe_voc(config: ProbeConfig, features: Features) -> ProbeResult:
    data, workers = config.data, worker_count(config.workers)
    settings = DataConfig(
        root=[data.root], train=[data.train], test=[data.test], max_pixels=data.max_pixels
    )
    cache = ImageCache(max_pixels=data.max_pixels)
    train = read_split(settings, "train", None, cache, workers=workers)
    test = read_split(settings, "test", train.class_names, cache, workers=workers)
    x, y = (
        features.of_all([i.path for i in part.images], workers=workers) for part in (train, test)
    )
    train_truth, test_truth = (image_labels(part) for part in (train, test))
    per_class = {}
    for k, name in enumerate(train.class_names):
        known = train_truth[:, k] != 0
        if len(set(train_truth[known, k].tolist())) < 2:
            raise DataError(
                f"{train.name}: class {name}: expected images with it and images without"
            )
        if not (test_truth[:, k] > 0).any():
            per_class[name] = float("nan")
            continue
        machine = _fit(x[known], train_truth[known, k], config.C)
        scores = machine.decision_function(y)
        counted = test_truth[:, k] != 0
        order = np.argsort(-scores[counted], kind="stable")
        outcomes = (test_truth[counted, k][order] > 0).astype(np.int8)
        recall, precision = precision_recall(outcomes, ground_truths=int(outcomes.sum()))
        per_class[name] = float(average_precision(recall, precision, metric="voc07"))
        LOGGER.info("%s: AP (voc07) %.4f", name, per_class[name])
    warn_uncounted([name for name, ap in per_class.items() if np.isnan(ap)], test.name)
    mean = mean_of_known(list(per_class.values()))
    known_aps = {name: ap for name, ap in per_class.items() if not np.isnan(ap)}
    return ProbeResult("mAP (voc07)", (mean,), x.shape[1], known_aps)


def image_labels(dataset: Dataset) -> NDArray[np.int64]:
    """Label images by class (N, K): 1 with an object, -1 without, 0 with difficult objects only.

    VOC's classification task ignores an image labelled 0 for that class.
    """
    truth = np.full((len(dataset), len(dataset.class_names)), -1, dtype=np.int64)
    for row, image in enumerate(dataset.images):
        truth[row, image.gt_labels[image.difficult] - 1] = 0
        truth[row, image.gt_labels[~image.difficult] - 1] = 1
    return truth


def _fit(x: Matrix, y: NDArray[np.int64], c: float):  # type: ignore[no-untyped-def]
    from sklearn.svm import LinearSVC

    return LinearSVC(C=c, random_state=0, max_iter=5000).fit(x, y)
