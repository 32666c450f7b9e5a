"""Probabilities and thresholds: folds, the fit, what is read from it, the stage, and detection by it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from runs import CommandLine, contents, train_quietly
from sppdet.errors import ArtifactError, ConfigError
from sppdet.evaluation.calibration import Calibration, Evidence, fit_calibration
from sppdet.evaluation.folds import in_one_part
from sppdet.evaluation.intervals import wilson
from sppdet.evaluation.operating_point import operating_points
from sppdet.evaluation.voc import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE
from sppdet.stages.detector import Detector
from sppdet.stages.thresholds import Threshold, least_scores
from sppdet.types import ClassResult, Matches


def test_the_only_images_of_a_class() -> None:
    classes = np.zeros((6, 3), dtype=np.bool_)
    for image, label in ((0, 1), (1, 1), (1, 2), (2, 3), (3, 3), (5, 1)):
        classes[image, label - 1] = True
    # class 2 lies in part 1 alone, class 3 in part 2 alone
    found = in_one_part(classes, np.array([0, 1, 2, 2, 0, 2]))
    assert found.tolist() == [False, True, True, True, False, False]


# -- the fit ---------------------------------------------------------------------------------------


def drawn(slope: float, intercept: float, count: int, *, seed: int) -> Evidence:
    """Detections whose probability is known."""
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.normal(-0.8, 0.5, count))[::-1].copy()
    correct = rng.uniform(size=count) < 1 / (1 + np.exp(-(slope * scores + intercept)))
    return Evidence(scores, correct, int(correct.sum()))


def test_one_class_is_fitted_like_a_logistic_regression() -> None:
    evidence = drawn(4.0, 2.0, 4000, seed=3)
    found = fit_calibration([evidence])
    assert found is not None
    reference = LogisticRegression(C=1e9, tol=1e-10).fit(evidence.scores[:, None], evidence.correct)
    assert found.slopes[0] == pytest.approx(reference.coef_[0, 0], rel=0.02)
    assert found.intercepts[0] == pytest.approx(reference.intercept_[0], rel=0.02)


def test_the_probability_of_each_class_is_found() -> None:
    given = [(4.0, 2.0), (6.0, 5.0), (3.0, 0.0)]
    found = fit_calibration([drawn(a, b, 6000, seed=k) for k, (a, b) in enumerate(given)])
    assert found is not None
    at = np.linspace(-1.6, 0.2, 30).astype(np.float32)
    for k, (a, b) in enumerate(given):
        expected = 1 / (1 + np.exp(-(a * at + b)))
        labels = np.full(len(at), k + 1)
        assert np.abs(found.probabilities(at, labels) - expected).max() < 0.06


def test_a_class_with_few_detections_takes_after_the_others() -> None:
    many = [drawn(5.0, 3.0, 3000, seed=k) for k in (1, 2)]
    few = Evidence(np.array([-0.3, -0.9]), np.array([False, True]), 1)  # the wrong way round
    found = fit_calibration([*many, few])
    assert found is not None and found.borrowing() == [2]
    assert found.slopes[2] == pytest.approx(found.slopes[:2].mean(), rel=0.3)
    assert (found.slopes > 0).all()


def test_nothing_to_tell_apart() -> None:
    scores = np.array([-0.1, -0.5])
    for correct in ([False, False], [True, True]):
        assert fit_calibration([Evidence(scores, np.array(correct), 2)]) is None
    assert fit_calibration([Evidence(np.zeros(0), np.zeros(0, dtype=np.bool_), 0)]) is None


def test_detections_of_difficult_objects_are_no_evidence() -> None:
    result = ClassResult(
        "a",
        0.5,
        np.zeros(3),
        np.zeros(3),
        np.array([3.0, 2.0, 1.0]),
        ground_truths=4,
        detections=3,
        outcomes=np.array([TRUE_POSITIVE, IGNORED, FALSE_POSITIVE], dtype=np.int8),
    )
    found = Evidence.of(result)
    assert found.scores.tolist() == [3, 1] and found.correct.tolist() == [True, False]
    assert found.objects == 4


# -- thresholds ------------------------------------------------------------------------------------


def two_classes() -> Calibration:
    """Probabilities of 0.9, 0.8 (wrong), 0.7, 0.6, 0.5 (wrong), 0.4; 5 objects."""
    logit = np.log(np.array([0.9, 0.7, 0.5]) / np.array([0.1, 0.3, 0.5]))
    first = Evidence(logit, np.array([True, True, False]), 3)
    logit = np.log(np.array([0.8, 0.6, 0.4]) / np.array([0.2, 0.4, 0.6])) / 2 - 1
    second = Evidence(logit, np.array([False, True, True]), 2)
    return Calibration(np.array([1.0, 2.0]), np.array([0.0, 2.0]), (first, second))


def test_thresholds_by_hand() -> None:
    calibration = two_classes()
    # precision: 1/1, 1/2, 2/3, 3/4, 3/5, 4/6; recall: 1, 1, 2, 3, 3, 4 of 5
    assert calibration.at_precision(0.9) == pytest.approx(0.9)
    assert calibration.at_precision(0.75) == pytest.approx(0.6)
    assert calibration.at_precision(0.6) == pytest.approx(0.4)
    assert calibration.at_recall(0.2) == pytest.approx(0.9)
    assert calibration.at_recall(0.41) == pytest.approx(0.6)
    assert calibration.at_recall(0.8) == pytest.approx(0.4)
    assert calibration.at_recall(0.81) is None
    # F1: 2·(3/4)(3/5)/(3/4 + 3/5) = 0.667 at 0.6; 2·(4/6)(4/5)/(4/6 + 4/5) = 0.727 at 0.4
    assert calibration.best_f1() == pytest.approx(0.4)


def test_scores_at_a_probability() -> None:
    calibration = two_classes()
    for p in (0.05, 0.5, 0.93):
        scores = calibration.scores_at(p).astype(np.float32)
        assert calibration.probabilities(scores, np.array([1, 2])) == pytest.approx(
            [p, p], abs=1e-5
        )


def calibrated(run: Path) -> Detector:
    detector = Detector.load(run, device="cpu")
    names = detector.class_names
    fitted = Calibration(np.full(len(names), 2.0), np.zeros(len(names)), two_classes().evidence * 2)
    return replace(detector, calibration=fitted)


def test_what_is_wanted_becomes_scores(trained: Path) -> None:
    detector = calibrated(trained)
    assert detector.calibration is not None
    scores, text = least_scores(detector, Threshold("score", -0.25))
    assert scores.tolist() == [-0.25] * 4 and text == "scores >= -0.25"
    scores, text = least_scores(detector, Threshold("probability", 0.5))
    assert scores == pytest.approx([0.0] * 4, abs=1e-6) and text == "probabilities >= 0.50"
    best = detector.calibration.best_f1()
    scores, text = least_scores(detector, Threshold())
    assert scores == pytest.approx(detector.calibration.scores_at(best), abs=1e-5)
    assert text == f"probabilities >= {best:.2f}, the best F1 on held-out training images"
    with pytest.raises(ConfigError, match=r"--recall 0\.99: no threshold reached it"):
        least_scores(detector, Threshold("recall", 0.99))
    plain = replace(detector, calibration=None)
    assert least_scores(plain, Threshold())[0].tolist() == [0.0] * 4
    with pytest.raises(ConfigError, match="--min-probability: the run has no probabilities"):
        least_scores(plain, Threshold("probability", 0.5))
    for kind in ("probability", "precision", "recall"):
        with pytest.raises(ConfigError, match="expected a number between 0 and 1"):
            Threshold(kind, 1.0)


# -- the stage -------------------------------------------------------------------------------------


def test_the_calibration_of_a_run(settings: Path, trained: Path, run_copy: Path) -> None:
    detector = Detector.load(run_copy, device="cpu")
    assert detector.calibration is not None and len(detector.calibration.evidence) == 4
    path = run_copy / "model" / "calibration.safetensors"
    whole = path.read_bytes()
    config = run_copy / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("nms: 0.3", "nms: 0.4"))
    assert text != config.read_text()
    assert Detector.load(run_copy, device="cpu").calibration is None  # of other detections
    config.write_text(text)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"calibration\.safetensors"):
        Detector.load(run_copy, device="cpu")
    train_quietly(settings, run_copy, until="calibrate")
    assert path.read_bytes() == whole
    train_quietly(settings, run_copy, "calibrate=none", until="calibrate")
    assert not path.exists() and Detector.load(run_copy, device="cpu").calibration is None
    assert contents(run_copy / "model").keys() == contents(trained / "model").keys() - {path.name}


def test_a_softmax_is_calibrated_on_what_fine_tuning_held_out(
    settings: Path, run_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_quietly(settings, run_copy, "classifier=softmax", until="calibrate")
    assert "fine-tuning has held out 1 images, expected 10" in caplog.text
    assert Detector.load(run_copy, device="cpu").calibration is None
    more = ("classifier=softmax", "finetune.val_fraction=0.85")
    _, said = train_quietly(settings, run_copy, *more, until="calibrate")
    assert "right detections in 10 held-out images" in said


# -- detection -------------------------------------------------------------------------------------


def test_detections_have_probabilities(trained: Path, demo_root: Path) -> None:
    detector = calibrated(trained)
    found = detector(demo_root / "JPEGImages" / "000013.jpg")
    assert found.probabilities is not None and len(found) > 3
    expected = 1 / (1 + np.exp(-2.0 * found.scores.astype(np.float64)))
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-5)
    best = found.above(float(found.scores[2]))
    assert best.probabilities is not None and len(best.probabilities) == len(best) == 3
    of_class = np.full(4, np.inf, dtype=np.float32)
    of_class[found.labels[0] - 1] = found.scores[0]
    assert found.above(of_class).scores.tolist() == [found.scores[0]]
    with pytest.raises(ValueError, match="probabilities"):
        replace(found, probabilities=found.probabilities[1:])


def test_probabilities_in_the_files(
    sppdet: CommandLine, trained: Path, demo_root: Path, tmp_path: Path
) -> None:
    image = demo_root / "JPEGImages" / "000013.jpg"
    out = tmp_path / "out"
    detect = (
        "detect",
        trained,
        image,
        "--out",
        out,
        "--device",
        "cpu",
        "--save",
        "json,csv,images",
    )
    status, said, err = sppdet(*detect, "--min-probability", "0.02")
    assert status == 0, err
    assert "probabilities >= 0.02" in said
    rows = json.loads((out / "detections.json").read_text())["annotations"]
    calibration = Detector.load(trained, device="cpu").calibration
    assert rows and calibration is not None
    for row in rows:
        score = np.array([row["score"]], dtype=np.float32)
        label = np.array([row["category_id"]])
        assert row["probability"] == pytest.approx(
            float(calibration.probabilities(score, label)[0])
        )
        assert row["probability"] >= 0.0199
    header, *lines = (out / "detections.csv").read_text().splitlines()
    assert header.endswith(",probability") and len(lines) == len(rows)
    assert float(lines[0].split(",")[-1]) == pytest.approx(rows[0]["probability"], abs=1e-4)


def test_the_best_of_no_detection_is_said(
    sppdet: CommandLine, trained: Path, demo_root: Path, tmp_path: Path
) -> None:
    image = demo_root / "JPEGImages" / "000013.jpg"
    common = ("detect", trained, image, "--device", "cpu", "--save", "json")
    _, said, _ = sppdet(*common, "--out", tmp_path / "a", "--min-probability", "0.9999")
    assert "0 detections in 1 images, probabilities >= 1.00: the best had probability 0." in said
    option, count = said.split("--min-probability ")[1].split(" shows ")
    count = count.split(";")[0]
    _, again, _ = sppdet(*common, "--out", tmp_path / "b", "--min-probability", option)
    assert f"{count} detections in 1 images" in again and int(count) > 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--score", "x"), "--score x: expected a number or auto"),
        (("--score", "nan"), "--score nan: expected a number"),
        (("--precision", "1.5"), "--precision 1.5: expected a number between 0 and 1"),
        (("--recall", "0.9", "--score", "1"), "expected one of --score, --min-probability"),
        (("--recall", "0.99999"), "--recall 0.99999: no threshold reached it"),
    ],
)
def test_wrong_options(
    sppdet: CommandLine,
    trained: Path,
    demo_root: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    problem: str,
) -> None:
    image = demo_root / "JPEGImages" / "000013.jpg"
    status, _, err = sppdet("detect", trained, image, "--out", tmp_path / "out", *options)
    assert status != 0 and problem in err and err.count("\n") == 1


def test_bits_of_the_evidence(tmp_path: Path) -> None:
    from sppdet.runs.weights import read_part
    from sppdet.stages.model import read_calibration, save_calibration

    path = tmp_path / "calibration.safetensors"
    given = two_classes()
    save_calibration(path, given, made_by="x", made_for="y")
    found = read_calibration(read_part(path), classes=2, made_for="y")
    assert found is not None
    for a, b in zip(found.evidence, given.evidence, strict=True):
        assert (a.scores == b.scores).all() and (a.correct == b.correct).all()
        assert a.objects == b.objects
    assert (found.slopes == given.slopes).all() and (found.intercepts == given.intercepts).all()
    assert read_calibration(read_part(path), classes=2, made_for="z") is None
    with pytest.raises(ArtifactError, match="slopes"):
        read_calibration(read_part(path), classes=3, made_for="y")
    save_calibration(path, None, made_by="x", made_for="y")
    assert read_calibration(read_part(path), classes=2, made_for="y") is None


# -- precision, recall and F1 at a threshold -------------------------------------------------------


def test_operating_points_by_hand() -> None:
    def result(
        name: str, outcomes: list[int], images: list[int], objects: list[int]
    ) -> ClassResult:
        index, own = np.array(images), np.array(outcomes, dtype=np.int8)
        return ClassResult(
            name,
            0.5,
            np.zeros(len(own)),
            np.zeros(len(own)),
            np.arange(len(own), 0, -1.0),
            sum(objects),
            len(own),
            index,
            outcomes=own,
            matches=Matches(index, own[None], np.array(objects)),
        )

    right, wrong, ignored = TRUE_POSITIVE, FALSE_POSITIVE, IGNORED
    a = result("a", [right, ignored, wrong, right], [0, 0, 1, 2], [1, 2, 1])  # scores 4, 3, 2, 1
    b = result("b", [wrong, wrong], [0, 2], [0, 0, 0])
    first, second, together = operating_points([a, b], np.array([2, 1.5], np.float32), images=3)
    assert (first.right, first.wrong, first.objects) == (1, 1, 4)
    assert (first.precision, first.recall) == (0.5, 0.25)
    assert first.f1 == pytest.approx(2 / 6)
    assert (second.right, second.wrong, second.precision) == (0, 1, 0.0)
    assert np.isnan(second.recall) and np.isnan(second.recall_interval).all()
    assert (together.name, together.right, together.wrong, together.objects) == ("all", 1, 2, 4)
    low, high = together.f1_interval
    assert 0 <= low <= together.f1 <= high <= 1


def test_wilsons_interval() -> None:
    # (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n) with z = 1.959964
    z, n, p = 1.959964, 20, 0.9
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)
    assert wilson(18, 20) == pytest.approx(expected, abs=1e-6)
    assert wilson(5, 5)[1] == 1.0 and wilson(5, 5)[0] < 0.6


def test_the_evaluation_says_what_the_threshold_keeps(trained: Path) -> None:
    found = json.loads((trained / "eval" / "test" / "voc07" / "metrics.json").read_text())
    points = found["at_threshold"]
    assert points["threshold"].startswith("probabilities >= ")
    rows = points["classes"]
    assert list(rows) == sorted([*found["AP"], "all"])
    for key in ("right", "wrong", "objects"):
        assert rows["all"][key] == sum(rows[name][key] for name in found["AP"])
    assert rows["all"]["objects"] == found["ground_truths"]
    detector = Detector.load(trained, device="cpu")
    least, _ = least_scores(detector, Threshold())
    rows_above = sum(
        entry["score"] >= least[detector.class_names.index(entry["category_name"])]
        for entry in json.loads((trained / "eval" / "test" / "coco_results.json").read_text())
    )
    assert rows["all"]["right"] + rows["all"]["wrong"] <= rows_above
