"""Weights of networks: random, from files, from the run of a classifier; and kept in a run."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.models as tv
from safetensors.torch import save_file

from runs import CommandLine, write_settings
from samples import random_image
from sppdet.classification.classifier import SppClassifier, build_classifier, save_classifier
from sppdet.classification.config import PretrainConfig
from sppdet.config import FeaturesConfig
from sppdet.errors import WeightsError
from sppdet.features.backbones import conv_backbone
from sppdet.features.head import build_head
from sppdet.features.preprocessing import IMAGENET
from sppdet.features.regions import FeatureExtractor
from sppdet.io.backbone_weights import load_backbone
from sppdet.io.settings import check_config
from sppdet.runs.artifacts import read_tensors, write_tensors
from sppdet.stages.model import holds_backbone, save_backbone
from sppdet.training_config import HeadConfig


def test_random_weights_are_those_of_the_seed() -> None:
    state = torch.get_rng_state()
    a, b, c = (load_backbone("tiny", "none", seed=s).layers.state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a["0.weight"], b["0.weight"])
    assert not torch.equal(a["0.weight"], c["0.weight"])


def save(state: Any, path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file(state, str(path))
    else:
        torch.save(state, path)
    return str(path)


@pytest.fixture(scope="module")
def squeezenet() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return {k: v.clone() for k, v in tv.squeezenet1_1(weights=None).state_dict().items()}


def prefixed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"module.{k}": v for k, v in state.items()}


def test_a_file_by_another_pickle_protocol_is_one_line(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """torch warns of it, in several lines, before it fails."""
    torch.save({"0.weight": torch.ones(3)}, tmp_path / "w.pth", pickle_protocol=4)
    with pytest.raises(WeightsError, match="not a plain file of tensors"):
        load_backbone("tiny", str(tmp_path / "w.pth"))
    assert not recwarn.list


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("form", ["whole", "convolutions", "module", "half"])
def test_weights_from_a_file(
    name: str, form: str, squeezenet: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    state = dict(squeezenet)
    if form == "convolutions":
        state = {k: v for k, v in state.items() if k.startswith("features.")}
    elif form == "module":
        state = prefixed(state)
    elif form == "half":
        state = {k: v.half() for k, v in state.items()}
    loaded = load_backbone("squeezenet1_1", save(state, tmp_path / name)).layers.state_dict()
    for key, value in loaded.items():
        expected = squeezenet[f"features.{key}"]
        assert torch.equal(value, expected.half().float() if form == "half" else expected)


def test_a_checkpoint_with_a_state_dict(
    squeezenet: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = save({"epoch": 3, "state_dict": prefixed(squeezenet)}, tmp_path / "w.pth")
    loaded = load_backbone("squeezenet1_1", path).layers.state_dict()
    assert torch.equal(loaded["0.weight"], squeezenet["features.0.weight"])


def refusal(name: str, weights: str) -> str:
    with pytest.raises(WeightsError) as caught:
        load_backbone(name, weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tensors_of_another_network(squeezenet: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = save(squeezenet, tmp_path / "w.pth")
    assert f"{path}: features.0.weight is (64, 3, 3, 3), expected (96, 3, 7, 7) for" in refusal(
        "squeezenet1_0", path
    )
    assert "has no 0.weight; expected the tensors of tiny (20 missing)" in refusal("tiny", path)


def test_missing_tensors(squeezenet: dict[str, torch.Tensor], tmp_path: Path) -> None:
    part = {k: v for k, v in squeezenet.items() if k != "features.3.squeeze.weight"}
    message = refusal("squeezenet1_1", save(part, tmp_path / "w.safetensors"))
    assert "has no features.3.squeeze.weight; expected" in message and "(1 missing)" in message


class Mischief:
    """An object whose unpickling makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    target = tmp_path / "made"
    pickle.loads(pickle.dumps(Mischief(target)))  # so that the file below would do it
    assert target.exists()
    target.unlink()
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps({"0.weight": Mischief(target)}, protocol=2))
    torch.save({"0.weight": Mischief(target)}, tmp_path / "zipped.pth")
    for path in (plain, tmp_path / "zipped.pth"):
        assert "not a plain file of tensors" in refusal("tiny", str(path))
    assert not target.exists()


def test_what_is_no_file_of_weights(tmp_path: Path) -> None:
    assert f"{tmp_path}/no.pth: no such file" in refusal("tiny", f"{tmp_path}/no.pth")
    assert "no such file" in refusal("tiny", str(tmp_path))
    for name in ("w.pth", "w.safetensors"):
        for content in (b"", b"hello world", b"PK\x03\x04 and no more"):
            (tmp_path / name).write_bytes(content)
            assert f"{tmp_path / name}: " in refusal("tiny", str(tmp_path / name))
    assert "expected a state dict" in refusal("tiny", save([torch.zeros(1)], tmp_path / "l.pth"))
    assert "expected a state dict" in refusal("tiny", save({"lr": 0.1}, tmp_path / "d.pth"))


def test_a_failing_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    message = refusal("squeezenet1_1", "imagenet")
    url = "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"
    assert message == (
        "backbone.weights: those of squeezenet1_1 can't be fetched (<urlopen error no route to host>); "
        f"offline: download {url} elsewhere, then --set backbone.weights=FILE"
    )
    assert "no imagenet weights for zf5" in refusal("zf5", "imagenet")


def test_weights_of_convolutions_alone_have_no_classifier(tmp_path: Path) -> None:
    state = tv.alexnet(weights=None).features.state_dict(prefix="features.")
    path = save(dict(state), tmp_path / "conv.safetensors")
    assert load_backbone("alexnet", path).fc is None
    assert load_backbone("tiny", "none").fc is None


# -- the run of a classifier ---------------------------------------------------------------------


def classifier_run(run: Path, *, net: str = "tiny", head: Any = None) -> SppClassifier:
    """A run that has seeded weights, as if training had ended with them."""
    config = check_config(
        {
            "data": {"root": "nowhere"},
            "backbone": {"name": net, "weights": "none"},
            "spp_levels": [3, 1],
            "head": head or {"widths": [12, 10]},
            "seed": 4,
        },
        "settings",
        PretrainConfig,
    )
    classifier = build_classifier(config, ["a", "b", "c"])
    torch.manual_seed(5)
    with torch.no_grad():
        for tensor in classifier.state_dict().values():
            if tensor.is_floating_point():  # also what starts as 0 and 1
                tensor += 0.02 * torch.rand(tensor.shape)
    save_classifier(run / "model" / "net.safetensors", classifier, made_by="test")
    return classifier.eval()


@pytest.mark.parametrize("name", ["tiny", "convnet5", "mobilenet_v3_small"])
def test_layers_from_a_classifiers_run(name: str, tmp_path: Path) -> None:
    classifier = classifier_run(tmp_path, net=name)
    backbone = load_backbone(name, str(tmp_path))
    ours, theirs = backbone.layers.state_dict(), classifier.conv.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not any(parameter.requires_grad for parameter in backbone.layers.parameters())
    x = torch.randn(1, 3, 70, 100, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(backbone.layers(x), classifier.conv(x))


@pytest.mark.parametrize("levels", [(3, 1), (3, 2, 1), (1, 4, 3)])
@pytest.mark.parametrize("widths", [[12, 10], [12]])
def test_the_detectors_first_features_are_the_classifiers(
    levels: tuple[int, ...], widths: list[int], tmp_path: Path, rng: np.random.Generator
) -> None:
    classifier = classifier_run(tmp_path)
    backbone = load_backbone("tiny", str(tmp_path))
    assert backbone.fc is not None and backbone.fc.levels == (3, 1)
    head = build_head(backbone, levels, HeadConfig(widths=widths), outputs=5, seed=0).eval()
    image = random_image(rng, width=120, height=90)
    hidden = {}
    with torch.inference_mode():
        pooled = classifier.pyramid(classifier.conv(IMAGENET.to_input(image, 1.0)))
        hidden["fc6"] = torch.relu(classifier.head.fc6(pooled))  # type: ignore[operator]
        hidden["fc7"] = torch.relu(classifier.head.fc7(hidden["fc6"]))  # type: ignore[operator]
    maps = backbone.feature_maps(backbone.scaled(image, [90], FeaturesConfig()))
    extractor = FeatureExtractor(levels, 90, head)
    whole = np.array([[0, 0, 120, 90]], np.float32)
    side = maps.maps[0].shape
    assert extractor.windows(maps, whole).cells.tolist() == [[0, 0, 0, side[2] - 1, side[1] - 1]]
    for layer in ("fc6", "fc7")[: len(widths)]:
        assert (hidden[layer] > 0).any()
        ours = extractor(maps, whole, "fc6" if layer == "fc6" else "fc7").values
        torch.testing.assert_close(ours, hidden[layer], rtol=1e-4, atol=1e-5)


def test_columns_carry_over_exactly(tmp_path: Path) -> None:
    fc6 = classifier_run(tmp_path).head.fc6.weight  # type: ignore[union-attr]
    assert isinstance(fc6, torch.Tensor)
    backbone = load_backbone("tiny", str(tmp_path))
    head = build_head(backbone, (3, 2, 1), HeadConfig(widths=[12, 10]), outputs=5, seed=0)
    three, two = 9 * 128, 4 * 128
    assert torch.equal(head.fc6.weight[:, :three], fc6[:, :three])
    assert not head.fc6.weight[:, three : three + two].any()
    assert torch.equal(head.fc6.weight[:, three + two :], fc6[:, three:])


def test_a_missing_level_of_a_run(tmp_path: Path, demo_root: Path, sppdet: CommandLine) -> None:
    classifier_run(tmp_path / "run")
    settings = write_settings(
        tmp_path / "s.yaml",
        demo_root,
        backbone={"name": "tiny", "weights": str(tmp_path / "run")},
        spp_levels=[3, 2],
        head={"widths": [12]},
    )
    status, _, said = sppdet("train", settings, "--run", tmp_path / "d", "--device", "cpu")
    assert status == 1
    (line,) = (line for line in said.splitlines() if not line.startswith("warning: "))
    assert line == "error: spp_levels: [3, 2] has no 1; the pre-trained fc6 needs that level"


def test_what_is_no_fitting_run(tmp_path: Path, trained: Path) -> None:
    classifier_run(tmp_path / "run")
    run = str(tmp_path / "run")
    assert refusal("zf5", run) == f"backbone.weights: {run} has a tiny, expected a zf5"
    assert refusal("tiny", f"{run}s") == f"{run}s: no such file of weights"
    assert f"{trained} isn't a classifier's run: " in refusal("tiny", str(trained))
    path = tmp_path / "run" / "model" / "net.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert "isn't a classifier's run: " in refusal("tiny", run)
    write_tensors(path, {"conv.0.weight": torch.zeros(1)}, made_by="x", about={"net": "tiny"})
    assert (
        "net.safetensors: doesn't fit tiny: tensor 0.weight is float32 (1), expected float32 ("
        in (refusal("tiny", run))
    )


def test_fully_connected_layers_of_a_run_that_do_not_fit(tmp_path: Path) -> None:
    classifier_run(tmp_path)
    path = tmp_path / "model" / "net.safetensors"
    tensors, about = read_tensors(path)
    weight = tensors["head.fc6.weight"]

    def said(change: dict[str, torch.Tensor], **facts: object) -> str:
        write_tensors(path, {**tensors, **change}, made_by="x", about={**about, **facts})
        return refusal("tiny", str(tmp_path))

    units, width = weight.shape
    assert f"tensor head.fc6.weight is float32 ({units}, {width - 1}), expected float32 (" in said(
        {"head.fc6.weight": weight[:, 1:].contiguous()}
    )
    assert "tensor head.fc6.bias is float32 (1), expected" in said({"head.fc6.bias": torch.ones(1)})
    assert "tensor head.fc6.bias has values that aren't finite" in said(
        {"head.fc6.bias": torch.full((units,), torch.nan)}
    )
    for levels in (None, [], [0], ["1"], [1.5], 3):
        assert "net.safetensors: " in said({}, levels=levels)
    del tensors["head.fc6.bias"]
    assert f"tensor head.fc6.bias is missing, expected float32 ({units})" in said({})


def test_a_run_without_hidden_layers(tmp_path: Path) -> None:
    classifier_run(tmp_path, head="none")
    backbone = load_backbone("tiny", str(tmp_path))
    assert backbone.fc is None


def test_a_resnets_run_gives_the_layers_up_to_stride_16(tmp_path: Path) -> None:
    classifier = classifier_run(tmp_path, net="resnet18")
    assert classifier.stride == 32
    backbone = load_backbone("resnet18", str(tmp_path))
    assert (backbone.stride, backbone.channels, backbone.fc) == (16, 256, None)
    theirs = classifier.conv.state_dict()
    ours = backbone.layers.state_dict()
    assert set(ours) == {key for key in theirs if not key.startswith("7.")}
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    whole = load_backbone("resnet18", str(tmp_path), whole=True)
    assert (whole.stride, whole.channels) == (32, 512) and whole.fc is not None
    assert whole.fc.fc7 is not None and whole.fc.fc7.weight.shape == (10, 12)


def test_layers_whose_windows_lie_elsewhere_are_written_again(tmp_path: Path) -> None:
    """As by an earlier version, which found another first centre for the same layers."""
    path, backbone = tmp_path / "backbone.safetensors", conv_backbone("tiny")
    assert not holds_backbone(path, backbone, made_by="m")
    save_backbone(path, backbone, made_by="m")
    assert holds_backbone(path, backbone, made_by="m")
    assert not holds_backbone(path, backbone, made_by="other")
    (stride, centre), *_ = backbone.geometries
    moved = replace(backbone, geometries=((stride, centre + 3),))
    assert not holds_backbone(path, moved, made_by="m")
    path.write_bytes(path.read_bytes()[:-1])
    assert not holds_backbone(path, backbone, made_by="m")
