"""Fine-tuning on whole images: gradients pass through the pyramid into the convolutional layers.

A batch has the windows of a few images, whose maps are computed in the step (Girshick 2015, Fast R-CNN,
§2.3). Batch normalisation is frozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from sppdet.boxes import encode_deltas
from sppdet.features.backbones import Backbone
from sppdet.features.depthwise import FastDepthwise
from sppdet.features.geometry import project
from sppdet.features.head import DELTA_DEVIATIONS, Head
from sppdet.features.joined import JoinedMaps
from sppdet.features.spp import spp_windows
from sppdet.training.finetune import Tuner, head_groups
from sppdet.training.processes import Processes
from sppdet.training.sgd import check_finite
from sppdet.training_config import FinetuneConfig
from sppdet.types import Boxes, Labels


@dataclass(frozen=True)
class TrainingImage:
    """A resized, maybe mirrored image with the windows that it is trained on.

    pixels: (h, w, 3) RGB uint8. factor: resized / original pixels. boxes: (n, 4) in original pixels, of
    the mirrored image if it is. labels: (n,), 0 for background. targets: (n, 4) the object of each
    positive; for background, the box itself.
    """

    pixels: torch.Tensor
    factor: float
    boxes: Boxes
    labels: Labels
    targets: Boxes


class WindowNetwork(nn.Module):
    """Backbone, pooling and head in one; batch normalisation and frozen layers stay as they are."""

    def __init__(self, backbone: Backbone, head: Head, levels: Sequence[int]) -> None:
        super().__init__()
        self.layers = backbone.layers
        self.head = head
        self._backbone = backbone
        self._levels = tuple(levels)

    def train(self, mode: bool = True) -> WindowNetwork:
        """Switch dropout on or off; the convolutional layers stay in inference mode."""
        super().train(mode)
        self.layers.eval()
        return self

    def pooled(self, images: Iterable[TrainingImage]) -> torch.Tensor:
        """Pool the windows of images, one after another; returns (N, D)."""
        device = next(self.head.parameters()).device
        found = []
        for image in images:
            pixels = image.pixels.to(device, non_blocking=True)
            with FastDepthwise():
                (feature_map,) = self.layers(self._backbone.preprocessing.padded_input(pixels))
            windows = project(
                image.boxes,
                np.full(len(image.boxes), image.factor),
                stride=self._backbone.stride,
                offset=self._backbone.offset,
                map_width=feature_map.shape[2],
                map_height=feature_map.shape[1],
            )
            found.append(spp_windows(feature_map, windows, self._levels).float())
        return torch.cat(found)

    def forward(self, images: Sequence[TrainingImage]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute scores (N, K + 1) and box deltas (N, K, 4) of the images' windows."""
        return self.head.scores_and_deltas(self.pooled(images))


def resolutions(layers: nn.Module, multiple: int) -> dict[nn.Module, int]:
    """Number the resolutions of the maps that every layer with weights computes, from 1, the finest."""
    sides: dict[nn.Module, int] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4:
            sides[module] = max(output.shape[2], sides.get(module, 0))

    def has_weights(module: nn.Module) -> bool:
        return next(module.parameters(recurse=False), None) is not None

    hooks = [m.register_forward_hook(note) for m in layers.modules() if has_weights(m)]
    weight = next(layers.parameters())
    side = max(1, 192 // multiple) * multiple
    with torch.inference_mode():
        layers(torch.zeros(1, 3, side, side, device=weight.device))
    for hook in hooks:
        hook.remove()
    # squeeze-and-excitation has one cell, and belongs to no resolution of its own
    distinct = sorted({side for side in sides.values() if side > 1}, reverse=True)
    return {m: distinct.index(side) + 1 for m, side in sides.items() if side > 1}


def conv_parameters(backbone: Backbone, chosen: str) -> list[nn.Parameter]:
    """List the convolutional weights that `finetune.layers` trains; biases with them.

    Args:
        chosen: fc, all, or convN+: the layers from the Nth resolution on. Layers that compute no map,
            such as a transformer's, are trained with all.

    Raises:
        ValueError: there is no Nth resolution.
    """
    if chosen == "fc":
        return []
    first = 1 if chosen == "all" else int(chosen.removeprefix("conv").removesuffix("+"))
    layers = backbone.layers.trunk if isinstance(backbone.layers, JoinedMaps) else backbone.layers
    numbers = resolutions(layers, backbone.preprocessing.multiple)
    count = max(numbers.values(), default=1)
    if first > count:
        known = ", ".join(["fc", "all", *(f"conv{n}+" for n in range(2, count + 1))])
        raise ValueError(f"{chosen}: the layers have {count} resolutions; expected {known}")
    chosen_layers = [
        m
        for m in layers.modules()
        if numbers.get(m, 1) >= first and not isinstance(m, nn.BatchNorm2d)
    ]
    parameters = {id(p): p for m in chosen_layers for p in m.parameters(recurse=False)}
    return list(parameters.values())


class ImageTuner(Tuner):
    """Fine-tuning of convolutional layers and head together, on batches of images.

    All processes draw the same batches; each computes some of their images.

    Args:
        mean_square: mean square of the pool5 features, see `head_groups`.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        levels: Sequence[int],
        config: FinetuneConfig,
        *,
        seed: int,
        processes: Processes | None = None,
        mean_square: float = 1.0,
    ) -> None:
        conv = conv_parameters(backbone, config.layers)
        for parameter in conv:
            parameter.requires_grad_(True)
        for module in backbone.layers.modules():
            if isinstance(
                module, nn.Hardtanh
            ):  # or ReLU6; its gradient needs what it would overwrite
                module.inplace = False
        groups = head_groups(head, config, mean_square)
        common = {"weight_decay": config.weight_decay}
        if conv:
            groups.append({"params": conv, "lr": config.lr * config.conv_rate, **common})
        layers = backbone.layers
        if isinstance(layers, JoinedMaps) and layers.projection is not None and conv:
            projection = list(layers.projection.requires_grad_(True).parameters())
            groups.append({"params": projection, "lr": config.lr, **common})
        self.network = WindowNetwork(backbone, head, levels)
        super().__init__(self.network, groups, config, seed=seed, processes=processes)

    def step(
        self,
        images: Sequence[TrainingImage],
        count: int,
        validation: Iterable[TrainingImage] | None = None,
    ) -> None:
        """Take one step.

        Args:
            images: this process's share of the batch.
            count: windows of the whole batch.
            validation: this process's held-out images, for a snapshot that is due after this step.

        Raises:
            TrainingError: the loss isn't finite.
        """
        batch = self.progress.batch
        with self._sgd.dropout_stream(self._seed, "dropout on training images", batch):
            scores, deltas = self._sgd.outputs(images)
            classes, boxes = losses(scores, deltas, images)
            self._sgd.descend(classes + self.config.box_loss * boxes, count)
        check_finite(float((classes + boxes).detach()), f"at batch {batch}", setting="finetune.lr")
        self._update()
        if self._is_snapshot_due():
            mean = self._sgd.processes.sums([float(classes.detach())])[0] / count
            validated = self.validate(validation) if validation is not None else None
            self._consider_snapshot(mean, validated)

    def validate(self, images: Iterable[TrainingImage]) -> tuple[float, float]:
        """Compute mean cross-entropy and fraction of misclassified windows, without dropout."""
        return self._sgd.validate_scored(
            (self.network([image])[0], torch.from_numpy(image.labels)) for image in images
        )


def losses(
    scores: torch.Tensor, deltas: torch.Tensor | None, images: Sequence[TrainingImage]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the summed losses of classes and of boxes.

    Cross-entropy over all windows; smooth L1 of the positives' deltas for their class, in units of
    `DELTA_DEVIATIONS`, summed over the four (Girshick 2015, §2.3).

    Args:
        scores: (N, K + 1). deltas: (N, K, 4).
    """
    labels = np.concatenate([image.labels for image in images])
    target = torch.from_numpy(labels).to(scores.device)
    classes = F.cross_entropy(scores.float(), target, reduction="sum")
    rows = np.flatnonzero(labels > 0)
    if deltas is None:
        return classes, torch.zeros_like(classes)
    wanted = np.concatenate([_deltas(image) for image in images])[rows]
    chosen = deltas.float()[torch.from_numpy(rows), torch.from_numpy(labels[rows] - 1)]
    boxes = F.smooth_l1_loss(chosen, torch.from_numpy(wanted).to(chosen), reduction="sum")
    return classes, boxes


def _deltas(image: TrainingImage) -> NDArray[np.float32]:
    scaled = encode_deltas(image.boxes, image.targets) / np.array(DELTA_DEVIATIONS)
    result: NDArray[np.float32] = scaled.astype(np.float32)
    return result
