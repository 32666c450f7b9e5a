"""The report of a run: its content, its form as a page, and that it never ends a training."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from campaigns.workspace import QUICK
from evaluation_samples import make_detections, make_image, random_split
from pages import HOSTILE, check_page, opened
from runs import CLASSES, CommandLine, small_set, train_quietly, write_settings
from sppdet.evaluation.confusion import judge_images
from sppdet.evaluation.operating_point import operating_points
from sppdet.evaluation.voc import class_results
from sppdet.io.image_cache import ImageCache
from sppdet.pages.graphics import polyline, thumbnail
from sppdet.pages.render import number, percent, span
from sppdet.stages.causes import diagnose_run
from sppdet.stages.report_images import RANDOM, WORST, gallery
from sppdet.stages.run_report import confusion_view, curve_view, write_report
from sppdet.types import Dataset

RING = "warning: 1 objects of other classes left out: ring 1\n"


def metrics_of(run: Path) -> Path:
    return run / "eval" / "test" / "voc07" / "metrics.json"


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose class, image, folder and warnings have names that are HTML; not to be changed."""
    folder = tmp_path_factory.mktemp("hostile")
    root = small_set(folder / "<b>set&amp;")
    name = HOSTILE.replace("<", "&lt;").replace(">", "&gt;")
    for path in (root / "Annotations").iterdir():
        path.write_text(path.read_text().replace(">disc<", f">{name}<"))
    settings = write_settings(folder / "quick.yaml", root, **QUICK)
    run = folder / "<i>run"
    train_quietly(settings, run)
    with (run / "log.jsonl").open("a") as log:
        print(json.dumps({"event": "warning", "text": f"{HOSTILE} \u202e"}), file=log)
    return run


def test_training_ends_with_a_report(trained: Path) -> None:
    path = trained / "report.html"
    page = check_page(path)
    metrics = json.loads(metrics_of(trained).read_text())
    point = metrics["at_threshold"]
    assert f"mAP (11-point){percent(metrics['mAP'])}" in page.text
    assert span(metrics["mAP_interval"]) in page.text and point["threshold"] in page.text
    for name in CLASSES:
        assert percent(metrics["AP"][name]) in page.text
    every = point["classes"]["all"]
    assert f"objects found{every['right']} of {every['objects']}" in page.text
    assert f"{every['wrong']} false detections" in page.text
    for key in ("precision", "recall", "f1"):
        assert percent(every[key]) in page.text and span(every[f"{key}_interval"]) in page.text
    assert metrics["signature"] in page.text and "backbone:" in page.text
    for stage in ("proposals", "svm", "evaluate"):
        assert stage in page.text
    assert "set-trainval" in page.text and "set-test" in page.text and "torch" in page.text
    assert "sppdet diagnose RUN" in page.text and "left out: ring 1" in page.text
    assert "mixes the two" not in page.text
    assert len(page.all("img")) == 6 and path.stat().st_size < 1_000_000
    curves = [a for a in page.all("svg") if a.get("aria-labelledby", "").startswith("curve-")]
    assert len(curves) == 4 and len(page.all("polyline")) >= 3
    dots = [(float(a["cx"]), float(a["cy"])) for a in page.all("circle") if a["class"] == "dot"]
    wanted = [point["classes"][name] for name in CLASSES]
    assert dots == [
        pytest.approx((200 * one["recall"], 200 * (1 - one["precision"])), abs=0.06)
        for one in wanted
        if one["precision"] is not None
    ]
    counts = [
        [int(n) for n in re.findall(r": (\d+) right and (\d+) false .* (\d+) missed", a["alt"])[0]]
        for a in page.all("img")
    ]
    errors = [false + missed for _, false, missed in counts]
    worst = [count for count in errors if count]
    assert errors[: len(worst)] == sorted(worst, reverse=True)
    assert [sum(column) for column in zip(*counts, strict=True)] == [
        every["right"],
        every["wrong"],
        every["objects"] - every["right"],
    ]


def test_the_confusion_matrix_adds_up(trained: Path) -> None:
    text = (trained / "report.html").read_text()
    table = text.partition('class="matrix"')[2].partition("</table>")[0]
    rows = [
        re.findall(r"<td[^>]*>([^<]*)</td>", row)
        for row in table.partition("<tbody>")[2].split("<tr>")[1:]
    ]
    assert len(rows) == 5 and rows[4][4] == "–"
    counts = [[0 if cell == "–" else int(cell) for cell in row] for row in rows]
    assert all(sum(row[:-1]) == row[-1] for row in counts)
    points = json.loads(metrics_of(trained).read_text())["at_threshold"]["classes"]
    for k, name in enumerate(CLASSES):
        assert counts[k][k] == points[name]["right"] and counts[k][5] == points[name]["objects"]
        total = sum(row[k] for row in counts)
        assert total == points[name]["right"] + points[name]["wrong"]


def test_the_same_run_gives_the_same_bytes(sppdet: CommandLine, run_copy: Path) -> None:
    before = (run_copy / "report.html").read_bytes()
    status, out, err = sppdet("report", run_copy)
    assert (status, out) == (0, f"written to {run_copy / 'report.html'}\n")
    assert err == RING
    assert (run_copy / "report.html").read_bytes() == before


def test_another_file_and_split(sppdet: CommandLine, run_copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "pages" / "mine.html"
    assert sppdet("report", run_copy, "--out", out)[0] == 0
    assert out.read_bytes() == (run_copy / "report.html").read_bytes()
    status, _, err = sppdet("report", run_copy, "--split", "trainval")
    line = "isn't evaluated on trainval yet; expected `sppdet eval` with --split trainval before"
    assert (status, err) == (1, f"error: {run_copy}: {line}\n")
    assert sppdet("eval", run_copy, "--split", "trainval")[0] == 0
    status, said, _ = sppdet("report", run_copy, "--split", "trainval")
    assert status == 0 and said.endswith("report_trainval.html\n")
    page = check_page(run_copy / "report_trainval.html")
    assert "report on set-trainval" in page.text and "--split trainval" in page.text


def test_nothing_else_is_overwritten(sppdet: CommandLine, run_copy: Path) -> None:
    (run_copy / "report.html").write_text("<html>mine</html>")
    status, _, err = sppdet("report", run_copy)
    assert status == 1 and "is there, but isn't a page of sppdet's; expected another --out" in err
    assert (run_copy / "report.html").read_text() == "<html>mine</html>"
    status, _, err = sppdet("report", run_copy, "--out", run_copy / "model")
    assert status == 1 and "isn't a page of sppdet's" in err


def test_a_run_that_was_not_evaluated(sppdet: CommandLine, run_copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(run_copy / "eval")
    status, _, err = sppdet("report", run_copy)
    line = "isn't evaluated on test yet; expected `sppdet eval` before"
    assert (status, err) == (1, f"error: {run_copy}: {line}\n")
    status, _, err = sppdet("report", tmp_path)
    assert status == 1 and "not a run" in err


def test_causes_where_they_are_known(run_copy: Path) -> None:
    found = diagnose_run(run_copy, device="cpu")
    page = check_page(write_report(run_copy))
    causes = json.loads((run_copy / "eval" / "test" / "causes.json").read_text())
    assert f"{causes['found']} of {causes['objects']} objects are found" in page.text
    assert causes["advice"][0] in page.text
    top = max(causes["summary"]["missed"].items(), key=lambda one: one[1]["count"])
    assert top[0] in page.text and "sppdet diagnose RUN" not in page.text
    lines = re.findall(r"missed: \w+ \(([^)]*)\)", page.text)
    assert sorted(lines) == sorted(m["cause"] for m in causes["missed"]) and len(lines) > 2
    assert found.gains.mean_ap == pytest.approx(causes["mAP"])
    path = run_copy / "eval" / "test" / "causes.json"
    path.write_text(json.dumps(causes | {"signature": "other"}))
    text = check_page(write_report(run_copy)).text
    assert "is of other settings or data" in text and causes["advice"][0] not in text
    path.write_text(json.dumps(causes | {"missed": 3}))
    assert "causes.json is damaged" in check_page(write_report(run_copy)).text


def test_a_run_without_probabilities(run_copy: Path) -> None:
    (run_copy / "model" / "calibration.safetensors").unlink()
    page = check_page(write_report(run_copy))
    assert "The run has no probabilities" in page.text and "the best F1 on these" in page.text
    assert "score −" in page.text


def test_other_metrics_and_other_settings(run_copy: Path, sppdet: CommandLine) -> None:
    assert sppdet("eval", run_copy, "--metric", "coco")[0] == 0
    page = check_page(write_report(run_copy))
    assert "mAP (11-point)" in page.text and "mAP (COCO IoU .50:.95): " in page.text
    path = run_copy / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["detect"]["nms"] = 0.4
    path.write_text(yaml.safe_dump(settings))
    assert "mixes the two" in check_page(write_report(run_copy)).text


def test_images_that_are_gone(run_copy: Path, settings: Path, tmp_path: Path) -> None:
    root = small_set(tmp_path / "set")
    config = yaml.safe_load((run_copy / "config.yaml").read_text())
    config["data"]["root"] = [str(root)]
    (run_copy / "config.yaml").write_text(yaml.safe_dump(config))
    (root / "ImageSets" / "Main" / "trainval.txt").unlink()
    page = check_page(write_report(run_copy))
    assert "can't be read any more" in page.text and len(page.all("img")) == 6


@pytest.mark.parametrize(
    "damage", [b"{", b"[]", b'{"mAP": "high"}', b'{"mAP": 1, "AP": {"disc": []}}']
)
def test_damaged_scores(sppdet: CommandLine, run_copy: Path, damage: bytes) -> None:
    good = json.loads(metrics_of(run_copy).read_text())
    other = run_copy / "eval" / "test" / "coco" / "metrics.json"
    other.parent.mkdir()
    other.write_text(json.dumps(good))  # so that the digest of the set is known
    metrics_of(run_copy).write_bytes(damage)
    status, _, err = sppdet("report", run_copy)
    assert status == 1 and err.startswith(f"{RING}error: {metrics_of(run_copy)}: damaged: ")
    assert len(err.splitlines()) == 2


def test_a_damaged_log(run_copy: Path) -> None:
    with (run_copy / "log.jsonl").open("ab") as log:
        log.write(b'\xff\n[1]\n{"event": "stage ended", "cpu_seconds": "x"}\n{"event": "warn')
    check_page(write_report(run_copy))
    (run_copy / "log.jsonl").unlink()
    (run_copy / "timings.json").unlink()
    check_page(write_report(run_copy))


def test_a_failing_report_ends_no_training(
    settings: Path,
    run_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: object, **__: object) -> str:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("sppdet.stages.run_report.render", broken)
    result, _ = train_quietly(settings, run_copy)
    assert result is not None
    assert "the report isn't written: a bug" in (run_copy / "log.jsonl").read_text()


def test_everything_is_escaped(hostile_run: Path) -> None:
    path = hostile_run / "report.html"
    page = check_page(write_report(hostile_run))
    text = path.read_text(encoding="utf-8")
    assert HOSTILE in page.text and HOSTILE not in text
    assert "<i>run" in page.text and not page.all("i")
    assert f"{HOSTILE} \\u202e" in page.text and "\u202e" not in text
    assert "<b>set&amp;" in page.text  # in the settings


def test_a_thousand_images_stay_small(trained: Path) -> None:
    """The number of images is bounded; one of 320 pixels of noise, the worst case, has some 60 kB."""
    assert WORST + RANDOM <= 60
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    assert 60 * len(thumbnail(noise)) < 10_000_000


def test_filters_in_a_browser(trained: Path) -> None:
    with opened(trained / "report.html") as page:
        cards = page.locator("figure.card")
        total = cards.count()
        said = page.locator("#shown")
        assert total == 6 and said.inner_text() == "6 of 6 images"
        for kind in ("missed", "false"):
            page.select_option("select[name=kind]", kind)
            wanted = page.locator(f"figure.card[data-{kind}]:not([data-{kind}=''])").count()
            assert page.locator("figure.card:visible").count() == wanted > 0
            assert said.inner_text() == f"{wanted} of 6 images"
            page.select_option("select[name=label]", "2")
            with_label = page.locator(f"figure.card[data-{kind}~='2']").count()
            assert page.locator("figure.card:visible").count() == with_label < total
            page.select_option("select[name=label]", "")
        page.select_option("select[name=kind]", "all")
        assert page.locator("figure.card:visible").count() == 6
        assert page.locator("img").evaluate_all("all => all.every(one => one.loading === 'lazy')")
        page.locator("img").last.scroll_into_view_if_needed()
        assert page.locator("img").last.evaluate("i => i.decode().then(() => i.naturalWidth)") > 100
        assert page.get_by_role("table", name="Confusion matrix").count() == 1
        assert page.get_by_role("heading", level=2).count() == 11
        assert page.get_by_role("img", name="Precision-recall curve of disc").count() == 1
        page.reload()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"


def test_on_a_phone_in_the_dark_and_without_script(trained: Path) -> None:
    path = trained / "report.html"
    paper = "getComputedStyle(document.body).backgroundColor"
    with opened(path, viewport={"width": 360, "height": 640}) as page:
        light = page.evaluate(paper)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    with opened(path, color_scheme="dark", java_script_enabled=False) as page:
        assert page.locator("#filters").is_hidden()
        assert page.locator("figure.card:visible").count() == 6
    with opened(path, color_scheme="dark") as page:
        assert page.evaluate(paper) != light


def test_hostile_names_in_a_browser(hostile_run: Path) -> None:
    with opened(write_report(hostile_run)) as page:
        assert (
            page.get_by_role("cell", name=HOSTILE)
            .or_(page.get_by_role("rowheader", name=HOSTILE))
            .count()
        )
        page.select_option("select[name=label]", label=HOSTILE)


def test_colours_have_contrast() -> None:
    style = Path(write_report.__code__.co_filename).parents[1] / "pages/templates/style.css"
    light, dark = re.findall(r":root \{(.*?)\}", style.read_text(), re.DOTALL)

    def luminance(colour: str) -> float:
        digits = colour if len(colour) == 6 else "".join(2 * c for c in colour)
        values = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for scheme in (light, dark):
        colours = dict(re.findall(r"--(\w+): #([0-9a-f]+)", scheme))
        for ink in ("ink", "soft", "accent", "good", "bad", "lost"):
            for ground in ("paper", "panel"):
                a, b = sorted(luminance(colours[key]) for key in (ink, ground))
                assert (b + 0.05) / (a + 0.05) >= 4.5, (ink, ground)


def test_numbers() -> None:
    assert [percent(None), percent(float("nan")), percent(0.1234), percent(1, 0)] == [
        "–",
        "–",
        "12.3 %",
        "100 %",
    ]
    assert [span(None), span((float("nan"),) * 2), span([0.1, 0.25])] == ["", "", "10.0 to 25.0"]
    assert [number(None), number(-1.234), number(0.5, 1)] == ["–", "−1.23", "0.5"]


def test_a_polyline_has_every_corner_once() -> None:
    x = np.array([0.0, 0.5, 0.5, 0.50001, 1.0])
    y = np.array([1.0, 1.0, 0.5, 0.5, 0.25])
    assert polyline(x, y) == "0,0 100,0 100,100 200,150"
    assert polyline(np.zeros(0), np.zeros(0)) == ""


def test_the_point_of_a_threshold_is_on_its_curve() -> None:
    dataset, detections = random_split(3)
    results = class_results(dataset, detections, metric="voc07")
    least = np.full(4, 1.0, np.float32)
    points = operating_points(results, least, images=len(dataset))
    for result, point in zip(results[:3], points, strict=False):
        curve = curve_view(result, point.recall, point.precision)
        corners = [tuple(map(float, pair.split(","))) for pair in curve["points"].split()]
        x, y = curve["at"]
        assert (x, y) == pytest.approx((200 * point.recall, 200 - 200 * point.precision), abs=0.06)
        assert 0 < point.recall < 1 and point.recall != point.precision
        near = [abs(y - v) for u, v in corners if abs(u - x) < 0.2]
        assert min(near) < 20 and corners[-1][0] == pytest.approx(200 * result.recall[-1], abs=0.06)
    empty = curve_view(results[3], float("nan"), float("nan"))
    assert (empty["points"], empty["at"]) == ("", None)


def test_the_confusion_matrix_has_the_background_last() -> None:
    shown = confusion_view(np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8]]), ("a", "b"))
    assert shown["columns"] == ["a", "b", "not detected"]
    rows = {row["name"]: [count for count, _ in row["cells"]] for row in shown["rows"]}
    assert rows == {"a": [4, 5, 3], "b": [7, 8, 6], "background": [1, 2, 0]}
    assert [row["total"] for row in shown["rows"]] == [12, 21, 3]
    assert shown["rows"][0]["cells"][0][1] == pytest.approx(4 / 12)


def test_cards_say_what_is_right_false_and_missed() -> None:
    a, b, far = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (50.0, 50.0, 60.0, 60.0)
    images = (
        make_image("good", [(1, a)]),
        make_image("bad", [(1, a), (2, b), (1, far)], [False, False, True]),
    )
    found = {
        "good": make_detections([(1, 0.5, a)]),
        "bad": make_detections([(1, 0.9, a), (2, 0.8, a), (1, 0.7, far), (1, 0.1, b)]),
    }
    verdicts = judge_images(Dataset("made", ("a", "b"), images), found, np.full(2, 0.2, np.float32))
    cases = {("bad", "missed", b): "not proposed", ("bad", "false", a): "duplicate"}
    worst, others = gallery(verdicts, ImageCache(), None, {"cases": cases})
    (card,), (good,) = worst["cards"], others["cards"]
    assert (card["id"], good["id"]) == ("bad", "good") and card["uri"] == ""
    kinds = [(box["kind"], box["label"], box["text"], box["cause"]) for box in card["boxes"]]
    assert kinds == [
        ("object", 1, "", ""),
        ("missed", 2, "", "not proposed"),
        ("aside", 1, "", ""),
        ("true", 1, "score 0.90", ""),
        ("false", 2, "score 0.80", "duplicate"),
        ("aside", 1, "score 0.70", ""),
    ]
    assert [box["kind"] for box in card["lines"]] == ["missed", "true", "false"]
    assert card["labels"] == {"all": "1 2", "missed": "2", "false": "2"}
    assert good["labels"] == {"all": "1", "missed": "", "false": ""}
