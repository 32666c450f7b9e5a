"""`data.train_ids` and `data.test_ids`: some images of a set, in any format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from images import save_image
from sppdet.data_config import DataConfig
from sppdet.errors import DataError
from sppdet.io.id_lists import read_id_list, write_id_list
from sppdet.io.image_cache import ImageCache
from sppdet.io.settings import load_config
from sppdet.io.splits import read_split
from sppdet.stages.model_files import settings_fingerprint


def test_a_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    names = ["a b", "000012", "ü", "x__y", "bad\udcff", "{x41}"]
    write_id_list(tmp_path / "l.txt", names)
    assert read_id_list(tmp_path / "l.txt") == names
    (tmp_path / "crlf.txt").write_bytes(b"a\r\n\r\nb\r\n")
    assert read_id_list(tmp_path / "crlf.txt") == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "problem"), [("", "lists no images"), ("\n \n", "lists no"), ("a\na\n", "twice: a")]
)
def test_lists_that_are_wrong(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "l.txt").write_text(text)
    with pytest.raises(DataError, match=problem):
        read_id_list(tmp_path / "l.txt")
    with pytest.raises(DataError, match="no such file"):
        read_id_list(tmp_path / "none.txt")


def test_images_of_a_voc_set(demo_root: Path, tmp_path: Path) -> None:
    names = (demo_root / "ImageSets" / "Main" / "trainval.txt").read_text().split()
    write_id_list(tmp_path / "few.txt", [names[5], names[2]])
    config = DataConfig(root=[demo_root], train=["trainval"], test=["test"])
    chosen = config.model_copy(update={"train_ids": tmp_path / "few.txt"})
    images = ImageCache()
    dataset = read_split(chosen, "train", None, images, workers=1)
    assert [image.id for image in dataset.images] == [names[2], names[5]]
    assert dataset.name == "set-trainval-few" and len(images) == 2  # no other is decoded
    assert len(read_split(chosen, "test", None, None, workers=1)) == 6
    assert len(read_split(chosen, "trainval", None, None, workers=1)) == 12
    tested = config.model_copy(update={"test": ["trainval"], "test_ids": tmp_path / "few.txt"})
    assert len(read_split(tested, "test", None, None, workers=1)) == 2
    assert len(read_split(tested, "train", None, None, workers=1)) == 12
    write_id_list(tmp_path / "few.txt", [names[5], "nobody"])
    with pytest.raises(DataError, match=r"few\.txt: not in set-trainval: nobody"):
        read_split(chosen, "train", None, None, workers=1)


def test_images_of_a_coco_set(tmp_path: Path) -> None:
    images = [{"id": k, "file_name": f"p{k}.png", "width": 20, "height": 20} for k in (7, 8, 9)]
    boxes = [
        {"id": k, "image_id": k, "category_id": 1, "bbox": [1, 1, 9, 9], "iscrowd": 0}
        for k in (7, 8, 9)
    ]
    truth = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    for k in (7, 8, 9):
        save_image(tmp_path / f"p{k}.png", np.full((20, 20, 3), k, np.uint8))
    write_id_list(tmp_path / "two.txt", ["p9", "p7"])
    config = DataConfig(
        format="coco", root=[tmp_path], train=["truth.json"], train_ids=tmp_path / "two.txt"
    )
    dataset = read_split(config, "train", None, ImageCache(), workers=1)
    assert [image.id for image in dataset.images] == ["p7", "p9"]


def test_paths_start_from_the_file_of_settings(settings: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    own = tmp_path / "sub" / "own.yaml"
    text = settings.read_text().replace("data:\n", "data:\n  train_ids: lists/a.txt\n")
    own.write_text(text)
    config = load_config(own)
    assert config.data.train_ids == tmp_path / "sub" / "lists" / "a.txt"
    # where the lists lie doesn't matter to a score's signature; its digests say which images they name
    assert settings_fingerprint(config) == settings_fingerprint(load_config(settings))
