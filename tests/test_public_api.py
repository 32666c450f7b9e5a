"""The names that the package offers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sppdet
from sppdet import boxes, detections, errors, types, version
from sppdet.config import ProposalsConfig
from sppdet.features import pyramid, spp
from sppdet.io import settings as config_file
from sppdet.proposals import search
from sppdet.proposals import selective_search as engine
from sppdet.stages import detector
from sppdet.stages import train as training


def test_public_names() -> None:
    assert sorted(sppdet.__all__) == [
        *("CombinedDetector", "Detections", "Detector", "SpatialPyramid", "SppdetError"),
        *(
            "__version__",
            "box_iou",
            "load_config",
            "nms",
            "selective_search",
            "spp_windows",
            "train",
        ),
    ]
    assert set(sppdet.__all__) <= set(dir(sppdet))


def test_names_are_what_they_stand_for() -> None:
    from sppdet import Detections, Detector, SppdetError, __version__, load_config, train

    assert sppdet.SpatialPyramid is pyramid.SpatialPyramid
    assert sppdet.spp_windows is spp.spp_windows
    assert sppdet.nms is boxes.nms and sppdet.box_iou is boxes.box_iou
    assert sppdet.selective_search is search.selective_search
    assert Detections is types.Detections is detections.Detections
    assert Detector is detector.Detector
    assert SppdetError is errors.SppdetError
    assert load_config is config_file.load_config
    assert train is training.train
    assert __version__ == version.__version__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        getattr(sppdet, "nonsense")  # noqa: B009


def test_every_error_of_ours_is_an_sppdet_error() -> None:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(found) == 8
    assert all(issubclass(error, sppdet.SppdetError) for error in found)


def test_the_module_is_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sppdet", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"sppdet {version.__version__}\n")


def test_the_detector_as_the_package_shows_it(trained: Path, demo_root: Path) -> None:
    loaded = sppdet.Detector.load(str(trained), device="cpu")
    path = demo_root / "fresh" / "000019.jpg"
    detections = loaded(str(path))
    assert isinstance(detections, sppdet.Detections)
    assert len(detections) and detections.path == str(path)


def test_selective_search_of_any_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image[20:40, 30:60] = (200, 30, 30)
    boxes = sppdet.selective_search(image, image_width=80, min_size=8, max_boxes=50)
    config = ProposalsConfig(image_width=80, min_size=8, max_boxes=50)
    assert np.array_equal(boxes, engine.selective_search(image, config).boxes)
    assert boxes.dtype == np.float32 and 0 < len(boxes) <= 50 and boxes[:, 2].max() <= 80
    other = sppdet.selective_search(image, "quality", image_width=80, min_size=8, max_boxes=50)
    assert not np.array_equal(other, boxes)
    wrong_images: list[Any] = [image[:, :, 0], image.astype(np.float32), image[:0]]
    for wrong in wrong_images:
        with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\)"):
            sppdet.selective_search(wrong)
    with pytest.raises(ValueError, match=r"^max_boxes: should be [^\n]+, got 0$"):
        sppdet.selective_search(image, max_boxes=0)
    with pytest.raises(ValueError, match=r"^mode: should be 'single', [^\n]+, got 'slow'$"):
        sppdet.selective_search(image, "slow")  # type: ignore[arg-type]
