"""`sppdet check`: a set spoilt in many ways, each found in its image; a clean one, and the page."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import labelled_sets
from images import save_image
from pages import HOSTILE, check_page, opened
from runs import CommandLine, log_of, printed_to
from sppdet.io.settings import load_config
from sppdet.io.voc_writing import voc_annotation
from sppdet.stages.check import check_data
from sppdet.stages.pipeline import train
from sppdet.types import ImageArray

WIDTH, HEIGHT = 160, 120
Object = tuple[str, tuple[float, float, float, float]]
CLEAN = {"train": [f"t{k:02}" for k in range(42)], "test": [f"e{k}" for k in range(6)]}
CLASSES = ("ball", "red box")
SEVERITIES = ("error", "warning", "note")


def scene(name: str) -> tuple[ImageArray, Object]:
    """A coloured rectangle on a noisy ground, and its class and box."""
    rng = np.random.default_rng(list(name.encode()))
    ground = rng.integers(60, 190, (9, 12, 3)).repeat(14, axis=0).repeat(14, axis=1)
    image = ground[:HEIGHT, :WIDTH] + rng.integers(-9, 10, (HEIGHT, WIDTH, 1))
    label = int(name[1:]) % 2
    x, y = (int(rng.integers(8, side - 70)) for side in (WIDTH, HEIGHT))
    width, height = rng.integers(44, 60, 2).tolist()
    image[y : y + height, x : x + width] = ((20, 230, 240), (250, 20, 10))[label]
    return image.astype(np.uint8), (CLASSES[label], (x, y, x + width, y + height))


class Spoilt:
    """A set in VOC's layout whose images and annotations can be changed one by one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for names in CLEAN.values():
            for name in names:
                image, item = scene(name)
                self.image(name, image)
                self.annotation(name, [item])
        self.lists = {split: list(names) for split, names in CLEAN.items()}
        self.write_lists()

    def image(self, name: str, image: ImageArray) -> None:
        save_image(self.path(name), image)

    def path(self, name: str) -> Path:
        return self.root / "JPEGImages" / f"{name}.png"

    def xml(self, name: str) -> Path:
        return self.root / "Annotations" / f"{name}.xml"

    def annotation(
        self, name: str, objects: list[Object], size: tuple[int, int] = (WIDTH, HEIGHT)
    ) -> None:
        text = voc_annotation(
            filename=f"{name}.png",
            width=size[0],
            height=size[1],
            boxes=np.array([box for _, box in objects], np.float32).reshape(-1, 4),
            names=[label for label, _ in objects],
        )
        self.xml(name).parent.mkdir(parents=True, exist_ok=True)
        self.xml(name).write_text(text)

    def add(self, name: str, label: str, x1: float, y1: float, x2: float, y2: float) -> None:
        """Add an object to that of an image."""
        self.annotation(name, [scene(name)[1], (label, (x1, y1, x2, y2))])

    def relabel(self, name: str, label: str) -> None:
        self.annotation(name, [(label, scene(name)[1][1])])

    def write_lists(self) -> None:
        folder = self.root / "ImageSets" / "Main"
        folder.mkdir(parents=True, exist_ok=True)
        for split, names in self.lists.items():
            (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def save_turned(one: Spoilt, name: str) -> None:
    """Save a JPEG with an EXIF turn by a quarter; its annotation states the size before it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene(name)[0]).save(one.path(name).with_suffix(".jpg"), exif=exif, quality=95)
    one.path(name).unlink()


def put(one: Spoilt, split: str, name: str, image: ImageArray, objects: list[Object]) -> None:
    one.image(name, image)
    one.annotation(name, objects)
    one.lists[split].append(name)
    one.write_lists()


def list_again(one: Spoilt, split: str, name: str) -> None:
    one.lists[split].append(name)
    one.write_lists()


def cut_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-900])


def invert(path: Path) -> None:
    path.write_text(path.read_text().replace("<xmin>", "<xmin>9"))


# a change, the kind of its case, and what that names
SPOILINGS: dict[str, tuple[Callable[[Spoilt], object], str, str]] = {
    "a box outside": (lambda s: s.add("t00", "ball", 500, 20, 550, 60), "outside", "t00"),
    "a box over the border": (
        lambda s: s.add("t01", "red box", 110, 10, 190, 60),
        "beyond the border",
        "t01",
    ),
    "an inverted box": (lambda s: invert(s.xml("t02")), "invalid box", "t02"),
    "a tiny box": (lambda s: s.add("t03", "red box", 3, 4, 8, 9), "tiny", "t03"),
    "a huge box": (lambda s: s.add("t04", "ball", 0, 0, 160, 119), "huge", "t04"),
    "a thin box": (lambda s: s.add("t05", "red box", 1, 1, 141, 13), "thin", "t05"),
    "another size": (lambda s: s.annotation("t06", [scene("t06")[1]], (320, 240)), "size", "t06"),
    "a turned image": (lambda s: save_turned(s, "t07"), "size", "t07"),
    "a truncated image": (lambda s: cut_file(s.path("t08")), "image", "t08"),
    "a missing image": (lambda s: s.path("t09").unlink(), "image", "t09"),
    "a text for an image": (lambda s: s.path("t10").write_text("no image"), "image", "t10"),
    "damaged XML": (lambda s: s.xml("t11").write_text("<annotation><obj"), "annotation", "t11"),
    "no annotation": (lambda s: s.xml("t12").unlink(), "annotation", "t12"),
    "another case": (lambda s: s.relabel("t14", "Ball"), "class names", "Ball"),
    "two blanks": (lambda s: s.relabel("t15", "red  box"), "class names", "red  box"),
    "a rare class": (lambda s: s.add("t16", "ring", 5, 5, 60, 60), "few objects", "ring"),
    "a class of the test": (
        lambda s: s.add("e0", "star", 5, 5, 60, 60),
        "untrained class",
        "star",
    ),
    "a copy": (
        lambda s: put(s, "train", "copy", scene("t17")[0], [scene("t17")[1]]),
        "copy",
        "t17 (train) and copy (train)",
    ),
    "a copy across": (
        lambda s: put(s, "test", "across", scene("t18")[0], [scene("t18")[1]]),
        "copy across sets",
        "t18 (train) and across (test)",
    ),
    "a brighter copy across": (
        lambda s: put(s, "test", "bright", scene("t19")[0] + np.uint8(5), [scene("t19")[1]]),
        "similar across sets",
        "t19 (train) and bright (test)",
    ),
    "a brighter copy": (
        lambda s: put(s, "train", "near", scene("t20")[0] + np.uint8(5), [scene("t20")[1]]),
        "similar",
        "t20 (train) and near (train)",
    ),
    "an image in both sets": (lambda s: list_again(s, "test", "t21"), "in both sets", "t21"),
    "a double box": (lambda s: s.add("t22", "ball", *scene("t22")[1][1]), "double box", "t22"),
    "two classes": (lambda s: s.add("t23", "ball", *scene("t23")[1][1]), "two classes", "t23"),
    "no object": (lambda s: s.annotation("t24", []), "no objects", "t24"),
    "16 bits": (
        lambda s: cv2.imwrite(str(s.path("t25")), scene("t25")[0].astype(np.uint16) * 257),
        "depth",
        "t25",
    ),
    "an object of nothing": (
        lambda s: s.add("t26", "ball", 0, 0, 13, 119),
        "uncovered",
        "t26",
    ),
}
# what a change brings with it
ASIDE = {
    *((kind, name) for kind in ("few objects", "untested class") for name in ("Ball", "red  box")),
    *(("untested class", "ring"), ("uncovered", "t03"), ("uncovered", "t05")),
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Spoilt(tmp_path_factory.mktemp("clean") / "set").root


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Spoilt(tmp_path_factory.mktemp("spoilt") / "set")
    for change, _, _ in SPOILINGS.values():
        change(made)
    return made.root


@pytest.fixture(scope="module")
def found(spoilt: Path) -> tuple[Path, str, dict[str, Any]]:
    """The folder of the spoilt set's check, what it printed, and its JSON."""
    out = spoilt.parent / "out"
    said = checked(spoilt, out)
    return out, said, read_strictly(out / "check.json")


def checked(root: Path, out: Path, *overrides: str, sample: int = 1000) -> str:
    """Check a set; returns what was printed."""
    said = io.StringIO()
    with printed_to(said):
        check_data(load_config(root, overrides), out, name=root.name, sample=sample)
    return said.getvalue()


def read_strictly(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    content: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return content


def cases_of(content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {one["kind"]: one["cases"] for one in content["findings"]}


def test_nothing_is_found_in_a_clean_set(clean: Path, tmp_path: Path) -> None:
    said = checked(clean, tmp_path)
    content = read_strictly(tmp_path / "check.json")
    assert content["findings"] == [] and "nothing was found" in said
    assert content["proposals"]["recall_50"] == 1 and content["proposals"]["images"] == 48
    assert content["sets"]["train"] == {"name": "set-train", "images": 42, "objects": 42}
    assert [one["objects"] for one in content["classes"]] == [{"train": 21, "test": 3}] * 2
    page = check_page(tmp_path / "check.html")
    assert "nothing was found" in page.text and page.all("image") == []


@pytest.mark.parametrize("spoiling", SPOILINGS)
def test_each_spoiling_is_found_by_its_kind_and_image(
    found: tuple[Path, str, dict[str, Any]], spoiling: str
) -> None:
    _, kind, named = SPOILINGS[spoiling]
    texts = [case["text"] for case in cases_of(found[2])[kind]]
    hits = [text for text in texts if re.search(rf"(?<!\w){re.escape(named)}(?!\w)", text)]
    assert len(hits) == 1, texts


def test_nothing_else_is_found(found: tuple[Path, str, dict[str, Any]]) -> None:
    """Every case is of a spoiling, or something that one brings with it."""
    named = {(kind, name) for _, kind, name in SPOILINGS.values()} | ASIDE
    for kind, cases in cases_of(found[2]).items():
        for case in cases:
            fits = [
                n
                for k, n in named
                if k == kind and re.search(rf"(?<!\w){re.escape(n)}(?!\w)", case["text"])
            ]
            assert len(fits) == 1, (kind, case["text"])


def test_the_json_has_boxes_and_files_below_the_root(
    found: tuple[Path, str, dict[str, Any]],
) -> None:
    cases = cases_of(found[2])
    (outside,) = cases["outside"]
    assert outside["images"] == [
        {
            "file": "JPEGImages/t00.png",
            "set": "train",
            "boxes": [{"class": "ball", "box": [500.0, 20.0, 550.0, 60.0]}],
        }
    ]
    (across,) = cases["copy across sets"]
    assert [one["file"] for one in across["images"]] == [
        "JPEGImages/t18.png",
        "JPEGImages/across.png",
    ]
    assert [one["set"] for one in across["images"]] == ["train", "test"]
    (tiny,) = cases["tiny"]
    assert (
        "5 x 5 pixels; as searched its shorter side is 15.6, that of proposals 20" in tiny["text"]
    )  # 5 px of 160, at 500
    assert {case["text"] for case in cases["image"]} == {
        "JPEGImages/t08.png: can't be decoded as an image",
        "JPEGImages/t09.jpg: no such file",
        "JPEGImages/t10.png: can't be decoded as an image",
    }
    severities = [one["severity"] for one in found[2]["findings"]]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


def test_the_table_has_a_line_for_each_kind(found: tuple[Path, str, dict[str, Any]]) -> None:
    _, said, content = found
    lines = said.splitlines()
    for one in content["findings"]:
        begin = f"{one['severity']:<7} {one['count']:>6}  {one['title']}"
        assert sum(line.startswith(begin) for line in lines) == 1
    counts = {
        s: sum(f["count"] for f in content["findings"] if f["severity"] == s) for s in SEVERITIES
    }
    assert f"{counts['error']} errors, {counts['warning']} warnings, {counts['note']} notes" in said


def test_the_page_in_a_browser(found: tuple[Path, str, dict[str, Any]]) -> None:
    page = check_page(found[0] / "check.html")
    kinds = len(found[2]["findings"])
    assert len([a for a in page.all("h2") if a["id"].startswith("finding-")]) == kinds
    assert len(page.all("image")) == sum(
        len(case["images"]) for one in found[2]["findings"] for case in one["cases"]
    )
    for size in ({"width": 390, "height": 844}, {"width": 1200, "height": 900}):
        with opened(found[0] / "check.html", viewport=size) as shown:
            wide = shown.evaluate("document.documentElement.scrollWidth")
            assert wide <= size["width"]
            boxes = shown.locator("svg.scene image")
            assert boxes.count() == len(page.all("image")) and boxes.first.is_visible()
            # the box outside of its image lies within what is shown
            section = shown.locator("section", has=shown.get_by_text("Boxes outside their image"))
            frame = section.locator("svg.scene").bounding_box()
            box = section.locator("rect.b-false").bounding_box()
            assert (
                frame["x"] <= box["x"] + 3
                and box["x"] + box["width"] <= frame["x"] + frame["width"] + 3
            )
            assert box["width"] > 5


def test_status_and_own_files(sppdet: CommandLine, spoilt: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, said, _ = sppdet("check", spoilt, "--out", out, "--proposals", 0)
    assert status == 0 and f"see {out / 'check.html'}" in said
    heading = next(line for line in said.splitlines() if "class" in line)
    assert all(word in heading for word in ("train", "test", "median side, px")), heading
    status, short, _ = sppdet("check", spoilt, "--out", out, "--proposals", 0, "--quiet")
    # of the 7 notes, those of proposals are left out
    assert short == f"12 errors, 15 warnings, 4 notes; see {out / 'check.html'}\n"
    content = read_strictly(out / "check.json")
    assert content["proposals"] is None and "uncovered" not in cases_of(content)
    assert "No image was searched for proposals" in (out / "check.html").read_text()
    status, _, err = sppdet("check", spoilt, "--out", out, "--proposals", 0, "--strict")
    assert status == 1 and f"error: {spoilt}: 12 errors; see {out}" in err
    (out / "check.html").write_text("mine")
    status, _, err = sppdet("check", spoilt, "--out", out, "--proposals", 0)
    assert status == 1 and "`sppdet check` hasn't written it, or it has changed since" in err
    assert (out / "check.html").read_text() == "mine"


def test_a_clean_set_passes_strictly(
    sppdet: CommandLine, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in clean.rglob("*") if path.is_file()}
    status, said, err = sppdet("check", clean, "--strict", "--proposals", "3")
    assert (status, err) == (0, "") and "sample of 3 images" in said
    assert (tmp_path / "runs" / "set-check" / "check.html").is_file()
    assert before == {path: path.read_bytes() for path in clean.rglob("*") if path.is_file()}


def test_what_stops_a_check_is_one_line(sppdet: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, _, err = sppdet("check", tmp_path / "empty")
    assert status == 1 and err.splitlines()[-1].startswith(
        f"error: {tmp_path / 'empty'}: no annotations found"
    )
    assert len(err.splitlines()) == 1


def test_repaired_sizes_are_no_finding(spoilt: Path, tmp_path: Path) -> None:
    checked(spoilt, tmp_path, "data.repair_sizes=true", sample=0)
    assert "size" not in cases_of(read_strictly(tmp_path / "check.json"))


def test_images_without_an_annotation_of_labelling_tools(tmp_path: Path) -> None:
    labelled_sets.labelimg_sibling(tmp_path / "set")
    save_image(tmp_path / "set" / "new.png", labelled_sets.noise("new"))
    checked(tmp_path / "set", tmp_path / "out", sample=0)
    content = read_strictly(tmp_path / "out" / "check.json")
    assert [case["text"] for case in cases_of(content)["unlabelled"]] == ["new.png"]
    assert list(content["sets"]) == ["train"]  # a split would be drawn by the run


def test_a_set_without_an_object_or_an_image_that_can_be_read(tmp_path: Path) -> None:
    labelled_sets.labelimg_voc(tmp_path / "set")
    for path in (tmp_path / "set").glob("*.png"):
        path.write_bytes(b"")
    said = checked(tmp_path / "set", tmp_path / "out")
    assert "nan" not in said
    found = cases_of(read_strictly(tmp_path / "out" / "check.json"))
    assert len(found["image"]) == 6
    assert [case["text"] for case in found["untrained class"]] == ["no object of any class"]
    check_page(tmp_path / "out" / "check.html")


def test_stored_proposals_that_arent_there(
    clean: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checked(clean, tmp_path, "proposals.engine=stored", f"proposals.path=[{tmp_path / 'none'}]")
    assert "proposals aren't looked at: " in caplog.text
    assert read_strictly(tmp_path / "check.json")["proposals"] is None


def test_hostile_names(tmp_path: Path) -> None:
    one = Spoilt(tmp_path / "<b>set&amp;")
    one.relabel("t00", HOSTILE.replace("<", "&lt;").replace(">", "&gt;"))
    text = one.xml("t00").read_text()
    one.xml("t00").write_text(text.replace("&amp;lt;", "&lt;").replace("&amp;gt;", "&gt;"))
    checked(one.root, tmp_path / "out", sample=0)
    page = check_page(tmp_path / "out" / "check.html")
    assert HOSTILE in page.text and page.all("b") == []


def test_train_says_the_short_form(spoilt: Path, tmp_path: Path) -> None:
    overrides = ["data.on_error=skip", "data.classes=[ball, red box, ring, Ball]"]
    said = io.StringIO()
    with printed_to(said):
        train(load_config(spoilt, overrides), tmp_path / "run", device="cpu", until="data")
    log = log_of(tmp_path / "run")
    lines = [line["text"] for line in log if line["text"].startswith("check: ")]
    assert 1 < len(lines) <= 6 and "`sppdet check`" in lines[-1]
    kinds = [line["kind"] for line in log if line["event"] == "check"]
    assert kinds == [
        "in both sets",
        "copy across sets",
        "class names",
        "few objects",
        "untested class",
    ]


def test_train_says_nothing_of_a_clean_set(clean: Path, tmp_path: Path) -> None:
    said = io.StringIO()
    with printed_to(said):
        train(load_config(clean), tmp_path / "run", device="cpu", until="data")
    assert "sppdet check" not in said.getvalue()
