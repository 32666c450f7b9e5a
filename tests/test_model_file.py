"""A detector in one file: equal to its run to the bit, and refused in a line where it is damaged."""

from __future__ import annotations

import getpass
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kinds import Pair
from runs import CommandLine
from sppdet.cli.info import describe_run
from sppdet.errors import ArtifactError, ConfigError, SppdetError
from sppdet.io.finding import find_images
from sppdet.runs.artifacts import checksum, fingerprint_of, read_tensors, write_tensors
from sppdet.stages.combined import CombinedDetector
from sppdet.stages.detector import Detector
from sppdet.stages.model_files import read_run_config
from sppdet.stages.thresholds import Threshold, least_scores
from sppdet.stages.trained_model import TrainedModel, write_model
from sppdet.types import Detections

pytestmark = pytest.mark.usefixtures("without_curves")


def assert_equal(found: Detections, expected: Detections) -> None:
    """Equal to the bit, and not for want of detections."""
    assert len(expected)
    for key in ("boxes", "scores", "labels", "probabilities"):
        a, b = getattr(found, key), getattr(expected, key)
        assert (a is None and b is None) or (a.dtype == b.dtype and a.tobytes() == b.tobytes())
    assert found.class_names == expected.class_names


def test_the_file_detects_as_its_run_does(pair: Pair, demo_root: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copy(pair.file, tmp_path / "mailed"))  # the suffix is free
    expected, found = (Detector.load(path, device="cpu") for path in (pair.run, moved))
    for image in find_images([demo_root / "fresh", demo_root / "JPEGImages"])[:5]:
        assert_equal(found(image), expected(image))
    assert found.made_by == expected.made_by != ""
    assert found.min_score == expected.min_score and found.max_pixels == expected.max_pixels
    wanted = [Threshold(), Threshold("score", -0.3)]
    if expected.calibration is not None:
        wanted += [Threshold("probability", 0.4), Threshold("recall", 0.1)]
    for threshold in wanted:
        (a, said), (b, told) = (least_scores(one, threshold) for one in (found, expected))
        assert a.tobytes() == b.tobytes() and said == told


def test_nothing_of_the_machine_is_in_the_file(pair: Pair, demo_root: Path) -> None:
    with safe_open(pair.file, "np") as handle:
        text = json.dumps(handle.metadata())
    places = (pair.run, demo_root, Path.home(), Path.cwd(), pair.run.parent.parent)
    assert not [place for place in map(str, places) if place != "/" and place in text]
    values = list(strings(json.loads(json.loads(text)["sppdet"])))
    assert not [value for value in values if value.startswith(("/", "~")) or ":\\" in value]
    assert getpass.getuser() not in values


def test_paths_in_settings_are_left_out(exported: Path, tmp_path: Path) -> None:
    model = TrainedModel.open(exported)
    config = model.config
    changed = config.model_copy(
        update={
            "data": config.data.model_copy(
                update={"root": [Path("/home/ann/set")], "train_ids": Path("/home/ann/ids.txt")}
            ),
            "backbone": config.backbone.model_copy(update={"weights": "/home/ann/net.pth"}),
            "store": Path("/home/ann/store"),
        }
    )
    write_model(replace(model, config=changed), tmp_path / "model.sppdet")
    assert (tmp_path / "model.sppdet").read_bytes() == exported.read_bytes()


def strings(value: object) -> Any:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from (key, *strings(one))
    elif isinstance(value, list):
        for one in value:
            yield from strings(one)
    elif isinstance(value, str):
        yield value


def test_the_tensors_are_those_of_the_parts_by_another_reader(pair: Pair) -> None:
    found = load_file(pair.file)
    config = read_run_config(pair.run)
    needed = {"backbone", "svm", "bbox"} - ({"bbox"} if config.bbox is None else set())
    if {config.svm_layer(), config.bbox_layer()} & {"fc6", "fc7"}:
        needed.add("head")
    if config.calibrate is not None:
        needed.add("calibration")
    if config.detect.max_windows:
        needed.add("ranking")
    expected = {
        f"{part}.{name}": tensor
        for part in needed
        for name, tensor in load_file(pair.run / "model" / f"{part}.safetensors").items()
    }
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_same_run_gives_the_same_bytes_and_so_does_the_file(pair: Pair, tmp_path: Path) -> None:
    for number, source in enumerate((pair.run, pair.file)):
        path = tmp_path / f"{number}.sppdet"
        write_model(TrainedModel.open(source), path)
        assert path.read_bytes() == pair.file.read_bytes()


def test_by_the_command_line(
    sppdet: CommandLine, run_copy: Path, demo_root: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "model.sppdet", tmp_path / "out"
    status, said, err = sppdet("export", run_copy, file)
    assert (status, err) == (0, "")
    assert f"written to {file}: 1.8 MiB" in said and f"next: sppdet detect {file} FOLDER" in said
    detect = ("detect", *(), demo_root / "fresh", "--out", out, "--device", "cpu", "--score", -1)
    status, _, err = sppdet(detect[0], run_copy, *map(str, detect[1:]))
    assert (status, err) == (0, "")
    whole = (out / "detections.json").read_bytes()
    shutil.rmtree(run_copy)
    status, said, err = sppdet(detect[0], file, *map(str, detect[1:]))
    assert (status, err) == (0, "") and "3 of 3 images were done already" in said
    assert (out / "detections.json").read_bytes() == whole
    page, image = tmp_path / "page.html", find_images([demo_root / "fresh"])[0]
    status, _, err = sppdet("explain", file, image)
    assert status == 1 and err == (
        f"error: explain: {file} is a file, which has no folder for pages; expected --out\n"
    )
    status, _, err = sppdet("explain", file, image, "--out", page, "--device", "cpu")
    assert (status, err) == (0, "") and page.is_file()
    status, said, err = sppdet("info", file)
    assert (status, err) == (0, "")
    assert said.splitlines() == list(describe_run(file))


def test_info_of_a_file(trained: Path, exported: Path) -> None:
    lines = list(describe_run(exported))
    of_run = list(describe_run(trained))
    for kind in ("settings ", "classes "):  # the same lines
        (line,) = (one for one in lines if one.startswith(kind))
        assert line in of_run
    assert "weights    random" in lines and "svms       on fc6" in lines
    size = sum(tensor.numel() for tensor in load_file(trained / "model/head.safetensors").values())
    assert f"part       head, {size:,} values" in lines


def test_files_in_combined_detectors(
    sppdet: CommandLine, trained: Path, exported: Path, demo_root: Path, tmp_path: Path
) -> None:
    image = find_images([demo_root / "fresh"])[0]
    run, file = (Detector.load(path, device="cpu") for path in (trained, exported))
    assert_equal(CombinedDetector.of([run, file])(image), CombinedDetector.of([run, run])(image))
    scores = []
    for number, second in enumerate((trained, exported)):
        out = tmp_path / str(number)
        status, _, err = sppdet("eval", trained, second, "--out", out, "--device", "cpu")
        assert status == 0 and "error" not in err
        scores.append((out / "coco_results.json").read_bytes())
    assert scores[0] == scores[1]
    status, _, err = sppdet("eval", exported, trained, "--out", tmp_path / "out")
    assert status == 1 and err == f"error: {exported}: a file; this needs the folder of a run\n"


@pytest.mark.parametrize(
    "words", ["eval", "diagnose", "report", "audit", "compare RUN", "eval RUN --out out"]
)
def test_commands_that_need_a_run(
    sppdet: CommandLine, exported: Path, tmp_path: Path, words: str
) -> None:
    command, *more = words.replace("RUN", str(exported)).split()
    before = exported.read_bytes()
    status, _, err = sppdet(command, exported, *more)
    assert status == 1 and err == f"error: {exported}: a file; this needs the folder of a run\n"
    assert exported.read_bytes() == before


Facts = dict[str, Any]
Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors, Facts], object]


def rewritten(path: Path, to: Path, change: Change) -> None:
    """Change a model file; every checksum is right afterwards."""
    tensors, about = read_tensors(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors, about)
    parts = about.get("parts")
    for name, facts in parts.items() if isinstance(parts, dict) else ():
        own = {k.partition(".")[2]: t for k, t in tensors.items() if k.startswith(f"{name}.")}
        if isinstance(facts, dict) and {"fingerprint", "about"} <= facts.keys():
            header = {"fingerprint": facts["fingerprint"], "about": facts["about"]}
            facts["checksum"] = checksum(header, own)
    write_tensors(to, tensors, made_by=str(fingerprint_of(path)), about=about)


def setting(*keys: str, to: object) -> Change:
    def change(_: Tensors, about: Facts) -> None:
        section = about["settings"]
        for key in keys[:-1]:
            section = section[key]
        section[keys[-1]] = to

    return change


def nan(tensors: Tensors, _: Facts) -> None:
    tensors["svm.weights"][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (nan, "tensor svm.weights has values that aren't finite"),
        (lambda t, _: t.update({"svm.weights": t["svm.weights"][:, 1:]}), "svm: doesn't fit the run's"),
        (lambda t, _: t.update({"head.fc6.weight": t["head.fc6.weight"].half()}), r"float16 \(32, "),
        (lambda t, _: t.update({"svm.more": torch.zeros(2)}), "svm: doesn't fit .* more isn't expected"),
        (lambda t, _: t.update({"more": torch.zeros(2)}), "damaged: tensor more isn't expected"),
        (lambda t, _: t.update({"more.x": torch.zeros(2)}), "damaged: tensor more.x isn't expected"),
        (lambda t, _: t.pop("svm.biases"), "svm: doesn't fit .* biases is missing"),
        (lambda t, _: [t.pop(k) for k in list(t) if k.startswith("bbox.")], "bbox: missing in the file"),
        (lambda _, a: a["parts"].pop("svm"), "damaged: tensor svm.biases isn't expected"),
        (lambda _, a: a["parts"].update(more={}), "damaged: 'more' is no part of a model"),
        (lambda _, a: a["parts"].update(svm=[]), "svm: damaged: expected its fingerprint"),
        (lambda _, a: a["parts"]["svm"].pop("about"), "svm: damaged: expected its fingerprint"),
        (lambda _, a: a["parts"]["svm"].update(about={}), "svm: damaged: expected the names of the cl"),
        (lambda _, a: a["parts"]["svm"]["about"].update(layer="pool5"), "it is for pool5, expected fc6"),
        (lambda _, a: a["parts"]["backbone"].update(about={}), "backbone: damaged: expected the maps'"),
        (lambda _, a: a.update(parts=[]), "damaged: expected the parts of a model"),
        (lambda _, a: a.update(kind="x"), "not a model, but another file of sppdet's"),
        (lambda _, a: a.update(format=2, sppdet="9.0"), r"of format 2, expected 1: .*\('9.0'; this one is"),
        (lambda _, a: a.pop("signature"), "damaged: expected version and signature"),
        (lambda _, a: a.pop("settings"), "damaged: expected settings in its header"),
        (lambda _, a: a.update(settings=[]), "damaged: expected settings in its header"),
        (setting("data", to=[]), "damaged: expected settings in its header"),
        (setting("data", "root", to="/etc"), "damaged: data.root is no setting of a model file"),
        (setting("store", to="/etc"), "damaged: store is no setting of a model file"),
        (setting("proposals", "edge_model", to="x"), "edge_model: expected with engine: edgeboxes"),
        (setting("proposals", to={"engine": "edgeboxes", "edge_model": "x"}), "file of another machine"),
        (setting("proposals", to={"engine": "stored", "path": "x"}), "file of another machine"),
        (setting("scales", to=[1 << 40]), "scales.0: should be less than or equal to 16384, got 1099511"),
        (setting("scales", to="x"), "scales: should be a valid array"),
        (setting("nonsense", to=1), "nonsense: unknown"),
        (setting("backbone", "name", to="tyni"), "backbone.name: tyni"),
        (setting("backbone", "name", to="timm/hf_hub:a/b"), "backbone.name: timm/hf_hub:a/b"),
        (setting("backbone", "name", to="squeezenet1_1"), "backbone: doesn't fit"),
        (setting("spp_levels", to=[256, 255, 254]), "head: doesn't fit"),
        (setting("head", "widths", to=[65536, 65536]), "head: doesn't fit"),
        (setting("head", to="none"), "layer: fc6 needs a head"),
    ],
)  # fmt: skip
def test_damaged_and_hostile_files(
    sppdet: CommandLine,
    exported: Path,
    demo_root: Path,
    tmp_path: Path,
    change: Change,
    problem: str,
) -> None:
    path = tmp_path / "model.sppdet"
    rewritten(exported, path, change)
    with pytest.raises(SppdetError, match=problem) as caught:
        Detector.load(path, device="cpu")
    assert "\n" not in str(caught.value) and str(caught.value).count(str(path)) <= 1
    status, _, err = sppdet("detect", path, demo_root / "fresh", "--out", tmp_path / "out")
    assert status == 1 and err.count("\n") == 1 and not (tmp_path / "out").exists()
    status, _, err = sppdet("info", path)
    assert err.count("\n") == status, err


def damaged(data: bytes) -> dict[str, bytes]:
    """What copies, disks and people do to a file."""
    flipped = bytearray(data)
    flipped[-3] ^= 4
    header = int.from_bytes(data[:8], "little")
    return {
        "empty": b"",
        "begun": data[:100],
        "the header alone": data[: 8 + header],
        "truncated": data[:-1],
        "longer": data + b"x",
        "a flipped bit": bytes(flipped),
        "a huge header": (1 << 62).to_bytes(8, "little") + data[8:],
        "a header of no JSON": data[:30] + b"\xff" * 100 + data[130:],
        "an image": b"\xff\xd8\xff\xe0" + bytes(3000),
        "nested": (10**6 + 8).to_bytes(8, "little") + b'{"__metadata__":{"sppdet":' + b"[" * 10**6,
    }


@pytest.mark.parametrize("kind", damaged(bytes(8)))
def test_damaged_bytes(sppdet: CommandLine, exported: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.sppdet"
    path.write_bytes(damaged(exported.read_bytes())[kind])
    with pytest.raises(ArtifactError, match=r"model\.sppdet: (damaged: |not a model)") as caught:
        Detector.load(path, device="cpu")
    assert "\n" not in str(caught.value)
    status, _, err = sppdet("info", path)
    if kind != "a flipped bit":  # which only reading the tensors can find
        assert status == 1 and err.count("\n") == 1


def test_what_is_no_model(
    sppdet: CommandLine, trained: Path, demo_root: Path, tmp_path: Path
) -> None:
    image = find_images([demo_root])[0]
    cases = {
        tmp_path / "none.sppdet": "no such file",
        tmp_path / "none": "not a run: it has no config.yaml",
        trained
        / "model"
        / "svm.safetensors": "not a model, but another file of sppdet's; expected",
        image: "not a model of sppdet's; expected the folder of a run or a file of `sppdet export`",
    }
    for path, problem in cases.items():
        status, _, err = sppdet("detect", path, image, "--out", tmp_path / "out")
        assert status == 1 and err.startswith(f"error: {path}: {problem}") and err.count("\n") == 1


def test_a_part_of_another_run_is_noticed(exported: Path, tmp_path: Path) -> None:
    """The whole file's checksum is right, that of the part isn't."""
    tensors, about = read_tensors(exported)
    tensors["svm.biases"] = tensors["svm.biases"] + 1
    path = tmp_path / "model.sppdet"
    write_tensors(path, tensors, made_by="x", about=about)
    with pytest.raises(ArtifactError, match="svm: damaged: its tensors don't match their checksum"):
        Detector.load(path, device="cpu")


def test_what_is_there_is_not_overwritten(
    sppdet: CommandLine, trained: Path, exported: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(2)}, foreign)
    text = tmp_path / "notes.sppdet"
    text.write_text("mine")
    part = Path(shutil.copy(trained / "model" / "svm.safetensors", tmp_path / "svm.safetensors"))
    for path in (foreign, text, part):
        before = path.read_bytes()
        status, _, err = sppdet("export", trained, path)
        assert status == 1 and path.read_bytes() == before
        assert (
            err
            == f"error: {path}: is there, but isn't a model of sppdet's; expected another name\n"
        )
    status, _, err = sppdet("export", trained, tmp_path)
    assert status == 1 and "isn't a model of sppdet's" in err
    old = tmp_path / "old.sppdet"
    rewritten(exported, old, lambda _, about: about.update(signature="of before"))
    status, _, err = sppdet("export", trained, old)
    assert (status, err) == (0, "") and old.read_bytes() == exported.read_bytes()
    assert not list(tmp_path.glob(".tmp*"))


def test_what_is_not_exported(
    sppdet: CommandLine, trained: Path, run_copy: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.sppdet"
    status, _, err = sppdet("export", trained)
    assert status == 1 and err.startswith("error: export: expected FILE, such as model.sppdet, or")
    for name in ("head", "trained"):
        next((run_copy / "model").glob(f"{name}.*")).unlink()
        status, _, err = sppdet("export", run_copy, file)
        assert status == 1 and err.count("\n") == 1 and "sppdet train" in err
    model = TrainedModel.open(trained)
    for proposals in (
        {"engine": "stored", "path": [Path("boxes.mat")]},
        {"engine": "edgeboxes", "edge_model": Path("model.yml.gz")},
    ):
        changed = model.config.model_copy(
            update={"proposals": model.config.proposals.model_copy(update=proposals)}
        )
        with pytest.raises(ConfigError, match="proposals"):
            write_model(replace(model, config=changed), file)
    assert not file.exists()


def test_another_calibration_is_none(run_copy: Path, demo_root: Path, tmp_path: Path) -> None:
    """Settings of `detect` that were edited after training: no probabilities, in the file as well."""
    settings = run_copy / "config.yaml"
    settings.write_text(settings.read_text().replace("nms: 0.3", "nms: 0.4", 1))
    write_model(TrainedModel.open(run_copy), tmp_path / "a.sppdet")
    run, file = (Detector.load(p, device="cpu") for p in (run_copy, tmp_path / "a.sppdet"))
    assert run.config.nms == file.config.nms == 0.4
    assert run.calibration is file.calibration is None and run.made_by == file.made_by
    image = np.asarray(run.read(find_images([demo_root / "fresh"])[0]))
    assert_equal(file(image), run(image))
