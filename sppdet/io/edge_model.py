"""Trained detectors of structured edges (Dollár and Zitnick, ICCV 2013) in OpenCV's format."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from sppdet.errors import ConfigError
from sppdet.io.files import is_file
from sppdet.proposals.edge_boxes import RADIUS, EdgeDetector, EdgeMap
from sppdet.types import ImageArray


def read_edge_model(path: Path) -> EdgeDetector:
    """Read a random forest from YAML or XML, which may be compressed by gzip, such as `model.yml.gz`.

    OpenCV reads the trees' numbers without a check: the file must come from a source that is trusted.

    Raises:
        ConfigError: no such file, or it has no forest.
    """
    if not is_file(path):
        raise ConfigError(f"proposals.edge_model: {path}: no such file")
    try:
        _check(path)
        forest = cv2.ximgproc.createStructuredEdgeDetection(str(path))
    except (cv2.error, SystemError, ValueError) as error:
        reason = "not a model of structured edges in OpenCV's format"
        raise ConfigError(f"proposals.edge_model: {path}: {reason}") from error

    def detect(image: ImageArray) -> EdgeMap:
        strength = forest.detectEdges(image.astype(np.float32) / 255)
        orientation = forest.computeOrientation(strength)
        kept = forest.edgesNms(strength, orientation, r=RADIUS, s=0, m=1, isParallel=False)
        return EdgeMap(np.asarray(kept), np.asarray(orientation))

    return detect


def _check(path: Path) -> None:
    """Raise ValueError where OpenCV would divide by the number of trees, which is zero."""
    file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)
    trees = file.getNode("options").getNode("numberOfTrees")
    names = ("childs", "featureIds", "thresholds", "edgeBoundaries", "edgeBins")
    nodes = [file.getNode(name).size() for name in names]
    if not trees.isInt() or trees.real() < 1 or 0 in nodes:
        raise ValueError
