"""Images that change, or vanish, while they are in use: no run mixes two states of one."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from images import save_image, shape_sets
from runs import (
    contents,
    pretrain_quietly,
    train_quietly,
    write_classifier_settings,
    write_settings,
)
from sppdet.classification.testing import classify_images
from sppdet.demo.set import make_demo_set
from sppdet.errors import ImageError
from sppdet.io.digests import FileDigests
from sppdet.io.image_cache import ImageCache, ImageInfo
from sppdet.io.images import read_image, read_image_bytes
from sppdet.stages.context import Context, Stage
from sppdet.stages.pipeline import FUNCTIONS

GREY, WHITE = (90, 90, 90), (255, 255, 255)


def _bmp(path: Path, colour: tuple[int, int, int]) -> Path:
    """A file whose length doesn't depend on its content."""
    Image.new("RGB", (9, 5), colour).save(path)
    return path


def _replace_unseen(path: Path, data: bytes) -> None:
    """Other content of the same length and time of change, in place."""
    state = path.stat()
    time.sleep(0.02)  # the kernel's clock for files is coarse
    assert len(data) == state.st_size
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_a_change_is_seen_at_the_next_look(tmp_path: Path) -> None:
    path, cache = _bmp(tmp_path / "a.bmp", GREY), ImageCache()
    assert cache.read(path)[0, 0].tolist() == list(GREY)
    _replace_unseen(path, _bmp(tmp_path / "b.bmp", WHITE).read_bytes())
    for use in (cache.look, cache.digest, cache.read):
        with pytest.raises(ImageError, match=r"a\.bmp: changed while it was in use"):
            use(path)
    assert ImageCache().read(path)[0, 0].tolist() == list(WHITE)


def test_a_change_that_no_time_tells_of_is_seen_in_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, stored = _bmp(tmp_path / "a.bmp", GREY), tmp_path / "images.json"
    cache = ImageCache.load(stored)
    cache.look(path)
    cache.save(stored)
    frozen, genuine = os.stat(path), os.stat
    path.write_bytes(_bmp(tmp_path / "b.bmp", WHITE).read_bytes())

    def stat(name: Any, *args: Any, **options: Any) -> os.stat_result:
        return frozen if str(name) == str(path) else genuine(name, *args, **options)

    monkeypatch.setattr("os.stat", stat)
    cache.look(path)  # nothing tells
    with pytest.raises(ImageError, match="changed while it was in use"):
        cache.read(path)
    # what was stored would mislead every later run
    again = ImageCache.load(stored)
    assert again.read(path)[0, 0].tolist() == list(WHITE)


def test_two_first_looks_at_once_are_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = _bmp(tmp_path / "a.bmp", GREY), ImageCache()

    def read_after_another_look(*args: Any, **options: Any) -> bytes:
        monkeypatch.undo()
        cache.look(path)  # what another thread does between this one's stat and its read
        return read_image_bytes(*args, **options)

    monkeypatch.setattr("sppdet.io.image_cache.read_image_bytes", read_after_another_look)
    assert cache.look(path) == cache.look(path)


def test_a_change_to_what_is_no_image_is_a_change(tmp_path: Path) -> None:
    path, cache = _bmp(tmp_path / "a.bmp", GREY), ImageCache()
    cache.look(path)
    path.write_bytes(b"half")
    with pytest.raises(ImageError, match="changed while it was in use"):
        cache.look(path)


def test_touched_or_copied_images_are_the_same(tmp_path: Path) -> None:
    path, cache = _bmp(tmp_path / "a.bmp", GREY), ImageCache()
    before = cache.digest(path)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    os.utime(path, (1, 1))
    assert cache.digest(path) == before
    assert cache.look(path).mtime_ns == 10**9
    assert cache.read(path).shape == (5, 9, 3)


def test_a_vanished_image_is_missing(tmp_path: Path) -> None:
    path, cache = _bmp(tmp_path / "a.bmp", GREY), ImageCache()
    cache.look(path)
    path.unlink()
    for use in (cache.look, cache.read):
        with pytest.raises(ImageError, match=r"a\.bmp: no such file"):
            use(path)


def test_a_lower_bound_of_pixels_reads_again(tmp_path: Path) -> None:
    path = _bmp(tmp_path / "a.bmp", GREY)
    cache = ImageCache()
    cache.look(path)
    cache.save(tmp_path / "images.json")
    with pytest.raises(ImageError, match=r"9x5 pixels, expected 44 at most \(data.max_pixels\)"):
        ImageCache.load(tmp_path / "images.json", max_pixels=44).look(path)
    assert ImageCache.load(tmp_path / "images.json", max_pixels=45).look(path).width == 9


@pytest.mark.parametrize(
    ("moment", "reached"),
    [
        ("proposals", "data"),
        ("features", "proposals"),
        ("svm", "finetune"),
    ],
)
def test_no_model_is_made_of_two_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: Stage, reached: str
) -> None:
    """An image changes after stage `reached`: the run ends, and the next one has the new content."""
    root = make_demo_set(tmp_path / "set", seed=3, train_images=6, test_images=1, fresh_images=0)
    run, settings = tmp_path / "run", tmp_path / "settings.yaml"
    write_settings(settings, root, data={"root": str(root), "train": "trainval"}, head="none")
    path = root / "JPEGImages" / "000003.jpg"
    genuine = FUNCTIONS[moment]

    def after_a_change(context: Context) -> bool:
        flipped = np.ascontiguousarray(read_image(path)[::-1])
        Image.fromarray(flipped).save(path)
        if moment != "svm":  # stages that read images see it in the bytes, whatever stat tells
            patched.setattr(ImageCache, "look", known_before)
        return genuine(context)

    def known_before(cache: ImageCache, path: Path) -> ImageInfo:
        return cache._known[os.path.abspath(path)]

    with monkeypatch.context() as patched:
        patched.setitem(FUNCTIONS, moment, after_a_change)
        with pytest.raises(ImageError, match=r"000003\.jpg: changed while it was in use"):
            train_quietly(settings, run)
    assert not (run / "model" / "trained.json").exists()
    if moment != "features":
        return  # one is enough to see that the next run starts over
    train_quietly(settings, run, until="features")
    fresh = tmp_path / "fresh"
    train_quietly(settings, fresh, until="features")
    for folder in (fresh / "store").iterdir():
        made = contents(run / "store" / folder.name)
        assert contents(folder).items() <= made.items()


# -- classifiers ---------------------------------------------------------------------------------


def test_a_classifier_is_not_trained_on_two_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image changes, in place and with its times restored, once the digests are known."""
    root = shape_sets(tmp_path / "set", train=4, val=2)
    settings = write_classifier_settings(tmp_path / "net.yaml", root)
    path = root / "train" / "disc" / "000.png"
    genuine = FileDigests.save

    def save_then_change(digests: FileDigests, file: Path) -> None:
        genuine(digests, file)
        save_image(path, np.ascontiguousarray(read_image(path)[::-1]))

    with monkeypatch.context() as patched:
        patched.setattr(FileDigests, "save", save_then_change)
        with pytest.raises(ImageError, match=r"disc/000\.png: changed while it was in use"):
            pretrain_quietly(settings, tmp_path / "run")
    assert not (tmp_path / "run" / "model" / "last.safetensors").exists()
    assert not (tmp_path / "run" / "digests.json").exists()
    pretrain_quietly(settings, tmp_path / "run")
    pretrain_quietly(settings, tmp_path / "fresh")
    assert contents(tmp_path / "run" / "model") == contents(tmp_path / "fresh" / "model")


def test_bounds_of_pixels_reach_every_command(tmp_path: Path) -> None:
    root = shape_sets(tmp_path / "set", train=4, val=2)
    for name in ("train", "val"):
        save_image(root / name / "disc" / "large.png", np.zeros((60, 50, 3), dtype=np.uint8))
    settings = write_classifier_settings(tmp_path / "net.yaml", root)
    with pytest.raises(ImageError, match="50x60 pixels, expected 2999 at most"):
        pretrain_quietly(settings, tmp_path / "run", "data.max_pixels=2999")
    bound = ("data.max_pixels=2999", "data.on_error=skip", "train.epochs=1")
    said = pretrain_quietly(settings, tmp_path / "run", *bound)
    assert said.count("large.png: 50x60 pixels") == 2
    ((_, answer),) = classify_images(
        tmp_path / "run", [root / "val" / "disc" / "large.png"], views="centre", device="cpu"
    )
    assert isinstance(answer, str) and "50x60 pixels, expected 2999 at most" in answer
