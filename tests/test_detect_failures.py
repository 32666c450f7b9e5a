"""Detection in folders goes on after an image that fails, and ends well where it must end."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from folder_runs import LEAST, detect
from runs import CommandLine, files_in
from sppdet.errors import ArtifactError, DataError
from sppdet.folders.formats import FORMATS
from sppdet.folders.image_files import Finding, content_of
from sppdet.folders.outputs import _make
from sppdet.io.names import unescape_name
from sppdet.io.voc import read_voc_annotation
from sppdet.runs.artifacts import atomic_path
from sppdet.stages.detector import Detector
from sppdet.types import Detections


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are text here")
def test_names_of_any_bytes_and_length(detector: Detector, images: Path, tmp_path: Path) -> None:
    source = next(images.iterdir()).read_bytes()
    raw = [b"caf\xe9.jpg", b"=1+1.jpg", b"{xe9}.jpg", b"line\nbreak.jpg", b"n" * 232 + b".jpg"]
    raw += [b"\xe9" * 120 + b".jpg", b"deep\xff/x.jpg"]
    folder = tmp_path / "odd"
    for name in raw:
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source)
    out = tmp_path / "out"
    result, _ = detect(detector, [folder], out)
    assert result.failed == () and result.detected == len(raw)
    found = json.loads((out / "detections.json").read_text(encoding="utf-8"))
    names = [image["file_name"] for image in found["images"]]
    assert {os.fsencode(unescape_name(name)) for name in names} == set(raw)
    paths = [Path(unescape_name(image["path"])) for image in found["images"]]
    assert all(path.read_bytes() == source for path in paths)
    with (out / "detections.csv").open(encoding="utf-8", newline="") as handle:
        cells = [row["file_name"] for row in csv.DictReader(handle)]
    assert {cell.removeprefix("'") for cell in cells} == set(names)
    assert not any(cell.startswith("=") for cell in cells)
    drawn, annotations = files_in(out / "images"), files_in(out / "Annotations")
    assert len(drawn) == len(annotations) == len(raw)
    assert all(len(part.encode()) <= 255 for name in drawn for part in name.split("/"))
    files = {read_voc_annotation(out / "Annotations" / name).filename for name in annotations}
    assert files == {name.rpartition("/")[2] for name in names}


def test_images_that_fail_are_listed_and_the_rest_is_done(
    sppdet: CommandLine, trained: Path, images: Path, tmp_path: Path
) -> None:
    wide = images / "a wide one.png"
    Image.new("RGB", (70_000, 2), (9, 99, 200)).save(wide)  # no JPEG has so many
    (images / "b broken.jpg").write_bytes(b"\xff\xd8\xff")
    (images / "c gone.jpg").symlink_to(tmp_path / "nothing")
    out = tmp_path / "out"
    status, said, err = sppdet(
        *("detect", trained, images, "--out", out, "--save", ",".join(FORMATS)),
        *("--score", LEAST, "--device", "cpu"),
    )
    assert status == 1
    assert err == (
        f"error: 3 of 6 images failed; the first: {wide}: 70000x2 pixels can't be encoded as JPEG, "
        "expected 65500 a side at most\n"
    )
    assert said.count("failed: ") == 3 and "c gone.jpg: no such file" in said
    found = json.loads((out / "detections.json").read_text())
    assert len(found["images"]) == 4  # what was found in the wide one is there
    assert len(files_in(out / "images")) == 3 and len(files_in(out / "Annotations")) == 4


def test_an_image_that_is_deleted_meanwhile(
    detector: Detector, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = sorted(images.iterdir())[2]
    genuine = Detector.detect_prepared

    def deleting(self: Detector, *arguments: Any, **named: Any) -> Detections:
        last.unlink(missing_ok=True)
        return genuine(self, *arguments, **named)

    monkeypatch.setattr(Detector, "detect_prepared", deleting)
    monkeypatch.setattr(
        "sppdet.folders.finder.ordered_map", lambda f, items, workers: map(f, items)
    )
    result, _ = detect(detector, [images], tmp_path / "out")
    assert result.detected == 2 and result.failed == (f"{last}: no such file",)


def test_a_model_that_fails_on_one_image(
    detector: Detector, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, calls = Detector.detect_prepared, 0

    def failing(self: Detector, *arguments: Any, **named: Any) -> Detections:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError
        return genuine(self, *arguments, **named)

    monkeypatch.setattr(Detector, "detect_prepared", failing)
    result, _ = detect(detector, [images], tmp_path / "out")
    second = sorted(images.iterdir())[1]
    assert result.failed == (f"{second}: not enough memory",)
    assert result.detected == 2 and calls == 3


def test_a_full_disk_ends_the_work_and_loses_nothing(
    detector: Detector, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    calls: list[int],
) -> None:  # fmt: skip
    import contextlib
    import errno

    @contextlib.contextmanager
    def full(path: Path) -> Iterator[Path]:
        if len(list(path.parent.iterdir())) == 2:
            try:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                raise ArtifactError(f"{path}: can't be written: no space") from None
        with atomic_path(path) as temporary:
            yield temporary

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("sppdet.folders.outputs.atomic_path", full)
        with pytest.raises(ArtifactError, match="no space"):
            detect(detector, [images], out, formats=["images", "json"])
    assert len(calls) == 3
    detect(detector, [images], out, formats=["images", "json"])
    assert len(calls) == 4  # two were kept
    detect(detector, [images], tmp_path / "whole", formats=["images", "json"])
    assert files_in(out) == files_in(tmp_path / "whole")


def test_stems_that_clash(detector: Detector, images: Path, tmp_path: Path) -> None:
    source = next(images.iterdir()).read_bytes()
    folder, out = tmp_path / "clash", tmp_path / "out"
    for name in ("x.jpg", "x.png", "X.jpg", "y.png", "y.png.jpg/z.jpg", "y.png.xml/z.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(source)
    count = len(files_in(folder))
    result, _ = detect(detector, [folder], out)
    assert result.failed == () and result.detected == count
    for part in ("images", "Annotations"):
        written = files_in(out / part)
        assert len({name.casefold() for name in written}) == len(written) == count


@pytest.mark.parametrize("error", [MemoryError(), cv2.error("OpenCV: failed")])
def test_an_image_that_can_not_be_drawn_on(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("sppdet.folders.image_files.draw_detections", fail)
    nothing = Detections(
        np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), ("a",)
    )
    found = Finding("a.jpg", np.zeros((4, 6, 3), np.uint8), nothing)
    with pytest.raises(DataError, match="6x4 pixels can't be encoded as JPEG"):
        content_of("images", found, 0)


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="can't be written into: Not a directory"):
        _make(tmp_path / "file" / "out")
