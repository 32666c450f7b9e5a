"""The kinds of findings of a check: how much each matters, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sppdet.stages.report import FEW_OBJECTS

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Kind:
    """A kind of finding: how much it matters, what the cases are, and what to do about them."""

    severity: Severity
    title: str
    advice: str


KINDS: dict[str, Kind] = {
    "image": Kind(
        "error",
        "images that can't be read",
        "The file is missing, damaged or no image. Training stops here; data.on_error: skip leaves it out.",
    ),
    "annotation": Kind(
        "error",
        "annotations that can't be read",
        "Training stops here; data.on_error: skip leaves it out.",
    ),
    "invalid box": Kind(
        "error",
        "objects that can't be used",
        "A side is 0 or negative, a number or the class is missing. Training stops here; data.on_error: "
        "skip leaves the object out.",
    ),
    "outside": Kind(
        "error",
        "boxes outside their image",
        "Nothing of the box is in the image. Training stops here; data.on_error: skip leaves the box out.",
    ),
    "size": Kind(
        "error",
        "sizes that contradict the image",
        "The annotation was made for another size, so that boxes may lie beside their objects.",
    ),
    "in both sets": Kind(
        "error",
        "images to train on and to test with",
        "A test on training images overstates how good the detector is; take the image out of one set.",
    ),
    "copy across sets": Kind(
        "error",
        "copies of an image in both sets",
        "Two files with the same content: a test on training images overstates how good the detector is.",
    ),
    "untrained class": Kind(
        "error",
        "classes without an object to train on",
        "None that isn't difficult: training stops. Of a class that only the test set has, the objects are "
        "left out of the test.",
    ),
    "similar across sets": Kind(
        "warning",
        "nearly the same image in both sets",
        "Another size, compression or exposure of one image, or two frames of a scene: the test resembles "
        "the training. data.test: 0.2 keeps such images on one side.",
    ),
    "class names": Kind(
        "warning",
        "class names that are nearly the same",
        "They differ in case, blanks, hyphens or forms of Unicode, and count as different classes.",
    ),
    "few objects": Kind(
        "warning",
        f"classes with fewer than {FEW_OBJECTS} objects to train on",
        "Detections of such a class will be poor, and their scores rough.",
    ),
    "untested class": Kind(
        "warning",
        "classes without an object to test with",
        "Nothing can be said about how well such a class is detected.",
    ),
    "beyond the border": Kind(
        "warning",
        "boxes that reach out of their image",
        "By more than a pixel; they are clipped.",
    ),
    "tiny": Kind(
        "warning",
        "objects smaller than every proposal",
        "A larger proposals.image_width or a smaller proposals.min_size lets them be proposed.",
    ),
    "thin": Kind(
        "warning",
        "boxes ten times as long as wide, or more",
        "Few proposals are as thin; often it is a slip of the mouse.",
    ),
    "double box": Kind(
        "warning",
        "objects with two boxes of one class",
        "IoU 0.9 or more. One of them can't be found by a detector, which keeps one box an object.",
    ),
    "two classes": Kind(
        "warning",
        "objects with boxes of two classes",
        "IoU 0.9 or more. One of the classes is wrong, or one is a part of the other.",
    ),
    "unlabelled": Kind(
        "warning",
        "images without an annotation",
        "They aren't used or, in the format of YOLO, taken for images without objects.",
    ),
    "copy": Kind(
        "warning",
        "copies of an image in one set",
        "Two files with the same content, which count twice; their labels may contradict each other.",
    ),
    "similar": Kind(
        "note",
        "nearly the same image in one set",
        "Another size, compression or exposure of one image, or two frames of a scene.",
    ),
    "huge": Kind(
        "note",
        "boxes of 90 % of their image or more",
        "A detector learns little about what is around the object.",
    ),
    "uncovered": Kind(
        "note",
        "objects that no proposal covers",
        "In the sample: no proposal has IoU 0.5 with it, so that only box regression could find it. More "
        "proposals (proposals.mode, max_boxes) or a larger image_width cover more.",
    ),
    "no objects": Kind(
        "note",
        "images without objects",
        "Everything in them is background, which is right where nothing was forgotten.",
    ),
    "depth": Kind("note", "images of more than 8 bits", "Their values are scaled to 8 bits."),
    "left out": Kind(
        "note", "things that aren't used", "No mistake, but no box of a class either."
    ),
}
"""The kinds of findings, the most serious first."""
