"""Layers by onnxruntime against torch's, and what is left to torch."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sppdet.config import FeaturesConfig
from sppdet.errors import ConfigError
from sppdet.features import onnx_layers as module
from sppdet.features.backbones import Backbone, conv_backbone
from sppdet.features.folding import folded
from sppdet.features.onnx_layers import onnx_layers
from sppdet.io.image_cache import ImageCache
from sppdet.stages.map_cache import MapCache

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

SIZES = [(64, 64), (96, 224), (352, 160)]


class SizeOfTheExport(nn.Module):
    """Pads to the size that it has seen first, as some networks' positions are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sub(x, float(x.shape[2]))


class Smoothed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, size=(8, 8), mode="bicubic", antialias=True)


class Unsupported(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.special.i0e(x)
        return found


def backbone_of(name: str, stages: list[int] | None, project: int | None) -> Backbone:
    torch.manual_seed(0)
    return conv_backbone(name, stages=stages, project=project)


@pytest.mark.parametrize(
    ("name", "stages", "project"),
    [
        ("squeezenet1_1", None, None),
        ("alexnet", None, None),
        ("resnet18", [16, 32], 32),
        ("timm/tf_efficientnet_lite0", [16, 32], 128),
    ],
)
def test_maps_equal_torchs(name: str, stages: list[int] | None, project: int | None) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    backbone = folded(backbone_of(name, stages, project))
    run = onnx_layers(backbone.layers, multiple=backbone.preprocessing.multiple)
    assert run is not None
    odd = [(101, 77)] if backbone.preprocessing.multiple == 1 else []
    for height, width in SIZES + odd:
        image = torch.randn(1, 3, height, width)
        with torch.inference_mode():
            expected = backbone.layers(image)
        bound = 1e-4 * float(expected.abs().max())
        torch.testing.assert_close(run(image), expected, rtol=0, atol=bound)


def test_an_image_of_channels_last(tiny: Backbone) -> None:
    run = onnx_layers(tiny.layers)
    assert run is not None
    image = torch.randn(1, 3, 90, 70)
    assert torch.equal(run(image.contiguous(memory_format=torch.channels_last)), run(image))


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (conv_backbone("zf5").layers, "onnxruntime's differ by"),
        (SizeOfTheExport(), "onnxruntime's differ by"),
        (Unsupported(), "can't be exported for onnxruntime"),
        (Smoothed(), "can't be exported for onnxruntime"),
    ],
    ids=["norms of our own", "size of the export", "unsupported", "smoothed"],
)
def test_what_is_left_to_torch(
    layers: nn.Module,
    reason: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with caplog.at_level(logging.INFO, "sppdet"):
        assert onnx_layers(layers.eval()) is None
    (record,) = caplog.records
    assert record.getMessage().startswith("layers by torch: ") and reason in record.getMessage()
    assert capfd.readouterr().out == ""  # torch would print the whole graph


def maps_of(backbone: Backbone, **features: object) -> tuple[torch.Tensor, ...]:
    config = FeaturesConfig.model_validate(features)
    cache = MapCache(backbone, [120, 200], config, ImageCache())
    image = np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8)
    return cache.compute(cache.scaled(image)).maps


def test_the_setting_chooses(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    genuine = module.runner

    def runner(model: bytes) -> module.Layers:
        used.append("onnxruntime")
        return genuine(model)

    monkeypatch.setattr(module, "runner", runner)
    expected = maps_of(tiny, runtime="torch")
    assert not used
    for runtime in ("auto", "onnxruntime"):
        for found, wanted in zip(maps_of(tiny, runtime=runtime), expected, strict=True):
            assert found.dtype == torch.float16
            torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-4)
    assert used == ["onnxruntime"] * 2
    maps_of(tiny, precision="bfloat16")
    assert len(used) == 2


def test_without_onnxruntime(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppdet.stages.map_cache.is_installed", lambda: False)
    expected = maps_of(tiny, runtime="torch")
    for found, wanted in zip(maps_of(tiny), expected, strict=True):
        assert torch.equal(found, wanted)
    with pytest.raises(ConfigError, match="onnxruntime isn't installed: pip install"):
        maps_of(tiny, runtime="onnxruntime")


def test_a_finished_run_may_change_its_runtime(trained: Path, tmp_path: Path) -> None:
    from sppdet.stages.model_files import _trained_by, read_run_config

    config = read_run_config(trained)
    other = config.model_copy(
        update={"features": config.features.model_copy(update={"runtime": "torch"})}
    )
    assert _trained_by(other) == _trained_by(config)
