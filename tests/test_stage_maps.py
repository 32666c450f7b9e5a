"""The stages of proposals and of feature maps: every image has its own, wherever they come from."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from images import save_image
from runs import contents
from sppdet.config import FeaturesConfig, ProposalsConfig
from sppdet.features.backbones import Backbone
from sppdet.proposals.selective_search import selective_search
from sppdet.runs.artifacts import fingerprint_of, read_tensors, write_tensors
from sppdet.stages.map_cache import MapCache
from sppdet.stages.map_memory import MapMemory
from sppdet.stages.proposer import Proposer
from sppdet.types import FeatureMaps, ImageArray
from stages import (
    CANONICAL,
    SCALES,
    Box,
    Scene,
    WatchedMaps,
    World,
    easy_scenes,
    make_world,
    scenes,
    slow_iou,
)

SEARCH = ProposalsConfig(image_width=128, min_size=12, max_boxes=60)


def slow_maps(backbone: Backbone, image: ImageArray) -> list[torch.Tensor]:
    """The layers on an image at every scale, as float16."""
    found = []
    height, width = image.shape[:2]
    for scale in SCALES:
        factor = scale / min(height, width)
        resized = image.copy()
        if factor != 1:
            size = (round(width * factor), round(height * factor))
            resized = np.asarray(cv2.resize(image, size), dtype=np.uint8)  # bilinear
        x = torch.from_numpy(resized.astype(np.float32) / 255)
        x = (x - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
        with torch.no_grad():
            found.append(backbone.layers(x.permute(2, 0, 1)[None])[0].half())
    return found


def assert_maps(found: FeatureMaps, expected: list[torch.Tensor]) -> None:
    assert [m.shape for m in found.maps] == [m.shape for m in expected]
    assert all(m.dtype == torch.float16 for m in found.maps)
    for own, other in zip(found.maps, expected, strict=True):
        assert float((own.float() - other.float()).abs().max()) < 0.01 * float(other.max())


def assert_equal(found: FeatureMaps, expected: FeatureMaps) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found.maps, expected.maps, strict=True))
    assert np.array_equal(found.scale_factors, expected.scale_factors)
    assert (found.stride, found.offset) == (expected.stride, expected.offset)


def fill(world: World, positions: list[int], *, mirrored: bool) -> int:
    images = [world.data.dataset.images[i] for i in positions]
    return world.maps.fill(images, mirrored=mirrored, workers=2)


@pytest.mark.parametrize("store", [False, True])
def test_maps_are_the_layers_on_the_resized_image(
    store: bool, tiny: Backbone, tmp_path: Path
) -> None:
    world = make_world(tmp_path, tiny, scenes(), store=store)
    if store:
        assert fill(world, [0, 1, 2, 3], mirrored=True) == 8
    for image, scene in zip(world.data.dataset.images, world.scenes, strict=True):
        found = world.maps.of_image(image)
        assert_maps(found, slow_maps(tiny, scene.image))
        assert found.scale_factors.tolist() == [1.0, 1.5]
        assert (found.stride, found.offset) == (8, 0.5)
        mirrored = world.maps.of_image(image, mirrored=True)
        assert_maps(mirrored, slow_maps(tiny, scene.mirrored().image))
        assert not torch.equal(found.maps[0], mirrored.maps[0])


@pytest.mark.parametrize("rounding", ["float16", "int8"])
def test_maps_are_the_same_wherever_they_come_from(
    rounding: str, tiny: Backbone, tmp_path: Path
) -> None:
    def world(name: str, **settings: object) -> World:
        features, store = {"rounding": rounding, **settings}, name in ("stored", "bounded")
        return make_world(tmp_path / name, tiny, scenes(), store=store, features=features)

    plain, stored, held = world("plain"), world("stored"), world("held")
    fill(stored, [0, 1, 2, 3], mirrored=True)
    bounded = world("bounded", max_disk=bytes_in(tmp_path / "stored" / "store") / 2 / 1e9)
    one_map = sum(m.numel() * 2 for m in plain.map_of(0).maps)
    held.maps.keep_in_memory(MapMemory(torch.device("cpu"), room=int(3.5 * one_map)))
    for flip in (False, True):
        for _ in range(2):  # the second time from the disk, and from memory where there was room
            for i in range(4):
                found = [
                    world.maps.of_image(world.data.dataset.images[i], mirrored=flip)
                    for world in (plain, stored, held, bounded)
                ]
                for other in found[1:]:
                    assert_equal(other, found[0])
                detected = plain.maps.compute(plain.maps.scaled(read(plain, i, mirrored=flip)))
                assert_equal(detected, found[0])
    assert 0 < len(list((tmp_path / "bounded" / "store").glob("*/*"))) < 8
    assert len(list((tmp_path / "stored" / "store").glob("*/*"))) == 8


def read(world: World, position: int, *, mirrored: bool) -> ImageArray:
    pixels = world.data.images.read(world.data.dataset.images[position].path)
    return np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels


def test_forms_of_maps_stay_apart(tiny: Backbone, tmp_path: Path) -> None:
    exact = make_world(tmp_path, tiny, scenes(), store=True)
    eight = make_world(tmp_path, tiny, scenes(), store=True, features={"rounding": "int8"})
    assert exact.maps.fingerprint != eight.maps.fingerprint
    assert exact.data.fingerprint() != eight.data.fingerprint()
    for world in (exact, eight):
        assert fill(world, [0, 1], mirrored=False) == 2
    for world in (exact, eight):
        assert fill(world, [0, 1], mirrored=False) == 0
    assert len(list((tmp_path / "store").iterdir())) == 2
    for half, rounded in zip(exact.map_of(0).maps, eight.map_of(0).maps, strict=True):
        levels = [len(channel.unique()) for channel in rounded]
        assert max(levels) <= 256
        ranges = half.float().amax((1, 2)) - half.float().amin((1, 2)).clamp(max=0)
        moved = (half.float() - rounded.float()).abs().amax((1, 2))
        assert bool((moved <= 0.63 * ranges / 255 + 2.0**-11 * ranges).all()) and bool(moved.any())
    assert exact.maps.store is not None and eight.maps.store is not None
    image = exact.data.dataset.images[0]
    source = exact.data.images.digest(image.path)
    paths = [m.store.path(image.id, source) for m in (exact.maps, eight.maps) if m.store]
    shutil.copy(paths[0], paths[1])  # is noticed and made again
    assert fill(eight, [0], mirrored=False) == 1


@pytest.mark.parametrize("rounding", ["float16", "int8"])
def test_damaged_maps_are_made_again(
    rounding: str, tiny: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(tmp_path, tiny, scenes(), store=True, features={"rounding": rounding})
    fill(world, [0], mirrored=False)
    (path,) = (tmp_path / "store").glob("*/*")
    whole, first = path.read_bytes(), world.map_of(0)
    tensors, about = read_tensors(path)
    made_by = fingerprint_of(path)
    assert made_by and "bits0" in tensors
    more = dict(tensors) | {"bits0": tensors["bits0"] | 1}
    write_tensors(path, more, made_by=made_by, about=about)  # with a checksum that is right
    assert path.read_bytes() != whole
    assert_equal(world.maps.of_image(world.data.dataset.images[0]), first)
    assert "elements don't fit each other; it is made again" in caplog.text
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert_equal(world.maps.of_image(world.data.dataset.images[0]), first)
    assert "doesn't match its checksum" in caplog.text and path.read_bytes() == whole


def test_maps_by_an_earlier_version_are_read(tiny: Backbone, tmp_path: Path) -> None:
    world = make_world(tmp_path, tiny, scenes(), store=True)
    fill(world, [0], mirrored=False)
    (path,) = (tmp_path / "store").glob("*/*")
    made_by, about = fingerprint_of(path), read_tensors(path)[1]
    assert made_by
    maps = world.map_of(0)
    dense = {f"map{s}": m.permute(1, 2, 0).contiguous() for s, m in enumerate(maps.maps)}
    dense["scale_factors"] = torch.from_numpy(maps.scale_factors)
    write_tensors(path, dense, made_by=made_by, about=about)
    before = path.read_bytes()
    assert fill(world, [0], mirrored=False) == 0
    assert_equal(world.maps.of_image(world.data.dataset.images[0]), maps)
    assert path.read_bytes() == before


def bytes_in(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_a_bound_on_the_disk(tiny: Backbone, tmp_path: Path) -> None:
    def filled(most: float | None) -> tuple[int, int]:
        """Maps that are made, and all bytes on the disk."""
        (tmp_path / "log.jsonl").unlink(missing_ok=True)
        world = make_world(tmp_path, tiny, scenes(), store=True, features={"max_disk": most})
        made = fill(world, [0, 1, 2, 3], mirrored=True)
        for image in world.data.dataset.images:
            world.maps.of_image(image)
        if most is None:
            assert not (tmp_path / "log.jsonl").exists()
        else:
            (said,) = world.events("maps full")
            used = bytes_in(tmp_path / "store") / 1e9
            assert (said["most"], said["used"]) == (most, pytest.approx(used))
            assert f"(features.max_disk: {most:g}); others are recomputed" in said["text"]
        return made, bytes_in(tmp_path / "store")

    everything = filled(None)[1]
    shutil.rmtree(tmp_path / "store")
    assert filled(0) == (0, 0)
    made, taken = filled(0.4 * everything / 1e9)
    assert made in (3, 4) and 0.2 < taken / everything <= 0.4  # one of them found no room
    again, more = filled(0.7 * everything / 1e9)
    assert again in (2, 3, 4) and 0.5 < more / everything <= 0.7
    assert filled(0.4 * everything / 1e9) == (0, more)  # none is removed
    there = len(list((tmp_path / "store").glob("*/*")))
    assert filled(None) == (8 - there, everything)


def test_filling_makes_what_is_missing(tiny: Backbone, tmp_path: Path) -> None:
    world = make_world(tmp_path, tiny, scenes(), store=True)
    assert fill(world, [1, 2], mirrored=False) == 2
    before = contents(next((tmp_path / "store").iterdir()))
    assert len(before) == 2
    assert fill(world, [0, 1, 2, 3], mirrored=False) == 2
    assert fill(world, [0, 1, 2, 3], mirrored=True) == 4
    assert fill(world, [0, 1, 2, 3], mirrored=True) == 0
    after = contents(next((tmp_path / "store").iterdir()))
    assert len(after) == 8 and before.items() <= after.items()


def test_without_a_store_nothing_is_filled(tiny: Backbone, tmp_path: Path) -> None:
    world = make_world(tmp_path, tiny, scenes())
    assert fill(world, [0, 1], mirrored=True) == 0
    assert not (tmp_path / "store").exists()


def test_a_changed_image_and_other_settings_have_other_maps(tiny: Backbone, tmp_path: Path) -> None:
    world = make_world(tmp_path, tiny, scenes(), store=True)
    fill(world, [0, 1, 2, 3], mirrored=False)
    other = scenes(seed=5)[1]
    save_image(world.data.dataset.images[1].path, other.image)
    again = make_world(tmp_path, tiny, [scenes()[0], other, *scenes()[2:]], store=True)
    assert_maps(again.map_of(1), slow_maps(tiny, other.image))
    assert fill(again, [0, 1, 2, 3], mirrored=False) == 0  # the changed one was kept just now
    config = FeaturesConfig(canonical_size=CANONICAL)
    fewer = MapCache(tiny, [96], config, again.data.images, tmp_path / "store")
    assert len(fewer.of_image(again.data.dataset.images[0]).maps) == 1
    assert len(list((tmp_path / "store").iterdir())) == 2
    assert isinstance(again.maps, WatchedMaps)


# -- proposals -------------------------------------------------------------------------------------


def searched(folder: Path, tiny: Backbone, given: list[Scene]) -> tuple[World, Proposer]:
    """The images of scenes, and who searches them."""
    return make_world(folder, tiny, given), Proposer(SEARCH, folder / "store")


def fill_proposals(world: World, proposer: Proposer, *, workers: int = 1) -> int:
    return proposer.fill(
        world.data.dataset.images,
        world.data.images,
        workers=workers,
        label="all",
    )


def of_image(world: World, proposer: Proposer, position: int) -> list[Box]:
    image = world.data.dataset.images[position]
    found = proposer.of_image(image, world.data.images)
    return [(a, b, c, d) for a, b, c, d in found.boxes.tolist()]


def test_every_image_has_its_own_proposals(tiny: Backbone, tmp_path: Path) -> None:
    world, proposer = searched(tmp_path, tiny, easy_scenes(4))
    assert fill_proposals(world, proposer, workers=2) == 4
    kept = contents(next((tmp_path / "store").iterdir()))
    assert len(kept) == 4
    for i, scene in enumerate(world.scenes):
        expected = selective_search(scene.image, SEARCH).boxes
        assert np.array_equal(np.array(of_image(world, proposer, i), np.float32), expected)
        assert np.array_equal(proposer.of(scene.image).boxes, expected)
        height, width = scene.image.shape[:2]
        assert 10 < len(expected) <= 60
        assert (expected >= 0).all() and (expected <= [width, height, width, height]).all()
        objects = [
            max(slow_iou(b, box) for b in of_image(world, proposer, i)) for box in scene.boxes
        ]
        assert min(objects) > 0.7  # what is drawn is found
    assert fill_proposals(world, proposer) == 0
    assert contents(next((tmp_path / "store").iterdir())) == kept
    one, fresh = searched(tmp_path / "one", tiny, easy_scenes(4))
    assert fill_proposals(one, fresh, workers=1) == 4
    assert contents(next((tmp_path / "one" / "store").iterdir())) == kept


def test_images_of_one_id_and_other_settings_stay_apart(tiny: Backbone, tmp_path: Path) -> None:
    first, proposer = searched(tmp_path, tiny, easy_scenes(2))
    fill_proposals(first, proposer)
    before = [of_image(first, proposer, i) for i in range(2)]
    other = make_world(tmp_path / "other", tiny, easy_scenes(4)[2:])  # im0 and im1 again
    assert fill_proposals(other, proposer) == 2
    assert [of_image(first, proposer, i) for i in range(2)] == before
    assert [of_image(other, proposer, i) for i in range(2)] != before
    fewer = Proposer(SEARCH.model_copy(update={"max_boxes": 7}), tmp_path / "store")
    assert fill_proposals(first, fewer) == 2
    assert [len(of_image(first, fewer, i)) for i in range(2)] == [7, 7]
    assert [of_image(first, proposer, i) for i in range(2)] == before


def test_the_measured_coverage(tiny: Backbone, tmp_path: Path) -> None:
    world = make_world(tmp_path, tiny, scenes())
    proposer = world.data.proposer
    found = proposer.measure(world.data.dataset, world.data.images)
    best = [
        max(slow_iou(box, proposal) for proposal in scene.proposals)
        for scene in world.scenes
        for box, difficult in zip(scene.boxes, scene.difficult, strict=True)
        if not difficult
    ]
    assert found.objects == len(best)
    assert found.recall_50 == pytest.approx(np.mean([iou >= 0.5 for iou in best]))
    assert found.recall_70 == pytest.approx(np.mean([iou >= 0.7 for iou in best]))
    assert found.best_overlap == pytest.approx(np.mean(best))
    assert found.mean_count == np.mean([len(scene.proposals) for scene in world.scenes])
