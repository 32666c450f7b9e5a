"""Detections drawn on their image."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

from sppdet.types import Detections, ImageArray

_FONT = cv2.FONT_HERSHEY_SIMPLEX


def class_colour(label: int) -> tuple[int, int, int]:
    """Return an RGB colour for label 1..K; neighbouring labels are far apart on the colour circle."""
    hue = ((label - 1) * 0.618034) % 1.0  # the golden ratio
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_detections(image: ImageArray, detections: Detections) -> ImageArray:
    """Draw boxes and class names on a copy of the image (H, W, 3) RGB, the best on top.

    Beside the names are the probabilities in per cent, or the scores where there are none.
    """
    canvas: ImageArray = image.copy()
    thickness = max(1, round(min(image.shape[:2]) / 250))
    font_scale = max(0.4, min(image.shape[:2]) / 900)
    names = detections.names()
    for i in reversed(range(len(detections))):
        colour = class_colour(int(detections.labels[i]))
        x1, y1, x2, y2 = np.rint(detections.boxes[i]).astype(int).tolist()
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colour, thickness)
        text = f"{names[i]} {_number(detections, i)}"
        (width, height), below = cv2.getTextSize(text, _FONT, font_scale, thickness)
        top = y1 - height - below if y1 >= height + below else y1
        left = max(0, min(x1, image.shape[1] - width))
        cv2.rectangle(canvas, (left, top), (left + width, top + height + below), colour, -1)
        dark = sum(colour) > 380
        ink = (0, 0, 0) if dark else (255, 255, 255)
        cv2.putText(canvas, text, (left, top + height), _FONT, font_scale, ink, thickness)
    return canvas


def _number(detections: Detections, row: int) -> str:
    if detections.probabilities is None:
        return f"{detections.scores[row]:.2f}"
    return f"{100 * detections.probabilities[row]:.0f}%"
