"""Sets as labelling tools write them: found out, and read to the same boxes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from labelled_sets import SETS, TEST, TRAIN, WRITERS
from runs import FAST, train_quietly, write_settings
from sppdet.config import Config
from sppdet.data_config import DataConfig
from sppdet.io.image_cache import ImageCache
from sppdet.io.splits import read_split
from sppdet.stages.settle import settle
from sppdet.types import Dataset

Objects = list[tuple[str, float, float, float, float]]


def settled(root: Path, folder: Path, **data: Any) -> DataConfig:
    settings = {"format": "auto", "root": [root], **data}
    return settle(Config(data=DataConfig(**settings)), folder).data


def objects_of(dataset: Dataset) -> dict[str, Objects]:
    """The objects of every image by the name that all sets share: the last letter before a suffix."""
    found: dict[str, Objects] = {}
    for image in dataset.images:
        name = re.split(r"_png\.rf\.", image.path.stem)[0].rpartition("-")[2]
        rows = zip(image.gt_labels.tolist(), image.gt_boxes.tolist(), strict=True)
        assert name not in found
        found[name] = [(dataset.class_names[label - 1], *box) for label, box in rows]
    return found


def assert_objects(found: dict[str, Objects], names: tuple[str, ...]) -> None:
    assert sorted(found) == sorted(names)
    for name in names:
        wanted, own = SETS[name], found[name]
        assert [item[0] for item in own] == [item[0] for item in wanted]
        for one, other in zip(own, wanted, strict=True):
            assert one[1:] == pytest.approx(other[1:], abs=0.01)


@pytest.mark.parametrize("tool", WRITERS)
def test_every_tool_gives_the_same_boxes(tool: str, tmp_path: Path) -> None:
    write, format, has_split = WRITERS[tool]
    root = tmp_path / "my photos"
    write(root)
    data = settled(root, tmp_path / "run")
    assert data.format == format
    train = read_split(data, "train", None, ImageCache(), workers=1)
    test = read_split(data, "test", train.class_names, ImageCache(), workers=1)
    assert not train.skipped and not test.skipped
    if has_split:
        assert_objects(objects_of(train), TRAIN)
        assert_objects(objects_of(test), TEST)
    else:
        assert (len(train), len(test)) == (5, 1)
        assert_objects(objects_of(train) | objects_of(test), tuple(SETS))
    assert (train.clipped_boxes, test.clipped_boxes) == (0, 0)


@pytest.mark.parametrize("tool", WRITERS)
def test_every_tool_can_be_trained_on(tool: str, tmp_path: Path) -> None:
    """With the settings of a VOC set and two overrides."""
    write, format, has_split = WRITERS[tool]
    write(tmp_path / "set")
    settings = write_settings(tmp_path / "small.yaml", tmp_path)
    overrides = ("data.format=auto", f"data.root={tmp_path / 'set'}")
    _, said = train_quietly(settings, tmp_path / "run", *overrides, until="data")
    sizes = (len(TRAIN), len(TEST)) if has_split else (5, 1)
    assert f"set: {format} (" in said
    assert f", {sizes[0]} images, " in said and f", {sizes[1]} images, " in said


@pytest.mark.parametrize("with_split", [False, True])
def test_every_tool_gives_the_same_detector(with_split: bool, tmp_path: Path) -> None:
    """To the bit; YOLO's fractions of six digits leave box regressors that differ from the fifth on."""
    settings = write_settings(tmp_path / "small.yaml", tmp_path)
    models: dict[str, list[dict[str, torch.Tensor]]] = {}
    for tool, (write, _, has_split) in WRITERS.items():
        if has_split != with_split:
            continue
        root, run = tmp_path / tool / "set", tmp_path / tool / "run"
        write(root)
        own = ["data.format=auto", f"data.root={root}", f"store={tmp_path / tool / 'store'}"]
        own += ["calibrate=null", *FAST, *([] if with_split else ["data.test=null"])]
        train_quietly(settings, run, *own, until="bbox")
        files = (run / "model" / f"{part}.safetensors" for part in ("svm", "bbox"))
        models[tool] = [load_file(file) for file in files]
    assert len(models) == (10 if with_split else 15)
    svm, bbox = models.pop(next(iter(models)))
    assert float(svm["weights"].abs().max()) > 0 and float(bbox["weights"].abs().max()) > 0
    for tool, (own_svm, own_bbox) in models.items():
        tolerance = 1e-5 if WRITERS[tool][1] == "yolo" else 0
        for wanted, found, apart in ((svm, own_svm, 0), (bbox, own_bbox, tolerance)):
            assert set(found) == set(wanted)
            for key, values in wanted.items():
                assert torch.allclose(found[key], values, rtol=0, atol=apart), (tool, key)
