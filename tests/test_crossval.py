"""`sppdet crossval`: exact folds, the pooled result against an evaluation of its own, resumption."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runs import FAST, CommandLine, contents, printed_to
from sppdet.config import Config
from sppdet.evaluation.voc import evaluate_voc
from sppdet.io.detection_files import read_detections
from sppdet.io.image_cache import ImageCache
from sppdet.io.splits import read_split
from sppdet.runs.artifacts import read_json
from sppdet.stages import trainings
from sppdet.stages.crossval import crossval
from sppdet.stages.evaluate import evaluate_run
from sppdet.stages.pipeline import train
from sppdet.types import Detections, EvalResult

FOLDS = 3
pytestmark = pytest.mark.usefixtures("without_curves")


def run_quietly(config: Config, folder: Path, folds: int | None = FOLDS) -> tuple[EvalResult, str]:
    said = io.StringIO()
    with printed_to(said):
        result = crossval(config, folder, folds=folds, device="cpu")
    return result, said.getvalue()


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a cross-validation without interruption, and what it printed."""
    folder = tmp_path_factory.mktemp("crossval") / "cv"
    _, said = run_quietly(config, folder)
    return folder, said


def reports(folder: Path) -> dict[str, bytes]:
    """What must not depend on how a cross-validation came about."""
    scores = folder / "eval" / "folds"
    found = contents(folder, "crossval.json") | contents(folder / "folds")
    return found | contents(scores) | contents(scores / "voc07")


def test_folds_partition_the_set(whole: tuple[Path, str], config: Config) -> None:
    folder, _ = whole
    names = [image.id for image in read_split(config.data, "train", None, None, workers=1).images]
    tested = [(folder / "folds" / f"fold{k}.txt").read_text().split() for k in range(FOLDS)]
    assert sorted(name for ids in tested for name in ids) == sorted(names) and {
        len(ids) for ids in tested
    } == {4}
    for k, ids in enumerate(tested):
        rest = (folder / "folds" / f"rest{k}.txt").read_text().split()
        assert rest == [name for name in names if name not in ids]
        run = read_json(folder / f"fold{k}" / "images.json")["images"]
        assert {Path(path).stem for path in run} == set(names)
        assert (folder / f"fold{k}" / "model" / "trained.json").is_file()
        assert not (folder / f"fold{k}" / "store" / "maps").exists()


def test_the_joined_result_is_that_of_all_detections(
    whole: tuple[Path, str], config: Config
) -> None:
    folder, said = whole
    found = read_json(folder / "crossval.json")
    dataset = read_split(config.data, "train", None, ImageCache(), workers=1)
    detections: dict[str, Detections] = {}
    for k in range(FOLDS):
        own = evaluate_run(folder / f"fold{k}", "test", device="cpu")
        assert found["folds"][k]["mAP"] == pytest.approx(own.mean_ap)
        assert own.intervals is not None
        assert found["folds"][k]["mAP_interval"] == pytest.approx(list(own.intervals.mean))
        fold = read_split(
            config.data.model_copy(update={"train_ids": folder / "folds" / f"fold{k}.txt"}),
            "train",
            dataset.class_names,
            ImageCache(),
            workers=1,
        )
        detections |= read_detections(folder / f"fold{k}" / trainings.DETECTIONS, fold)
    result = evaluate_voc(dataset, detections, metric="voc07")
    assert found["mAP"] == pytest.approx(result.mean_ap) and found["images"] == 12
    low, high = found["mAP_interval"]
    assert low < found["mAP"] < high and found["interval"]["draws"] == 1000
    assert f"mAP (11-point, set-trainval, 3 folds): {100 * result.mean_ap:.2f} %" in said
    assert any(line.split()[:4] == ["│", "all", "│", "12"] for line in said.splitlines())


def test_one_store_serves_all_folds(whole: tuple[Path, str]) -> None:
    """Twelve images are searched once, and each has its maps once."""
    stores = {path.name.split("-")[0]: path for path in (whole[0] / "store").iterdir()}
    assert set(stores) == {"proposals", "maps"}
    assert len(list(stores["proposals"].iterdir())) == 12
    assert len(list(stores["maps"].iterdir())) == 12


def test_finished_folds_cost_nothing_again(
    whole: tuple[Path, str], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = whole
    before = reports(folder)
    monkeypatch.setattr(trainings, "train", lambda *_, **__: pytest.fail("trained again"))
    _, said = run_quietly(config, folder, None)
    assert reports(folder) == before
    assert said.count("finished already") == FOLDS


def test_a_fold_is_trained_again_for_other_settings_or_damage(
    whole: tuple[Path, str], config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(whole[0], tmp_path / "cv"))
    runs: list[str] = []

    def noted(own: Config, run: Path, **more: Any) -> EvalResult | None:
        runs.append(run.name)
        return train(own, run, **more)

    monkeypatch.setattr(trainings, "train", noted)
    (folder / "fold1" / trainings.DETECTIONS).write_text("[]")
    (folder / "fold2" / "finished.json").write_text("{")
    run_quietly(config, folder)
    assert runs == ["fold1", "fold2"] and reports(folder) == reports(whole[0])
    other = config.model_copy(update={"svm": config.svm.model_copy(update={"C": 0.5})})
    run_quietly(other, folder)
    assert runs[2:] == ["fold0", "fold1", "fold2"]
    assert reports(folder) != reports(whole[0])


def test_an_interrupted_call_goes_on_and_ends_in_the_same_bytes(
    whole: tuple[Path, str], config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cv"
    calls: list[str] = []

    def stopped(own: Config, run: Path, **more: Any) -> EvalResult | None:
        calls.append(run.name)
        if run.name == "fold1":
            train(own, run, **more, until="svm")
            raise KeyboardInterrupt
        return train(own, run, **more)

    monkeypatch.setattr(trainings, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_quietly(config, folder)
    assert not (folder / "crossval.json").exists()
    monkeypatch.setattr(trainings, "train", train)
    _, said = run_quietly(config, folder)
    assert said.count("finished already") == 1 and "svm: there already" in said
    assert reports(folder) == reports(whole[0])


def test_lists_that_a_user_has_edited_are_kept(
    whole: tuple[Path, str], config: Config, tmp_path: Path
) -> None:
    folder = tmp_path / "cv"
    shutil.copytree(whole[0] / "folds", folder / "folds")
    (folder / ".sppdet-crossval-runs").write_text("")
    lists = [folder / "folds" / f"fold{k}.txt" for k in (0, 1)]
    first, second = (path.read_text().split() for path in lists)
    lists[0].write_text("\n".join([second[0], *first[1:]]) + "\n")
    lists[1].write_text("\n".join([first[0], *second[1:]]) + "\n")
    run_quietly(config, folder, None)
    assert lists[0].read_text().split() == [second[0], *first[1:]]
    rest = (folder / "folds" / "rest0.txt").read_text().split()
    assert first[0] in rest and second[0] not in rest


def test_the_command_and_its_errors(
    sppdet: CommandLine, whole: tuple[Path, str], settings: Path, demo_root: Path, tmp_path: Path
) -> None:
    folder, _ = whole
    small = (*(word for one in FAST for word in ("--set", one)), "--device", "cpu", "--run")

    def error(*arguments: str | Path) -> str:
        status, _, err = sppdet("crossval", settings, *arguments)
        lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
        assert status == 1 and len(lines) == 1, err
        return lines[0].removeprefix("error: ")

    status, out, err = sppdet("crossval", settings, *small, folder)
    assert status == 0 and out.count("finished already") == FOLDS, err
    assert "has 3 folds, not 4; expected another --run" in error("--folds", "4", *small, folder)
    assert "13 folds of 12 images; expected 2 to 12" in error(
        "--folds", "13", *small, tmp_path / "a"
    )
    assert "can't be" in error(*small, settings)  # a file
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("x")
    assert "hasn't written it" in error(*small, tmp_path / "b")
    root = Path(shutil.copytree(demo_root, tmp_path / "set"))
    path = root / "ImageSets" / "Main" / "trainval.txt"
    names = path.read_text().split()
    path.write_text("\n".join(names[1:]))
    other = error("--set", f"data.root={root}", *small, folder)
    assert f"the folds aren't of the images of set-trainval: {names[0]}" in other
    path.write_text("\n".join(names[:2]))
    few = error("--set", f"data.root={root}", "--folds", "2", *small, tmp_path / "c")
    assert "no positive of" in few and "expected objects in two images or more" in few
    assert "no set is named" in error("--set", "data.train=null", *small, tmp_path / "d")
    assert sppdet("crossval", settings, "--folds", "1")[0] == 2


def test_two_cross_validations_are_compared(
    sppdet: CommandLine, whole: tuple[Path, str], config: Config, tmp_path: Path
) -> None:
    folder, _ = whole
    other = config.model_copy(update={"bbox": None})
    run_quietly(other, tmp_path / "cv", 2)
    status, _, err = sppdet("compare", folder, tmp_path / "cv", "--json", tmp_path / "c.json")
    assert status == 0, err
    written = read_json(tmp_path / "c.json")
    for key, one in (("A", folder), ("B", tmp_path / "cv")):
        assert written["mAP"][key] == pytest.approx(read_json(one / "crossval.json")["mAP"])
    assert written["images"] == 12 and np.isfinite(written["mAP"]["difference"])
    (tmp_path / "cv" / "crossval.json").unlink()
    status, _, err = sppdet("compare", folder, tmp_path / "cv")
    assert status == 1 and "isn't finished yet; expected `sppdet crossval` to its end" in err
