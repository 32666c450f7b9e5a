"""Selective search: repeatable boxes in bounds; boxes stored by others; coverage by hand."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray

from evaluation_samples import make_image
from samples import random_boxes, random_image
from sppdet.boxes import box_iou
from sppdet.config import ProposalsConfig
from sppdet.errors import DataError
from sppdet.io.image_cache import ImageCache
from sppdet.io.images import read_image
from sppdet.io.stored_proposals import StoredProposals, file_name
from sppdet.proposals.colours import in_colour_space
from sppdet.proposals.joined import propose
from sppdet.proposals.modes import MODES
from sppdet.proposals.opencv_engine import _search
from sppdet.proposals.recall import coverage
from sppdet.proposals.selective_search import _order, selective_search
from sppdet.stages.proposer import Proposer
from sppdet.types import AnnotatedImage, Boxes, ImageArray, Proposals

CONFIG = ProposalsConfig(image_width=150, min_size=8)
ALL = CONFIG.model_copy(update={"max_boxes": 1_000_000})
ENGINES = pytest.mark.parametrize("engine", ["sppdet", "opencv"])
ALL_ENGINES = pytest.mark.parametrize(
    "engine", ["sppdet", "opencv", "edgeboxes", ["sppdet", "edgeboxes"]], ids=str
)


def with_engine(config: ProposalsConfig, engine: str | list[str], **others: Any) -> ProposalsConfig:
    return config.model_copy(update={"engine": engine, **others})


@pytest.fixture(scope="module")
def image() -> ImageArray:
    return random_image(np.random.default_rng(5), width=120, height=90)


def test_opencv_merges_by_the_grouping_it_is_told(image: ImageArray) -> None:
    hsv = in_colour_space(image, "hsv")
    searched = (_search(image, hsv, 50, (letters,)) for letters in ("ctsf", "tsf", "s"))
    found = [rows(boxes.astype(np.float32)) for boxes in searched]
    assert all(len(boxes) > 5 for boxes in found)
    assert found[0] != found[1] != found[2] != found[0]


def rows(boxes: Boxes) -> set[tuple[float, ...]]:
    return {tuple(box) for box in boxes.tolist()}


def other_search(image: ImageArray) -> None:
    """What else a process may do with OpenCV: this draws from C's `rand()`."""
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    search.switchToSelectiveSearchFast()
    search.process()


@ALL_ENGINES
def test_the_same_boxes_in_the_same_order_whatever_runs_beside(
    image: ImageArray, engine: str | list[str]
) -> None:
    config = with_engine(CONFIG, engine)
    first = propose(image, config).boxes
    assert len(first) > 100
    assert np.array_equal(propose(image, config).boxes, first)
    other_search(image)
    cv2.setRNGSeed(99)
    assert np.array_equal(propose(image, config).boxes, first)
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(other_search, image) for _ in range(2)]
        found = [pool.submit(propose, image, config) for _ in range(4)]
        for future in found:
            assert np.array_equal(future.result().boxes, first)
        for other in others:
            other.result()


@ENGINES
def test_the_seed_orders_and_doesnt_choose(image: ImageArray, engine: str) -> None:
    a = selective_search(image, with_engine(ALL, engine)).boxes
    b = selective_search(image, with_engine(ALL, engine, seed=1)).boxes
    assert not np.array_equal(a, b)
    assert rows(a) == rows(b) and len(rows(a)) == len(a)
    cut = selective_search(image, with_engine(ALL, engine, max_boxes=50)).boxes
    assert np.array_equal(cut, a[:50])


def test_another_image_has_another_order(image: ImageArray) -> None:
    mirrored = selective_search(np.ascontiguousarray(image[:, ::-1]), ALL).boxes
    assert not np.array_equal(mirrored, selective_search(image, ALL).boxes)


@ENGINES
def test_large_boxes_tend_to_come_first(image: ImageArray, engine: str) -> None:
    boxes = selective_search(image, with_engine(ALL, engine)).boxes
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert area[:100].mean() > 1.5 * area[-100:].mean()


def test_quality_mode_finds_more(image: ImageArray) -> None:
    small = ALL.model_copy(update={"image_width": 80})
    fast = selective_search(image, small).boxes
    quality = selective_search(image, small.model_copy(update={"mode": "quality"})).boxes
    assert len(quality) > 1.5 * len(fast)


def test_single_mode_is_one_segmentation_of_fast(image: ImageArray) -> None:
    single, fast = (
        rows(selective_search(image, ALL.model_copy(update={"mode": mode})).boxes)
        for mode in ("single", "fast")
    )
    assert 20 < len(single) < len(fast)
    assert single < fast


@ENGINES
def test_diverse_mode_is_one_threshold_of_quality(image: ImageArray, engine: str) -> None:
    diverse, quality, fast = (
        rows(selective_search(image, with_engine(ALL, engine, mode=mode)).boxes)
        for mode in ("diverse", "quality", "fast")
    )
    assert 20 < len(diverse) < len(quality)
    assert diverse < quality
    assert not diverse <= fast and not fast <= diverse


def test_modes_have_the_hierarchies_that_the_settings_name() -> None:
    hierarchies = {
        name: len(mode.colours) * len(mode.ks) * len(mode.groupings) for name, mode in MODES.items()
    }
    assert hierarchies == {"single": 2, "fast": 8, "diverse": 20, "quality": 80}
    assert set(hierarchies) == set(get_args(ProposalsConfig.model_fields["mode"].annotation))
    assert len(MODES["fast"].colours) * len(MODES["fast"].ks) == 4  # segmentations
    assert len(MODES["diverse"].colours) == 5 and MODES["diverse"].ks == (100,)


@pytest.mark.parametrize("min_size", [1, 8, 20])
def test_least_size_is_in_resized_pixels(image: ImageArray, min_size: int) -> None:
    config = ALL.model_copy(update={"min_size": min_size})
    boxes = selective_search(image, config).boxes
    sides = (boxes[:, 2:] - boxes[:, :2]) * (150 / 120)
    assert sides.min() == pytest.approx(min_size, abs=1)
    assert sides.min() > min_size - 1e-3
    everything = selective_search(image, ALL.model_copy(update={"min_size": 1})).boxes
    wide = ((everything[:, 2:] - everything[:, :2]) * (150 / 120) >= min_size - 1e-3).all(axis=1)
    assert rows(boxes) == rows(everything[wide])


@pytest.mark.parametrize(
    ("width", "height"), [(40, 40), (300, 20), (20, 300), (1, 1), (60, 1), (1, 60), (2, 900)]
)
@pytest.mark.parametrize("grey", [False, True])
@ALL_ENGINES
def test_boxes_stay_in_images_of_any_shape(
    width: int, height: int, grey: bool, engine: str | list[str]
) -> None:
    rng = np.random.default_rng(width)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    if grey:
        image[:] = image[:, :, :1]
    boxes = propose(image, with_engine(CONFIG, engine, min_size=1)).boxes
    assert len(boxes) >= 1 and boxes.dtype == np.float32
    assert boxes[:, :2].min() >= 0
    assert boxes[:, 2].max() <= width and boxes[:, 3].max() <= height
    assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize("value", [0, 90, 255])
@ALL_ENGINES
def test_a_image_of_one_colour_has_just_the_whole(value: int, engine: str | list[str]) -> None:
    image = np.full((45, 60, 3), value, np.uint8)
    for mode in MODES:
        config = with_engine(CONFIG, engine, mode=mode)
        assert propose(image, config).boxes.tolist() == [[0, 0, 60, 45]]


@ENGINES
def test_two_halves_are_found(engine: str) -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    image[:, 40:] = (200, 30, 30)
    boxes = selective_search(image, with_engine(CONFIG, engine, image_width=160)).boxes
    for half in ([0, 0, 40, 60], [40, 0, 80, 60]):
        assert np.abs(boxes - np.array(half)).max(axis=1).min() <= 2
    assert [0, 0, 80, 60] in boxes.tolist()


def test_engines_find_alike(image: ImageArray) -> None:
    ours, other = (selective_search(image, with_engine(ALL, e)).boxes for e in ENGINES.args[1])
    for a, b in ((ours, other), (other, ours)):
        assert box_iou(a, b).max(axis=1).mean() > 0.8


def test_ranks_by_hand() -> None:
    class Ones:
        def random(self, count: int) -> NDArray[np.float64]:
            return np.ones(count)

    def boxes(*rows: list[int]) -> NDArray[np.int32]:
        return np.array(rows, np.int32)

    whole, half, small, other = [0, 0, 9, 9], [0, 0, 9, 4], [1, 1, 3, 3], [2, 0, 9, 9]
    groups = [boxes(whole, half, small), boxes(whole, other, half, small)]
    rng: Any = Ones()
    assert _order(groups, rng, min_size=1).tolist() == [whole, half, other, small]
    assert _order(groups, rng, min_size=3).tolist() == [whole, half, other]
    assert _order([boxes(small)], rng, min_size=3).shape == (0, 4)


# -- stored by others ----------------------------------------------------------------------------


def save_mat(path: Path, boxes: dict[str, Any]) -> Path:
    """R-CNN's layout: cells of ids and of [y1 x1 y2 x2], 1-based inclusive."""
    images, cells = np.empty((len(boxes), 1), object), np.empty((1, len(boxes)), object)
    for i, (name, value) in enumerate(boxes.items()):
        images[i, 0], cells[0, i] = name, value
    scipy.io.savemat(str(path), {"images": images, "boxes": cells})
    return path


def look_up(path: Path, image_id: str = "000012", max_boxes: int = 99) -> list[list[float]]:
    proposals = StoredProposals(path).look_up(image_id, width=500, height=300, max_boxes=max_boxes)
    boxes: list[list[float]] = proposals.boxes.tolist()
    return boxes


def test_mat_of_r_cnn(tmp_path: Path) -> None:
    cells = {
        "000012": np.array([[1, 2, 30, 40], [300, 500, 300, 500], [5, 5, 5, 5]], np.uint16),
        "000013": np.zeros((0, 4)),
    }
    path = save_mat(tmp_path / "boxes.mat", cells)
    assert look_up(path) == [[1, 0, 40, 30], [499, 299, 500, 300], [4, 4, 5, 5]]
    assert look_up(path, max_boxes=1) == [[1, 0, 40, 30]]
    assert look_up(path, "000013") == []
    with pytest.raises(DataError, match=r"boxes\.mat: no proposals for image 000014"):
        look_up(path, "000014")


def test_npz_and_folder(tmp_path: Path) -> None:
    boxes = np.array([[1, 2, 3.5, 4], [-5, 0, 600, 400], [9, 9, 9, 10], [600, 0, 700, 9]])
    expected = [[1, 2, 3.5, 4], [0, 0, 500, 300]]  # clipped; without area: left out
    arrays: dict[str, Any] = {"000012": boxes, "empty": np.zeros((0, 4))}
    np.savez(tmp_path / "all.npz", **arrays)
    assert look_up(tmp_path / "all.npz") == expected
    assert look_up(tmp_path / "all.npz", "empty") == []
    with pytest.raises(DataError, match=r"all\.npz: no proposals for image 7"):
        look_up(tmp_path / "all.npz", "7")
    folder = tmp_path / "folder"
    folder.mkdir()
    np.savez_compressed(folder / "000012.npz", boxes=boxes)
    np.savez(folder / "other.npz", rects=boxes)
    assert look_up(folder) == expected
    with pytest.raises(DataError, match="folder: no proposals for image 7"):
        look_up(folder, "7")
    with pytest.raises(DataError, match="folder: no proposals for image other"):
        look_up(folder, "other")


def refused_mat(tmp_path: Path, content: dict[str, Any]) -> Path:
    scipy.io.savemat(str(tmp_path / "x.mat"), content)
    return tmp_path / "x.mat"


def raw(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(tmp_path: Path) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return make


def npz(value: Any) -> Callable[[Path], Path]:
    def make(tmp_path: Path) -> Path:
        arrays: dict[str, Any] = {"000012": value}
        np.savez(tmp_path / "x.npz", **arrays)
        return tmp_path / "x.npz"

    return make


def broken_zip(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("000012.npy", b"no array")
    return tmp_path / "x.npz"


def damaged_stream(tmp_path: Path) -> Path:
    path = tmp_path / "x.npz"
    arrays: dict[str, Any] = {"000012": np.random.default_rng(0).random((500, 4))}
    np.savez_compressed(path, **arrays)
    content = bytearray(path.read_bytes())
    content[60:64] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (raw("x.npz", b""), "not an .npz file"),
        (raw("x.npz", b"hello"), "not an .npz file"),
        (raw("x.npz", b"PK\x03\x04 and no more"), "not an .npz file"),
        (raw("x.mat", b""), "not a MATLAB file"),
        (raw("x.mat", b"hello world" * 30), "not a MATLAB file"),
        (raw("x.txt", b"1 2 3 4"), "expected .mat, .npz or a folder"),
        (broken_zip, "not an .npz file"),
        (damaged_stream, "not an .npz file"),
        (npz(np.array([[None] * 4], object)), "not an .npz file of plain arrays"),
        (
            npz(np.zeros((3, 5))),
            "000012: expected finite boxes of shape (P, 4), got float64 (3, 5)",
        ),
        (npz(np.zeros(4)), "expected finite boxes"),
        (npz(np.array([[0, 0, np.nan, 1]])), "expected finite boxes"),
        (npz(np.array([["0", "0", "1", "1"]])), "expected finite boxes"),
        (lambda t: t / "no.npz", "no such file or folder of proposals"),
        (lambda t: refused_mat(t, {"boxes": np.zeros(4)}), "boxes is an array of numbers"),
        (lambda t: refused_mat(t, {"rects": np.zeros(4)}), "expected the cells `images` and"),
        (lambda t: save_mat(t / "x.mat", {"000012": np.ones((3, 5))}), "expected finite boxes"),
    ],
)
def test_broken_files(make: Callable[[Path], Path], expected: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(DataError) as caught:
        look_up(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and expected in message and "\n" not in message


def test_cells_and_names_must_match(tmp_path: Path) -> None:
    cells = np.empty((1, 1), object)
    cells[0, 0] = np.ones((1, 4))
    images = np.array([["a"], ["b"]], object)
    path = refused_mat(tmp_path, {"images": images, "boxes": cells})
    with pytest.raises(DataError, match="2 images but 1 cells of boxes"):
        look_up(path)


# -- the stage -----------------------------------------------------------------------------------


def on_disk(pixels: ImageArray, path: Path) -> AnnotatedImage:
    cv2.imwrite(str(path), pixels)
    image = make_image("one", [(1, (0, 0, 9, 9))])
    height, width = pixels.shape[:2]
    return AnnotatedImage(
        image.id, path, width, height, image.gt_boxes, image.gt_labels, *[image.difficult] * 2
    )


def test_proposals_are_stored_per_settings_and_image(image: ImageArray, tmp_path: Path) -> None:
    stored, cache = on_disk(image, tmp_path / "one.png"), ImageCache()
    proposer = Proposer(CONFIG, tmp_path / "store")
    made = proposer.of_image(stored, cache)
    assert proposer.store is not None and proposer.store.has("one", cache.digest(stored.path))
    fake = Proposals(np.array([[0, 0, 7, 7]], np.float32))
    import torch

    proposer.store.write("one", cache.digest(stored.path), {"boxes": torch.from_numpy(fake.boxes)})
    again = Proposer(CONFIG, tmp_path / "store")
    assert again.of_image(stored, cache).boxes.tolist() == [[0, 0, 7, 7]]
    changed = on_disk(np.ascontiguousarray(image[::-1]), stored.path)
    expected = selective_search(read_image(stored.path), CONFIG).boxes
    assert np.array_equal(again.of_image(changed, ImageCache()).boxes, expected)
    cache = ImageCache()
    other = Proposer(CONFIG.model_copy(update={"seed": 4}), tmp_path / "store")
    assert other.fingerprint != proposer.fingerprint
    assert len(other.of_image(stored, cache)) == len(made)


def test_one_file_a_split_and_repeated_boxes(tmp_path: Path) -> None:
    """R-CNN's files are one a split: a list, or the folder that holds them, has all images."""
    box = [2.0, 1.0, 4.0, 3.0]
    for name, image in (("trainval", "000012"), ("test", "7")):
        save_mat(tmp_path / f"{name}.mat", {image: np.array([box, box])})
    files = [tmp_path / "trainval.mat", tmp_path / "test.mat"]
    for stored in (StoredProposals(*files), StoredProposals(tmp_path)):
        for image in ("000012", "7"):
            found = stored.look_up(image, width=500, height=300, max_boxes=9).boxes
            assert found.tolist() == [[0, 1, 3, 4]]


def test_stored_boxes_are_for_their_images_only(image: ImageArray, tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", one=np.array([[1, 1, 5, 5]]))
    config = CONFIG.model_copy(update={"engine": "stored", "path": [tmp_path / "b.npz"]})
    proposer = Proposer(config)
    stored = on_disk(image, tmp_path / "one.png")
    assert proposer.of_image(stored, ImageCache()).boxes.tolist() == [[1, 1, 5, 5]]
    assert np.array_equal(proposer.of(image).boxes, selective_search(image, CONFIG).boxes)
    before = proposer.fingerprint
    np.savez(tmp_path / "b.npz", one=np.array([[1, 1, 5, 5], [2, 2, 9, 9]]))
    assert Proposer(config).fingerprint != before


# -- coverage ------------------------------------------------------------------------------------


def test_coverage_by_hand() -> None:
    first = make_image(
        "a",
        [(1, (0, 0, 10, 10)), (2, (20, 20, 30, 30)), (1, (50, 50, 60, 60))],
        [False] * 2 + [True],
    )
    # IoU: 0.5 with the first, 0.8 with the second; the third is difficult
    found = Proposals(np.array([[0, 0, 10, 5], [20, 20, 30, 28], [90, 90, 95, 95]], np.float32))
    second = make_image("b", [(1, (0, 0, 4, 4))])
    nothing = Proposals(np.zeros((0, 4), np.float32))
    result = coverage([(first, found), (second, nothing), (make_image("c", []), found)])
    assert (result.objects, result.mean_count) == (3, 2.0)
    assert result.recall_50 == pytest.approx(2 / 3)
    assert result.recall_70 == pytest.approx(1 / 3)
    assert result.best_overlap == pytest.approx(1.3 / 3)
    assert "of 3 objects 66.7% are covered at IoU 0.5, 33.3% at 0.7" in str(result)


def test_coverage_of_nothing() -> None:
    result = coverage([(make_image("c", []), Proposals(np.zeros((0, 4), np.float32)))])
    assert result.objects == 0 and result.mean_count == 0
    assert np.isnan([result.recall_50, result.recall_70, result.best_overlap]).all()
    assert coverage([]).mean_count == 0


def test_proposals_refuse_boxes_without_area(rng: np.random.Generator) -> None:
    boxes = random_boxes(rng, 3, width=9, height=9)
    boxes[1, 2] = boxes[1, 0]
    with pytest.raises(ValueError, match=r"proposals, row 1: .* has no area"):
        Proposals(boxes)


def test_ids_that_are_no_file_names_stay_in_the_folder(tmp_path: Path) -> None:
    assert file_name("000012") == "000012.npz" and file_name("a/b") == "a/b.npz"
    assert file_name("n" * 251) == "n" * 251 + ".npz"
    others = [
        "n" * 252,
        "ü" * 126,
        "a/" + "n" * 252,
        "../a",
        "/etc/a",
        "a/../../b",
        "a\0b",
        "\ud800",
    ]
    names = {file_name(image_id) for image_id in others}
    assert len(names) == len(others)
    assert all(re.fullmatch(r"id-[0-9a-f]{32}\.npz", name) for name in names)
    for number, image_id in enumerate(others, start=1):
        np.savez(tmp_path / file_name(image_id), boxes=np.array([[0, 0, number, number]]))
    stored = StoredProposals(tmp_path)
    for number, image_id in enumerate(others, start=1):
        found = stored.look_up(image_id, width=99, height=99, max_boxes=9)
        assert found.boxes.tolist() == [[0, 0, number, number]]
