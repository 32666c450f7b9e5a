"""Edge boxes: edge maps against slow references and OpenCV, boxes of drawn objects, joined engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from evaluation_samples import make_image
from samples import random_image
from sppdet.boxes import box_iou
from sppdet.config import ProposalsConfig
from sppdet.errors import ConfigError
from sppdet.io.edge_model import read_edge_model
from sppdet.proposals.edge_boxes import (
    FLOOR,
    LOCAL_SIGMA,
    SIGMA,
    edge_boxes,
    gradient_edges,
    score_boxes,
    suppressed,
)
from sppdet.proposals.joined import interleaved, propose
from sppdet.proposals.recall import small_objects
from sppdet.proposals.selective_search import selective_search
from sppdet.stages.proposer import Proposer
from sppdet.types import AnnotatedImage, ImageArray

CONFIG = ProposalsConfig(engine="edgeboxes", image_width=150, min_size=8)


@pytest.fixture(scope="module")
def image() -> ImageArray:
    return random_image(np.random.default_rng(5), width=120, height=90)


def model_file(path: Path, *, trees: int = 1) -> Path:
    """Write a forest of one tree of three nodes: strong gradients get one edge pixel, others none.

    Patches are 32 pixels wide, the predicted part in their middle 16; channel 3 is the gradient's
    magnitude at half the resolution.
    """
    cell = 3 * 16 * 16 + 8 * 16 + 8
    options = {
        **{"stride": 2, "shrinkNumber": 2, "patchSize": 32, "patchInnerSize": 16},
        **{"numberOfGradientOrientations": 4, "gradientSmoothingRadius": 0},
        **{"regFeatureSmoothingRadius": 2, "ssFeatureSmoothingRadius": 8},
        **{"gradientNormalizationRadius": 4, "selfsimilarityGridSize": 5},
        **{"numberOfTrees": trees, "numberOfTreesToEvaluate": 1},
    }
    lines = ["%YAML:1.0", "options:", *(f"   {key}: {value}" for key, value in options.items())]
    lines += ["childs:", "   - [ 2, 0, 0 ]", "featureIds:", f"   - [ {cell}, 0, 0 ]"]
    lines += ["thresholds:", "   - [ 0.5, 0., 0. ]", "edgeBoundaries:", "   - [ 0, 0, 0, 1 ]"]
    lines += ["edgeBins:", f"   - [ {8 * 16 + 8} ]", ""]
    path.write_text("\n".join(lines))
    return path


# -- edge maps -----------------------------------------------------------------------------------


def slow_lab(image: ImageArray) -> NDArray[np.float64]:
    """CIE Lab of sRGB, white point D65, from its definition."""
    rgb = image / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.412453, 0.35758, 0.180423], [0.212671, 0.71516, 0.072169]]
    to_xyz.append([0.019334, 0.119193, 0.950227])
    xyz = linear @ np.array(to_xyz).T / [0.950456, 1.0, 1.088754]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack(
        [
            np.where(xyz[..., 1] > 0.008856, 116 * f[..., 1] - 16, 903.3 * xyz[..., 1]),
            500 * (f[..., 0] - f[..., 1]),
            200 * (f[..., 1] - f[..., 2]),
        ],
        axis=-1,
    )


def slow_gradients(image: ImageArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Strength before the suppression and orientation, pixel by pixel."""
    lab = slow_lab(image) / 100
    smooth = np.stack(
        [gaussian_filter(lab[..., c], SIGMA, mode="nearest", truncate=4) for c in range(3)], -1
    )
    height, width = image.shape[:2]
    magnitude, orientation = np.zeros((height, width)), np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            dx = smooth[y, min(x + 1, width - 1)] - smooth[y, max(x - 1, 0)]
            dy = smooth[min(y + 1, height - 1), x] - smooth[max(y - 1, 0), x]
            best = max(range(3), key=lambda c: dx[c] ** 2 + dy[c] ** 2)
            magnitude[y, x] = np.hypot(dx[best], dy[best]) / 2
            orientation[y, x] = np.arctan2(dy[best], dx[best]) % np.pi
    around = gaussian_filter(magnitude, LOCAL_SIGMA, mode="nearest", truncate=4)
    return magnitude / (magnitude + around + FLOOR), orientation


def test_gradient_edges_equal_slow_ones(image: ImageArray) -> None:
    strength, orientation = slow_gradients(image)
    found = gradient_edges(image)
    turn = np.abs(found.orientation - orientation)
    turn = np.minimum(turn, np.pi - turn)  # 0 and π are one orientation
    # OpenCV's Lab has errors of up to 0.3, which turn faint gradients and where two channels are alike
    assert np.quantile(turn[strength > 0.3], 0.99) < 0.02
    kept = found.strength > 0
    assert 0.1 < kept.mean() < 0.6
    np.testing.assert_allclose(found.strength[kept], strength[kept], atol=0.012)
    assert found.orientation.min() >= 0 and found.orientation.max() < np.pi


@pytest.mark.parametrize("shape", [(40, 60), (3, 50), (50, 3)])
def test_suppression_is_opencvs(shape: tuple[int, int], tmp_path: Path) -> None:
    forest = cv2.ximgproc.createStructuredEdgeDetection(str(model_file(tmp_path / "m.yml")))
    rng = np.random.default_rng(3)
    strength = rng.random(shape).astype(np.float32)
    strength[rng.random(shape) < 0.2] = 0
    strength = np.asarray(cv2.GaussianBlur(strength, (0, 0), 1.0), dtype=np.float32)
    orientation = (rng.random(shape) * np.pi).astype(np.float32)
    expected = forest.edgesNms(strength, orientation, r=2, s=0, m=1)
    found = suppressed(strength, orientation)
    assert 0 < (found > 0).mean() < 0.7
    np.testing.assert_array_equal(found > 0, expected > 0)
    np.testing.assert_array_equal(found[found > 0], strength[found > 0])


def test_orientation_is_the_normals() -> None:
    """Half planes at known angles; y points down."""
    y, x = np.mgrid[:60, :60] - 29.5
    for degrees in (0, 30, 90, 120):
        angle = np.deg2rad(degrees)
        side = x * np.cos(angle) + y * np.sin(angle) > 0
        found = gradient_edges(np.where(side[..., None], 200, 40).repeat(3, 2).astype(np.uint8))
        on_edge = found.strength > 0.4
        on_edge[:5] = on_edge[-5:] = on_edge[:, :5] = on_edge[:, -5:] = False
        assert on_edge.sum() > 30
        turn = np.abs(found.orientation[on_edge] - angle)
        assert np.median(np.minimum(turn, np.pi - turn)) < 0.05


# -- boxes ---------------------------------------------------------------------------------------


def drawn(*boxes: tuple[int, int, int, int]) -> ImageArray:
    image = np.full((200, 300, 3), 90, np.uint8)
    for n, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2] = ((200, 60, 40), (40, 90, 220), (230, 230, 60))[n]
    return image


def test_closed_contours_come_first() -> None:
    objects = [(30, 40, 90, 120), (150, 60, 260, 110)]
    config = ProposalsConfig(engine="edgeboxes", image_width=300)
    boxes = edge_boxes(drawn(*objects), config).boxes
    ious = box_iou(np.array(objects, np.float32), boxes)
    assert (ious[:, :10].max(axis=1) > 0.75).all()
    assert (ious.max(axis=1) > 0.85).all()
    # a window that cuts an object in two scores 0
    halves = np.array([[30, 40, 60, 120], [60, 40, 90, 120]], np.float32)
    assert box_iou(halves, boxes[:30]).max() < 0.75


def test_windows_include_their_border_pixels(image: ImageArray) -> None:
    boxes = score_boxes(gradient_edges(image), min_size=8)
    assert boxes[:, :2].min() == 0  # OpenCV's start at 1
    assert boxes[:, 2].max() == 120 and boxes[:, 3].max() == 90
    assert len(np.unique(boxes, axis=0)) == len(boxes) > 100


def test_boxes_are_in_original_pixels() -> None:
    image = drawn((30, 40, 90, 120))
    large = image.repeat(3, axis=1).repeat(2, axis=0)
    config = ProposalsConfig(engine="edgeboxes", image_width=300)
    best = np.array([[90, 80, 270, 240]], np.float32)
    assert box_iou(best, edge_boxes(large, config).boxes).max() > 0.85


def test_settings_are_obeyed(image: ImageArray) -> None:
    found = edge_boxes(image, CONFIG).boxes
    assert len(found) > 200
    cut = edge_boxes(image, CONFIG.model_copy(update={"max_boxes": 30})).boxes
    assert np.array_equal(cut, found[:30])
    large = edge_boxes(image, CONFIG.model_copy(update={"min_size": 30})).boxes
    assert len(large) and (large[:, 2:] - large[:, :2]).min() * (150 / 120) >= 30 - 1e-3


# -- a trained model -----------------------------------------------------------------------------


def test_structured_edges_are_used(tmp_path: Path) -> None:
    path = model_file(tmp_path / "model.yml")
    image = drawn((30, 40, 90, 120))
    edges = read_edge_model(path)(image)
    rows, columns = np.nonzero(edges.strength)
    # the tree sees strong gradients alone: all edges are near the rectangle's outline
    outline = np.zeros((200, 300), np.uint8)
    cv2.rectangle(outline, (30, 40), (90, 120), 255, 9)
    assert len(rows) > 100 and outline[rows, columns].all()
    config = ProposalsConfig(engine="edgeboxes", image_width=300, edge_model=path)
    found = Proposer(config).of(image).boxes
    assert np.array_equal(found, edge_boxes(image, config, read_edge_model(path)).boxes)
    assert not np.array_equal(found, edge_boxes(image, config).boxes)


def test_fingerprint_has_the_models_content(tmp_path: Path) -> None:
    path, other = model_file(tmp_path / "model.yml"), model_file(tmp_path / "other.yml")
    config = CONFIG.model_copy(update={"edge_model": path})
    before = Proposer(config).fingerprint
    assert Proposer(CONFIG.model_copy(update={"edge_model": other})).fingerprint == before
    assert Proposer(CONFIG).fingerprint != before
    path.write_text(path.read_text().replace("0.5", "0.6"))
    assert Proposer(config).fingerprint != before


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        ("", "not a model of structured edges"),
        ("hello", "not a model of structured edges"),
        ("%YAML:1.0\nother: 3\n", "not a model of structured edges"),
    ],
)
def test_files_that_are_no_model(content: str | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "model.yml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=f"proposals.edge_model: .*model.yml: {expected}"):
        Proposer(CONFIG.model_copy(update={"edge_model": path}))


def test_a_model_without_trees(tmp_path: Path) -> None:
    """OpenCV divides by their number, which would end the process."""
    path = model_file(tmp_path / "model.yml", trees=0)
    with pytest.raises(ConfigError, match="not a model"):
        read_edge_model(path)


# -- joined --------------------------------------------------------------------------------------


def test_interleaved_by_hand() -> None:
    a, b, c, d, e = ([n, n, n + 9, n + 9] for n in range(5))
    lists = [np.array(rows, np.float32) for rows in ([a, b, c], [d, a, b, e])]
    assert interleaved(lists).tolist() == [a, d, b, c, e]
    assert interleaved([lists[0][:0], lists[1]]).tolist() == [d, a, b, e]


def test_joined_engines_share_the_boxes(image: ImageArray) -> None:
    settings: dict[str, Any] = {"image_width": 150, "min_size": 8, "max_boxes": 80}
    config = ProposalsConfig(engine=["sppdet", "edgeboxes"], **settings)
    found = {tuple(box) for box in propose(image, config).boxes.tolist()}
    assert len(found) == 80
    ours = selective_search(image, ProposalsConfig(**settings)).boxes
    others = edge_boxes(image, CONFIG).boxes
    for boxes in (ours, others):
        assert {tuple(box) for box in boxes[:40].tolist()} <= found


def test_fingerprints_of_earlier_versions() -> None:
    """Stored proposals of runs stay valid: these were computed before engines could be joined."""
    for settings, expected in (
        ({}, "522d1c6ae2950805"),
        ({"engine": "opencv"}, "886cd71710c3ccc6"),
        ({"mode": "quality"}, "8531bd70dc2ec7f9"),
        ({"engine": "stored", "path": [Path("/nonexistent/b.npz")]}, "e3a6d94a36258a61"),
    ):
        assert Proposer(ProposalsConfig(**settings)).fingerprint == expected
    edges, joined = CONFIG, CONFIG.model_copy(update={"engine": ["sppdet", "edgeboxes"]})
    assert Proposer(edges).fingerprint != Proposer(joined).fingerprint


# -- objects too small to be proposed ------------------------------------------------------------


def sized(width: int, height: int, *boxes: tuple[int, int, int, int]) -> AnnotatedImage:
    made = make_image("a", [(1, box) for box in boxes])
    return AnnotatedImage(
        *("a", made.path, width, height, made.gt_boxes, made.gt_labels),
        *(made.difficult, made.truncated),
    )


def test_small_objects_by_hand() -> None:
    config = ProposalsConfig()  # 20 pixels at a width of 500
    large = sized(1000, 800, (0, 0, 40, 40), (0, 0, 39, 300), (0, 0, 400, 30))
    found = small_objects([large, sized(250, 900, (0, 0, 30, 9))], config)
    assert found is not None and (found.objects, found.small) == (4, 3)
    # shorter sides: 19.5 and 15 in the first, 18 in the second
    assert (found.min_size, found.image_width) == (15, 667)
    assert "3 of 4 ground-truth boxes (75.0%)" in str(found)
    assert small_objects([sized(500, 400, (0, 0, 20, 20))], config) is None


def test_the_advice_covers_most(rng: np.random.Generator) -> None:
    sides = rng.integers(5, 60, 400)
    images = [sized(640, 480, (0, 0, int(side), 200)) for side in sides]
    found = small_objects(images, ProposalsConfig())
    assert found is not None and found.small == (sides * 500 / 640 < 20).sum()
    for advised in (
        ProposalsConfig(min_size=found.min_size),
        ProposalsConfig(image_width=found.image_width),
    ):
        left = small_objects(images, advised)
        assert left is None or left.small <= 0.05 * found.small
