"""YOLO's label files: hand calculation, and what its reader makes of them."""

from __future__ import annotations

import numpy as np
import yaml

from sppdet.io.yolo_writing import yolo_data, yolo_labels


def test_a_line_is_class_centre_and_size_in_fractions() -> None:
    boxes = np.array([[10, 20, 30, 60], [0, 0, 200, 100]], np.float32)
    text = yolo_labels(boxes, np.array([3, 1]), width=200, height=100)
    assert text == "2 0.1 0.4 0.1 0.4\n0 0.5 0.5 1 1\n"


def test_scores_stand_behind_the_boxes() -> None:
    text = yolo_labels(
        np.array([[0, 0, 2, 2]], np.float32), np.array([1]),
        width=4, height=4, scores=np.array([0.75], np.float32),
    )  # fmt: skip
    assert text == "0 0.25 0.25 0.5 0.5 0.75\n"


def test_boxes_come_back() -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 1, (50, 2, 2)) * [4000, 3000]
    boxes = np.concatenate([corners.min(1), corners.max(1) + 1], axis=1).astype(np.float32)
    text = yolo_labels(boxes, np.ones(50, np.int64), width=4001, height=3001)
    read = np.array([[float(word) for word in line.split()[1:]] for line in text.splitlines()])
    centre, size = read[:, :2] * [4001, 3001], read[:, 2:] * [4001, 3001]
    np.testing.assert_allclose(np.hstack([centre - size / 2, centre + size / 2]), boxes, atol=1e-4)


def test_data_yaml_names_the_classes_from_0() -> None:
    assert yaml.safe_load(yolo_data(["Äpfel", "on"]))["names"] == ["Äpfel", "on"]
