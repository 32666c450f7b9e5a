"""Settings: defaults, files that build on others, overrides and errors of one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sppdet.classification.config import PretrainConfig, ProbeConfig
from sppdet.config import Config, FeaturesConfig
from sppdet.errors import ConfigError
from sppdet.io import plain_yaml
from sppdet.io.settings import check_config, load_config, load_settings
from sppdet.training_config import FinetuneConfig

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
LEAST = {"data": {"root": "/data", "train": "trainval"}}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def read_again(config: Config) -> Config:
    return check_config(yaml.safe_load(plain_yaml.dump(config.to_plain())), "again", Config)


DEFAULTS: dict[str, Any] = {
    "scales": [480, 576, 688, 864, 1200],
    "spp_levels": [6, 3, 2, 1],
    "proposals.mode": "fast",
    "proposals.min_size": 20,
    "proposals.max_boxes": 2000,
    "proposals.image_width": 500,
    "features.canonical_size": 224,
    "head.widths": [4096, 4096],
    "head.dropout": 0.5,
    "finetune.batches": 300_000,
    "finetune.batch_size": 128,
    "finetune.positive_fraction": 0.25,
    "finetune.positive_iou": 0.5,
    "finetune.negative_iou": [0.1, 0.5],
    "finetune.lr": 1e-4,
    "finetune.drop_after": 250 / 300,
    "finetune.momentum": 0.9,
    "finetune.weight_decay": 5e-4,
    "finetune.flip": True,
    "finetune.scale": "best",
    "svm.layer": "fc7",
    "svm.C": 1e-3,
    "svm.positive_weight": 2.0,
    "svm.bias": 10.0,
    "svm.target_norm": 20.0,
    "svm.norm_images": 200,
    "svm.norm_windows": 200,
    "svm.negative_iou": 0.3,
    "svm.negative_nms": 0.7,
    "svm.hard_threshold": -1.0001,
    "svm.evict_threshold": -1.2,
    "svm.retrain_after": 2000,
    "svm.passes": 1,
    "bbox.layer": "pool5",
    "bbox.ridge": 1000.0,
    "bbox.min_iou": 0.5,
    "bbox.whiten_epsilon": 1e-3,
    "detect.nms": 0.3,
    "detect.min_score": "auto",
    "detect.max_per_class": 100,
    "eval.metric": "voc07",
}


@pytest.mark.parametrize("key", DEFAULTS)
def test_default_is_the_papers(key: str) -> None:
    value: Any = yaml.safe_load(plain_yaml.dump(check_config(LEAST, "least", Config).to_plain()))
    for part in key.split("."):
        value = value[part]
    assert value == DEFAULTS[key]


@pytest.mark.parametrize("path", CONFIGS or [None], ids=lambda p: p.name if p else "none")
def test_shipped_config(path: Path | None) -> None:
    if path is None:
        pytest.skip("configs/ holds no YAML file")
    if path.name.startswith("pretrain_"):
        settings = load_settings(path, PretrainConfig)
        plain = yaml.safe_load(plain_yaml.dump(settings.to_plain()))
        assert check_config(plain, "again", PretrainConfig) == settings
    elif path.name.startswith("probe_"):
        load_settings(path, ProbeConfig)
    else:
        config = load_config(path)
        assert read_again(config).to_plain() == config.to_plain()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("svm: {hard_tresh: 1}", "svm.hard_tresh: unknown; did you mean svm.hard_threshold?"),
        ("svn: {C: 1}", "svn: unknown; did you mean svm?"),
        ("head: {width: [3]}", "head.width: unknown; did you mean head.widths?"),
        ("eval: {qqq: 1}", "eval.qqq: unknown; known here: metric"),
        ("svm: {C: much}", "svm.C: should be a valid number, got 'much'"),
        ("seed: true", "seed: should be a valid integer, got True"),
        ("seed: '1'", "seed: should be a valid integer, got '1'"),
        ("finetune: {flip: 1}", "finetune.flip: should be true or false, got 1"),
        ("proposals: {engine: stored, path: 3}", "proposals.path.0: "),
        (
            "proposals: {engine: [sppdet, stored], path: x.mat}",
            "engine: stored proposals stand alone",
        ),
        ("proposals: {engine: [sppdet, sppdet]}", "proposals: engine: expected every engine once"),
        (
            "proposals: {engine: []}",
            "proposals.engine: expected an engine, or a list of engines",
        ),
        (
            "proposals: {engine: [[]]}",
            "proposals.engine: should be 'sppdet', 'opencv', 'edgeboxes'",
        ),
        ("proposals: {engine: [[sppdet]]}", "proposals.engine: should be 'sppdet', 'opencv',"),
        ("proposals: {edge_model: m.yml}", "edge_model: expected with engine: edgeboxes, and only"),
        ("proposals: {engine: edgeboxes, image_width: 4001}", "image_width: expected at most 4000"),
        ("svm: {C: -1}", "svm.C: should be greater than 0, got -1"),
        ("svm: {hard_threshold: .nan}", "svm.hard_threshold: should be a finite number, got nan"),
        ("detect: {nms: 1.5}", "detect.nms: should be less than or equal to 1, got 1.5"),
        ("detect: {box_voting: 0}", "detect.box_voting: should be greater than 0, got 0"),
        ("workers: 1025", "workers: should be 'auto' or should be less than or equal to 1024"),
        ("scales: [688, 20000]", "scales.1: should be less than or equal to 16384, got 20000"),
        ("spp_levels: [257]", "spp_levels.0: should be less than or equal to 256, got 257"),
        ("scales: [688, 480]", "scales: expected ascending values without repeats"),
        ("scales: []", "scales: "),
        ("spp_levels: [3, 3]", "spp_levels: expected every level once"),
        ("head: {widths: [64, 0]}", "head.widths.1: should be greater than 0, got 0"),
        ("finetune: {negative_iou: [0.5, 0.1]}", "finetune.negative_iou: expected [low, high]"),
        ("workers: 0", "workers: should be 'auto' or should be greater than 0, got 0"),
        ("backbone: {name: zf6}", "backbone.name: zf6: unknown here and in torchvision; did you"),
        ("bbox: {layer: fc8}", "bbox.layer: should be 'pool5', 'fc6' or 'fc7', got 'fc8'"),
        ("finetune: 3", "finetune: should be an object, got 3"),
        ("head: none\nsvm: {layer: fc7}", "svm.layer: fc7 needs a head; there is pool5"),
        ("head: {widths: [8]}\nbbox: {layer: fc7}", "bbox.layer: fc7 needs a head"),
        ("proposals: {engine: stored}", "proposals: path: expected with engine: stored"),
        ("proposals: {path: x.mat}", "proposals: path: expected with engine: stored"),
        ("seed: 1\nseed: 2", "run.yaml: line 3: seed is given twice"),
        ("svm: {C: 1, C: 2}", "line 2: C is given twice"),
        ("? [a, b]\n: 1", "line 2: a mapping or list as a key; expected the name of a setting"),
        ("svm: [", "not YAML: "),
        ("base: 3", "base: expected the name of a YAML file"),
        ("base: nowhere.yaml", "nowhere.yaml: no such file"),
    ],
)
def test_refusal_names_file_and_key(text: str, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", f"data: {{root: d, train: t}}\n{text}\n")
    message = refusal(path)
    assert message.startswith(str(tmp_path))
    assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: {train: t}", "data.root: Field required"),
        ("data: {root: [], train: t}", "data.root: "),
        ("data: {root: d, train: [a, b]}", "data: train names 2 sets for 1 roots"),
        ("data: {root: d, train: t, classes: [a, a]}", "data: classes: a name is repeated"),
        ("data: {root: d, train: t, classes: car}", "data.classes: should be 'auto' or "),
        ("seed: 1", "data: Field required"),
        ("- 1", "expected a mapping of settings, got list"),
        ("", "expected a mapping of settings, got NoneType"),
    ],
)
def test_refusal_of_data(text: str, expected: str, tmp_path: Path) -> None:
    assert expected in refusal(write(tmp_path / "run.yaml", text))


def test_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.yaml") == f"{tmp_path / 'no.yaml'}: no such file"


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("2E+1", 20.0), ("1.5e-2", 0.015)])
def test_exponents_are_numbers(text: str, value: float, tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", f"data: {{root: d, train: t}}\nsvm: {{C: {text}}}\n")
    assert load_config(path).svm.model_dump()["C"] == value
    assert load_config(path, ["bbox.ridge=4e3"]).bbox == load_config(path, ["bbox.ridge=4000"]).bbox


def test_base_and_paths_relative_to_each_file(tmp_path: Path) -> None:
    write(
        tmp_path / "common" / "base.yaml",
        "data: {root: [images, /abs], train: t, images: img}\nbackbone: {weights: w.pth}\n"
        "svm: {C: 0.5, bias: 2.0}\nstore: kept\nscales: [300, 400]\n",
    )
    write(tmp_path / "mid" / "mid.yaml", "base: ../common/base.yaml\nsvm: {bias: 3.0}\n")
    top = write(
        tmp_path / "top" / "run.yaml",
        "base: ../mid/mid.yaml\nscales: [500]\nproposals: {engine: stored, path: boxes.npz}\n"
        "svm: {passes: 2}\nhead: none\n",
    )
    config = load_config(top)
    common = tmp_path / "common"
    assert config.data.root == [common / "images", Path("/abs")]
    assert config.data.images == common / "img"
    assert config.backbone.weights == str(common / "w.pth")
    assert config.store == common / "kept"
    assert config.proposals.path == [tmp_path / "top" / "boxes.npz"]
    assert (config.svm.C, config.svm.bias, config.svm.passes) == (0.5, 3.0, 2)
    assert config.scales == [500]


@pytest.mark.parametrize("name", ["imagenet", "none"])
def test_names_of_weights_are_no_paths(name: str, tmp_path: Path) -> None:
    text = f"data: {{root: d, train: t}}\nbackbone: {{weights: {name}}}\n"
    assert load_config(write(tmp_path / "run.yaml", text)).backbone.weights == name


def test_base_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "base: b.yaml\n")
    write(tmp_path / "b.yaml", "base: a.yaml\n")
    assert "b.yaml: base: the files build on each other in a circle" in refusal(tmp_path / "a.yaml")
    write(tmp_path / "self.yaml", "base: self.yaml\n")
    assert "circle" in refusal(tmp_path / "self.yaml")


def test_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "in" / "run.yaml", "data: {root: d, train: t}\nsvm: {C: 0.5}\n")
    monkeypatch.chdir(tmp_path)
    sets = ["svm.bias=4", "scales=[200, 300]", "head=none", "data.root=here", "seed=1", "seed=2"]
    config = load_config(path, sets)
    assert (config.svm.C, config.svm.bias, config.seed) == (0.5, 4.0, 2)
    assert (config.scales, config.head) == ([200, 300], None)
    assert config.data.root == [tmp_path / "here"]
    assert "run.yaml with --set: svm.c: unknown; did you mean svm.C?" in refusal(path, "svm.c=1")
    assert "--set svm.C: expected key=value" in refusal(path, "svm.C")
    assert "--set svm.C=[: not YAML: line 1, column 2: " in refusal(path, "svm.C=[")


def test_sections_of_none() -> None:
    config = check_config({**LEAST, "head": "none", "bbox": "none"}, "f", Config)
    assert (config.head, config.bbox) == (None, None)
    assert (config.layers(), config.svm_layer()) == (["pool5"], "pool5")
    narrow = check_config({**LEAST, "head": {"widths": [64]}}, "f", Config)
    assert (narrow.layers(), narrow.svm_layer()) == (["pool5", "fc6"], "fc6")
    pretrained = {**LEAST, "backbone": {"name": "alexnet"}, "finetune": "none"}
    assert check_config(pretrained, "f", Config).finetune is None


def test_sets_of() -> None:
    data = {"root": ["/a", "/b"], "train": ["x", None], "test": "y"}
    config = check_config({"data": data}, "f", Config).data
    assert config.sets_of("train") == ["x", None]
    assert config.sets_of("test") == ["y", "y"]
    assert config.sets_of("val") == ["val", "val"]
    with pytest.raises(ConfigError, match=r"data\.test: no set is named"):
        check_config(LEAST, "f", Config).data.sets_of("test")


@pytest.mark.parametrize(
    "changes",
    [
        {"svm": {"layer": "fc7", "C": 1e-5}},
        {"svm": {"layer": "pool5"}, "head": "none", "finetune": "none", "bbox": "none"},
        {"svm": {"layer": "fc6"}, "scales": [688], "store": "/maps", "workers": 3},
        {"svm": {"layer": "fc7"}, "proposals": {"engine": "stored", "path": "/b.mat"}},
        {"svm": {"layer": "fc7"}, "finetune": {"drop_after": 1 / 3, "lr": 0.1 + 0.2}},
    ],
)
def test_yaml_round_trip(changes: dict[str, Any]) -> None:
    config = check_config({**LEAST, **changes}, "f", Config)
    assert read_again(config) == config


def test_one_engine_in_a_list_is_that_engine(tmp_path: Path) -> None:
    found = [
        load_config(
            write(
                tmp_path / "run.yaml", f"data: {{root: d, train: t}}\nproposals: {{engine: {e}}}\n"
            )
        )
        for e in ("edgeboxes", "[edgeboxes]")
    ]
    assert found[0] == found[1] and found[1].proposals.engine == "edgeboxes"


def test_yaml_is_resolved() -> None:
    config = check_config(LEAST, "f", Config)
    assert read_again(config) == config.model_copy(
        update={"svm": config.svm.model_copy(update={"layer": "fc7"})}
    )
    bare = read_again(check_config({**LEAST, "head": "none"}, "f", Config))
    assert (bare.head, bare.finetune, bare.svm.layer) == (None, None, "pool5")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        FinetuneConfig().lr = 1.0


def test_settings_of_maps_that_results_depend_on() -> None:
    """A run made before `features.rounding` is one by float16."""
    plain = FeaturesConfig().that_matter()
    assert plain.keys() == {"canonical_size", "max_side", "project", "precision"}
    assert FeaturesConfig(store=False, max_disk=3).that_matter() == plain
    eight = FeaturesConfig(rounding="int8", max_disk=3).that_matter()
    assert eight == plain | {"rounding": "int8"}
