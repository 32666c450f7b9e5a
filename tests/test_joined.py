"""Joined maps: cells of two strides against their positions, factors and projection against NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from runs import train_quietly, write_settings
from sppdet.config import Config
from sppdet.errors import ArtifactError, ConfigError
from sppdet.features.backbones import backbone_of, conv_backbone
from sppdet.features.followed import followed_geometries
from sppdet.features.graph import cut_at_strides
from sppdet.features.joined import JoinedMaps, fit_joined, resampled
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.settings import load_config
from sppdet.runs.artifacts import read_header, read_tensors, write_tensors
from sppdet.runs.weights import read_part
from sppdet.stages.detector import Detector
from sppdet.stages.model import read_backbone


def positions(height: int, width: int, stride: int, offset: float) -> torch.Tensor:
    """A map of two channels, the x and the y of each cell's centre."""
    x = (offset + stride * torch.arange(width).float()).expand(height, -1)
    y = (offset + stride * torch.arange(height).float())[:, None].expand(-1, width)
    return torch.stack([x, y])[None]


@pytest.mark.parametrize(
    ("coarse", "fine"), [((32, 31.5), (16, 15.5)), ((32, 0.5), (16, 0.5)), ((16, 7.0), (8, 3.5))]
)
def test_cells_are_interpolated_at_the_centres_of_the_first_map(
    coarse: tuple[int, float], fine: tuple[int, float]
) -> None:
    found = resampled(positions(7, 9, *coarse), coarse, fine, (13, 17))
    wanted = positions(13, 17, *fine)
    low, high = coarse[1], torch.tensor([8, 6]).view(1, 2, 1, 1) * coarse[0] + coarse[1]
    assert torch.allclose(found, wanted.clamp(min=low).minimum(high), atol=1e-3)


def test_a_map_on_the_same_cells_stays() -> None:
    x = torch.randn(1, 3, 5, 6)
    assert torch.allclose(resampled(x, (16, 8.0), (16, 8.0), (5, 6)), x)


class TwoMaps(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x[:, :2], 100 * x[:, 2:, ::2, ::2]


def joined_of(project: int | None) -> tuple[JoinedMaps, list[tuple[np.ndarray, np.ndarray]]]:
    joined = JoinedMaps(TwoMaps(), [(1, 0.5), (2, 0.5)], [2, 3], project)
    generator = np.random.default_rng(3)
    mixing = generator.normal(size=(5, 5)) * [1, 2, 3, 4, 5]
    cells = [generator.exponential(size=(n, 5)) @ mixing for n in (40, 30)]
    parts = [(x[:, :2].astype(np.float32), 100 * x[:, 2:].astype(np.float32)) for x in cells]
    fit_joined(joined, parts)
    return joined, parts


def test_factors_bring_every_map_to_the_mean_square_of_1() -> None:
    joined, parts = joined_of(None)
    for k, factor in enumerate(joined.factors.tolist()):
        values = np.concatenate([p[k] for p in parts]).astype(np.float64) * factor
        assert np.square(values).mean() == pytest.approx(1, abs=1e-5)
    assert joined(torch.ones(1, 5, 4, 6)).shape == (1, 5, 4, 6)


def test_projection_equals_scikit_learns_components() -> None:
    joined, parts = joined_of(3)
    x = np.concatenate(
        [np.concatenate([p[k] for p in parts]) * float(joined.factors[k]) for k in (0, 1)], axis=1
    )
    reference = PCA(3, svd_solver="full").fit_transform(x.astype(np.float64))
    assert joined.projection is not None
    cells = torch.from_numpy(x).T[None, :, :, None].float()
    found = joined.projection(cells)[0, :, :, 0].T.detach().numpy()
    assert np.abs(found) == pytest.approx(np.abs(reference), abs=1e-3)
    assert ((found**3).mean(axis=0) > 0).all()


def test_layers_return_the_last_map_of_each_stride() -> None:
    whole = conv_backbone("squeezenet1_1").layers
    assert isinstance(whole, nn.Sequential)
    joined = backbone_of(
        "squeezenet1_1",
        _model_with(whole),
        whole=False,
        with_fc=False,
        stages=[8, 16],
    )
    assert isinstance(joined.layers, JoinedMaps)
    x = torch.randn(1, 3, 160, 192)
    with torch.inference_mode():
        fine, last = joined.layers.trunk(x)
        wanted = x
        for number, layer in enumerate(whole):
            wanted = layer(wanted)
            if number == 7:  # before the last max pooling
                assert torch.equal(fine, wanted)
    assert torch.equal(last, wanted)
    half, whole_s = (followed_geometries(part)[0] for part in (whole[:8], whole))
    assert joined.geometries == ((8, half[1]), whole_s)
    assert joined.channels == 256 + 512


def _model_with(layers: nn.Module) -> nn.Module:
    model = nn.Module()
    model.features = layers
    return model


def test_stages_that_there_are_not() -> None:
    with pytest.raises(ConfigError, match=r"backbone\.stages: .*has \[1, 2, 4, 8, 16\]"):
        conv_backbone("squeezenet1_1", stages=[16, 32])
    with pytest.raises(ValueError, match="no map of stride 3"):
        cut_at_strides(conv_backbone("tiny").layers, [3])


@pytest.mark.parametrize("stages", [None, [4, 8]])
def test_layers_normalise_by_their_statistics(stages: list[int] | None) -> None:
    assert not any(m.training for m in conv_backbone("tiny", stages=stages).layers.modules())


def test_a_projection_has_no_more_channels_than_the_maps() -> None:
    with pytest.raises(ConfigError, match=r"features\.project: 129, expected at most the 128"):
        conv_backbone("tiny", project=129)


def test_without_stages_and_projection_nothing_is_joined() -> None:
    assert not isinstance(load_backbone("tiny", "none").layers, JoinedMaps)
    alone = conv_backbone("tiny", project=7)
    assert alone.channels == 7
    assert alone.layers(torch.zeros(1, 3, 64, 64)).shape[1] == 7


SETTINGS: dict[str, Any] = {
    "backbone": {"name": "tiny", "weights": "none", "stages": [4, 8]},
    "features": {"canonical_size": 80, "project": 24},
    "head": "none",
    "finetune": "none",
}


def config_of(root: Path, folder: Path) -> Config:
    return load_config(write_settings(folder / "settings.yaml", root, **SETTINGS))


def test_a_run_with_joined_maps_trains_loads_and_goes_on(tmp_path: Path, demo_root: Path) -> None:
    config, run = config_of(demo_root, tmp_path), tmp_path / "run"
    first, said = train_quietly(config, run)
    assert "backbone: tiny, 24 channels at stride 4" in said
    header = read_header(run / "model" / "backbone.safetensors")
    assert header is not None
    assert header.about == {"geometries": [[4, 0.5], [8, 0.5]], "origin": "random"}
    layers = Detector.load(run).maps._backbone.layers
    assert isinstance(layers, JoinedMaps)
    assert not torch.equal(layers.factors, torch.ones(2))
    before = (run / "model" / "svm.safetensors").read_bytes()
    (run / "model" / "svm.safetensors").unlink()
    again, _ = train_quietly(config, run)
    assert (run / "model" / "svm.safetensors").read_bytes() == before
    assert first is not None and again is not None
    assert again.mean_ap == first.mean_ap


def test_a_damaged_geometry_is_refused(tmp_path: Path, demo_root: Path) -> None:
    config, run = config_of(demo_root, tmp_path), tmp_path / "run"
    train_quietly(config, run, until="features")
    path = run / "model" / "backbone.safetensors"
    tensors, about = read_tensors(path)
    for wrong in ([[4, 0.5]], [[4, "a"], [8, 0.5]], [[0, 0.5], [8, 0.5]], None):
        write_tensors(path, tensors, made_by="x", about=about | {"geometries": wrong})
        with pytest.raises(ArtifactError, match="strides and centres"):
            read_backbone(read_part(path), config)
