"""A finished model as ONNX files and a JSON file, which programs without torch and sppdet run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sppdet.config import Config
from sppdet.detection.onnx_head import head_to_onnx
from sppdet.errors import ConfigError, SppdetError
from sppdet.features.backbones import Backbone
from sppdet.features.levels import spp_width
from sppdet.features.onnx_export import is_installed, session, to_onnx
from sppdet.features.onnx_layers import TOLERANCE
from sppdet.features.preprocessing import MIN_SIDE, Preprocessing
from sppdet.randomness import rng
from sppdet.runs.log import LOGGER
from sppdet.runs.owned import replace_files
from sppdet.stages.detector import Detector
from sppdet.stages.model import read_backbone
from sppdet.stages.thresholds import Threshold, least_scores
from sppdet.stages.trained_model import TrainedModel
from sppdet.types import Boxes
from sppdet.version import __version__

_SIDE = 320  # pixels of the made image whose windows the heads are compared on
_SIZES = [
    (224, 288),
    (97, 131),
    (128, 160),
    (66, 115),
]  # heights, widths that layers are compared at


def export_onnx(model: TrainedModel, folder: Path) -> list[str]:
    """Write `layers.onnx`, `head.onnx` and `detector.json` into a folder.

    The ONNX files are run by onnxruntime and compared with torch first. Files of an earlier call are
    replaced, others aren't overwritten.

    Returns:
        a line on each ONNX file: its size, and the largest difference.

    Raises:
        ConfigError: onnx and onnxruntime aren't installed, or the networks multiply in another type
            than float32.
        SppdetError: the networks can't be exported, or the results differ.
        ArtifactError: the folder has files of these names that this hasn't written.
    """
    if not is_installed():
        raise ConfigError(
            "export: onnx and onnxruntime aren't installed: pip install 'sppdet[onnx]'"
        )
    config = model.config
    if config.features.precision not in ("auto", "float32"):
        raise ConfigError(
            f"{model.where}: features.precision: {config.features.precision}, expected float32 for ONNX"
        )
    detector = Detector.of(model, device="cpu")
    backbone = read_backbone(model.read("backbone"), config)
    layers, apart = _layers(backbone)
    lines = [f"layers.onnx: {_size(layers)}, within {apart:.1g} of torch's largest value"]
    head, between = _head(detector, backbone.channels)
    apart_of = ", ".join(f"{name} within {value:.1g}" for name, value in between.items())
    lines.append(f"head.onnx: {_size(head)}, {apart_of} of torch's")
    facts = _facts(model, detector, backbone)
    if left := _beyond(config):
        text = "examples/onnx_detect.py leaves out %s, with which scores were calibrated"
        LOGGER.warning(text, ", ".join(left))
    text = json.dumps(facts, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    files = {"layers.onnx": layers, "head.onnx": head, "detector.json": text.encode()}
    replace_files(folder, files, command="export")
    return lines


def _layers(backbone: Backbone) -> tuple[bytes, float]:
    """Export normalisation and convolutional layers; returns the model and the difference from torch."""
    module = MapsOfPixels(backbone.layers, backbone.preprocessing).eval()
    multiple = backbone.preprocessing.multiple
    sizes = [[-(-side // multiple) * multiple for side in size] for size in _SIZES]
    images = [torch.from_numpy(_noise(*size)) for size in sizes]
    made = _exported(
        "layers",
        lambda: to_onnx(
            module,
            images[0],
            given={"image": {0: "height", 1: "width"}},
            made={"map": {0: "rows", 1: "columns"}},
        ),
    )
    run, worst = session(made), 0.0
    for image in images:
        with torch.inference_mode():
            expected = module(image)
        (found,) = run(image)
        same = found.shape == expected.shape
        apart = float((found - expected).abs().max() / expected.abs().max()) if same else math.inf
        _check("layers.onnx: its maps", apart, 1.0)
        worst = max(worst, apart)
    return made, worst


class MapsOfPixels(nn.Module):
    """Layers that take an image as it is stored: (H, W, 3) RGB in 0..255 to a map (h, w, C)."""

    def __init__(self, layers: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.layers = layers
        self.preprocessing = preprocessing

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Compute the map of an image of sides that the network takes."""
        found: torch.Tensor = self.layers(self.preprocessing.normalised(image[None]))
        return found[0].permute(1, 2, 0)


def _noise(height: int, width: int) -> NDArray[np.float32]:
    pixels = rng(0, "image to compare an exported network").integers(0, 256, (height, width, 3))
    return pixels.astype(np.float32)


def _head(detector: Detector, channels: int) -> tuple[bytes, dict[str, float]]:
    """Export what follows pooling; returns the model and how far its outputs are from torch's."""
    made = _exported("head", lambda: head_to_onnx(detector.parts, width=_width(detector, channels)))
    image = _noise(_SIDE, _SIDE).astype(np.uint8)
    maps = detector.maps.compute(detector.prepare(image)[0])
    extractor, c, r = detector.extractor, detector.classifiers, detector.regressors
    cells = extractor.windows(maps, _windows()).cells
    expected = {"scores": c.scores(extractor.products(maps, cells, c.layer, c.weights))}
    expected["deltas"] = torch.zeros(len(cells), len(detector.class_names), 4)
    if r is not None:
        products = extractor.products(maps, cells, r.layer, r.rows.flatten(0, 1))
        expected["deltas"] = products.view(len(cells), -1, 4) + r.biases
    pooled = extractor.pool(maps, cells)
    if detector.ranking is not None:
        expected["iou"] = detector.ranking.of_pooled(pooled, extractor.levels)
    outputs = session(made)(pooled)
    apart = {}
    for (name, wanted), found in zip(expected.items(), outputs, strict=True):
        apart[name] = float((found - wanted).abs().max())
        _check(f"head.onnx: its {name}", apart[name], max(1.0, float(wanted.abs().max())))
    return made, apart


def _width(detector: Detector, channels: int) -> int:
    return spp_width(channels, detector.extractor.levels)


def _windows() -> Boxes:
    """Make boxes (N, 4) of several sizes all over the made image."""
    sides = [s for s in (24, 60, 120, 200, _SIDE) for _ in range(2)]
    low = [(x, y) for x in range(0, _SIDE - 20, 60) for y in range(0, _SIDE - 20, 60)]
    boxes = [(x, y, x + w, y + h) for x, y in low for w in sides for h in (sides[0], w, _SIDE)]
    clipped: Boxes = np.clip(np.array(boxes, np.float32), 0, _SIDE)
    return np.unique(clipped, axis=0)


def _exported(name: str, export: Callable[[], bytes]) -> bytes:
    try:
        return export()
    except Exception as error:  # torch's exporter raises errors of its own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SppdetError(f"{name}.onnx: torch can't export them: {first}") from None


def _check(what: str, apart: float, unit: float) -> None:
    if not apart <= TOLERANCE * unit:
        raise SppdetError(
            f"{what} differ from torch's by {apart:.1g}, expected at most {TOLERANCE * unit:.1g}; "
            "such a network isn't exported"
        )


def _size(data: bytes) -> str:
    return f"{len(data) / 2**20:.1f} MiB"


def _facts(model: TrainedModel, detector: Detector, backbone: Backbone) -> dict[str, Any]:
    """Collect the values of detector.json; docs/export.md says what they mean."""
    config, own = model.config, backbone.preprocessing
    least, text = least_scores(detector, Threshold())
    calibration = detector.calibration
    return {
        "sppdet": __version__,
        "signature": model.signature,
        "weights": backbone.origin,
        "class_names": list(detector.class_names),
        "scales": config.scales,
        "max_side": config.features.max_side,
        "enlarging": "INTER_CUBIC" if own.interpolation == "bicubic" else "INTER_LINEAR",
        "mean": [255 * value for value in own.mean],
        "std": [255 * value for value in own.std],
        "min_side": -(-MIN_SIDE // own.multiple) * own.multiple,
        "multiple": own.multiple,
        "channels": backbone.channels,
        "stride": backbone.stride,
        "offset": backbone.offset,
        "spp_levels": config.spp_levels,
        "canonical_size": config.features.canonical_size,
        "scores": "margins" if config.classifier == "svm" else "log odds",
        "thresholds": np.maximum(least.astype(np.float64), detector.min_score).tolist(),
        "threshold": text,
        "slopes": calibration and calibration.slopes.tolist(),
        "intercepts": calibration and calibration.intercepts.tolist(),
        "nms": config.detect.nms,
        "max_per_class": config.detect.max_per_class,
        "max_boxes": config.proposals.max_boxes,
        "max_windows": config.detect.max_windows,
        "left_out": _beyond(config),
    }


def _beyond(config: Config) -> list[str]:
    """List the settings of the model that examples/onnx_detect.py leaves out."""
    names = ("soft_nms", "box_voting", "flip")
    beyond = [f"detect.{name}" for name in names if getattr(config.detect, name)]
    return [*beyond, *(["features.rounding"] if config.features.rounding != "float16" else [])]
