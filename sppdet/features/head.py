"""Fully connected layers on the pooled vector: fc6, fc7 and, for fine-tuning, fc8."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sppdet.config import Config
from sppdet.errors import ConfigError
from sppdet.features.backbones import Backbone, FcLayers
from sppdet.features.levels import level_columns, spp_width
from sppdet.randomness import keeping_torch_state, torch_stream
from sppdet.training_config import HeadConfig, Layer

FC8_DEVIATION = 0.01
DELTA_DEVIATIONS = (0.1, 0.1, 0.2, 0.2)  # of box deltas that the head learns (Girshick's code)


class Head(nn.Module):
    """Layers fc6 (– fc7) – fc8, with ReLU and dropout after all but the last.

    Args:
        outputs: number of scores of fc8: K + 1 with the background, K for a classifier.
        boxes: add a layer of 4 · (outputs − 1) box deltas beside fc8, in units of `DELTA_DEVIATIONS`.
    """

    def __init__(
        self,
        width_in: int,
        widths: Sequence[int],
        outputs: int,
        dropout: float,
        *,
        boxes: bool = False,
    ) -> None:
        super().__init__()
        self.fc6 = nn.Linear(width_in, widths[0])
        self.fc7 = nn.Linear(widths[0], widths[1]) if len(widths) > 1 else None
        self.fc8 = nn.Linear(widths[-1], outputs)
        self.box = nn.Linear(widths[-1], 4 * (outputs - 1)) if boxes else None
        self.dropout = nn.Dropout(dropout)

    def features(self, pooled: torch.Tensor, layer: Layer) -> torch.Tensor:
        """Compute activations (U, width) of fc6 or fc7, after the ReLU, without dropout."""
        x = torch.relu(self.fc6(pooled))
        if layer == "fc7":
            if self.fc7 is None:
                raise ValueError("fc7: the head has fc6 alone")
            x = torch.relu(self.fc7(x))
        return x

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Compute scores (N, outputs) of pool5 features (N, D); of K + 1, column 0 is background."""
        scores: torch.Tensor = self.fc8(self._dropped(pooled))
        return scores

    def scores_and_deltas(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute scores (N, K + 1) and box deltas (N, K, 4); None without the layer of boxes."""
        x = self._dropped(pooled)
        return self.fc8(x), self.box(x).unflatten(1, (-1, 4)) if self.box is not None else None

    def _dropped(self, pooled: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.dropout(torch.relu(self.fc6(pooled)))
        if self.fc7 is not None:
            x = self.dropout(torch.relu(self.fc7(x)))
        return x


def empty_head(
    backbone: Backbone,
    levels: Sequence[int],
    config: HeadConfig,
    outputs: int,
    *,
    boxes: bool = False,
) -> Head:
    """Build a head to load weights into."""
    with keeping_torch_state():
        width = spp_width(backbone.channels, levels)
        return Head(width, config.widths, outputs, config.dropout, boxes=boxes)


def build_head(
    backbone: Backbone,
    levels: Sequence[int],
    config: HeadConfig,
    *,
    outputs: int,
    seed: int,
    boxes: bool = False,
) -> Head:
    """Build the initial head of fine-tuning or of a classifier's training.

    fc6 and fc7 are copied from the pre-trained classifier if their widths match: its fc6 columns go
    to the SPP levels that it was trained with and other levels start at zero, so that the first
    forward pass equals the pre-trained network. Otherwise they are random, and fine-tuning fits them
    to the data with `standardise`. fc8 ~ N(0, 0.01²).
    """
    with torch_stream(seed, "initial fully connected layers"):
        head = empty_head(backbone, levels, config, outputs, boxes=boxes)
        _initialise(head)
    fc = pretrained_fc(backbone, config)
    if fc is not None:
        _copy_pretrained(head, fc, backbone.channels, levels)
    return head


def pretrained_fc(backbone: Backbone, config: HeadConfig) -> FcLayers | None:
    """Return the pre-trained fc6 and fc7 if their widths match the settings, else None."""
    layers = (backbone.fc.fc6, backbone.fc.fc7) if backbone.fc is not None else ()
    widths = [layer.out_features for layer in layers if layer is not None]
    return backbone.fc if config.widths == widths[: len(config.widths)] else None


@torch.no_grad()
def standardise(head: Head, pooled: torch.Tensor) -> None:
    """Fit a random fc6 (and fc7) to the data: every unit gets mean 0 and variance 1 before its ReLU.

    Otherwise the scale of the features decides that of the activations: on SqueezeNet's pool5 features
    the deviation of a random unit is 24 (Krähenbühl et al., *Data-dependent Initializations of
    Convolutional Neural Networks*, 2016). A unit that doesn't vary is only shifted; fc8 stays.

    Args:
        pooled: (N, D) pool5 features of training windows; nothing is done with fewer than 2.
    """
    if len(pooled) < 2:
        return
    x = pooled
    for layer in (head.fc6, head.fc7):
        if layer is not None:
            units = layer(x)
            deviation, mean = torch.std_mean(units, dim=0, correction=0)
            constant = deviation <= 1e-4 * units.square().mean(dim=0).sqrt()  # up to rounding
            deviation[constant] = 1.0
            layer.weight.div_(deviation[:, None])
            layer.bias.sub_(mean).div_(deviation)
            x = torch.relu(layer(x))


def truncated(head: Head, ranks: Sequence[int]) -> Head:
    """Replace fc6 (and fc7) by two smaller layers each, by truncated SVD (Girshick 2015, §3.1).

    A layer whose rank isn't smaller than both its sides is left as it is.

    Args:
        ranks: ranks of fc6 and fc7; a single one applies to fc6.
    """
    for name, rank in zip(("fc6", "fc7"), ranks, strict=False):
        layer = getattr(head, name)
        if isinstance(layer, nn.Linear) and rank < min(layer.weight.shape):
            setattr(head, name, _factorised(layer, rank))
    return head


@torch.no_grad()
def _factorised(layer: nn.Linear, rank: int) -> nn.Sequential:
    with torch_stream(0, "truncated SVD"):
        # randomised, since the exact decomposition of fc6 takes minutes
        u, s, v = torch.svd_lowrank(layer.weight, q=min(rank + 64, *layer.weight.shape), niter=4)
        first = nn.Linear(layer.in_features, rank, bias=False)
        second = nn.Linear(rank, layer.out_features)
    first.weight.copy_(s[:rank, None] * v[:, :rank].T)
    second.weight.copy_(u[:, :rank])
    second.bias.copy_(layer.bias)
    return nn.Sequential(first, second).to(layer.weight.device).eval().requires_grad_(False)


def check_start(backbone: Backbone, config: Config) -> None:
    """Check, before any work, that the head can be initialised as the settings ask.

    Raises:
        ConfigError: fc6/fc7 would stay random without fine-tuning, or the SPP levels lack the grid of
            the pre-trained fc6.
    """
    if config.head is None:
        return
    fc = pretrained_fc(backbone, config.head)
    if fc is None and config.finetune is None:
        raise ConfigError(
            f"finetune: {backbone.name} with these weights and head.widths {config.head.widths} has "
            "no fc6/fc7 to start from; expected finetune settings or head: none"
        )
    for level in fc.levels if fc is not None else ():
        if level not in config.spp_levels:
            raise ConfigError(
                f"spp_levels: {config.spp_levels} has no {level}; the pre-trained fc6 needs that level"
            )


def _initialise(head: Head) -> None:
    for layer in (head.fc6, head.fc7):
        if layer is not None:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    nn.init.normal_(head.fc8.weight, std=FC8_DEVIATION)
    nn.init.zeros_(head.fc8.bias)
    if head.box is not None:
        nn.init.normal_(head.box.weight, std=FC8_DEVIATION / 10)
        nn.init.zeros_(head.box.bias)


@torch.no_grad()
def _copy_pretrained(head: Head, fc: FcLayers, channels: int, levels: Sequence[int]) -> None:
    head.fc6.weight.zero_()
    for level in fc.levels:
        columns = level_columns(channels, levels, level)
        head.fc6.weight[:, columns] = fc.fc6.weight[:, level_columns(channels, fc.levels, level)]
    head.fc6.bias.copy_(fc.fc6.bias)
    if head.fc7 is not None and fc.fc7 is not None:
        head.fc7.weight.copy_(fc.fc7.weight)
        head.fc7.bias.copy_(fc.fc7.bias)
