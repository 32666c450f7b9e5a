"""Networks of timm: maps, geometry, weights from the hub's cache and from files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from runs import CommandLine, train_quietly, write_settings
from sppdet.classification.classifier import build_classifier
from sppdet.classification.config import PretrainConfig
from sppdet.config import FeaturesConfig
from sppdet.errors import ConfigError, WeightsError, one_line
from sppdet.features.backbones import conv_backbone
from sppdet.features.geometry import Geometry
from sppdet.features.measured import measured_geometry
from sppdet.features.preprocessing import Preprocessing
from sppdet.features.timm_nets import timm_name_problem
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.image_cache import ImageCache
from sppdet.io.settings import check_config, load_config
from sppdet.runs.artifacts import read_header
from sppdet.stages.detector import Detector
from sppdet.stages.map_cache import MapCache

timm = pytest.importorskip("timm")

# by hand from the layers: kernels, strides and "same" or symmetric paddings of each network
GEOMETRY: list[tuple[str, int, Geometry]] = [
    ("test_efficientnet", 48, (16, 0.5)),  # 3×3 kernels padded by 1
    ("test_vit", 64, (16, 8.0)),  # patches
    ("test_convnext", 48, (16, 8.0)),  # patches of 4, then of 2, without padding
    ("resnet26d", 1024, (16, 3.5)),  # means of 3×3 kernels padded by 1 and of pools of 2: +1, +2
    ("tf_efficientnet_lite0", 112, (16, 15.5)),  # "same": strided 3×3 kernels padded below only,
]  # 1×1 shortcuts: 0.5 + Σ of (1, 2, 4, 8)


@pytest.mark.parametrize(("name", "channels", "geometry"), GEOMETRY)
def test_channels_and_geometry(name: str, channels: int, geometry: Geometry) -> None:
    backbone = conv_backbone(f"timm/{name}")
    assert (backbone.channels, backbone.geometries) == (channels, (geometry,))


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1", "resnet18", "zf5_detector", "tiny"])
def test_measured_geometry_equals_the_graphs(name: str) -> None:
    backbone = conv_backbone(name)
    assert measured_geometry(backbone.layers) == backbone.geometries[0]


def test_preprocessing_is_the_networks_own() -> None:
    lite = conv_backbone("timm/tf_efficientnet_lite0").preprocessing
    assert lite == Preprocessing((0.5,) * 3, (0.5,) * 3, "bicubic", 32)
    x = lite.padded_input(torch.full((70, 65, 3), 255, dtype=torch.uint8))
    assert x.shape == (1, 3, 96, 96)
    assert (
        x[0, :, :70, :65].eq(1).all() and x[0, :, 70:].eq(0).all() and x[0, :, :, 65:].eq(0).all()
    )


def test_stages_are_the_last_maps_of_their_strides() -> None:
    model = timm.create_model("test_efficientnet", features_only=True, out_indices=(3, 4)).eval()
    backbone = conv_backbone("timm/test_efficientnet", stages=[16, 32])
    trunk = backbone.layers.trunk
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    assert isinstance(trunk, torch.nn.Module)
    missing = trunk.load_state_dict(state, strict=False).missing_keys
    assert not [key for key in missing if "num_batches" not in key]
    x = torch.randn(1, 3, 128, 96)
    with torch.inference_mode():
        for found, wanted in zip(trunk(x), model(x), strict=True):
            assert torch.allclose(found, wanted, atol=1e-5)
    with pytest.raises(ConfigError, match=r"no map of stride 64; it has \[2, 4, 8, 16, 32\]"):
        conv_backbone("timm/test_efficientnet", stages=[16, 64])


def test_names_that_timm_does_not_have(
    sppdet: CommandLine, demo_root: Path, tmp_path: Path
) -> None:
    settings = write_settings(
        tmp_path / "s.yaml", demo_root, backbone={"name": "timm/test_efficentnet"}
    )
    status, _, err = sppdet("train", settings, "--run", tmp_path / "run")
    assert status == 1
    assert "timm has no such network; did you mean timm/test_efficientnet" in err
    assert err.count("\n") == 1


def test_the_nearest_names_are_suggested() -> None:
    near = timm_name_problem("timm/tf_efficientnet_lite00")
    assert near is not None and "did you mean timm/tf_efficientnet_lite0 or " in near


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'sppdet\[timm\]'"):
        conv_backbone("timm/test_vit")


def test_weights_from_a_file_and_its_damage(tmp_path: Path) -> None:
    model = timm.create_model("test_efficientnet")
    path = tmp_path / "w.safetensors"
    save_file(model.state_dict(), path)
    backbone = load_backbone("timm/test_efficientnet", str(path))
    own = backbone.layers.state_dict()
    for key, tensor in own.items():
        assert torch.equal(tensor, model.state_dict()[key.removeprefix("model.")])
    assert backbone.origin == "the file w.safetensors, licence not stated"
    state = load_file(path)
    del state["conv_stem.weight"]
    save_file(state, path)
    with pytest.raises(WeightsError, match=r"has no conv_stem\.weight"):
        load_backbone("timm/test_efficientnet", str(path))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18.bogus", "Invalid pretrained tag"),
        ("deit_tiny_patch16_224", None),
        ("efficientvit_b0", None),
        ("mixer_s32_224", "can't be used as a backbone"),
    ],
)
def test_names_with_odd_options(name: str, expected: str | None) -> None:
    if expected is None:
        assert conv_backbone(f"timm/{name}").stride in (16, 32)
    else:
        with pytest.raises(ConfigError, match=expected):
            conv_backbone(f"timm/{name}")


def test_networks_of_equal_weights_have_their_own_maps(tmp_path: Path) -> None:
    """Blurred pooling has no weights: the name tells it."""
    prints = set()
    for name in ("resnet18", "resnetblur18"):
        backbone = load_backbone(f"timm/{name}", "none", seed=1)
        prints.add(MapCache(backbone, [96], FeaturesConfig(), ImageCache()).fingerprint)
    moved = replace(backbone, geometries=((16, 3.5),))  # windows of other cells
    prints.add(MapCache(moved, [96], FeaturesConfig(), ImageCache()).fingerprint)
    assert len(prints) == 3


def test_a_classifier_is_not_trained_on_them() -> None:
    raw = {"data": {"root": "x"}, "backbone": {"name": "timm/test_vit", "weights": "none"}}
    with pytest.raises(ConfigError, match="torchvision's networks or our own"):
        build_classifier(check_config(raw, "s", PretrainConfig), ["a", "b"])


HUB = """
import torch
from sppdet.io.backbone_weights import load_backbone
backbone = load_backbone("timm/test_vit", "imagenet")
print(backbone.origin)
print(float(backbone.layers.state_dict()["model.patch_embed.proj.bias"].sum()))
"""


def test_weights_from_the_hubs_cache(tmp_path: Path) -> None:
    """timm's own loading code, with a cache as the hub leaves it and no network."""
    name = timm.get_pretrained_cfg("test_vit").hf_hub_id
    folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    revision = hashlib.sha1(b"stand-in").hexdigest()
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    state = timm.create_model("test_vit").state_dict()
    state["patch_embed.proj.bias"] += 1
    save_file(state, snapshot / "model.safetensors")
    # nothing answers there: the cache is used without asking
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", HUB], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    origin, total = done.stdout.splitlines()
    assert origin == f"timm, {name}, licence {timm.get_pretrained_cfg('test_vit').license}"
    assert float(total) == pytest.approx(float(state["patch_embed.proj.bias"].sum()))


def test_weights_that_cannot_be_fetched(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """One line, not cut on the command line; the hub's warnings of its attempts are not shown."""
    hub = logging.getLogger("huggingface_hub.utils")
    name, server = "timm/tf_efficientnet_lite0", "huggingface.co"

    def fail(*_: object, **__: object) -> None:
        hub.warning("Retrying in 8s")
        try:
            raise OSError(
                f"[Errno -2] {server}: Name or service not known, in the words of a long reason"
            )
        except OSError as error:
            raise ValueError("An error happened while trying to locate the file") from error

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("sppdet.io.backbone_weights.timm_model", fail)
    url = f"https://{server}/timm/tf_efficientnet_lite0.in1k/resolve/main/model.safetensors"
    with caplog.at_level("INFO"), pytest.raises(WeightsError) as caught:
        load_backbone(name, "imagenet")
    reason = f"[Errno -2] {server}: Name or service not known, in th…"
    assert str(caught.value) == (
        f"backbone.weights: those of {name} can't be fetched ({reason}); offline: download {url} "
        "elsewhere, then --set backbone.weights=FILE"
    )
    assert one_line(f"error: {caught.value}") == f"error: {caught.value}"
    assert caplog.messages == [f"downloading the weights of {name}, once: {url}"]
    hub.warning("shown again")
    assert caplog.messages[1:] == ["shown again"]


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_a_detector_on_a_network_of_timm(name: str, demo_root: Path, tmp_path: Path) -> None:
    settings = write_settings(
        tmp_path / "s.yaml",
        demo_root,
        backbone={"name": f"timm/{name}", "weights": "none"},
        head="none",
    )
    run = tmp_path / "run"
    result, _ = train_quietly(load_config(settings), run)
    assert result is not None
    header = read_header(run / "model" / "backbone.safetensors")
    assert header is not None and json.loads(json.dumps(header.about))["origin"] == "random"
    image = np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8)
    Detector.load(run, device="cpu")(image)
