"""What an evaluation writes and prints."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from evaluation_samples import random_split
from runs import printed_to
from sppdet.data_config import DataConfig
from sppdet.errors import ArtifactError
from sppdet.evaluation.bootstrap import with_intervals
from sppdet.evaluation.coco import COCO_NUMBERS, evaluate_coco
from sppdet.evaluation.voc import evaluate_voc
from sppdet.stages.evaluate import write_scores
from sppdet.stages.figures import new_figure, save_figure
from sppdet.stages.report import headline, metric_title, print_table, write_curves, write_metrics
from sppdet.types import EvalResult

NAMES = ("a", "$x_1$ [bold]", "../c:d", "_none")


@pytest.fixture
def result() -> EvalResult:
    dataset, detections = random_split(1)
    return evaluate_voc(replace(dataset, class_names=NAMES), detections, metric="voc07")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_report(result: EvalResult, tmp_path: Path) -> None:
    write_metrics(result, tmp_path / "one", signature="zf5|voc07")
    write_curves(result, tmp_path / "one")
    files = contents(tmp_path / "one")
    stems = ["pr_$x_1$ [bold]", "pr__..__c_d", "pr__none", "pr_a"]
    named = {f"{stem}.{kind}" for stem in stems for kind in ("png", "csv")}
    assert set(files) == named | {"metrics.json", "pr_curves.png"}
    assert all(data[:4] == b"\x89PNG" for name, data in files.items() if name.endswith(".png"))
    written = json.loads(
        files["metrics.json"], parse_constant=lambda name: pytest.fail(f"{name} is not JSON")
    )
    assert written["mAP"] == result.mean_ap
    assert written["AP"]["_none"] is None
    assert written["AP"]["a"] == result.classes[0].ap
    assert (written["metric"], written["split"], written["images"]) == ("voc07", "random", 12)
    assert written["ground_truths"] == sum(c.ground_truths for c in result.classes) > 0
    assert written["detections"] == sum(len(c.scores) for c in result.classes) > 0
    assert written["signature"] == "zf5|voc07"
    assert written["extra"] == {}
    assert list(written) == sorted(written)
    lines = files["pr_a.csv"].decode().splitlines()
    assert len(lines) == 1 + result.classes[0].detections
    write_metrics(result, tmp_path / "two", signature="zf5|voc07")
    write_curves(result, tmp_path / "two")
    assert contents(tmp_path / "two") == files


@pytest.mark.parametrize(
    "name", ["coco_results.json", "comp4_det_t_b.txt", "voc07/pr_a.png", "voc07/pr_curves.png"]
)
def test_what_can_not_be_written_hides_no_number(
    result: EvalResult, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).mkdir(parents=True)  # in the way of a file
    dataset, detections = random_split(1)
    said = io.StringIO()
    data = DataConfig(root=[tmp_path], test=["t"])
    one = replace(result, split="t")
    with printed_to(said), pytest.raises(ArtifactError, match=f"{name}: can't be written"):
        write_scores(one, data, dataset, detections, tmp_path, signature="s", split="test")
    assert f"mAP (11-point, t): {100 * result.mean_ap:.2f} %" in said.getvalue()
    assert json.loads((tmp_path / "voc07/metrics.json").read_text())["mAP"] == result.mean_ap


def test_report_without_csv_and_a_class_named_curves(result: EvalResult, tmp_path: Path) -> None:
    one = replace(result, classes=(replace(result.classes[0], name="curves"),))
    write_curves(one, tmp_path, detections_csv=False)
    assert set(contents(tmp_path)) == {"pr_curves.png", "pr_class_curves.png"}


def test_report_of_nothing(result: EvalResult, tmp_path: Path) -> None:
    empty = replace(result, classes=(), mean_ap=float("nan"))
    write_metrics(empty, tmp_path, signature="")
    write_curves(empty, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["mAP"] is None


def test_coco_report(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    result = evaluate_coco(*random_split(1))
    write_metrics(result, tmp_path, signature="s")
    write_curves(result, tmp_path)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert set(written["extra"]) == set(COCO_NUMBERS)
    assert written["extra"]["APl"] is None
    assert written["min_iou"] is None
    lines = (tmp_path / "pr_a.csv").read_text().splitlines()
    assert lines[0] == "recall,precision,score"
    assert len(lines) == 102
    assert headline(result).startswith("mAP (COCO IoU .50:.95, random): ")
    assert "AR100" in printed(result)


def printed(result: EvalResult, *, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_table(result, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_table(result: EvalResult) -> None:
    text = printed(result)
    assert headline(result) == f"mAP (11-point, random): {100 * result.mean_ap:.2f} %"
    assert "$x_1$ [bold]" in text
    assert f"{100 * result.classes[0].ap:.2f}" in text
    assert "n/a" in text


def test_intervals_are_written_and_printed(result: EvalResult, tmp_path: Path) -> None:
    scored = with_intervals(result)
    assert scored.intervals is not None
    write_metrics(scored, tmp_path / "one", signature="s")
    write_metrics(with_intervals(result), tmp_path / "two", signature="s")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    written = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert written["mAP_interval"] == list(scored.intervals.mean)
    assert written["AP_interval"]["a"] == list(scored.intervals.classes[0])
    assert written["AP_interval"]["_none"] is None
    assert written["interval"] == {"level": 0.95, "draws": 1000}
    low, high = (f"{100 * bound:.2f}" for bound in scored.intervals.mean)
    wanted = f"mAP (11-point, random): {100 * result.mean_ap:.2f} % (95 %: {low}–{high})"
    assert headline(scored) == wanted
    text = printed(scored)
    low, high = (f"{100 * bound:.2f}" for bound in scored.intervals.classes[0])
    assert f" {low}–{high} " in text and float(low) < 100 * result.classes[0].ap < float(high)


def test_without_intervals_nothing_is_claimed(result: EvalResult, tmp_path: Path) -> None:
    write_metrics(result, tmp_path, signature="s")
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert (written["mAP_interval"], written["interval"]) == (None, None)
    assert set(written["AP_interval"].values()) == {None}
    assert "95 %" not in printed(result)


def test_classes_with_few_objects_are_marked(result: EvalResult) -> None:
    note = "* fewer than 20 objects: AP and its interval are rough\n"
    classes = result.classes
    enough = [replace(one, ground_truths=20) for one in classes[:3]]
    text = printed(replace(result, classes=(*enough, classes[3])))  # the last one has none
    assert note not in text and "*" not in text
    few = replace(classes[0], ground_truths=19)
    text = printed(replace(result, classes=(few, *enough)))
    assert note in text and text.count("19*") == 1 and text.count("*") == 2


def test_title_names_metric_split_and_iou(result: EvalResult) -> None:
    assert metric_title(replace(result, metric="voc10", split="test")) == (
        "mAP (area under the curve, test)"
    )
    assert metric_title(replace(result, min_iou=0.75)) == ("mAP (11-point at IoU 0.75, random)")


def test_images_of_long_curves(result: EvalResult, tmp_path: Path) -> None:
    # half a million points are thinned to the corners before they are drawn
    count = 500_000
    hits = (np.arange(count) % 1000 == 0).astype(np.int8)
    tp = np.cumsum(hits)
    long = replace(result.classes[0], recall=tp / tp[-1], precision=tp / np.arange(1, count + 1))
    one = replace(result, classes=(long,))
    write_curves(one, tmp_path, detections_csv=False)
    assert (tmp_path / "pr_a.png").stat().st_size > 5000


def test_a_title_in_any_script_draws_no_warning(tmp_path: Path) -> None:
    figure = new_figure(width=2, height=1)
    figure.suptitle("\u9ce5 $x_", parse_math=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0
