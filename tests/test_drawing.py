"""Boxes, labels, fonts and colours of drawn detections."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from numpy.typing import NDArray
from PIL import ImageFont

from sppdet.drawing import draw, fonts, text
from sppdet.drawing.colours import BLACK, WHITE, class_colour, contrast, ink_on, luminance
from sppdet.drawing.draw import draw_detections
from sppdet.drawing.places import Places
from sppdet.types import Detections, ImageArray

NAMES = ("cat", "dog", "owl", "yak")
CJK = "猫"
Placed = list[tuple[str, tuple[int, int, int, int]]]


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> Placed:
    """Text and rectangle of every label, in the order of drawing."""
    seen: Placed = []
    put = draw._put

    def watched(canvas: ImageArray, line: text.Line, place: tuple[int, int], colour: Any) -> None:
        x, y = place
        words = "".join(part for _, part in line.runs)
        seen.append((words, (x, y, x + line.width, y + line.height)))
        put(canvas, line, place, colour)

    monkeypatch.setattr(draw, "_put", watched)
    return seen


def detections(
    boxes: Any, labels: Any = None, names: tuple[str, ...] = NAMES, probability: bool = False
) -> Detections:
    array = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    scores = np.linspace(0.9, 0.1, len(array)).astype(np.float32)
    chosen = np.ones(len(array), np.int64) if labels is None else np.array(labels, np.int64)
    return Detections(array, scores, chosen, names, "", scores if probability else None)


def grey(width: int = 300, height: int = 200, value: int = 128) -> ImageArray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    """Whether a pixel is in both, by looking at all of them."""
    pixels = [{(x, y) for x in range(r[0], r[2]) for y in range(r[1], r[3])} for r in (a, b)]
    return bool(pixels[0] & pixels[1])


def test_luminance_and_contrast_are_those_of_wcag() -> None:
    assert contrast(BLACK, WHITE) == pytest.approx(21)
    # of WebAIM's contrast checker
    assert contrast((255, 0, 0), WHITE) == pytest.approx(4.0, abs=0.01)
    assert contrast((118, 118, 118), WHITE) == pytest.approx(4.54, abs=0.01)
    assert contrast((0, 0, 255), BLACK) == pytest.approx(2.44, abs=0.01)
    assert luminance((0, 255, 0)) == pytest.approx(0.7152)


def test_text_is_readable_on_every_class_colour_and_lines_are_on_any_ground() -> None:
    levels = range(0, 256, 51)
    grounds = [(r, g, b) for r in levels for g in levels for b in levels]
    for label in range(1, 60):
        colour = class_colour(label)
        ink = ink_on(colour)
        assert contrast(colour, ink) >= 9
        assert all(max(contrast(g, colour), contrast(g, ink)) >= 3 for g in grounds)


def test_classes_differ_in_colour() -> None:
    colours = np.array([class_colour(label) for label in range(1, 17)], dtype=float)
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    assert apart[~np.eye(16, dtype=bool)].min() > 30


def test_a_class_keeps_its_colour_whatever_else_is_found() -> None:
    box = [100, 80, 180, 150]
    alone = draw_detections(grey(), detections([box], [3]))
    both = draw_detections(grey(), detections([[10, 20, 60, 70], box], [1, 3]))
    assert (alone[110, 100] == class_colour(3)).all() and (both[110, 100] == class_colour(3)).all()


def test_a_box_is_drawn_on_its_own_outermost_pixels_beside_a_line_of_ink() -> None:
    image = grey()
    canvas = draw_detections(image, detections([[100, 80, 180, 150]], [2]))
    assert (image == 128).all() and canvas.shape == image.shape
    colour, ink = class_colour(2), ink_on(class_colour(2))
    inside = canvas[80:150, 100:180]
    for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
        assert (side == colour).all()
    assert (canvas[150, 99:181] == ink).all() and (canvas[80:151, 180] == ink).all()
    assert (inside[1:-1, 1:-1] == 128).all()
    assert (canvas[151:] == 128).all() and (canvas[80:, 181:] == 128).all()


def test_lines_grow_with_the_image_but_leave_small_objects_visible() -> None:
    canvas = draw_detections(grey(3000, 2000), detections([[900, 800, 2000, 1700]], [2]))
    row = (canvas[1200] == class_colour(2)).all(axis=1)
    assert row[880:920].sum() == row[1980:2020].sum() == round(6e6**0.5 / 320)
    small = draw_detections(grey(3000, 2000), detections([[900, 800, 924, 824]], [2]))
    assert (small[806:818, 906:918] == 128).all()


def test_the_best_is_on_top() -> None:
    both = draw_detections(grey(), detections([[100, 80, 180, 150], [100, 80, 180, 150]], [3, 4]))
    assert (both[149, 100:180] == class_colour(3)).all()


def test_no_detections_leave_the_image_as_it_is() -> None:
    assert (draw_detections(grey(), detections([])) == 128).all()


def test_labels_say_the_probability_or_the_score(placed: Placed) -> None:
    draw_detections(grey(), detections([[100, 80, 180, 150]]))
    draw_detections(grey(), detections([[100, 80, 180, 150]], probability=True))
    assert [words for words, _ in placed] == ["cat 0.90", "cat 90%"]


@pytest.mark.parametrize(
    ("box", "where"),
    [
        ([100, 80, 180, 150], "above"),
        ([100, 2, 180, 150], "below"),
        ([100, 2, 180, 199], "inside"),
        ([2, 2, 20, 199], "right"),
        ([280, 2, 299, 199], "left"),
        ([0, 0, 300, 200], "inside"),
    ],
)
def test_where_a_label_stands(placed: Placed, box: list[int], where: str) -> None:
    draw_detections(grey(), detections([box]))
    ((_, (x1, y1, x2, y2)),) = placed
    a, b, c, d = box
    found = {
        "above": y2 <= b and y2 >= b - 3 and x1 < c and x2 > a,
        "below": y1 >= d and y1 <= d + 3 and x1 < c and x2 > a,
        "inside": a <= x1 and b <= y1 and x2 <= c and y2 <= d,
        "right": x1 >= c and x1 <= c + 3 and y1 < d and y2 > b,
        "left": x2 <= a and x2 >= a - 3 and y1 < d and y2 > b,
    }
    assert [name for name, true in found.items() if true] == [where]
    assert x1 >= 0 and y1 >= 0 and x2 <= 300 and y2 <= 200


def test_labels_cover_no_label_and_stay_in_the_image(placed: Placed) -> None:
    same = [[100, 80, 180, 150]] * 9  # a box with room for labels all around
    draw_detections(grey(), detections(same, [1, 2, 3, 4, 1, 2, 3, 4, 1]))
    rectangles = [place for _, place in placed]
    assert 6 <= len(rectangles) < 10
    assert not any(overlap(a, b) for a, b in itertools.combinations(rectangles, 2))
    assert all(a >= 0 and b >= 0 and c <= 300 and d <= 200 for a, b, c, d in rectangles)
    assert placed[0][0] == "cat 0.90"  # the best is placed first


def test_in_a_crowd_labels_lose_their_numbers_then_are_left_out(
    placed: Placed, rng: np.random.Generator
) -> None:
    corners = rng.random((150, 2)) * [240, 150]
    boxes = np.hstack([corners, corners + 10 + rng.random((150, 2)) * 40])
    draw_detections(grey(), detections(boxes))
    rectangles = [place for _, place in placed]
    assert 20 < len(rectangles) < 150
    assert any(words == "cat" for words, _ in placed)
    assert not any(overlap(a, b) for a, b in itertools.combinations(rectangles, 2))


def test_a_name_that_is_wider_than_the_image_ends_in_an_ellipsis(placed: Placed) -> None:
    name = "a hippopotamus that lies in the water" * 9
    draw_detections(grey(120, 90), detections([[20, 30, 80, 80]], names=(name,)))
    ((words, (x1, _, x2, _)),) = placed
    assert words.endswith("… 0.90") and name.startswith(words.removesuffix("… 0.90"))
    assert len(words) > 12 and x1 >= 0 and x2 <= 120


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 2), (12, 9), (40, 5), (2, 400)])
def test_tiny_images(width: int, height: int, placed: Placed) -> None:
    canvas = draw_detections(grey(width, height), detections([[0, 0, width, height]]))
    assert canvas.shape == (height, width, 3)
    assert (canvas[0, 0] == class_colour(1)).all()
    assert all(a >= 0 and b >= 0 and c <= width and d <= height for _, (a, b, c, d) in placed)


def test_boxes_that_leave_the_image() -> None:
    canvas = draw_detections(grey(), detections([[-50, -50, 40, 40], [290, 190, 900, 900]]))
    assert (canvas[20, 39] == class_colour(1)).all()
    assert (canvas[190, 290:] == class_colour(1)).all()
    draw_detections(grey(), detections([[400, 400, 500, 500], [-9, -9, -3, -3]]))


@pytest.mark.parametrize(
    ("width", "height", "px"), [(120, 90, 11), (640, 480, 13), (6000, 4000, 117)]
)
def test_text_grows_with_the_image(width: int, height: int, px: int, placed: Placed) -> None:
    draw_detections(grey(width, height), detections([[width / 3, height / 2, width / 2, height]]))
    ((_, (_, top, _, bottom)),) = placed
    assert px <= bottom - top <= 1.6 * px


def pixels(words: str, size_px: int = 40) -> NDArray[np.uint8]:
    return text.Line.of(words, "", size_px).drawn(ink=BLACK, ground=WHITE)


def missing_glyph(path: Path, size_px: int = 40) -> NDArray[np.uint8]:
    """The shape that a font draws for a character that it lacks."""
    font = ImageFont.truetype(str(path), size_px)
    return np.asarray(font.getmask("\U0010fffe"), dtype=np.uint8)


@pytest.mark.parametrize("name", ["Straßenbahn", "Öl-Übung", "сова", "ελιά", "ظبي", "½ ☂"])
def test_common_scripts_need_no_font_of_the_system(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "system_fonts", lambda: ())
    assert fonts.font_runs(name) == [(fonts.latin_font(), name)]
    assert fonts.latin_font().is_file()


def test_umlauts_of_two_characters_are_composed() -> None:
    assert np.array_equal(pixels("Mu\u0308ll"), pixels("Müll"))
    assert not np.array_equal(pixels("Mull"), pixels("Müll"))


@pytest.fixture
def only_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A system with a single font, which has U+732B, drawn as a large block, and no other letter."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord(CJK): "cat"})
    glyphs = {}
    for name, side in ((".notdef", 200), ("cat", 800)):
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for corner in ((0, side), (side, side), (side, 0)):
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "cat": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Cats", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    folder = tmp_path / "fonts" / "deep"
    folder.mkdir(parents=True)
    builder.save(folder / "cats.ttf")
    (folder / "damaged.ttf").write_bytes(b"\0\1\0\0 not a font")
    (folder / "notes.txt").write_text("no font")
    monkeypatch.setattr(fonts, "font_folders", lambda: [tmp_path / "fonts", tmp_path / "none"])
    for cached in (fonts.system_fonts, fonts._system_font_with, text._runs):
        cached.cache_clear()
    monkeypatch.setattr(fonts, "_warned", set())
    yield folder / "cats.ttf"
    for cached in (fonts.system_fonts, fonts._system_font_with, text._runs):
        cached.cache_clear()


def test_a_glyph_is_taken_from_the_font_that_has_it(only_font: Path) -> None:
    assert fonts.font_runs(f"a{CJK}{CJK}b") == [
        (fonts.latin_font(), "a"),
        (only_font, CJK * 2),
        (fonts.latin_font(), "b"),
    ]
    drawn = pixels(CJK)
    dark = (drawn < 128).all(axis=2)
    assert dark.sum() == pytest.approx(32 * 32, rel=0.05)  # 0.8 em of 40 px; .notdef has 8 * 8


def test_what_no_font_has_is_escaped_with_one_warning(
    only_font: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "sppdet"):
        assert fonts.font_runs("可乐 x") == [(fonts.latin_font(), r"\u53ef\u4e50 x")]
        fonts.font_runs("犬")
    assert [record.getMessage() for record in caplog.records] == [
        "no font has 可 (U+53EF), so such characters are drawn as escapes; expected fonts such as "
        "those of Debian's package fonts-noto-cjk"
    ]


def test_control_characters_are_escaped() -> None:
    assert fonts.font_runs("a\n\u202eb\0") == [(fonts.latin_font(), r"a\n\u202eb\x00")]


def test_the_number_stays_left_to_right_beside_arabic() -> None:
    line = text.Line.of("ظبي", "95%", 20)
    assert [words for _, words in line.runs] == ["ظبي", " 95%"]
    assert [words for _, words in text.Line.of("cat", "95%", 20).runs] == ["cat 95%"]


def test_cjk_is_drawn_with_the_fonts_of_this_system() -> None:
    """Its shapes aren't those of a missing glyph."""
    runs = fonts.font_runs("可口可乐")
    if runs[0][0] == fonts.latin_font():
        assert runs == [(runs[0][0], r"\u53ef\u53e3\u53ef\u4e50")]
        pytest.skip("no font with CJK here; the mechanism is tested by a font of the test's own")
    ((font, words),) = runs
    glyphs = [
        np.asarray(ImageFont.truetype(str(font), 40).getmask(one), dtype=np.uint8) for one in words
    ]
    lacking = missing_glyph(font)
    assert all(not np.array_equal(glyph, lacking) for glyph in glyphs)
    assert not np.array_equal(glyphs[0], glyphs[1]) and np.array_equal(glyphs[0], glyphs[2])


def test_places_are_exhausted_in_order() -> None:
    places = Places(100, 60, gap_px=0)
    box = (30, 20, 70, 40)
    expected = [
        *[(30, 10), (60, 10)],  # above; the second stands at the right side
        *[(30, 40), (60, 40)],  # below
        *[(30, 20), (60, 20), (30, 30), (60, 30)],  # inside
        *[(70, 20), (70, 30), (20, 20), (20, 30)],  # beside
    ]
    assert [places.take(box, 10, 10) for _ in expected] == expected
    assert places.take(box, 10, 10) is None
    assert places.take((0, 0, 10, 10), 101, 10) is None
