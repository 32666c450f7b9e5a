"""Stride and first centre of any network, measured by gradients where it can't be followed."""

from __future__ import annotations

import copy

import torch
from torch import nn

from sppdet.features.norms import CrossChannelNorm, WithinChannelNorm
from sppdet.randomness import rng

_CELLS = 16  # of the probe's map a side: enough for the receptive field of a cell in the middle
_SHAPE_SIDE = 224  # pixels; a multiple of 14, 16 and 32
_CHANNELS = 2  # of the map that are averaged
_TOLERANCE = 0.15  # pixels between a measured centre and the nearest multiple of 1/2
_NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


def measured_geometry(layers: nn.Module) -> tuple[int, float]:
    """Measure (S, c₀) of a network's map: the stride, and the centre of the first cell.

    A cell's centre is the centroid of the gradient of its value with respect to the input. For that
    the layers get weights that are uniform over each kernel's positions, so that every kernel's
    centroid is its middle, and what mixes all positions (attention, squeeze-and-excitation) is
    switched off: layers on single cells, and linear ones, get weights of 0. A max pooling follows the
    slope of its input, so that an input that rises and one that falls are averaged.

    Args:
        layers: (N, 3, H, W) to (N, C, h, w) for sides that are multiples of the stride.

    Raises:
        ValueError: the map isn't of an integer stride, the same on both axes, or it depends on the
            whole image all the same.
    """
    probe = _uniform(layers)
    with torch.no_grad():
        small = probe(torch.ones(1, 3, _SHAPE_SIDE, _SHAPE_SIDE, dtype=torch.float64))
    side = _CELLS * round(_SHAPE_SIDE / small.shape[-1])
    with torch.enable_grad():
        first, second, sides = _centroids(probe, side)
    strides = [(b - a) / 2 for a, b in zip(first, second, strict=True)]  # of cells i and i + 2
    stride = round(strides[0])
    centre = first[0] - stride * (sides[0] // 2 - 1)
    nearest = round(2 * centre) / 2
    same = all(abs(s - stride) < _TOLERANCE for s in strides)
    same &= abs(first[0] - first[1]) < _TOLERANCE and abs(stride * sides[0] - side) < 2 * stride
    if not same or abs(centre - nearest) > _TOLERANCE:
        raise ValueError(
            f"stride and centre can't be measured: strides {strides}, first centre {centre:.2f}"
        )
    return stride, nearest


def _uniform(layers: nn.Module) -> nn.Module:
    """Copy the layers, in float64, with weights that are uniform over kernel positions."""
    probe = copy.deepcopy(layers).double().eval().requires_grad_(False)
    generator = rng(0, "channels of the measured geometry")
    for module in list(probe.modules()):
        for name, child in module.named_children():
            if isinstance(child, CrossChannelNorm | WithinChannelNorm):  # symmetric, and slow here
                setattr(module, name, nn.Identity())
        if isinstance(module, nn.Conv2d):
            channels = torch.from_numpy(generator.uniform(0.5, 1.5, module.weight.shape[:2]))
            weight = channels[:, :, None, None].expand_as(module.weight)
            # sums of 1/4: what residual branches add up stays below the bound of ReLU6
            module.weight.data = weight / (4 * weight.flatten(1).sum(1)[:, None, None, None])
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
        elif isinstance(module, _NORMS):
            if module.weight is not None:
                module.weight.data.fill_(1)
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        bias = getattr(module, "bias", None)
        if isinstance(bias, torch.Tensor):
            nn.init.zeros_(bias)

    def switch_off(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[-2:] == (1, 1):
            nn.init.zeros_(module.weight)  # type: ignore[arg-type]

    hooks = [
        m.register_forward_pre_hook(switch_off) for m in probe.modules() if isinstance(m, nn.Conv2d)
    ]
    with torch.no_grad():
        probe(torch.ones(1, 3, _SHAPE_SIDE, _SHAPE_SIDE, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    return probe


def _centroids(probe: nn.Module, side: int) -> tuple[list[float], list[float], tuple[int, int]]:
    """Find the centroids (x, y) of two cells near the middle, 2 apart on both axes; (h, w) of the map."""
    ramp = torch.linspace(0.9, 1.1, side, dtype=torch.float64)
    plane = (ramp[None, :] + ramp[:, None]) / 2
    sums = torch.zeros(2, 2, dtype=torch.float64)
    positions = torch.arange(side, dtype=torch.float64) + 0.5
    for image in (plane, 2 - plane):
        x = image.expand(1, 3, -1, -1).clone().requires_grad_(True)
        found = probe(x)[0]
        sides = (int(found.shape[1]), int(found.shape[2]))
        for k in (0, 1):
            row, column = (side // 2 - 1 + 2 * k for side in sides)
            # each channel by itself: a layer norm makes the sum of all of them constant
            for channel in range(min(_CHANNELS, len(found))):
                (gradient,) = torch.autograd.grad(found[channel, row, column], x, retain_graph=True)
                mass = gradient[0].abs().sum(dim=0)
                total = mass.sum().clamp(min=1e-300)
                sums[k, 0] += (mass.sum(dim=0) * positions).sum() / total
                sums[k, 1] += (mass.sum(dim=1) * positions).sum() / total
    count = 2 * min(_CHANNELS, len(found))
    first, second = (sums / count).tolist()
    return first, second, sides
