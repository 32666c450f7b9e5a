"""The command line: every command, and errors of one line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from runs import CommandLine, contents, log_of, write_settings
from sppdet.config import ProposalsConfig
from sppdet.io.settings import load_config
from sppdet.io.stored_proposals import StoredProposals, file_name
from sppdet.runs.artifacts import read_tensors
from sppdet.version import __version__

COMMANDS = {
    "train": ("CONFIG", "--run", "--set", "--device", "--until"),
    "eval": (
        "[RUN]",
        "--split",
        "--metric",
        "--config",
        "--detections",
        "--ids",
        "--out",
        "--device",
    ),
    "diagnose": ("RUN", "--split", "--score", "--min-probability", "--device"),
    "report": ("RUN", "--split", "--out"),
    "explain": ("MODEL", "IMAGE", "--at", "--detection", "--score", "--out", "--device"),
    "check": ("DATA", "--out", "--proposals", "--strict", "--set"),
    "crossval": ("CONFIG", "--folds", "--run", "--set", "--device"),
    "curve": ("CONFIG", "--fractions", "--seeds", "--run", "--set", "--device"),
    "compare": ("RUN_A", "RUN_B", "--split", "--metric", "--json"),
    "audit": ("RUN", "--top", "--out"),
    "detect": (
        *("MODEL", "INPUT", "--out", "--score", "--save", "--workers", "--device"),
        *("--tile", "--overlap", "--every", "--frames", "--max-pixels"),
    ),
    "convert": ("FROM", "TO", "--format", "--from", "--split", "--images", "--score"),
    "suggest": ("RUN", "--out", "--count", "--format"),
    "export": ("MODEL", "FILE", "--onnx"),
    "serve": ("MODEL", "--host", "--port", "--max-bytes", "--timeout", "--queue"),
    "propose": ("CONFIG", "--out", "--run", "--set"),
    "download": ("--root", "voc2007", "voc2012"),
    "demo": ("--out", "--seed"),
    "info": ("MODEL",),
}


def error_of(status: int, err: str) -> str:
    """The one line of an error; there may be warnings before it."""
    lines = err.splitlines()
    assert status == 1, err
    assert lines and all(line.startswith("warning: ") for line in lines[:-1]), err
    assert lines[-1].startswith("error: ")
    return lines[-1].removeprefix("error: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(sppdet: CommandLine, command: str) -> None:
    status, out, err = sppdet(command, "--help")
    assert (status, err) == (0, "")
    assert all(word in out for word in COMMANDS[command])


def test_help_and_version(sppdet: CommandLine) -> None:
    status, out, _ = sppdet("--help")
    assert status == 0 and all(f"\n  {command} " in out for command in COMMANDS)
    assert sppdet("--version") == (0, f"sppdet {__version__}\n", "")


def test_an_unknown_command_or_option(sppdet: CommandLine) -> None:
    for arguments in (["fly"], ["train"], ["info", "run", "--fast"], ["download", "voc1999"]):
        status, _, err = sppdet(*arguments)
        assert status == 2 and "Traceback" not in err and "Error: " in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--threads", "0", "info", "run"],
        ["--threads", "99999999999999999999", "info", "run"],
        ["detect", "run", "a", "--out", "b", "--workers", "-1"],
        ["detect", "run", "a", "--out", "b", "--workers", "1000000000"],
        ["classify", "run", "a", "--top", "99999999999999999999"],
        ["pretrain-eval", "run", "--side", "99999999999999999999"],
        ["demo", "--seed", "-1"],
        ["demo", "--seed", "99999999999999999999"],
    ],
)
def test_numbers_that_cant_be_meant(sppdet: CommandLine, arguments: list[str]) -> None:
    status, _, err = sppdet(*arguments)
    assert status == 2 and "Invalid value for" in err and "Traceback" not in err


Arguments = Callable[[Path, Path, Path], list[str | Path]]  # of settings, run, an empty folder
ERRORS: dict[str, tuple[Arguments, str]] = {
    "unknown key": (
        lambda settings, _, __: ["train", settings, "--set", "svm.hard_tresh=1"],
        "svm.hard_tresh: unknown; did you mean svm.hard_threshold?",
    ),
    "wrong value": (
        lambda settings, _, __: ["train", settings, "--set", "scales=[200, 100]"],
        "scales: expected ascending values",
    ),
    "no fine-tuning of a random backbone": (
        lambda settings, _, __: ["train", settings, "--set", "finetune=none"],
        "finetune: tiny with these weights and head.widths [32] has no fc6/fc7",
    ),
    "missing settings": (
        lambda _, __, empty: ["train", empty / "none.yaml"],
        "none.yaml: no such file",
    ),
    "missing set": (
        lambda settings, _, empty: ["train", settings, "--run", empty, "--set", "data.train=val"],
        "val.txt: no such set; there are: test, trainval",
    ),
    "missing run": (lambda _, __, empty: ["info", empty], "not a run: it has no config.yaml"),
    "eval of a missing run": (lambda _, __, empty: ["eval", empty], "not a run"),
    "detect with a missing run": (
        lambda settings, _, empty: ["detect", empty, settings.parent / "set", "--out", empty],
        "not a run",
    ),
    "missing images": (
        lambda _, run, empty: ["detect", run, empty / "a", "--out", empty],
        "a: no such file or folder",
    ),
    "no image in the folder": (
        lambda _, run, empty: ["detect", run, empty, "--out", empty],
        "no images found",
    ),
    "eval of nothing": (
        lambda _, __, ___: ["eval"],
        "eval: expected RUN, or several RUNs and --out, or --config, --detections and --out together",
    ),
    "eval of too much": (
        lambda settings, run, empty: ["eval", run, "--config", settings, "--out", empty],
        "eval: expected RUN, or --config, --detections and --out (and --ids) without one",
    ),
    "eval of detections without a folder": (
        lambda settings, run, _: ["eval", "--config", settings, "--detections", run],
        "eval: --out missing; expected --config, --detections and --out together",
    ),
    "eval of detections of nothing known": (
        lambda _, run, empty: ["eval", "--out", empty],
        "eval: --config and --detections missing; expected",
    ),
    "ONNX into a file": (
        lambda _, run, empty: ["export", run, "--onnx", empty / "model.onnx"],
        "model.onnx: --onnx writes a folder of files; expected a name without .onnx",
    ),
    "ONNX in the place of a file": (
        lambda settings, run, _: ["export", run, "--onnx", settings],
        "is a file; --onnx writes into a folder",
    ),
    "eval of one run into a folder": (
        lambda _, run, empty: ["eval", run, "--out", empty],
        "eval: --out is for several RUNs or --detections; the reports of one are in RUN/eval",
    ),
    "export to a name of ONNX": (
        lambda _, run, empty: ["export", run, empty / "model.onnx"],
        "model.onnx: FILE gets sppdet's own format; expected --onnx FOLDER for ONNX",
    ),
    "unknown format": (
        lambda _, run, empty: ["detect", run, empty, "--out", empty, "--save", "images,nonsense"],
        "--save nonsense: expected some of images, json, jsonl, csv, voc, coco, yolo, crops",
    ),
    "no format": (
        lambda _, run, empty: ["detect", run, empty, "--out", empty, "--save", ""],
        "--save: expected some of images",
    ),
    "a score that is no number": (
        lambda _, run, empty: ["detect", run, empty, "--out", empty, "--score", "nan"],
        "--score nan: expected a number",
    ),
    "an infinite score": (
        lambda _, run, empty: ["detect", run, empty, "--out", empty, "--score=-inf"],
        "--score -inf: expected a number",
    ),
    "a class without an object": (
        lambda settings, run, empty: [
            *("train", settings, "--run", empty, "--set", "data.classes=[disc, unicorn]"),
            *("--set", f"store={run / 'store'}", "--set", "finetune=none", "--set", "head=none"),
        ],
        "class unicorn: no positive",
    ),
    "a run below a file": (
        lambda settings, _, __: ["train", settings, "--run", settings / "run"],
        "Not a directory",
    ),
    "results below a file": (
        lambda settings, run, _: ["detect", run, settings.parent / "set/fresh", "--out", settings],
        "small.yaml isn't a folder",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line(
    sppdet: CommandLine,
    settings: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    arguments, message = ERRORS[case]
    monkeypatch.chdir(tmp_path)  # a run's default folder is below the working folder
    status, _, err = sppdet(*arguments(settings, trained, tmp_path))
    assert message in error_of(status, err)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(sppdet: CommandLine, settings: Path, trained: Path, tmp_path: Path) -> None:
    fresh = settings.parent / "set" / "fresh"
    for arguments in (
        ["detect", trained, fresh, "--out", tmp_path],
        ["train", settings, "--run", tmp_path, "--set", f"store={trained / 'store'}"],
    ):
        status, _, err = sppdet(*arguments, "--device", "cuda")
        assert "--device cuda: torch finds no GPU here" in error_of(status, err)


def test_debug_shows_the_traceback(sppdet: CommandLine, tmp_path: Path) -> None:
    status, _, err = sppdet("--debug", "info", tmp_path)
    assert status == 1
    assert err.startswith("Traceback") and "ArtifactError" in err
    assert err.splitlines()[-1].startswith("error: ")
    status, _, err = sppdet("info", tmp_path)
    assert "Traceback" not in err


def test_an_interruption_is_one_line(
    sppdet: CommandLine, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Path) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("sppdet.cli.info.describe_run", interrupted)
    assert sppdet("info", trained) == (130, "", "interrupted\n")


def test_a_broken_image_stops_training_or_is_skipped(
    sppdet: CommandLine, demo_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "set"
    shutil.copytree(demo_root, root)
    (root / "JPEGImages" / "000004.jpg").write_bytes(b"\xff\xd8 no image")
    config = write_settings(tmp_path / "c.yaml", root)
    data = ["--run", tmp_path / "run", "--until", "data"]
    status, _, err = sppdet("train", config, *data)
    message = error_of(status, err)
    assert "000004.jpg: can't be decoded as an image" in message
    status, out, _ = sppdet("train", config, *data, "--set", "data.on_error=skip")
    assert status == 0
    assert "11 images" in out and "skipped: " in out and "000004.jpg" in out


def test_train_on_a_finished_run(
    sppdet: CommandLine, settings: Path, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(run_copy / "model")
    monkeypatch.chdir(run_copy.parent)
    (run_copy.parent / "runs").mkdir()
    run_copy.rename(run_copy.parent / "runs" / "small")  # the default, by the settings' name
    status, out, _ = sppdet("train", settings, "--until", "bbox", "--device", "cpu")
    assert status == 0
    assert out.count("there already") == 3
    assert out.splitlines()[-2:] == [
        "the run is in runs/small",
        f"next: sppdet --threads 1 train {settings} --device cpu",
    ]
    assert contents(run_copy.parent / "runs" / "small" / "model") == before


# -- eval --------------------------------------------------------------------------------------


def scores(folder: Path) -> dict[str, object]:
    """Metrics without the signature, which tells the settings."""
    (path,) = folder.glob("*/metrics.json")
    metrics: dict[str, object] = json.loads(path.read_text())
    del metrics["signature"]
    metrics.pop("at_threshold", None)  # which a run's calibration has, and no file of detections
    return metrics


def test_eval_of_a_run_by_another_metric(sppdet: CommandLine, run_copy: Path) -> None:
    status, out, _ = sppdet("eval", run_copy, "--metric", "voc10", "--device", "cpu")
    assert status == 0
    assert re.search(
        r"^mAP \(area under the curve, set-test\): [0-9.]+ % \(95 %: [0-9.–]+\)$", out, re.MULTILINE
    )
    assert f"reports are in {run_copy / 'eval' / 'test'}" in out
    folder = run_copy / "eval" / "test"
    old, new = (json.loads((folder / m / "metrics.json").read_text()) for m in ("voc07", "voc10"))
    assert (old["metric"], new["metric"]) == ("voc07", "voc10")
    assert old["signature"] == new["signature"]
    assert (folder / "voc07" / "pr_curves.png").is_file()
    assert (folder / "voc10" / "pr_curves.png").is_file()
    status, out, _ = sppdet("info", run_copy)
    assert [line for line in out.splitlines() if line.startswith("score")] == [
        f"score      mAP (voc07, test) {old['mAP']:.4f}",
        f"score      mAP (voc10, test) {new['mAP']:.4f}",
    ]


@pytest.mark.parametrize("form", ["comp4", "COCO"])
def test_eval_of_anyones_detections_without_images(
    sppdet: CommandLine, demo_root: Path, trained: Path, tmp_path: Path, form: str
) -> None:
    root = tmp_path / "set"
    shutil.copytree(demo_root, root, ignore=shutil.ignore_patterns("*.jpg"))
    config = tmp_path / "data.yaml"
    config.write_text(f"data: {{root: {root}, train: trainval, test: test}}\n")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    pattern = "comp4*" if form == "comp4" else "coco_results.json"
    for path in (trained / "eval" / "test").glob(pattern):
        shutil.copy(path, theirs)
    found = theirs if form == "comp4" else theirs / "coco_results.json"
    out = tmp_path / "out"
    status, said, _ = sppdet("eval", "--config", config, "--detections", found, "--out", out)
    assert status == 0
    assert f"reports are in {out}" in said
    # boxes come back to 1e-5 px, the scores as they were
    assert scores(out) == scores(trained / "eval" / "test")

    (found if form == "COCO" else next(theirs.iterdir())).write_text("no such thing")
    status, _, err = sppdet("eval", "--config", config, "--detections", found, "--out", out)
    assert str(theirs) in error_of(status, err)


# -- propose, info, download -------------------------------------------------------------------


def test_proposals_are_written_and_read_back(
    sppdet: CommandLine, settings: Path, trained: Path, tmp_path: Path
) -> None:
    def stored_in(folder: Path) -> dict[str, torch.Tensor]:
        found = map(read_tensors, folder.glob("proposals-*/*"))
        return {about["id"]: tensors["boxes"] for tensors, about in found}

    shared = f"store={trained / 'store'}"
    out, run = tmp_path / "boxes", tmp_path / "run"
    status, said, _ = sppdet("propose", settings, "--run", run, "--out", out, "--set", shared)
    assert status == 0 and f"boxes (xyxy, 0-based, half-open) are in {out}" in said
    stored = stored_in(trained / "store")
    assert len(stored) == 18
    assert {p.stem for p in out.glob("*.npz")} == set(stored)
    read = StoredProposals(out)
    for name, boxes in stored.items():
        again = read.look_up(name, width=10_000, height=10_000, max_boxes=150).boxes
        np.testing.assert_array_equal(again, boxes.numpy())

    overrides = ["--set", f"proposals={{engine: stored, path: {out}}}", "--set"]
    own = tmp_path / "store"
    status, said, err = sppdet("propose", settings, "--run", run, *overrides, f"store={own}")
    assert status == 0, err
    again_stored = stored_in(own)
    assert again_stored.keys() == stored.keys()
    assert all(torch.equal(again_stored[name], boxes) for name, boxes in stored.items())
    resolved = load_config(run / "config.yaml").proposals
    assert resolved == ProposalsConfig(
        engine="stored", path=[out], image_width=200, max_boxes=150, min_size=12
    )


def test_joined_engines_and_objects_too_small(
    sppdet: CommandLine, settings: Path, demo_root: Path, tmp_path: Path
) -> None:
    small = objects = 0
    for name in (demo_root / "ImageSets" / "Main" / "trainval.txt").read_text().split():
        text = (demo_root / "Annotations" / f"{name}.xml").read_text()
        width = int(re.findall(r"<width>(\d+)", text)[0])
        for found in re.findall(r"<object>.*?</object>", text, re.DOTALL):
            x1, y1, x2, y2 = (
                int(re.findall(rf"<{c}>(\d+)", found)[0]) for c in ("xmin", "ymin", "xmax", "ymax")
            )
            if "<difficult>1" not in found:
                objects += 1
                small += min(x2 - x1 + 1, y2 - y1 + 1) * 200 / width < 50
    assert 0 < small < objects
    sets = ("proposals.engine=[sppdet, edgeboxes]", "proposals.min_size=50")
    overrides = [word for one in sets for word in ("--set", one)]
    run = tmp_path / "run"
    status, said, err = sppdet("propose", settings, "--run", run, *overrides)
    assert status == 0 and "are covered at IoU 0.5" in said
    warned = [line for line in err.splitlines() if "smaller than all proposals" in line]
    assert len(warned) == 1 and f"{small} of {objects} ground-truth boxes" in warned[0]
    assert load_config(run / "config.yaml").proposals.engine == ["sppdet", "edgeboxes"]
    status, _, err = sppdet("propose", settings, "--run", run, "--set", "proposals.min_size=1")
    assert status == 0 and "smaller than all proposals" not in err

    missing = ["--set", f"proposals={{engine: edgeboxes, edge_model: {tmp_path / 'no.yml.gz'}}}"]
    status, _, err = sppdet("propose", settings, "--run", tmp_path / "other", *missing)
    assert status == 1 and err.splitlines()[-1].startswith("error: proposals.edge_model: ")
    assert "no.yml.gz: no such file" in err


def test_names_as_long_as_the_file_system_takes(
    sppdet: CommandLine, demo_root: Path, tmp_path: Path
) -> None:
    """An image's name of 255 bytes leaves no room for anything that sppdet might add."""
    root = Path(shutil.copytree(demo_root, tmp_path / "set"))
    names = []
    for number, letter in ((1, "n"), (2, "ü")):
        suffix = next((root / "JPEGImages").glob(f"{number:06}.*")).suffix
        names.append((letter * 251)[: 251 // len(letter.encode())])
        for folder, ending in (("JPEGImages", suffix), ("Annotations", ".xml")):
            (root / folder / f"{number:06}{ending}").rename(root / folder / f"{names[-1]}{ending}")
    others = [f"{number:06}" for number in range(3, 13)]
    for split, listed in (("trainval", [*names, *others]), ("test", names)):
        path = root / "ImageSets" / "Main" / f"{split}.txt"
        path.write_text("".join(f"{name}\n" for name in listed))
    settings = write_settings(tmp_path / "s.yaml", root)
    out, run = tmp_path / "boxes", tmp_path / "run"
    status, _, err = sppdet("propose", settings, "--run", run, "--out", out)
    assert status == 0, err
    assert {p.name for p in out.glob("*.npz")} == set(map(file_name, [*names, *others]))
    command = ("--run", run, "--device", "cpu", "--until", "features")
    stored = f"proposals={{engine: stored, path: {out}}}"
    status, _, err = sppdet("train", settings, *command, "--set", stored)
    assert status == 0, err
    assert len(list(run.glob("store/maps-*/*"))) == 24


def test_info(sppdet: CommandLine, trained: Path, tmp_path: Path, settings: Path) -> None:
    status, out, _ = sppdet("info", trained)
    assert status == 0
    metrics = json.loads((trained / "eval" / "test" / "voc07" / "metrics.json").read_text())
    lines = out.splitlines()
    assert lines[0] == f"run        {trained}"
    settings_and_data = re.sub(r"\|test:[0-9a-f]{8}", "", metrics["signature"])
    assert settings_and_data != metrics["signature"]
    assert lines[1] == f"settings   {settings_and_data}"
    assert lines[2] == "classes    4: disc, square, star, triangle"
    assert lines[3] == "svms       on fc6, 32 values"
    assert f"score      mAP (voc07, test) {metrics['mAP']:.4f}" in lines
    for part in ("backbone", "head", "svm", "bbox"):
        assert f"part       {part}.safetensors, " in out
    for stage in json.loads((trained / "timings.json").read_text()):
        assert f"\nseconds    {stage}: " in out

    sppdet("train", settings, "--run", tmp_path, "--until", "data")
    status, out, _ = sppdet("info", tmp_path)
    assert status == 0 and "svms       not trained yet" in out
    assert [r["event"] for r in log_of(tmp_path)][-1] == "message"


def test_a_failed_download_is_one_line(
    sppdet: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.VOCDetection", unreachable)
    status, _, err = sppdet("download", "voc2007", "--root", tmp_path)
    assert "VOC 2007 trainval: download failed" in error_of(status, err)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device on this system")
def test_an_output_that_takes_nothing(run_copy: Path) -> None:
    """Python itself would end with status 120 and a complaint of its own."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sppdet", "info", str(run_copy)],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=300,
        )  # fmt: skip
    assert error_of(done.returncode, done.stderr) == "[Errno 28] No space left on device"
