"""Files of a model and of a store that were damaged or exchanged: refused in a line, or made again."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import contents, results, train_quietly
from sppdet.detection.detect import Classifiers
from sppdet.errors import ArtifactError, ConfigError, TrainingError, WeightsError
from sppdet.io.backbone_weights import load_backbone
from sppdet.runs.artifacts import fingerprint_of, read_tensors, write_tensors
from sppdet.runs.log import read_timings, timed
from sppdet.stages.detector import Detector
from sppdet.stages.model import save_classifiers
from sppdet.stages.model_files import ModelFiles, read_run_config

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors, dict[str, Any]], object]


def rewritten(path: Path, change: Change) -> None:
    """Change tensors and header facts of a file; its checksum is right afterwards."""
    tensors, about = read_tensors(path)
    made_by = fingerprint_of(path)
    assert made_by is not None
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors, about)
    write_tensors(path, tensors, made_by=made_by, about=about)


def flipped(path: Path) -> None:
    """Flip one bit of the last tensor's last byte."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def put(name: str, value: float) -> Change:
    return lambda tensors, _: tensors[name].view(-1).__setitem__(-1, value)


def replace(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda tensors, _: tensors.__setitem__(name, make(tensors[name]).contiguous())


@pytest.mark.parametrize(
    ("part", "change", "expected"),
    [
        ("svm", put("weights", math.nan), "tensor weights has values that aren't finite"),
        ("svm", put("biases", math.inf), "tensor biases has values that aren't finite"),
        ("bbox", put("weights", -math.inf), "tensor weights has values that aren't finite"),
        ("head", put("fc6.weight", math.nan), "tensor fc6.weight has values that aren't finite"),
        ("svm", replace("weights", lambda t: t[:, 1:]), "weights is float32 (4, 31), expected float32 ("),
        ("svm", replace("weights", lambda t: t[1:]), "weights is float32 (3, 32), expected float32 (4"),
        ("svm", replace("weights", lambda t: t.T), "weights is float32 (32, 4), expected float32 (4, any)"),
        ("svm", replace("weights", lambda t: t.double()), "weights is float64 (4, 32), expected float32"),
        ("svm", replace("biases", lambda t: t[:, None]), "biases is float32 (4, 1), expected float32 (4)"),
        ("svm", lambda t, _: t.pop("biases"), "tensor biases is missing, expected float32 (4)"),
        ("svm", lambda t, _: t.update(more=t["biases"]), "tensor more isn't expected"),
        ("svm", lambda _, a: a.update(class_names=["a"]), "weights is float32 (4, 32), expected float32"),
        ("svm", lambda _, a: a.update(class_names="abcd"), "expected the names of the classes in its h"),
        ("svm", lambda _, a: a.update(class_names=[1, 2, 3, 4]), "expected the names of the classes"),
        ("svm", lambda _, a: a.update(class_names=["a", "b", "b", "c"]), "has a class name twice"),
        ("svm", lambda _, a: a.pop("class_names"), "expected the names of the classes in its header"),
        ("svm", lambda _, a: a.update(layer="pool5"), "it is for pool5, expected fc6"),
        ("svm", lambda _, a: a.update(layer=["fc6"]), "expected the name of a layer in its header"),
        ("bbox", lambda _, a: a.pop("layer"), "expected the name of a layer in its header"),
        ("bbox", replace("weights", lambda t: t[..., :3]), ", 3), expected float32 (4, any, 4)"),
        ("bbox", replace("weights", lambda t: t[:, 1:]), "tensor weights is float32 (4, "),
        ("bbox", replace("biases", lambda t: t[:3]), "biases is float32 (3, 4), expected float32 (4, 4)"),
        ("head", replace("fc6.weight", lambda t: t[:, 1:]), "tensor fc6.weight is float32 (32, "),
        ("head", lambda t, _: t.pop("fc6.bias"), "tensor fc6.bias is missing, expected float32 (32)"),
        ("head", replace("fc6.bias", lambda t: t.half()), "fc6.bias is float16 (32), expected float32"),
        ("backbone", lambda t, _: t.update(x=torch.zeros(2)), "tensor x isn't expected"),
    ],
)  # fmt: skip
def test_a_part_that_does_not_fit_is_refused_when_it_is_loaded(
    run_copy: Path, part: str, change: Change, expected: str
) -> None:
    files = ModelFiles(run_copy)
    path = run_copy / "model" / f"{part}.safetensors"
    rewritten(path, change)
    with pytest.raises(ArtifactError, match="have changed since it was trained"):
        Detector.load(run_copy, device="cpu")
    files.seal(read_run_config(run_copy), training_data="", arithmetic="float32")
    with pytest.raises(ArtifactError) as caught:
        Detector.load(run_copy, device="cpu")
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and expected in said and "\n" not in said


def test_a_changed_bit_or_an_old_file_is_refused(run_copy: Path) -> None:
    flipped(run_copy / "model" / "svm.safetensors")
    with pytest.raises(ArtifactError, match=r"svm\.safetensors: damaged: .* checksum; .*makes it"):
        Detector.load(run_copy, device="cpu")
    from safetensors.torch import load_file, save_file

    path = run_copy / "model" / "head.safetensors"
    save_file(load_file(path), path, metadata={"sppdet": '{"fingerprint": "x", "about": {}}'})
    with pytest.raises(
        ArtifactError, match=r"head.*by an earlier version of sppdet; `sppdet train`"
    ):
        Detector.load(run_copy, device="cpu")


def test_a_changed_bit_of_the_model_is_made_again_by_training(
    settings: Path, run_copy: Path
) -> None:
    whole = contents(run_copy / "model")
    for part in ("backbone", "svm"):
        flipped(run_copy / "model" / f"{part}.safetensors")
    _, said = train_quietly(settings, run_copy, until="bbox")
    assert contents(run_copy / "model") == whole
    assert "svm: damaged, or written by an earlier version; made again" in said
    assert "head: there already" in said and "bbox: there already" in said


def test_changed_bits_of_stored_items_are_said_and_made_again_in_training(
    settings: Path, run_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = ("proposals", "maps")
    whole = {p: p.read_bytes() for kind in kinds for p in run_copy.glob(f"store/{kind}-*/*")}
    before = results(run_copy)
    for path in whole:
        flipped(path)
    (run_copy / "model" / "svm.safetensors").unlink()
    with caplog.at_level(logging.WARNING):
        train_quietly(settings, run_copy, until="bbox")
    said = [r.getMessage() for r in caplog.records if "/store/" in r.getMessage()]
    assert all("its content doesn't match its checksum" in line for line in said)
    assert results(run_copy) == before
    # maps of mirrored images are for fine-tuning, which wasn't due
    still = [p for p, content in whole.items() if p.read_bytes() != content]
    assert len(still) == 12 and len(said) == len(whole) - 12
    assert all(read_id(p).endswith(".mirrored") for p in still)


def read_id(path: Path) -> str:
    header = path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")]
    facts = json.loads(json.loads(header)["__metadata__"]["sppdet"])
    name: str = facts["about"]["id"]
    return name


def test_damaged_detections_are_said_and_made_again(
    settings: Path, run_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = contents(run_copy, "store/detections-*/*")
    paths = sorted(run_copy.glob("store/detections-*/*"))
    flipped(paths[0])
    paths[1].write_bytes(paths[1].read_bytes()[:-9])
    rewritten(paths[2], lambda tensors, _: tensors.pop("scores"))
    rewritten(paths[3], replace("labels", lambda t: t[:-1]))
    rewritten(paths[4], put("scores", math.nan))
    before = results(run_copy)
    with caplog.at_level(logging.WARNING):
        train_quietly(settings, run_copy)
    assert contents(run_copy, "store/detections-*/*") == whole and results(run_copy) == before
    said = [
        record.getMessage() for record in caplog.records if "detections-" in record.getMessage()
    ]
    assert len(said) == 5 and all("makes it again" in t or "made again" in t for t in said)


def test_what_is_not_finite_is_not_written(tmp_path: Path) -> None:
    part = Classifiers("pool5", torch.tensor([[1.0, math.nan]]), torch.zeros(1))
    with pytest.raises(
        TrainingError, match=r"svm: not written: tensor weights has values that are"
    ):
        save_classifiers(tmp_path / "svm", part, ("a",), made_by="x")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = load_backbone("squeezenet1_1", "none").layers.state_dict()
    name = next(iter(state))
    state[name][0] = math.inf
    torch.save({f"features.{k}": v for k, v in state.items()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"w\.pth: features\.{name} has values that aren't fin"):
        load_backbone("squeezenet1_1", str(tmp_path / "w.pth"))


def test_a_finished_model_is_not_trained_again_for_another_device(run_copy: Path) -> None:
    """Half precision is the default of GPUs alone: on a CPU its maps would be others."""
    files, config = ModelFiles(run_copy), read_run_config(run_copy)
    files.check_arithmetic(config, "float32")
    with pytest.raises(
        ConfigError, match=r"precision: auto is float16 on this.*trained in float32"
    ):
        files.check_arithmetic(config, "float16")
    other = config.model_copy(update={"scales": [100]})  # these settings train it again anyway
    files.check_arithmetic(other, "float16")
    for content in ("[]", "{}", '{"settings": 3}', "", "[" * 5000):
        files.sealed.write_text(content)
        files.check_arithmetic(config, "float16")
        with pytest.raises(ArtifactError):
            files.check_sealed(config)


@pytest.mark.parametrize(
    "content",
    ["[]", "3", "null", '"x"', '{"svm": "1"}', '{"svm": NaN}', '{"svm": 1e999}', '{"svm": -1}',
     '{"svm": [1]}', '{"svm": true}', '{"a": ' + "9" * 400 + "}", "[" * 5000, "", "\0"],
)  # fmt: skip
def test_timings_of_another_shape_are_begun_again(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "timings.json"
    path.write_text(content)
    with caplog.at_level(logging.WARNING), timed(tmp_path, "svm"):
        pass
    assert [r.getMessage().split(": ")[0] for r in caplog.records] == [str(path)]
    assert list(read_timings(path)) == ["svm"]
