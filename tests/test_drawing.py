"""Boxes, labels and ink of drawn detections, pixel by pixel."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
import pytest

from sppdet.folders.drawing import class_colour, draw_detections
from sppdet.types import Detections, ImageArray

NAMES = ("cat", "dog", "owl", "yak")


def drawn(
    boxes: list[list[float]],
    labels: list[int],
    *,
    width: int = 300,
    height: int = 200,
    grey: int = 128,
) -> ImageArray:
    image = np.full((height, width, 3), grey, dtype=np.uint8)
    scores = np.linspace(0.9, 0.1, len(boxes)).astype(np.float32)
    array = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    found = Detections(array, scores, np.array(labels, dtype=np.int64), NAMES)
    canvas = draw_detections(image, found)
    assert (image == grey).all() and canvas.shape == image.shape
    return canvas


def text_size(text: str, *, scale: float = 0.4, thickness: int = 1) -> tuple[int, int]:
    """Width and height of a label."""
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    return width, height + below


def test_colours_are_the_golden_angle_apart() -> None:
    for label in range(1, 30):
        hue = ((label - 1) * (5**0.5 - 1) / 2) % 1
        expected = [255 * c for c in colorsys.hsv_to_rgb(hue, 0.85, 0.95)]
        np.testing.assert_allclose(class_colour(label), expected, atol=0.6)


def test_a_box_is_drawn_on_its_own_outermost_pixels() -> None:
    canvas = drawn([[100, 80, 180, 150]], [2])
    colour = class_colour(2)
    inside = canvas[80:150, 100:180]
    for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
        assert (side == colour).all()
    assert (inside[1:-1, 1:-1] == 128).all()
    assert (canvas[150:] == 128).all() and (canvas[80:, 180:] == 128).all()
    assert (canvas[80:, :100] == 128).all()


@pytest.mark.parametrize(
    ("width", "height", "thickness", "scale"),
    [
        (300, 200, 1, 0.4),
        (374, 374, 1, 374 / 900),
        (900, 380, 2, 380 / 900),
        (380, 900, 2, 380 / 900),
        (1250, 1300, 5, 1250 / 900),
    ],
)
def test_lines_and_letters_grow_with_the_shorter_side(
    width: int, height: int, thickness: int, scale: float
) -> None:
    x1, y1, x2, y2 = 60, height // 2, width - 40, height - 10
    canvas = drawn([[x1, y1, x2, y2]], [3], width=width, height=height)
    expected = np.full((height, width, 3), 128, dtype=np.uint8)
    colour, font = class_colour(3), cv2.FONT_HERSHEY_SIMPLEX
    cv2.rectangle(expected, (x1, y1), (x2 - 1, y2 - 1), colour, thickness)
    (wide, high), below = cv2.getTextSize("owl 0.90", font, scale, thickness)
    cv2.rectangle(expected, (x1, y1 - high - below), (x1 + wide, y1), colour, -1)
    ink = (0, 0, 0) if sum(colour) > 380 else (255, 255, 255)
    cv2.putText(expected, "owl 0.90", (x1, y1 - below), font, scale, ink, thickness)
    assert np.array_equal(canvas, expected)


@pytest.mark.parametrize(
    "case", ["above", "no room above", "pushed in", "just above", "a pixel short"]
)
def test_a_label_stands_above_its_box_or_in_it(case: str) -> None:
    width, height = text_size("cat 0.90")
    box, left, top = {
        "above": ([100, 80, 180, 150], 100, 80 - height),
        "no room above": ([100, 5, 180, 150], 100, 5),
        "pushed in": ([280, 80, 300, 150], 300 - width, 80 - height),
        "just above": ([100, height, 180, 150], 100, 0),
        "a pixel short": ([100, height - 1, 180, 150], 100, height - 1),
    }[case]
    canvas = drawn([[float(side) for side in box]], [1])
    filled = (canvas[top : top + height + 1, left : left + width + 1] == class_colour(1)).all(
        axis=2
    )
    assert filled[0].all() and 0.4 < filled.mean() < 1
    assert (canvas[:top] == 128).all() and (canvas[top : top + height, :left] == 128).all()


# the colours of the last two add up to 380 and 381
@pytest.mark.parametrize("label", [*range(1, 12), 194, 89])
def test_ink_is_black_on_light_colours_and_white_on_dark_ones(label: int) -> None:
    names = tuple(f"c{k}" for k in range(200))
    image = np.full((200, 300, 3), 128, dtype=np.uint8)
    box = np.array([[100, 80, 180, 150]], np.float32)
    found = Detections(box, np.ones(1, np.float32), np.array([label], np.int64), names)
    canvas = draw_detections(image, found)
    ink = (0, 0, 0) if sum(class_colour(label)) > 380 else (255, 255, 255)
    other = (255, 255, 255) if ink == (0, 0, 0) else (0, 0, 0)
    assert (canvas == ink).all(axis=2).sum() > 5
    assert not (canvas == other).all(axis=2).any()


def test_the_best_is_on_top_and_its_score_has_two_digits() -> None:
    both = drawn([[100, 80, 180, 150], [100, 80, 180, 150]], [3, 4])
    assert (both[149, 100:180] == class_colour(3)).all()
    one = drawn([[100, 80, 180, 150]], [3])
    assert np.array_equal(one[80:150, 100:180], both[80:150, 100:180])


def test_no_detections_leave_the_image_as_it_is() -> None:
    assert (drawn([], []) == 128).all()
