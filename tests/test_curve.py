"""`sppdet curve`: nested subsets, points against evaluations of their own, resumption."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation_samples import random_split
from runs import FAST, CommandLine, contents, printed_to
from sppdet.config import Config
from sppdet.evaluation.bootstrap import drawn_aps, drawn_mean, mean_by_draw, with_intervals
from sppdet.evaluation.voc import evaluate_voc
from sppdet.io.splits import read_split
from sppdet.runs.artifacts import read_json
from sppdet.stages import trainings
from sppdet.stages.curve import CurvePoint, LearningCurve, curve, reading
from sppdet.stages.pipeline import train
from sppdet.types import EvalResult

pytestmark = pytest.mark.usefixtures("without_curves")
FRACTIONS = (0.5, 1.0)


def run_quietly(config: Config, folder: Path, **more: Any) -> tuple[LearningCurve, str]:
    said = io.StringIO()
    with printed_to(said):
        found = curve(config, folder, fractions=FRACTIONS, device="cpu", **more)
    return found, said.getvalue()


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a curve of two seeds without interruption, and what it printed."""
    folder = tmp_path_factory.mktemp("curve") / "c"
    _, said = run_quietly(config, folder, seeds=2)
    return folder, said


def reports(folder: Path) -> dict[str, bytes]:
    return contents(folder, "curve.*") | contents(folder / "lists")


def test_points_are_those_of_the_runs(whole: tuple[Path, str], config: Config) -> None:
    folder, said = whole
    found = read_json(folder / "curve.json")
    assert [point["images"] for point in found["points"]] == [6, 12]
    assert (found["test_images"], found["seeds"], found["split"]) == (6, [0, 1], "set-test")
    names = [image.id for image in read_split(config.data, "train", None, None, workers=1).images]
    for seed in (0, 1):
        small, large = (
            (folder / "lists" / f"{n}-seed{seed}.txt").read_text().split() for n in (6, 12)
        )
        assert set(small) < set(large) and large == names
    assert len({data for name, data in contents(folder / "lists").items() if name[0] == "6"}) == 2
    for point in found["points"]:
        runs = [folder / f"{point['images']}-seed{seed}" for seed in (0, 1)]
        scores = [read_json(run / "eval/test/voc07/metrics.json") for run in runs]
        assert point["mAP_of_seeds"] == pytest.approx([one["mAP"] for one in scores])
        assert point["mAP"] == pytest.approx(np.mean(point["mAP_of_seeds"]))
        low, high = point["mAP_interval"]
        assert low <= point["mAP"] <= high
    assert (folder / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert found["reading"] in said and "seeds" in said
    step = found["points"][1]["mAP"] - found["points"][0]["mAP"]
    assert found["last_step"]["difference"] == pytest.approx(step)


def test_an_interrupted_call_goes_on_and_ends_in_the_same_bytes(
    whole: tuple[Path, str], config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "c"

    def stopped(own: Config, run: Path, **more: Any) -> EvalResult | None:
        if run.name == "6-seed1":
            train(own, run, **more, until="svm")
            raise KeyboardInterrupt
        return train(own, run, **more)

    monkeypatch.setattr(trainings, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_quietly(config, folder, seeds=2)
    monkeypatch.setattr(trainings, "train", train)
    _, said = run_quietly(config, folder, seeds=2)
    assert said.count("finished already") == 1
    assert reports(folder) == reports(whole[0])
    monkeypatch.setattr(trainings, "train", lambda *_, **__: pytest.fail("trained again"))
    run_quietly(config, folder, seeds=2)
    assert reports(folder) == reports(whole[0])


def test_without_a_test_set_a_fifth_is_held_out(config: Config, tmp_path: Path) -> None:
    data = config.data.model_copy(update={"test": None})
    found, _ = run_quietly(config.model_copy(update={"data": data}), tmp_path / "c")
    assert [point.images for point in found.points] == [5, 10] and found.test_images == 2
    lists = contents(tmp_path / "c" / "lists")
    assert not set(lists["test.txt"].split()) & set(lists["10-seed0.txt"].split())


def test_errors_are_one_line(
    sppdet: CommandLine, whole: tuple[Path, str], settings: Path, tmp_path: Path
) -> None:
    small = (*(word for one in FAST for word in ("--set", one)), "--device", "cpu")

    def error(*arguments: str | Path) -> str:
        status, _, err = sppdet("curve", settings, *small, *arguments)
        lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
        assert status == 1 and len(lines) == 1, err
        return lines[0].removeprefix("error: ")

    for wrong in ("1", "0,1", "0.5,1.5", "nan,1"):
        assert "expected two or more above 0 and up to 1" in error("--fractions", wrong)
    assert "expected numbers such as" in error("--fractions", "half,1")
    there = ("--run", tmp_path / "a")
    assert "are [12, 6] images; expected ascending" in error("--fractions", "1,0.5", *there)
    assert "expected a larger fraction" in error("--fractions", "0.05,1", *there)
    assert "no set is named" in error("--set", "data.train=null", *there)
    assert "hasn't written it" in error("--run", settings.parent)
    status, out, err = sppdet(
        "curve", settings, *small, "--run", whole[0], "--fractions", "0.5,1", "--seeds", "2"
    )
    assert status == 0 and out.count("finished already") == 4, err


def test_readings() -> None:
    dataset, detections = random_split(7)
    good = with_intervals(evaluate_voc(dataset, detections, metric="voc10"))
    bad = with_intervals(evaluate_voc(dataset, {}, metric="voc10"))

    def point(images: int, result: EvalResult) -> CurvePoint:
        return CurvePoint(images, (9,), (result,), tuple(drawn_mean([result]).tolist()))

    assert good.intervals is not None and point(6, good).interval == good.intervals.mean
    better = LearningCurve((point(6, bad), point(12, good)), 12)
    assert "more labels have helped" in reading(better)
    assert "made it worse" in reading(replace(better, points=better.points[::-1]))
    same = LearningCurve((point(6, good), point(12, good)), 12)
    assert "12 test images can't tell" in reading(same)


def test_the_mean_over_seeds_is_taken_on_each_draw() -> None:
    dataset, detections = random_split(7)
    one, other = (evaluate_voc(dataset, d, metric="voc10") for d in (detections, {}))
    wanted = (mean_by_draw(drawn_aps(one)) + mean_by_draw(drawn_aps(other))) / 2
    assert drawn_mean([one, other]) == pytest.approx(wanted)
