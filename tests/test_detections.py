"""Indexing, iterating and converting the detections of an image."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import supervision
from PIL import Image
from pycocotools.coco import COCO

from sppdet.detections import Detection
from sppdet.drawing.draw import draw_detections
from sppdet.types import Detections, ImageArray

NAMES = ("cat", "dog", "owl")
BOXES = np.array([[1, 2, 11, 22], [3, 4, 50.5, 60.25], [0, 0, 9, 9], [7, 8, 9, 10]], np.float32)
SCORES = np.array([1.5, 0.25, -0.5, -0.75], np.float32)
LABELS = np.array([2, 1, 3, 2], np.int64)
PROBABILITIES = np.array([0.9, 0.5, 0.25, 0.125], np.float32)


@pytest.fixture
def found() -> Detections:
    return Detections(BOXES, SCORES, LABELS, NAMES, "a/b.jpg", PROBABILITIES)


@pytest.fixture
def uncalibrated() -> Detections:
    return Detections(BOXES, SCORES, LABELS, NAMES)


@pytest.fixture
def empty() -> Detections:
    return Detections(BOXES[:0], SCORES[:0], LABELS[:0], NAMES)


def rows_of(part: Detections) -> list[int]:
    """Which detections of `found` these are; all of their arrays must say the same."""
    assert part.class_names == NAMES and part.path == "a/b.jpg"
    rows = [SCORES.tolist().index(score) for score in part.scores.tolist()]
    assert np.array_equal(part.boxes, BOXES[rows]) and np.array_equal(part.labels, LABELS[rows])
    assert part.probabilities is not None
    assert np.array_equal(part.probabilities, PROBABILITIES[rows])
    return rows


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (0, [0]),
        (-1, [3]),
        (np.int64(2), [2]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, -1), [3, 2, 1, 0]),
        (slice(7, 9), []),
        ([3, 0], [3, 0]),
        ([1, 1], [1, 1]),
        ([], []),
        (np.array([], bool), None),
        (np.array([-1, 1]), [3, 1]),
        (SCORES > 0, [0, 1]),
        ([True, False, False, True], [0, 3]),
        (LABELS == 9, []),
        (range(2), [0, 1]),
    ],
)
def test_an_index_selects_rows(found: Detections, index: Any, expected: list[int] | None) -> None:
    if expected is None:
        with pytest.raises(IndexError):
            found[index]
        return
    assert rows_of(found[index]) == expected


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (4, IndexError, "index of detections: 4, there are 4"),
        (-5, IndexError, "index of detections: -5, there are 4"),
        ([0, 9], IndexError, "index of detections: 9, there are 4"),
        ([True], IndexError, r"booleans \(1,\), expected \(4,\)"),
        (True, IndexError, r"booleans \(\), expected \(4,\)"),
        (1.0, TypeError, "expected an integer, a slice, or an array"),
        ("cat", TypeError, "'cat', expected an integer, a slice, or an array"),
        ((0, 1), TypeError, "expected an integer, a slice, or an array"),
        (None, TypeError, "expected an integer, a slice, or an array"),
        ([[0]], TypeError, "expected an integer, a slice, or an array"),
        (["cat"], TypeError, "expected an integer, a slice, or an array"),
    ],
)
def test_what_is_no_index(
    found: Detections, index: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        found[index]
    assert "\n" not in str(caught.value)


def test_filters_chain(found: Detections, empty: Detections) -> None:
    assert rows_of(found[found.scores > -0.6][found.labels[:3] == 3]) == [2]
    assert len(empty[empty.scores > 0]) == 0 and len(empty[:3]) == 0
    assert rows_of(found.above(0.25)) == [0, 1]
    assert rows_of(found.above(np.float32(0.25))) == [0, 1]
    assert rows_of(found.above(np.array([0.3, -9, 0], np.float32))) == [0, 3]


def test_iteration_yields_records(found: Detections, uncalibrated: Detections) -> None:
    first, second, *_ = found
    assert first == Detection((1, 2, 11, 22), 1.5, 2, "dog", float(np.float32(0.9)))
    assert second.box == (3, 4, 50.5, 60.25) and second.name == "cat"
    assert {type(side) for side in first.box} == {float} and type(first.label) is int
    assert [one.probability for one in uncalibrated] == [None] * 4
    assert [one.name for one in found] == found.names() == ["dog", "cat", "owl", "dog"]
    assert len(list(found[:0])) == 0


def test_equality(found: Detections, uncalibrated: Detections) -> None:
    assert found == found[:] and found[[0, 1, 2, 3]] == found
    assert found != found[:3] and found != uncalibrated and found != 3
    with pytest.raises(TypeError, match="unhashable"):
        hash(found)


def test_repr_is_one_short_line(found: Detections, empty: Detections) -> None:
    assert repr(found) == "<Detections: 2 × dog, 1 × cat, 1 × owl in a/b.jpg>"
    assert repr(empty) == "<Detections: none>"
    many = tuple(f"class {k}\n\x1b" * 9 for k in range(99))
    wild = Detections(
        np.tile(BOXES[:1], (99, 1)), np.ones(99, np.float32), np.arange(1, 100), many, "x\n" * 999
    )
    assert len(repr(wild)) < 500 and repr(wild).isprintable() and "and 93 more" in repr(wild)


@pytest.fixture
def image(rng: np.random.Generator) -> ImageArray:
    return rng.integers(0, 256, (80, 120, 3), dtype=np.uint8)


def test_plot_draws_on_a_copy(found: Detections, image: ImageArray) -> None:
    before = image.copy()
    expected = draw_detections(image, found)
    for given in (image, Image.fromarray(image), Image.fromarray(image).convert("RGBA")):
        plotted = found.plot(given)
        assert isinstance(plotted, Image.Image) and np.array_equal(np.asarray(plotted), expected)
    assert np.array_equal(image, before) and not np.array_equal(expected, before)


def test_plot_takes_the_image_that_is_known(found: Detections, image: ImageArray) -> None:
    with pytest.raises(ValueError, match=r"no image; expected plot\(image\)"):
        found.plot()
    known = Detections(BOXES, SCORES, LABELS, NAMES, read_image=lambda: image)
    expected = draw_detections(image, known[:2])
    assert np.array_equal(np.asarray(known[:2].plot()), expected)
    wrong: Any
    for wrong in ("a.jpg", image[:, :, 0], image.astype(float)):
        with pytest.raises(ValueError, match=r"image: .*expected"):
            known.plot(wrong)


class Page(HTMLParser):
    """Tags, cells and images of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.images: list[bytes] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "td":
            self.cells.append("")
        if tag == "img":
            uri = dict(attributes)["src"] or ""
            self.images.append(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")))

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["td"]:
            self.cells[-1] += data


def page_of(found: Detections) -> Page:
    page = Page()
    page.feed(found._repr_html_())
    return page


def test_html_has_a_table_and_a_small_image(found: Detections) -> None:
    big = np.full((1500, 3000, 3), 200, np.uint8)
    known = Detections(BOXES * 20, SCORES, LABELS, NAMES, "", PROBABILITIES, lambda: big)
    page = page_of(known)
    assert page.cells[:6] == ["dog", "90%", "20, 40, 220, 440", "cat", "50%", "60, 80, 1010, 1205"]
    with Image.open(io.BytesIO(page.images[0])) as shown:
        assert shown.format == "JPEG" and shown.size == (800, 400)
        ground = np.asarray(shown).astype(int)
    assert np.abs(ground[300:, 600:] - 200).max() < 6  # nothing is drawn there
    side = round(20 * 800 / 3000)  # the first box is drawn where it is at this size
    assert np.abs(ground[40:100, side] - 200).max(axis=1).min() > 40
    assert page_of(found).images == []
    # only what is in the table is drawn
    many = known[[0] * 20 + [1] * 30]
    assert page_of(many).images == page_of(many[:20]).images


def test_html_is_escaped_and_short() -> None:
    names = ("<script>alert(1)</script>\n", "&amp;")
    count = 50
    wild = Detections(
        np.tile(BOXES[:1], (count, 1)),
        np.linspace(1, 0, count).astype(np.float32),
        np.tile([1, 2], count // 2),
        names,
        "<img src=x>",
    )
    page = page_of(wild)
    assert "script" not in page.tags and "img" not in page.tags
    assert page.cells[0] == "<script>alert(1)</script>\\n" and page.cells[3] == "&amp;"
    assert page.tags.count("tr") == 21 and "and 30 more" in wild._repr_html_()
    assert page.cells[1] == "1.00"


def test_html_of_none(empty: Detections) -> None:
    assert page_of(empty).tags == ["div", "p"]


def test_pandas(found: Detections, uncalibrated: Detections, empty: Detections) -> None:
    table = found.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert list(table) == ["x1", "y1", "x2", "y2", "score", "probability", "label", "name"]
    assert table.loc[1].tolist() == [3, 4, 50.5, 60.25, 0.25, 0.5, 1, "cat"]
    assert table.groupby("name").score.max().to_dict() == {"cat": 0.25, "dog": 1.5, "owl": -0.5}
    assert uncalibrated.to_pandas().probability.isna().all()
    joined = pandas.concat([empty.to_pandas(), table])
    assert len(joined) == 4 and joined.label.dtype == np.int64
    table.loc[0, "score"] = 9
    assert found.scores[0] == 1.5


def test_supervision(found: Detections, uncalibrated: Detections, empty: Detections) -> None:
    made: Any = found.to_supervision()
    theirs: Any = supervision.Detections
    assert isinstance(made, theirs) and len(made) == 4
    assert np.array_equal(made.xyxy, BOXES)
    assert made.class_id is not None and made.class_id.tolist() == [1, 0, 2, 1]
    assert made["class_name"].tolist() == ["dog", "cat", "owl", "dog"]
    assert made["score"].tolist() == SCORES.tolist()
    assert made.confidence is not None and made.confidence.tolist() == PROBABILITIES.tolist()
    assert made[made.confidence > 0.4]["class_name"].tolist() == ["dog", "cat"]
    kept = made.with_nms(threshold=0.5, class_agnostic=True)  # a function of theirs
    assert 0 < len(kept) <= 4
    scene = supervision.BoxAnnotator().annotate(np.zeros((80, 80, 3), np.uint8), made)
    assert scene.any()
    confidence = uncalibrated.to_supervision().confidence
    assert confidence is not None and confidence.tolist() == SCORES.tolist()
    assert len(empty.to_supervision()) == 0
    assert len(supervision.Detections.merge([made, empty.to_supervision()])) == 4


def test_coco_results_are_read_by_pycocotools(found: Detections, tmp_path: Path) -> None:
    ids = {"cat": 17, "dog": 18, "owl": 90}
    truth = tmp_path / "truth.json"
    truth.write_text(
        json.dumps(
            {
                "images": [{"id": 5, "width": 99, "height": 99, "file_name": "b.jpg"}],
                "categories": [{"id": number, "name": name} for name, number in ids.items()],
                "annotations": [],
            }
        )
    )
    results = tmp_path / "results.json"
    results.write_text(json.dumps(found.to_coco(5, ids)))
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(truth).loadRes(str(results))
    annotations = loaded.loadAnns(loaded.getAnnIds(imgIds=[5]))
    assert [one["category_id"] for one in annotations] == [18, 17, 90, 18]
    assert annotations[1]["bbox"] == [3, 4, 47.5, 56.25]
    assert [one["score"] for one in annotations] == SCORES.tolist()
    assert [one["category_id"] for one in found.to_coco(5)] == LABELS.tolist()
    assert found.to_coco(5)[0]["file_name"] == "a/b.jpg"
    assert "file_name" not in Detections(BOXES, SCORES, LABELS, NAMES).to_coco(5)[0]
    assert found.to_coco("b")[0]["image_id"] == "b" and found[:0].to_coco(1) == []
    with pytest.raises(ValueError, match="category_ids: no id of the class owl"):
        found.to_coco(5, {"cat": 1, "dog": 2})


@pytest.mark.parametrize("name", ["pandas", "supervision"])
def test_a_library_that_isnt_installed(
    found: Detections, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in list(sys.modules):
        if re.match(rf"{name}(\.|$)", module):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if "editable" not in repr(f)])
    with pytest.raises(ImportError, match=f"^{name} isn't installed; `pip install {name}`"):
        getattr(found, f"to_{name}")()
