"""`sppdet compare`: against evaluations of its own, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from runs import CommandLine, train_quietly
from sppdet.evaluation.bootstrap import paired_differences
from sppdet.io.coco_results import write_coco_results
from sppdet.io.detection_files import read_detections
from sppdet.runs.artifacts import read_json, write_json
from sppdet.stages.compare import compare_runs, read_scored
from sppdet.stages.evaluate import compute_metric, evaluate_run
from sppdet.types import Detections

RESULTS = "eval/test/coco_results.json"


@pytest.fixture(scope="module")
def other(settings: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with other SVMs and the same proposals and maps."""
    run = tmp_path_factory.mktemp("other") / "run"
    shutil.copytree(trained, run)
    train_quietly(settings, run, "svm.C=1.0", "bbox=none")
    return run


def error_of(sppdet: CommandLine, *arguments: str | Path) -> str:
    status, _, err = sppdet(*arguments)
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert status == 1 and len(lines) == 1, err
    return lines[0].removeprefix("error: ")


def test_differences_are_those_of_the_evaluations(
    sppdet: CommandLine, trained: Path, other: Path, tmp_path: Path
) -> None:
    status, out, err = sppdet("compare", trained, other, "--json", tmp_path / "c.json")
    assert status == 0, err
    written = read_json(tmp_path / "c.json")
    scores = [read_json(run / "eval/test/voc07/metrics.json") for run in (trained, other)]
    assert [written["mAP"][key] for key in "AB"] == pytest.approx([s["mAP"] for s in scores])
    assert written["mAP"]["difference"] == pytest.approx(scores[1]["mAP"] - scores[0]["mAP"])
    assert written["mAP"]["difference"] != 0
    for name, ap in scores[1]["AP"].items():
        assert written["AP"][name]["B"] == pytest.approx(ap)
    found = read_scored(trained, "test")
    results = [
        compute_metric(found.dataset, read_detections(run / RESULTS, found.dataset), metric="voc07")
        for run in (trained, other)
    ]
    wanted = paired_differences(*results).mean.interval
    assert written["mAP"]["interval"] == pytest.approx(wanted)
    assert written["interval"] == {"level": 0.95, "draws": 1000} and written["images"] == 6
    words = written["mAP"]["words"]
    assert words == "no difference that shows" or wanted[0] * wanted[1] > 0
    assert f"A: {trained}\n" in out and f"B: {other}\n" in out and words in out.splitlines()[-1]
    assert "disc" in out and "mean" in out and "fewer than 20 objects" in out
    again = tmp_path / "again.json"
    sppdet("compare", trained, other, "--json", again)
    assert again.read_bytes() == (tmp_path / "c.json").read_bytes()


def test_a_run_equals_itself(trained: Path) -> None:
    mean = compare_runs(trained, trained, metric="coco").differences.mean
    assert mean.interval == (0.0, 0.0) and mean.value == 0.0


def test_no_row_of_the_table_is_cut(sppdet: CommandLine, trained: Path) -> None:
    _, out, _ = sppdet("compare", trained, trained)
    rows = [line for line in out.splitlines() if line.startswith("│ ")]
    assert rows and all(line.split()[-2] == "open" for line in rows)


def test_a_worse_run_is_called_so(sppdet: CommandLine, trained: Path, run_copy: Path) -> None:
    """Against a run that has found every object."""
    dataset = read_scored(trained, "test").dataset
    found = {
        one.id: Detections(one.gt_boxes, np.ones(len(one.gt_boxes), np.float32), one.gt_labels)
        for one in dataset.images
    }
    write_coco_results(run_copy / RESULTS, dataset, found)
    _, out, _ = sppdet("compare", trained, run_copy)
    assert out.splitlines()[-1].endswith("B is better")
    assert {line.split()[-2] for line in out.splitlines() if "│ mean" in line} == {"B"}
    _, out, _ = sppdet("compare", run_copy, trained)
    assert out.splitlines()[-1].endswith("A is better")


def test_other_splits_and_orders(
    sppdet: CommandLine, demo_root: Path, run_copy: Path, trained: Path
) -> None:
    """The second run's set lies elsewhere and lists its images the other way round."""
    root = run_copy.parent / "set"
    shutil.copytree(demo_root, root)
    path = root / "ImageSets" / "Main" / "test.txt"
    path.write_text("\n".join(reversed(path.read_text().split())) + "\n")
    text = (run_copy / "config.yaml").read_text()
    (run_copy / "config.yaml").write_text(text.replace(str(demo_root), str(root)))
    evaluate_run(run_copy, "test", device="cpu")
    mean = compare_runs(trained, run_copy).differences.mean
    assert mean.value == pytest.approx(0, abs=1e-9)
    evaluate_run(run_copy, "trainval", device="cpu")
    assert compare_runs(run_copy, run_copy, split="trainval").first.images == 12
    assert "isn't evaluated on trainval yet; expected `sppdet eval` with --split trainval" in (
        error_of(sppdet, "compare", run_copy, trained, "--split", "trainval")
    )


def test_what_is_no_pair_is_one_line(
    sppdet: CommandLine, demo_root: Path, run_copy: Path, trained: Path, tmp_path: Path
) -> None:
    assert "not a run: it has no config.yaml" in error_of(sppdet, "compare", trained, tmp_path)
    wrong = error_of(sppdet, "compare", trained, trained, "--json", trained)
    assert "can't be written" in wrong
    root = run_copy.parent / "set"
    shutil.copytree(demo_root, root)
    text = (run_copy / "config.yaml").read_text()
    (run_copy / "config.yaml").write_text(text.replace(str(demo_root), str(root)))
    path = root / "ImageSets" / "Main" / "test.txt"
    names = path.read_text().split()
    path.write_text("\n".join(names[1:]) + "\n")
    changed = error_of(sppdet, "compare", trained, run_copy)
    assert "set-test has changed since it was scored; expected `sppdet eval` again" in changed
    evaluate_run(run_copy, "test", device="cpu")
    other = error_of(sppdet, "compare", trained, run_copy)
    assert f"not scored on the same set: images in one alone: {names[0]}" in other
    (run_copy / RESULTS).unlink()
    missing = error_of(sppdet, "compare", trained, run_copy)
    assert missing == f"{run_copy}: isn't evaluated on test yet; expected `sppdet eval` before"


def test_other_objects_are_noticed(
    sppdet: CommandLine, demo_root: Path, run_copy: Path, trained: Path
) -> None:
    root = run_copy.parent / "set"
    shutil.copytree(demo_root, root)
    text = (run_copy / "config.yaml").read_text()
    (run_copy / "config.yaml").write_text(text.replace(str(demo_root), str(root)))
    name = (root / "ImageSets" / "Main" / "test.txt").read_text().split()[0]
    path = root / "Annotations" / f"{name}.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1", 1))
    evaluate_run(run_copy, "test", device="cpu")
    assert f"image {name} has other objects" in error_of(sppdet, "compare", trained, run_copy)


def test_damaged_scores_are_one_line(sppdet: CommandLine, run_copy: Path) -> None:
    write_json(run_copy / "eval/test/voc07/metrics.json", [])
    assert "has changed since" in error_of(sppdet, "compare", run_copy, run_copy)
    (run_copy / RESULTS).write_text("{")
    write_json(run_copy / "eval/test/voc07/metrics.json", {"signature": 3})
    error_of(sppdet, "compare", run_copy, run_copy)
    (run_copy / "model" / "svm.safetensors").unlink()
    assert "missing or damaged" in error_of(sppdet, "compare", run_copy, run_copy)
